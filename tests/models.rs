//! `--model` and `candlepower models`, against folders on disk and a hub on this machine.

mod fake_hub;

use std::fs;
use std::path::{Path, PathBuf};

use candlepower::model::{
    Catalogue, HubConfig, ModelFiles, ModelPlaces, ResolvedModel, sha256_of, write_table,
};
use fake_hub::{COMMIT, FakeHub, sha256};
use tempfile::TempDir;

const REPO: &str = "org/little";

/// Places in a folder of their own: a catalogue with one model, `models/`, a cache, a hub.
struct Fixture {
    folder: TempDir,
    hub: FakeHub,
    places: ModelPlaces,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("models")).expect("models/");
        let hub = FakeHub::start();
        let catalogue = serde_json::json!([{
            "name": "little-1m", "family": "llama", "quantisation": "Q4_1", "licence": "MIT",
            "hub_id": REPO, "revision": "main", "file": "little.gguf",
            "size_bytes": 13, "sha256": sha256(b"little weight"), "pypi": [],
        }]);
        let places = ModelPlaces {
            catalogue: Catalogue::parse(&catalogue.to_string()).expect("a catalogue"),
            folders: vec![folder.path().join("models")],
            hub: HubConfig {
                endpoint: hub.endpoint.clone(),
                cache: folder.path().join("cache"),
                token: None,
                offline: false,
            },
        };
        Self {
            folder,
            hub,
            places,
        }
    }

    fn resolve(&self, model: &str) -> ResolvedModel {
        let resolved = self.places.resolve(model);
        resolved.unwrap_or_else(|error| panic!("{model}: {error:#}"))
    }

    /// The one line that the user sees.
    fn error(&self, model: &str) -> String {
        let line = match self.places.resolve(model) {
            Ok(resolved) => panic!("{model} gave {resolved:?}"),
            Err(error) => format!("{error:#}"),
        };
        assert!(!line.contains('\n'), "{line}");
        line
    }

    fn write(&self, file: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(&path, content).expect("a file");
        path
    }

    fn path(&self, file: &str) -> String {
        self.folder.path().join(file).display().to_string()
    }

    fn put_sharded_model(&self) {
        let index = serde_json::json!({"metadata": {}, "weight_map": {
            "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
            "c": "model-00001-of-00002.safetensors",
        }});
        for (file, content) in [
            ("config.json", "{}"),
            ("tokenizer.json", "{\"tokens\": 1}"),
            ("tokenizer_config.json", "{\"template\": 1}"),
            ("model.safetensors.index.json", &index.to_string()),
            ("model-00001-of-00002.safetensors", "first"),
            ("model-00002-of-00002.safetensors", "second"),
            ("pytorch_model.bin", "the same again"),
        ] {
            self.hub.put(REPO, file, content.as_bytes());
        }
    }
}

fn content(files: &ModelFiles) -> Vec<u8> {
    match files {
        ModelFiles::Gguf(path) => fs::read(path).expect("the file"),
        ModelFiles::Folder(path) => panic!("{} is a folder", path.display()),
    }
}

fn assert_says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in: {line}");
    }
}

#[test]
fn a_gguf_of_the_hub_is_downloaded_once() {
    let mut fixture = Fixture::new();
    fixture.hub.put(REPO, "q4/tiny.gguf", b"weights");
    let model = "org/little:q4/tiny.gguf";
    let first = fixture.resolve(model);
    assert_eq!(first.name, REPO);
    assert_eq!(content(&first.files), b"weights");

    fixture.hub.take_seen();
    assert_eq!(fixture.resolve(model), first);
    assert_eq!(
        fixture.resolve(&format!("org/little@{COMMIT}:q4/tiny.gguf")),
        first
    );
    fixture.places.hub.offline = true;
    assert_eq!(fixture.resolve(model), first);
    assert_eq!(fixture.hub.take_seen().len(), 0);
}

