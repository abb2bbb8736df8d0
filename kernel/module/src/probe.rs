//! The probes on KVM's tracepoints `kvm_exit` and `kvm_entry`: the path that every exit takes.
//!
//! A CPUID of one of our leaves is recorded at its exit and answered at the vCPU's next entry, after KVM has emulated it:
//! KVM's answer is in the vCPU's registers then, and not yet in the CPU's. No function of KVM is intercepted for that, and
//! any other CPUID pays two compares.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::Ordering::Relaxed;

use exitscope_abi::leaf::{Expose, Registers};
use exitscope_abi::reason::Isa;
use exitscope_abi::region::Counters;
use exitscope_core::{EntryKind, Halt, Setting, Table, answer};

use crate::clock::CpuidQuery;
use crate::ffi::{self, Mode};
use crate::registry::{counters, enroll, find_locked, find_same};
use crate::setting;
use crate::slot::{OwnVm, Slot};
use crate::whole_host::WholeHost;

/// KVM's numbers of general registers in `vcpu->arch.regs`, in the order of `<asm/kvm_vcpu_regs.h>`.
mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
}

/// A vCPU has left the guest, on a CPU with SVM.
///
/// # Safety
/// For KVM's tracepoint only: `vcpu` is the start of a `struct vcpu_svm` that this CPU has just run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_svm_exit(_data: *mut c_void, vcpu: *mut c_void, _isa: u32) {
    // SAFETY: as this function's.
    unsafe { on_exit(vcpu, Isa::Svm) };
}

/// A vCPU has left the guest, on a CPU with VMX.
///
/// # Safety
/// For KVM's tracepoint only: `vcpu` is the start of a `struct vcpu_vmx`, or of TDX's `struct vcpu_tdx`, that this CPU has
/// just run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_vmx_exit(_data: *mut c_void, vcpu: *mut c_void, _isa: u32) {
    // SAFETY: as this function's.
    unsafe { on_exit(vcpu, Isa::Vmx) };
}

/// The exit path. The slow path, [`on_exit_slow`], is a tail call, so that the fast one needs neither stack nor saved
/// registers.
///
/// # Safety
/// As the tracepoint's functions.
#[inline(always)]
unsafe fn on_exit(vcpu: *mut c_void, isa: Isa) {
    let slot = current();
    // SAFETY: as this function's.
    let code = unsafe { exit_code(vcpu, isa) };
    // Written twice, as most exits need no search for their place and most of these no look at the leaf.
    let counted =
        if code < const { [0, Isa::Vmx.consecutive() as u64, Isa::Svm.consecutive() as u64] }[isa as usize] {
            // SAFETY: the vCPU is alive.
            let asks = || slot.asks(unsafe { ffi::vcpu_eax(vcpu) });
            // SAFETY: as this function's.
            !(code == u64::from(isa.cpuid()) && asks()) && unsafe { count(slot, vcpu, code as usize) }
        } else {
            // SAFETY: as this function's.
            isa.dense(code as u32).is_some_and(|place| unsafe { count(slot, vcpu, place) })
        };
    if counted {
        return;
    }
    // SAFETY: as this function's.
    unsafe { on_exit_slow(vcpu, isa) }
}

/// Counts an exit whose counters are at this place, if this is the vCPU's slot and they are there.
///
/// # Safety
/// As the tracepoint's functions.
#[inline(always)]
unsafe fn count(slot: &'static Slot, vcpu: *mut c_void, place: usize) -> bool {
    let Some(counters) = slot.get(place).filter(|_| slot.is_of(vcpu)) else { return false };
    // SAFETY: as this function's.
    unsafe { record_exit(slot, counters) };
    true
}

/// Counts an exit on the counters of its reason, and opens it.
///
/// # Safety
/// As the tracepoint's functions; the slot is the vCPU's.
#[inline(always)]
unsafe fn record_exit(slot: &Slot, counters: &'static Counters) {
    // SAFETY: this is the handler of the vCPU's event. RDTSC is always there.
    unsafe { slot.clock().timer.exit(counters, || _rdtsc()) };
    #[cfg(exitscope_miscount)]
    crate::miscount::uncount(counters);
}

