//! How fast the module's counters are read: 1,024 vCPUs, which are to take at most 1 ms, with no system call for any.

use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use exitscope_abi::region::{CELL_SIZE, MAX_PAGES, PAGE_SIZE};
use exitscope_host::generated::{self, Shape};
use exitscope_host::region::Region;

const VMS: u32 = 64;
const VCPUS: u32 = 16;
/// Reasons that each vCPU has shown: about what a Linux guest shows.
const REASONS: u32 = 12;
const ROUNDS: u32 = 200;

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
    let cells = generated::region(Shape { vms: VMS, vcpus: VCPUS, reasons: REASONS, exits: 60 }, |_| 0);
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
