//! Asks the kernel module for what is more than reading: a policy for one VM, and a reset.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use exitscope_abi::control::{Policy, RESET, SET_POLICY, SET_PROCESS_POLICY};
use exitscope_abi::leaf::Expose;
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, ioctl};

use crate::region::{self, Error};

/// The module's device, open for writing.
#[derive(Debug)]
pub struct Control {
    device: File,
    path: PathBuf,
}

impl Control {
    /// Opens the device.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let device =
            File::options().read(true).write(true).open(path).map_err(|e| region::not_open(path, e))?;
        Ok(Self { device, path: path.into() })
    }

    /// Sets whose exits the guest of a VM is told; `None` leaves that to the module's parameter. False when no live VM
    /// has this number.
    pub fn set_policy(&self, vm: u64, expose: Option<Expose>) -> Result<bool, Error> {
        let policy = Policy::new(vm, expose);
        // SAFETY: the request reads a `Policy`.
        match unsafe { ioctl(&self.device, Setter::<SET_POLICY, Policy>::new(policy)) } {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed(errno)),
        }
    }

    /// Sets whose exits the guests of a process are told: of the VMs that it has, and as long as it lives, of those that
    /// it will have; `None` leaves that to the module's parameter. False when there is no such process.
    pub fn set_process_policy(&self, pid: u32, expose: Option<Expose>) -> Result<bool, Error> {
        let policy = Policy::new(pid.into(), expose);
        // SAFETY: the request reads a `Policy`.
        match unsafe { ioctl(&self.device, Setter::<SET_PROCESS_POLICY, Policy>::new(policy)) } {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(self.failed(errno)),
        }
    }

    /// Makes what has been counted until now the baseline of [`region::Region::since_reset`]. Nobody else's numbers
    /// change.
    pub fn reset(&self) -> Result<(), Error> {
        // SAFETY: the request has no argument.
        unsafe { ioctl(&self.device, NoArg::<RESET>::new()) }.map_err(|errno| self.failed(errno))
    }

    fn failed(&self, errno: Errno) -> Error {
        if errno == Errno::PERM {
            return Error::NoAdmin { path: self.path.clone() };
        }
        Error::Access { path: self.path.clone(), source: io::Error::from(errno) }
    }
}
