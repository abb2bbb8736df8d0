//! Who is who: every vCPU that has shown an exit, its VM, and where its counters are.
//!
//! A vCPU's [`Slot`] is found by its address in a hash table without a lock; what changes the table or hands out
//! memory does so under the module's one lock, off the exit path. Slots and VMs are never freed before the module
//! goes, only used again, so a reader without the lock may at worst walk into a chain that is not its own, not
//! find what it seeks, and ask again under the lock.

use core::cell::UnsafeCell;
use core::ffi::{c_ulong, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32};

use exitscope_abi::leaf::Scope;
use exitscope_abi::reason::{Isa, MAX_REASONS};
use exitscope_abi::region::{CODE_OVERFLOW, Counters, state};
use exitscope_core::{Figured, Place, SLOTS, Sum, Table, Timer, absorb, locate};

use crate::cells::{self, Number, Pool};
use crate::ffi;
use crate::probe::Asked;

/// Finished vCPUs whose numbers are kept.
const MAX_FINISHED: u32 = 256;
const BUCKETS: usize = 4096;

/// The hash table: chains of slots, linked through [`Slot::next`].
static TABLE: [AtomicPtr<Slot>; BUCKETS] = [const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS];

/// One vCPU.
#[repr(C, align(64))]
pub struct Slot {
    /// KVM's vCPU; null when it is destroyed.
    vcpu: AtomicPtr<c_void>,
    next: AtomicPtr<Slot>,
    timer: UnsafeCell<Timer<'static>>,
    asked: UnsafeCell<Option<Asked>>,
    overflow: AtomicPtr<Counters>,
    places: [AtomicPtr<Counters>; SLOTS],
    /// The next vCPU of the same VM, or the next free slot.
    sibling: AtomicPtr<Slot>,
    vm: AtomicPtr<Vm>,
    cell: AtomicU32,
    overflow_cell: AtomicU32,
    /// The cells of the counters in `places`.
    cells: [AtomicU32; SLOTS],
    /// The next slot that was ever allocated.
    elder: AtomicPtr<Slot>,
}

// SAFETY: `timer` and `asked` are touched only by the CPU that handles the vCPU's events, or under the lock while
// the slot has no vCPU; the rest is atomic, as CPUs may look at a slot that is being given to another vCPU.
unsafe impl Sync for Slot {}

impl Table<'static> for Slot {
    #[inline]
    fn get(&self, place: usize) -> Option<&'static Counters> {
        // SAFETY: a place is null or counters of the region, which live until `stop`.
        unsafe { self.places.get(place)?.load(Acquire).as_ref() }
    }
}

impl Slot {
    const fn empty() -> Self {
        Self {
            vcpu: AtomicPtr::new(ptr::null_mut()),
            next: AtomicPtr::new(ptr::null_mut()),
            timer: UnsafeCell::new(Timer::new()),
            asked: UnsafeCell::new(None),
            overflow: AtomicPtr::new(ptr::null_mut()),
            places: [const { AtomicPtr::new(ptr::null_mut()) }; SLOTS],
            sibling: AtomicPtr::new(ptr::null_mut()),
            vm: AtomicPtr::new(ptr::null_mut()),
            cell: AtomicU32::new(0),
            overflow_cell: AtomicU32::new(0),
            cells: [const { AtomicU32::new(0) }; SLOTS],
            elder: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Counters of exits that have none of their own.
    fn overflow(&self) -> &'static Counters {
        // SAFETY: set before a slot is published, to counters that live until `stop`.
        unsafe { &*self.overflow.load(Acquire) }
    }

    fn vm(&self) -> &'static Vm {
        // SAFETY: set before a slot is published; VMs live until `stop`.
        unsafe { &*self.vm.load(Acquire) }
    }

    /// Whether this is the slot of that vCPU.
    #[inline(always)]
    pub fn is_of(&self, vcpu: *mut c_void) -> bool {
        self.vcpu.load(Relaxed) == vcpu
    }

