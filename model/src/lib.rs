//! The data model: what a run was and what it counted, as in the JSON schema `exitscope/1`.
//!
//! All cycles are ticks of the time stamp counter of the machine that ran KVM.
#![forbid(unsafe_code)]

pub mod accounts;
pub mod compare;
pub mod doctor;
pub mod document;
pub mod guest_stat;
pub mod interval;
pub mod select;
pub mod selftest;
pub mod snapshot;
pub mod stat;
pub mod tally;

use std::borrow::Cow;
use std::collections::BTreeMap;

use exitscope_abi::reason::Isa;
use serde::{Deserialize, Serialize};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope/1";

/// [`Reason::code`] of exits that found no room under their own.
pub const OVERFLOW: u64 = 1 << 32;

/// A run: one JSON document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Where it ran.
    pub machine: Machine,
    /// What counted: `module`.
    pub source: String,
    /// `vmx` or `svm`.
    pub isa: String,
    /// Numbering of the course leaves.
    pub layout: String,
    /// Whose exits the guest was told.
    pub expose: String,
    /// All reasons together.
    pub total: Total,
    /// Per reason over all VMs, most frequent first.
    pub reasons: Vec<Reason>,
    /// Per VM and vCPU.
    pub vms: Vec<Vm>,
    /// How exits came over time.
    pub timeline: Vec<Tick>,
    /// The phases of the guest's boot, one after the other, if they were told apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
    /// What the guest itself read, if one did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guest: Option<GuestView>,
    /// What must be known to judge the numbers.
    pub quality: Quality,
}

/// Where a run happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Whether an emulated CPU ran it, so that cycles say nothing about a real one.
    pub emulated: bool,
    /// The emulator: `qemu-tcg`.
    pub emulator: String,
    /// `amd` or `intel`.
    pub vendor: String,
    /// Release of the kernel that ran KVM.
    pub kernel: String,
    /// `nested` or `shadow`.
    pub paging: String,
    /// Frequency of the time stamp counter in kHz; 0 when unknown.
    pub tsc_khz: u32,
    /// Emulated instructions from reset until our module was loaded, where the emulator tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub instructions_to_module: Option<u64>,
}

impl Machine {
    /// The kernel and the CPU in words: `Linux 6.12.1 on an emulated AMD CPU (qemu-tcg)`.
    pub fn describe(&self) -> String {
        let emulator = if self.emulated { format!(" ({})", self.emulator) } else { String::new() };
        format!("Linux {} on {}{emulator}", self.kernel, self.cpu())
    }

    /// The CPU in words: `an emulated AMD CPU`.
    pub fn cpu(&self) -> String {
        let kind = if self.emulated { "an emulated" } else { "a real" };
        format!("{kind} {} CPU", self.vendor_name())
    }

    /// The vendor as it is written: `AMD`, `Intel`.
    pub fn vendor_name(&self) -> &str {
        match self.vendor.as_str() {
            "amd" => "AMD",
            "intel" => "Intel",
            other => other,
        }
    }
}

/// Exits and cycles of all reasons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Exits.
    pub exits: u64,
    /// Cycles from exit to next entry.
    pub cycles: u64,
}

/// The account of one exit reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Exit reason (VMX) or exit code (SVM); 2^32 for exits that found no room.
    pub code: u64,
    /// The field's name of it, or `UNKNOWN(code)`.
    pub name: Cow<'static, str>,
    /// Exits.
    pub exits: u64,
    /// Cycles of all timed exits: the sum of the next four, where they are told.
    pub cycles: u64,
    /// Of these, those in the host's kernel, time that the vCPU's thread waited for a CPU included.
    #[serde(default)]
    pub kernel: u64,
    /// Those in the VMM's user space: between KVM_RUN's return and its next call.
    #[serde(default)]
    pub user: u64,
    /// Those of halt polling: the vCPU was halted, and its thread kept its CPU and looked for a wake-up.
    #[serde(default)]
    pub polled: u64,
    /// Those that the vCPU's thread slept, as its vCPU was halted or blocked.
    #[serde(default)]
    pub halted: u64,
    /// Fewest cycles of one exit; 0 when none was timed.
    pub min: u64,
    /// Most cycles of one exit.
    pub max: u64,
    /// Exits whose duration is not known (yet): the open one, re-entries that KVM did not announce.
    #[serde(default)]
    pub untimed: u64,
    /// Pairs of a bucket's lowest number of cycles and the number of exits in it; empty buckets are left out.
    #[serde(default)]
    pub histogram: Vec<(u64, u64)>,
}

impl Reason {
    /// Mean cycles of a timed exit.
    pub fn mean(&self) -> Option<u64> {
        self.cycles.checked_div(self.exits.saturating_sub(self.untimed))
    }

    fn absorb(&mut self, other: &Self) {
        self.min = match (self.min, other.min) {
            (0, min) | (min, 0) => min,
            (mine, theirs) => mine.min(theirs),
        };
        self.max = self.max.max(other.max);
        self.exits = self.exits.wrapping_add(other.exits);
        self.cycles = self.cycles.wrapping_add(other.cycles);
        self.kernel = self.kernel.wrapping_add(other.kernel);
        self.user = self.user.wrapping_add(other.user);
        self.polled = self.polled.wrapping_add(other.polled);
        self.halted = self.halted.wrapping_add(other.halted);
        self.untimed = self.untimed.wrapping_add(other.untimed);
        let mut buckets: BTreeMap<u64, u64> = self.histogram.drain(..).collect();
        for &(low, count) in &other.histogram {
            let sum = buckets.entry(low).or_default();
            *sum = sum.wrapping_add(count);
        }
        self.histogram = buckets.into_iter().collect();
    }
}

