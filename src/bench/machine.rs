//! Where a run took place: the machine it ran on and the commit it was built from.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// CPU features that kernels choose by; the others say nothing about speed here.
const RELEVANT_FLAGS: [&str; 17] = [
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
];

/// The client's machine; the server's too, unless it was measured over a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    /// The relevant ones that this CPU has.
    pub cpu_flags: Vec<String>,
    pub os: String,
    /// Over the minute before the run: what else was running.
    pub load_average_1m: f64,
    /// How fast its cores read memory together, where it was measured before the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_s: Option<f64>,
}

impl Machine {
    pub fn this() -> Self {
        let refresh = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(refresh).ok();
        let cpus = system.as_ref().map_or(&[][..], System::cpus);
        Self {
            cpu: cpus
                .first()
                .map_or_else(String::new, |cpu| cpu.brand().trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(cpus.len(), usize::from),
            memory_bytes: system.as_ref().map_or(0, System::total_memory),
            cpu_flags: cpu_flags(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            load_average_1m: System::load_average().map_or(0.0, |load| load.one),
            read_bytes_per_s: None,
        }
    }
}

/// From the kernel's list, which names features the same on all distributions; empty elsewhere.
fn cpu_flags() -> Vec<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    let relevant = RELEVANT_FLAGS.iter().filter(|flag| flags.contains(flag));
    relevant.map(|flag| (*flag).to_owned()).collect()
}

/// The state of the sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub id: String,
    /// Tracked files differ from it, results aside.
    pub dirty: bool,
}

impl Commit {
    /// `None` outside of a git repository.
    pub fn of(folder: &Path) -> Option<Self> {
        let id = git(folder, &["rev-parse", "--short=12", "HEAD"])?;
        let results = [
            ":(top,exclude)BENCHMARKS.md",
            ":(top,exclude)benches/results",
        ];
        let status = [
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ":(top)",
            results[0],
            results[1],
        ];
        let dirty = git(folder, &status).is_none_or(|changes| !changes.is_empty());
        Some(Self { id, dirty })
    }
}

/// The root of the git repository around `folder`, or `folder` itself.
pub fn repository_root(folder: &Path) -> PathBuf {
    git(folder, &["rev-parse", "--show-toplevel"]).map_or_else(|| folder.to_owned(), PathBuf::from)
}

/// Standard output of a git command, `None` if it fails.
fn git(folder: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(args)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_outside_of_git_has_no_commit_and_is_its_own_root() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(Commit::of(folder.path()), None);
        assert_eq!(repository_root(folder.path()), folder.path());
    }

    #[test]
    fn a_commit_is_dirty_when_sources_differ_and_not_when_results_do() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a writable folder");
        };
        let run = |args: &[&str]| git(folder.path(), args).expect("git works");
        run(&["init", "-q"]);
        write("main.rs", "one");
        write("BENCHMARKS.md", "one");
        run(&["add", "."]);
        run(&[
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@x",
            "commit",
            "-qm",
            "x",
        ]);
        write("BENCHMARKS.md", "two");
        assert!(!Commit::of(folder.path()).expect("a commit").dirty);
        write("main.rs", "two");
        assert!(Commit::of(folder.path()).expect("a commit").dirty);
    }
}
