//! eBPF programs that count every VM exit into the region that the kernel module fills on other hosts: the same cells, the
//! same accounting (`exitscope_core`), without a module. One object for all kernels and both vendors; the loader
//! (`host/src/bpf.rs`) writes into it what it finds out about the kernel.
//!
//! A program runs on KVM's tracepoints `kvm_exit` and `kvm_entry`, where the vCPU is a plain number for it, and at the
//! entry of five functions of KVM's whose argument is the vCPU.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod cells;
mod kernel;
mod slot;

use core::ffi::c_void;
use core::sync::atomic::Ordering::Relaxed;

use exitscope_abi::reason::Isa;
use exitscope_core::EntryKind;

use crate::kernel::{exit_code, exit_code_typed, first_argument, has_cast, isa, low_half, now, untyped};
use crate::slot::{Slot, end, find_or_enroll, halt, retire};

/// What a raw tracepoint's program gets.
type Arguments = *const u64;

/// A vCPU has left the guest. Until a helper has been asked for the time, only the slot is to be kept: each register more
/// costs two instructions.
#[inline(always)]
fn on_exit(arguments: Arguments, isa: Isa, cast: bool) -> i64 {
    // SAFETY: the tracepoint's first argument is the vCPU.
    let vcpu = unsafe { arguments.read() };
    let slot = Slot::direct(vcpu);
    if !slot.is_of(vcpu) {
        return exit_slow(vcpu);
    }
    let Some(cell) = slot.of_code(exit_code(vcpu, isa, cast), isa) else { return exit_slow(slot.vcpu()) };
    // SAFETY: this is the handler of the vCPU's event.
    unsafe { slot.clock() }.timer.exit(cell, now);
    0
}

/// Declares programs for `kvm_exit`, of which the loader takes the one for this machine.
macro_rules! exits {
    ($($name:ident $section:literal $isa:ident $cast:literal;)+) => {
        $(#[unsafe(no_mangle)]
        #[unsafe(link_section = $section)]
        extern "C" fn $name(arguments: Arguments) -> i64 {
            on_exit(arguments, Isa::$isa, $cast)
        })+
    };
}

exits! {
    exitscope_svm_exit "raw_tp/kvm_exit.svm" Svm true;
    exitscope_svm_exit_probe "raw_tp/kvm_exit.svm-probe" Svm false;
    exitscope_vmx_exit "raw_tp/kvm_exit.vmx" Vmx true;
    exitscope_vmx_exit_probe "raw_tp/kvm_exit.vmx-probe" Vmx false;
}

/// As [`on_exit`] with SVM on a kernel without `bpf_rdonly_cast`: what takes a helper each time is asked of a typed vCPU.
#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/kvm_exit.svm-typed")]
extern "C" fn exitscope_svm_exit_typed(arguments: Arguments) -> i64 {
    // SAFETY: the tracepoint's first argument is the vCPU.
    let vcpu = unsafe { arguments.read() };
    let slot = Slot::direct(low_half(vcpu));
    if !slot.is_of(vcpu) {
        return exit_slow(untyped(arguments));
    }
    let code = exit_code_typed(vcpu, slot.own_exit_code());
    let Some(cell) = slot.of_code(code, Isa::Svm) else { return exit_slow(slot.vcpu()) };
    // SAFETY: this is the handler of the vCPU's event.
    unsafe { slot.clock() }.timer.exit(cell, now);
    0
}

/// The vCPU's first exit, its first for this reason, a halt, or one of a vCPU whose slot is not the first that its address leads to.
#[inline(never)]
fn exit_slow(vcpu: u64) -> i64 {
    if let Some(slot) = find_or_enroll(vcpu) {
        let code = exit_code(vcpu, isa(), has_cast());
        let cell = slot.counters(code);
        // SAFETY: this is the handler of the vCPU's event.
        let clock = unsafe { slot.clock() };
        clock.timer.exit(cell, now);
        if code == halt(isa()) {
            // KVM times the halt itself, from here on.
            clock.begin_halt(now(), Some(kernel::halt_stats(vcpu)));
        }
    }
    0
}

/// A vCPU goes into the guest.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/kvm_entry")]
extern "C" fn exitscope_entry(arguments: Arguments) -> i64 {
    // SAFETY: the tracepoint's first argument is the vCPU.
    let vcpu = unsafe { arguments.read() };
    let slot = Slot::direct(vcpu);
    if !slot.is_of(vcpu) {
        return entry_slow(vcpu);
    }
    // SAFETY: the slot is the vCPU's, and this is the handler of its event.
    if unsafe { slot.clock() }.timer.entry(now()) {
        return 0;
    }
    entry_slow(slot.vcpu())
}

/// The entry after an exit that was split, or after none.
#[inline(never)]
fn entry_slow(vcpu: u64) -> i64 {
    let now = now();
    let Some(slot) = Slot::find(vcpu) else { return 0 };
    // SAFETY: the slot is the vCPU's, and this is the handler of its event.
    let clock = unsafe { slot.clock() };
    clock.end_halt(now, vcpu);
    let cell = slot.vcpu_cell();
    let count = match clock.timer.entry_slow(now) {
        EntryKind::Timed => return 0,
        EntryKind::Backwards => &cell.backwards,
        EntryKind::Unannounced => &cell.unannounced,
    };
    count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
    0
}

/// The VMM calls KVM to run the vCPU.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry/kvm_arch_vcpu_ioctl_run")]
extern "C" fn exitscope_run(context: *const c_void) -> i64 {
    let vcpu = first_argument(context);
    let Some(slot) = Slot::find(vcpu) else { return 0 };
    if slot.is_same(vcpu) {
        // SAFETY: the vCPU's thread is here, so this is the only handler of its events.
        unsafe { slot.clock() }.timer.enter_from_user(now());
    } else {
        // The end of another vCPU at this address went unnoticed.
        end(slot);
    }
    0
}

/// KVM is about to return to the VMM.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry/kvm_sigset_deactivate")]
extern "C" fn exitscope_return(context: *const c_void) -> i64 {
    let vcpu = first_argument(context);
    if let Some(slot) = Slot::find(vcpu) {
        let now = now();
        // SAFETY: the vCPU's thread is here, so this is the only handler of its events.
        let clock = unsafe { slot.clock() };
        clock.end_halt(now, vcpu);
        clock.timer.exit_to_user(now);
    }
    0
}

/// The vCPU blocks, maybe within a halt.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry/kvm_vcpu_block")]
extern "C" fn exitscope_block(context: *const c_void) -> i64 {
    let vcpu = first_argument(context);
    if let Some(slot) = Slot::find(vcpu) {
        // SAFETY: the vCPU's thread is here, so this is the only handler of its events.
        unsafe { slot.clock() }.begin_halt(now(), None);
    }
    0
}

/// KVM destroys a vCPU. The next one may get its address.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry/kvm_arch_vcpu_destroy")]
extern "C" fn exitscope_destroy(context: *const c_void) -> i64 {
    end_of(first_argument(context))
}

#[inline(always)]
fn end_of(vcpu: u64) -> i64 {
    if let Some(slot) = Slot::find(vcpu) {
        end(slot);
    }
    0
}

/// KVM makes a vCPU. If another one at this address has gone unnoticed, it ends now. Those that have ended make room.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry/kvm_arch_vcpu_create")]
extern "C" fn exitscope_create(context: *const c_void) -> i64 {
    let done = end_of(first_argument(context));
    retire();
    done
}

/// Nobody calls it: the loader takes only functions that programs call.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
