//! Accounts of exits, per VM, vCPU and reason, in few allocations: what a snapshot and an interval are made of.

use std::collections::BTreeMap;
use std::ops::Range;

use exitscope_abi::leaf::Expose;
use exitscope_abi::region::BUCKETS;

use crate::tally::Tally;

/// [`VmEntry::id`] of the sum of VMs that the source no longer keeps apart.
pub const RETIRED: u64 = 0;

/// A VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmEntry {
    /// The source's number of it, from 1, never used twice while the source runs; [`RETIRED`].
    pub id: u64,
    /// Process that ran its first vCPU, in the initial PID namespace; 0 for [`RETIRED`].
    pub pid: u32,
    /// Whether KVM has destroyed it.
    pub finished: bool,
    /// Whose exits its guest is told, where that is not left to the module's parameter.
    pub expose: Option<Expose>,
    vcpus: Range<u32>,
}

/// A vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuEntry {
    /// KVM's id of it.
    pub id: u32,
    /// The thread that ran it first, in the initial PID namespace; 0 when not known.
    pub thread: u32,
    /// Exits that KVM did not announce.
    pub unannounced: u64,
    /// Exits without a duration, because the clock went backwards until the next entry.
    pub backwards: u64,
    accounts: Range<u32>,
}

/// What was counted of one exit reason of one vCPU. Times are ticks of the source's clock; all counts may wrap around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Exit reason (VMX) or exit code (SVM); [`crate::OVERFLOW`].
    pub code: u64,
    /// Exits.
    pub exits: u64,
    /// Ticks of all timed exits, from the exit to the next entry.
    pub cycles: u64,
    /// Of these, those in the VMM's user space.
    pub user: u64,
    /// Those in which the kernel polled for the end of a halt.
    pub polled: u64,
    /// Those in which the vCPU was halted or blocked, without polling.
    pub halted: u64,
    /// Fewest ticks of a timed exit, or a lower bound; `u64::MAX` when none was timed.
    pub min: u64,
    /// Most ticks of a timed exit, or an upper bound.
    pub max: u64,
    /// Its histogram, which [`Accounts::histogram`] reads.
    pub buckets: Buckets,
}

/// Where the buckets of an account are: one after the other, from the lowest to the highest that may not be 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// Where the first of them is in [`Accounts::counts`].
    first: u32,
    lowest: u8,
    length: u8,
}

impl Account {
    /// Whether another has the same counts, of its histogram aside.
    pub fn has_counted_as(&self, other: &Self) -> bool {
        let counts = |account: &Self| {
            let Self { exits, cycles, user, polled, halted, .. } = *account;
            [exits, cycles, user, polled, halted]
        };
        counts(self) == counts(other)
    }

    /// Ticks in the host's kernel, time that the vCPU's thread waited for a CPU included.
    pub fn kernel(&self) -> u64 {
        kernel(self.cycles, self.user, self.polled, self.halted)
    }
}

/// What is left of the whole when its other parts are taken away; 0 where they were read later than the whole.
pub(crate) fn kernel(cycles: u64, user: u64, polled: u64, halted: u64) -> u64 {
    let kernel = cycles.wrapping_sub(user).wrapping_sub(polled).wrapping_sub(halted);
    if kernel <= cycles { kernel } else { 0 }
}

/// Accounts in order: VMs by id, their vCPUs by id, their reasons by code.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    vms: Vec<VmEntry>,
    vcpus: Vec<VcpuEntry>,
    accounts: Vec<Account>,
    counts: Vec<u64>,
}

/// A vCPU in a sum of accounts.
#[derive(Default)]
struct SumOfVcpu {
    thread: u32,
    unannounced: u64,
    backwards: u64,
    reasons: BTreeMap<u64, Tally>,
}

impl Accounts {
    /// Makes room for so many accounts.
    pub fn reserve(&mut self, vcpus: usize, accounts: usize) {
        self.vcpus.reserve(vcpus);
        self.accounts.reserve(accounts);
        self.counts.reserve(6 * accounts);
    }

    /// Begins a VM; those of the vCPUs that follow are its own.
    pub fn begin_vm(&mut self, id: u64, pid: u32, finished: bool, expose: Option<Expose>) {
        let end = self.vcpus.len() as u32;
        self.vms.push(VmEntry { id, pid, finished, expose, vcpus: end..end });
    }

    /// Begins a vCPU of the last VM.
    pub fn begin_vcpu(&mut self, id: u32, thread: u32, unannounced: u64, backwards: u64) {
        let end = self.accounts.len() as u32;
        self.vcpus.push(VcpuEntry { id, thread, unannounced, backwards, accounts: end..end });
        if let Some(vm) = self.vms.last_mut() {
            vm.vcpus.end = self.vcpus.len() as u32;
        }
    }