    /// The vCPU's clock.
    ///
    /// # Safety
    /// Only for the handler of the vCPU's own events, which never runs twice at a time.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn timer(&self) -> &mut Timer<'static> {
        // SAFETY: the caller is the only one who touches it.
        unsafe { &mut *self.timer.get() }
    }

    /// The question that the guest has asked in the exit that is open.
    ///
    /// # Safety
    /// As for [`Slot::timer`].
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn asked(&self) -> &mut Option<Asked> {
        // SAFETY: the caller is the only one who touches it.
        unsafe { &mut *self.asked.get() }
    }

    /// The counters of a code, made if this is its first exit.
    #[inline]
    pub fn counters(&self, isa: Isa, code: u32) -> &'static Counters {
        match locate(self, isa, code) {
            Place::Found(counters) => counters,
            Place::Empty(place) => self.admit(place, code),
            Place::Full => self.overflow(),
        }
    }

    #[cold]
    fn admit(&self, place: usize, code: u32) -> &'static Counters {
        with(|registry| registry.install(self, place, code)).unwrap_or_else(|| self.overflow())
    }

    fn all(&self) -> impl Iterator<Item = &'static Counters> {
        (0..SLOTS).filter_map(|place| self.get(place)).chain([self.overflow()])
    }

    fn add_to(&self, sum: &mut Sum, isa: Isa, scope: Scope) {
        match scope {
            Scope::Nothing => {}
            Scope::All => self.all().for_each(|counters| sum.add(counters)),
            Scope::Reason(code) => {
                if let Some(counters) = isa.dense(code).and_then(|place| self.get(place)) {
                    sum.add(counters);
                }
            }
            Scope::Undefined => {
                (MAX_REASONS..SLOTS)
                    .filter_map(|place| self.get(place))
                    .for_each(|counters| sum.add(counters));
                sum.add(self.overflow());
            }
        }
    }
}

/// A VM of which at least one vCPU has shown an exit.
#[repr(C, align(64))]
pub struct Vm {
    /// Its vCPUs, linked through [`Slot::sibling`].
    slots: AtomicPtr<Slot>,
    guarded: UnsafeCell<Guarded>,
}

/// The part of a [`Vm`] that the lock protects.
struct Guarded {
    /// KVM's VM; null when no vCPU is left.
    kvm: *mut c_void,
    cell: Number,
    live: u32,
    finished: u32,
    /// The next in the list that this VM is in: known, or free.
    next: *mut Vm,
}

// SAFETY: `guarded` is touched under the lock only.
unsafe impl Sync for Vm {}

impl Vm {
    fn slots(&self) -> impl Iterator<Item = &'static Slot> {
        // SAFETY: slots live until `stop`; the links are null or slots.
        let follow = |link: &AtomicPtr<Slot>| unsafe { link.load(Acquire).as_ref() };
        core::iter::successors(follow(&self.slots), move |slot| follow(&slot.sibling))
    }
}

/// What a policy of `vm` shows to a vCPU: the vCPUs of its VM. They can neither vanish nor change their VM while
/// one of them runs, so this needs no lock.
pub struct OwnVm<'a>(pub &'a Slot, pub Isa);

impl Figured for OwnVm<'_> {
    fn sum(&self, scope: Scope) -> Sum {
        let mut sum = Sum::default();
        self.0.vm().slots().for_each(|slot| slot.add_to(&mut sum, self.1, scope));
        sum
    }
}

/// What a policy of `host` shows: every VM that there is or was.
pub struct WholeHost(pub Isa);

impl Figured for WholeHost {
    fn sum(&self, scope: Scope) -> Sum {
        let mut sum = Sum::default();
        with(|registry| {
            registry.vms().flat_map(Vm::slots).for_each(|slot| slot.add_to(&mut sum, self.0, scope));
        });
        if let (Scope::All | Scope::Undefined, Some(header)) = (scope, cells::header()) {
            sum.add_exits(header.unaccounted.load(Relaxed));
        }
        sum
    }
}

/// Everything that the lock protects.
struct Registry {
    pool: Pool,
    /// VMs, newest first; finished ones stay until their room is needed. The last is that of retired VMs.
    vms: *mut Vm,
    free_vms: *mut Vm,
    free_slots: *mut Slot,
    /// Every slot that was ever allocated, linked through [`Slot::elder`].
    slots: *mut Slot,
    retired: Option<&'static Slot>,
    finished: u32,
    last_id: u64,
}

struct Locked(UnsafeCell<Registry>);
// SAFETY: `with` is the only access.
unsafe impl Sync for Locked {}

static REGISTRY: Locked = Locked(UnsafeCell::new(Registry {
    pool: Pool::new(),
    vms: ptr::null_mut(),
    free_vms: ptr::null_mut(),
    free_slots: ptr::null_mut(),
    slots: ptr::null_mut(),
    retired: None,
    finished: 0,
    last_id: 0,
}));

fn with<T>(work: impl FnOnce(&mut Registry) -> T) -> T {
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

/// The slot of a vCPU whose event is being handled, made if it has none. `None` when memory is short: the exit is
/// counted as unaccounted.
pub fn enroll(vcpu: *mut c_void, isa: Isa) -> Option<&'static Slot> {
    with(|registry| {
        let slot = find(vcpu).or_else(|| registry.enroll(vcpu, isa));
        if let (None, Some(header)) = (slot, cells::header()) {
            header.unaccounted.store(header.unaccounted.load(Relaxed).wrapping_add(1), Relaxed);
        }
        slot
    })
}

