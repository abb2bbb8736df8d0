//! Copies the region's cells into accounts: VMs by number, their vCPUs by id, their reasons by code.

use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicU64, fence};

use exitscope_abi::leaf::Expose;
use exitscope_abi::reason::Isa;
use exitscope_abi::region::{
    BUCKETS, CELL_SIZE, Counters, EXPOSE_AS_MODULE, Header, Schema, VcpuCell, VmCell, bucket, kind, state,
};
use exitscope_model::OVERFLOW;
use exitscope_model::accounts::{Account, Accounts, RETIRED};
use exitscope_model::snapshot::retired_code;
use exitscope_model::tally::Tally;

/// How often a whole is read with its parts until no exit has ended meanwhile: then they fit.
const ATTEMPTS: u32 = 4;

/// A VM's cell.
struct Vm {
    cell: u32,
    id: u64,
    pid: u32,
    finished: bool,
    expose: Option<Expose>,
}

/// A vCPU's cell.
struct Vcpu {
    cell: u32,
    owner: u32,
    id: u32,
    thread: u32,
    unannounced: u64,
    backwards: u64,
}

/// A cell of counters, as it was copied.
struct Copied {
    cell: u32,
    owner: u32,
    account: Account,
}

/// What the cells hold, in their order.
#[derive(Default)]
struct Cells {
    vms: Vec<Vm>,
    vcpus: Vec<Vcpu>,
    counters: Vec<Copied>,
    baselines: Vec<Copied>,
    /// The histograms, and in the end all accounts.
    accounts: Accounts,
}

/// Reads all cells; less what was counted until the last reset if that is asked for.
pub fn accounts<'a>(
    cells: impl ExactSizeIterator<Item = &'a Counters>,
    isa: Option<Isa>,
    since_reset: bool,
) -> Accounts {
    let count = cells.len() + 1;
    let mut copied = Cells::default();
    copied.counters.reserve(count);
    copied.accounts.reserve(count / 8, count);
    for (number, cell) in (1..).zip(cells) {
        copied.copy(number, cell, since_reset);
    }
    copied.sort();
    copied.into_accounts(count, isa)
}

impl Cells {
    /// Copies a cell, unless it is free or changes its owner meanwhile.
    fn copy(&mut self, cell: u32, from: &Counters, since_reset: bool) {
        let head = &from.head;
        let generation = head.generation.load(Acquire);
        // Before the owner: a cell that has just been filled in shows its kind last.
        let kind = head.kind.load(Acquire);
        let owner = head.owner.load(Relaxed);
        let same = || {
            fence(Acquire);
            head.generation.load(Relaxed) == generation
        };
        match kind {
            kind::VM => {
                let vm = read_vm(cell, view(from), head.state.load(Relaxed));
                if same() {
                    self.vms.push(vm);
                }
            }
            kind::VCPU => {
                let vcpu = read_vcpu(cell, owner, view(from));
                if same() {
                    self.vcpus.push(vcpu);
                }
            }
            kind @ (kind::COUNTERS | kind::OVERFLOW) if from.exits.load(Relaxed) > 0 => {
                let code = if kind == kind::OVERFLOW { OVERFLOW } else { head.code.load(Relaxed).into() };
                let copied = self.read_counters(cell, owner, from, code);
                if same() {
                    self.counters.push(copied);
                }
            }
            kind::BASELINE if since_reset => {
                let copied = self.read_counters(cell, owner, from, head.code.load(Relaxed).into());
                if same() {
                    self.baselines.push(copied);
                }
            }
            _ => {}
        }
    }

    fn read_counters(&mut self, cell: u32, owner: u32, from: &Counters, code: u64) -> Copied {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        // The extremes before the histogram: exits that come in between, outside of them, are not seen yet. Parts before
        // the whole, and exits after the histogram, so that neither falls short of what is in it.
        let [min, max] = [&from.min, &from.max].map(read);
        let lowest = bucket(min & (i64::MAX as u64));
        let end = if min > max { lowest } else { (bucket(max & (i64::MAX as u64)) + 1).min(BUCKETS) };
        // An exit's parts are added after the whole: if that has been so since before the histogram was read, they are there.
        let mut before = from.cycles.load(Acquire);
        let counts = from.histogram.get(lowest..end).unwrap_or_default();
        let buckets = self.accounts.keep(lowest, counts.iter().map(read));
        let (mut parts, mut cycles) = ([0; 3], 0);
        for _ in 0..ATTEMPTS {
            parts = [&from.user, &from.polled, &from.halted].map(read);
            fence(Acquire);
            cycles = read(&from.cycles);
            if cycles == before {
                break;
            }
            before = cycles;
        }
        let ([user, polled, halted], exits) = (parts, read(&from.exits));
        let account = Account { code, exits, cycles, user, polled, halted, min, max, buckets };
        Copied { cell, owner, account }
    }

    /// Puts VMs and vCPUs into the order of accounts.
    fn sort(&mut self) {
        self.vms.sort_unstable_by_key(|vm| vm.id);
        self.vcpus.sort_unstable_by_key(|vcpu| vcpu.id);
        self.baselines.sort_unstable_by_key(|baseline| baseline.owner);
    }

