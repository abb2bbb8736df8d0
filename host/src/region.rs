//! Reads the kernel module's counters from `/dev/exitscope`: one mapping, no system call per vCPU.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicU64, fence};
use std::thread;

use exitscope_abi::leaf::Expose;
use exitscope_abi::reason::Isa;
use exitscope_abi::region::{
    CELL_SIZE, Counters, EXPOSE_AS_MODULE, Header, MAGIC, MAX_PAGES, PAGE_SIZE, Schema, VERSION, VcpuCell,
    VmCell, bucket_low, flags, kind, state,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use serde::Serialize;

use crate::lockdown;
use crate::model::{self, OVERFLOW, Quality, Reason, Vcpu, Vm};

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

/// Why a device could not be opened.
pub(crate) fn not_open(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => {
            Error::Missing { path: path.into(), advice: lockdown::advice(Path::new("/")) }
        }
        _ => Error::Access { path: path.into(), source },
    }
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

/// A field of a kind of cell, as the region describes it: see [`exitscope_abi::region::Field`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Kind of the cells that have it.
    pub kind: u16,
    /// Where it begins, in bytes.
    pub offset: u16,
    /// Bytes of one number.
    pub width: u16,
    /// Numbers in it.
    pub count: u16,
    /// What it is called.
    pub name: String,
}

impl Field {
    fn from_words([numbers, name @ ..]: [u64; 4]) -> Self {
        let number = |index: u32| (numbers >> (16 * index)) as u16;
        let name: Vec<u8> =
            name.iter().flat_map(|word| word.to_le_bytes()).take_while(|&byte| byte != 0).collect();
        Self {
            kind: number(0),
            offset: number(1),
            width: number(2),
            count: number(3),
            name: String::from_utf8_lossy(&name).into_owned(),
        }
    }

    fn is_some(&self) -> bool {
        self.width > 0
    }
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
    /// Cells of 512 bytes in use.
    pub used_cells: u32,
    /// The most that there can be.
    pub max_cells: u32,
}

