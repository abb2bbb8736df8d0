//! The region's memory: pages of cells, handed out and taken back under the registry's lock.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize};

use exitscope_abi::region::{
    CELL_SIZE, CELLS_PER_PAGE, Counters, Head, Header, MAGIC, MAX_PAGES, VERSION, VcpuCell, VmCell, flags,
    kind, state,
};

use crate::ffi;

/// Pages of the region, in order; set once, valid until [`stop`].
static PAGES: [AtomicPtr<c_void>; MAX_PAGES] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_PAGES];
/// How many of them exist.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A page of the region; null where there is none.
pub fn page(number: usize) -> *mut c_void {
    PAGES.get(number).map_or(ptr::null_mut(), |page| page.load(Acquire))
}

/// Number of a cell in the region.
pub type Number = u32;

fn cell(number: Number) -> Option<NonNull<c_void>> {
    let number = number as usize;
    let page = NonNull::new(page(number / CELLS_PER_PAGE))?;
    // SAFETY: the offset is less than a page, and pages are whole.
    Some(unsafe { page.byte_add(number % CELLS_PER_PAGE * CELL_SIZE) })
}

/// A cell seen as one of the region's structures.
///
/// # Safety
/// `T` must be one of the region's structures: all of its fields atomic, valid for any bytes, no larger than a
/// cell. The reference must not be used after [`stop`].
unsafe fn view<T>(cell: NonNull<c_void>) -> &'static T {
    const { assert!(size_of::<T>() <= CELL_SIZE && align_of::<T>() <= CELL_SIZE) }
    // SAFETY: cells are CELL_SIZE bytes at a multiple of CELL_SIZE in a live page; the caller vouches for T.
    unsafe { cell.cast().as_ref() }
}

/// The header.
pub fn header() -> Option<&'static Header> {
    // SAFETY: Header is the region's, and only probes and calls before `stop` come here.
    cell(0).map(|cell| unsafe { view(cell) })
}

/// A VM's cell.
pub fn vm(number: Number) -> Option<&'static VmCell> {
    // SAFETY: as for the header.
    cell(number).map(|cell| unsafe { view(cell) })
}

/// A vCPU's cell.
pub fn vcpu(number: Number) -> Option<&'static VcpuCell> {
    // SAFETY: as for the header.
    cell(number).map(|cell| unsafe { view(cell) })
}

/// Tells readers that numbers are about to move from cells to others, or have done so.
pub fn announce_move() {
    if let Some(header) = header() {
        header.moves.fetch_add(1, AcqRel);
    }
}

/// The cells that no one owns; part of what the registry's lock protects.
#[derive(Debug)]
pub struct Pool {
    /// First of a chain linked through [`Head::owner`]; 0 ends it.
    free: Number,
}

impl Pool {
    pub const fn new() -> Self {
        Self { free: 0 }
    }

    /// Allocates the first page and fills in the header.
    pub fn start(&mut self) -> Option<()> {
        self.grow()?;
        let header = header()?;
        header.version.store(VERSION, Relaxed);
        header.cell_size.store(CELL_SIZE as u32, Relaxed);
        // SAFETY: asks for a kernel variable.
        header.tsc_khz.store(unsafe { ffi::exitscope_tsc_khz() }, Relaxed);
        header.magic.store(MAGIC, Release);
        Some(())
    }

    /// Adds a page of free cells.
    fn grow(&mut self) -> Option<()> {
        let index = COUNT.load(Relaxed);
        let place = PAGES.get(index)?;
        // SAFETY: no precondition; null is handled.
        let page = NonNull::new(unsafe { ffi::exitscope_page_alloc() })?;
        place.store(page.as_ptr(), Release);
        COUNT.store(index + 1, Relaxed);
        let first = (index * CELLS_PER_PAGE) as Number;
        let end = first + CELLS_PER_PAGE as Number;
        header()?.cells.store(end, Release);
        for number in (first.max(1)..end).rev() {
            self.give_back(number);
        }
        Some(())
    }

    /// Gives a cell to an owner; readers see it once `fill` has written what is not zero.
    fn take<T: 'static>(
        &mut self,
        kind: u32,
        owner: Number,
        life: u32,
        fill: impl FnOnce(&T),
    ) -> Option<(Number, &'static T)> {
        if self.free == 0 && self.grow().is_none() {
            header()?.flags.fetch_or(flags::OVERFLOWED, Relaxed);
            return None;
        }
        let number = self.free;
        let cell = cell(number)?;
        // SAFETY: every cell begins with a Head, is as large as Counters, and `kind` stands for T: all are the
        // region's structures.
        let (head, words, whole): (&Head, &Counters, &T) = unsafe { (view(cell), view(cell), view(cell)) };
        self.free = head.owner.load(Relaxed);
        clear(words);
        fill(whole);
        head.owner.store(owner, Relaxed);
        head.state.store(life, Relaxed);
        head.kind.store(kind, Release);
        Some((number, whole))
    }

    /// A cell for a VM.
    pub fn take_vm(&mut self, id: u64, pid: u32, life: u32) -> Option<Number> {
        let fill = |vm: &VmCell| {
            vm.id.store(id, Relaxed);
            vm.pid.store(pid, Relaxed);
        };
        self.take(kind::VM, 0, life, fill).map(|(number, _)| number)
    }

    /// A cell for a vCPU of a VM.
    pub fn take_vcpu(&mut self, vm: Number, id: u32, life: u32) -> Option<Number> {
        let fill = |vcpu: &VcpuCell| vcpu.id.store(id, Relaxed);
        self.take(kind::VCPU, vm, life, fill).map(|(number, _)| number)
    }

    /// Counters for a code of a vCPU.
    pub fn take_counters(&mut self, vcpu: Number, code: u64) -> Option<(Number, &'static Counters)> {
        self.take(kind::COUNTERS, vcpu, state::LIVE, |counters: &Counters| {
            counters.code.store(code, Relaxed);
            counters.min.store(u64::MAX, Relaxed);
        })
    }

    /// Takes a cell back. Readers see its kind and generation change before anything else.
    pub fn give_back(&mut self, number: Number) {
        let Some(cell) = cell(number) else { return };
        // SAFETY: every cell begins with a Head.
        let head: &Head = unsafe { view(cell) };
        head.kind.store(kind::FREE, Relaxed);
        head.generation.fetch_add(1, AcqRel);
        head.owner.store(self.free, Relaxed);
        self.free = number;
    }

    /// Frees every page.
    pub fn stop(&mut self) {
        self.free = 0;
        for page in PAGES.iter().take(COUNT.swap(0, Relaxed)) {
            // SAFETY: the page came from exitscope_page_alloc and no one uses the region any more.
            unsafe { ffi::exitscope_page_free(page.swap(ptr::null_mut(), Relaxed)) };
        }
    }
}

/// Zeroes all of a cell but its head.
fn clear(cell: &Counters) {
    let words: [&AtomicU64; 5] = [&cell.code, &cell.exits, &cell.cycles, &cell.min, &cell.max];
    for word in words.into_iter().chain(&cell.histogram) {
        word.store(0, Relaxed);
    }
}