    /// Keeps the histogram of an account that is added later: its counts from the bucket `lowest` on.
    pub fn keep(&mut self, lowest: usize, counts: impl IntoIterator<Item = u64>) -> Buckets {
        let first = self.counts.len();
        self.counts.extend(counts);
        Buckets { first: first as u32, lowest: lowest as u8, length: (self.counts.len() - first) as u8 }
    }

    /// Adds an account, whose histogram these accounts have kept, to the last vCPU.
    pub fn add(&mut self, account: Account) {
        self.accounts.push(account);
        if let Some(vcpu) = self.vcpus.last_mut() {
            vcpu.accounts.end = self.accounts.len() as u32;
        }
    }

    /// Adds a sum as an account of the last vCPU.
    pub fn add_tally(&mut self, code: u64, tally: &Tally) {
        let Tally { exits, cycles, user, polled, halted, min, max, histogram } = *tally;
        let some = |count: &u64| *count != 0;
        let lowest = histogram.iter().position(some).unwrap_or(BUCKETS);
        let end = histogram.iter().rposition(some).map_or(BUCKETS, |last| last + 1);
        let buckets = self.keep(lowest, histogram[lowest..end].iter().copied());
        self.add(Account { code, exits, cycles, user, polled, halted, min, max, buckets });
    }

    /// The sum of several: every VM, vCPU and reason of any of them, once.
    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut vms: BTreeMap<u64, (VmEntry, BTreeMap<u32, SumOfVcpu>)> = BTreeMap::new();
        for accounts in all {
            for vm in &accounts.vms {
                let (entry, vcpus) = vms.entry(vm.id).or_default();
                *entry = vm.clone();
                for vcpu in accounts.vcpus(vm) {
                    let sum = vcpus.entry(vcpu.id).or_default();
                    sum.thread = vcpu.thread;
                    sum.unannounced = sum.unannounced.wrapping_add(vcpu.unannounced);
                    sum.backwards = sum.backwards.wrapping_add(vcpu.backwards);
                    for account in accounts.reasons(vcpu) {
                        sum.reasons.entry(account.code).or_default().add(accounts, account);
                    }
                }
            }
        }
        let mut sum = Self::default();
        for (VmEntry { id, pid, finished, expose, .. }, vcpus) in vms.into_values() {
            sum.begin_vm(id, pid, finished, expose);
            for (id, SumOfVcpu { thread, unannounced, backwards, reasons }) in vcpus {
                sum.begin_vcpu(id, thread, unannounced, backwards);
                reasons.iter().for_each(|(&code, tally)| sum.add_tally(code, tally));
            }
        }
        sum
    }

    /// Every VM.
    pub fn vms(&self) -> &[VmEntry] {
        &self.vms
    }

    /// The vCPUs of a VM of these accounts.
    pub fn vcpus(&self, vm: &VmEntry) -> &[VcpuEntry] {
        slice(&self.vcpus, &vm.vcpus)
    }

    /// The reasons of a vCPU of these accounts.
    pub fn reasons(&self, vcpu: &VcpuEntry) -> &[Account] {
        slice(&self.accounts, &vcpu.accounts)
    }

    /// Every account with its VM and its vCPU.
    pub fn iter(&self) -> impl Iterator<Item = (&VmEntry, &VcpuEntry, &Account)> {
        self.vms.iter().flat_map(move |vm| {
            self.vcpus(vm)
                .iter()
                .flat_map(move |vcpu| self.reasons(vcpu).iter().map(move |account| (vm, vcpu, account)))
        })
    }

    /// The histogram of one of these accounts: buckets that are not 0, in order (see [`exitscope_abi::region::bucket`]).
    pub fn histogram(&self, account: &Account) -> impl Iterator<Item = (usize, u64)> + use<'_> {
        let Buckets { first, lowest, length } = account.buckets;
        let counts =
            self.counts.get(first as usize..first as usize + usize::from(length)).unwrap_or_default();
        (usize::from(lowest)..).zip(counts.iter().copied()).filter(|&(_, count)| count != 0)
    }

    /// Timed exits of one of these accounts.
    pub fn timed(&self, account: &Account) -> u64 {
        self.histogram(account).fold(0, |sum, (_, count)| sum.wrapping_add(count))
    }

    /// All exits, of every VM.
    pub fn exits(&self) -> u64 {
        self.accounts.iter().fold(0, |sum, account| sum.wrapping_add(account.exits))
    }
}

fn slice<'a, T>(all: &'a [T], range: &Range<u32>) -> &'a [T] {
    all.get(range.start as usize..range.end as usize).unwrap_or_default()
}
