//! The benchmark harness: a client over HTTP. Imports nothing of the server, the engine or the
//! model, so it can measure any other server and cannot flatter ours.
