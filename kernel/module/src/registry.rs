//! The registry: every vCPU that has had an exit, its VM, and where its counters are.
//!
//! A hash table finds a vCPU's [`Slot`] by the vCPU's address, without a lock. Whatever changes the table or allocates
//! memory holds the module's one lock, and is not on the exit path. Slots and VMs are reused, and freed only when the
//! module is unloaded. So a lookup without the lock may at worst walk into another chain and miss its slot; it is then
//! repeated under the lock.

use core::arch::x86_64::_rdtsc;
use core::cell::UnsafeCell;
use core::ffi::{c_ulong, c_void};
use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU64};

use exitscope_abi::reason::{Isa, MAX_REASONS};
use exitscope_abi::region::{Counters, kind, state};
use exitscope_core::{Place, Table, absorb, locate};

use crate::cells::{self, Pool};
use crate::clock::ticks;
use crate::ffi;
use crate::policies::Policies;
use crate::records::{Record, Records};
use crate::slot::{OVERFLOW, OWNED_WORDS, Slot, Vm, VmLocked};

/// Finished vCPUs whose numbers are kept.
const MAX_FINISHED: u32 = 256;
/// How often a part of a retired vCPU is folded into the sum when a vCPU ends: enough for several of them, so that the
/// backlog of a large VM goes down.
const FOLDS_AT_ONCE: u32 = 4 * OWNED_WORDS as u32;
/// How long an allocation that failed is not tried again, in ns.
const BACK_OFF_NS: u64 = 10_000_000;
/// Cells that a VM needs to be known: its own, those of a vCPU and of its overflow counters.
const FIRST_CELLS: usize = 3;
/// Chains of each hash table. With as many VMs, or vCPUs, as the parameter `pages` admits, a chain has some eight.
const BUCKETS: usize = 8192;

/// The hash table of vCPUs: chains of slots, linked through [`Slot::next`].
static TABLE: [AtomicPtr<Slot>; BUCKETS] = [const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS];

/// The slot that was made last; see [`slots`].
static NEWEST_SLOT: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());

/// Everything that the lock protects.
pub struct Registry {
    pool: Pool,
    /// The hash table of VMs that have a vCPU in KVM.
    live: [*mut Vm; BUCKETS],
    /// Finished VMs that are kept apart, in the order in which they ended.
    finished: Queue,
    /// Finished VMs that are a part of the sum of retired ones, until their room is needed.
    retired: Queue,
    vms: Records<Vm>,
    slots: Records<Slot>,
    /// The account of retired VMs.
    sum: Option<&'static Slot>,
    /// vCPUs of VMs that ended, or that have ended themselves, and are not retired.
    finished_vcpus: u32,
    last_id: u64,
    pub policies: Policies,
}

/// VMs in the order of their coming, linked through [`VmLocked::next`].
struct Queue {
    first: *mut Vm,
    last: *mut Vm,
}

impl Queue {
    const EMPTY: Self = Self { first: ptr::null_mut(), last: ptr::null_mut() };

    fn first(&self) -> Option<&'static Vm> {
        // SAFETY: VMs live until `stop`.
        unsafe { self.first.as_ref() }
    }

    fn push(&mut self, vm: &Vm) {
        let new = ptr::from_ref(vm).cast_mut();
        // SAFETY: a queue is used with the lock held only, and VMs live until `stop`.
        unsafe {
            vm.locked().next = ptr::null_mut();
            match self.last.as_ref() {
                Some(last) => last.locked().next = new,
                None => self.first = new,
            }
        }
        self.last = new;
    }

    fn pop(&mut self) -> Option<&'static Vm> {
        let vm = self.first()?;
        // SAFETY: as above.
        self.first = unsafe { vm.locked().next };
        if self.first.is_null() {
            self.last = ptr::null_mut();
        }
        Some(vm)
    }
}

/// The registry, which the lock protects.
struct LockedRegistry(UnsafeCell<Registry>);
// SAFETY: `with_lock` is the only access, but for `stop`'s, when nobody else is there.
unsafe impl Sync for LockedRegistry {}

