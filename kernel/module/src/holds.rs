//! Measures how long the lock is held, with interrupts off; built by `make VARIANT=holds` only.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// The longest time that the lock was held, in ticks; a parameter of the module, which may be set to 0.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static exitscope_longest_hold: AtomicU64 = AtomicU64::new(0);

/// Measures from its beginning until it is dropped; the lock is held.
pub struct Hold {
    since: u64,
}

impl Hold {
    pub fn begin() -> Self {
        // SAFETY: RDTSC is always there.
        Self { since: unsafe { _rdtsc() } }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // SAFETY: as above.
        let ticks = unsafe { _rdtsc() }.wrapping_sub(self.since);
        exitscope_longest_hold.fetch_max(ticks, Relaxed);
    }
}
