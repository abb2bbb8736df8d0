//! What `shim.c` offers, declared for Rust; `shim.h` holds the same declarations for C.

use core::ffi::{c_char, c_int, c_ulong, c_void};

/// errno values used here, as in `<linux/errno.h>`.
pub const ENOMEM: c_int = 12;
/// There is no such thing.
pub const ENOENT: c_int = 2;
/// Invalid argument.
pub const EINVAL: c_int = 22;

/// Time of halts, in ns; `struct exitscope_halt` in `shim.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HaltStats {
    /// Halt polling, whether it found a wake-up or not.
    pub polled: u64,
    /// The vCPU's thread slept.
    pub waited: u64,
}

unsafe extern "C" {
    /// Not a variable: its *address* is the offset of the VMCB pointer in KVM's `struct vcpu_svm`, of which a vCPU
    /// pointer is the start.
    pub static exitscope_vmcb_pointer: c_void;
    /// Not a variable: its address is the offset of the guest's general registers (`vcpu->arch.regs`), 64 bits each
    /// in KVM's order.
    pub static exitscope_vcpu_regs: c_void;
    /// Per CPU: the slot of the vCPU that it entered last.
    pub static exitscope_current: c_void;

    /// Sets [`exitscope_current`] of every CPU.
    pub fn exitscope_set_current(slot: *const c_void);
    /// Takes the module's one lock with interrupts off; returns what [`exitscope_unlock`] wants.
    pub fn exitscope_lock() -> c_ulong;
    /// Releases the lock.
    pub fn exitscope_unlock(flags: c_ulong);
    /// A zeroed page, without sleeping; null when memory is short.
    pub fn exitscope_page_alloc() -> *mut c_void;
    /// Frees such a page.
    pub fn exitscope_page_free(page: *mut c_void);
    /// Zeroed memory, aligned to 64 bytes for sizes that are a multiple of it, without sleeping; null when short.
    pub fn exitscope_alloc(size: usize) -> *mut c_void;
    /// Frees such memory.
    pub fn exitscope_free(memory: *mut c_void);
    /// The VM (`struct kvm`) of a vCPU.
    pub fn exitscope_vcpu_vm(vcpu: *mut c_void) -> *mut c_void;
    /// KVM's id of a vCPU.
    pub fn exitscope_vcpu_id(vcpu: *mut c_void) -> u32;
    /// Whether the guest's own CPUID may be answered: not where its registers are out of KVM's reach (SEV-ES, SEV-SNP,
    /// TDX), and not while it runs a nested guest.
    pub fn exitscope_vcpu_answerable(vcpu: *mut c_void) -> bool;
    /// The guest's RIP as KVM holds it between exit and entry; `false` when KVM does not hold it.
    pub fn exitscope_vcpu_rip(vcpu: *mut c_void, rip: *mut u64) -> bool;
    /// The process that created a VM.
    pub fn exitscope_vm_pid(vm: *mut c_void) -> u32;
    /// The thread that runs, in the initial PID namespace.
    pub fn exitscope_current_thread() -> u32;
    /// How long a vCPU has been halted in its life, as KVM has measured it.
    pub fn exitscope_vcpu_halt_stats(vcpu: *mut c_void) -> HaltStats;
    /// The module's parameter `pages`.
    pub fn exitscope_most_pages() -> u32;
    /// Frequency of the time stamp counter in kHz, or 0.
    pub fn exitscope_tsc_khz() -> u32;
    /// `BUG()`.
    #[cfg(target_os = "none")]
    pub fn exitscope_bug() -> !;
}

/// Characters of a module parameter.
pub type Text = *const c_char;
