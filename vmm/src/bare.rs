//! VMs without a guest to speak of: a few bytes of code in real mode, for tests of what watches KVM.

use crate::config::{Config, Payload};
use crate::error::{Error, GuestFailure};
use crate::layout::MIN_MEMORY_MIB;
use crate::vm::{Vm, kvm_error, write};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug, kvm_regs};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};

/// Where the code is.
pub(crate) const CODE: u64 = 0x1000;
/// STI, CPUID, NOP, HLT. Without an interrupt controller HLT returns to the VMM.
const GUEST: [u8; 5] = [0xfb, 0x0f, 0xa2, 0x90, 0xf4];
/// Where its CPUID and its HLT are.
const CPUID: u64 = CODE + 1;
const HLT: u64 = CODE + 4;
/// RFLAGS with nothing set but the bit that always is.
const RFLAGS: u64 = 2;

/// A VM whose vCPUs have each executed one HLT. It is there until it is dropped.
pub struct BareVm {
    // vCPUs keep KVM's VM, which must let go of the memory first.
    vcpus: Vec<VcpuFd>,
    vm: Vm,
}

/// EAX, EBX, ECX and EDX, as a VMM sees them in KVM's 64-bit registers.
pub type CpuidRegisters = [u64; 4];

/// How a VMM makes KVM return right after a guest's CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// By single-stepping the guest (KVM_GUESTDBG_SINGLESTEP).
    Step,
    /// By a wish to inject an interrupt, which the guest's STI before the CPUID allows for after it.
    Window,
}

/// A guest's registers around a CPUID after which KVM returned to its VMM.
#[derive(Clone, Debug)]
pub struct StoppedCpuid {
    /// What KVM_GET_REGS says then.
    pub read: CpuidRegisters,
    /// What the page shared with KVM says then (KVM_CAP_SYNC_REGS).
    pub synced: CpuidRegisters,
    /// What the guest has two instructions later.
    pub after: CpuidRegisters,
}

impl BareVm {
    /// Creates a VM of so many vCPUs, and runs each to its HLT.
    ///
    /// # Errors
    /// What KVM refuses; a vCPU that does not get to its HLT.
    pub fn halted(vcpus: u32) -> Result<Self, Error> {
        let mut bare = Self::create(vcpus)?;
        for vcpu in &mut bare.vcpus {
            set_registers(vcpu, HLT, [0; 4])?;
            run_to_halt(vcpu)?;
        }
        Ok(bare)
    }

    fn create(vcpus: u32) -> Result<Self, Error> {
        let vm = Vm::create(&config())?;
        write(vm.memory(), "the code", CODE, &GUEST)?;
        let vcpus = (0..vcpus).map(|id| vm.create_vcpu(id)).collect::<Result<_, _>>()?;
        Ok(Self { vcpus, vm })
    }
}

/// A VM with the least that one can have.
pub(crate) fn config() -> Config {
    let payload = Payload::Flat { works: vec![], batch: 0 };
    Config { payload, vcpus: 1, memory_mib: MIN_MEMORY_MIB, ..Config::default() }
}

/// Has a guest execute a CPUID of this leaf and sub-leaf, after which KVM returns. The VMM then sets its registers, if it
/// is given any, and lets it go on.
///
/// # Errors
/// What KVM refuses, and exits other than those.
pub fn stop_after_cpuid(
    stop: Stop,
    leaf: u32,
    sub_leaf: u32,
    set: Option<CpuidRegisters>,
) -> Result<StoppedCpuid, Error> {
    let mut bare = BareVm::create(1)?;
    let vcpu = &mut bare.vcpus[0];
    let from = match stop {
        Stop::Step => CPUID,
        Stop::Window => CODE,
    };
    set_registers(vcpu, from, [leaf.into(), 0, sub_leaf.into(), 0])?;
    vcpu.set_sync_valid_reg(SyncReg::Register);
    match stop {
        Stop::Step => debug(vcpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)?,
        Stop::Window => vcpu.get_kvm_run().request_interrupt_window = 1,
    }
    match (stop, vcpu.run().map_err(kvm_error("run a vCPU"))?) {
        (Stop::Step, VcpuExit::Debug(_)) | (Stop::Window, VcpuExit::IrqWindowOpen) => {}
        (_, other) => return Err(unexpected(&other)),
    }
    let registers = vcpu.get_regs().map_err(kvm_error("tell the vCPU's registers"))?;
    let (read, synced) = (of_cpuid(&registers), of_cpuid(&vcpu.sync_regs().regs));
    if let Some(set) = set {
        set_registers(vcpu, registers.rip, set)?;
    }
    match stop {
        Stop::Step => debug(vcpu, 0)?,
        Stop::Window => vcpu.get_kvm_run().request_interrupt_window = 0,
    }
    run_to_halt(vcpu)?;
    let after = of_cpuid(&vcpu.get_regs().map_err(kvm_error("tell the vCPU's registers"))?);
    drop(bare.vm);
    Ok(StoppedCpuid { read, synced, after })
}

pub(crate) fn of_cpuid(registers: &kvm_regs) -> CpuidRegisters {
    [registers.rax, registers.rbx, registers.rcx, registers.rdx]
}

/// Lets a vCPU go on at an address of its first 64 KiB, in real mode as it is after INIT but for its code segment.
pub(crate) fn set_registers(
    vcpu: &VcpuFd,
    rip: u64,
    [rax, rbx, rcx, rdx]: CpuidRegisters,
) -> Result<(), Error> {
    let mut special = vcpu.get_sregs().map_err(kvm_error("tell the vCPU's special registers"))?;
    (special.cs.base, special.cs.selector) = (0, 0);
    vcpu.set_sregs(&special).map_err(kvm_error("set the vCPU's special registers"))?;
    let registers = kvm_regs { rax, rbx, rcx, rdx, rip, rflags: RFLAGS, ..Default::default() };
    vcpu.set_regs(&registers).map_err(kvm_error("set the vCPU's registers"))
}

fn debug(vcpu: &VcpuFd, control: u32) -> Result<(), Error> {
    let debug = kvm_guest_debug { control, ..Default::default() };
    vcpu.set_guest_debug(&debug).map_err(kvm_error("single-step a vCPU"))
}

fn run_to_halt(vcpu: &mut VcpuFd) -> Result<(), Error> {
    match vcpu.run().map_err(kvm_error("run a vCPU"))? {
        VcpuExit::Hlt => Ok(()),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn unexpected(exit: &VcpuExit<'_>) -> Error {
    let (vcpu, failure) = (0, GuestFailure::Unexpected(format!("{exit:?}")));
    Error::GuestFailed { vcpu, failure, registers: Box::default() }
}
