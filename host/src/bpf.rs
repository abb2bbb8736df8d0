//! Loads the eBPF programs, which count exits into a region of their own on a kernel without our module.
//!
//! The programs are one object for all kernels and both vendors (`kernel/bpf`). What they must know of this kernel are
//! [`facts`], proven before they are loaded and written into them as numbers. They hang on descriptors of this process,
//! so nothing stays attached when it ends in whatever way, unless they are [pinned](pin).

mod error;
pub mod facts;
#[cfg(test)]
mod made;
pub mod object;
pub mod pin;
mod start;
mod sys;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;

use exitscope_abi::bpf::{CELLS, CELLS_MASK, MAPS, MAX_CELLS, MOST_CELLS};
use exitscope_abi::reason::Isa;
use exitscope_abi::region::{CELL_SIZE, Counters};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

pub use error::Error;
use facts::{Btf, CAST, Facts, Vendor};
use object::{Object, Program, Symbols, Value};

use crate::region::{self, Region};

/// The programs, as the build made them.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/exitscope.bpf.o"));
/// The fewest cells of a region.
pub const FEWEST_CELLS: u32 = 1 << 9;
/// What errors call the region.
const ARRAY: &str = "the eBPF programs' array";

/// The programs, attached.
#[derive(Debug)]
pub struct Bpf {
    /// In the order in which they were attached; each with what it is attached to.
    links: Vec<(String, OwnedFd)>,
    programs: Vec<OwnedFd>,
    cells: OwnedFd,
    vendor: Vendor,
}

impl Bpf {
    /// Loads the programs and attaches them, with a region of so many cells: a power of two from [`FEWEST_CELLS`] to
    /// [`MOST_CELLS`].
    ///
    /// # Errors
    /// Each says what this machine lacks, and what to do.
    pub fn load(cells: u32) -> Result<Self, Error> {
        Self::load_object(OBJECT, Path::new("/"), cells)
    }

    fn load_object(object: &[u8], root: &Path, cells: u32) -> Result<Self, Error> {
        if !cells.is_power_of_two() || !(FEWEST_CELLS..=MOST_CELLS).contains(&cells) {
            return Err(Error::Size { cells });
        }
        if error::is_ftrace_off(root) {
            // The kernel would attach programs to functions then, and not run them.
            return Err(Error::Ftrace { source: io::ErrorKind::NotConnected.into(), off: true });
        }
        let btf = Btf::read(root)?;
        let facts = Facts::prove(&btf)?;
        let object = Object::parse(object)?;
        let loader = Loader::new(&object, &facts, cells, btf.vendor())?;
        // Kernels before 6.2, whose flag of a nested guest the typed program knows.
        let typed = facts.kernel_function(CAST).is_none();
        let mut programs = select(object.programs(), btf.vendor().isa(), facts.cast().is_some(), typed)?;
        programs.sort_by_key(|program| rank(program.event));
        let (links, programs) = loader.attach(&programs)?;
        Ok(Self { links, programs, cells: loader.cells, vendor: btf.vendor().clone() })
    }

    /// What they count.
    pub fn region(&self) -> Result<Region, region::Error> {
        region_of(self.cells.as_fd(), Path::new(ARRAY))
    }

    /// Events that programs were not run for, as the kernel counts them: where a kernel preempts a program, another run of it
    /// on the same CPU is left out.
    pub fn missed(&self) -> u64 {
        self.programs.iter().map(|program| sys::missed(program.as_fd()).unwrap_or(0)).sum()
    }

    /// Whether the vendor's part of KVM is another one now than that which these programs were made for, or none: load
    /// them anew then.
    pub fn is_stale(&self) -> bool {
        self.vendor.is_stale(Path::new("/"))
    }
}

impl Vendor {
    fn is_stale(&self, root: &Path) -> bool {
        !Self::find(root).is_ok_and(|now| now == *self)
    }
}

/// Maps the region, for reading.
fn region_of(cells: BorrowedFd<'_>, path: &Path) -> Result<Region, region::Error> {
    let length =
        sys::value_size(cells).map_err(|source| region::Error::Access { path: path.into(), source })?;
    Region::of_map(path, cells, length as usize)
}

/// When a program is attached: the end of vCPUs first, so that none is missed, and exits last, whose time begins there.
fn rank(event: &str) -> u32 {
    match event {
        "kvm_arch_vcpu_destroy" | "kvm_arch_vcpu_create" => 0,
        "kvm_entry" => 2,
        "kvm_exit" => 3,
        _ => 1,
    }
}

/// The programs for this machine: those that are for any, and for each event one of those whose variant it is. That is
/// `vmx` or `svm`; where the kernel has no cast, with `-typed`, if KVM's types can be had, or else `-probe`.
fn select<'p, 'a>(
    programs: &'p [Program<'a>],
    isa: Isa,
    cast: bool,
    typed: bool,
) -> Result<Vec<&'p Program<'a>>, object::Error> {
    let variants = |isa: Isa| ["", "-typed", "-probe"].map(|rest| format!("{}{rest}", isa.name()));
    let known = |variant| Isa::ALL.iter().any(|&isa| variants(isa).iter().any(|known| known == variant));
    if !programs.iter().all(|program| program.variant.is_empty() || known(program.variant)) {
        return Err(object::Error::Wrong("a program is for machines of an unknown kind"));
    }
    // The last one that is there is taken.
    let [with_cast, with_types, without] = variants(isa);
    let taken = match (cast, typed) {
        (true, _) => vec![String::new(), with_cast],
        (false, true) => vec![String::new(), without, with_types],
        (false, false) => vec![String::new(), without],
    };
    let mut selected = BTreeMap::new();
    for variant in taken {
        let of_it = programs.iter().filter(|program| program.variant == variant);
        selected.extend(of_it.map(|program| (program.event, program)));
    }
    Ok(selected.into_values().collect())
}

