//! The kernel module: what happens when KVM reports an exit or an entry.
//!
//! `shim.c` and `facts.c` say what only kernel headers can say (tracepoints, locks, memory, the character device, where
//! things are in KVM's structures); every decision is here. The accounting itself is `exitscope-core`, the leaf
//! protocol and the layout of the counters are `exitscope-abi`. Nothing here can panic: there is no unwinding in a
//! kernel.
#![no_std]

mod cells;
mod clock;
mod control;
mod facts;
mod ffi;
#[cfg(exitscope_holds)]
mod holds;
#[cfg(exitscope_miscount)]
mod miscount;
mod policies;
mod probe;
mod records;
mod registry;
mod setting;
mod slot;
mod whole_host;

use core::ffi::{c_int, c_ulong, c_void};

/// Prepares the region; called once, before any probe is registered. 0, or a negative errno.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_start() -> c_int {
    match registry::start() {
        Some(()) => 0,
        None => -ffi::ENOMEM,
    }
}

/// Gives all memory back; called once, when no probe can run and no mapping exists any more.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_stop() {
    registry::stop();
}

/// A page of the region, by its number; null where the region has no such page (yet).
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_region_page(number: c_ulong) -> *mut c_void {
    cells::page(number as usize)
}

/// Somebody begins to read.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_note_tsc_khz() {
    cells::note_tsc_khz();
}

/// KVM is about to free this vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_on_destroy(vcpu: *mut c_void) {
    registry::finish(vcpu);
}

/// A kernel has nobody to report a panic to; none is reachable, and this ends the machine loudly if one were.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: BUG() has no precondition.
    unsafe { ffi::exitscope_bug() }
}
