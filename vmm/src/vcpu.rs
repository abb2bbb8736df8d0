//! One vCPU: its first state, and the loop that runs it.

use crate::cpuid::{self, Topology};
use crate::devices::{Devices, PortAction};
use crate::error::{Error, GuestFailure};
use crate::registers::Registers;
use crate::vcpu_sync::VcpuSync;
use crate::vm::{Vm, kvm_error};
use crate::{flat, layout, long_mode};
use kvm_bindings::{CpuId, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_regs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::io::{Error as IoError, ErrorKind};
use vm_memory::GuestMemoryMmap;

/// IA32_MTRR_DEF_TYPE, and its value for "MTRRs on, everything write-back" (SDM vol. 3 section 12.11.2.1).
pub const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Where vCPUs start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The boot vCPU starts at the kernel's 64-bit entry; the others wait until the kernel starts them.
    Linux {
        /// The entry point.
        rip: u64,
    },
    /// Every vCPU starts at the first byte of its image.
    Flat {
        /// For RSI, one for each image.
        iterations: Vec<u64>,
        /// For RDX.
        batch: u64,
    },
}

/// How a vCPU's loop ended.
#[derive(Debug)]
pub enum End {
    /// The guest wrote this status.
    Done(u32),
    /// The guest ended otherwise.
    Failed(GuestFailure, Registers),
    /// The supervisor stopped it.
    Stopped(Registers),
}

/// A vCPU that is ready to run.
pub struct Vcpu {
    fd: VcpuFd,
    id: u32,
    user_exits: u64,
    /// Whether a kick ends a halt.
    halts: bool,
    /// Keeps the guest's memory mapped as long as this vCPU may run.
    _memory: GuestMemoryMmap,
}

/// What the loop does after an exit.
enum LoopAction {
    Go,
    Wait,
    Done(u32),
    Failed(GuestFailure),
    /// KVM has an internal error whose details are still in the shared page.
    InternalError,
}

/// Creates all vCPUs of a VM in their first state.
pub fn create_all(vm: &Vm, entry: &Entry) -> Result<Vec<Vcpu>, Error> {
    (0..vm.vcpus()).map(|id| Vcpu::create(vm, id, entry)).collect()
}

impl Vcpu {
    fn create(vm: &Vm, id: u32, entry: &Entry) -> Result<Self, Error> {
        let fd = vm.create_vcpu(id)?;
        let place = Topology { id, vcpus: vm.vcpus(), tsc_deadline: vm.tsc_deadline() };
        let table = CpuId::from_entries(&cpuid::table(vm.cpuid(), place)).map_err(|_| Error::Kvm {
            what: "take that many CPUID leaves",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        fd.set_cpuid2(&table).map_err(kvm_error("set what CPUID says"))?;
        match *entry {
            Entry::Flat { ref iterations, batch } => {
                enter_long_mode(&fd, &flat::registers(id, iterations, batch))?
            }
            Entry::Linux { rip } if id == 0 => {
                let registers = kvm_regs { rip, rsi: layout::BOOT_PARAMS, rflags: 2, ..Default::default() };
                enter_long_mode(&fd, &registers)?;
                set_mtrrs(&fd)?;
            }
            Entry::Linux { .. } => set_mtrrs(&fd)?,
        }
        Ok(Self { fd, id, user_exits: 0, halts: vm.halts(), _memory: vm.memory().clone() })
    }

    /// Index of this vCPU.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How often KVM_RUN has returned because of the guest.
    pub fn user_exits(&self) -> u64 {
        self.user_exits
    }

    /// Runs until the guest ends or all vCPUs are to stop.
    pub fn run(&mut self, devices: &Devices, sync: &VcpuSync) -> End {
        sync.wait_to_start(self.id);
        while !sync.is_stopped() {
            let next = match self.fd.run() {
                Ok(exit) => {
                    self.user_exits += 1;
                    if self.user_exits == 1 {
                        sync.let_next_start(self.id);
                    }
                    handle(self.id, exit, devices)
                }
                // A kick, or (EAGAIN) a vCPU that the guest has not started yet.
                Err(error) if is_retry(error) => {
                    self.end_halt();
                    LoopAction::Go
                }
                Err(error) => LoopAction::Failed(GuestFailure::RunFailed(error)),
            };
            match next {
                LoopAction::Go => {}
                LoopAction::Wait => sync.barrier(self.id),
                LoopAction::Done(status) => return End::Done(status),
                LoopAction::Failed(failure) => return End::Failed(failure, self.registers()),
                LoopAction::InternalError => return End::Failed(self.internal_error(), self.registers()),
            }
        }
        End::Stopped(self.registers())
    }

    /// Lets a vCPU go on that the kernel has halted, as an interrupt would.
    fn end_halt(&self) {
        if self.halts {
            // It fails of a vCPU that is about to go away only.
            let _ = self.fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE });
        }
    }

