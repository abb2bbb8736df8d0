//! Counts wrongly on purpose, for a self-test to detect; built by `make VARIANT=miscount` only.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use exitscope_abi::region::Counters;

/// Of so many exits, one is not counted.
const PERIOD: u64 = 1_000;

/// Exits of all vCPUs.
static EXITS: AtomicU64 = AtomicU64::new(0);

/// Takes back the count of an exit that these counters have just counted, if it is the period's last. Its time stays, so
/// that only who compares with another source can tell.
pub fn uncount(counters: &Counters) {
    if EXITS.fetch_add(1, Relaxed) % PERIOD == PERIOD - 1 {
        counters.exits.store(counters.exits.load(Relaxed).wrapping_sub(1), Relaxed);
    }
}
