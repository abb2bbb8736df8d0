//! The module's parameters `expose` and `layout`.

use core::ffi::c_int;
use core::slice;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::Relaxed;

use exitscope_abi::leaf::{Expose, Layout};

use crate::ffi::{EINVAL, EPERM, Text};

static EXPOSE: AtomicU8 = AtomicU8::new(Expose::Vm as u8);
static LAYOUT: AtomicU8 = AtomicU8::new(Layout::Classic as u8);

/// Whose exits a guest is told.
pub fn expose() -> Expose {
    Expose::from_number(EXPOSE.load(Relaxed)).unwrap_or(Expose::Off)
}

/// Numbering of the course leaves.
pub fn layout() -> Layout {
    Layout::from_number(LAYOUT.load(Relaxed)).unwrap_or(Layout::Classic)
}

/// A parameter's value as text.
///
/// # Safety
/// `text` must point to `length` readable bytes that stay as they are during the call.
unsafe fn to_str<'a>(text: Text, length: usize) -> Option<&'a str> {
    // SAFETY: as the caller promises.
    let bytes = unsafe { slice::from_raw_parts(text.cast::<u8>(), length) };
    core::str::from_utf8(bytes).ok()
}

/// Sets `expose`. 0, -EINVAL for an unknown name, or -EPERM for the whole host, if that may not be shown.
///
/// # Safety
/// As for a byte slice: `text` points to `length` readable bytes.
pub unsafe fn set_expose(text: Text, length: usize, may_show_host: bool) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { to_str(text, length) }.and_then(Expose::from_name) {
        Some(Expose::Host) if !may_show_host => -EPERM,
        expose => set(&EXPOSE, expose.map(|expose| expose as u8)),
    }
}

/// Sets `layout`. 0, or -EINVAL for an unknown name.
///
/// # Safety
/// As for a byte slice: `text` points to `length` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_set_layout(text: Text, length: usize) -> c_int {
    // SAFETY: the caller's promise.
    set(&LAYOUT, unsafe { to_str(text, length) }.and_then(Layout::from_name).map(|layout| layout as u8))
}

fn set(setting: &AtomicU8, value: Option<u8>) -> c_int {
    match value {
        Some(value) => {
            setting.store(value, Relaxed);
            0
        }
        None => -EINVAL,
    }
}

/// The name of the current policy; the length goes to `length`.
///
/// # Safety
/// `length` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_get_expose(length: *mut usize) -> Text {
    // SAFETY: the caller's promise.
    unsafe { return_text(expose().name(), length) }
}

/// The name of the current layout; the length goes to `length`.
///
/// # Safety
/// `length` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_get_layout(length: *mut usize) -> Text {
    // SAFETY: the caller's promise.
    unsafe { return_text(layout().name(), length) }
}

/// # Safety
/// `length` must be writable.
unsafe fn return_text(name: &'static str, length: *mut usize) -> Text {
    // SAFETY: the caller's promise.
    unsafe { length.write(name.len()) };
    name.as_ptr().cast()
}
