//! Damaged model files: an error or a model, never a panic, never memory beyond the file's size.

mod synthetic;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use candlepower::model::{ModelFiles, load};
use proptest::prelude::*;
use synthetic::{Architecture, Synthetic};

/// Far above what loading the header of a small file takes, far below what a hostile length asks.
const MAX_ALLOCATION: usize = 16 << 20;

/// The system's allocator; remembers each thread's largest request.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
#[allow(unsafe_code, reason = "a test can watch allocations in no other way")]
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// A whole file and the length of its header.
fn small_gguf() -> (Vec<u8>, usize) {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    let new = || Synthetic::new(Architecture::Llama, &[GgmlDType::Q4_0]).gguf();
    let file = FILE.get_or_init(new).clone();
    // The header ends behind the last tensor's name and its numbers.
    let last = file
        .windows(10)
        .rposition(|window| window == b"ffn_norm.w")
        .expect("a header");
    (file, last + 64)
}

/// Loads and checks that no allocation was out of proportion.
fn load_watched(files: &ModelFiles) -> Result<(), String> {
    LARGEST.set(0);
    let result = load(files)
        .map(|_| ())
        .map_err(|error| format!("{error:#}"));
    let largest = LARGEST.get();
    assert!(
        largest <= MAX_ALLOCATION,
        "{largest} bytes at once: {result:?}"
    );
    result
}

fn load_gguf(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).expect("written");
    load_watched(&ModelFiles::Gguf(path.to_owned()))
}

/// Loads a file with this header and a hole where the tensors were, which nothing reads.
fn load_header(path: &Path, header: &[u8], file_bytes: usize) -> Result<(), String> {
    let mut file = File::create(path).expect("created");
    file.write_all(header).expect("written");
    file.set_len(file_bytes as u64).expect("extended");
    load_watched(&ModelFiles::Gguf(path.to_owned()))
}

#[test]
fn a_truncated_gguf_is_an_error_at_every_length() {
    let (file, header_bytes) = small_gguf();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cut.gguf");
    assert_eq!(load_gguf(&path, &file), Ok(()));
    let lengths = (0..header_bytes).step_by(3);
    for length in lengths.chain([file.len() / 2, file.len() - 64]) {
        let error = load_gguf(&path, &file[..length]).expect_err("a truncated file");
        assert!(
            error.contains("cut.gguf") && error.contains("fetch it again"),
            "{error}"
        );
    }
}

#[test]
fn a_gguf_with_hostile_lengths_is_an_error() {
    let (file, header_bytes) = small_gguf();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hostile.gguf");
    for at in (0..header_bytes).step_by(7) {
        for value in [u64::MAX, 1 << 62, 1 << 40, 1 << 31, 0] {
            let mut header = file[..header_bytes + 8].to_vec();
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
            // Some hits only change a number or a name's spelling: any answer will do.
            let _ = load_header(&path, &header, file.len());
        }
    }
}

#[test]
fn hostile_numbers_in_the_settings_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut model = Synthetic::new(Architecture::Llama, &[GgmlDType::F32]);
    let path = folder.path().join("hostile.gguf");
    for index in 0..model.metadata.len() {
        let (key, original) = model.metadata[index].clone();
        if !matches!(original, Value::U32(_)) {
            continue;
        }
        for hostile in [0xffff_fffe, 1 << 31, 0] {
            model.metadata[index].1 = Value::U32(hostile);
            let result = load_gguf(&path, &model.gguf());
            // Token 0 may well end a generation.
            let is_id = key.ends_with("token_id") && hostile == 0;
            assert!(result.is_err() || is_id, "{key} = {hostile}");
        }
        model.metadata[index].1 = original;
    }
    let config = model.config.clone();
    for (key, original) in config.as_object().expect("an object") {
        for hostile in [u64::MAX, 1 << 40, 0] {
            if original.is_u64() {
                model.config[key] = hostile.into();
                model.write_folder(folder.path());
                let result = load_watched(&ModelFiles::Folder(folder.path().to_owned()));
                assert!(result.is_err(), "{key} = {hostile}");
                model.config = config.clone();
            }
        }
    }
}

