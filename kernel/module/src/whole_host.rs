//! What a policy of `host` tells a guest.

use core::sync::atomic::Ordering::Relaxed;

use exitscope_abi::leaf::{Reasons, Scope};
use exitscope_abi::reason::Isa;
use exitscope_core::{Accounts, Sum};

use crate::cells;
use crate::registry::{slots, with_lock};
use crate::slot::Slot;

/// How often the sum over the host is read without the lock before it is read under it.
const LOCKLESS_ATTEMPTS: u32 = 4;

/// What a policy of `host` shows to a vCPU: itself, and every VM that there is or was.
pub struct WholeHost<'a>(pub &'a Slot, pub Isa);

impl Accounts for WholeHost<'_> {
    fn sum(&self, scope: Scope, reasons: Reasons) -> Sum {
        let mut sum = Sum::default();
        if scope == Scope::Vcpu {
            // No more than its own slot is read, so neither the lock nor the number of vCPUs matters.
            self.0.add_to(&mut sum, self.1, reasons);
            return sum;
        }
        let slots = slots();
        let add_all = || {
            let mut sum = Sum::default();
            slots.clone().for_each(|slot| slot.add_to(&mut sum, self.1, reasons));
            sum
        };
        // A number that moves while it is read would be read twice, or not at all.
        sum = (0..LOCKLESS_ATTEMPTS)
            .find_map(|_| cells::between_moves(add_all))
            .unwrap_or_else(|| with_lock(|_| add_all()));
        if let (Reasons::All | Reasons::Undefined, Some(header)) = (reasons, cells::header()) {
            sum.add_exits(header.unaccounted.load(Relaxed));
        }
        sum
    }
}
