//! The region of counters that the kernel module shares, read-only, with user space through `/dev/exitscope`.
//!
//! The region is an array of 512-byte cells. Cell 0 is the [`Header`]; every other cell begins with a [`Head`]
//! that says what it is: a VM, a vCPU of a VM, or the [`Counters`] of one exit reason of one vCPU. Each counter
//! has one writer, the CPU that runs the vCPU; readers need no lock and no system call. A cell that is given to
//! another owner changes its generation before anything else, so a reader that sees the same generation before
//! and after has read one owner's data.

use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Size of a cell, in bytes.
pub const CELL_SIZE: usize = 512;
/// Size of the pages that cells are allocated in, in bytes.
pub const PAGE_SIZE: usize = 4096;
/// Cells in one page.
pub const CELLS_PER_PAGE: usize = PAGE_SIZE / CELL_SIZE;
/// Most pages a region can have: 64 MiB, room for some 9,000 vCPUs that show a dozen reasons each.
pub const MAX_PAGES: usize = 16384;
/// "exitscop" in the header's first eight bytes, little-endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"exitscop");
/// Version of this layout; a reader refuses any other.
pub const VERSION: u32 = 1;
/// Number of histogram buckets in [`Counters`].
pub const BUCKETS: usize = 57;
/// [`Counters::code`] of exits that found no memory for a counter of their own.
pub const CODE_OVERFLOW: u64 = 1 << 32;

/// What a cell holds ([`Head::kind`]).
pub mod kind {
    /// Nothing.
    pub const FREE: u32 = 0;
    /// A [`super::VmCell`].
    pub const VM: u32 = 2;
    /// A [`super::VcpuCell`].
    pub const VCPU: u32 = 3;
    /// [`super::Counters`].
    pub const COUNTERS: u32 = 4;
}

/// Where its owner is in life ([`Head::state`]).
pub mod state {
    /// The VM or vCPU exists.
    pub const LIVE: u32 = 0;
    /// KVM has destroyed it; its numbers are final and stay for a while.
    pub const FINISHED: u32 = 1;
    /// Not one VM but the sum of those whose own cells have been given away.
    pub const RETIRED: u32 = 2;
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// Memory was short: some exits are counted under [`super::CODE_OVERFLOW`].
    pub const OVERFLOWED: u32 = 1;
}

/// The first cell: what this region is.
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// [`CELL_SIZE`].
    pub cell_size: AtomicU32,
    /// Cells that exist, in use or free; only ever grows.
    pub cells: AtomicU32,
    /// [`flags`].
    pub flags: AtomicU32,
    /// Frequency of the time stamp counter in kHz; 0 when the kernel does not know it.
    pub tsc_khz: AtomicU32,
    /// The instruction set seen at the first event, as in [`crate::reason::Isa`]; 0 before it.
    pub isa: AtomicU32,
    /// Exits of vCPUs that found no room for an account.
    pub unaccounted: AtomicU64,
    /// Odd while numbers of finished VMs move to the sum of retired ones: who has read across a change reads again.
    pub moves: AtomicU32,
}

/// What every cell but the first begins with.
#[repr(C)]
#[derive(Debug)]
pub struct Head {
    /// [`kind`].
    pub kind: AtomicU32,
    /// Raised whenever the cell changes its owner.
    pub generation: AtomicU32,
    /// Cell number of the owner: the VM of a vCPU, the vCPU of counters.
    pub owner: AtomicU32,
    /// [`state`].
    pub state: AtomicU32,
}

/// A virtual machine.
#[repr(C)]
#[derive(Debug)]
pub struct VmCell {
    /// The cell's head.
    pub head: Head,
    /// Number of the VM, from 1, never used twice while the module stays loaded.
    pub id: AtomicU64,
    /// Process that created the VM, in the initial PID namespace.
    pub pid: AtomicU32,
}

/// A virtual CPU.
#[repr(C)]
#[derive(Debug)]
pub struct VcpuCell {
    /// The cell's head.
    pub head: Head,
    /// KVM's vCPU id (on x86 the APIC id).
    pub id: AtomicU32,
}

/// The account of one exit reason of one vCPU. Cycles are ticks of the host's time stamp counter from an exit to
/// the vCPU's next entry.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Counters {
    /// The cell's head.
    pub head: Head,
    /// Exit reason (VMX) or exit code (SVM, low 32 bits), or [`CODE_OVERFLOW`].
    pub code: AtomicU64,
    /// Exits.
    pub exits: AtomicU64,
    /// Cycles of all exits whose end is known.
    pub cycles: AtomicU64,
    /// Fewest cycles of one exit; `u64::MAX` before the first.
    pub min: AtomicU64,
    /// Most cycles of one exit.
    pub max: AtomicU64,
    /// Timed exits by their cycles, see [`bucket`]. Their sum falls short of `exits` by those whose duration is not
    /// known: the exit that is open, those after which KVM re-entered the guest without an entry event, and those
    /// over which the clock went backwards.
    pub histogram: [AtomicU64; BUCKETS],
}

/// The histogram's bucket of a duration in cycles: 0 up to 127 cycles, then `i` from 2^(i+6) to 2^(i+7)-1. Durations
/// of 2^63 cycles and more do not exist.
#[inline]
pub const fn bucket(cycles: u64) -> usize {
    (cycles >> 6 | 1).ilog2() as usize
}

/// The fewest cycles that a bucket counts.
pub const fn bucket_low(bucket: usize) -> u64 {
    if bucket == 0 { 0 } else { 1 << (bucket + 6) }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            head: Head {
                kind: AtomicU32::new(kind::COUNTERS),
                generation: AtomicU32::new(0),
                owner: AtomicU32::new(0),
                state: AtomicU32::new(state::LIVE),
            },
            code: AtomicU64::new(0),
            exits: AtomicU64::new(0),
            cycles: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
            histogram: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

const _: () = {
    assert!(size_of::<Counters>() == CELL_SIZE && align_of::<Counters>() == 64);
    assert!(size_of::<Header>() <= CELL_SIZE && size_of::<VmCell>() <= CELL_SIZE);
    assert!(size_of::<VcpuCell>() <= CELL_SIZE && size_of::<Head>() == 16);
    assert!(
        offset_of!(Header, cells) == 16
            && offset_of!(Header, unaccounted) == 32
            && offset_of!(Header, moves) == 40
    );
    assert!(offset_of!(VmCell, id) == 16 && offset_of!(VmCell, pid) == 24);
    assert!(offset_of!(VcpuCell, id) == 16);
    assert!(offset_of!(Counters, code) == 16 && offset_of!(Counters, exits) == 24);
    assert!(offset_of!(Counters, histogram) == 56);
    assert!(bucket(i64::MAX as u64) == BUCKETS - 1 && bucket(127) == 0 && bucket(128) == 1);
};
