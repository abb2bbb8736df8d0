//! What `shim.c` offers, declared for Rust; `shim.h` holds the same declarations for C.

use core::arch::asm;
use core::ffi::{c_char, c_int, c_ulong, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use exitscope_core::HaltStats;

/// errno values used here, as in `<linux/errno.h>`.
pub const EPERM: c_int = 1;
/// No memory.
pub const ENOMEM: c_int = 12;
/// No space left.
pub const ENOSPC: c_int = 28;
/// There is no such thing.
pub const ENOENT: c_int = 2;
/// Invalid argument.
pub const EINVAL: c_int = 22;

unsafe extern "C" {
    /// Not a variable: its *address* is the offset of the VMCB pointer in KVM's `struct vcpu_svm`, of which a vCPU
    /// pointer is the start.
    pub static exitscope_vmcb_pointer: c_void;
    /// Not a variable: its address is the offset of the guest's general registers (`vcpu->arch.regs`), 64 bits each
    /// in KVM's order.
    static exitscope_vcpu_regs: c_void;
    /// Not variables: their addresses are the offsets of a vCPU's VM (`vcpu->kvm`) and number (`vcpu->vcpu_id`).
    static exitscope_vcpu_vm: c_void;
    static exitscope_vcpu_id: c_void;
    /// The same of what KVM knows of a vCPU's state: flags (`arch.hflags`), which registers it has written since the last
    /// exit (`arch.regs_dirty`), and whether the registers are out of its reach (`arch.guest_state_protected`).
    static exitscope_vcpu_hflags: c_void;
    static exitscope_vcpu_regs_dirty: c_void;
    static exitscope_vcpu_is_protected: c_void;
    /// Not variables: their addresses are the flags of a vCPU that runs a nested guest, and of one in system management
    /// mode (0 where KVM has none).
    static exitscope_nested: c_void;
    static exitscope_smm: c_void;
    /// Which bit of `arch.regs_dirty` stands for RIP; set before any exit is seen.
    static exitscope_rip_bit: AtomicU32;
    /// Per CPU: the slot of the vCPU that it entered last.
    pub static exitscope_current: c_void;

    /// Sets [`exitscope_current`] of every CPU.
    pub fn exitscope_set_current(slot: *const c_void);
    /// Takes the module's one lock with interrupts off; returns what [`exitscope_unlock`] wants.
    pub fn exitscope_lock() -> c_ulong;
    /// Releases the lock.
    pub fn exitscope_unlock(flags: c_ulong);
    /// A zeroed page of those that are ready, null when there is none. Under the lock.
    pub fn exitscope_page_alloc() -> *mut c_void;
    /// Has pages ready for [`exitscope_page_alloc`]; may sleep, and takes the lock.
    pub fn exitscope_refill();
    /// The same without sleeping, as many as one vCPU needs; may fail. Takes the lock.
    pub fn exitscope_refill_at_once();
    /// Frees such a page.
    pub fn exitscope_page_free(page: *mut c_void);
    /// Where KVM's `struct vcpu_vmx` has the reason of the last exit, in bytes; set before any exit is seen.
    pub static exitscope_vmx_exit_reason: AtomicU32;
    /// Shows the VMM the general registers as they are now, if it shares them with KVM.
    pub fn exitscope_vcpu_sync_regs(vcpu: *mut c_void);
    /// The process that runs, in the initial PID namespace.
    pub fn exitscope_current_process() -> u32;
    /// The thread that runs, in the initial PID namespace.
    pub fn exitscope_current_thread() -> u32;
    /// How long a vCPU has been halted in its life, as KVM has measured it; `struct exitscope_halt` in `shim.h`.
    pub fn exitscope_vcpu_halt_stats(vcpu: *mut c_void) -> HaltStats;
    /// The module's parameter `pages`.
    pub fn exitscope_most_pages() -> u32;
    /// The module's parameter `vm_pages`.
    pub fn exitscope_most_pages_of_vm() -> u32;
    /// The process that runs, as KVM's process of a policy: an address to be compared only.
    pub fn exitscope_current_pid() -> *const c_void;
    /// Whether a process of a policy has ended.
    pub fn exitscope_pid_is_dead(pid: *const c_void) -> bool;
    /// Gives back the reference to such a process.
    pub fn exitscope_put_pid(pid: *const c_void);
    /// Frequency of the time stamp counter in kHz, or 0.
    pub fn exitscope_tsc_khz() -> u32;
    /// `BUG()`.
    #[cfg(target_os = "none")]
    pub fn exitscope_bug() -> !;
}

/// Where a member of a `struct kvm_vcpu` is, from KVM's header by a symbol that stands for its offset.
macro_rules! member {
    ($(#[$doc:meta])* $name:ident: $type:ty = $symbol:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `vcpu` is a `struct kvm_vcpu`.
        #[inline(always)]
        pub unsafe fn $name(vcpu: *mut c_void) -> *mut $type {
            let place: *mut $type;
            // SAFETY: an addition.
            unsafe {
                asm!("lea {}, [{} + {}]", out(reg) place, in(reg) vcpu, sym $symbol,
                    options(nostack, preserves_flags, pure, readonly));
            }
            place
        }
    };
}

member! {
    /// The VM (`struct kvm`) of a vCPU.
    vcpu_vm: *mut c_void = exitscope_vcpu_vm
}
member! {
    /// KVM's number of a vCPU.
    vcpu_id: u32 = exitscope_vcpu_id
}
member! {
    /// The general registers of a vCPU, 64 bits each in the order of `<asm/kvm_vcpu_regs.h>`.
    vcpu_regs: u64 = exitscope_vcpu_regs
}

/// The lower half of a vCPU's RAX, the first of [`vcpu_regs`], in one instruction: the exit path reads it.
///
/// # Safety
/// `vcpu` is a `struct kvm_vcpu`.
#[inline(always)]
pub unsafe fn vcpu_eax(vcpu: *mut c_void) -> u32 {
    let eax: u32;
    // SAFETY: the member is there.
    unsafe {
        asm!("mov {:e}, [{} + {}]", out(reg) eax, in(reg) vcpu, sym exitscope_vcpu_regs,
            options(nostack, preserves_flags, readonly));
    }
    eax
}

member! {
    /// A vCPU's flags.
    vcpu_hflags: u32 = exitscope_vcpu_hflags
}
member! {
    /// The registers that KVM has written since the last exit.
    vcpu_regs_dirty: u32 = exitscope_vcpu_regs_dirty
}
member! {
    /// Whether a vCPU's registers are out of KVM's reach (SEV-ES, SEV-SNP, TDX).
    vcpu_is_protected: bool = exitscope_vcpu_is_protected
}

/// The value of a symbol that is none of an object's.
macro_rules! value {
    ($symbol:ident) => {{
        let value: u64;
        // SAFETY: the symbol's value alone.
        unsafe {
            asm!("mov {}, offset {}", out(reg) value, sym $symbol, options(nomem, nostack, preserves_flags, pure));
        }
        value as u32
    }};
}

/// What a vCPU runs: 0 for the guest proper, [`Mode::nested`] for a nested guest, another bit for system management mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(u32);

impl Mode {
    /// That of a vCPU.
    ///
    /// # Safety
    /// `vcpu` is a `struct kvm_vcpu` that is alive.
    pub unsafe fn of(vcpu: *mut c_void) -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { vcpu_hflags(vcpu).read() } & (value!(exitscope_nested) | value!(exitscope_smm)))
    }

    /// Whether it is a nested guest.
    pub fn is_nested(self) -> bool {
        self.0 & value!(exitscope_nested) != 0
    }
}

/// KVM's number of RSP, and of its bit.
const RSP: u32 = 4;

/// Whether KVM has completed the instruction that the last exit was for: then it has moved RIP; not if it has faulted it, and
/// a reset (INIT) has KVM move RSP as well (`kvm_vcpu_reset`).
///
/// # Safety
/// `vcpu` is a `struct kvm_vcpu` that is alive.
pub unsafe fn has_advanced(vcpu: *mut c_void) -> bool {
    // SAFETY: as the caller promises; the bit was set before.
    let (dirty, rip) = unsafe { (vcpu_regs_dirty(vcpu).read(), exitscope_rip_bit.load(Relaxed)) };
    let (rip, rsp) = (1_u32.wrapping_shl(rip), 1 << RSP);
    dirty & (rip | rsp) == rip
}

/// Characters of a module parameter.
pub type Text = *const c_char;
