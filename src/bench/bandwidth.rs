//! How fast this machine reads memory: the ceiling under which a decoder that reads all its weights
//! for each step must stay.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Larger than any cache, so that what is measured is memory.
const WORDS_PER_THREAD: usize = 32 << 20;

/// Passes over the memory go on for so long; the fastest counts, because what else runs only slows.
const TIME: Duration = Duration::from_millis(700);

/// Bytes a second that all cores together read, each its own part of memory.
pub fn read_bytes_per_s() -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let parts: Vec<Vec<u64>> = (0..threads)
        .map(|part| vec![part as u64 + 1; WORDS_PER_THREAD])
        .collect();
    let bytes = (threads * WORDS_PER_THREAD * size_of::<u64>()) as f64;
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
    best
}

/// Eight sums side by side, so that the reads do not wait for the additions.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0_u64; 8];
    for chunk in words.chunks_exact(8) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        assert_eq!(sum(&[3; 64]), 192);
        let mut words = vec![0; 80];
        words[79] = 5;
        assert_eq!(sum(&words), 5);
    }
}
