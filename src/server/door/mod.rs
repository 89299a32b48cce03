//! Who comes in, and for how long: connections, keys, other web sites.

pub mod connections;
pub mod cors;
pub mod keys;

mod timed_stream;