/// As [`find`], under the lock: what it does not find does not exist.
pub fn find_surely(vcpu: *mut c_void) -> Option<&'static Slot> {
    find(vcpu).or_else(|| with(|_| find(vcpu)))
}

/// Prepares the region and the account of retired VMs.
pub fn start() -> Option<()> {
    let started = with(|registry| {
        registry.pool.start()?;
        let vm = registry.add_vm(ptr::null_mut(), state::RETIRED)?;
        let retired = registry.add_slot(ptr::null_mut(), 0, vm, state::RETIRED)?;
        registry.retired = Some(retired);
        // SAFETY: a slot, which is what the variable holds; it is of no vCPU, so every guess is wrong at first.
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
    with(|registry| registry.finish(vcpu));
}

/// Frees everything. No event can be under way.
pub fn stop() {
    with(|registry| {
        TABLE.iter().for_each(|link| link.store(ptr::null_mut(), Relaxed));
        registry.retired = None;
        registry.finished = 0;
        free_chain(&mut registry.slots, |slot| slot.elder.load(Relaxed));
        registry.free_slots = ptr::null_mut();
        let next = |vm: &Vm| {
            // SAFETY: the lock is held.
            unsafe { (*vm.guarded.get()).next }
        };
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
        core::iter::successors(follow(self.vms), move |vm| follow(unsafe { (*vm.guarded.get()).next }))
    }

    fn enroll(&mut self, vcpu: *mut c_void, isa: Isa) -> Option<&'static Slot> {
        if let Some(header) = cells::header() {
            header.isa.store(isa as u32, Relaxed);
        }
        // SAFETY: the vCPU is alive, its event is being handled.
        let (kvm, id) = unsafe { (ffi::exitscope_vcpu_vm(vcpu), ffi::exitscope_vcpu_id(vcpu)) };
        // SAFETY: the lock is held.
        let known = self.vms().find(|vm| unsafe { (*vm.guarded.get()).kvm } == kvm);
        let vm = match known {
            Some(vm) => vm,
            None => self.add_vm(kvm, state::LIVE)?,
        };
        let Some(slot) = self.add_slot(vcpu, id, vm, state::LIVE) else {
            if known.is_none() {
                self.drop_newest_vm();
            }
            return None;
        };
        let bucket = bucket(vcpu);
        slot.next.store(bucket.load(Relaxed), Relaxed);
        bucket.store(ptr::from_ref(slot).cast_mut(), Release);
        Some(slot)
    }

    fn add_vm(&mut self, kvm: *mut c_void, life: u32) -> Option<&'static Vm> {
        let id = if kvm.is_null() { 0 } else { self.last_id + 1 };
        // SAFETY: KVM's VM lives as long as its vCPU.
        let pid = if kvm.is_null() { 0 } else { unsafe { ffi::exitscope_vm_pid(kvm) } };
        let cell = self.pool.take_vm(id, pid, life)?;
        let Some(memory) = allocate(&mut self.free_vms, |vm: &Vm| {
            // SAFETY: the lock is held.
            unsafe { (*vm.guarded.get()).next }
        }) else {
            self.pool.give_back(cell);
            return None;
        };
        self.last_id = id;
        let guarded = Guarded { kvm, cell, live: 0, finished: 0, next: self.vms };
        // SAFETY: allocated for a VM, and not yet known to anyone.
        unsafe {
            memory.write(Vm { slots: AtomicPtr::new(ptr::null_mut()), guarded: UnsafeCell::new(guarded) })
        };
        self.vms = memory.as_ptr();
        // SAFETY: just written; VMs live until `stop`.
        Some(unsafe { memory.as_ref() })
    }

    /// Undoes the last [`Registry::add_vm`].
    fn drop_newest_vm(&mut self) {
        // SAFETY: the lock is held; links are null or VMs.
        let Some(vm) = (unsafe { self.vms.as_ref() }) else { return };
        // SAFETY: as above.
        let guarded = unsafe { &mut *vm.guarded.get() };
        self.pool.give_back(guarded.cell);
        self.vms = guarded.next;
        guarded.next = self.free_vms;
        self.free_vms = ptr::from_ref(vm).cast_mut();
    }

    fn add_slot(&mut self, vcpu: *mut c_void, id: u32, vm: &'static Vm, life: u32) -> Option<&'static Slot> {
        // SAFETY: the lock is held.
        let guarded = unsafe { &mut *vm.guarded.get() };
        let cell = self.pool.take_vcpu(guarded.cell, id, life)?;
        let Some((overflow_cell, overflow)) = self.pool.take_counters(cell, CODE_OVERFLOW) else {
            self.pool.give_back(cell);
            return None;
        };
        let Some(slot) = self.free_slot() else {
            self.pool.give_back(cell);
            self.pool.give_back(overflow_cell);
            return None;
        };
        // SAFETY: the slot has no vCPU, and the lock is held.
        unsafe {
            *slot.timer() = Timer::new();
            *slot.asked() = None;
        }
        slot.places.iter().for_each(|place| place.store(ptr::null_mut(), Relaxed));
        slot.overflow.store(ptr::from_ref(overflow).cast_mut(), Relaxed);
        slot.vm.store(ptr::from_ref(vm).cast_mut(), Relaxed);
        slot.cell.store(cell, Relaxed);
        slot.overflow_cell.store(overflow_cell, Relaxed);
        slot.sibling.store(vm.slots.load(Relaxed), Relaxed);
        slot.vcpu.store(vcpu, Release);
        vm.slots.store(ptr::from_ref(slot).cast_mut(), Release);
        guarded.live += 1;
        Some(slot)
    }

    /// A slot without a vCPU: one that was used before, or a new one.
    fn free_slot(&mut self) -> Option<&'static Slot> {
        let fresh = self.free_slots.is_null();
        let memory = allocate(&mut self.free_slots, |slot: &Slot| slot.sibling.load(Relaxed))?;
        if fresh {
            let slot = Slot { elder: AtomicPtr::new(self.slots), ..Slot::empty() };
            // SAFETY: allocated for a slot, and known to nobody.
            unsafe { memory.write(slot) };
            self.slots = memory.as_ptr();
        }
        // SAFETY: initialised; slots live until `stop`.
        Some(unsafe { memory.as_ref() })
    }

    fn install(&mut self, slot: &Slot, place: usize, code: u32) -> Option<&'static Counters> {
        let (entry, cell) = (slot.places.get(place)?, slot.cells.get(place)?);
        let (number, counters) = self.pool.take_counters(slot.cell.load(Relaxed), code.into())?;
        cell.store(number, Relaxed);
        entry.store(ptr::from_ref(counters).cast_mut(), Release);
        Some(counters)
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
        if let Some(shown) = cells::vcpu(slot.cell.load(Relaxed)) {
            shown.head.state.store(state::FINISHED, Release);
        }
        // SAFETY: the lock is held.
        let vm = unsafe { &mut *slot.vm().guarded.get() };
        vm.live -= 1;
        vm.finished += 1;
        self.finished += 1;
        if vm.live == 0 {
            vm.kvm = ptr::null_mut();
            if let Some(shown) = cells::vm(vm.cell) {
                shown.head.state.store(state::FINISHED, Release);
            }
        }
        if self.finished > MAX_FINISHED {
            cells::announce_move();
            while self.finished > MAX_FINISHED && self.retire_oldest().is_some() {}
            cells::announce_move();
        }
    }

    /// Adds the numbers of the VM that was seen first among the finished ones to those of retired VMs, and takes
    /// its room back.
    fn retire_oldest(&mut self) -> Option<()> {
        let retired = self.retired?;
        let mut oldest = None;
        let mut link = &raw mut self.vms;
        // SAFETY: the lock is held, links are null or VMs.
        while let Some(vm) = unsafe { (*link).as_ref() } {
            // SAFETY: as above.
            let guarded = unsafe { &mut *vm.guarded.get() };
            if guarded.live == 0 {
                oldest = Some((link, vm));
            }
            link = &raw mut guarded.next;
        }
        let (link, vm) = oldest?;
        // SAFETY: the lock is held; `link` is the one that leads to `vm`.
        let guarded = unsafe {
            let guarded = &mut *vm.guarded.get();
            *link = guarded.next;
            guarded
        };
        let mut next = vm.slots.load(Relaxed);
        // SAFETY: links are null or slots.
        while let Some(slot) = unsafe { next.as_ref() } {
            next = slot.sibling.load(Relaxed);
            self.retire(slot, retired);
        }
        self.pool.give_back(guarded.cell);
        self.finished -= guarded.finished;
        guarded.next = self.free_vms;
        self.free_vms = ptr::from_ref(vm).cast_mut();
        Some(())
    }

    fn retire(&mut self, slot: &Slot, retired: &Slot) {
        for (place, cell) in slot.cells.iter().enumerate() {
            let Some(counters) = slot.get(place) else { continue };
            let code = counters.code.load(Relaxed) as u32;
            let into = if place < MAX_REASONS {
                retired.get(place).or_else(|| self.install(retired, place, code))
            } else {
                None
            };
            absorb(into.unwrap_or_else(|| retired.overflow()), counters);
            self.pool.give_back(cell.load(Relaxed));
        }
        absorb(retired.overflow(), slot.overflow());
        self.pool.give_back(slot.overflow_cell.load(Relaxed));
        self.pool.give_back(slot.cell.load(Relaxed));
        slot.sibling.store(self.free_slots, Relaxed);
        self.free_slots = ptr::from_ref(slot).cast_mut();
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
