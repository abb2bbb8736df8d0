//! The region's memory: pages of cells, allocated and freed under the registry's lock.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicUsize, fence};

use exitscope_abi::region::{
    CELL_SIZE, CELLS_PER_PAGE, Counters, EXPOSE_AS_MODULE, FIELDS, FIELDS_PER_CELL, Head, Header, MAGIC,
    MAX_PAGES, Schema, VERSION, VcpuCell, VmCell, flags, kind, state,
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

/// Counters, or a baseline of such.
pub fn counters(number: Number) -> Option<&'static Counters> {
    // SAFETY: as for the header.
    cell(number).map(|cell| unsafe { view(cell) })
}

/// Counts an exit of a vCPU that has no account.
pub fn count_unaccounted() {
    if let Some(header) = header() {
        header.unaccounted.fetch_add(1, Relaxed);
    }
    set_overflowed();
}

/// Tells readers that some exits are not counted where they belong.
pub fn set_overflowed() {
    if let Some(header) = header()
        && header.flags.load(Relaxed) & flags::OVERFLOWED == 0
    {
        header.flags.fetch_or(flags::OVERFLOWED, Relaxed);
    }
}

/// Tells readers that numbers are about to move from cells to others, or have done so.
pub fn note_move() {
    if let Some(header) = header() {
        header.moves.fetch_add(1, AcqRel);
    }
}

/// Reads numbers without the lock; `None` where some have moved meanwhile.
pub fn between_moves<T>(read: impl FnOnce() -> T) -> Option<T> {
    let moves = &header()?.moves;
    let before = moves.load(Acquire);
    let result = read();
    fence(Acquire);
    (before.is_multiple_of(2) && moves.load(Relaxed) == before).then_some(result)
}

/// Tells readers that counters are about to be copied to baselines, or have been.
pub fn note_reset() {
    if let Some(header) = header() {
        header.resets.fetch_add(1, AcqRel);
    }
}

/// The cells that no one owns; part of what the registry's lock protects.
#[derive(Debug)]
pub struct Pool {
    /// The first free cell; the list is linked through [`Head::owner`], and 0 ends it.
    free_list: Number,
    /// Length of that list.
    free_cells: usize,
}

impl Pool {
    pub const fn new() -> Self {
        Self { free_list: 0, free_cells: 0 }
    }

    /// Allocates the first page, fills in the header and describes the region in it.
    pub fn start(&mut self) -> Option<()> {
        self.grow()?;
        let header = header()?;
        header.version.store(VERSION, Relaxed);
        header.cell_size.store(CELL_SIZE as u32, Relaxed);
        header.max_cells.store((most_pages() * CELLS_PER_PAGE) as u32, Relaxed);
        for (index, fields) in (0..).zip(FIELDS.chunks(FIELDS_PER_CELL)) {
            let (number, _) = self.alloc(kind::SCHEMA, 0, 0, state::LIVE, |schema: &Schema| {
                let places = schema.fields.iter().flatten();
                places
                    .zip(fields.iter().flat_map(|field| field.words()))
                    .for_each(|(to, word)| to.store(word, Relaxed));
            })?;
            if index == 0 {
                header.schema.store(number, Relaxed);
            }
            header.schema_cells.store(index + 1, Relaxed);
        }
        header.magic.store(MAGIC, Release);
        Some(())
    }

    /// Adds a page of free cells, of which the lowest number will be taken first.
    fn grow(&mut self) -> Option<()> {
        let index = COUNT.load(Relaxed);
        let place = PAGES.get(..most_pages())?.get(index)?;
        // SAFETY: no precondition; null is handled.
        let page = NonNull::new(unsafe { ffi::exitscope_page_alloc() })?;
        place.store(page.as_ptr(), Release);
        COUNT.store(index + 1, Relaxed);
        let first = (index * CELLS_PER_PAGE) as Number;
        let end = first + CELLS_PER_PAGE as Number;
        let header = header()?;
        header.cells.store(end, Release);
        // They are freed as if they had been in use.
        header.used_cells.store(header.used_cells.load(Relaxed) + (end - first.max(1)), Relaxed);
        for number in (first.max(1)..end).rev() {
            self.free(number);
        }
        Some(())
    }

    /// Whether there will be no such room unless cells are given back.
    pub fn is_full(&self, cells: usize) -> bool {
        self.free_cells + (most_pages() - COUNT.load(Relaxed)) * CELLS_PER_PAGE < cells
    }

