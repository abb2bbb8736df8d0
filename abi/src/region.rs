//! The region of counters that the kernel module shares, read-only, with user space through `/dev/exitscope`.
//!
//! The region is an array of 512-byte cells. Cell 0 is the [`Header`]; every other cell begins with a [`Head`]
//! that says what it is: a VM, a vCPU of a VM, the [`Counters`] of one exit reason of one vCPU, or a description of
//! all these ([`Schema`]), so that a program can read the region without having been built for this version of it.
//! Each counter has one writer, the CPU that runs the vCPU; readers need no lock and no system call. A cell that is
//! given to another owner changes its generation before anything else, so a reader that sees the same generation
//! before and after has read one owner's data. Numbers are little-endian. `abi/include/exitscope.h` says the same
//! in C.

use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

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
/// Version of this layout; a reader that does not go by the [`Schema`] refuses any other.
pub const VERSION: u32 = 3;
/// Number of histogram buckets in [`Counters`].
pub const BUCKETS: usize = 55;
/// [`VmCell::expose`] of a VM that follows the module's policy.
pub const EXPOSE_AS_MODULE: u32 = u32::MAX;

/// What a cell holds ([`Head::kind`]).
pub mod kind {
    /// Nothing.
    pub const FREE: u16 = 0;
    /// The [`super::Header`], which has no head: in a [`super::Schema`] only.
    pub const HEADER: u16 = 1;
    /// A [`super::VmCell`].
    pub const VM: u16 = 2;
    /// A [`super::VcpuCell`].
    pub const VCPU: u16 = 3;
    /// [`super::Counters`] of one code.
    pub const COUNTERS: u16 = 4;
    /// [`super::Counters`] of all exits of a vCPU that found no room under their own code.
    pub const OVERFLOW: u16 = 5;
    /// [`super::Counters`] as they were at the last reset; the owner is the cell of the counters themselves.
    pub const BASELINE: u16 = 6;
    /// A [`super::Schema`].
    pub const SCHEMA: u16 = 7;
}

/// Where its owner is in life ([`Head::state`]).
pub mod state {
    /// The VM or vCPU exists.
    pub const LIVE: u16 = 0;
    /// KVM has destroyed it; its numbers are final and stay for a while.
    pub const FINISHED: u16 = 1;
    /// No VM of its own any more but, with all others in this state, the sum of those that are not kept apart.
    pub const RETIRED: u16 = 2;
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// Memory was short: some exits are counted in [`super::kind::OVERFLOW`] cells, or unaccounted.
    pub const OVERFLOWED: u32 = 1;
}

/// One field of a structure of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// [`kind`] of the cells that have it; [`kind::FREE`] stands for the head that all but the header have. What is
    /// said of [`kind::COUNTERS`] holds for all three kinds of counters.
    pub kind: u16,
    /// Where it begins in its cell, in bytes.
    pub offset: u16,
    /// Bytes of one number.
    pub width: u16,
    /// Numbers in it: more than one in a histogram.
    pub count: u16,
    /// What it is called, in at most [`MAX_NAME`] bytes of ASCII.
    pub name: &'static str,
}

/// Declares structures of the region, and describes their fields.
macro_rules! shared {
    ($($(#[$doc:meta])* $name:ident of $kind:path => {
        $($(#[$field_doc:meta])* $field:ident: $type:ty [$width:literal $(* $count:expr)?],)+
    })+) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type,)+ }
            const _: () = { $(assert!(size_of::<$type>() == $width $(* $count)?);)+ };
        )+

        /// Every field of every structure.
        pub const FIELDS: &[Field] = &[
            $($(Field {
                kind: $kind,
                offset: offset_of!($name, $field) as u16,
                width: $width,
                count: 1 $(* $count as u16)?,
                name: stringify!($field),
            },)+)+
        ];
    };
}

