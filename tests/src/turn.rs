//! Whose turn it is: so many tests that keep a CPU busy run at once, the longest first, and the others wait.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How many run at once: an emulated machine keeps a CPU busy, and takes up to 2 GiB of memory.
const AT_ONCE: usize = 2;
/// Before the first one's turn: in this time all tests have started, of which the longest is chosen.
const ASSEMBLY: Duration = Duration::from_millis(200);

/// Who waits, as a key that sorts the longest first and then who came first; and how many run.
struct Queue {
    waiting: BTreeSet<(u64, u64)>,
    running: usize,
    came: u64,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue { waiting: BTreeSet::new(), running: 0, came: 0 });
static CHANGED: Condvar = Condvar::new();

/// A turn, which ends when this is dropped.
struct Turn;

impl Turn {
    /// Waits for it. `length` is how long it will last, in ms.
    fn take(length: u64) -> Self {
        let mut queue = lock();
        let key = (u64::MAX - length, queue.came);
        let is_first = queue.came == 0;
        queue.came += 1;
        queue.waiting.insert(key);
        if is_first {
            queue.running = AT_ONCE;
            drop(queue);
            thread::sleep(ASSEMBLY);
            queue = lock();
            queue.running = 0;
            CHANGED.notify_all();
        }
        while queue.running >= AT_ONCE || queue.waiting.first() != Some(&key) {
            queue = CHANGED.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.waiting.remove(&key);
        queue.running += 1;
        CHANGED.notify_all();
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock().running -= 1;
        CHANGED.notify_all();
    }
}

fn lock() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs this when it is its turn. How long it takes is noted under its name in `directory`, for the next time; what has
/// not been noted yet goes by `guess`.
pub(crate) fn take<T>(directory: &Path, name: &str, guess: Duration, run: impl FnOnce() -> T) -> T {
    let note = note(directory, name);
    let known = fs::read_to_string(&note).ok().and_then(|text| text.trim().parse().ok());
    let turn = Turn::take(known.unwrap_or(guess.as_millis() as u64));
    let began = Instant::now();
    let result = run();
    // Without the note the order is another one, and nothing else.
    let _ = fs::write(note, began.elapsed().as_millis().to_string());
    drop(turn);
    result
}

fn note(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.ms"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_longest_comes_first_and_no_more_than_may_run_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let order = Arc::new(Mutex::new((0, 0, Vec::new())));
        let threads: Vec<_> = [10, 40, 30, 20]
            .map(|length: u64| {
                let (order, directory) = (order.clone(), directory.path().to_owned());
                thread::spawn(move || {
                    take(&directory, &length.to_string(), Duration::from_millis(length), || {
                        let mut now = order.lock().unwrap();
                        now.0 += 1;
                        now.1 = now.1.max(now.0);
                        now.2.push(length);
                        drop(now);
                        thread::sleep(Duration::from_millis(100));
                        order.lock().unwrap().0 -= 1;
                    });
                })
            })
            .into();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let order = order.lock().unwrap();
        let mut first = order.2[..AT_ONCE].to_vec();
        first.sort_unstable();
        assert_eq!((first, order.1), (vec![30, 40], AT_ONCE));
        let noted: u64 = fs::read_to_string(note(directory.path(), "10")).unwrap().parse().unwrap();
        assert!(noted >= 100);
    }
}