/// The slow path of an exit: the vCPU's first, its first for this reason, its first on this CPU, or one of our leaves.
///
/// # Safety
/// As the tracepoint's functions.
#[cold]
#[inline(never)]
unsafe fn on_exit_slow(vcpu: *mut c_void, isa: Isa) {
    // SAFETY: as this function's.
    let code = unsafe { exit_code(vcpu, isa) } as u32;
    let Some(slot) = find_same(vcpu).or_else(|| enroll(vcpu, isa)) else { return };
    let Some(counters) = counters(slot, isa, code) else { return };
    // SAFETY: this is the handler of the vCPU's event; the vCPU is alive.
    unsafe {
        record_exit(slot, counters);
        if code == isa.cpuid() && slot.asks(ffi::vcpu_eax(vcpu)) {
            note_query(slot, vcpu, isa);
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
    if slot.is_of(vcpu) && unsafe { slot.clock().timer.entry(now) } {
        return;
    }
    // SAFETY: as this function's.
    unsafe { on_entry_slow(vcpu) }
}

/// The slow path of an entry: on a CPU that ran another vCPU before, without an open exit, or after a split one (the exit
/// led to user space or to a halt, or is a query of the guest's).
///
/// # Safety
/// As [`exitscope_on_entry`].
#[cold]
#[inline(never)]
unsafe fn on_entry_slow(vcpu: *mut c_void) {
    // Read again: to hand the first reading over costs the fast path an instruction.
    // SAFETY: RDTSC is always there.
    let now = unsafe { _rdtsc() };
    let Some(slot) = find_locked(vcpu) else { return };
    set_current(slot);
    // SAFETY: the slot is the vCPU's, and this is the handler of its event; the vCPU is alive.
    unsafe {
        let clock = slot.clock();
        clock.end_halt(now, || ffi::exitscope_vcpu_halt_stats(vcpu));
        let query = clock.take_query();
        let kind = clock.timer.entry_slow(now);
        if let Some(query) = query {
            answer_query(slot, vcpu, query);
        }
        let count = slot.vcpu_cell().and_then(|cell| match kind {
            EntryKind::Timed => None,
            EntryKind::Backwards => Some(&cell.backwards),
            EntryKind::Unannounced => Some(&cell.unannounced),
        });
        if let Some(count) = count {
            count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
        }
    }
}

/// The VMM calls KVM to run the vCPU.
///
/// # Safety
/// For the probe of KVM's `kvm_arch_vcpu_ioctl_run` only: `vcpu` is its argument.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_run(vcpu: *mut c_void) {
    // Each vCPU comes by here before it has an exit.
    let Some(slot) = find_same(vcpu).or_else(|| find_locked(vcpu)) else { return };
    // SAFETY: the vCPU's thread is here, so this is the only handler of its events. RDTSC is always there.
    unsafe { slot.clock().timer.enter_from_user(_rdtsc()) };
}

/// KVM is about to return to the VMM.
///
/// # Safety
/// For the probe of KVM's `kvm_sigset_deactivate` only: `vcpu` is its argument.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_return(vcpu: *mut c_void) {
    let Some(slot) = find_locked(vcpu) else { return };
    // SAFETY: the vCPU's thread is here, so this is the only handler of its events. RDTSC is always there.
    unsafe {
        let now = _rdtsc();
        let clock = slot.clock();
        clock.end_halt(now, || ffi::exitscope_vcpu_halt_stats(vcpu));
        clock.split();
        clock.timer.exit_to_user(now);
        // Now, as the VMM may read the registers, and what it sets must stay.
        if clock.take_query().is_some_and(|query| answer_query(slot, vcpu, query)) {
            ffi::exitscope_vcpu_sync_regs(vcpu);
        }
    }
}

/// The vCPU halts, which KVM times itself.
///
/// # Safety
/// For the probe of KVM's `kvm_vcpu_halt` only: `vcpu` is its argument.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_halt(vcpu: *mut c_void) {
    // SAFETY: as this function's.
    unsafe { begin_halt(vcpu, true) };
}

/// The vCPU blocks, maybe within a halt.
///
/// # Safety
/// For the probe of KVM's `kvm_vcpu_block` only: `vcpu` is its argument.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn exitscope_on_block(vcpu: *mut c_void) {
    // SAFETY: as this function's.
    unsafe { begin_halt(vcpu, false) };
}

/// Records the start of a halt, or of other blocking, and splits the open exit.
///
/// # Safety
/// As of its callers.
unsafe fn begin_halt(vcpu: *mut c_void, halts: bool) {
    let Some(slot) = find_locked(vcpu) else { return };
    // SAFETY: the vCPU's thread is here, so this is the only handler of its events; the vCPU is alive.
    unsafe {
        let clock = slot.clock();
        clock.split();
        // No instruction that KVM has completed lets a vCPU block, but a reset (INIT) does.
        clock.query = None;
        let before = if halts { Some(ffi::exitscope_vcpu_halt_stats(vcpu)) } else { None };
        clock.halt.get_or_insert(Halt::new(_rdtsc(), before));
    }
}

