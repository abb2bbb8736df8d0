//! A micro-VMM: boots a stock Linux kernel or a flat image on KVM, and gives back what the guest reported.
//!
//! It has what exitscope's measurements need and nothing else: memory, vCPUs, a serial console, ACPI tables, and
//! the three ports of [`exitscope_abi::flat`]. There is no disk, no network, no PCI.
//!
//! ```no_run
//! use exitscope_vmm::{Config, Payload, run};
//!
//! let config = Config {
//!     payload: Payload::Linux {
//!         kernel: "/boot/vmlinuz".into(),
//!         initrd: Some("guest.cpio".into()),
//!         cmdline: exitscope_vmm::LINUX_CMDLINE.to_owned(),
//!     },
//!     ..Config::default()
//! };
//! let (outcome, ()) = run(&config, std::io::stdout(), |_| ())?;
//! println!("the guest wrote status {} after {:?}", outcome.status, outcome.elapsed);
//! # Ok::<(), exitscope_vmm::Error>(())
//! ```
//!
//! [`run`] reads as the life of a VM: check the configuration, `vm` creates it, `linux` or `flat` fills its
//! memory, `vcpu` sets each vCPU up and runs it against the `devices`, and `supervise` waits for the end.

mod acpi;
mod cpuid;
mod devices;
mod error;
pub mod firmware;
mod flat;
mod gate;
mod layout;
mod linux;
mod long_mode;
mod mailbox;
pub mod offer;
mod registers;
mod supervise;
mod vcpu;
mod vm;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

pub use error::{Death, Error};
pub use registers::Registers;

/// A command line with which a stock Debian cloud kernel boots fast under this VMM.
///
/// `panic=-1` makes a panic reset the guest at once, which [`run`] reports; the rest leaves out waits and probes
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
    /// How long the guest may run before it is stopped and [`Error::TimedOut`] is given back.
    pub timeout: Option<Duration>,
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

/// How a guest ended that wrote to the DONE port or switched itself off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the guest wrote to the DONE port, 0 for success and for a Linux that switched itself off; of several flat vCPUs the first that is not 0.
    pub status: u32,
    /// The vCPUs in the order of their ids.
    pub vcpus: Vec<VcpuOutcome>,
    /// From the first entry to the last vCPU's end.
    pub elapsed: Duration,
}

/// What one vCPU left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuOutcome {
    /// Index of the vCPU, which is its APIC id too.
    pub id: u32,
    /// The values that it wrote to the REPORT port, at most [`VcpuOutcome::MOST_REPORTS`] of them.
    pub reports: Vec<u64>,
    /// How often KVM_RUN returned to the VMM because of the guest (kicks by a signal are not counted).
    pub user_exits: u64,
}

impl VcpuOutcome {
    /// How many reports of a vCPU are kept; later ones are dropped.
    pub const MOST_REPORTS: usize = mailbox::MOST_REPORTS;
}

/// Runs one guest from power-on to its end: a write to the DONE port, or ACPI's power-off.
///
/// What the guest writes to its first serial port goes to `console`, byte by byte. `then` is called when the guest has
/// ended and none of its threads is left, but the VM still exists. When this returns, the VM is gone.
///
/// The first free real-time signal (`SIGRTMIN`) is used to interrupt vCPU threads; its handler does nothing.
///
/// # Errors
/// Everything that keeps the guest from starting, and every other end: see [`Error`].
pub fn run<T>(
    config: &Config,
    console: impl Write + Send + 'static,
    then: impl FnOnce(&Outcome) -> T,
) -> Result<(Outcome, T), Error> {
    let vm = vm::Vm::create(config)?;
    let entry = match &config.payload {
        Payload::Linux { kernel, initrd, cmdline } => {
            let rip = linux::load(vm.memory(), kernel, initrd.as_deref(), cmdline, config.vcpus)?;
            vcpu::Entry::Linux { rip }
        }
        Payload::Flat { works, batch } => {
            flat::load(vm.memory(), works)?;
            vcpu::Entry::Flat {
                iterations: works.iter().map(|work| work.iterations).collect(),
                batch: *batch,
            }
        }
    };
    let devices = devices::Devices::new(&vm, Box::new(console))?;
    let vcpus = vcpu::create_all(&vm, &entry)?;
    let outcome = supervise::run(vcpus, devices, vm.mode(), config.timeout)?;
    // The VM lives until here, though its guest has ended.
    let result = then(&outcome);
    drop(vm);
    Ok((outcome, result))
}
