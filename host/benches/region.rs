//! How fast the module's counters are read: 1,024 vCPUs, which are to take less than 2 ms, with no system call for any.

use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use exitscope_abi::reason::Isa;
use exitscope_abi::region::{BUCKETS, CELL_SIZE, FIELDS, MAGIC, MAX_PAGES, PAGE_SIZE, VERSION, kind};
use exitscope_host::region::Region;

const VMS: u32 = 64;
const VCPUS: u32 = 16;
/// Reasons that each vCPU has shown: about what a Linux guest shows.
const REASONS: u32 = 12;
const ROUNDS: u32 = 200;

/// A region as the module lays it out.
struct Cells(Vec<u8>);

impl Cells {
    fn add(&mut self, kind: u16, owner: u32, code: u32) -> u32 {
        let number = (self.0.len() / CELL_SIZE) as u32;
        self.0.resize(self.0.len() + CELL_SIZE, 0);
        self.set(number, 0, "kind", kind.into());
        self.set(number, 0, "owner", owner.into());
        self.set(number, 0, "code", code.into());
        number
    }

    fn set(&mut self, cell: u32, kind: u16, name: &str, value: u64) {
        let field = FIELDS.iter().find(|field| field.kind == kind && field.name == name).expect("a field");
        let at = cell as usize * CELL_SIZE + usize::from(field.offset);
        let width = usize::from(field.width);
        self.0[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

fn region() -> Vec<u8> {
    let mut cells = Cells(vec![0; CELL_SIZE]);
    for vm in 0..VMS {
        let vm_cell = cells.add(kind::VM, 0, 0);
        cells.set(vm_cell, kind::VM, "id", u64::from(vm) + 1);
        for vcpu in 0..VCPUS {
            let vcpu_cell = cells.add(kind::VCPU, vm_cell, 0);
            cells.set(vcpu_cell, kind::VCPU, "id", vcpu.into());
            cells.add(kind::OVERFLOW, vcpu_cell, 0);
            for code in 0..REASONS {
                let counters = cells.add(kind::COUNTERS, vcpu_cell, 0x60 + code);
                for (name, value) in [("exits", 60), ("cycles", 90_000), ("min", 900), ("max", 9_000)] {
                    cells.set(counters, kind::COUNTERS, name, value);
                }
                let at = counters as usize * CELL_SIZE + (CELL_SIZE - 8 * BUCKETS);
                for bucket in 2..8 {
                    cells.0[at + 8 * bucket] = 10;
                }
            }
        }
    }
    let count = cells.0.len() / CELL_SIZE;
    let header =
        [("magic", MAGIC), ("version", VERSION.into()), ("cells", count as u64), ("isa", Isa::Svm as u64)];
    for (name, value) in header {
        cells.set(0, kind::HEADER, name, value);
    }
    cells.0
}

/// The time that it takes to read; to throw away what was read is not part of it.
fn median<T>(read: impl Fn() -> T) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let found = black_box(read());
            let time = start.elapsed();
            drop(found);
            time
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let cells = region();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&cells).expect("room for the region");
    file.as_file().set_len((MAX_PAGES * PAGE_SIZE) as u64).expect("a sparse file");
    let opening = Instant::now();
    let region = Region::open(file.path()).expect("a region");
    let first = region.snapshot();
    let first_read = opening.elapsed();
    let vcpus: usize = first.vms().iter().map(|vm| vm.vcpus.len()).sum();
    assert_eq!(vcpus as u32, VMS * VCPUS);
    assert_eq!(region.exits(), u64::from(VMS * VCPUS * REASONS) * 60);
    println!(
        "{vcpus} vCPUs of {REASONS} reasons, {} cells ({} KiB); median of {ROUNDS}",
        cells.len() / CELL_SIZE,
        cells.len() / 1024
    );
    println!("open, map and read for the first time: {first_read:?}");
    println!("every VM, vCPU, reason and histogram:  {:?}", median(|| region.snapshot()));
    println!("the sum of all exits:                  {:?}", median(|| region.exits()));
}
