//! HTTP in, tokens out. Knows no tensor: it turns JSON into token ids for the engine, and the
//! engine's events back into JSON or server-sent events.
