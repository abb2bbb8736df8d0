//! The registry: every vCPU that has had an exit, its VM, and where its counters are.
//!
//! A hash table finds a vCPU's [`Slot`] by the vCPU's address, without a lock. Whatever changes the table or allocates
//! memory holds the module's one lock, and is not on the exit path. Slots and VMs are reused, and freed only when the
//! module is unloaded. So a lookup without the lock may at worst walk into another chain and miss its slot; it is then
//! repeated under the lock.

use core::arch::x86_64::_rdtsc;
use core::cell::UnsafeCell;
use core::ffi::{c_ulong, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU64};

use exitscope_abi::leaf::{Expose, Reasons, Scope};
use exitscope_abi::reason::{Isa, MAX_REASONS};
use exitscope_abi::region::{Counters, EXPOSE_AS_MODULE, kind, state};
use exitscope_core::{Accounts, Place, Sum, Table, absorb, copy, locate};

use crate::cells::{self, Pool};
use crate::clock::ticks;
use crate::ffi;
use crate::slot::{OVERFLOW, Slot, Vm, VmLocked};

/// Finished vCPUs whose numbers are kept.
const MAX_FINISHED: u32 = 256;
/// Retired vCPUs that are folded into the sum when a vCPU ends: more than one, so that the backlog of a large VM goes
/// down, and few, as interrupts are off for each.
const RETIRED_AT_ONCE: u32 = 4;
/// Cells that are reserved for baselines at once, for the same reason.
const RESERVED_AT_ONCE: usize = 256;
/// How long an allocation that failed is not tried again, in ns.
const BACK_OFF_NS: u64 = 10_000_000;
/// Cells that a VM needs to be known: its own, those of a vCPU and of its overflow counters.
const FIRST_CELLS: usize = 3;
const BUCKETS: usize = 4096;

/// The hash table: chains of slots, linked through [`Slot::next`].
static TABLE: [AtomicPtr<Slot>; BUCKETS] = [const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS];

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
        with_lock(|registry| registry.vms().for_each(|vm| vm.add_to(&mut sum, self.1, reasons)));
        if let (Reasons::All | Reasons::Undefined, Some(header)) = (reasons, cells::header()) {
            sum.add_exits(header.unaccounted.load(Relaxed));
        }
        sum
    }
}

/// Everything that the lock protects.
struct Registry {
    pool: Pool,
    /// VMs, newest first; finished ones stay until they are retired, and these until their room is needed. The last is
    /// the sum of the others that were retired.
    vms: *mut Vm,
    free_vms: *mut Vm,
    free_slots: *mut Slot,
    /// All allocated slots, linked through [`Slot::next_allocated`].
    slots: *mut Slot,
    retired: Option<&'static Slot>,
    /// Finished vCPUs that are not retired.
    finished: u32,
    last_id: u64,
}

/// The registry, which the lock protects.
struct LockedRegistry(UnsafeCell<Registry>);
// SAFETY: `with_lock` is the only access.
unsafe impl Sync for LockedRegistry {}

static REGISTRY: LockedRegistry = LockedRegistry(UnsafeCell::new(Registry {
    pool: Pool::new(),
    vms: ptr::null_mut(),
    free_vms: ptr::null_mut(),
    free_slots: ptr::null_mut(),
    slots: ptr::null_mut(),
    retired: None,
    finished: 0,
    last_id: 0,
}));

/// Does the work with the lock held and interrupts off.
fn with_lock<T>(work: impl FnOnce(&mut Registry) -> T) -> T {
    // SAFETY: no precondition; nothing below takes the lock again.
    let flags: c_ulong = unsafe { ffi::exitscope_lock() };
    // SAFETY: the lock is held.
    let result = work(unsafe { &mut *REGISTRY.0.get() });
    // SAFETY: `flags` came from the lock.
    unsafe { ffi::exitscope_unlock(flags) };
    result
}

#[inline]
fn bucket(vcpu: *mut c_void) -> &'static AtomicPtr<Slot> {
    // Multiplicative hashing on the low 32 bits, whose upper 12 bits choose among BUCKETS chains.
    &TABLE[((vcpu as u32).wrapping_mul(0x9E37_79B1) >> 20) as usize % BUCKETS]
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

/// The time stamp counter when an allocation failed last. The next one waits for a while: otherwise every exit of every
/// vCPU without an account would take the lock.
static BACK_OFF_SINCE: AtomicU64 = AtomicU64::new(0);

