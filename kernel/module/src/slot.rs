//! A vCPU's slot and a VM's record, and what of them guests are told.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64};

use exitscope_abi::leaf::{COMMON_BITS, DISCOVERY, Expose, Reasons, Scope};
use exitscope_abi::reason::{Isa, MAX_REASONS};
use exitscope_abi::region::{Counters, EXPOSE_AS_MODULE, VcpuCell};
use exitscope_core::{Accounts, SLOTS, Sum, Table};

use crate::cells::{self, Number};
use crate::clock::Clock;
use crate::records::Record;
use crate::{ffi, setting};

/// Accounts that a vCPU can have: one for each place in its table, and the overflow counters.
pub const ACCOUNTS: usize = SLOTS + 1;
/// The account of exits that found no room for one of their own.
pub const OVERFLOW: usize = SLOTS;
/// [`Slot::leaves`] where the guest is answered none: no leaf has that in [`COMMON_BITS`].
const NO_LEAVES: u32 = 1;
/// Words of [`Slot::owned_in`].
pub const OWNED_WORDS: usize = ACCOUNTS.div_ceil(64);

/// One vCPU.
#[repr(C, align(64))]
pub struct Slot {
    /// KVM's vCPU; null when it is destroyed.
    pub vcpu: AtomicPtr<c_void>,
    /// The next slot in its chain of the hash table.
    pub next: AtomicPtr<Slot>,
    clock: UnsafeCell<Clock>,
    /// Counters by place; those of [`OVERFLOW`] where there was no room.
    places: [AtomicPtr<Counters>; ACCOUNTS],
    /// What the leaves that its guest is answered have in common; [`NO_LEAVES`] for none.
    leaves: AtomicU32,
    /// A bit for each place whose counters are its own.
    own: [AtomicU64; OWNED_WORDS],
    /// The next vCPU of the same VM, or the next free slot.
    pub sibling: AtomicPtr<Slot>,
    vm: AtomicPtr<Vm>,
    /// KVM's VM, and KVM's number of the vCPU in it.
    kvm: AtomicPtr<c_void>,
    id: AtomicU32,
    /// Its own cell.
    pub cell: AtomicU32,
    /// The cells of its counters.
    pub cells: [AtomicU32; ACCOUNTS],
    /// The cells of their baselines, 0 without one.
    pub baselines: [AtomicU32; ACCOUNTS],
    next_page: AtomicPtr<Slot>,
}

// SAFETY: the clock is touched only by the CPU that handles the vCPU's events, or under the lock while the slot has no
// vCPU; the rest is atomic, as CPUs may look at a slot that is being given to another vCPU.
unsafe impl Sync for Slot {}

impl Table<&'static Counters> for Slot {
    #[inline]
    fn get(&self, place: usize) -> Option<&'static Counters> {
        // SAFETY: a place is null or counters of the region, which live until `stop`.
        unsafe { self.places.get(place)?.load(Acquire).as_ref() }
    }
}

impl Record for Slot {
    const EMPTY: Self = Self {
        vcpu: AtomicPtr::new(ptr::null_mut()),
        next: AtomicPtr::new(ptr::null_mut()),
        clock: UnsafeCell::new(Clock::new()),
        places: [const { AtomicPtr::new(ptr::null_mut()) }; ACCOUNTS],
        leaves: AtomicU32::new(NO_LEAVES),
        own: [const { AtomicU64::new(0) }; OWNED_WORDS],
        sibling: AtomicPtr::new(ptr::null_mut()),
        vm: AtomicPtr::new(ptr::null_mut()),
        kvm: AtomicPtr::new(ptr::null_mut()),
        id: AtomicU32::new(0),
        cell: AtomicU32::new(0),
        cells: [const { AtomicU32::new(0) }; ACCOUNTS],
        baselines: [const { AtomicU32::new(0) }; ACCOUNTS],
        next_page: AtomicPtr::new(ptr::null_mut()),
    };

    fn next_free(&self) -> *mut Self {
        self.sibling.load(Relaxed)
    }

