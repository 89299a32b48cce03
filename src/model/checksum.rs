//! SHA-256 of model files: to check downloads, and to name in records what was measured.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::shards::weight_files;

/// SHA-256 of a model, in lower-case hexadecimal.
///
/// Of a file, or of a folder with one weight file: of that file. Of a folder with several: what
/// `sha256sum *.safetensors | sha256sum` prints there for the files that the index names.
///
/// # Errors
/// Where a file is missing or cannot be read.
pub fn sha256_of(path: &Path) -> anyhow::Result<String> {
    if !path.is_dir() {
        return sha256_of_file(path);
    }
    let files = weight_files(path)?;
    if let [only] = files.as_slice() {
        return sha256_of_file(only);
    }
    let mut listing = Sha256::new();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        listing.update(format!("{}  {name}\n", sha256_of_file(file)?));
    }
    Ok(hexadecimal(&listing.finalize()))
}

fn sha256_of_file(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(context)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
