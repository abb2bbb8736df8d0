//! INITs that come while a guest does nothing but ask a leaf of CPUID: what its registers are after each.

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::bare::{CODE, CpuidRegisters, config, of_cpuid, set_registers, unexpected};
use crate::config::Config;
use crate::error::Error;
use crate::layout::BOOT_PARAMS;
use crate::vm::{Vm, kvm_error, write};

/// Where the guest counts the CPUIDs that it has gone on after: where Linux would have its parameters.
const COUNT: u16 = BOOT_PARAMS as u16;
/// Where the leaf is in [`ask_for_ever`].
const LEAF: usize = 2;
/// The last page below 4 GiB, and where a vCPU's first instruction after an INIT is in it (SDM vol. 3, "First Instruction
/// Executed"). The boot processor executes it at once.
const LAST_PAGE: (u64, usize) = (0xffff_f000, 0x1000);
const RESET_VECTOR: u64 = 0xffff_fff0;
/// OUT 0x80, AL, at which KVM returns. At HLT it would wait for an interrupt, as it has the interrupt controllers here.
const AFTER_INIT: [u8; 2] = [0xe6, 0x80];
/// A message to the local APIC with the ID 0 that asserts INIT (SDM vol. 3, "Message Address Register Format" and
/// "Message Data Register Format").
const INIT: (u32, u32) = (0xfee0_0000, 1 << 14 | 5 << 8);
/// How long a guest runs before an INIT: so long that its sender sleeps, and comes back by an interrupt.
const PAUSE: Duration = Duration::from_millis(1);

/// What [`init_while_asking`] has seen.
#[derive(Clone, Debug)]
pub struct Inits {
    /// The registers after the INITs, each combination once.
    pub registers: Vec<CpuidRegisters>,
    /// CPUIDs that the guest has gone on after.
    pub cpuids: u32,
}

/// MOV EAX, 0; XOR ECX, ECX; CPUID; INC dword [COUNT]; and again.
fn ask_for_ever(leaf: u32) -> Vec<u8> {
    let [low, high] = COUNT.to_le_bytes();
    let mut code = vec![0x66, 0xb8, 0, 0, 0, 0, 0x66, 0x31, 0xc9, 0x0f, 0xa2, 0x66, 0xff, 0x06, low, high];
    code[LEAF..LEAF + 4].copy_from_slice(&leaf.to_le_bytes());
    code.extend([0xeb, 0u8.wrapping_sub(code.len() as u8 + 2)]);
    code
}

/// Has a guest ask this leaf all the time, and sends it so many INITs, after each of which it is started again.
///
/// # Errors
/// What KVM refuses, and other exits than that after an INIT.
pub fn init_while_asking(leaf: u32, times: u32) -> Result<Inits, Error> {
    // With KVM's interrupt controllers, by which an INIT comes.
    let config = Config { halt: Some(PAUSE), ..config() };
    let vm = Vm::with_memory(&config, &[LAST_PAGE])?;
    write(vm.memory(), "the code", CODE, &ask_for_ever(leaf))?;
    write(vm.memory(), "the reset vector", RESET_VECTOR, &AFTER_INIT)?;
    let mut vcpu = vm.create_vcpu(0)?;
    // KVM finds a vCPU by its local APIC only once that has been set, by its VMM or by its guest.
    let apic = vcpu.get_lapic().map_err(kvm_error("tell the vCPU's local APIC"))?;
    vcpu.set_lapic(&apic).map_err(kvm_error("set the vCPU's local APIC"))?;
    let mut registers = Vec::new();
    thread::scope(|scope| {
        let (start, started) = channel();
        let sender = scope.spawn(|| send(&vm, started));
        for _ in 0..times {
            set_registers(&vcpu, CODE, [0; 4])?;
            let _ = start.send(());
            let found = registers_after_init(&mut vcpu)?;
            if !registers.contains(&found) {
                registers.push(found);
            }
        }
        drop(start);
        sender.join().unwrap_or(Ok(()))
    })?;
    let cpuids = vm.memory().read_obj(GuestAddress(COUNT.into()));
    let detail = |error: vm_memory::GuestMemoryError| error.to_string();
    let cpuids = cpuids.map_err(|error| Error::GuestMemory { what: "the count", detail: detail(error) })?;
    Ok(Inits { registers, cpuids })
}

/// Sends an INIT a while after each start.
fn send(vm: &Vm, started: Receiver<()>) -> Result<(), Error> {
    let (address, data) = INIT;
    started.iter().try_for_each(|()| {
        thread::sleep(PAUSE);
        vm.signal(address, data)
    })
}

fn registers_after_init(vcpu: &mut VcpuFd) -> Result<CpuidRegisters, Error> {
    match vcpu.run().map_err(kvm_error("run a vCPU"))? {
        VcpuExit::IoOut(0x80, _) => {}
        other => return Err(unexpected(&other)),
    }
    vcpu.get_regs().map(|registers| of_cpuid(&registers)).map_err(kvm_error("tell the vCPU's registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_goes_back_to_its_first_instruction() {
        let code = ask_for_ever(0x4fff_fff1);
        assert_eq!(code[..6], [0x66, 0xb8, 0xf1, 0xff, 0xff, 0x4f]);
        let (jump, back) = (code[code.len() - 2], code[code.len() - 1] as i8);
        assert_eq!((jump, back), (0xeb, -(code.len() as i8)));
    }
}