    fn set_next_free(&self, next: *mut Self) {
        self.sibling.store(next, Relaxed);
    }

    fn next_page(&self) -> &AtomicPtr<Self> {
        &self.next_page
    }
}

impl Slot {
    /// Prepares a slot for a vCPU of a VM, of this number, whose cell and overflow counters these are. Whoever finds the slot from now
    /// on must find it whole, so the vCPU itself comes later.
    ///
    /// # Safety
    /// The slot has no vCPU, and the lock is held.
    pub unsafe fn reset(
        &self,
        vm: &'static Vm,
        id: u32,
        cell: Number,
        overflow: (Number, &'static Counters),
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            *self.clock() = Clock::new();
            self.kvm.store(vm.locked().kvm, Relaxed);
        }
        self.id.store(id, Relaxed);
        self.places.iter().for_each(|place| place.store(ptr::null_mut(), Relaxed));
        self.own.iter().for_each(|bits| bits.store(0, Relaxed));
        self.baselines.iter().for_each(|cell| cell.store(0, Relaxed));
        self.vm.store(ptr::from_ref(vm).cast_mut(), Relaxed);
        self.cell.store(cell, Relaxed);
        self.install(OVERFLOW, overflow);
        self.follow_policy();
    }

    /// Gives a place its own counters; under the lock.
    pub fn install(&self, place: usize, (number, counters): (Number, &'static Counters)) {
        let (cell, bits, entry) = (self.cells.get(place), self.own.get(place / 64), self.places.get(place));
        if let (Some(cell), Some(bits), Some(entry)) = (cell, bits, entry) {
            cell.store(number, Relaxed);
            bits.store(bits.load(Relaxed) | 1 << (place % 64), Relaxed);
            entry.store(ptr::from_ref(counters).cast_mut(), Release);
        }
    }

    /// Counters of exits that have none of their own.
    pub fn overflow(&self) -> Option<&'static Counters> {
        self.get(OVERFLOW)
    }