shared! {
    /// The first cell: what this region is.
    Header of kind::HEADER => {
        /// [`MAGIC`].
        magic: AtomicU64 [8],
        /// [`VERSION`].
        version: AtomicU32 [4],
        /// [`CELL_SIZE`].
        cell_size: AtomicU32 [4],
        /// Cells that exist, in use or free; only ever grows.
        cells: AtomicU32 [4],
        /// [`flags`].
        flags: AtomicU32 [4],
        /// Frequency of the time stamp counter in kHz; 0 when the kernel does not know it.
        tsc_khz: AtomicU32 [4],
        /// The instruction set seen at the first event, as in [`crate::reason::Isa`]; 0 before it.
        isa: AtomicU32 [4],
        /// Exits of vCPUs that found no room for an account.
        unaccounted: AtomicU64 [8],
        /// Odd while numbers of a retired vCPU move to the sum: who has read across a change reads again.
        moves: AtomicU32 [4],
        /// Twice the number of resets: odd while counters are copied to baselines, for readers to subtract.
        resets: AtomicU32 [4],
        /// The most cells that there can be.
        max_cells: AtomicU32 [4],
        /// Cells in use.
        used_cells: AtomicU32 [4],
        /// The first [`Schema`]'s cell; the next ones follow it without a gap.
        schema: AtomicU32 [4],
        /// Cells of [`Schema`].
        schema_cells: AtomicU32 [4],
    }

    /// What every cell but the first begins with.
    Head of kind::FREE => {
        /// [`kind`].
        kind: AtomicU16 [2],
        /// [`state`].
        state: AtomicU16 [2],
        /// Raised whenever the cell changes its owner.
        generation: AtomicU32 [4],
        /// Cell number of the owner: the VM of a vCPU, the vCPU of counters, the counters of a baseline.
        owner: AtomicU32 [4],
        /// Of counters: exit reason (VMX) or exit code (SVM, low 32 bits).
        code: AtomicU32 [4],
    }

    /// A virtual machine.
    VmCell of kind::VM => {
        /// The cell's head.
        head: Head [16],
        /// Number of the VM, from 1, never used twice while the module stays loaded.
        id: AtomicU64 [8],
        /// Process that ran its first vCPU, in the initial PID namespace.
        pid: AtomicU32 [4],
        /// Whose exits its guest is told, as in [`crate::leaf::Expose`], or [`EXPOSE_AS_MODULE`].
        expose: AtomicU32 [4],
    }

    /// A virtual CPU.
    VcpuCell of kind::VCPU => {
        /// The cell's head.
        head: Head [16],
        /// Exits that KVM did not announce: there were two entries without an exit between them.
        unannounced: AtomicU64 [8],
        /// Exits without a duration, because the clock went backwards until the next entry.
        backwards: AtomicU64 [8],
        /// KVM's vCPU id (on x86 the APIC id).
        id: AtomicU32 [4],
        /// The thread that ran the vCPU when its first exit was seen, in the initial PID namespace; 0 for the sum of
        /// retired VMs.
        thread: AtomicU32 [4],
    }

    /// The account of one exit reason of one vCPU. Cycles are ticks of the host's time stamp counter from an exit to
    /// the vCPU's next entry.
    #[repr(align(64))]
    Counters of kind::COUNTERS => {
        /// The cell's head.
        head: Head [16],
        /// Exits.
        exits: AtomicU64 [8],
        /// Cycles of all exits whose end is known.
        cycles: AtomicU64 [8],
        /// Fewest cycles of one exit; `u64::MAX` before the first.
        min: AtomicU64 [8],
        /// Most cycles of one exit.
        max: AtomicU64 [8],
        /// Of [`Counters::cycles`], those between the return of KVM_RUN to the VMM and the next call of it.
        user: AtomicU64 [8],
        /// Of [`Counters::cycles`], those that the vCPU's thread slept, as its vCPU was halted or blocked.
        halted: AtomicU64 [8],
        /// Of [`Counters::cycles`], those of halt polling: the vCPU was halted, and its thread kept its CPU and looked
        /// for a wake-up, before it slept or instead. What [`Counters::cycles`] has beyond `user`, `halted` and
        /// `polled` was spent in the kernel.
        polled: AtomicU64 [8],
        /// Timed exits by their cycles, see [`bucket`]. Their sum falls short of `exits` by those whose duration is
        /// not known: the exit that is open, those after which KVM re-entered the guest without an entry event, and
        /// those over which the clock went backwards.
        histogram: [AtomicU64; BUCKETS] [8 * BUCKETS],
    }

    /// A description of [`FIELDS`], each as [`Field::words`] has it; unused places are zero.
    Schema of kind::SCHEMA => {
        /// The cell's head.
        head: Head [16],
        /// Nothing.
        reserved: [AtomicU64; 2] [8 * 2],
        /// The fields.
        fields: [[AtomicU64; 4]; FIELDS_PER_CELL] [32 * FIELDS_PER_CELL],
    }
}

