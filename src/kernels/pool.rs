//! The compute threads: the caller and `n - 1` workers, which spin briefly, then sleep.
//!
//! A job is one closure that every thread runs. Each thread has a run of the work to itself, so that
//! what it reads is one stream, and claims it part by part; who has done its own helps the others.
//! The caller never waits for a worker that has not started: when nothing is left to claim it shuts
//! the gate, and a worker that comes later finds it shut. So a worker that the operating system has
//! put aside delays nobody, and a small job costs little more than doing it alone.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Pauses before a worker without work sleeps: some 50 us, longer than the gap between two jobs of
/// a step and shorter than the gap between two steps of a slow client.
const SPINS_BEFORE_SLEEP: u32 = 2_000;
/// Pauses before the caller lets others run while it waits for workers to finish.
const SPINS_BEFORE_YIELD: u32 = 20_000;

/// Bit of the gate that is set while workers may enter.
const OPEN: u64 = 1 << 31;
/// Bits of the gate that count the workers inside; those above `OPEN` count the jobs.
const INSIDE: u64 = OPEN - 1;

/// Compute threads. One thread at a time uses it, which is why it is not `Sync`.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// What each thread's run of the present work has left to claim.
    cursors: Vec<Cursor>,
    not_sync: PhantomData<Cell<()>>,
}

/// A counter that shares its cache line with no other, nor the one beside it: processors fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Cursor(AtomicUsize);