    /// Allocates a cell for an owner; readers see it once `fill` has written what is not zero.
    fn alloc<T: 'static>(
        &mut self,
        kind: u16,
        owner: Number,
        code: u32,
        state: u16,
        fill: impl FnOnce(&T),
    ) -> Option<(Number, &'static T)> {
        if self.free_cells == 0 {
            self.grow()?;
        }
        let number = self.free_list;
        let cell = cell(number)?;
        // SAFETY: every cell begins with a Head, is as large as Counters, and `kind` stands for T: all are the
        // region's structures.
        let (head, words, whole): (&Head, &Counters, &T) = unsafe { (view(cell), view(cell), view(cell)) };
        self.free_list = head.owner.load(Relaxed);
        self.free_cells -= 1;
        use_cells(1);
        clear(words);
        fill(whole);
        head.owner.store(owner, Relaxed);
        head.code.store(code, Relaxed);
        head.state.store(state, Relaxed);
        head.kind.store(kind, Release);
        Some((number, whole))
    }

    /// A cell for a VM.
    pub fn alloc_vm(&mut self, id: u64, pid: u32, state: u16) -> Option<Number> {
        note_tsc_khz();
        let fill = |vm: &VmCell| {
            vm.id.store(id, Relaxed);
            vm.pid.store(pid, Relaxed);
            vm.expose.store(EXPOSE_AS_MODULE, Relaxed);
        };
        self.alloc(kind::VM, 0, 0, state, fill).map(|(number, _)| number)
    }

    /// A cell for a vCPU of a VM.
    pub fn alloc_vcpu(&mut self, vm: Number, id: u32, thread: u32, state: u16) -> Option<Number> {
        let fill = |vcpu: &VcpuCell| {
            vcpu.id.store(id, Relaxed);
            vcpu.thread.store(thread, Relaxed);
        };
        self.alloc(kind::VCPU, vm, 0, state, fill).map(|(number, _)| number)
    }

    /// Counters of one of the kinds that are [`Counters`].
    pub fn alloc_counters(
        &mut self,
        kind: u16,
        owner: Number,
        code: u32,
    ) -> Option<(Number, &'static Counters)> {
        self.alloc(kind, owner, code, state::LIVE, |counters: &Counters| {
            counters.min.store(u64::MAX, Relaxed)
        })
    }

    /// Frees a cell. Readers see its kind and generation change before anything else.
    pub fn free(&mut self, number: Number) {
        let Some(cell) = cell(number) else { return };
        // SAFETY: every cell begins with a Head.
        let head: &Head = unsafe { view(cell) };
        head.kind.store(kind::FREE, Relaxed);
        head.generation.fetch_add(1, AcqRel);
        head.owner.store(self.free_list, Relaxed);
        self.free_list = number;
        self.free_cells += 1;
        use_cells(-1);
    }

    /// Frees every page.
    pub fn stop(&mut self) {
        *self = Self::new();
        for page in PAGES.iter().take(COUNT.swap(0, Relaxed)) {
            // SAFETY: the page came from exitscope_page_alloc and no one uses the region any more.
            unsafe { ffi::exitscope_page_free(page.swap(ptr::null_mut(), Relaxed)) };
        }
    }
}

/// Writes the frequency of the time stamp counter into the header; the kernel refines it in the first seconds after its
/// start.
pub fn note_tsc_khz() {
    if let Some(header) = header() {
        // SAFETY: asks for a kernel variable.
        header.tsc_khz.store(unsafe { ffi::exitscope_tsc_khz() }, Relaxed);
    }
}

/// Says in the header that so many cells more are in use.
fn use_cells(more: i32) {
    if let Some(header) = header() {
        header.used_cells.store(header.used_cells.load(Relaxed).wrapping_add_signed(more), Relaxed);
    }
}

/// The most pages that the region may have.
fn most_pages() -> usize {
    // SAFETY: asks for a module parameter that never changes.
    unsafe { ffi::exitscope_most_pages() as usize }.clamp(2, MAX_PAGES)
}

/// Cells that counters leave free, an eighth of all: so that reasons of the VMs that there are do not keep new vCPUs from
/// having an account.
pub fn reserved_for_vcpus() -> usize {
    most_pages() * CELLS_PER_PAGE / 8
}

/// The most counters that the vCPUs of one VM may have.
pub fn most_counters_of_vm() -> usize {
    // SAFETY: asks for a module parameter that never changes.
    match unsafe { ffi::exitscope_most_pages_of_vm() as usize } {
        0 => most_pages() * CELLS_PER_PAGE / 4,
        pages => pages * CELLS_PER_PAGE,
    }
}

/// Zeroes all of a cell but its head.
fn clear(cell: &Counters) {
    let Counters { head: _, exits, cycles, min, max, user, halted, polled, histogram } = cell;
    for word in [exits, cycles, min, max, user, halted, polled].into_iter().chain(histogram) {
        word.store(0, Relaxed);
    }
}
