//! A region as the module lays it out, of any size: for benchmarks of what reads it.

use exitscope_abi::reason::Isa;
use exitscope_abi::region::{BUCKETS, CELL_SIZE, FIELDS, MAGIC, VERSION, bucket_end, bucket_low, kind};

/// How large it is, and what was counted.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// VMs.
    pub vms: u32,
    /// vCPUs of each.
    pub vcpus: u32,
    /// Reasons of each, of SVM.
    pub reasons: u32,
    /// Exits of each, six durations each as often.
    pub exits: u64,
}

struct Cells(Vec<u8>);

impl Cells {
    fn add(&mut self, kind: u16, owner: u32, code: u32) -> u32 {
        let number = (self.0.len() / CELL_SIZE) as u32;
        self.0.resize(self.0.len() + CELL_SIZE, 0);
        self.set(number, kind::FREE, "kind", kind.into());
        self.set(number, kind::FREE, "owner", owner.into());
        self.set(number, kind::FREE, "code", code.into());
        number
    }

    /// Sets a field; `kind::FREE` stands for the head. There is nothing to set where there is no such field.
    fn set(&mut self, cell: u32, kind: u16, name: &str, value: u64) {
        let Some(field) = FIELDS.iter().find(|field| field.kind == kind && field.name == name) else {
            return;
        };
        let at = cell as usize * CELL_SIZE + usize::from(field.offset);
        let width = usize::from(field.width);
        if let Some(bytes) = self.0.get_mut(at..at + width) {
            bytes.copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }

    fn add_counters(&mut self, vcpu: u32, code: u32, exits: u64) {
        const SHOWN: std::ops::Range<usize> = 2..8;
        let counters = self.add(kind::COUNTERS, vcpu, code);
        let (min, max) = (bucket_low(SHOWN.start), bucket_end(bucket_low(SHOWN.end - 1)));
        for (name, value) in [("exits", exits), ("cycles", 1_500 * exits), ("min", min), ("max", max)] {
            self.set(counters, kind::COUNTERS, name, value);
        }
        let histogram = counters as usize * CELL_SIZE + (CELL_SIZE - 8 * BUCKETS);
        for bucket in SHOWN {
            let at = histogram + 8 * bucket;
            self.0[at..at + 8].copy_from_slice(&(exits / SHOWN.len() as u64).to_le_bytes());
        }
    }
}

/// The bytes of a region; `pid` is the process of a VM, and the thread of its vCPUs.
pub fn region(shape: Shape, pid: impl Fn(u32) -> u32) -> Vec<u8> {
    region_of(shape, &pid, |vm, _| pid(vm))
}

/// The bytes of a region; `pid` is the process of a VM, `thread` that of its vCPU.
pub fn region_of(shape: Shape, pid: impl Fn(u32) -> u32, thread: impl Fn(u32, u32) -> u32) -> Vec<u8> {
    let mut cells = Cells(vec![0; CELL_SIZE]);
    for vm in 0..shape.vms {
        let vm_cell = cells.add(kind::VM, 0, 0);
        cells.set(vm_cell, kind::VM, "id", u64::from(vm) + 1);
        cells.set(vm_cell, kind::VM, "pid", pid(vm).into());
        for vcpu in 0..shape.vcpus {
            let vcpu_cell = cells.add(kind::VCPU, vm_cell, 0);
            cells.set(vcpu_cell, kind::VCPU, "id", vcpu.into());
            cells.set(vcpu_cell, kind::VCPU, "thread", thread(vm, vcpu).into());
            cells.add(kind::OVERFLOW, vcpu_cell, 0);
            (0..shape.reasons).for_each(|code| cells.add_counters(vcpu_cell, 0x60 + code, shape.exits));
        }
    }
    let count = cells.0.len() / CELL_SIZE;
    let header = [
        ("magic", MAGIC),
        ("version", VERSION.into()),
        ("cells", count as u64),
        ("isa", Isa::Svm as u64),
        ("tsc_khz", 3_000_000),
    ];
    for (name, value) in header {
        cells.set(0, kind::HEADER, name, value);
    }
    cells.0
}
