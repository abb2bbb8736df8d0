//! Policies of processes: whose exits the guests are told of VMs that have not been seen yet.

use core::ffi::c_void;
use core::ptr;

use exitscope_abi::leaf::Expose;

use crate::ffi;

/// Processes that may have a policy at a time.
const MOST: usize = 64;

/// The policies of processes; part of what the registry's lock protects.
pub struct Policies([Policy; MOST]);

#[derive(Clone, Copy)]
struct Policy {
    /// The kernel's record of the process (`struct pid`), of which this holds a reference; null for none.
    pid: *const c_void,
    expose: Expose,
}

impl Policies {
    pub const NONE: Self = Self([Policy { pid: ptr::null(), expose: Expose::Off }; MOST]);

    /// The policy of the process that runs.
    pub fn of_current(&self) -> Option<Expose> {
        // SAFETY: no precondition.
        let current = unsafe { ffi::exitscope_current_pid() };
        self.0.iter().find(|policy| policy.pid == current).map(|policy| policy.expose)
    }

    /// Sets the policy of a process, whose reference becomes this table's; false where there are too many, then it is
    /// the caller's still.
    pub fn set(&mut self, pid: *const c_void, expose: Expose) -> bool {
        let free = self.0.iter_mut().find(|policy| policy.pid.is_null());
        free.map(|free| *free = Policy { pid, expose }).is_some()
    }

    /// Ends the policy of a process, or of one that has ended itself, if there is such a policy. The reference becomes the
    /// caller's, who puts it when the lock is not held.
    pub fn take(&mut self, pid: *const c_void) -> Option<*const c_void> {
        // SAFETY: these are processes of which this table holds a reference.
        let ended = |policy: &Policy| policy.pid == pid || unsafe { ffi::exitscope_pid_is_dead(policy.pid) };
        let policy = self.0.iter_mut().find(|policy| !policy.pid.is_null() && ended(policy))?;
        Some(core::mem::replace(&mut policy.pid, ptr::null()))
    }

    /// Gives all references back; without the lock.
    pub fn stop(&mut self) {
        for policy in self.0.iter_mut().filter(|policy| !policy.pid.is_null()) {
            // SAFETY: the table's reference.
            unsafe { ffi::exitscope_put_pid(policy.pid) };
            policy.pid = ptr::null();
        }
    }
}
