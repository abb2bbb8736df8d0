//! The vCPUs that have an account, each in a slot that its address leads to, and what becomes of their ends.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64};

use exitscope_abi::reason::Isa;
use exitscope_abi::region::{Head, VcpuCell, kind, state};
use exitscope_core::{Account, Halt, HaltStats, Place, SLOTS, Table, Timer, absorb, locate};

use crate::cells::{self, Cell, Vm};
use crate::kernel::{self, VmEntry, exitscope_finished, hidden, isa};

/// Slots; vCPUs are further apart in memory than a page, so that the number of its page leads a vCPU to its slot.
const COUNT: u64 = 4096;
/// Slots that a vCPU may have: those from the one that its address leads to.
const WAYS: u64 = 16;
/// Accounts that a vCPU can have: one for each place in its table, and the overflow counters.
pub const ACCOUNTS: usize = SLOTS + 1;
/// The account of exits that found no room for one of their own.
const OVERFLOW: usize = SLOTS;

/// One vCPU.
#[repr(C, align(1024))]
pub struct Slot {
    /// KVM's vCPU; 0 for none.
    vcpu: AtomicU64,
    /// Zeroes until a vCPU has the slot.
    clock: UnsafeCell<MaybeUninit<Clock>>,
    kvm: AtomicU64,
    /// See [`kernel::exit_code_of_own_guest`].
    own_exit_code: AtomicU64,
    id: AtomicU32,
    /// Cells of its VM and its own, by their offsets.
    vm: AtomicU32,
    cell: AtomicU32,
    /// Offset of the counters of [`HALT`], whose place in `places` stays empty: so its exits take the slow path, which reads
    /// KVM's statistics of halts.
    halts: AtomicU32,
    /// Offsets of counters by place, 0 for none.
    places: [AtomicU32; ACCOUNTS],
}
const _: () = assert!(size_of::<Slot>() == 1024);

/// The code of the exit that HLT causes, which is its place: SDM vol. 3 appendix C, APM vol. 2 appendix C.
pub const fn halt(isa: Isa) -> u32 {
    match isa {
        Isa::Vmx => 12,
        Isa::Svm => 0x78,
    }
}
const _: () = assert!(halt(Isa::Vmx) < Isa::Vmx.consecutive() && halt(Isa::Svm) < Isa::Svm.consecutive());

/// All slots.
struct Slots([Slot; COUNT as usize]);
// SAFETY: a clock is touched only by the handlers of the events of the vCPU whose slot it is, of which one runs at a time.
unsafe impl Sync for Slots {}

static ALL: Slots = Slots([const { Slot::EMPTY }; COUNT as usize]);

/// State that belongs to the handlers of a vCPU's own events.
pub struct Clock {
    pub timer: Timer<Cell>,
    halt: Option<Halt>,
}

impl Clock {
    const NEW: Self = Self { timer: Timer::new(Cell::NONE), halt: None };

    /// The vCPU halts, or blocks for another reason, maybe within a halt.
    pub fn begin_halt(&mut self, now: u64, before: Option<HaltStats>) {
        self.timer.split();
        self.halt.get_or_insert(Halt::new(now, before));
    }

    /// Adds a halt that has begun to the open exit.
    pub fn end_halt(&mut self, now: u64, vcpu: u64) {
        let Some(halt) = self.halt.take() else { return };
        let [polled, halted] = halt.end(now, || kernel::halt_stats(vcpu), |ns| ns);
        self.timer.halt(polled, halted);
    }
}

impl Table<Cell> for Slot {
    #[inline(always)]
    fn get(&self, place: usize) -> Option<Cell> {
        Cell::at(self.place(place)?.load(Relaxed))
    }
}

impl Slot {
    #[allow(clippy::declare_interior_mutable_const, reason = "each use is a slot of its own")]
    const EMPTY: Self = Self {
        vcpu: AtomicU64::new(0),
        clock: UnsafeCell::new(MaybeUninit::zeroed()),
        kvm: AtomicU64::new(0),
        own_exit_code: AtomicU64::new(0),
        id: AtomicU32::new(0),
        vm: AtomicU32::new(0),
        cell: AtomicU32::new(0),
        halts: AtomicU32::new(0),
        places: [const { AtomicU32::new(0) }; ACCOUNTS],
    };