fn folder_copy(into: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny-qwen2");
    for file in fs::read_dir(source).expect("a committed model") {
        let file = file.expect("an entry");
        fs::copy(file.path(), into.join(file.file_name())).expect("copied");
    }
}

/// Replaces part of a file of a small folder, loads it, and puts the file back.
fn load_folder_with(folder: &Path, name: &str, at: usize, bytes: &[u8]) -> Result<(), String> {
    let path = folder.join(name);
    let original = fs::read(&path).expect("a file");
    let mut changed = original.clone();
    let at = at % changed.len();
    let end = changed.len().min(at + bytes.len());
    changed[at..end].copy_from_slice(&bytes[..end - at]);
    fs::write(&path, &changed).expect("written");
    let result = load_watched(&ModelFiles::Folder(folder.to_owned()));
    fs::write(&path, &original).expect("written");
    result
}

#[test]
fn a_safetensors_header_that_lies_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    folder_copy(folder.path());
    let shard = "model-00002-of-00004.safetensors";
    for length in [u64::MAX, 1 << 40, 99_999_999, 0, 1] {
        let bytes = length.to_le_bytes();
        let error = load_folder_with(folder.path(), shard, 0, &bytes).expect_err("a lie");
        assert!(
            error.contains(shard) && error.contains("fetch it again"),
            "{error}"
        );
    }
    let path = folder.path().join(shard);
    let whole = fs::read(&path).expect("a file");
    for length in [0, 7, 8, 100, whole.len() - 1] {
        fs::write(&path, &whole[..length]).expect("written");
        let error = load_watched(&ModelFiles::Folder(folder.path().to_owned()));
        let error = error.expect_err("a truncated shard");
        assert!(
            error.contains(shard) && error.contains("fetch it again"),
            "{error}"
        );
    }
}

#[test]
fn an_index_cannot_leave_the_folder_or_promise_what_is_not_there() {
    let folder = tempfile::tempdir().expect("a folder");
    folder_copy(folder.path());
    let index = folder.path().join("model.safetensors.index.json");
    for (text, expected) in [
        (
            r#"{"weight_map": {"a": "../secret.safetensors"}}"#,
            "not a file of the folder",
        ),
        (
            r#"{"weight_map": {"a": "/etc/passwd"}}"#,
            "not a file of the folder",
        ),
        (r#"{"weight_map": {"a": ""}}"#, "not a file of the folder"),
        (
            r#"{"weight_map": {"a": "absent.safetensors"}}"#,
            "cannot open absent.safetensors",
        ),
        (
            r#"{"weight_map": {"a": "model-00001-of-00004.safetensors"}}"#,
            "promises tensor a, which no file has",
        ),
        ("{}", "damaged"),
        ("[", "damaged"),
    ] {
        fs::write(&index, text).expect("written");
        let error = load_watched(&ModelFiles::Folder(folder.path().to_owned()));
        let error = error.expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_damage_to_a_gguf_header_never_panics(at in 0usize..6000, bytes in any::<[u8; 4]>()) {
        let (file, header_bytes) = small_gguf();
        let mut header = file[..header_bytes + 4].to_vec();
        let at = at % header_bytes;
        header[at..at + 4].copy_from_slice(&bytes);
        let folder = tempfile::tempdir().expect("a folder");
        let _ = load_header(&folder.path().join("damaged.gguf"), &header, file.len());
    }

    #[test]
    fn random_damage_to_a_folder_never_panics(
        file in 0usize..3,
        at in 0usize..3000,
        bytes in any::<[u8; 3]>(),
    ) {
        let names = [
            "config.json",
            "model.safetensors.index.json",
            "model-00003-of-00004.safetensors",
        ];
        let folder = tempfile::tempdir().expect("a folder");
        folder_copy(folder.path());
        let _ = load_folder_with(folder.path(), names[file], at, &bytes);
    }
}
