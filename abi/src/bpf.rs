//! What the eBPF programs (`kernel/bpf`) and their loader (`host`) agree on, beside the region itself.
//!
//! The programs' object refers to what only the loader knows by symbols that it does not define:
//!
//! - [`CELLS`] is the region, the one value of a mappable array.
//! - The name of one of [`MAPS`] is that map.
//! - Any other name is a number, such as where a member is in a structure of this kernel ([`CELLS_MASK`] and
//!   [`MAX_CELLS`] aside, the loader's table of facts has them), or, where it is called, a function of the kernel's.

/// The region's symbol. A cell is referred to by its offset in bytes.
pub const CELLS: &str = "exitscope_cells";
/// The number by which an offset in the region is masked: the size of the region, less a cell.
pub const CELLS_MASK: &str = "exitscope_cells_mask";
/// The number of cells in the region, a power of two.
pub const MAX_CELLS: &str = "exitscope_max_cells";

/// Cells that a region has unless it is told otherwise: 8 MiB, room for some 1,100 vCPUs that show a dozen reasons each.
pub const DEFAULT_CELLS: u32 = 1 << 14;
/// The most cells of a region: 32 MiB.
pub const MOST_CELLS: u32 = 1 << 16;

/// A map of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// Its symbol.
    pub name: &'static str,
    /// Its type, `BPF_MAP_TYPE_...`.
    pub kind: u32,
    /// Bytes of a key; 0 for queues.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Entries, for each cell of the region: this many halves.
    pub halves: u32,
}

const HASH: u32 = 1;
const QUEUE: u32 = 22;

/// All of them.
pub const MAPS: [Map; 3] = [
    // By KVM's VM: its cell and its living vCPUs. A VM has three cells at least, and one vCPU.
    Map { name: "exitscope_vms", kind: HASH, key: 8, value: 8, halves: 1 },
    // Offsets of cells that were given back.
    Map { name: "exitscope_free", kind: QUEUE, key: 0, value: 4, halves: 2 },
    // Offsets of cells whose VM is gone, oldest first; each VM's own comes twice.
    Map { name: "exitscope_finished", kind: QUEUE, key: 0, value: 4, halves: 3 },
];

/// Where the cells of the sum of retired VMs are, which the loader makes: its VM, its vCPU, and that one's overflow
/// counters follow each other, after the schema.
pub const RETIRED_CELLS: u32 = 3;