#[test]
fn offline_a_repository_is_the_only_gguf_that_the_cache_has_of_it() {
    let mut fixture = Fixture::new();
    for file in ["a.gguf", "b.gguf"] {
        fixture.hub.put(REPO, file, file.as_bytes());
    }
    let first = fixture.resolve("org/little:a.gguf");
    fixture.places.hub.offline = true;
    assert_eq!(fixture.resolve(REPO), first);
}

#[test]
fn a_sharded_folder_of_the_hub_is_downloaded_whole_and_once() {
    let mut fixture = Fixture::new();
    fixture.put_sharded_model();
    let resolved = fixture.resolve("org/little@v1");
    assert_eq!(resolved.name, REPO);
    let ModelFiles::Folder(folder) = &resolved.files else {
        panic!("{resolved:?} is not a folder");
    };
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("the folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("utf-8")
        })
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    let listing = format!(
        "{}  model-00001-of-00002.safetensors\n{}  model-00002-of-00002.safetensors\n",
        sha256(b"first"),
        sha256(b"second")
    );
    assert_eq!(
        sha256_of(folder).expect("a hash"),
        sha256(listing.as_bytes())
    );

    fixture.hub.take_seen();
    fixture.places.hub.offline = true;
    assert_eq!(fixture.resolve("org/little@v1"), resolved);
    assert_eq!(fixture.hub.take_seen().len(), 0);
}

#[test]
fn a_folder_whose_download_stopped_is_completed() {
    let fixture = Fixture::new();
    fixture.put_sharded_model();
    fixture
        .hub
        .break_off_once(REPO, "model-00002-of-00002.safetensors", 3);
    assert_says(
        &fixture.error(REPO),
        &["org/little:model-00002", "a new start resumes it"],
    );
    fixture.hub.take_seen();
    let resolved = fixture.resolve(REPO);
    let ModelFiles::Folder(folder) = &resolved.files else {
        panic!("{resolved:?} is not a folder");
    };
    let second = fs::read(folder.join("model-00002-of-00002.safetensors"));
    assert_eq!(second.expect("the shard"), b"second");
    let seen = fixture.hub.take_seen();
    let again = seen.iter().find(|seen| seen.path.contains("model-00001"));
    assert!(again.is_none(), "{again:?}");
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let fixture = Fixture::new();
    fixture.hub.put(REPO, "a.gguf", b"0123456789");
    fixture.hub.break_off_once(REPO, "a.gguf", 4);
    assert_says(&fixture.error("org/little:a.gguf"), &["a.gguf", "resumes"]);
    fixture.hub.take_seen();
    assert_eq!(
        content(&fixture.resolve("org/little:a.gguf").files),
        b"0123456789"
    );
    let ranges: Vec<_> = fixture
        .hub
        .take_seen()
        .into_iter()
        .filter_map(|seen| seen.range)
        .collect();
    assert!(ranges.contains(&"bytes=4-".to_owned()), "{ranges:?}");
}

#[test]
fn a_partial_file_that_cannot_be_resumed_is_fetched_anew() {
    for leftover in ["0123456789", "0123456789 and more"] {
        let fixture = Fixture::new();
        fixture.hub.put(REPO, "a.gguf", b"0123456789");
        let part = format!(
            "cache/models--org--little/blobs/{}.part",
            sha256(b"0123456789")
        );
        fixture.write(&part, leftover.as_bytes());
        let resolved = fixture.resolve("org/little:a.gguf");
        assert_eq!(content(&resolved.files), b"0123456789", "{leftover}");
    }
}

#[test]
fn content_with_a_wrong_hash_is_refused_and_removed() {
    let fixture = Fixture::new();
    let stated = sha256(b"what it should be");
    fixture
        .hub
        .put_with_hash(REPO, "a.gguf", b"something else", &stated);
    for _ in 0..2 {
        let found = sha256(b"something else");
        assert_says(
            &fixture.error("org/little:a.gguf"),
            &["SHA-256", &stated, &found, "removed"],
        );
    }
    fixture.hub.put(REPO, "a.gguf", b"what it should be");
    assert_eq!(
        content(&fixture.resolve("org/little:a.gguf").files),
        b"what it should be"
    );
}