    /// The slot that a vCPU's address leads to.
    #[inline(always)]
    pub fn direct(vcpu: u64) -> &'static Self {
        Self::number(vcpu >> 12)
    }

    #[inline(always)]
    fn number(number: u64) -> &'static Self {
        // SAFETY: the remainder is a slot's number.
        unsafe { ALL.0.get_unchecked((number % COUNT) as usize) }
    }

    /// A place whatever its number is.
    #[inline(always)]
    fn place(&self, place: usize) -> Option<&AtomicU32> {
        if place == halt(isa()) as usize {
            return Some(&self.halts);
        }
        self.places.get(hidden(place as u64) as usize)
    }

    /// The counters of a code, if they are there and it is no halt. Most codes are their own place.
    #[inline(always)]
    pub fn of_code(&self, code: u32, isa: Isa) -> Option<Cell> {
        if code < const { [0, Isa::Vmx.consecutive(), Isa::Svm.consecutive()] }[isa as usize] {
            return Cell::at(self.places.get(code as usize)?.load(Relaxed));
        }
        let place = isa.dense(code)?;
        Cell::at(self.places.get(hidden(place as u64) as usize)?.load(Relaxed))
    }

    /// Where its own guest's exit code is.
    #[inline(always)]
    pub fn own_exit_code(&self) -> u64 {
        self.own_exit_code.load(Relaxed)
    }

    /// The vCPU.
    pub fn vcpu(&self) -> u64 {
        self.vcpu.load(Relaxed)
    }

    /// Whether this is the slot of that vCPU.
    #[inline(always)]
    pub fn is_of(&self, vcpu: u64) -> bool {
        self.vcpu.load(Relaxed) == vcpu
    }

    /// The slot of a vCPU.
    #[inline(always)]
    pub fn find(vcpu: u64) -> Option<&'static Self> {
        let mut way = 0;
        while way < WAYS {
            let slot = Self::number((vcpu >> 12) + way);
            if slot.is_of(vcpu) {
                return Some(slot);
            }
            way += 1;
        }
        None
    }

    /// The vCPU's clock.
    ///
    /// # Safety
    /// Only for the handler of the vCPU's own events, of which one runs at a time.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn clock(&self) -> &mut Clock {
        // SAFETY: the caller is the only one who touches it; it was written when the vCPU got the slot.
        unsafe { (*self.clock.get()).assume_init_mut() }
    }

    /// The vCPU's own cell.
    pub fn vcpu_cell(&self) -> &'static VcpuCell {
        Cell::at(self.cell.load(Relaxed)).unwrap_or(Cell::NONE).view()
    }

    /// Whether KVM's vCPU at this address is the one that the slot was made for: if its end had gone unnoticed, this would
    /// be another one's account.
    pub fn is_same(&self, vcpu: u64) -> bool {
        kernel::identity(vcpu) == (self.kvm.load(Relaxed), self.id.load(Relaxed))
    }

    /// The counters of an exit reason, which are made if there is room.
    #[inline(never)]
    pub fn counters(&self, code: u32) -> Cell {
        match locate(self, isa(), code) {
            Place::Found(cell) => cell,
            Place::Empty(place) => self.make_counters(place, code).unwrap_or_else(|| {
                cells::set_overflowed();
                self.overflow()
            }),
            Place::Full => self.overflow(),
        }
    }

    fn overflow(&self) -> Cell {
        self.get(OVERFLOW).unwrap_or(Cell::NONE)
    }

    /// One VM's counters may take a quarter of all cells, and the last eighth is kept for new vCPUs.
    fn make_counters(&self, place: usize, code: u32) -> Option<Cell> {
        let (used, most) = cells::used();
        let vm: &Vm = Cell::at(self.vm.load(Relaxed))?.view();
        if used >= most / 8 * 7 || vm.counters.load(Relaxed) >= most / 4 {
            return None;
        }
        let cell = cells::take()?;
        cells::make_counters(cell, kind::COUNTERS, Cell::at(self.cell.load(Relaxed))?, code);
        vm.counters.fetch_add(1, AcqRel);
        self.place(place)?.store(cell.offset(), Relaxed);
        Some(cell)
    }
}

