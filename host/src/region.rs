//! Reads the kernel module's counters from `/dev/exitscope`: one mapping, no system call per vCPU.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::fence;
use std::thread;

use exitscope_abi::reason::Isa;
use exitscope_abi::region::{
    CELL_SIZE, Counters, Header, MAGIC, MAX_PAGES, PAGE_SIZE, VERSION, VcpuCell, VmCell, bucket_low, flags,
    kind, state,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::lockdown;
use crate::model::{self, Quality, Reason, Vcpu, Vm};

/// Where the module puts its device.
pub const DEVICE: &str = "/dev/exitscope";
const LENGTH: usize = MAX_PAGES * PAGE_SIZE;

/// Why the counters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no device.
    #[error("{path} does not exist: {advice}")]
    Missing {
        /// The device.
        path: PathBuf,
        /// What to do on this machine.
        advice: String,
    },
    /// The device cannot be opened or mapped.
    #[error("{path}: {source}{}", if source.kind() == io::ErrorKind::PermissionDenied { " (it is root's: use sudo)" } else { "" })]
    Access {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not a region of this version.
    #[error(
        "{path} has layout version {found}, this program knows {VERSION}: build both from the same source"
    )]
    Version {
        /// The device.
        path: PathBuf,
        /// The module's version.
        found: u32,
    },
}

/// The mapped counters.
#[derive(Debug)]
pub struct Region {
    base: NonNull<Header>,
    /// Bytes of the mapping.
    length: usize,
    /// Whether the module is behind it, which writes to it: a copy in a file has no writer to wait for.
    live: bool,
}

/// Everything that was counted, at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The instruction set; `None` before the first event.
    pub isa: Option<Isa>,
    /// Frequency of the time stamp counter in kHz; 0 when unknown.
    pub tsc_khz: u32,
    /// Every VM, oldest first.
    pub vms: Vec<Vm>,
    /// What must be known to judge the numbers.
    pub quality: Quality,
}