#[test]
fn a_repository_with_one_gguf_is_that_file_and_with_several_one_must_be_chosen() {
    let fixture = Fixture::new();
    fixture.hub.put(REPO, "README.md", b"read me");
    assert_says(&fixture.error(REPO), &["org/little", "neither", ".gguf"]);
    fixture.hub.put(REPO, "a.gguf", b"a");
    assert_eq!(content(&fixture.resolve(REPO).files), b"a");
    fixture.hub.put(REPO, "b.gguf", b"b");
    assert_says(
        &fixture.error(REPO),
        &["choose one", "org/little:a.gguf", "org/little:b.gguf"],
    );
    assert_says(
        &fixture.error("org/little:c.gguf"),
        &["no file c.gguf", "a.gguf, b.gguf"],
    );
}

#[test]
fn what_the_hub_does_not_have_is_said() {
    let fixture = Fixture::new();
    assert_says(
        &fixture.error("org/nothing@v2"),
        &["org/nothing", "v2", "check the name"],
    );
}

#[test]
fn a_token_is_sent_and_asked_for() {
    let mut fixture = Fixture::new();
    fixture.hub.put(REPO, "a.gguf", b"a");
    fixture.hub.require_token("secret");
    let line = fixture.error("org/little:a.gguf");
    assert_says(&line, &["org/little", "HF_TOKEN"]);
    fixture.places.hub.token = Some("secret".to_owned());
    assert_eq!(content(&fixture.resolve("org/little:a.gguf").files), b"a");
}

#[test]
fn a_hub_that_cannot_be_reached_is_named() {
    let mut fixture = Fixture::new();
    // A port that was free a moment ago: nothing listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    fixture.places.hub.endpoint = format!("http://{address}");
    let line = fixture.error("org/little:a.gguf");
    assert_says(&line, &["cannot reach the hub", &address.to_string()]);
    let line = fixture.error("little-1m");
    assert_says(
        &line,
        &["cannot reach the hub", "run scripts/fetch-model little-1m"],
    );
}

#[test]
fn offline_means_the_cache_alone() {
    let mut fixture = Fixture::new();
    fixture.hub.put(REPO, "a.gguf", b"a");
    fixture.places.hub.offline = true;
    for model in ["org/little", "org/little:a.gguf"] {
        assert_says(&fixture.error(model), &["HF_HUB_OFFLINE", "org/little"]);
    }
    assert_says(
        &fixture.error("little-1m"),
        &["HF_HUB_OFFLINE", "scripts/fetch-model"],
    );
    assert_eq!(fixture.hub.take_seen().len(), 0);
}

#[test]
fn a_catalogue_name_is_the_file_in_models_or_else_the_hub_s() {
    let fixture = Fixture::new();
    fixture.hub.put(REPO, "little.gguf", b"little weight");
    let from_hub = fixture.resolve("Little-1M");
    assert_eq!(from_hub.name, "little-1m");
    assert_eq!(content(&from_hub.files), b"little weight");
    let local = fixture.write("models/little.gguf", b"little weight");
    assert_eq!(fixture.resolve("little-1m").files, ModelFiles::Gguf(local));
}

#[test]
fn a_catalogue_file_must_have_the_catalogue_s_hash_and_size() {
    let fixture = Fixture::new();
    // The hub's own hash is right here: it serves another file than the catalogue pins.
    fixture.hub.put(REPO, "little.gguf", b"other weights");
    assert_says(
        &fixture.error("little-1m"),
        &[&sha256(b"little weight"), "removed"],
    );
    fixture.write("models/little.gguf", b"cut");
    assert_says(
        &fixture.error("little-1m"),
        &["3 bytes, not 13", "scripts/fetch-model little-1m"],
    );
}