/// The slot of a vCPU whose exit this is: an old one, or a new one if there is room.
#[inline(never)]
pub fn find_or_enroll(vcpu: u64) -> Option<&'static Slot> {
    if let Some(slot) = Slot::find(vcpu) {
        return Some(slot);
    }
    let now = kernel::now();
    let slot = if now.wrapping_sub(FAILED.load(Relaxed)) < BACK_OFF_NS { None } else { enroll(vcpu) };
    if slot.is_none() {
        cells::count_unaccounted();
    }
    slot
}

/// When there was no room for a vCPU, which is not tried again for a while: otherwise each of its exits would take locks.
static FAILED: AtomicU64 = AtomicU64::new(0);
const BACK_OFF_NS: u64 = 10_000_000;

/// Makes a slot for a vCPU. Nobody else looks for this vCPU meanwhile: its thread is here.
#[inline(always)]
fn enroll(vcpu: u64) -> Option<&'static Slot> {
    let slot = claim(vcpu).filter(|slot| {
        let filled = fill(slot, vcpu);
        if !filled {
            slot.vcpu.store(0, Relaxed);
        }
        filled
    });
    if slot.is_none() {
        FAILED.store(kernel::now(), Relaxed);
    }
    slot
}

/// Fills in a slot that has just been claimed; false, and nothing has changed, where there is no room. The VM comes last,
/// as nothing is to be undone then.
#[inline(never)]
fn fill(slot: &Slot, vcpu: u64) -> bool {
    let Some(cell) = cells::take() else { return false };
    let overflow = cells::take();
    let (kvm, id) = kernel::identity(vcpu);
    let vm = overflow.and_then(|_| join_vm(kvm));
    let (Some(overflow), Some(vm)) = (overflow, vm) else {
        cells::free(cell);
        if let Some(overflow) = overflow {
            cells::free(overflow);
        }
        return false;
    };
    // SAFETY: the slot is this vCPU's, and this is the handler of its event.
    unsafe { (*slot.clock.get()).write(Clock::NEW) };
    slot.kvm.store(kvm, Relaxed);
    slot.own_exit_code.store(kernel::exit_code_of_own_guest(vcpu), Relaxed);
    slot.id.store(id, Relaxed);
    slot.vm.store(vm.offset(), Relaxed);
    slot.cell.store(cell.offset(), Relaxed);
    slot.halts.store(0, Relaxed);
    slot.places.iter().for_each(|place| place.store(0, Relaxed));
    slot.places[OVERFLOW].store(overflow.offset(), Relaxed);
    cells::make_vcpu(cell, vm, id);
    cells::make_counters(overflow, kind::OVERFLOW, cell, 0);
    true
}

/// Takes a free one of a vCPU's slots.
#[inline(always)]
fn claim(vcpu: u64) -> Option<&'static Slot> {
    let mut way = 0;
    while way < WAYS {
        let slot = Slot::number((vcpu >> 12) + way);
        if slot.is_of(0) && slot.vcpu.compare_exchange(0, vcpu, AcqRel, Relaxed).is_ok() {
            return Some(slot);
        }
        way += 1;
    }
    None
}

/// The cell of a VM that has one vCPU more.
#[inline(always)]
fn join_vm(kvm: u64) -> Option<Cell> {
    // Not one that is being removed, whose cell is not its own any more.
    let join = |entry: &VmEntry| {
        let mut vcpus = entry.vcpus.load(Relaxed);
        let mut attempts = 0;
        while vcpus != 0 && attempts < 8 {
            match entry.vcpus.compare_exchange(vcpus, vcpus + 1, AcqRel, Relaxed) {
                Ok(_) => return Cell::at(entry.cell),
                Err(now) => vcpus = now,
            }
            attempts += 1;
        }
        None
    };
    if let Some(entry) = kernel::vm(kvm) {
        return join(entry);
    }
    let cell = cells::take()?;
    if kernel::insert_vm(kvm, VmEntry { cell: cell.offset(), vcpus: AtomicU32::new(1) }) {
        cells::make_vm(cell);
        return Some(cell);
    }
    // Another vCPU of it was faster.
    cells::free(cell);
    kernel::vm(kvm).and_then(join)
}