/// Starts the back-off.
fn back_off() {
    // SAFETY: RDTSC is always there.
    BACK_OFF_SINCE.store(unsafe { _rdtsc() }, Relaxed);
}

/// Whether an allocation failed a short while ago. Compares a difference and not a deadline: a deadline may never come,
/// as a machine that was suspended starts its counter again.
fn backing_off() -> bool {
    // SAFETY: RDTSC is always there.
    unsafe { _rdtsc() }.wrapping_sub(BACK_OFF_SINCE.load(Relaxed)) < ticks(BACK_OFF_NS)
}

/// The slot of a vCPU whose event is being handled, made if it has none. `None` when memory is short: the exit is
/// counted as unaccounted.
pub fn enroll(vcpu: *mut c_void, isa: Isa) -> Option<&'static Slot> {
    let enroll = |registry: &mut Registry| find(vcpu).or_else(|| registry.enroll(vcpu, isa));
    let slot = if backing_off() { None } else { with_lock(enroll) };
    if slot.is_none() {
        cells::count_unaccounted();
    }
    slot
}

/// The counters of a code, made if this is its first exit; the overflow counters where there is no room.
pub fn counters(slot: &Slot, isa: Isa, code: u32) -> Option<&'static Counters> {
    match locate(slot, isa, code) {
        Place::Found(counters) => Some(counters),
        Place::Empty(_) if backing_off() => slot.overflow(),
        Place::Empty(place) => with_lock(|registry| registry.install(slot, place, code)),
        Place::Full => slot.overflow(),
    }
}

/// As [`find`], and again under the lock if that finds nothing: then there is no such slot. During a back-off the lock is
/// not taken, and a slot may be missed.
pub fn find_locked(vcpu: *mut c_void) -> Option<&'static Slot> {
    find(vcpu).or_else(|| if backing_off() { None } else { with_lock(|_| find(vcpu)) })
}