#[test]
fn a_local_file_or_folder_goes_by_its_own_name() {
    let fixture = Fixture::new();
    let file = fixture.write("dir/mine.Q8_0.gguf", b"weights");
    let resolved = fixture.resolve(&file.display().to_string());
    assert_eq!(resolved.name, "mine.Q8_0");
    assert_eq!(resolved.files, ModelFiles::Gguf(file.clone()));
    assert_eq!(
        fixture.resolve(&fixture.path("dir")).files,
        ModelFiles::Gguf(file)
    );

    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fixture.write(&format!("gpt/{file}"), b"{}");
    }
    let resolved = fixture.resolve(&fixture.path("gpt/"));
    assert_eq!(resolved.name, "gpt");
    let ModelFiles::Folder(folder) = resolved.files else {
        panic!("not a folder");
    };
    assert_eq!(sha256_of(&folder).expect("a hash"), sha256(b"{}"));
}

#[test]
fn what_a_local_folder_lacks_is_named() {
    let fixture = Fixture::new();
    fixture.write("empty/notes.txt", b"");
    fixture.write("whole/config.json", b"{}");
    fixture.write("whole/model.safetensors", b"weights");
    let index = br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    fixture.write("shards/config.json", b"{}");
    fixture.write("shards/one.safetensors", b"weights");
    fixture.write("shards/model.safetensors.index.json", index);
    fixture.write("escape/config.json", b"{}");
    fixture.write("escape/one.safetensors", b"weights");
    fixture.write(
        "escape/model.safetensors.index.json",
        br#"{"weight_map": {"a": "../one"}}"#,
    );
    fixture.write("two/a.gguf", b"");
    fixture.write("two/b.gguf", b"");
    for (folder, parts) in [
        ("empty", &["empty", "neither"][..]),
        ("whole", &["whole", "no tokenizer.json"]),
        ("shards", &["two.safetensors is missing"]),
        ("escape", &["../one", "not a file of the folder"]),
        ("two", &["choose one", "two/a.gguf", "two/b.gguf"]),
        ("whole/model.safetensors", &["not a .gguf file", "folder"]),
    ] {
        assert_says(&fixture.error(&fixture.path(folder)), parts);
    }
}

#[test]
fn unknown_names_are_answered_with_what_would_work() {
    let fixture = Fixture::new();
    for (name, parts) in [
        (
            "litle-1m",
            &["did you mean little-1m?", "candlepower models"][..],
        ),
        (
            "enormous",
            &["unknown model enormous", "candlepower models"],
        ),
        ("./missing.gguf", &["no file or folder ./missing.gguf"]),
        (
            "models/missing.gguf",
            &["no file or folder models/missing.gguf"],
        ),
        ("a/b/c", &["no file or folder a/b/c"]),
        ("", &["empty"]),
    ] {
        assert_says(&fixture.error(name), parts);
    }
    assert!(!fixture.error("enormous").contains("did you mean"));
}

#[test]
fn the_table_tells_what_is_present() {
    let fixture = Fixture::new();
    let table = || {
        let mut out = Vec::new();
        write_table(&fixture.places, &mut out).expect("a table");
        String::from_utf8(out).expect("utf-8")
    };
    let row = |table: &str| table.lines().nth(1).expect("a row").to_owned();
    assert!(row(&table()).ends_with(" no"), "{}", table());
    assert_says(
        &table(),
        &[
            "little-1m",
            "llama",
            "Q4_1",
            "MIT",
            "org/little:little.gguf",
        ],
    );
    let file = fixture.write("models/little.gguf", b"little weight");
    assert!(
        row(&table()).ends_with(&file.display().to_string()),
        "{}",
        table()
    );
    fixture.write("models/little.gguf", b"cut");
    assert_says(&row(&table()), &["damaged", "3 bytes"]);
}

#[test]
fn the_hash_of_a_file_is_that_of_its_bytes() {
    let fixture = Fixture::new();
    // More than one read of the hashing buffer.
    let bytes: Vec<u8> = (0..(3 << 20) + 5_u32).map(|i| (i % 251) as u8).collect();
    let file = fixture.write("big", &bytes);
    assert_eq!(sha256_of(&file).expect("a hash"), sha256(&bytes));
    let missing = sha256_of(Path::new("/nowhere/at/all")).expect_err("no file");
    assert_says(&format!("{missing:#}"), &["/nowhere/at/all"]);
}