/// A VM's account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// The module's number of the VM, from 1; `retired` for the sum of VMs that it no longer keeps apart.
    pub id: String,
    /// Process that ran its first vCPU.
    pub pid: u32,
    /// Whether KVM has destroyed it.
    pub finished: bool,
    /// Whose exits its guest is told, where that is not left to the module's parameter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expose: Option<String>,
    /// Its vCPUs, by id.
    pub vcpus: Vec<Vcpu>,
}

impl Vm {
    /// All reasons of all vCPUs.
    pub fn total(&self) -> Total {
        total(self.vcpus.iter().flat_map(|vcpu| &vcpu.reasons))
    }
}

/// A vCPU's account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    /// KVM's id.
    pub id: u32,
    /// The thread that ran it when its first exit was seen, in the initial PID namespace; 0 in the sum of retired VMs.
    #[serde(default)]
    pub thread: u32,
    /// Exits that KVM did not announce: it re-entered the guest, which was known to be in it already.
    #[serde(default)]
    pub unannounced: u64,
    /// Exits without a duration, because the clock went backwards until the next entry.
    #[serde(default)]
    pub backwards: u64,
    /// All reasons.
    pub total: Total,
    /// Per reason, most frequent first.
    pub reasons: Vec<Reason>,
}

/// Exits up to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// Milliseconds since the timeline began, in the time of the machine that ran KVM.
    pub t_ms: u64,
    /// Exits of all VMs so far.
    pub exits: u64,
}

/// A stretch of a guest's life. Times are in ms on the clock of the timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// `firmware`, `kernel`, `initramfs`, `userspace`, `shutdown`.
    pub name: String,
    /// When it began.
    pub start_ms: u64,
    /// When the next one began, or the guest ended.
    pub end_ms: u64,
    /// Exits of all VMs in it.
    pub exits: u64,
}

impl Phase {
    /// Exits per second; `None` for a phase that took less than a millisecond.
    pub fn rate(&self) -> Option<u64> {
        (self.exits * 1000).checked_div(self.end_ms.saturating_sub(self.start_ms))
    }
}

/// What a guest read from the leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestView {
    /// `vmx` or `svm`.
    pub isa: String,
    /// Numbering of the course leaves.
    pub layout: String,
    /// Whose exits it was told.
    pub expose: String,
    /// All reasons, read first.
    pub total: Total,
    /// Every reason with exits, most frequent first.
    pub reasons: Vec<Reason>,
}

/// What must be known to judge the numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quality {
    /// Exits of vCPUs that found no room for an account; they are in no total.
    pub unaccounted: u64,
    /// Whether memory was short at some time, so that some exits lack their reason.
    pub overflowed: bool,
    /// Events that eBPF programs were not run for, as the kernel counts them: 0 for the module.
    #[serde(default)]
    pub missed: u64,
}

/// The name of a code, never hiding one that has none.
pub fn name(isa: Isa, code: u64) -> Cow<'static, str> {
    if code == OVERFLOW {
        return "OVERFLOW".into();
    }
    let reason = u32::try_from(code).ok().and_then(|code| isa.reason(code));
    reason.map_or_else(|| format!("UNKNOWN({code})").into(), |reason| reason.name.into())
}

/// Adds up accounts, which wrap around as the module's counters do.
pub fn total<'a>(reasons: impl IntoIterator<Item = &'a Reason>) -> Total {
    reasons.into_iter().fold(Total::default(), |sum, reason| Total {
        exits: sum.exits.wrapping_add(reason.exits),
        cycles: sum.cycles.wrapping_add(reason.cycles),
    })
}

/// Most frequent first; equal ones by code.
pub fn rank(reasons: &mut [Reason]) {
    reasons.sort_by_key(|reason| (std::cmp::Reverse(reason.exits), reason.code));
}

/// Accounts of the same code put together, most frequent first.
pub fn merge<'a>(accounts: impl IntoIterator<Item = &'a Reason>) -> Vec<Reason> {
    let mut merged: BTreeMap<u64, Reason> = BTreeMap::new();
    for account in accounts {
        match merged.get_mut(&account.code) {
            Some(reason) => reason.absorb(account),
            None => drop(merged.insert(account.code, account.clone())),
        }
    }
    let mut reasons: Vec<Reason> = merged.into_values().collect();
    rank(&mut reasons);
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(code: u64, exits: u64, min: u64, max: u64) -> Reason {
        Reason { code, exits, cycles: 10 * exits, min, max, histogram: vec![(8, exits)], ..Reason::default() }
    }

    #[test]
    fn merging_keeps_sums_and_extremes() {
        let merged =
            merge(&[reason(10, 2, 9, 11), reason(12, 5, 1, 2), reason(10, 3, 8, 10), reason(10, 0, 0, 0)]);
        assert_eq!(merged.iter().map(|reason| reason.code).collect::<Vec<_>>(), [10, 12]);
        assert_eq!((merged[0].exits, merged[0].min, merged[0].max), (5, 8, 11));
        assert_eq!(merged[0].histogram, [(8, 5)]);
        assert_eq!(total(&merged), Total { exits: 10, cycles: 100 });
    }

    #[test]
    fn no_code_is_hidden() {
        assert_eq!(name(Isa::Svm, 114), "CPUID");
        assert_eq!(name(Isa::Vmx, 131_072), "UNKNOWN(131072)");
        assert_eq!(name(Isa::Vmx, OVERFLOW), "OVERFLOW");
    }
}