/// Marks a VM's cell in the queue of finished ones: nothing of it follows.
const LAST: u32 = 1;

/// KVM destroys a vCPU, as it does with all of a VM when that ends. Its numbers stay, first under its VM and, when the room
/// is needed, in the sum of retired ones.
pub fn end(slot: &Slot) {
    let vm = slot.vm.load(Relaxed);
    if cells::end_vm(Cell::at(vm).unwrap_or(Cell::NONE)) {
        kernel::push(&raw const exitscope_finished, vm);
    }
    slot.places.iter().map(|place| place.load(Relaxed)).filter(|&offset| offset != 0).for_each(|offset| {
        kernel::push(&raw const exitscope_finished, offset);
    });
    let halts = slot.halts.load(Relaxed);
    if halts != 0 {
        kernel::push(&raw const exitscope_finished, halts);
    }
    kernel::push(&raw const exitscope_finished, slot.cell.load(Relaxed));
    let kvm = slot.kvm.load(Relaxed);
    if kernel::vm(kvm).is_some_and(|entry| entry.vcpus.fetch_sub(1, AcqRel) == 1) {
        kernel::remove_vm(kvm);
        kernel::push(&raw const exitscope_finished, vm | LAST);
    }
    slot.vcpu.store(0, Relaxed);
}

/// Makes room for a new vCPU while half of the cells are in use: the numbers of the VMs that have ended first move to the
/// sum of retired ones.
#[inline(never)]
pub fn retire() {
    let (used, most) = cells::used();
    if used < most / 2 || RETIRING.swap(1, AcqRel) != 0 {
        return;
    }
    cells::note_move();
    let mut cells = 0;
    while cells < AT_ONCE {
        let Some(offset) = kernel::pop(&raw const exitscope_finished) else { break };
        retire_cell(offset);
        cells += 1;
    }
    cells::note_move();
    RETIRING.store(0, Relaxed);
}

/// Not 0 while numbers move, which is done by one at a time.
static RETIRING: AtomicU32 = AtomicU32::new(0);
/// Cells that move when a vCPU comes: more than most vCPUs have.
const AT_ONCE: u32 = 32;
/// Offsets of the counters of retired VMs by place.
static SUM: [AtomicU32; SLOTS] = [const { AtomicU32::new(0) }; SLOTS];

/// Moves what a cell has to the sum, and frees it.
#[inline(never)]
fn retire_cell(offset: u32) {
    let Some(cell) = Cell::at(offset & !LAST) else { return };
    let head: &Head = cell.view();
    let [_, sum_vcpu, sum_overflow] = cells::retired();
    match head.kind.load(Relaxed) {
        // All of its cells count as retired from now on.
        kind::VM if offset & LAST == 0 => return head.state.store(state::RETIRED, Relaxed),
        kind::VCPU => {
            let [from, into]: [&VcpuCell; 2] = [cell.view(), sum_vcpu.view()];
            for (into, from) in [(&into.unannounced, &from.unannounced), (&into.backwards, &from.backwards)] {
                into.store(into.load(Relaxed).wrapping_add(from.load(Relaxed)), Relaxed);
            }
        }
        kind::COUNTERS => {
            let place =
                isa().dense(head.code.load(Relaxed)).and_then(|place| SUM.get(hidden(place as u64) as usize));
            let into = match place {
                None => sum_overflow,
                Some(place) => match Cell::at(place.load(Relaxed)) {
                    Some(into) => into,
                    None => {
                        place.store(cell.offset(), Relaxed);
                        return cells::give(cell, sum_vcpu);
                    }
                },
            };
            absorb(into.counters(), cell.counters());
        }
        kind::OVERFLOW => absorb(sum_overflow.counters(), cell.counters()),
        _ => {}
    }
    cells::free(cell);
}
