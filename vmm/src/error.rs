//! What can go wrong, and what to do about it.

use crate::registers::Registers;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why there is no [`crate::Outcome`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The KVM device does not exist.
    #[error("no {}: load kvm_amd or kvm_intel, or use `exitscope lab`", .0.display())]
    NoKvm(PathBuf),
    /// The KVM device exists, but not for this user.
    #[error("no permission to open {}: join the group that owns it (usually `kvm`), or be root", .0.display())]
    KvmPermission(PathBuf),
    /// The KVM device cannot be opened for another reason.
    #[error("cannot open {}: {source}", .path.display())]
    KvmOpen {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device is there, but does not speak KVM's stable API.
    #[error("{} is not a KVM device (API version {version}, not 12): name another one, or use `exitscope lab`", .path.display())]
    NotKvm {
        /// The device.
        path: PathBuf,
        /// What it answered to KVM_GET_API_VERSION.
        version: i32,
    },
    /// A call to KVM failed.
    #[error("KVM refused to {what}: {source}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: kvm_ioctls::Error,
    },
    /// Too many vCPUs, or none.
    #[error("{asked} vCPUs asked for: choose 1 to {most}")]
    Vcpus {
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        most: u32,
    },
    /// Too much memory, or too little.
    #[error("{asked_mib} MiB of memory asked for: choose {min_mib} to {max_mib}")]
    Memory {
        /// How much was asked for.
        asked_mib: u64,
        /// The least there can be.
        min_mib: u64,
        /// The most there can be.
        max_mib: u64,
    },
    /// The host has not enough memory for the guest.
    #[error("cannot map {mib} MiB for the guest ({detail}): ask for less")]
    MapMemory {
        /// How much was asked for.
        mib: u64,
        /// What the system said.
        detail: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel file is neither a bzImage nor a vmlinux.
    #[error("{} is not a 64-bit kernel ({why}): give a bzImage such as /boot/vmlinuz-*", .path.display())]
    BadKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The guest's memory is too small for the kernel to unpack itself.
    #[error("{} needs {need_mib} MiB to unpack itself and the guest has {has_mib}: ask for more memory", .path.display())]
    KernelTooLarge {
        /// The kernel.
        path: PathBuf,
        /// What it needs.
        need_mib: u64,
        /// What there is.
        has_mib: u64,
    },
    /// The initrd does not fit between the kernel and the end of memory.
    #[error("{} has {size} bytes and the guest has room for {room}: ask for more memory", .path.display())]
    InitrdTooLarge {
        /// The initrd.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The room there is in bytes.
        room: u64,
    },
    /// The command line does not fit.
    #[error("the command line has {length} bytes, and this kernel takes {most}: shorten it")]
    CmdlineTooLong {
        /// Its length in bytes.
        length: usize,
        /// What the kernel takes.
        most: usize,
    },
    /// The command line has a zero byte, at which the kernel would stop reading.
    #[error("the command line contains a zero byte: remove it")]
    CmdlineZero,
    /// The flat image does not fit in memory, or is empty.
    #[error("the flat image has {size} bytes: give 1 to {room}, or more memory")]
    FlatImageSize {
        /// Its size in bytes.
        size: u64,
        /// The room there is in bytes.
        room: u64,
    },
    /// Guest memory could not be written where the layout says there is some.
    #[error("cannot write {what} to guest memory: {detail}")]
    GuestMemory {
        /// What was to be written.
        what: &'static str,
        /// What vm-memory said.
        detail: String,
    },
    /// The system refused something other than KVM.
    #[error("cannot {what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The guest ended neither by writing to the DONE port nor by switching itself off.
    #[error("{failure} (vCPU {vcpu}); the console's last lines may say why\n{registers}")]
    GuestFailed {
        /// The vCPU on which it happened.
        vcpu: u32,
        /// What KVM said.
        failure: GuestFailure,
        /// The vCPU's registers at that moment.
        registers: Box<Registers>,
    },
    /// The guest did not end in time and was stopped.
    #[error(
        "the guest was stopped after {after:?}; the console's last lines may say \
         why, or it needs a longer timeout{}", list(.registers)
    )]
    TimedOut {
        /// The time it had.
        after: Duration,
        /// Where each vCPU was that had not ended.
        registers: Vec<(u32, Registers)>,
    },
}

/// How a guest ended that neither wrote to the DONE port nor switched itself off.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestFailure {
    /// It asked the keyboard controller, or ACPI, for a reset. A Linux that panics does so.
    Reset,
    /// KVM_EXIT_SHUTDOWN: a fault while handling a double fault, that is, a triple fault.
    Shutdown,
    /// KVM_EXIT_INTERNAL_ERROR.
    InternalError {
        /// Which one: 1 emulation, 2 simultaneous exceptions, 3 event delivery, 4 unexpected exit reason.
        suberror: u32,
        /// What KVM adds to it.
        data: Vec<u64>,
    },
    /// KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest.
    FailEntry {
        /// The hardware's reason: on VMX the exit reason with bit 31 set, on SVM the exit code.
        reason: u64,
        /// The host CPU on which it happened.
        cpu: u32,
    },
    /// An exit to the VMM that it has no use for.
    Unexpected(String),
    /// KVM_RUN itself failed.
    RunFailed(kvm_ioctls::Error),
}

impl fmt::Display for GuestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => {
                write!(f, "the guest reset itself, as a panicking Linux does")
            }
            Self::Shutdown => write!(f, "the guest shut down (triple fault)"),
            Self::InternalError { suberror, data } => {
                let name = match suberror {
                    1 => "emulation of an instruction failed",
                    2 => "simultaneous exceptions",
                    3 => "exit while delivering an event",
                    4 => "unexpected exit reason",
                    _ => "unknown",
                };
                write!(f, "KVM internal error {suberror} ({name}), data {data:#x?}")
            }
            Self::FailEntry { reason, cpu } => {
                write!(
                    f,
                    "the processor refused to enter the guest: hardware reason {reason:#x} on host CPU {cpu}"
                )
            }
            Self::Unexpected(what) => write!(f, "KVM returned an exit that this VMM does not handle: {what}"),
            Self::RunFailed(errno) => write!(f, "KVM_RUN failed: {errno}"),
        }
    }
}

/// Register dumps below one another, each headed by its vCPU.
fn list(registers: &[(u32, Registers)]) -> String {
    registers.iter().map(|(vcpu, registers)| format!("\nvCPU {vcpu}:\n{registers}")).collect()
}