static REGISTRY: LockedRegistry = LockedRegistry(UnsafeCell::new(Registry {
    pool: Pool::new(),
    live: [ptr::null_mut(); BUCKETS],
    finished: Queue::EMPTY,
    retired: Queue::EMPTY,
    vms: Records::NONE,
    slots: Records::NONE,
    sum: None,
    finished_vcpus: 0,
    last_id: 0,
    policies: Policies::NONE,
}));

/// As [`with_lock`], where the work may need memory, and so many cells.
fn with_room<T>(cells: usize, work: impl FnOnce(&mut Registry) -> T) -> T {
    // SAFETY: the lock is not held.
    unsafe { ffi::exitscope_refill_at_once() };
    repeat_under_lock(|registry| registry.make_room(cells));
    with_lock(work)
}

/// Takes the lock anew for each of several steps, until there is none to be done.
fn repeat_under_lock(step: impl Fn(&mut Registry) -> Option<()>) {
    for _ in 0..FOLDS_AT_ONCE {
        if with_lock(&step).is_none() {
            break;
        }
    }
}

/// Does the work with the lock held and interrupts off.
pub fn with_lock<T>(work: impl FnOnce(&mut Registry) -> T) -> T {
    // SAFETY: no precondition; nothing below takes the lock again.
    let flags: c_ulong = unsafe { ffi::exitscope_lock() };
    #[cfg(exitscope_holds)]
    let hold = crate::holds::Hold::begin();
    // SAFETY: the lock is held.
    let result = work(unsafe { &mut *REGISTRY.0.get() });
    #[cfg(exitscope_holds)]
    drop(hold);
    // SAFETY: `flags` came from the lock.
    unsafe { ffi::exitscope_unlock(flags) };
    result
}

/// Which chain of a hash table an address of KVM's belongs to.
#[inline]
fn bucket_of(address: *mut c_void) -> usize {
    // Multiplicative hashing on the low 32 bits, whose upper ones choose among the chains.
    ((address as u32).wrapping_mul(0x9E37_79B1) >> (32 - BUCKETS.ilog2())) as usize % BUCKETS
}

#[inline]
fn bucket(vcpu: *mut c_void) -> &'static AtomicPtr<Slot> {
    &TABLE[bucket_of(vcpu)]
}

/// The slot of a vCPU, if it has one; without a lock.
#[inline]
pub fn find(vcpu: *mut c_void) -> Option<&'static Slot> {
    let mut link = bucket(vcpu);
    loop {
        // SAFETY: links are null or slots, and slots live until `stop`.
        let slot = unsafe { link.load(Acquire).as_ref() }?;
        if slot.is_of(vcpu) {
            return Some(slot);
        }
        link = &slot.next;
    }
}

/// The time stamp counter when allocations of a kind failed last. The next one waits for a while: otherwise every exit of
/// every vCPU without an account would take the lock.
struct BackOff(AtomicU64);

/// Of vCPUs that are not known yet.
static ENROLLING: BackOff = BackOff(AtomicU64::new(0));
/// Of counters.
static INSTALLING: BackOff = BackOff(AtomicU64::new(0));

impl BackOff {
    fn begin(&self) {
        // SAFETY: RDTSC is always there.
        self.0.store(unsafe { _rdtsc() }, Relaxed);
    }

    /// Whether an allocation failed a short while ago. Compares a difference and not a deadline: a deadline may never
    /// come, as a machine that was suspended starts its counter again.
    fn is_on(&self) -> bool {
        // SAFETY: RDTSC is always there.
        unsafe { _rdtsc() }.wrapping_sub(self.0.load(Relaxed)) < ticks(BACK_OFF_NS)
    }
}

