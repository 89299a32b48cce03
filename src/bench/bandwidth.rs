//! How fast this machine reads memory: the ceiling under which a decoder that reads all its weights
//! for each step must stay.

use std::hint::black_box;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

/// Of each thread: larger than any cache, so that what is measured is memory.
const PART_BYTES: usize = 256 << 20;

/// Passes over the memory go on for so long; the fastest counts, because what else runs only slows.
const TIME: Duration = Duration::from_millis(700);

/// Bytes a second that threads together read, each its own part of memory, in huge pages where the
/// system grants them.
///
/// # Errors
/// If there is no memory left.
pub fn read_bytes_per_s(threads: usize) -> std::io::Result<f64> {
    let parts: Vec<MmapMut> = (0..threads).map(part).collect::<Result<_, _>>()?;
    let bytes = (threads * PART_BYTES) as f64;
    let begin = Instant::now();
    let mut best = 0.0_f64;
    while begin.elapsed() < TIME {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in &parts {
                scope.spawn(|| black_box(sum(black_box(part))));
            }
        });
        best = best.max(bytes / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn part(thread: usize) -> std::io::Result<MmapMut> {
    let mut part = MmapMut::map_anon(PART_BYTES)?;
    // A system without huge pages refuses, and does as well without.
    #[cfg(target_os = "linux")]
    let _ = part.advise(memmap2::Advice::HugePage);
    part.fill(thread as u8 + 1);
    Ok(part)
}

/// Sum of the bytes' words, in eight sums side by side, so that the reads do not wait for the
/// additions.
fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; 8];
    for line in bytes.as_chunks::<8>().0.as_chunks::<8>().0 {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        let words = |word: u64| word.to_ne_bytes().repeat(64);
        assert_eq!(sum(&words(3)), 192);
        let mut bytes = words(0);
        bytes[63 * 8..].copy_from_slice(&5_u64.to_ne_bytes());
        assert_eq!(sum(&bytes), 5);
    }
}