impl Region {
    /// Maps the module's device, or a copy of what it shows in a file, which nobody may shorten meanwhile.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let access = |source| Error::Access { path: path.into(), source };
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                Error::Missing { path: path.into(), advice: lockdown::advice(Path::new("/")) }
            }
            _ => access(source),
        })?;
        let metadata = file.metadata().map_err(access)?;
        let live = metadata.file_type().is_char_device();
        let length =
            if live { LENGTH } else { usize::try_from(metadata.len()).unwrap_or(LENGTH).min(LENGTH) };
        if length < CELL_SIZE {
            return Err(access(io::ErrorKind::UnexpectedEof.into()));
        }
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, &file, 0) }
            .map_err(|errno| access(errno.into()))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| access(io::ErrorKind::AddrNotAvailable.into()))?;
        let region = Self { base, length, live };
        let (magic, version) = (region.header().magic.load(Acquire), region.header().version.load(Relaxed));
        if magic != MAGIC || version != VERSION {
            return Err(Error::Version { path: path.into(), found: version });
        }
        Ok(region)
    }

    fn header(&self) -> &Header {
        // SAFETY: page 0 exists as long as the module is loaded, and the mapping keeps it loaded. A file has a cell
        // at least.
        unsafe { self.base.as_ref() }
    }

    fn cells(&self) -> impl Iterator<Item = &Counters> {
        let count = self.header().cells.load(Acquire) as usize;
        // SAFETY: the module says that these cells exist, or the file has them, and they are within the mapping;
        // Counters is all atomics, valid for whatever a cell holds.
        (1..count.min(self.length / CELL_SIZE)).map(|number| unsafe { self.base.cast().add(number).as_ref() })
    }

    /// Reads again when numbers have moved between cells meanwhile.
    fn steadily<T>(&self, read: impl Fn() -> T) -> T {
        let moves = || self.header().moves.load(Acquire);
        loop {
            let before = moves();
            let result = read();
            fence(Acquire);
            if !self.live || (before % 2 == 0 && moves() == before) {
                return result;
            }
            thread::yield_now();
        }
    }

    /// All exits so far, of all VMs: cheap enough for a timeline.
    pub fn exits(&self) -> u64 {
        self.steadily(|| {
            let counters = self.cells().filter(|cell| cell.head.kind.load(Relaxed) == kind::COUNTERS);
            counters.map(|cell| cell.exits.load(Relaxed)).fold(0, u64::wrapping_add)
        })
    }

    /// Reads everything.
    pub fn snapshot(&self) -> Snapshot {
        self.steadily(|| self.read())
    }

    fn read(&self) -> Snapshot {
        let header = self.header();
        let isa = u8::try_from(header.isa.load(Relaxed)).ok().and_then(Isa::from_number);
        let mut vms: Vec<(u32, u64, Vm)> = Vec::new();
        let mut vcpus: Vec<(u32, u32, Vcpu)> = Vec::new();
        let mut reasons: Vec<(u32, Reason)> = Vec::new();
        for (number, cell) in (1..).zip(self.cells()) {
            match read(cell, isa) {
                Some(Cell::Vm(order, vm)) => vms.push((number, order, vm)),
                Some(Cell::Vcpu(owner, vcpu)) => vcpus.push((number, owner, vcpu)),
                Some(Cell::Reason(owner, reason)) => reasons.push((owner, reason)),
                None => {}
            }
        }
        for (owner, reason) in reasons.into_iter().filter(|(_, reason)| reason.exits > 0) {
            if let Ok(index) = vcpus.binary_search_by_key(&owner, |&(number, ..)| number) {
                vcpus[index].2.reasons.push(reason);
            }
        }
        for (_, owner, mut vcpu) in vcpus {
            model::rank(&mut vcpu.reasons);
            vcpu.total = model::total(&vcpu.reasons);
            if let Ok(index) = vms.binary_search_by_key(&owner, |&(number, ..)| number) {
                vms[index].2.vcpus.push(vcpu);
            }
        }
        vms.sort_by_key(|&(_, order, _)| order);
        let mut vms: Vec<Vm> = vms.into_iter().map(|(.., vm)| vm).collect();
        vms.iter_mut().for_each(|vm| vm.vcpus.sort_by_key(|vcpu| vcpu.id));
        vms.retain(|vm| vm.id != RETIRED || vm.total().exits > 0);
        let quality = Quality {
            unaccounted: header.unaccounted.load(Relaxed),
            overflowed: header.flags.load(Relaxed) & flags::OVERFLOWED != 0,
        };
        Snapshot { isa, tsc_khz: header.tsc_khz.load(Relaxed), vms, quality }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives the Region.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// The id of the sum of VMs that the module no longer keeps apart.
const RETIRED: &str = "retired";

enum Cell {
    Vm(u64, Vm),
    Vcpu(u32, Vcpu),
    Reason(u32, Reason),
}

/// Copies a cell; `None` when it is free or changed its owner meanwhile.
fn read(cell: &Counters, isa: Option<Isa>) -> Option<Cell> {
    let head = &cell.head;
    let generation = head.generation.load(Acquire);
    let owner = head.owner.load(Relaxed);
    let copied = match head.kind.load(Acquire) {
        kind::VM => {
            let vm: &VmCell = view(cell);
            let id = vm.id.load(Relaxed);
            let life = head.state.load(Relaxed);
            let shown = if life == state::RETIRED { RETIRED.into() } else { id.to_string() };
            let finished = life != state::LIVE;
            Cell::Vm(id, Vm { id: shown, pid: vm.pid.load(Relaxed), finished, vcpus: Vec::new() })
        }
        kind::VCPU => {
            let vcpu: &VcpuCell = view(cell);
            Cell::Vcpu(owner, Vcpu { id: vcpu.id.load(Relaxed), ..Vcpu::default() })
        }
        kind::COUNTERS => Cell::Reason(owner, reason(cell, isa?)),
        _ => return None,
    };
    fence(Acquire);
    (head.generation.load(Relaxed) == generation).then_some(copied)
}

/// A cell as one of the region's smaller structures.
fn view<T: Small>(cell: &Counters) -> &T {
    const { assert!(size_of::<T>() <= CELL_SIZE && align_of::<T>() <= align_of::<Counters>()) }
    // SAFETY: a `Small` is repr(C) and all atomics, so it is valid for the bytes of any cell, and shares them with
    // `Counters` as atomics of at most the same width at the same place or inside one.
    unsafe { &*ptr::from_ref(cell).cast::<T>() }
}

/// The structures that [`view`] may give.
trait Small {}
impl Small for VmCell {}
impl Small for VcpuCell {}

fn reason(counters: &Counters, isa: Isa) -> Reason {
    let code = counters.code.load(Relaxed);
    let min = counters.min.load(Relaxed);
    let buckets =
        counters.histogram.iter().enumerate().map(|(i, count)| (bucket_low(i), count.load(Relaxed)));
    let histogram: Vec<(u64, u64)> = buckets.filter(|&(_, count)| count > 0).collect();
    // Read after the histogram, so that it never falls short of it.
    let exits = counters.exits.load(Acquire);
    Reason {
        code,
        name: model::name(isa, code),
        exits,
        cycles: counters.cycles.load(Relaxed),
        min: if min == u64::MAX { 0 } else { min },
        max: counters.max.load(Relaxed),
        untimed: exits.saturating_sub(histogram.iter().map(|&(_, count)| count).fold(0, u64::wrapping_add)),
        histogram,
    }
}
