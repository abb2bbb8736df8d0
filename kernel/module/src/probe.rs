//! The probes on KVM's tracepoints `kvm_exit` and `kvm_entry`: the path that every exit takes.
//!
//! A CPUID exit whose EAX is one of our leaves is remembered at its exit and answered at the vCPU's next entry,
//! after KVM's own emulation: by then KVM has put its answer into the vCPU's registers and has not yet given them
//! to the CPU. So no function of KVM is intercepted, and an ordinary CPUID pays two compares.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::ffi::c_void;

use exitscope_abi::leaf::{Expose, Registers, may_be_ours};
use exitscope_abi::reason::Isa;
use exitscope_core::{Setting, answer};

use crate::registry::{OwnVm, Slot, WholeHost, enroll, find};
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
}

/// A vCPU has left the guest. `isa` is KVM's number: 1 for VMX, 2 for SVM.
///
/// # Safety
/// For KVM's tracepoint only: `vcpu` is a `struct kvm_vcpu` that this CPU has just run; on VMX its VMCS is current.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_exit(_data: *mut c_void, vcpu: *mut c_void, isa: u32) {
    // SAFETY: as this function's.
    unsafe {
        if isa == Isa::Svm as u32 {
            on_exit(vcpu, Isa::Svm, svm_exit_code(vcpu));
        } else {
            // Bits 31:16 of the field are flags (SDM vol. 3, "Basic VM-Exit Information").
            on_exit(vcpu, Isa::Vmx, vmread(VMCS_EXIT_REASON) as u32 & 0xFFFF);
        }
    }
}

/// # Safety
/// As [`exitscope_on_exit`].
#[inline(always)]
unsafe fn on_exit(vcpu: *mut c_void, isa: Isa, code: u32) {
    let Some(slot) = find(vcpu).or_else(|| enroll(vcpu, isa)) else { return };
    let counters = slot.counters(isa, code);
    if code == isa.cpuid() {
        // SAFETY: the vCPU is alive, and this is the handler of its event.
        unsafe {
            if may_be_ours(gpr(vcpu, gpr::RAX).read() as u32) {
                ask(slot, vcpu, isa);
            }
        }
    }
    // SAFETY: this is the handler of the vCPU's event. RDTSC is always there.
    unsafe { slot.timer().exit(counters, _rdtsc()) };
}

/// A vCPU goes into the guest.
///
/// # Safety
/// For KVM's tracepoint only: `vcpu` is a `struct kvm_vcpu` that this CPU is about to run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_entry(_data: *mut c_void, vcpu: *mut c_void) {
    // SAFETY: RDTSC is always there.
    let now = unsafe { _rdtsc() };
    let Some(slot) = find(vcpu) else { return };
    // SAFETY: this is the handler of the vCPU's event.
    let asked = unsafe {
        slot.timer().entry(now);
        slot.asked()
    };
    if asked.is_some() {
        // SAFETY: the vCPU is alive.
        unsafe { give_answer(slot, vcpu, asked.take()) };
    }
}

/// Remembers a question, unless the guest is not to be answered.
///
/// # Safety
/// `vcpu` is alive and this is the handler of its event; on VMX its VMCS is current.
#[cold]
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
        *slot.asked() = Some(Asked { isa, leaf, sub_leaf, rip });
    }
}

/// Puts the answer into the guest's registers, if KVM has completed the instruction.
///
/// # Safety
/// `vcpu` is alive and this is the handler of its event.
#[cold]
unsafe fn give_answer(slot: &Slot, vcpu: *mut c_void, asked: Option<Asked>) {
    let Some(Asked { isa, leaf, sub_leaf, rip }) = asked else { return };
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
#[inline]
unsafe fn gpr(vcpu: *mut c_void, number: usize) -> *mut u64 {
    // SAFETY: `arch.regs` is at this offset, as the shim says from KVM's header.
    unsafe { vcpu.byte_add(ffi::exitscope_vcpu_regs as usize).cast::<u64>().add(number) }
}

/// # Safety
/// `vcpu` is the start of a `struct vcpu_svm` that this CPU has just run.
#[inline]
unsafe fn svm_exit_code(vcpu: *mut c_void) -> u32 {
    // SAFETY: the shim gives both offsets; the pointer is that of the current VMCB.
    unsafe {
        let vmcb: *mut c_void = vcpu.byte_add(ffi::exitscope_vmcb_pointer as usize).cast::<*mut c_void>().read();
        vmcb.byte_add(ffi::exitscope_vmcb_exit_code as usize).cast::<u32>().read()
    }
}

/// # Safety
/// In VMX root operation with a current VMCS that has this field.
#[inline]
unsafe fn vmread(field: u64) -> u64 {
    let value: u64;
    // SAFETY: as the caller promises; VMREAD changes the flags only.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) field, options(nomem, nostack)) };
    value
}
