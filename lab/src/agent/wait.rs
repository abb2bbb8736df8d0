//! Waiting for what has no event of its own: trying again until it succeeds or time is up.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// Calls `attempt` until it succeeds or `limit` is over, with pauses; then returns its last error.
pub fn retry_for<T>(limit: Duration, pause: Duration, attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(_) if begun.elapsed() < limit => thread::sleep(pause),
            result => return result,
        }
    }
}
