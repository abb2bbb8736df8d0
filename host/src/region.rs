//! Reads the counters of the kernel module (`/dev/exitscope`) or of eBPF programs (an array): one mapping, no system
//! call per vCPU.

mod read;

pub(crate) use read::view;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::fence;
use std::thread;
use std::time::Duration;

use exitscope_abi::reason::Isa;
use exitscope_abi::region::{
    CELL_SIZE, Counters, Header, MAGIC, MAX_PAGES, PAGE_SIZE, Schema, VERSION, VmCell, flags, kind, state,
};
use exitscope_model::Quality;
use exitscope_model::snapshot::{Clock, Moment, Snapshot};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::lockdown;

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
    /// What is asked for takes more than the right to write to the device.
    #[error(
        "{path}: this takes CAP_SYS_ADMIN, which root has, unless it was taken away (as in most containers)"
    )]
    NoAdmin {
        /// The device.
        path: PathBuf,
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
    /// Whether someone writes to it, the module or eBPF programs: a copy in a file has no writer to wait for.
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
        Self::map(path, file.as_fd(), length, live)
    }

    /// Maps the array of eBPF programs, which has this length in bytes; `path` is what errors call it.
    pub fn of_map(path: &Path, map: BorrowedFd<'_>, length: usize) -> Result<Self, Error> {
        if length < CELL_SIZE {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(Error::Access { path: path.into(), source });
        }
        Self::map(path, map, length, true)
    }

    /// Maps what has a cell at least.
    fn map(path: &Path, from: BorrowedFd<'_>, length: usize, live: bool) -> Result<Self, Error> {
        let access = |source| Error::Access { path: path.into(), source };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, from, 0) }
            .map_err(|errno| access(errno.into()))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| access(io::ErrorKind::AddrNotAvailable.into()))?;
        let region = Self { base, length, live };
        let (magic, version) = (region.header().magic.load(Acquire), region.header().version.load(Relaxed));
        if magic != MAGIC || version != VERSION {
            return Err(Error::Version { path: path.into(), found: version });
        }
        region.populate();
        Ok(region)
    }

    fn header(&self) -> &Header {
        // SAFETY: page 0 exists as long as the module is loaded, and the mapping keeps it loaded. A file and an array
        // have a cell at least.
        unsafe { self.base.as_ref() }
    }

    fn cells(&self) -> impl ExactSizeIterator<Item = &Counters> {
        let count = self.header().cells.load(Acquire) as usize;
        // SAFETY: the module says that these cells exist, or the file or array has them, and they are within the mapping;
        // Counters is all atomics, valid for whatever a cell holds.
        (1..count.min(self.length / CELL_SIZE)).map(|number| unsafe { self.base.cast().add(number).as_ref() })
    }

    /// Reads again when numbers have moved between cells meanwhile.
    fn steadily<T>(&self, read: impl Fn() -> T) -> T {
        /// After so many rounds who moves the numbers may wait for this CPU.
        const PATIENCE: u32 = 1_000;
        let changes = || [&self.header().moves, &self.header().resets].map(|count| count.load(Acquire));
        for round in 0.. {
            let before = changes();
            let result = read();
            fence(Acquire);
            let steady = before.iter().all(|count| count % 2 == 0) && changes() == before;
            if steady || !self.live {
                return result;
            }
            match round {
                0..PATIENCE => thread::yield_now(),
                _ => thread::sleep(Duration::from_millis(1)),
            }
        }
        unreachable!("the rounds do not end")
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

    /// Cells in use: it changes when VMs come, unless others go.
    pub fn used_cells(&self) -> u32 {
        self.header().used_cells.load(Relaxed)
    }

    /// Number and process of every VM that KVM has not destroyed; looks at every cell.
    pub fn live_vms(&self) -> Vec<(u64, u32)> {
        let live = |cell: &&Counters| {
            cell.head.kind.load(Acquire) == kind::VM && cell.head.state.load(Relaxed) == state::LIVE
        };
        let number = |cell: &Counters| {
            let vm: &VmCell = view(cell);
            (vm.id.load(Relaxed), vm.pid.load(Relaxed))
        };
        self.steadily(|| self.cells().filter(live).map(number).collect())
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
        let quality = Quality {
            unaccounted: header.unaccounted.load(Relaxed),
            overflowed: header.flags.load(Relaxed) & flags::OVERFLOWED != 0,
            missed: 0,
        };
        let [tsc_khz, used_cells, max_cells] =
            [&header.tsc_khz, &header.used_cells, &header.max_cells].map(|number| number.load(Relaxed));
        Snapshot {
            at: Some(now()),
            began: 0,
            isa,
            clock: Clock { khz: tsc_khz },
            accounts: read::accounts(self.cells(), isa, since_reset),
            quality,
            used_cells,
            max_cells,
        }
    }

    /// Has the kernel map what is there at once, which is faster than page by page as it is read.
    fn populate(&self) {
        let cells = self.header().cells.load(Acquire) as usize;
        let length = (cells * CELL_SIZE).min(self.length);
        // SAFETY: the range is within the mapping, whose contents this does not change. That it fails does no harm.
        let _ = unsafe { madvise(self.base.as_ptr().cast(), length, Advice::LinuxPopulateRead) };
    }
}

/// The present moment.
fn now() -> Moment {
    let ns = |clock| {
        let time = clock_gettime(clock);
        (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
    };
    Moment { monotonic_ns: ns(ClockId::Monotonic), wall_ns: ns(ClockId::Realtime) }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives the Region.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}
