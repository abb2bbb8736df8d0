//! A vCPU's slot and a VM's record, and what of them guests are told.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64};

use exitscope_abi::leaf::{Expose, Reasons, Scope};
use exitscope_abi::reason::{Isa, MAX_REASONS};
use exitscope_abi::region::{Counters, VcpuCell};
use exitscope_core::{Accounts, SLOTS, Sum, Table};

use crate::cells::{self, Number};
use crate::clock::Clock;
use crate::setting;

/// Accounts that a vCPU can have: one for each place in its table, and the overflow counters.
pub const ACCOUNTS: usize = SLOTS + 1;
/// The account of exits that found no room for one of their own.
pub const OVERFLOW: usize = SLOTS;

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
    /// A bit for each place whose counters are its own.
    own: [AtomicU64; ACCOUNTS.div_ceil(64)],
    /// The next vCPU of the same VM, or the next free slot.
    pub sibling: AtomicPtr<Slot>,
    vm: AtomicPtr<Vm>,
    /// Its own cell.
    pub cell: AtomicU32,
    /// The cells of its counters.
    pub cells: [AtomicU32; ACCOUNTS],
    /// The cells of their baselines, 0 without one.
    pub baselines: [AtomicU32; ACCOUNTS],
    /// The next in the list of all allocated slots.
    pub next_allocated: AtomicPtr<Slot>,
}

// SAFETY: the clock is touched only by the CPU that handles the vCPU's events, or under the lock while the slot has no
// vCPU; the rest is atomic, as CPUs may look at a slot that is being given to another vCPU.
unsafe impl Sync for Slot {}

impl Table<'static> for Slot {
    #[inline]
    fn get(&self, place: usize) -> Option<&'static Counters> {
        // SAFETY: a place is null or counters of the region, which live until `stop`.
        unsafe { self.places.get(place)?.load(Acquire).as_ref() }
    }
}

impl Slot {
    pub const fn empty() -> Self {
        Self {
            vcpu: AtomicPtr::new(ptr::null_mut()),
            next: AtomicPtr::new(ptr::null_mut()),
            clock: UnsafeCell::new(Clock::new()),
            places: [const { AtomicPtr::new(ptr::null_mut()) }; ACCOUNTS],
            own: [const { AtomicU64::new(0) }; ACCOUNTS.div_ceil(64)],
            sibling: AtomicPtr::new(ptr::null_mut()),
            vm: AtomicPtr::new(ptr::null_mut()),
            cell: AtomicU32::new(0),
            cells: [const { AtomicU32::new(0) }; ACCOUNTS],
            baselines: [const { AtomicU32::new(0) }; ACCOUNTS],
            next_allocated: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Prepares a slot for a vCPU of a VM, whose cell and overflow counters these are. Whoever finds the slot from now
    /// on must find it whole, so the vCPU itself comes later.
    ///
    /// # Safety
    /// The slot has no vCPU, and the lock is held.
    pub unsafe fn reset(&self, vm: &'static Vm, cell: Number, overflow: (Number, &'static Counters)) {
        // SAFETY: as the caller promises.
        unsafe { *self.clock() = Clock::new() };
        self.places.iter().for_each(|place| place.store(ptr::null_mut(), Relaxed));
        self.own.iter().for_each(|bits| bits.store(0, Relaxed));
        self.baselines.iter().for_each(|cell| cell.store(0, Relaxed));
        self.vm.store(ptr::from_ref(vm).cast_mut(), Relaxed);
        self.cell.store(cell, Relaxed);
        self.install(OVERFLOW, overflow);
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
            core::arch::asm!("cmp qword ptr [{slot} + {offset}], {vcpu}", "jne {other}",
                slot = in(reg) self, offset = const offset_of!(Slot, vcpu), vcpu = in(reg) vcpu,
                other = label { return false }, options(nostack, readonly));
        }
        true
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

    /// The places that have counters of their own.
    pub fn owned(&self) -> impl Iterator<Item = usize> {
        (0..).zip(&self.own).flat_map(|(index, bits)| {
            let first = bits.load(Acquire);
            let rest = |bits: &u64| Some(bits & bits.wrapping_sub(1)).filter(|&rest| rest != 0);
            let all = core::iter::successors(Some(first).filter(|&bits| bits != 0), rest);
            all.map(move |bits| index * 64 + bits.trailing_zeros() as usize)
        })
    }

    /// Whether a place has counters of its own.
    pub fn owns(&self, place: usize) -> bool {
        self.own.get(place / 64).is_some_and(|bits| bits.load(Acquire) >> (place % 64) & 1 == 1)
    }

    /// Adds what it has of these reasons.
    pub fn add_to(&self, sum: &mut Sum, isa: Isa, reasons: Reasons) {
        let mut add = |place| {
            if let Some(counters) = self.get(place) {
                sum.add(counters);
            }
        };
        match reasons {
            Reasons::None => {}
            Reasons::All => self.owned().for_each(add),
            Reasons::One(code) => {
                if let Some(place) = isa.dense_nospec(code).filter(|&place| self.owns(place)) {
                    add(place);
                }
            }
            Reasons::Undefined => self.owned().filter(|&place| place >= MAX_REASONS).for_each(add),
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
    locked: UnsafeCell<VmLocked>,
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
    /// For readers it is a part of the sum of retired VMs already.
    pub retired: bool,
    /// The next in the list that this VM is in: known, or free.
    pub next: *mut Vm,
}

// SAFETY: `locked` is touched under the lock only.
unsafe impl Sync for Vm {}

impl Vm {
    pub const fn new(locked: VmLocked) -> Self {
        Self {
            slots: AtomicPtr::new(ptr::null_mut()),
            expose: AtomicU8::new(AS_MODULE),
            locked: UnsafeCell::new(locked),
        }
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
        Expose::from_number(self.expose.load(Relaxed)).unwrap_or_else(setting::expose)
    }

    /// Sets whose exits its guest is told; `None` leaves that to the module's parameter.
    pub fn set_expose(&self, expose: Option<Expose>) {
        self.expose.store(expose.map_or(AS_MODULE, |expose| expose as u8), Relaxed);
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