/// Prepares the region and the account of retired VMs.
pub fn start() -> Option<()> {
    let started = with_lock(|registry| {
        registry.pool.start()?;
        let vm = registry.add_vm(ptr::null_mut(), state::RETIRED)?;
        let retired = registry.add_slot(0, 0, vm, state::RETIRED)?;
        registry.retired = Some(retired);
        // SAFETY: a slot, which is what the variable holds; it is of no vCPU, so every hint is wrong at first.
        unsafe { ffi::exitscope_set_current(ptr::from_ref(retired).cast()) };
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
    for _ in 0..RETIRED_AT_ONCE {
        if with_lock(Registry::fold_retired_vcpu).is_none() {
            break;
        }
    }
}

/// Frees everything. No event can be under way.
pub fn stop() {
    with_lock(|registry| {
        TABLE.iter().for_each(|link| link.store(ptr::null_mut(), Relaxed));
        registry.retired = None;
        registry.finished = 0;
        free_chain(&mut registry.slots, |slot| slot.next_allocated.load(Relaxed));
        registry.free_slots = ptr::null_mut();
        // SAFETY: the lock is held.
        let next = |vm: &Vm| unsafe { vm.locked().next };
        free_chain(&mut registry.vms, next);
        free_chain(&mut registry.free_vms, next);
        registry.pool.stop();
    });
}

fn free_chain<T>(first: &mut *mut T, next: impl Fn(&T) -> *mut T) {
    while let Some(memory) = NonNull::new(*first) {
        // SAFETY: chains link allocated, initialised objects that nobody else uses any more.
        unsafe {
            *first = next(memory.as_ref());
            ffi::exitscope_free(memory.as_ptr().cast());
        }
    }
}

impl Registry {
    fn vms(&self) -> impl Iterator<Item = &'static Vm> + use<> {
        // SAFETY: VMs live until `stop`, and the lock is held as long as there is a Registry.
        let follow = |vm: *mut Vm| unsafe { vm.as_ref() };
        // SAFETY: as above.
        core::iter::successors(follow(self.vms), move |vm| follow(unsafe { vm.locked().next }))
    }

    fn enroll(&mut self, vcpu: *mut c_void, isa: Isa) -> Option<&'static Slot> {
        self.reclaim(FIRST_CELLS);
        let slot = self.try_enroll(vcpu, isa);
        if slot.is_none() {
            back_off();
        }
        slot
    }

    fn try_enroll(&mut self, vcpu: *mut c_void, isa: Isa) -> Option<&'static Slot> {
        if let Some(header) = cells::header() {
            header.isa.store(isa as u32, Relaxed);
        }
        // SAFETY: the vCPU is alive, its event is being handled.
        let (kvm, id, thread) = unsafe {
            (ffi::exitscope_vcpu_vm(vcpu), ffi::exitscope_vcpu_id(vcpu), ffi::exitscope_current_thread())
        };
        // SAFETY: the lock is held.
        let known = self.vms().find(|vm| unsafe { vm.locked().kvm } == kvm);
        let vm = match known {
            Some(vm) => vm,
            None => self.add_vm(kvm, state::LIVE)?,
        };
        let Some(slot) = self.add_slot(id, thread, vm, state::LIVE) else {
            if known.is_none() {
                self.undo_add_vm();
            }
            return None;
        };
        slot.vcpu.store(vcpu, Release);
        let bucket = bucket(vcpu);
        slot.next.store(bucket.load(Relaxed), Relaxed);
        bucket.store(ptr::from_ref(slot).cast_mut(), Release);
        Some(slot)
    }

    fn add_vm(&mut self, kvm: *mut c_void, state: u16) -> Option<&'static Vm> {
        let id = if kvm.is_null() { 0 } else { self.last_id + 1 };
        // SAFETY: KVM's VM lives as long as its vCPU.
        let pid = if kvm.is_null() { 0 } else { unsafe { ffi::exitscope_vm_pid(kvm) } };
        let cell = self.pool.alloc_vm(id, pid, state)?;
        // SAFETY: the lock is held.
        let Some(memory) = allocate(&mut self.free_vms, |vm: &Vm| unsafe { vm.locked().next }) else {
            self.pool.free(cell);
            return None;
        };
        self.last_id = id;
        let locked = VmLocked { id, kvm, cell, live: 0, finished: 0, retired: false, next: self.vms };
        // SAFETY: allocated for a VM, and not yet known to anyone.
        unsafe { memory.write(Vm::new(locked)) };
        self.vms = memory.as_ptr();
        // SAFETY: just written; VMs live until `stop`.
        Some(unsafe { memory.as_ref() })
    }

    /// Undoes the last [`Registry::add_vm`].
    fn undo_add_vm(&mut self) {
        // SAFETY: the lock is held; links are null or VMs.
        let Some(vm) = (unsafe { self.vms.as_ref() }) else { return };
        // SAFETY: as above.
        self.vms = unsafe { vm.locked().next };
        self.free_vm(vm);
    }

    fn add_slot(&mut self, id: u32, thread: u32, vm: &'static Vm, state: u16) -> Option<&'static Slot> {
        // SAFETY: the lock is held.
        let locked = unsafe { vm.locked() };
        let cell = self.pool.alloc_vcpu(locked.cell, id, thread, state)?;
        let Some(overflow) = self.pool.alloc_counters(kind::OVERFLOW, cell, 0) else {
            self.pool.free(cell);
            return None;
        };
        let Some(slot) = self.alloc_slot() else {
            self.pool.free(cell);
            self.pool.free(overflow.0);
            return None;
        };
        // SAFETY: the slot has no vCPU, and the lock is held.
        unsafe { slot.reset(vm, cell, overflow) };
        slot.sibling.store(vm.slots.load(Relaxed), Relaxed);
        vm.slots.store(ptr::from_ref(slot).cast_mut(), Release);
        locked.live += 1;
        Some(slot)
    }

    /// A slot without a vCPU: one that was used before, or a new one.
    fn alloc_slot(&mut self) -> Option<&'static Slot> {
        let fresh = self.free_slots.is_null();
        let memory = allocate(&mut self.free_slots, |slot: &Slot| slot.sibling.load(Relaxed))?;
        if fresh {
            // SAFETY: allocated for a slot, and known to nobody.
            unsafe { memory.write(Slot::empty()) };
            // SAFETY: just written.
            unsafe { memory.as_ref() }.next_allocated.store(self.slots, Relaxed);
            self.slots = memory.as_ptr();
        }
        // SAFETY: initialised; slots live until `stop`.
        Some(unsafe { memory.as_ref() })
    }

    /// Gives a place its own counters; the overflow counters for now where memory is short.
    fn install(&mut self, slot: &Slot, place: usize, code: u32) -> Option<&'static Counters> {
        self.reclaim(1);
        match self.pool.alloc_counters(kind::COUNTERS, slot.cell.load(Relaxed), code) {
            Some((number, counters)) => {
                slot.install(place, (number, counters));
                Some(counters)
            }
            None => {
                back_off();
                cells::set_overflowed();
                slot.overflow()
            }
        }
    }

    /// Frees cells of finished VMs, oldest first, where no others are left.
    fn reclaim(&mut self, cells: usize) {
        while self.pool.is_full(cells)
            && (self.fold_retired_vcpu().is_some() || self.retire_oldest().is_some())
        {}
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
        // SAFETY: the lock is held.
        let vm = unsafe { slot.vm().locked() };
        vm.live -= 1;
        vm.finished += 1;
        self.finished += 1;
        if vm.live == 0 {
            vm.kvm = ptr::null_mut();
            if let Some(cell) = cells::vm(vm.cell) {
                cell.head.state.store(state::FINISHED, Release);
            }
        }
        while self.finished > MAX_FINISHED && self.retire_oldest().is_some() {}
    }

    /// The link to the VM that was seen first among those of which this holds.
    fn oldest(&mut self, which: impl Fn(&VmLocked) -> bool) -> Option<(*mut *mut Vm, &'static Vm)> {
        let mut oldest = None;
        let mut link = &raw mut self.vms;
        // SAFETY: the lock is held, links are null or VMs.
        while let Some(vm) = unsafe { (*link).as_ref() } {
            // SAFETY: as above.
            let locked = unsafe { vm.locked() };
            if which(locked) {
                oldest = Some((link, vm));
            }
            link = &raw mut locked.next;
        }
        oldest
    }

    /// Makes the oldest finished VM one that is retired: from now on it is a part of the sum of these, and its room can
    /// be taken.
    fn retire_oldest(&mut self) -> Option<()> {
        let (_, vm) = self.oldest(|vm| vm.live == 0 && !vm.retired)?;
        // SAFETY: the lock is held.
        let locked = unsafe { vm.locked() };
        locked.retired = true;
        self.finished -= locked.finished;
        cells::vm(locked.cell)?.head.state.store(state::RETIRED, Release);
        Some(())
    }

    /// Folds one vCPU of the oldest retired VM into the sum, and frees it; with the last one the VM, too.
    fn fold_retired_vcpu(&mut self) -> Option<()> {
        let sum = self.retired?;
        let (link, vm) = self.oldest(|vm| vm.live == 0 && vm.retired)?;
        cells::note_move();
        let slot = vm.slots().next();
        if let Some(slot) = slot {
            vm.slots.store(slot.sibling.load(Relaxed), Release);
            self.fold_vcpu(slot, sum);
        }
        if vm.slots().next().is_none() {
            // SAFETY: the lock is held; `link` is the one that leads to `vm`.
            unsafe { *link = vm.locked().next };
            self.free_vm(vm);
        }
        cells::note_move();
        Some(())
    }

    /// Adds what a vCPU has to the sum of retired ones: its cells become the sum's, or are added to the sum's and freed.
    fn fold_vcpu(&mut self, slot: &Slot, sum: &Slot) {
        if let (Some(from), Some(into)) = (slot.vcpu_cell(), sum.vcpu_cell()) {
            for (into, from) in [(&into.unannounced, &from.unannounced), (&into.backwards, &from.backwards)] {
                into.store(into.load(Relaxed).wrapping_add(from.load(Relaxed)), Relaxed);
            }
        }
        for place in slot.owned() {
            let (Some(counters), Some(cell)) = (slot.get(place), slot.cells.get(place)) else { continue };
            let cell = cell.load(Relaxed);
            if place < MAX_REASONS && !sum.owns(place) {
                counters.head.owner.store(sum.cell.load(Relaxed), Relaxed);
                sum.install(place, (cell, counters));
                if let (Some(from), Some(into)) = (slot.baselines.get(place), sum.baselines.get(place)) {
                    into.store(from.load(Relaxed), Relaxed);
                }
                continue;
            }
            let target = if sum.owns(place) { place } else { OVERFLOW };
            if let Some(into) = sum.get(target) {
                absorb(into, counters);
            }
            self.pool.free(cell);
            self.fold_baseline(slot, place, sum, target);
        }
        self.pool.free(slot.cell.load(Relaxed));
        self.free_slot(slot);
    }

    fn free_slot(&mut self, slot: &Slot) {
        slot.sibling.store(self.free_slots, Relaxed);
        self.free_slots = ptr::from_ref(slot).cast_mut();
    }

    /// Frees a VM that is in no list.
    fn free_vm(&mut self, vm: &Vm) {
        // SAFETY: the lock is held.
        let locked = unsafe { vm.locked() };
        self.pool.free(locked.cell);
        locked.next = self.free_vms;
        self.free_vms = ptr::from_ref(vm).cast_mut();
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
    fn baseline(&mut self, slot: &Slot, place: usize) -> Option<&'static Counters> {
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

/// Sets whose exits the guest of a live VM is told; `None` leaves that to the module's parameter. False when there is
/// no such VM.
pub fn set_expose(id: u64, expose: Option<Expose>) -> bool {
    with_lock(|registry| {
        // SAFETY: the lock is held.
        let mut all = registry.vms().map(|vm| (vm, unsafe { vm.locked() }));
        let Some((vm, locked)) = all.find(|(_, locked)| locked.id == id && !locked.kvm.is_null()) else {
            return false;
        };
        vm.set_expose(expose);
        if let Some(cell) = cells::vm(locked.cell) {
            cell.expose.store(expose.map_or(EXPOSE_AS_MODULE, |expose| expose as u32), Relaxed);
        }
        true
    })
}

/// Copies every account to its baseline, one vCPU after the other, so that the lock is not held for long. False where
/// memory is short; then nothing has been done, unless other VMs took the memory meanwhile. One call at a time.
pub fn reset() -> bool {
    loop {
        match with_lock(Registry::reserve_baselines) {
            Some(true) => break,
            Some(false) => {}
            None => return false,
        }
    }
    cells::note_reset();
    let done = reset_all();
    cells::note_reset();
    done.is_some()
}

fn reset_all() -> Option<()> {
    let mut below = u64::MAX;
    while let Some(id) = with_lock(|registry| registry.newest_below(below)) {
        let mut number = 0;
        while with_lock(|registry| registry.reset_vcpu(id, number))? {
            number += 1;
        }
        below = id;
    }
    Some(())
}

impl Registry {
    /// Gets some of the room for baselines that are missing; whether it is enough.
    fn reserve_baselines(&mut self) -> Option<bool> {
        let missing = |slot: &'static Slot| {
            let has = |place: &usize| slot.baselines.get(*place).is_some_and(|cell| cell.load(Relaxed) != 0);
            slot.owned().filter(move |place| !has(place)).count()
        };
        let missing: usize = self.vms().flat_map(Vm::slots).map(missing).sum();
        let some = self.pool.free_cells().saturating_add(RESERVED_AT_ONCE);
        self.pool.reserve(missing.min(some))?;
        Some(missing <= some)
    }

    /// The greatest number of a VM below that one; the list is in descending order, and ends with 0 for retired VMs.
    fn newest_below(&mut self, below: u64) -> Option<u64> {
        // SAFETY: the lock is held.
        self.vms().map(|vm| unsafe { vm.locked().id }).find(|&id| id < below)
    }

    /// Resets a vCPU of a VM; false when there are not so many. They are counted from the end, as slots come and go at the
    /// beginning.
    fn reset_vcpu(&mut self, id: u64, number: usize) -> Option<bool> {
        // SAFETY: the lock is held.
        let vm = self.vms().find(|vm| unsafe { vm.locked().id } == id);
        let slot = vm.and_then(|vm| vm.slots().nth(vm.slots().count().checked_sub(number + 1)?));
        let Some(slot) = slot else { return Some(false) };
        for place in slot.owned() {
            let counters = slot.get(place)?;
            copy(self.baseline(slot, place)?, counters);
        }
        Some(true)
    }
}

/// Room for a `T`: one that is free, or new memory (of zeroes).
fn allocate<T>(free: &mut *mut T, next: impl Fn(&T) -> *mut T) -> Option<NonNull<T>> {
    if let Some(memory) = NonNull::new(*free) {
        // SAFETY: free objects are initialised and linked.
        *free = next(unsafe { memory.as_ref() });
        return Some(memory);
    }
    const { assert!(align_of::<T>() == 64) }
    // SAFETY: no precondition; the memory is aligned, as the size is a multiple of 64.
    NonNull::new(unsafe { ffi::exitscope_alloc(size_of::<T>()) }.cast())
}
