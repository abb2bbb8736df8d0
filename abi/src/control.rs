//! What may be asked of `/dev/exitscope` besides reading: ioctls, for which the device must be open for writing.
//!
//! Errors: EBADF where it is not, EFAULT and EINVAL for a wrong argument, EPERM without CAP_SYS_ADMIN for a reset and
//! for a policy that shows the whole host (`host`, and the module's parameter while it is that), ENOTTY for any other request.

use crate::leaf::Expose;
use crate::region::EXPOSE_AS_MODULE;

/// Sets whose exits the guest of one VM is told; the argument points to a [`Policy`]. ENOENT where no live VM has that
/// number. It is `_IOW('e', 0xe0, struct exitscope_policy)`.
pub const SET_POLICY: u32 = 1 << 30 | (size_of::<Policy>() as u32) << 16 | (b'e' as u32) << 8 | 0xE0;
/// Sets whose exits the guests of all VMs of a process are told, of those that it has and of those that it will have; the
/// argument points to a [`Policy`]. [`crate::region::EXPOSE_AS_MODULE`] ends that, and so does the process. ESRCH where
/// there is no such process, ENOSPC where too many have a policy. It is `_IOW('e', 0xe2, struct exitscope_policy)`.
pub const SET_PROCESS_POLICY: u32 = SET_POLICY + 2;
/// Makes what has been counted until now the baseline that readers may subtract; nothing is zeroed. ENOMEM where there
/// is no room for it. It is `_IO('e', 0xe1)`.
pub const RESET: u32 = (b'e' as u32) << 8 | 0xE1;

/// The argument of [`SET_POLICY`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Policy {
    /// [`crate::region::VmCell::id`]; for [`SET_PROCESS_POLICY`] a process, by its number in the caller's namespace.
    pub vm: u64,
    /// A number of [`crate::leaf::Expose`], or [`crate::region::EXPOSE_AS_MODULE`].
    pub expose: u32,
    /// 0.
    pub reserved: u32,
}

impl Policy {
    /// The argument for a VM or a process; `None` stands for the module's policy.
    pub const fn new(vm: u64, expose: Option<Expose>) -> Self {
        let expose = match expose {
            Some(expose) => expose as u32,
            None => EXPOSE_AS_MODULE,
        };
        Self { vm, expose, reserved: 0 }
    }
}
