//! Model files and what they describe: from the name a user gives to a spec and its weights.

mod catalogue;
mod checksum;
mod hub;
mod source;

pub use catalogue::{Catalogue, CatalogueEntry, list, write_table};
pub use checksum::sha256_of;
pub use hub::HubConfig;
pub use source::{ModelFiles, ModelPlaces, ResolvedModel, resolve, weight_files};
