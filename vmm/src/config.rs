//! What to run, and on what.

use std::path::PathBuf;
use std::time::Duration;

/// A command line with which a stock Debian cloud kernel boots fast under this VMM.
///
/// `panic=-1` makes a panic reset the guest at once, which [`run`](crate::run) reports; the rest leaves out waits and probes
/// for hardware that is not there.
pub const LINUX_CMDLINE: &str =
    "console=ttyS0 panic=-1 reboot=k 8250.nr_uarts=1 random.trust_cpu=on io_delay=none";

/// What to run, and on what.
#[derive(Clone, Debug)]
pub struct Config {
    /// Guest memory in MiB: 2 to 3072, in one piece from address 0.
    pub memory_mib: u64,
    /// Number of vCPUs: 1 to 254, or what KVM allows if that is less.
    pub vcpus: u32,
    /// What runs in the guest.
    pub payload: Payload,
    /// The device to ask for a VM, usually `/dev/kvm`.
    pub kvm_device: PathBuf,
    /// How long the guest may run before it is stopped and [`Error::TimedOut`](crate::Error::TimedOut) is given back.
    pub timeout: Option<Duration>,
    /// How long the VMM sleeps when the guest writes to [`exitscope_abi::flat::PORT_IGNORED`].
    pub port_delay: Duration,
    /// Has the kernel halt a flat guest's vCPUs, and ends halts: once in so many. Without it HLT goes to the VMM.
    pub halt: Option<Duration>,
}

impl Default for Config {
    /// One vCPU with 256 MiB and an empty flat image, on `/dev/kvm`, without a time limit.
    fn default() -> Self {
        Self {
            memory_mib: 256,
            vcpus: 1,
            payload: Payload::Flat { works: Vec::new(), batch: 0 },
            kvm_device: PathBuf::from("/dev/kvm"),
            timeout: None,
            port_delay: Duration::ZERO,
            halt: None,
        }
    }
}

/// What runs in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A Linux kernel, booted through the 64-bit boot protocol.
    Linux {
        /// The kernel: a bzImage, as in `/boot/vmlinuz-*`, or the ELF file (vmlinux) that is packed in it.
        ///
        /// A vmlinux starts sooner, since it has not to unpack itself, which counts on an emulated processor;
        /// it runs at the address for which it was linked (no KASLR).
        kernel: PathBuf,
        /// The initial RAM file system, if there is one.
        initrd: Option<PathBuf>,
        /// The kernel's command line; see [`LINUX_CMDLINE`].
        cmdline: String,
    },
    /// Bare machine code under the protocol of [`exitscope_abi::flat`].
    Flat {
        /// What each vCPU does, by its index; the last is that of all further ones, too.
        works: Vec<FlatWork>,
        /// Passed to the guest in RDX.
        batch: u64,
    },
}

/// What a vCPU does under the protocol of [`exitscope_abi::flat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatWork {
    /// Machine code; the first vCPU's is loaded at [`exitscope_abi::flat::LOAD_ADDRESS`].
    pub image: Vec<u8>,
    /// Passed to the guest in RSI.
    pub iterations: u64,
}