struct Shared {
    /// Number of the job, `OPEN`, and how many workers are inside.
    gate: AtomicU64,
    /// Written while the gate is shut and nobody inside, read only by those inside.
    job: UnsafeCell<Option<Job>>,
    asleep: Vec<AtomicBool>,
    is_stopping: AtomicBool,
    has_panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// The closure of a job, its lifetime erased: it outlives the job, as `Pool::run` sees to.
type Job = *const (dyn Fn(usize) + Sync);

// SAFETY: `job` is the only part that is not shareable in itself. It points to a `Sync` closure, and
// the gate orders every write of it before and after every read.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `num_threads`, the caller included.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(num_threads: usize) -> std::io::Result<Self> {
        let num_workers = num_threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            asleep: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            is_stopping: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(num_workers),
            cursors: (0..=num_workers).map(|_| Cursor::default()).collect(),
            not_sync: PhantomData,
        };
        for index in 0..num_workers {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("compute-{}", index + 1));
            pool.workers
                .push(builder.spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    /// Threads that share the work, the caller included.
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` with ranges that cover `0..count`, each of at most `chunk`, on all threads.
    ///
    /// A panic of `f` is passed on once all threads have left it.
    pub fn for_each(&self, count: usize, chunk: usize, f: impl Fn(Range<usize>) + Sync) {
        let chunk = chunk.max(1);
        if self.workers.is_empty() || count <= chunk {
            if count > 0 {
                f(0..count);
            }
            return;
        }
        let threads = self.num_threads();
        let bound = |thread: usize| thread * count / threads;
        for (thread, cursor) in self.cursors.iter().enumerate() {
            cursor.0.store(bound(thread), Ordering::Relaxed);
        }
        let cursors = &*self.cursors;
        self.run(&|thread| {
            for run in (thread..threads).chain(0..thread) {
                let end = bound(run + 1);
                loop {
                    let start = cursors[run].0.fetch_add(chunk, Ordering::Relaxed);
                    if start >= end {
                        break;
                    }
                    f(start..end.min(start + chunk));
                }
            }
        });
    }

    /// Parts for `for_each`: small enough that no thread waits long for the last one.
    pub fn chunk_of(&self, count: usize) -> usize {
        const PARTS_OF_A_THREAD: usize = 6;
        count.div_ceil(self.num_threads() * PARTS_OF_A_THREAD)
    }

    /// Runs `job` here and on every worker that comes in time.
    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        let number = (shared.gate.load(Ordering::Relaxed) >> 32) + 1;
        // SAFETY: only the lifetime changes. The pointer is used by workers inside the gate, and
        // `Shut` below waits for the last of them before `job` can go, even if `job` panics here.
        let job_for_workers: Job = unsafe { std::mem::transmute(std::ptr::from_ref(job)) };
        // SAFETY: the gate is shut and nobody is inside, so nobody reads.
        unsafe { *shared.job.get() = Some(job_for_workers) };
        shared.gate.store(number << 32 | OPEN, Ordering::SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep) {
            if asleep.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let shut = Shut(shared);
        job(0);
        drop(shut);
        if shared.has_panicked.swap(false, Ordering::Relaxed) {
            let panic = shared
                .panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            resume_unwind(panic.expect("bug: a panic without its payload"));
        }
    }
}

/// Shuts the gate and waits until all workers have left, when dropped.
struct Shut<'a>(&'a Shared);

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.0.gate.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            match spins < SPINS_BEFORE_YIELD {
                true => std::hint::spin_loop(),
                false => std::thread::yield_now(),
            }
        }
    }
}

impl Shared {
    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut done = 0;
        while let Some(gate) = self.wait_for_job(index, done) {
            done = gate >> 32;
            if self.enter(gate) {
                self.run_job(index + 1);
                self.gate.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// The gate of a job after the one numbered `done`; `None` when the pool is dropped.
    fn wait_for_job(&self, index: usize, done: u64) -> Option<u64> {
        let mut spins = 0;
        loop {
            let gate = self.gate.load(Ordering::Acquire);
            if gate >> 32 != done {
                return Some(gate);
            }
            if self.is_stopping.load(Ordering::Relaxed) {
                return None;
            }
            spins += 1;
            if spins < SPINS_BEFORE_SLEEP {
                std::hint::spin_loop();
                continue;
            }
            // Either the caller sees this flag, or the next look at the gate sees its job.
            self.asleep[index].store(true, Ordering::SeqCst);
            if self.gate.load(Ordering::SeqCst) >> 32 == done
                && !self.is_stopping.load(Ordering::SeqCst)
            {
                std::thread::park();
            }
            self.asleep[index].store(false, Ordering::Relaxed);
            spins = 0;
        }
    }

    /// Counts this worker in, unless the job seen in `gate` is over.
    fn enter(&self, mut gate: u64) -> bool {
        let number = gate >> 32;
        while gate & OPEN != 0 && gate >> 32 == number {
            let entered = self.gate.compare_exchange_weak(
                gate,
                gate + 1,
                Ordering::Acquire,
                Ordering::Acquire,
            );
            match entered {
                Ok(_) => return true,
                Err(current) => gate = current,
            }
        }
        false
    }

    fn run_job(&self, thread: usize) {
        // SAFETY: this worker is inside the gate, so the caller neither writes nor leaves.
        let job = unsafe { (*self.job.get()).expect("bug: an open gate without a job") };
        // SAFETY: as above, the closure lives.
        let job = unsafe { &*job };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(thread))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
            self.has_panicked.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its jobs; it has none of its own.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("num_threads", &self.num_threads())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_visited_once_by_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).expect("threads");
            for count in [0, 1, 5, 64, 1000] {
                for chunk in [1, 3, 64] {
                    let visits: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    pool.for_each(count, chunk, |range| {
                        for visit in &visits[range] {
                            visit.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    let once = visits.iter().all(|v| v.load(Ordering::Relaxed) == 1);
                    assert!(once, "{threads} threads, {count} items in parts of {chunk}");
                }
            }
        }
    }

    #[test]
    fn many_short_jobs_follow_one_another_with_sleeps_between_them() {
        let pool = Pool::new(3).expect("threads");
        let total = AtomicUsize::new(0);
        for round in 0..2_000 {
            pool.for_each(7, 1, |range| {
                total.fetch_add(range.len(), Ordering::Relaxed);
            });
            if round % 500 == 0 {
                while !pool.shared.asleep.iter().all(|a| a.load(Ordering::SeqCst)) {
                    std::thread::yield_now();
                }
            }
        }
        assert_eq!(total.into_inner(), 7 * 2_000);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_works_on() {
        let pool = Pool::new(4).expect("threads");
        for panicking in 0..32 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(32, 1, |range| {
                    assert_ne!(range.start, panicking, "as planned")
                });
            }));
            let payload = result.expect_err("one part panics");
            let text = payload
                .downcast_ref::<String>()
                .expect("a formatted message");
            assert!(text.contains("as planned"), "{text}");
        }
        let total = AtomicUsize::new(0);
        pool.for_each(10, 1, |range| {
            total.fetch_add(range.len(), Ordering::Relaxed);
        });
        assert_eq!(total.into_inner(), 10);
    }
}
