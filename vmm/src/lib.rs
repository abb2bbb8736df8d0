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
pub mod bare;
mod config;
mod cpuid;
mod devices;
mod error;
pub mod firmware;
mod flat;
pub mod init;
mod layout;
mod linux;
mod long_mode;
mod mailbox;
pub mod offer;
mod outcome;
mod registers;
mod supervise;
mod vcpu;
mod vcpu_sync;
mod vm;

use std::io::Write;

pub use config::{Config, FlatWork, LINUX_CMDLINE, Payload};
pub use error::{Error, GuestFailure};
pub use outcome::{Outcome, VcpuOutcome};
pub use registers::Registers;

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
    let devices = devices::Devices::new(&vm, Box::new(console), config.port_delay)?;
    let vcpus = vcpu::create_all(&vm, &entry)?;
    let outcome = supervise::run(vcpus, devices, vm.mode(), config)?;
    // The VM lives until here, though its guest has ended.
    let result = then(&outcome);
    drop(vm);
    Ok((outcome, result))
}