/// The slot of a vCPU whose event is being handled, made if it has none. `None` when memory is short: the exit is
/// counted as unaccounted.
pub fn enroll(vcpu: *mut c_void, isa: Isa) -> Option<&'static Slot> {
    let enroll = |registry: &mut Registry| find(vcpu).or_else(|| registry.enroll(vcpu, isa));
    let slot = if ENROLLING.is_on() { None } else { with_room(FIRST_CELLS, enroll) };
    if slot.is_none() {
        cells::count_unaccounted();
    }
    slot
}

/// The counters of a code, made if this is its first exit; the overflow counters where there is no room.
pub fn counters(slot: &Slot, isa: Isa, code: u32) -> Option<&'static Counters> {
    match locate(slot, isa, code) {
        Place::Found(counters) => Some(counters),
        Place::Empty(_) if INSTALLING.is_on() => slot.overflow(),
        Place::Empty(_) if slot.vm().is_full() => {
            cells::set_overflowed();
            slot.overflow()
        }
        Place::Empty(place) => {
            with_room(cells::reserved_for_vcpus() + 1, |registry| registry.install(slot, place, code))
        }
        Place::Full => slot.overflow(),
    }
}

/// The slot of a vCPU that is alive. Where the end of an earlier one at its address has gone unnoticed, that one's slot is
/// finished now.
pub fn find_same(vcpu: *mut c_void) -> Option<&'static Slot> {
    let slot = find(vcpu)?;
    // SAFETY: the vCPU is alive, its event is being handled.
    if unsafe { slot.is_same(vcpu) } {
        return Some(slot);
    }
    finish(vcpu);
    None
}

/// As [`find`], and again under the lock if that finds nothing: then there is no such slot. During a back-off the lock is
/// not taken, and a slot may be missed.
pub fn find_locked(vcpu: *mut c_void) -> Option<&'static Slot> {
    find(vcpu).or_else(|| if ENROLLING.is_on() { None } else { with_lock(|_| find(vcpu)) })
}

/// Prepares the region and the account of retired VMs.
pub fn start() -> Option<()> {
    let started = with_lock(|registry| {
        registry.pool.start()?;
        let vm = registry.add_vm(ptr::null_mut(), state::RETIRED)?;
        let sum = registry.add_slot(0, 0, vm, state::RETIRED)?;
        registry.sum = Some(sum);
        // SAFETY: a slot, which is what the variable holds; it is of no vCPU, so every hint is wrong at first.
        unsafe { ffi::exitscope_set_current(ptr::from_ref(sum).cast()) };
        Some(())
    });
    if started.is_none() {
        stop();
    }
    started
}

/// Marks a vCPU as finished; its address may be used for another from now on.
pub fn finish(vcpu: *mut c_void) {
    with_lock(|registry| registry.finish(vcpu));
    repeat_under_lock(Registry::fold_retired);
}

/// Frees everything. No event can be under way, and nobody else is here.
pub fn stop() {
    // SAFETY: as this function's; so interrupts stay on while all the memory is freed.
    let registry = unsafe { &mut *REGISTRY.0.get() };
    TABLE.iter().for_each(|link| link.store(ptr::null_mut(), Relaxed));
    NEWEST_SLOT.store(ptr::null_mut(), Relaxed);
    registry.live.fill(ptr::null_mut());
    (registry.finished, registry.retired) = (Queue::EMPTY, Queue::EMPTY);
    (registry.sum, registry.finished_vcpus) = (None, 0);
    registry.slots.stop();
    registry.vms.stop();
    registry.policies.stop();
    registry.pool.stop();
}

/// All slots that there are, in use or free, the newest first; that of the sum of retired VMs is the last. The list only
/// ever grows at its beginning, so it may be followed without the lock.
pub fn slots() -> impl Iterator<Item = &'static Slot> + Clone {
    // SAFETY: links are null or slots, which live until `stop`.
    let follow = |slot: *mut Slot| unsafe { slot.as_ref() };
    let first = NEWEST_SLOT.load(Acquire);
    const { assert!(Records::<Slot>::PER_PAGE == 1) }
    core::iter::successors(follow(first), move |slot| follow(slot.next_page().load(Acquire)))
}