/// Fields that one [`Schema`] describes.
pub const FIELDS_PER_CELL: usize = 15;
/// Most bytes of a [`Field::name`].
pub const MAX_NAME: usize = 24;

impl Field {
    /// The field in a [`Schema`]: kind, offset, width and count in 16 bits each, then the name, filled up with zeroes.
    pub fn words(&self) -> [u64; 4] {
        let bits = [self.kind, self.offset, self.width, self.count];
        let mut words = [0; 4];
        words[0] = bits.iter().rev().fold(0, |word, &bits| word << 16 | u64::from(bits));
        for (index, byte) in self.name.bytes().enumerate().take(MAX_NAME) {
            words[1 + index / 8] |= u64::from(byte) << (index % 8 * 8);
        }
        words
    }
}

/// The histogram's bucket of a duration in cycles: 0 up to 511 cycles, then `i` from 2^(i+8) to 2^(i+9)-1. Durations
/// of 2^63 cycles and more do not exist.
#[inline]
pub const fn bucket(cycles: u64) -> usize {
    (cycles | 511).ilog2() as usize - 8
}

/// The fewest cycles that a bucket counts.
pub const fn bucket_low(bucket: usize) -> u64 {
    if bucket == 0 { 0 } else { 1 << (bucket + 8) }
}

/// The most cycles that the bucket counts whose fewest these are.
pub const fn bucket_end(low: u64) -> u64 {
    if low == 0 { 511 } else { low - 1 + low }
}

impl Counters {
    /// Counters of nothing.
    pub const fn new() -> Self {
        Self {
            head: Head {
                kind: AtomicU16::new(kind::COUNTERS),
                state: AtomicU16::new(state::LIVE),
                generation: AtomicU32::new(0),
                owner: AtomicU32::new(0),
                code: AtomicU32::new(0),
            },
            exits: AtomicU64::new(0),
            cycles: AtomicU64::new(0),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
            user: AtomicU64::new(0),
            halted: AtomicU64::new(0),
            polled: AtomicU64::new(0),
            histogram: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = {
    assert!(size_of::<Counters>() == CELL_SIZE && align_of::<Counters>() == 64);
    assert!(size_of::<Schema>() == CELL_SIZE && size_of::<Head>() == 16);
    assert!(size_of::<Header>() <= CELL_SIZE && size_of::<VmCell>() <= CELL_SIZE);
    assert!(size_of::<VcpuCell>() <= CELL_SIZE);
    // What every exit changes, but for the histogram, is in one line of the cache; few exits are polled.
    assert!(offset_of!(Counters, polled) == 64 && offset_of!(Counters, histogram) == 72);
    assert!(bucket(i64::MAX as u64) == BUCKETS - 1 && bucket(511) == 0 && bucket(512) == 1);
    let mut field = 0;
    while field < FIELDS.len() {
        assert!(FIELDS[field].name.len() <= MAX_NAME);
        field += 1;
    }
};
