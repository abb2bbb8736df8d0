//! What came between two moments: the only arithmetic there is between snapshots.
//!
//! A VM that both know is subtracted; one that came later counts whole. One that was retired in between has become a
//! part of the sum of retired VMs, so what it had before is taken away from that sum. Over any sequence of snapshots
//! the intervals add up to the difference of its ends: exactly for each VM that the last one knows, and in all.

use std::collections::BTreeMap;

use exitscope_abi::reason::Isa;

use crate::Quality;
use crate::accounts::{Accounts, RETIRED, VcpuEntry, VmEntry};
use crate::snapshot::{Clock, Moment, Snapshot, retired_code};
use crate::tally::Tally;

/// What a source has counted between two moments.
#[derive(Clone, Debug, Default)]
pub struct Interval {
    /// When it began; `None` when that is unknown.
    pub from: Option<Moment>,
    /// When it ended; `None` when that is unknown.
    pub to: Option<Moment>,
    /// The instruction set; `None` before the first exit.
    pub isa: Option<Isa>,
    /// The source's clock.
    pub clock: Clock,
    /// What came: minimum and maximum of each account are bounds.
    pub accounts: Accounts,
    /// What was unaccounted in it; whether memory has been short at any time.
    pub quality: Quality,
    /// Whether the source began anew in it, so that what came before that moment is not known.
    pub restarted: bool,
}

impl Interval {
    /// What came after `earlier` and until `later`, two snapshots of one source.
    pub fn between(earlier: &Snapshot, later: &Snapshot) -> Self {
        let restarted = earlier.began != later.began;
        let nothing = Snapshot::default();
        let before = if restarted { &nothing } else { earlier };
        let unaccounted = later.quality.unaccounted.wrapping_sub(before.quality.unaccounted);
        Self {
            from: earlier.at,
            to: later.at,
            isa: later.isa,
            clock: later.clock,
            accounts: difference(&before.accounts, &later.accounts, later.isa),
            quality: Quality {
                unaccounted,
                missed: later.quality.missed.saturating_sub(before.quality.missed),
                ..later.quality
            },
            restarted,
        }
    }

    /// Everything that a snapshot holds, as an interval from its source's beginning, of which no time is known.
    pub fn since_the_beginning(snapshot: &Snapshot) -> Self {
        Self {
            from: None,
            to: snapshot.at,
            isa: snapshot.isa,
            clock: snapshot.clock,
            accounts: snapshot.accounts.clone(),
            quality: snapshot.quality,
            restarted: false,
        }
    }

    /// Its length in ns, if that is known.
    pub fn ns(&self) -> Option<u64> {
        Some(self.to?.monotonic_ns.saturating_sub(self.from?.monotonic_ns))
    }
}

fn difference(before: &Accounts, after: &Accounts, isa: Option<Isa>) -> Accounts {
    let mut result = Accounts::default();
    let known = |id: u64| before.vms().binary_search_by_key(&id, |vm| vm.id).ok().map(|at| &before.vms()[at]);
    let gone: Vec<&VmEntry> =
        before.vms().iter().filter(|vm| vm.id != RETIRED && !has(after, vm.id)).collect();
    if has(after, RETIRED) || !gone.is_empty() || has(before, RETIRED) {
        retired(&mut result, before, after, &gone, isa);
    }
    for vm in after.vms().iter().filter(|vm| vm.id != RETIRED) {
        result.begin_vm(vm.id, vm.pid, vm.finished, vm.expose);
        let earlier = known(vm.id).map_or(&[][..], |vm| before.vcpus(vm));
        for vcpu in after.vcpus(vm) {
            subtract_vcpu(&mut result, (before, earlier), (after, vcpu));
        }
    }
    result
}

fn has(accounts: &Accounts, id: u64) -> bool {
    accounts.vms().binary_search_by_key(&id, |vm| vm.id).is_ok()
}

fn subtract_vcpu(
    result: &mut Accounts,
    (before, earlier): (&Accounts, &[VcpuEntry]),
    (after, vcpu): (&Accounts, &VcpuEntry),
) {
    let earlier = earlier.iter().find(|other| other.id == vcpu.id);
    let less = |of: fn(&VcpuEntry) -> u64| of(vcpu).wrapping_sub(earlier.map_or(0, of));
    result.begin_vcpu(vcpu.id, vcpu.thread, less(|vcpu| vcpu.unannounced), less(|vcpu| vcpu.backwards));
    let old = earlier.map_or(&[][..], |vcpu| before.reasons(vcpu));
    for account in after.reasons(vcpu) {
        let known = old.binary_search_by_key(&account.code, |old| old.code).ok();
        let mut tally = Tally::of(account, after.histogram(account));
        if let Some(old) = known.map(|at| &old[at]) {
            // Nothing came, as most often.
            if old.has_counted_as(account) && before.timed(old) == after.timed(account) {
                continue;
            }
            tally.subtract(&Tally::of(old, before.histogram(old)));
        }
        push(result, account.code, &tally);
    }
}

/// The sum of retired VMs: what it has now, less what it had, less what those had that have become a part of it.
fn retired(result: &mut Accounts, before: &Accounts, after: &Accounts, gone: &[&VmEntry], isa: Option<Isa>) {
    let mut sums: BTreeMap<u64, [Tally; 2]> = BTreeMap::new();
    let (mut unannounced, mut backwards) = (0_u64, 0_u64);
    let was = before.vms().iter().filter(|vm| vm.id == RETIRED).chain(gone.iter().copied());
    let sides = [
        (after, after.vms().iter().filter(|vm| vm.id == RETIRED).collect::<Vec<_>>()),
        (before, was.collect()),
    ];
    for (side, (accounts, vms)) in sides.into_iter().enumerate() {
        for vcpu in vms.into_iter().flat_map(|vm| accounts.vcpus(vm)) {
            let sign = |count: u64| if side == 0 { count } else { count.wrapping_neg() };
            unannounced = unannounced.wrapping_add(sign(vcpu.unannounced));
            backwards = backwards.wrapping_add(sign(vcpu.backwards));
            for account in accounts.reasons(vcpu) {
                sums.entry(retired_code(isa, account.code)).or_default()[side].add(accounts, account);
            }
        }
    }
    result.begin_vm(RETIRED, 0, true, None);
    result.begin_vcpu(0, 0, unannounced, backwards);
    for (code, [mut now, before]) in sums {
        now.subtract(&before);
        push(result, code, &now);
    }
}

/// Adds what came, if anything did.
fn push(result: &mut Accounts, code: u64, tally: &Tally) {
    if !tally.is_empty() {
        result.add_tally(code, tally);
    }
}

#[cfg(test)]
mod tests;
