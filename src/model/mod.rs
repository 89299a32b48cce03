//! Model files and what they describe: from the name a user gives to a spec and its weights.

mod source;

pub use source::{ModelFiles, ResolvedModel};
