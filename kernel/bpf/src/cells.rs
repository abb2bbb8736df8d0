//! The region's cells: where counters are, which cells are free, and who gets one.

use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use core::sync::atomic::{AtomicU32, AtomicU64};

use exitscope_abi::bpf::RETIRED_CELLS;
use exitscope_abi::region::{
    CELL_SIZE, Counters, EXPOSE_AS_MODULE, Head, Header, VcpuCell, VmCell, bucket, flags, kind, state,
};
use exitscope_core::Account;

use crate::kernel::{self, cells_mask, exitscope_cells, exitscope_free, max_cells};

/// A cell, by its offset in the region: a pointer into a map cannot be kept in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(u32);

/// The bucket of a duration of 2^16 ticks and more: each byte more is eight buckets more.
#[inline(never)]
fn bucket_of_long(cycles: u64) -> usize {
    let (mut cycles, mut more) = (cycles, 0);
    while cycles >= 1 << 16 {
        cycles >>= 8;
        more += 8;
    }
    BUCKET_OF[kernel::hidden(cycles >> 8) as usize & 0xff] as usize + more
}

/// Buckets of durations by their second byte, as there is no instruction that finds a bit.
static BUCKET_OF: [u8; 256] = {
    let mut buckets = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        buckets[byte] = bucket((byte as u64) << 8) as u8;
        byte += 1;
    }
    buckets
};

impl Account for Cell {
    #[inline(always)]
    fn counters(&self) -> &Counters {
        self.view()
    }

    #[inline(always)]
    fn bucket(cycles: u64) -> usize {
        match cycles >> 8 {
            high @ ..=0xff => BUCKET_OF[high as usize] as usize,
            _ => bucket_of_long(cycles),
        }
    }
}

impl Cell {
    /// Not a cell of an account: the header's.
    pub const NONE: Self = Self(0);

    /// From what [`Cell::offset`] gave.
    pub const fn at(offset: u32) -> Option<Self> {
        if offset == 0 { None } else { Some(Self(offset)) }
    }

    /// Its offset in the region.
    pub const fn offset(self) -> u32 {
        self.0
    }

    /// Its number, by which readers know it.
    pub const fn number(self) -> u32 {
        self.0 / CELL_SIZE as u32
    }

    /// The cell as one of the region's structures.
    #[inline(always)]
    pub fn view<T>(self) -> &'static T {
        const { assert!(size_of::<T>() <= CELL_SIZE) };
        let offset = u64::from(self.0) & cells_mask();
        // SAFETY: the mask keeps it within the region, which the verifier checks; all of the region's structures are
        // atomics, valid for whatever a cell holds.
        unsafe { &*(&raw const exitscope_cells).byte_add(offset as usize).cast() }
    }

    fn head(self) -> &'static Head {
        self.view()
    }
}

/// The region's header.
#[inline(always)]
pub fn header() -> &'static Header {
    Cell::NONE.view()
}

/// Counts an exit of a vCPU that has no account.
pub fn count_unaccounted() {
    header().unaccounted.fetch_add(1, AcqRel);
    set_overflowed();
}

/// Tells readers that some exits are not counted where they belong.
pub fn set_overflowed() {
    header().flags.store(flags::OVERFLOWED, Relaxed);
}

/// Tells readers that numbers are about to move from cells to others, or have done so.
pub fn note_move() {
    header().moves.fetch_add(1, AcqRel);
}

/// Cells in use, and how many there can be.
pub fn used() -> (u32, u32) {
    (header().used_cells.load(Relaxed), max_cells() as u32)
}

/// A cell for someone, all zero but for its head; readers see it once [`publish`] has said what it is.
pub fn take() -> Option<Cell> {
    Cell::at(take_offset())
}

#[inline(never)]
fn take_offset() -> u32 {
    let header = header();
    let offset = match kernel::pop(&raw const exitscope_free) {
        Some(offset) => offset,
        None => {
            if u64::from(header.cells.load(Relaxed)) >= max_cells() {
                return 0;
            }
            let number = header.cells.fetch_add(1, AcqRel);
            if u64::from(number) >= max_cells() {
                return 0;
            }
            number * CELL_SIZE as u32
        }
    };
    clear(Cell(offset).view());
    header.used_cells.fetch_add(1, AcqRel);
    offset
}