    /// The vCPU's own cell.
    pub fn vcpu_cell(&self) -> Option<&'static VcpuCell> {
        cells::vcpu(self.cell.load(Relaxed))
    }

    pub fn vm(&self) -> &'static Vm {
        // SAFETY: set before a slot is published; VMs live until `stop`.
        unsafe { &*self.vm.load(Acquire) }
    }

    /// Whether this is the slot of that vCPU: one comparison with memory, which the compiler makes two instructions of
    /// if the memory is atomic.
    #[inline(always)]
    pub fn is_of(&self, vcpu: *mut c_void) -> bool {
        // SAFETY: reads an atomic of this slot, as a relaxed load would.
        unsafe {
            asm!("cmp qword ptr [{slot} + {offset}], {vcpu}", "jne {other}",
                slot = in(reg) self, offset = const offset_of!(Slot, vcpu), vcpu = in(reg) vcpu,
                other = label { return false }, options(nostack, readonly));
        }
        true
    }

    /// Whether a CPUID of this leaf (EAX) may be answered. A guest that is not to be answered cannot tell our leaves from
    /// others by the time that they take: one comparison decides about all.
    #[inline(always)]
    pub fn asks(&self, leaf: u32) -> bool {
        // SAFETY: as in `is_of`.
        unsafe {
            asm!("cmp dword ptr [{slot} + {offset}], {leaf:e}", "je {same}",
                slot = in(reg) self, offset = const offset_of!(Slot, leaves), leaf = in(reg) leaf & COMMON_BITS,
                same = label { return true }, options(nostack, readonly));
        }
        false
    }

    /// Sees to it that [`Slot::asks`] is as the policy of its VM; under the lock.
    pub fn follow_policy(&self) {
        let answered = self.vm().expose() != Expose::Off;
        self.leaves.store(if answered { DISCOVERY } else { NO_LEAVES }, Relaxed);
    }

    /// Whether KVM's vCPU at this address is the one that the slot was made for: if its end had gone unnoticed, this would
    /// be another one's account.
    ///
    /// # Safety
    /// `vcpu` is a `struct kvm_vcpu`.
    #[inline]
    pub unsafe fn is_same(&self, vcpu: *mut c_void) -> bool {
        // SAFETY: as the caller promises.
        let (kvm, id) = unsafe { (ffi::vcpu_vm(vcpu).read(), ffi::vcpu_id(vcpu).read()) };
        kvm == self.kvm.load(Relaxed) && id == self.id.load(Relaxed)
    }

    /// The vCPU's clock.
    ///
    /// # Safety
    /// Only for the handler of the vCPU's own events, of which one runs at a time.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn clock(&self) -> &mut Clock {
        // SAFETY: the caller is the only one who touches it.
        unsafe { &mut *self.clock.get() }
    }

    /// The places of a word, which is 64 of them, that have counters of their own.
    pub fn owned_in(&self, word: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.own.get(word).map_or(0, |bits| bits.load(Acquire));
        let rest = |bits: &u64| Some(bits & bits.wrapping_sub(1)).filter(|&rest| rest != 0);
        let all = core::iter::successors(Some(first).filter(|&bits| bits != 0), rest);
        all.map(move |bits| word * 64 + bits.trailing_zeros() as usize)
    }

    /// The places that have counters of their own.
    fn owned(&self) -> impl Iterator<Item = usize> {
        (0..OWNED_WORDS).flat_map(|word| self.owned_in(word))
    }

    /// The first word with such a place.
    pub fn owned_word(&self) -> Option<usize> {
        self.own.iter().position(|bits| bits.load(Relaxed) != 0)
    }

    /// Takes the counters of a word's places from it; under the lock.
    pub fn disown(&self, word: usize) {
        if let Some(bits) = self.own.get(word) {
            bits.store(0, Release);
        }
    }

    /// Whether a place has counters of its own.
    pub fn owns(&self, place: usize) -> bool {
        self.own.get(place / 64).is_some_and(|bits| bits.load(Acquire) >> (place % 64) & 1 == 1)
    }

    /// Whether the counters of a place have a baseline.
    pub fn has_baseline(&self, place: usize) -> bool {
        self.baselines.get(place).is_some_and(|cell| cell.load(Relaxed) != 0)
    }

    /// Adds what it has of these reasons.
    pub fn add_to(&self, sum: &mut Sum, isa: Isa, reasons: Reasons) {
        let add_counts = |place| {
            if let Some(counters) = self.get(place) {
                sum.add_counts(counters);
            }
        };
        match reasons {
            Reasons::None => {}
            Reasons::All => self.owned().for_each(add_counts),
            Reasons::One(code) => {
                let place = isa.dense_nospec(code).filter(|&place| self.owns(place));
                if let Some(counters) = place.and_then(|place| self.get(place)) {
                    sum.add(counters);
                }
            }
            Reasons::Undefined => self.owned().filter(|&place| place >= MAX_REASONS).for_each(add_counts),
        }
    }
}

/// A VM of which at least one vCPU has shown an exit.
#[repr(C, align(64))]
pub struct Vm {
    /// Its vCPUs, linked through [`Slot::sibling`].
    pub slots: AtomicPtr<Slot>,
    /// Number of its own policy, or [`AS_MODULE`].
    expose: AtomicU8,
    /// Counters of its vCPUs, those of [`OVERFLOW`] aside.
    pub counters: AtomicU32,
    locked: UnsafeCell<VmLocked>,
    next_page: AtomicPtr<Vm>,
}

/// [`Vm::expose`] of a VM without a policy of its own.
const AS_MODULE: u8 = u8::MAX;

/// The fields of a [`Vm`] that are protected by the lock.
pub struct VmLocked {
    /// Its number, as readers see it; 0 for the sum of retired VMs.
    pub id: u64,
    /// KVM's VM; null when no vCPU is left.
    pub kvm: *mut c_void,
    pub cell: Number,
    pub live: u32,
    pub finished: u32,
    /// The next in the list that this VM is in: a chain of live ones, finished, retired, or free.
    pub next: *mut Vm,
}

