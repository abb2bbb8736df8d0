//! The probes on KVM's tracepoints `kvm_exit` and `kvm_entry`: the path that every exit takes.
//!
//! A CPUID exit whose EAX is one of our leaves is remembered at its exit and answered at the vCPU's next entry,
//! after KVM's own emulation: by then KVM has put its answer into the vCPU's registers and has not yet given them
//! to the CPU. So no function of KVM is intercepted, and an ordinary CPUID pays two compares.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::ffi::c_void;
use core::ptr;

use exitscope_abi::leaf::{Expose, Registers, may_be_ours};
use exitscope_abi::reason::Isa;
use exitscope_core::{Open, Setting, Table, answer};

use crate::registry::{OwnVm, Slot, WholeHost, enroll, find, find_surely};
use crate::{ffi, setting};

/// VMCS field "exit reason" (SDM vol. 3 appendix B).
const VMCS_EXIT_REASON: u64 = 0x4402;
/// VMCS field "guest RIP".
const VMCS_GUEST_RIP: u64 = 0x681E;

/// KVM's numbers of general registers in `vcpu->arch.regs`, in the order of `<asm/kvm_vcpu_regs.h>`.
mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
}

/// A CPUID of one of our leaves, between its exit and the next entry.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    isa: Isa,
    leaf: u32,
    sub_leaf: u32,
    /// Where the instruction was.
    rip: u64,
    /// The exit itself, kept from the vCPU's clock so that the next entry takes the slow path.
    open: Option<Open<'static>>,
}

/// A vCPU has left the guest, on a CPU with SVM.
///
/// # Safety
/// For KVM's tracepoint only: `vcpu` is the start of a `struct vcpu_svm` that this CPU has just run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_svm_exit(_data: *mut c_void, vcpu: *mut c_void, _isa: u32) {
    // SAFETY: as this function's.
    unsafe { on_exit(vcpu, Isa::Svm, svm_exit_code(vcpu)) };
}

/// A vCPU has left the guest, on a CPU with VMX.
///
/// # Safety
/// For KVM's tracepoint only: `vcpu` is a `struct kvm_vcpu` that this CPU has just run; its VMCS is current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_vmx_exit(_data: *mut c_void, vcpu: *mut c_void, _isa: u32) {
    // Bits 31:16 of the field are flags (SDM vol. 3, "Basic VM-Exit Information").
    // SAFETY: as this function's.
    unsafe { on_exit(vcpu, Isa::Vmx, vmread(VMCS_EXIT_REASON) as u32 & 0xFFFF) };
}

/// The exit path. Whatever is not the usual case is left to [`on_odd_exit`], in tail position, so that the usual
/// case needs neither stack nor saved registers.
///
/// # Safety
/// As the tracepoint's functions.
#[inline(always)]
unsafe fn on_exit(vcpu: *mut c_void, isa: Isa, code: u32) {
    let slot = current();
    let counters = isa.dense(code).and_then(|place| slot.get(place));
    if let Some(counters) = counters.filter(|_| slot.is_of(vcpu)) {
        // SAFETY: the vCPU is alive.
        if code != isa.cpuid() || !may_be_ours(unsafe { gpr(vcpu, gpr::RAX).read() } as u32) {
            // SAFETY: this is the handler of the vCPU's event. RDTSC is always there.
            return unsafe { slot.timer().exit(counters, _rdtsc()) };
        }
    }
    // SAFETY: as this function's.
    unsafe { on_odd_exit(vcpu, isa, code) }
}

/// An exit that is its vCPU's first, its reason's first, one without an entry on this CPU, or one of our leaves.
///
/// # Safety
/// As the tracepoint's functions.
#[cold]
#[inline(never)]
unsafe fn on_odd_exit(vcpu: *mut c_void, isa: Isa, code: u32) {
    let Some(slot) = find(vcpu).or_else(|| enroll(vcpu, isa)) else { return };
    let counters = slot.counters(isa, code);
    // SAFETY: this is the handler of the vCPU's event; the vCPU is alive.
    unsafe {
        // A question that no entry has answered is past.
        *slot.asked() = None;
        slot.timer().exit(counters, _rdtsc());
        if code == isa.cpuid() && may_be_ours(gpr(vcpu, gpr::RAX).read() as u32) {
            ask(slot, vcpu, isa);
        }
    }
}

/// A vCPU goes into the guest.
///
/// # Safety
/// For KVM's tracepoint only: `vcpu` is a `struct kvm_vcpu` that this CPU is about to run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_entry(_data: *mut c_void, vcpu: *mut c_void) {
    // SAFETY: RDTSC is always there.
    let now = unsafe { _rdtsc() };
    let slot = current();
    // SAFETY: the slot is the vCPU's, and this is the handler of its event.
    if slot.is_of(vcpu) && unsafe { slot.timer().entry(now) } {
        return;
    }
    // SAFETY: as this function's.
    unsafe { on_odd_entry(vcpu, now) }
}

/// An entry on a CPU that ran another vCPU before, or of a vCPU whose clock has no open exit: the first one, or the
/// one after a question.
///
/// # Safety
/// As [`exitscope_on_entry`].
#[cold]
#[inline(never)]
unsafe fn on_odd_entry(vcpu: *mut c_void, now: u64) {
    let Some(slot) = find_surely(vcpu) else { return };
    set_current(slot);
    // SAFETY: the slot is the vCPU's, and this is the handler of its event; the vCPU is alive.
    unsafe {
        let asked = slot.asked().take();
        // Where another exit has come since the question, KVM re-entered without an entry event: too late.
        if slot.timer().entry(now) {
            return;
        }
        if let Some(asked) = asked {
            if let Some(open) = asked.open {
                slot.timer().resume(open);
                slot.timer().entry(now);
            }
            give_answer(slot, vcpu, asked);
        }
    }
}