    fn into_accounts(mut self, cells: usize, isa: Option<Isa>) -> Accounts {
        let vcpus_of = chains(cells, self.vcpus.iter().map(|vcpu| vcpu.owner));
        let counters_of = chains(cells, self.counters.iter().map(|counters| counters.owner));
        let mut accounts = std::mem::take(&mut self.accounts);
        let (retired, kept) = self.vms.split_at(self.vms.partition_point(|vm| vm.id == RETIRED));
        self.add_retired(&mut accounts, retired, (&vcpus_of, &counters_of), isa);
        let mut order = Vec::new();
        for vm in kept {
            accounts.begin_vm(vm.id, vm.pid, vm.finished, vm.expose);
            for vcpu in vcpus_of.of(vm.cell).map(|index| &self.vcpus[index]) {
                accounts.begin_vcpu(vcpu.id, vcpu.thread, vcpu.unannounced, vcpu.backwards);
                order.clear();
                order.extend(
                    counters_of.of(vcpu.cell).map(|index| (self.counters[index].account.code, index)),
                );
                order.sort_unstable();
                for counters in order.iter().map(|&(_, index)| &self.counters[index]) {
                    self.add(&mut accounts, counters);
                }
            }
        }
        accounts
    }

    fn add(&self, accounts: &mut Accounts, counters: &Copied) {
        match self.baseline(counters) {
            None => accounts.add(counters.account),
            Some(baseline) => {
                let mut tally = tally_of(accounts, counters);
                tally.subtract(&tally_of(accounts, baseline));
                if tally.exits > 0 {
                    accounts.add_tally(counters.account.code, &tally);
                }
            }
        }
    }

    fn baseline(&self, counters: &Copied) -> Option<&Copied> {
        let found = self.baselines.binary_search_by_key(&counters.cell, |baseline| baseline.owner).ok()?;
        self.baselines.get(found)
    }

    /// VMs that are not kept apart are one sum, whether the module has added them up already or not.
    fn add_retired(
        &self,
        accounts: &mut Accounts,
        retired: &[Vm],
        (vcpus_of, counters_of): (&Chains, &Chains),
        isa: Option<Isa>,
    ) {
        let vcpus = || retired.iter().flat_map(|vm| vcpus_of.of(vm.cell)).map(|index| &self.vcpus[index]);
        let mut sums: std::collections::BTreeMap<u64, Tally> = std::collections::BTreeMap::new();
        for counters in vcpus().flat_map(|vcpu| counters_of.of(vcpu.cell)).map(|index| &self.counters[index])
        {
            let mut tally = tally_of(accounts, counters);
            if let Some(baseline) = self.baseline(counters) {
                tally.subtract(&tally_of(accounts, baseline));
            }
            sums.entry(retired_code(isa, counters.account.code)).or_default().merge(&tally);
        }
        sums.retain(|_, tally| tally.exits > 0);
        if sums.is_empty() {
            return;
        }
        let sum = |of: fn(&Vcpu) -> u64| vcpus().map(of).fold(0, u64::wrapping_add);
        accounts.begin_vm(RETIRED, 0, true, None);
        accounts.begin_vcpu(0, 0, sum(|vcpu| vcpu.unannounced), sum(|vcpu| vcpu.backwards));
        for (code, tally) in &sums {
            accounts.add_tally(*code, tally);
        }
    }
}

fn tally_of(accounts: &Accounts, copied: &Copied) -> Tally {
    Tally::of(&copied.account, accounts.histogram(&copied.account))
}

/// Those of a list that have the same owner, in the list's order, without a list for each owner.
struct Chains {
    first: Vec<u32>,
    next: Vec<u32>,
}

/// Nothing follows.
const END: u32 = u32::MAX;

fn chains(cells: usize, owners: impl DoubleEndedIterator<Item = u32> + ExactSizeIterator) -> Chains {
    let mut chains = Chains { first: vec![END; cells], next: vec![END; owners.len()] };
    for (index, owner) in owners.enumerate().rev() {
        if let Some(first) = chains.first.get_mut(owner as usize) {
            chains.next[index] = *first;
            *first = index as u32;
        }
    }
    chains
}

impl Chains {
    fn of(&self, owner: u32) -> impl Iterator<Item = usize> + use<'_> {
        let some = |link: u32| (link != END).then_some(link as usize);
        let first = self.first.get(owner as usize).copied().and_then(some);
        std::iter::successors(first, move |&index| self.next.get(index).copied().and_then(some))
    }
}

fn read_vm(cell: u32, vm: &VmCell, life: u16) -> Vm {
    let expose = match vm.expose.load(Relaxed) {
        EXPOSE_AS_MODULE => None,
        number => u8::try_from(number).ok().and_then(Expose::from_number),
    };
    let id = if life == state::RETIRED { RETIRED } else { vm.id.load(Relaxed) };
    Vm { cell, id, pid: vm.pid.load(Relaxed), finished: life != state::LIVE, expose }
}

fn read_vcpu(cell: u32, owner: u32, vcpu: &VcpuCell) -> Vcpu {
    let [unannounced, backwards] = [&vcpu.unannounced, &vcpu.backwards].map(|count| count.load(Relaxed));
    let [id, thread] = [&vcpu.id, &vcpu.thread].map(|number| number.load(Relaxed));
    Vcpu { cell, owner, id, thread, unannounced, backwards }
}

/// A cell as one of the region's smaller structures.
pub fn view<T: Small>(cell: &Counters) -> &T {
    const { assert!(size_of::<T>() <= CELL_SIZE && align_of::<T>() <= align_of::<Counters>()) }
    // SAFETY: a `Small` is repr(C) and all atomics, so it is valid for the bytes of any cell, and shares them with
    // `Counters` as atomics of at most the same width at the same place or inside one.
    unsafe { &*ptr::from_ref(cell).cast::<T>() }
}

/// The structures that [`view`] may give.
pub trait Small {}
impl Small for Header {}
impl Small for VmCell {}
impl Small for VcpuCell {}
impl Small for Schema {}
