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

    /// Sets or, without one, ends the policy of a process. The references that end thereby, the caller's own among them if it
    /// is not kept, are put by the caller when the lock is not held. `None` where too many live processes have a policy.
    pub fn set(&mut self, pid: *const c_void, expose: Option<Expose>) -> Option<[*const c_void; 2]> {
        let place = |this: &Self, wanted: &dyn Fn(*const c_void) -> bool| {
            this.0.iter().position(|policy| wanted(policy.pid))
        };
        let own = place(self, &|other| other == pid);
        // SAFETY: these are processes of which this table holds a reference.
        let ended = |other: *const c_void| other.is_null() || unsafe { ffi::exitscope_pid_is_dead(other) };
        let free = || place(self, &ended);
        let Some(policy) = own.or_else(|| expose.and_then(|_| free())).and_then(|at| self.0.get_mut(at))
        else {
            return expose.is_none().then_some([pid, ptr::null()]);
        };
        let before = core::mem::replace(&mut policy.pid, ptr::null());
        match expose {
            Some(expose) => {
                *policy = Policy { pid, expose };
                Some([before, ptr::null()])
            }
            None => Some([before, pid]),
        }
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