/// The slot of the vCPU that this CPU entered last: a hint, to be checked with [`Slot::is_of`].
#[inline(always)]
fn current() -> &'static Slot {
    let slot: *const Slot;
    // SAFETY: the shim's per-CPU variable holds a slot from `start` to `stop`, and slots live until `stop`. A migration to
    // another CPU in between does no harm, as it is a hint.
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

/// Records a query of one of our leaves that is to be answered, unless KVM emulates it for a nested guest, or the guest's
/// registers are not KVM's to change.
///
/// # Safety
/// `vcpu` is alive and this is the handler of its event.
unsafe fn note_query(slot: &Slot, vcpu: *mut c_void, isa: Isa) {
    // SAFETY: as the caller promises.
    unsafe {
        let mode = Mode::of(vcpu);
        if ffi::vcpu_is_protected(vcpu).read() || mode.is_nested() {
            return;
        }
        let [leaf, sub_leaf] = [gpr::RAX, gpr::RCX].map(|number| gpr(vcpu, number).read() as u32);
        let clock = slot.clock();
        clock.split();
        clock.query = Some(CpuidQuery { isa, leaf, sub_leaf, mode });
    }
}

/// Writes the answer to a query into the guest's registers, if KVM has completed the instruction and the guest still is
/// where it asked: not in a handler of an SMI. Whether it has.
///
/// # Safety
/// `vcpu` is alive and this is the handler of its event.
unsafe fn answer_query(slot: &Slot, vcpu: *mut c_void, query: CpuidQuery) -> bool {
    let CpuidQuery { isa, leaf, sub_leaf, mode } = query;
    // SAFETY: the vCPU is alive.
    if !unsafe { ffi::has_advanced(vcpu) && Mode::of(vcpu) == mode } {
        return false;
    }
    let expose = slot.vm().expose();
    let setting = Setting { expose, layout: setting::layout(), isa };
    let registers = match expose {
        Expose::Host => answer(setting, leaf, sub_leaf, &WholeHost(slot, isa)),
        Expose::Vm | Expose::Off => answer(setting, leaf, sub_leaf, &OwnVm(slot, isa)),
    };
    let Some(Registers { eax, ebx, ecx, edx }) = registers else { return false };
    for (number, value) in [(gpr::RAX, eax), (gpr::RBX, ebx), (gpr::RCX, ecx), (gpr::RDX, edx)] {
        // SAFETY: the vCPU is alive, and its thread is here, so no one else touches its registers.
        unsafe { gpr(vcpu, number).write(value.into()) };
    }
    true
}

/// A general register of a vCPU.
///
/// # Safety
/// `vcpu` is a `struct kvm_vcpu` and `number` one of [`gpr`].
#[inline(always)]
unsafe fn gpr(vcpu: *mut c_void, number: usize) -> *mut u64 {
    // SAFETY: the registers are there, 64 bits each.
    unsafe { ffi::vcpu_regs(vcpu).add(number) }
}

/// Why a vCPU left the guest, as in [`exitscope_abi::reason::Reason::code`]; wide, so that the exit path need not
/// widen it to index by it.
///
/// # Safety
/// As the tracepoint's functions.
#[inline(always)]
unsafe fn exit_code(vcpu: *mut c_void, isa: Isa) -> u64 {
    /// Offset of the exit code in a VMCB (APM vol. 2 appendix B); the shim proves it.
    const EXIT_CODE: usize = 0x70;
    if isa == Isa::Vmx {
        // What KVM has read from the VMCS before it reports the exit. Bits 31:16 are flags (SDM vol. 3, "Basic VM-Exit
        // Information").
        // SAFETY: BTF has said that a `struct vcpu_vmx`, of which this is the start, has it there, in 32 bits.
        return unsafe {
            let place = ffi::exitscope_vmx_exit_reason.load(Relaxed) as usize;
            vcpu.byte_add(place).cast::<u16>().read_volatile().into()
        };
    }
    let code: u64;
    // SAFETY: the shim's symbol stands for the offset of the pointer to the current VMCB, which is as large as a page.
    unsafe {
        asm!("mov {vmcb}, [{vcpu} + {pointer}]", "mov {code:e}, [{vmcb} + {offset}]", vcpu = in(reg) vcpu,
            pointer = sym ffi::exitscope_vmcb_pointer, vmcb = out(reg) _, code = lateout(reg) code,
            offset = const EXIT_CODE, options(nostack, preserves_flags, readonly));
    }
    code
}