/// Attachments with their events, and the programs.
type Attached = (Vec<(String, OwnedFd)>, Vec<OwnedFd>);

/// What programs are linked with.
struct Loader<'o, 'a> {
    object: &'o Object<'a>,
    facts: &'o Facts<'a>,
    /// Numbers of the region's size.
    sizes: [(&'static str, u64); 2],
    cells: OwnedFd,
    maps: Vec<(&'static str, OwnedFd)>,
    data: BTreeMap<usize, OwnedFd>,
}

impl<'o, 'a> Loader<'o, 'a> {
    /// Makes the maps, and the region in one of these.
    fn new(object: &'o Object<'a>, facts: &'o Facts<'a>, cells: u32, vendor: &Vendor) -> Result<Self, Error> {
        let size = cells * CELL_SIZE as u32;
        let region = array(CELLS, size, sys::MAPPABLE)?;
        with_cells(region.as_fd(), cells as usize, |cells| start::start(cells, vendor.isa()))
            .map_err(|source| Error::of_system("map the array", source))?;
        let mut maps = Vec::new();
        for exitscope_abi::bpf::Map { name, kind, key, value, halves } in MAPS {
            let entries = cells * halves / 2;
            let map = sys::Map { name, kind, key, value, entries, flags: 0 };
            maps.push((name, map.create().map_err(|source| Error::of_system("make a map", source))?));
        }
        let mut data = BTreeMap::new();
        for section in object.data() {
            data.insert(section.section, load_data(&section)?);
        }
        let sizes = [(CELLS_MASK, u64::from(size) - CELL_SIZE as u64), (MAX_CELLS, cells.into())];
        Ok(Self { object, facts, sizes, cells: region, maps, data })
    }

    /// Loads all programs, then attaches them in their order.
    fn attach(&self, programs: &[&Program<'_>]) -> Result<Attached, Error> {
        let mut types = None;
        let mut loaded = Vec::new();
        for program in programs {
            let Program { kind, event, .. } = **program;
            let (number, of_module) =
                self.facts.target(kind, event).ok_or_else(|| Error::NoEvent(event.into()))?;
            if of_module && types.is_none() {
                types = Some(sys::types_of("kvm").map_err(Error::of_types)?);
            }
            let types = types.as_ref().filter(|_| of_module).map(AsFd::as_fd);
            let target = sys::Target { kind, event, number, types };
            let code = self.object.link(program, self)?;
            let descriptor = sys::load(target, &code).map_err(|refusal| Error::of_refusal(event, refusal))?;
            loaded.push((kind, event, descriptor));
        }
        let mut links = Vec::new();
        for (kind, event, program) in &loaded {
            let target = sys::Target { kind: *kind, event, number: 0, types: None };
            let link =
                sys::attach(target, program.as_fd()).map_err(|source| Error::of_attach(event, source))?;
            links.push(((*event).to_owned(), link));
        }
        Ok((links, loaded.into_iter().map(|(_, _, program)| program).collect()))
    }
}

impl Symbols for Loader<'_, '_> {
    fn data(&self, section: usize) -> Option<RawFd> {
        self.data.get(&section).map(AsRawFd::as_raw_fd)
    }

    fn value(&self, name: &str) -> Option<Value> {
        if name == CELLS {
            return Some(Value::MapValue(self.cells.as_raw_fd()));
        }
        let map = self.maps.iter().find(|(known, _)| *known == name);
        let size = self.sizes.iter().find(|(known, _)| *known == name);
        map.map(|(_, map)| Value::Map(map.as_raw_fd()))
            .or(size.map(|&(_, size)| Value::Number(size)))
            .or_else(|| self.facts.number(name).map(Value::Number))
    }

    fn kernel_function(&self, name: &str) -> Option<Option<u32>> {
        // The programs do without this one where they are told that it is not there.
        if name == CAST { Some(self.facts.cast()) } else { self.facts.kernel_function(name).map(Some) }
    }
}

fn array(name: &str, size: u32, flags: u32) -> Result<OwnedFd, Error> {
    let map = sys::Map { name, kind: sys::ARRAY, key: 4, value: size, entries: 1, flags };
    map.create().map_err(|source| Error::of_system("make an array", source))
}

/// Makes a map of a section of data.
fn load_data(section: &object::Data<'_>) -> Result<OwnedFd, Error> {
    let size = u32::try_from(section.size).map_err(|_| object::Error::Wrong("a section is too large"))?;
    let flags = if section.writable { 0 } else { sys::READ_ONLY };
    let map = array(section.name, size, flags)?;
    let failed = |source| Error::of_system("fill an array", source);
    if !section.bytes.is_empty() {
        sys::fill(map.as_fd(), section.bytes).map_err(failed)?;
    }
    if !section.writable {
        sys::freeze(map.as_fd()).map_err(failed)?;
    }
    Ok(map)
}

/// Has something done with the cells of an array, while they are mapped.
fn with_cells(map: BorrowedFd<'_>, count: usize, act: impl FnOnce(&[Counters])) -> io::Result<()> {
    let length = count * CELL_SIZE;
    if sys::value_size(map)? as usize != length {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { mmap(ptr::null_mut(), length, access, MapFlags::SHARED, map, 0) }?;
    let cells = NonNull::new(base.cast::<Counters>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
    // SAFETY: the mapping has so many cells, at the beginning of a page; Counters is all atomics, valid for whatever a
    // cell holds.
    act(unsafe { slice::from_raw_parts(cells.as_ptr(), count) });
    // SAFETY: the mapping is ours, and no reference into it is left.
    unsafe { munmap(base, length) }?;
    Ok(())
}

#[cfg(test)]
mod tests;