impl Registry {
    fn enroll(&mut self, vcpu: *mut c_void, isa: Isa) -> Option<&'static Slot> {
        let slot = self.try_enroll(vcpu, isa);
        if slot.is_none() {
            ENROLLING.begin();
        }
        slot
    }

    fn try_enroll(&mut self, vcpu: *mut c_void, isa: Isa) -> Option<&'static Slot> {
        if let Some(header) = cells::header() {
            header.isa.store(isa as u32, Relaxed);
        }
        // SAFETY: the vCPU is alive, its event is being handled.
        let (kvm, id, thread) = unsafe {
            (ffi::vcpu_vm(vcpu).read(), ffi::vcpu_id(vcpu).read(), ffi::exitscope_current_thread())
        };
        let known = self.live_vm(kvm);
        let vm = match known {
            Some(vm) => vm,
            None => self.add_vm(kvm, state::LIVE)?,
        };
        let Some(slot) = self.add_slot(id, thread, vm, state::LIVE) else {
            if known.is_none() {
                self.unlink_vm(vm);
                self.free_vm(vm);
            }
            return None;
        };
        slot.vcpu.store(vcpu, Release);
        let bucket = bucket(vcpu);
        slot.next.store(bucket.load(Relaxed), Relaxed);
        bucket.store(ptr::from_ref(slot).cast_mut(), Release);
        Some(slot)
    }

    /// The VM that KVM has at this address, if it is known.
    fn live_vm(&self, kvm: *mut c_void) -> Option<&'static Vm> {
        // SAFETY: links are null or VMs, which live until `stop`, and the lock is held.
        let follow = |vm: *mut Vm| unsafe { vm.as_ref() };
        let chain = follow(*self.live.get(bucket_of(kvm))?);
        // SAFETY: as above.
        core::iter::successors(chain, |vm| follow(unsafe { vm.locked().next }))
            .find(|vm| unsafe { vm.locked().kvm } == kvm)
    }

    /// Adds a VM: one of KVM's, or, without an address, the sum of retired ones.
    fn add_vm(&mut self, kvm: *mut c_void, state: u16) -> Option<&'static Vm> {
        let id = if kvm.is_null() { 0 } else { self.last_id + 1 };
        // SAFETY: asks for the process that runs, which is a VMM's: KVM wants the same memory as at the VM's creation.
        let pid = if kvm.is_null() { 0 } else { unsafe { ffi::exitscope_current_process() } };
        let cell = self.pool.alloc_vm(id, pid, state)?;
        let Some(vm) = self.vms.take() else {
            self.pool.free(cell);
            return None;
        };
        self.last_id = id;
        let locked = VmLocked { id, kvm, cell, live: 0, finished: 0, next: ptr::null_mut() };
        // SAFETY: the lock is held, and the VM has no slots and is in no list.
        unsafe { vm.reset(locked) };
        if let Some(expose) = self.policies.of_current().filter(|_| !kvm.is_null()) {
            vm.set_expose(Some(expose));
        }
        if !kvm.is_null()
            && let Some(chain) = self.live.get_mut(bucket_of(kvm))
        {
            // SAFETY: as above.
            unsafe { vm.locked().next = *chain };
            *chain = ptr::from_ref(vm).cast_mut();
        }
        Some(vm)
    }

    /// Takes a VM out of the table of live ones.
    fn unlink_vm(&mut self, vm: &Vm) {
        // SAFETY: the lock is held; links are null or VMs.
        unsafe {
            let VmLocked { kvm, next, .. } = *vm.locked();
            let Some(mut link) = self.live.get_mut(bucket_of(kvm)).map(ptr::from_mut) else { return };
            while let Some(other) = (*link).as_ref() {
                if ptr::eq(other, vm) {
                    *link = next;
                    return;
                }
                link = &raw mut other.locked().next;
            }
        }
    }

    fn add_slot(&mut self, id: u32, thread: u32, vm: &'static Vm, state: u16) -> Option<&'static Slot> {
        // SAFETY: the lock is held.
        let locked = unsafe { vm.locked() };
        let cell = self.pool.alloc_vcpu(locked.cell, id, thread, state)?;
        let Some(overflow) = self.pool.alloc_counters(kind::OVERFLOW, cell, 0) else {
            self.pool.free(cell);
            return None;
        };
        let taken = self.slots.take();
        NEWEST_SLOT.store(self.slots.newest_page(), Release);
        let Some(slot) = taken else {
            self.pool.free(cell);
            self.pool.free(overflow.0);
            return None;
        };
        // SAFETY: the slot has no vCPU, and the lock is held.
        unsafe { slot.reset(vm, id, cell, overflow) };
        slot.sibling.store(vm.slots.load(Relaxed), Relaxed);
        vm.slots.store(ptr::from_ref(slot).cast_mut(), Release);
        locked.live += 1;
        Some(slot)
    }

    /// Gives a place its own counters; the overflow counters for now where memory is short.
    fn install(&mut self, slot: &Slot, place: usize, code: u32) -> Option<&'static Counters> {
        let owner = slot.cell.load(Relaxed);
        match self
            .has_room_beside_reserve(1)
            .then(|| self.pool.alloc_counters(kind::COUNTERS, owner, code))
            .flatten()
        {
            Some((number, counters)) => {
                slot.install(place, (number, counters));
                let count = &slot.vm().counters;
                count.store(count.load(Relaxed) + 1, Relaxed);
                Some(counters)
            }
            None => {
                INSTALLING.begin();
                cells::set_overflowed();
                slot.overflow()
            }
        }
    }

    /// Whether so many cells are free beside those that are kept for new vCPUs.
    pub fn has_room_beside_reserve(&self, cells: usize) -> bool {
        !self.pool.is_full(cells::reserved_for_vcpus() + cells)
    }

    /// A step towards so many free cells, by those of finished VMs, oldest first. `None` where it is not needed, or not
    /// possible.
    fn make_room(&mut self, cells: usize) -> Option<()> {
        if !self.pool.is_full(cells) {
            return None;
        }
        self.fold_retired().or_else(|| self.retire_oldest())
    }

    fn finish(&mut self, vcpu: *mut c_void) {
        let Some(slot) = find(vcpu) else { return };
        let mut link = bucket(vcpu);
        // SAFETY: links are null or slots; the slot is in this chain, so the walk ends at it.
        while let Some(other) = unsafe { link.load(Relaxed).as_ref() } {
            if ptr::eq(other, slot) {
                link.store(slot.next.load(Relaxed), Release);
                break;
            }
            link = &other.next;
        }
        slot.vcpu.store(ptr::null_mut(), Relaxed);
        if let Some(cell) = slot.vcpu_cell() {
            cell.head.state.store(state::FINISHED, Release);
        }
        let vm = slot.vm();
        // SAFETY: the lock is held.
        let locked = unsafe { vm.locked() };
        locked.live -= 1;
        locked.finished += 1;
        self.finished_vcpus += 1;
        if locked.live == 0 {
            self.unlink_vm(vm);
            locked.kvm = ptr::null_mut();
            if let Some(cell) = cells::vm(locked.cell) {
                cell.head.state.store(state::FINISHED, Release);
            }
            self.finished.push(vm);
        }
        while self.finished_vcpus > MAX_FINISHED && self.retire_oldest().is_some() {}
    }

    /// Makes the VM that finished first one that is retired: from now on it is a part of the sum of these, and its room
    /// can be taken.
    fn retire_oldest(&mut self) -> Option<()> {
        let vm = self.finished.pop()?;
        // SAFETY: the lock is held.
        let &mut VmLocked { finished, cell, .. } = unsafe { vm.locked() };
        self.finished_vcpus -= finished;
        if let Some(cell) = cells::vm(cell) {
            cell.head.state.store(state::RETIRED, Release);
        }
        self.retired.push(vm);
        Some(())
    }

    /// Folds a part of one vCPU of the VM that was retired first into the sum, a word of its accounts, as interrupts are
    /// off. With its last part the vCPU is freed, with its last vCPU the VM.
    fn fold_retired(&mut self) -> Option<()> {
        let sum = self.sum?;
        let vm = self.retired.first()?;
        cells::note_move();
        if let Some(slot) = vm.slots().next() {
            if let Some(word) = slot.owned_word() {
                slot.owned_in(word).for_each(|place| self.fold_account(slot, place, sum));
                slot.disown(word);
            }
            if slot.owned_word().is_none() {
                vm.slots.store(slot.sibling.load(Relaxed), Release);
                self.fold_vcpu(slot, sum);
            }
        }
        if vm.slots().next().is_none() {
            self.retired.pop();
            self.free_vm(vm);
        }
        cells::note_move();
        Some(())
    }

    /// Adds an account to that of the sum: its cell becomes the sum's, or is added to the sum's and freed.
    fn fold_account(&mut self, slot: &Slot, place: usize, sum: &Slot) {
        let (Some(counters), Some(cell)) = (slot.get(place), slot.cells.get(place)) else { return };
        let cell = cell.load(Relaxed);
        if place < MAX_REASONS && !sum.owns(place) {
            counters.head.owner.store(sum.cell.load(Relaxed), Relaxed);
            sum.install(place, (cell, counters));
            if let (Some(from), Some(into)) = (slot.baselines.get(place), sum.baselines.get(place)) {
                into.store(from.load(Relaxed), Relaxed);
            }
            return;
        }
        let target = if sum.owns(place) { place } else { OVERFLOW };
        if let Some(into) = sum.get(target) {
            absorb(into, counters);
        }
        self.pool.free(cell);
        self.fold_baseline(slot, place, sum, target);
    }

    /// Adds what a vCPU has besides its accounts to the sum, and frees it.
    fn fold_vcpu(&mut self, slot: &Slot, sum: &Slot) {
        if let (Some(from), Some(into)) = (slot.vcpu_cell(), sum.vcpu_cell()) {
            for (into, from) in [(&into.unannounced, &from.unannounced), (&into.backwards, &from.backwards)] {
                into.store(into.load(Relaxed).wrapping_add(from.load(Relaxed)), Relaxed);
            }
        }
        self.pool.free(slot.cell.load(Relaxed));
        self.slots.give(slot);
    }

    /// Frees a VM that is in no list.
    fn free_vm(&mut self, vm: &Vm) {
        // SAFETY: the lock is held.
        let locked = unsafe { vm.locked() };
        self.pool.free(locked.cell);
        // A slot may refer to it until that is used again.
        (locked.id, locked.kvm, locked.cell) = (0, ptr::null_mut(), 0);
        self.vms.give(vm);
    }

    /// Adds a baseline to that of the account which its counters were added to.
    fn fold_baseline(&mut self, slot: &Slot, place: usize, retired: &Slot, target: usize) {
        let cell = slot.baselines.get(place).map_or(0, |cell| cell.load(Relaxed));
        // Room is there: the cell of the counters has just become free.
        if cell != 0
            && let (Some(from), Some(into)) = (cells::counters(cell), self.baseline(retired, target))
        {
            absorb(into, from);
            self.pool.free(cell);
        }
    }

    /// The baseline of an account, which is zero if it has just been made.
    pub fn baseline(&mut self, slot: &Slot, place: usize) -> Option<&'static Counters> {
        let (cell, counters) = (slot.baselines.get(place)?, slot.cells.get(place)?);
        match cell.load(Relaxed) {
            0 => {
                let code = slot.get(place)?.head.code.load(Relaxed);
                let taken = self.pool.alloc_counters(kind::BASELINE, counters.load(Relaxed), code)?;
                cell.store(taken.0, Relaxed);
                Some(taken.1)
            }
            number => cells::counters(number),
        }
    }
}
