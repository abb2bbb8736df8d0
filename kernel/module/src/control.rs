//! What an administrator asks of the module through `/dev/exitscope`, besides reading.

use core::ffi::c_int;

use exitscope_abi::leaf::Expose;
use exitscope_abi::region::EXPOSE_AS_MODULE;

use crate::ffi::{EINVAL, ENOENT, ENOMEM};
use crate::registry;

/// Sets whose exits the guest of a VM is told: a number of [`Expose`], or [`EXPOSE_AS_MODULE`]. 0, -EINVAL for another
/// number, or -ENOENT where no live VM has the number `id`.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_set_policy(id: u64, expose: u32) -> c_int {
    let expose = match expose {
        EXPOSE_AS_MODULE => None,
        number => match u8::try_from(number).ok().and_then(Expose::from_number) {
            Some(expose) => Some(expose),
            None => return -EINVAL,
        },
    };
    if registry::set_expose(id, expose) { 0 } else { -ENOENT }
}

/// Makes what has been counted until now the baseline that readers may subtract. 0, or -ENOMEM. One call at a time.
#[unsafe(no_mangle)]
pub extern "C" fn exitscope_reset() -> c_int {
    if registry::reset() { 0 } else { -ENOMEM }
}