// SAFETY: `locked` is touched under the lock only.
unsafe impl Sync for Vm {}

impl Record for Vm {
    const EMPTY: Self = Self {
        slots: AtomicPtr::new(ptr::null_mut()),
        expose: AtomicU8::new(AS_MODULE),
        counters: AtomicU32::new(0),
        locked: UnsafeCell::new(VmLocked {
            id: 0,
            kvm: ptr::null_mut(),
            cell: 0,
            live: 0,
            finished: 0,
            next: ptr::null_mut(),
        }),
        next_page: AtomicPtr::new(ptr::null_mut()),
    };

    fn next_free(&self) -> *mut Self {
        // SAFETY: this is called under the lock.
        unsafe { self.locked() }.next
    }

    fn set_next_free(&self, next: *mut Self) {
        // SAFETY: as above.
        unsafe { self.locked() }.next = next;
    }

    fn next_page(&self) -> &AtomicPtr<Self> {
        &self.next_page
    }
}

impl Vm {
    /// Prepares a record for a VM that has no vCPUs yet.
    ///
    /// # Safety
    /// The lock is held, and the record is of no other VM and in no list.
    pub unsafe fn reset(&self, locked: VmLocked) {
        self.slots.store(ptr::null_mut(), Relaxed);
        self.expose.store(AS_MODULE, Relaxed);
        self.counters.store(0, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { *self.locked() = locked };
    }

    pub fn slots(&self) -> impl Iterator<Item = &'static Slot> {
        // SAFETY: slots live until `stop`; the links are null or slots.
        let follow = |link: &AtomicPtr<Slot>| unsafe { link.load(Acquire).as_ref() };
        core::iter::successors(follow(&self.slots), move |slot| follow(&slot.sibling))
    }

    /// Adds what all its vCPUs have.
    pub fn add_to(&self, sum: &mut Sum, isa: Isa, reasons: Reasons) {
        self.slots().for_each(|slot| slot.add_to(sum, isa, reasons));
    }

    /// The fields that are protected by the lock.
    ///
    /// # Safety
    /// The lock is held, and no other reference from here is in use.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn locked(&self) -> &mut VmLocked {
        // SAFETY: the caller is the only one who touches it.
        unsafe { &mut *self.locked.get() }
    }

    /// Whose exits its guest is told.
    pub fn expose(&self) -> Expose {
        self.own_policy().unwrap_or_else(setting::expose)
    }

    /// Its own policy, if it has one.
    pub fn own_policy(&self) -> Option<Expose> {
        Expose::from_number(self.expose.load(Relaxed))
    }

    /// Sets whose exits its guest is told; `None` leaves that to the module's parameter. Under the lock.
    pub fn set_expose(&self, expose: Option<Expose>) {
        self.expose.store(expose.map_or(AS_MODULE, |expose| expose as u8), Relaxed);
        // SAFETY: as this function's.
        if let Some(cell) = cells::vm(unsafe { self.locked().cell }) {
            cell.expose.store(expose.map_or(EXPOSE_AS_MODULE, |expose| expose as u32), Relaxed);
        }
        self.slots().for_each(Slot::follow_policy);
    }

    /// Whether its vCPUs have as many counters as one VM may have.
    pub fn is_full(&self) -> bool {
        self.counters.load(Relaxed) as usize >= cells::most_counters_of_vm()
    }
}

/// What a policy of `vm` shows to a vCPU: itself, and the vCPUs of its VM. They can neither vanish nor change their VM
/// while one of them runs, so this needs no lock.
pub struct OwnVm<'a>(pub &'a Slot, pub Isa);

impl Accounts for OwnVm<'_> {
    fn sum(&self, scope: Scope, reasons: Reasons) -> Sum {
        let mut sum = Sum::default();
        match scope {
            Scope::Vcpu => self.0.add_to(&mut sum, self.1, reasons),
            Scope::Policy => self.0.vm().add_to(&mut sum, self.1, reasons),
        }
        sum
    }
}