    /// The registers, or zeros if KVM will not tell: this is for messages about something worse.
    fn registers(&self) -> Registers {
        let (general, special) = (self.fd.get_regs(), self.fd.get_sregs());
        Registers { general: general.unwrap_or_default(), special: special.unwrap_or_default() }
    }

    /// Reads the details of KVM_EXIT_INTERNAL_ERROR from the page that KVM shares with us.
    fn internal_error(&mut self) -> GuestFailure {
        let run = self.fd.get_kvm_run();
        // SAFETY: KVM has just returned KVM_EXIT_INTERNAL_ERROR, for which it fills this member of the union, all
        // of whose fields are plain numbers.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let count = internal.data.len().min(internal.ndata as usize);
        GuestFailure::InternalError { suberror: internal.suberror, data: internal.data[..count].to_vec() }
    }
}

/// Decides what follows from an exit, after letting the devices have it.
fn handle(id: u32, exit: VcpuExit<'_>, devices: &Devices) -> LoopAction {
    match exit {
        VcpuExit::IoOut(port, data) => match devices.write(id, port, data) {
            PortAction::Continue => LoopAction::Go,
            PortAction::Wait => LoopAction::Wait,
            PortAction::Done(status) => LoopAction::Done(status),
            PortAction::Failed(failure) => LoopAction::Failed(failure),
        },
        VcpuExit::IoIn(port, data) => {
            devices.read(port, data);
            LoopAction::Go
        }
        VcpuExit::MmioRead(_, data) => {
            data.fill(0xff);
            LoopAction::Go
        }
        // Nothing is there to write to. HLT comes here without an interrupt controller only, so nothing could wake it.
        VcpuExit::MmioWrite(..) | VcpuExit::Hlt | VcpuExit::Intr => LoopAction::Go,
        VcpuExit::Shutdown => LoopAction::Failed(GuestFailure::Shutdown),
        VcpuExit::FailEntry(reason, cpu) => LoopAction::Failed(GuestFailure::FailEntry { reason, cpu }),
        VcpuExit::InternalError => LoopAction::InternalError,
        VcpuExit::SystemEvent(kind, _) => {
            LoopAction::Failed(GuestFailure::Unexpected(format!("system event {kind}")))
        }
        other => LoopAction::Failed(GuestFailure::Unexpected(format!("{other:?}"))),
    }
}

/// Puts a vCPU into 64-bit mode with these registers.
fn enter_long_mode(fd: &VcpuFd, registers: &kvm_regs) -> Result<(), Error> {
    let mut special = fd.get_sregs().map_err(kvm_error("tell the vCPU's special registers"))?;
    long_mode::set(&mut special);
    fd.set_sregs(&special).map_err(kvm_error("set the vCPU's special registers"))?;
    fd.set_regs(registers).map_err(kvm_error("set the vCPU's registers"))
}

/// Makes memory cacheable, as firmware does; Linux turns PAT off where MTRRs are.
fn set_mtrrs(fd: &VcpuFd) -> Result<(), Error> {
    let (index, data) = MTRR_DEF_TYPE;
    let entry = kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry])
        .map_err(|_| Error::Kvm { what: "take one MSR", source: kvm_ioctls::Error::new(libc::E2BIG) })?;
    fd.set_msrs(&msrs).map(drop).map_err(kvm_error("set the vCPU's MTRRs"))
}

/// Whether KVM_RUN only has to be called again.
fn is_retry(error: kvm_ioctls::Error) -> bool {
    matches!(IoError::from(error).kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock)
}