/// Zeroes all of a cell but its head.
fn clear(cell: &Counters) {
    let Counters { head: _, exits, cycles, min, max, user, halted, polled, histogram } = cell;
    [exits, cycles, min, max, user, halted, polled].iter().for_each(|word| word.store(0, Relaxed));
    histogram.iter().for_each(|word| word.store(0, Relaxed));
}

/// Shows a cell to readers.
fn publish(cell: Cell, kind: u16, owner: Cell, code: u32) {
    let head = cell.head();
    head.owner.store(owner.number(), Relaxed);
    head.code.store(code, Relaxed);
    head.state.store(state::LIVE, Relaxed);
    barrier();
    head.kind.store(kind, Relaxed);
}

/// The compiler moves no memory access across it; an x86 CPU does not reorder stores.
#[inline(always)]
fn barrier() {
    // SAFETY: it does nothing.
    unsafe { core::arch::asm!("", options(nostack)) };
}

/// A VM's cell, and what readers need not know.
#[repr(C)]
pub struct Vm {
    cell: VmCell,
    /// Counters of its vCPUs, their overflow counters aside.
    pub counters: AtomicU32,
    /// Not 0 when its end has begun.
    ended: AtomicU32,
}
const _: () = assert!(size_of::<Vm>() <= CELL_SIZE);

/// The number of the VM that came last.
static LAST_ID: AtomicU64 = AtomicU64::new(0);

/// Makes a cell that of a VM of the process that runs.
pub fn make_vm(cell: Cell) {
    let vm: &Vm = cell.view();
    vm.cell.id.store(LAST_ID.fetch_add(1, AcqRel) + 1, Relaxed);
    vm.cell.pid.store(kernel::process_and_thread().0, Relaxed);
    vm.cell.expose.store(EXPOSE_AS_MODULE, Relaxed);
    publish(cell, kind::VM, Cell::NONE, 0);
}

/// The VM's end has begun: true the first time.
pub fn end_vm(cell: Cell) -> bool {
    let first = cell.view::<Vm>().ended.swap(1, AcqRel) == 0;
    if first {
        cell.head().state.store(state::FINISHED, Relaxed);
    }
    first
}

/// Makes a cell that of a vCPU of a VM, of the thread that runs.
pub fn make_vcpu(cell: Cell, vm: Cell, id: u32) {
    let vcpu: &VcpuCell = cell.view();
    vcpu.id.store(id, Relaxed);
    vcpu.thread.store(kernel::process_and_thread().1, Relaxed);
    publish(cell, kind::VCPU, vm, 0);
}

/// Makes a cell counters, of one of the kinds that are [`Counters`].
pub fn make_counters(cell: Cell, kind: u16, vcpu: Cell, code: u32) {
    cell.counters().min.store(u64::MAX, Relaxed);
    publish(cell, kind, vcpu, code);
}

/// The cells of the sum of retired VMs, which the loader has made: its VM, vCPU and overflow counters.
pub fn retired() -> [Cell; RETIRED_CELLS as usize] {
    let header = header();
    let first = header.schema.load(Relaxed) + header.schema_cells.load(Relaxed);
    [first, first + 1, first + 2].map(|number| Cell(number * CELL_SIZE as u32))
}

/// Gives a cell back. Readers see its kind and generation change before anything else.
pub fn free(cell: Cell) {
    let head = cell.head();
    head.kind.store(kind::FREE, Relaxed);
    head.generation.fetch_add(1, AcqRel);
    header().used_cells.fetch_sub(1, AcqRel);
    kernel::push(&raw const exitscope_free, cell.offset());
}

/// Gives counters to another vCPU.
pub fn give(cell: Cell, vcpu: Cell) {
    let head = cell.head();
    head.generation.fetch_add(1, AcqRel);
    head.owner.store(vcpu.number(), Relaxed);
}