/// The slot of the vCPU that this CPU entered last; only a guess, to be checked with [`Slot::is_of`].
#[inline(always)]
fn current() -> &'static Slot {
    let slot: *const Slot;
    // SAFETY: the shim's per-CPU variable holds a slot from `start` to `stop`, and slots live until `stop`. A move
    // to another CPU in between does no harm, as it is a guess.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) slot, sym ffi::exitscope_current,
            options(nostack, preserves_flags, readonly));
        &*slot
    }
}

#[inline(always)]
fn set_current(slot: &'static Slot) {
    // SAFETY: a store to this CPU's variable.
    unsafe {
        asm!("mov gs:[{}], {}", sym ffi::exitscope_current, in(reg) ptr::from_ref(slot),
            options(nostack, preserves_flags));
    }
}

/// Remembers a question, unless the guest is not to be answered.
///
/// # Safety
/// `vcpu` is alive and this is the handler of its event; on VMX its VMCS is current.
unsafe fn ask(slot: &Slot, vcpu: *mut c_void, isa: Isa) {
    // SAFETY: as the caller promises.
    unsafe {
        if setting::expose() == Expose::Off || ffi::exitscope_vcpu_protected(vcpu) {
            return;
        }
        let mut rip = 0;
        match isa {
            Isa::Vmx => rip = vmread(VMCS_GUEST_RIP),
            Isa::Svm if !ffi::exitscope_vcpu_rip(vcpu, &raw mut rip) => return,
            Isa::Svm => {}
        }
        let [leaf, sub_leaf] = [gpr::RAX, gpr::RCX].map(|number| gpr(vcpu, number).read() as u32);
        *slot.asked() = Some(Asked { isa, leaf, sub_leaf, rip, open: slot.timer().suspend() });
    }
}

/// Puts the answer into the guest's registers, if KVM has completed the instruction.
///
/// # Safety
/// `vcpu` is alive and this is the handler of its event.
unsafe fn give_answer(slot: &Slot, vcpu: *mut c_void, asked: Asked) {
    let Asked { isa, leaf, sub_leaf, rip, .. } = asked;
    let mut next = 0;
    // SAFETY: the vCPU is alive.
    let known = unsafe { ffi::exitscope_vcpu_rip(vcpu, &raw mut next) };
    // CPUID is 2 bytes, with prefixes at most 15. RIP elsewhere: it faulted instead (CPUID faulting, SDM vol. 3),
    // belonged to a nested guest, or user space has changed the vCPU's state in between.
    if !known || !(2..=15).contains(&next.wrapping_sub(rip)) {
        return;
    }
    let expose = setting::expose();
    let setting = Setting { expose, layout: setting::layout(), isa };
    let answered = match expose {
        Expose::Host => answer(setting, leaf, sub_leaf, &WholeHost(isa)),
        Expose::Vm | Expose::Off => answer(setting, leaf, sub_leaf, &OwnVm(slot, isa)),
    };
    let Some(Registers { eax, ebx, ecx, edx }) = answered else { return };
    for (number, value) in [(gpr::RAX, eax), (gpr::RBX, ebx), (gpr::RCX, ecx), (gpr::RDX, edx)] {
        // SAFETY: the vCPU is alive, and its thread is here, so no one else touches its registers.
        unsafe { gpr(vcpu, number).write(value.into()) };
    }
}

/// A general register of a vCPU.
///
/// # Safety
/// `vcpu` is a `struct kvm_vcpu` and `number` one of [`gpr`].
#[inline(always)]
unsafe fn gpr(vcpu: *mut c_void, number: usize) -> *mut u64 {
    let regs: *mut u64;
    // SAFETY: the shim's symbol stands for the offset of `arch.regs`, from KVM's header.
    unsafe {
        asm!("lea {}, [{} + {}]", out(reg) regs, in(reg) vcpu, sym ffi::exitscope_vcpu_regs,
            options(nostack, preserves_flags, pure, readonly));
        regs.add(number)
    }
}

/// # Safety
/// `vcpu` is the start of a `struct vcpu_svm` that this CPU has just run.
#[inline(always)]
unsafe fn svm_exit_code(vcpu: *mut c_void) -> u32 {
    /// Offset of the exit code in a VMCB (APM vol. 2 appendix B); the shim proves it.
    const EXIT_CODE: usize = 0x70;
    let vmcb: *const c_void;
    // SAFETY: the shim's symbol stands for the offset of the pointer to the current VMCB, which is as large as a
    // page.
    unsafe {
        asm!("mov {}, [{} + {}]", out(reg) vmcb, in(reg) vcpu, sym ffi::exitscope_vmcb_pointer,
            options(nostack, preserves_flags, readonly));
        vmcb.byte_add(EXIT_CODE).cast::<u32>().read()
    }
}

/// A field of the current VMCS; all ones if it has none such, or if there is no current VMCS: a VMREAD that fails leaves
/// its destination as it was (SDM vol. 3, "VMREAD").
///
/// # Safety
/// In VMX root operation.
#[inline(always)]
unsafe fn vmread(field: u64) -> u64 {
    let mut value = u64::MAX;
    // SAFETY: as the caller promises; VMREAD changes the flags only.
    unsafe { asm!("vmread {}, {}", inout(reg) value, in(reg) field, options(nomem, nostack)) };
    value
}
