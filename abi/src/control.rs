//! What may be asked of `/dev/exitscope` besides reading: ioctls, for which the device must be open for writing.
//!
//! Errors: EBADF where it is not, EFAULT and EINVAL for a wrong argument, ENOTTY for any other request.

/// Sets whose exits the guest of one VM is told; the argument points to a [`Policy`]. ENOENT where no live VM has that
/// number. It is `_IOW('e', 0xe0, struct exitscope_policy)`.
pub const SET_POLICY: u32 = 1 << 30 | (size_of::<Policy>() as u32) << 16 | (b'e' as u32) << 8 | 0xE0;
/// Makes what has been counted until now the baseline that readers may subtract; nothing is zeroed. ENOMEM where there
/// is no room for it. It is `_IO('e', 0xe1)`.
pub const RESET: u32 = (b'e' as u32) << 8 | 0xE1;

/// The argument of [`SET_POLICY`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Policy {
    /// [`crate::region::VmCell::id`].
    pub vm: u64,
    /// A number of [`crate::leaf::Expose`], or [`crate::region::EXPOSE_AS_MODULE`].
    pub expose: u32,
    /// 0.
    pub reserved: u32,
}
