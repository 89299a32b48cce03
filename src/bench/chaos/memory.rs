//! Whether the memory of a server grows with the requests that it has had.
//!
//! A process keeps what its heaps grew to, and they grow with the first bursts: by some per cent of a
//! small server, and then no more. A leak goes on. So each server's time in the storm is cut into
//! thirds. In the first, its heaps get their size. The median of the second is the level. The median of
//! the last third, and what the last server has when all is quiet, may lie at most 5 % above it.

use serde::{Deserialize, Serialize};

use crate::bench::figures::mib;

/// More growth than this is a leak.
const MAX_GROWTH: f64 = 0.05;

/// Fewer samples of a server show no course.
const MIN_SAMPLES: usize = 9;

/// Resident memory of the servers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The first server, after a calm load. For comparison: its heaps were not stormed yet.
    pub before_bytes: u64,
    /// The last server, when all was quiet again.
    pub after_bytes: u64,
    /// Once a second from the beginning of the storm, in the order of time.
    pub samples: Vec<MemorySample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemorySample {
    pub at_s: f64,
    pub pid: u32,
    pub bytes: u64,
}

/// How the memory of one server went.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Course {
    /// In the second third of its time.
    level_bytes: u64,
    /// In the last third, or afterwards if that was more.
    end_bytes: u64,
}

impl Course {
    fn of(bytes: &[u64], afterwards: Option<u64>) -> Option<Self> {
        let third = bytes.len() / 3;
        if bytes.len() < MIN_SAMPLES {
            return None;
        }
        let late = median(&bytes[bytes.len() - third..]);
        Some(Self {
            level_bytes: median(&bytes[third..bytes.len() - third]),
            end_bytes: late.max(afterwards.unwrap_or(0)),
        })
    }

    fn growth(self) -> f64 {
        self.end_bytes as f64 / self.level_bytes.max(1) as f64 - 1.0
    }
}

impl Memory {
    /// What is wrong with it, one for each server at most.
    pub fn faults(&self) -> Vec<String> {
        let faults = self.courses().into_iter().enumerate();
        let faults = faults.filter_map(|(index, course)| {
            let number = index + 1;
            match course {
                None => Some(format!(
                    "server {number}: fewer than {MIN_SAMPLES} samples of its memory: nobody knows whether it leaks"
                )),
                Some(course) if course.growth() > MAX_GROWTH => Some(format!(
                    "server {number}: its memory grows: {} bytes in the second third of its time, {} at the end",
                    course.level_bytes, course.end_bytes
                )),
                Some(_) => None,
            }
        });
        faults.collect()
    }

    /// In words, for a table.
    pub fn summary(&self) -> String {
        let servers = self.courses().into_iter().enumerate();
        let servers = servers.map(|(index, course)| {
            let number = index + 1;
            match course {
                None => format!("server {number}: unknown"),
                Some(course) => format!(
                    "server {number}: {}, at its end {} ({:+.1} %)",
                    mib(course.level_bytes as f64),
                    mib(course.end_bytes as f64),
                    course.growth() * 100.0
                ),
            }
        });
        let servers: Vec<String> = servers.collect();
        format!(
            "{} after the calm; in the storm {}; peak {}, {} when all was quiet",
            mib(self.before_bytes as f64),
            servers.join("; "),
            mib(self.peak_bytes() as f64),
            mib(self.after_bytes as f64)
        )
    }

    fn peak_bytes(&self) -> u64 {
        let samples = self.samples.iter().map(|sample| sample.bytes);
        samples.chain([self.after_bytes]).max().unwrap_or(0)
    }

    /// Of each server, in the order in which they began.
    fn courses(&self) -> Vec<Option<Course>> {
        let mut servers: Vec<(u32, Vec<u64>)> = Vec::new();
        for sample in &self.samples {
            match servers.iter_mut().find(|(pid, _)| *pid == sample.pid) {
                Some((_, bytes)) => bytes.push(sample.bytes),
                None => servers.push((sample.pid, vec![sample.bytes])),
            }
        }
        let last = servers.len().saturating_sub(1);
        let courses = servers.iter().enumerate().map(|(index, (_, bytes))| {
            let afterwards = (index == last).then_some(self.after_bytes);
            Course::of(bytes, afterwards)
        });
        courses.collect()
    }
}

fn median(bytes: &[u64]) -> u64 {
    let mut sorted = bytes.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Two servers, one after the other, whose memory is what `mib_at` says of each second.
    fn memory(seconds: u64, mib_at: impl Fn(u64) -> f64) -> Memory {
        let samples: Vec<MemorySample> = [7, 8]
            .into_iter()
            .flat_map(|pid| (0..seconds).map(move |second| (pid, second)))
            .map(|(pid, second)| MemorySample {
                at_s: second as f64,
                pid,
                bytes: (mib_at(second) * MIB as f64) as u64,
            })
            .collect();
        Memory {
            before_bytes: 172 * MIB,
            after_bytes: samples.last().map_or(0, |sample| sample.bytes),
            samples,
        }
    }

    #[test]
    fn heaps_that_grow_with_the_first_bursts_are_no_leak() {
        // As a storm of 30 seconds has shown it: 7 % more than the calm, and then level.
        let memory = memory(25, |second| match second {
            0..4 => 173.0 + second as f64,
            4..8 => 180.0,
            8..15 => 183.4,
            _ => 184.4,
        });
        assert_eq!(memory.faults(), Vec::<String>::new());
        assert!(
            memory.summary().contains("(+0.5 %)"),
            "{}",
            memory.summary()
        );
    }

    #[test]
    fn memory_that_grows_all_the_time_is_a_leak_of_each_server() {
        // 1 MiB a second for half a minute; 5 KiB a request at 20 requests/s for 20 minutes.
        for leaking in [memory(30, |second| 180.0 + second as f64), {
            memory(600, |second| 180.0 + 0.1 * second as f64)
        }] {
            let faults = leaking.faults();
            assert_eq!(faults.len(), 2, "{faults:?}");
            assert!(faults[0].starts_with("server 1: its memory grows"));
        }
    }

    #[test]
    fn what_is_left_when_all_is_quiet_counts_too() {
        let mut memory = memory(30, |_| 180.0);
        memory.after_bytes = 190 * MIB;
        let faults = memory.faults();
        assert!(
            faults.len() == 1 && faults[0].starts_with("server 2"),
            "{faults:?}"
        );
    }

    #[test]
    fn a_course_that_nobody_has_seen_is_a_fault() {
        assert_eq!(memory(8, |_| 180.0).faults().len(), 2);
    }
}
