//! Records of one kind: taken, given back and taken again, and freed only when the module is unloaded.

use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{Relaxed, Release};

use exitscope_abi::region::{CELL_SIZE, CELLS_PER_PAGE};

use crate::ffi;

/// A record, of which a page holds a few.
pub trait Record: Sized + 'static {
    /// One that is not in use.
    const EMPTY: Self;

    /// The next free record, where this is free.
    fn next_free(&self) -> *mut Self;
    /// Sets that; under the lock.
    fn set_next_free(&self, next: *mut Self);
    /// The first record of the page that came before this one's, where this is the first of its page.
    fn next_page(&self) -> &AtomicPtr<Self>;
}

/// All records of a kind; part of what the registry's lock protects.
pub struct Records<T> {
    free: *mut T,
    /// The first record of each page, linked through [`Record::next_page`], the newest first.
    pages: *mut T,
}

impl<T: Record> Records<T> {
    pub const NONE: Self = Self { free: ptr::null_mut(), pages: ptr::null_mut() };
    /// How many a page has.
    pub const PER_PAGE: usize = CELL_SIZE * CELLS_PER_PAGE / size_of::<T>();

    /// A record that was free. `None` where memory is short.
    pub fn take(&mut self) -> Option<&'static T> {
        if self.free.is_null() {
            self.grow()?;
        }
        // SAFETY: free records are initialised, and live until `stop`.
        let record = unsafe { self.free.as_ref() }?;
        self.free = record.next_free();
        Some(record)
    }

    /// Gives a record back that nobody uses any more.
    pub fn give(&mut self, record: &T) {
        record.set_next_free(self.free);
        self.free = ptr::from_ref(record).cast_mut();
    }

    /// The first record of the newest page.
    pub fn newest_page(&self) -> *mut T {
        self.pages
    }

    fn grow(&mut self) -> Option<()> {
        const { assert!(Self::PER_PAGE > 0 && align_of::<T>() <= CELL_SIZE) }
        // SAFETY: no precondition; null is handled.
        let page: NonNull<T> = NonNull::new(unsafe { ffi::exitscope_page_alloc() }.cast())?;
        for index in (0..Self::PER_PAGE).rev() {
            // SAFETY: within the page, and written before it is used.
            unsafe {
                let record = page.add(index);
                record.write(T::EMPTY);
                self.give(record.as_ref());
            }
        }
        // SAFETY: written just now.
        unsafe { page.as_ref() }.next_page().store(self.pages, Release);
        self.pages = page.as_ptr();
        Some(())
    }

    /// Frees all of them, when nobody uses one.
    pub fn stop(&mut self) {
        let mut page = self.pages;
        *self = Self::NONE;
        while let Some(first) = NonNull::new(page) {
            // SAFETY: the first record of a page that is this one's.
            unsafe {
                page = first.as_ref().next_page().load(Relaxed);
                ffi::exitscope_page_free(first.as_ptr().cast());
            }
        }
    }
}
