//! What the requests of a load say when they are put together; no words and no pictures.

pub mod breakdown;
pub mod cases;
pub mod classes;
pub mod in_flight;
pub mod objective;