impl Region {
    /// Maps the module's device, or a copy of what it shows in a file, which nobody may shorten meanwhile.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let access = |source| Error::Access { path: path.into(), source };
        let file = File::open(path).map_err(|error| not_open(path, error))?;
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
        let changes = || [&self.header().moves, &self.header().resets].map(|count| count.load(Acquire));
        loop {
            let before = changes();
            let result = read();
            fence(Acquire);
            let steady = before.iter().all(|count| count % 2 == 0) && changes() == before;
            if steady || !self.live {
                return result;
            }
            thread::yield_now();
        }
    }

    /// How the region describes itself: every field of every kind of cell, for readers that were not built for it.
    pub fn fields(&self) -> Vec<Field> {
        let header = self.header();
        let (first, count) = (header.schema.load(Relaxed), header.schema_cells.load(Relaxed));
        let cells = self.cells().skip(first.saturating_sub(1) as usize).take(count as usize);
        let schemas = cells.filter(|cell| cell.head.kind.load(Acquire) == kind::SCHEMA);
        let words = schemas.flat_map(|cell| &view::<Schema>(cell).fields);
        words
            .map(|words| Field::from_words(words.each_ref().map(|word| word.load(Relaxed))))
            .filter(Field::is_some)
            .collect()
    }

    /// All exits so far, of all VMs: cheap enough for a timeline.
    pub fn exits(&self) -> u64 {
        self.steadily(|| {
            let counts =
                |cell: &&Counters| [kind::COUNTERS, kind::OVERFLOW].contains(&cell.head.kind.load(Relaxed));
            let counted = self.cells().filter(counts).map(|cell| cell.exits.load(Relaxed));
            counted.fold(self.header().unaccounted.load(Relaxed), u64::wrapping_add)
        })
    }

    /// Reads everything that was counted since the module was loaded.
    pub fn snapshot(&self) -> Snapshot {
        self.steadily(|| self.read(false))
    }

    /// Reads what was counted since the last reset. Of the minimum and the maximum only bounds are known then: the
    /// limits of the histogram's buckets, where they are narrower than the extremes since the module was loaded.
    pub fn since_reset(&self) -> Snapshot {
        self.steadily(|| self.read(true))
    }

    fn read(&self, since_reset: bool) -> Snapshot {
        let header = self.header();
        let isa = u8::try_from(header.isa.load(Relaxed)).ok().and_then(Isa::from_number);
        let mut vms: Vec<(u32, u64, Vm)> = Vec::new();
        let mut vcpus: Vec<(u32, u32, Vcpu)> = Vec::new();
        let mut reasons: Vec<(u32, u32, Reason)> = Vec::new();
        let mut baselines: Vec<(u32, Reason)> = Vec::new();
        for (number, cell) in (1..).zip(self.cells()) {
            match read(cell, isa) {
                Some(Cell::Vm(order, vm)) => vms.push((number, order, vm)),
                Some(Cell::Vcpu(owner, vcpu)) => vcpus.push((number, owner, vcpu)),
                Some(Cell::Reason(owner, reason)) => reasons.push((number, owner, reason)),
                Some(Cell::Baseline(owner, reason)) if since_reset => baselines.push((owner, reason)),
                Some(Cell::Baseline(..)) | None => {}
            }
        }
        baselines.sort_unstable_by_key(|&(owner, _)| owner);
        for (number, _, reason) in &mut reasons {
            if let Ok(index) = baselines.binary_search_by_key(number, |&(owner, _)| owner) {
                reason.subtract(&baselines[index].1);
            }
        }
        for (_, owner, reason) in reasons.into_iter().filter(|(.., reason)| reason.exits > 0) {
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
        // Those that the module has not yet added to the sum are a part of it.
        vms.dedup_by(|vm, before| {
            let both = vm.id == RETIRED && before.id == RETIRED;
            if both {
                before.vcpus.append(&mut vm.vcpus);
            }
            both
        });
        vms.iter_mut().for_each(|vm| vm.vcpus.sort_by_key(|vcpu| vcpu.id));
        vms.retain(|vm| vm.id != RETIRED || vm.total().exits > 0);
        let quality = Quality {
            unaccounted: header.unaccounted.load(Relaxed),
            overflowed: header.flags.load(Relaxed) & flags::OVERFLOWED != 0,
        };
        let [tsc_khz, used_cells, max_cells] =
            [&header.tsc_khz, &header.used_cells, &header.max_cells].map(|number| number.load(Relaxed));
        Snapshot { isa, tsc_khz, vms, quality, used_cells, max_cells }
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

/// What a cell holds, with its order, or the cell that owns it.
enum Cell {
    Vm(u64, Vm),
    Vcpu(u32, Vcpu),
    Reason(u32, Reason),
    Baseline(u32, Reason),
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
            let (order, shown) =
                if life == state::RETIRED { (0, RETIRED.into()) } else { (id, id.to_string()) };
            let finished = life != state::LIVE;
            let expose = match vm.expose.load(Relaxed) {
                EXPOSE_AS_MODULE => None,
                number => u8::try_from(number).ok().and_then(Expose::from_number),
            };
            let expose = expose.map(|expose| expose.name().to_owned());
            Cell::Vm(order, Vm { id: shown, pid: vm.pid.load(Relaxed), finished, expose, vcpus: Vec::new() })
        }
        kind::VCPU => {
            let vcpu: &VcpuCell = view(cell);
            let [unannounced, backwards] =
                [&vcpu.unannounced, &vcpu.backwards].map(|count| count.load(Relaxed));
            let [id, thread] = [&vcpu.id, &vcpu.thread].map(|number| number.load(Relaxed));
            Cell::Vcpu(owner, Vcpu { id, thread, unannounced, backwards, ..Vcpu::default() })
        }
        kind::COUNTERS => Cell::Reason(owner, reason(cell, head.code.load(Relaxed).into(), isa?)),
        kind::OVERFLOW => Cell::Reason(owner, reason(cell, OVERFLOW, isa?)),
        kind::BASELINE => Cell::Baseline(owner, reason(cell, head.code.load(Relaxed).into(), isa?)),
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
impl Small for Schema {}

fn reason(counters: &Counters, code: u64, isa: Isa) -> Reason {
    let read = |counter: &AtomicU64| counter.load(Relaxed);
    let counts = counters.histogram.each_ref().map(read);
    let mut histogram = Vec::with_capacity(counts.iter().filter(|&&count| count > 0).count());
    let buckets = counts.iter().enumerate().map(|(bucket, &count)| (bucket_low(bucket), count));
    histogram.extend(buckets.filter(|&(_, count)| count > 0));
    // Parts before the whole, and exits after the histogram, so that neither falls short of what is in it.
    let [user, polled, halted] = [&counters.user, &counters.polled, &counters.halted].map(read);
    fence(Acquire);
    let [min, max, cycles, exits] =
        [&counters.min, &counters.max, &counters.cycles, &counters.exits].map(read);
    Reason {
        code,
        name: model::name(isa, code),
        exits,
        cycles,
        kernel: cycles.saturating_sub(user).saturating_sub(polled).saturating_sub(halted),
        user,
        polled,
        halted,
        min: if min == u64::MAX { 0 } else { min },
        max,
        untimed: exits.saturating_sub(histogram.iter().map(|&(_, count)| count).fold(0, u64::wrapping_add)),
        histogram,
    }
}
