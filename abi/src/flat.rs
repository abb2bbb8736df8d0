//! The protocol between the micro-VMM and a flat guest: where the image lies, and what its ports mean.
//!
//! A flat guest is a position-independent blob of machine code without an operating system.
//! It is loaded at [`LOAD_ADDRESS`] and entered at its first byte on every vCPU, in 64-bit mode at CPL 0,
//! with interrupts off, the first 4 GiB mapped one to one, and a small stack of the vCPU's own:
//!
//! | register | value |
//! | --- | --- |
//! | `RDI` | index of the vCPU |
//! | `RSI` | iterations that the workload shall do |
//! | `RDX` | batch: 0, or how many iterations to time together with RDTSC |
//!
//! The memory behind the image is the guest's too, and zero.
//! There is no interrupt controller in the kernel: HLT returns to the VMM, which re-enters at once.

/// Guest physical address of the image's first byte.
pub const LOAD_ADDRESS: u64 = 0x10_0000;

/// Guest physical address that never has memory: the VMM ignores writes there, and reads give all ones.
pub const MMIO_HOLE: u64 = 0xd000_0000;

/// Port of the status: a 32-bit write ends the vCPU (under Linux: the VM); 0 is success.
///
pub const PORT_DONE: u16 = 0x500;

/// Port of the reports: two 32-bit writes in a row, low half first, make one 64-bit report.
pub const PORT_REPORT: u16 = 0x504;

/// Port of the barrier: a write returns once every vCPU has written here or has ended.
///
/// A vCPU is entered for the first time when its predecessor has reached the VMM once. A guest that touches
/// everything it needs and then waits here therefore takes the same page faults in every run, and its vCPUs
/// start their loops together.
pub const PORT_READY: u16 = 0x508;

/// Port whose writes the VMM ignores (the PC's POST code port).
pub const PORT_IGNORED: u16 = 0x80;

/// What a timed workload reports when it did not finish even one whole batch.
pub const NO_BATCH: u64 = u64::MAX;

/// Hypercall number that no hypervisor knows ("EXIT" in ASCII); KVM answers it with `-ENOSYS`.
pub const UNKNOWN_HYPERCALL: u32 = 0x4558_4954;
