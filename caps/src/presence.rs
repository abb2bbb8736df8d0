//! Whether a CPU has VMX or SVM at all: one judgement for dumps, for this machine and for what KVM offers.

use exitscope_abi::reason::Isa;

use super::tables::{HIGHEST_LEAF, find};
use super::{Address, Cpu, Gpr};

/// The leaf that tells of SVM.
const SVM_LEAF: u32 = 0x8000_000A;

/// Where CPUID says that an instruction set is there: the register and its bit.
pub const fn flag(isa: Isa) -> (Address, u8) {
    match isa {
        Isa::Vmx => (Address::Cpuid(1, Gpr::Ecx), 5),
        Isa::Svm => (Address::Cpuid(0x8000_0001, Gpr::Ecx), 2),
    }
}

/// What speaks for an instruction set, the strongest last.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Evidence {
    #[default]
    None,
    /// One of its registers was asked for.
    Asked,
    /// One of its registers was read.
    Read,
    /// CPUID says so.
    Told,
}

/// What one look at all registers gives.
#[derive(Default)]
struct Facts {
    /// The bits of CPUID that say whether there is VMX, and SVM.
    told: [Option<bool>; 2],
    highest: Option<u64>,
    revision: Option<u64>,
    /// What else speaks for VMX, and for SVM.
    seen: [Evidence; 2],
}

impl Facts {
    fn of(cpu: &Cpu) -> Self {
        let mut facts = Self::default();
        for &(address, value) in &cpu.registers {
            let seen = if value.is_some() { Evidence::Read } else { Evidence::Asked };
            let index = match address {
                Address::Msr(0..0x1000) => 0,
                Address::Msr(0xC001_0114) | Address::Cpuid(SVM_LEAF.., _) => 1,
                Address::Msr(_) => continue,
                Address::Cpuid(leaf, _) => {
                    match leaf {
                        1 => facts.told[0] = value.map(|flags| flags >> 5 & 1 == 1),
                        0x8000_0001 => facts.told[1] = value.map(|flags| flags >> 2 & 1 == 1),
                        0x8000_0000 => facts.highest = value,
                        _ => {}
                    }
                    continue;
                }
            };
            facts.seen[index] = facts.seen[index].max(seen);
            if address == Address::Cpuid(SVM_LEAF, Gpr::Eax) {
                facts.revision = value;
            }
        }
        facts
    }

    fn lacks(&self, isa: Isa) -> Option<&'static str> {
        match (isa, self.told[index(isa)]) {
            (Isa::Vmx, Some(false)) => Some("CPUID 0x1 ECX bit 5 is 0"),
            (Isa::Svm, Some(false)) => Some("CPUID 0x80000001 ECX bit 2 is 0"),
            (Isa::Svm, _) if self.highest.is_some_and(|highest| highest < SVM_LEAF.into()) => {
                Some("CPUID's highest extended leaf is below 0x8000000a")
            }
            (Isa::Svm, None) => (self.revision? & 0xFF == 0).then_some("SvmRev is 0"),
            _ => None,
        }
    }

    fn evidence(&self, isa: Isa) -> Evidence {
        match self.told[index(isa)] {
            Some(true) => Evidence::Told,
            _ => self.seen[index(isa)],
        }
    }
}

const fn index(isa: Isa) -> usize {
    match isa {
        Isa::Vmx => 0,
        Isa::Svm => 1,
    }
}

impl Cpu {
    /// Whether it has an instruction set; `None` if nothing was read that tells. No CPU has both.
    pub fn offers(&self, isa: Isa) -> Option<bool> {
        let facts = Facts::of(self);
        if facts.lacks(isa).is_some() {
            return Some(false);
        }
        let other = if isa == Isa::Vmx { Isa::Svm } else { Isa::Vmx };
        let others = if facts.lacks(other).is_some() { Evidence::None } else { facts.evidence(other) };
        match facts.evidence(isa) {
            Evidence::None => (others > Evidence::None).then_some(false),
            Evidence::Asked if others > Evidence::Asked => Some(false),
            _ => Some(true),
        }
    }

    /// What was read that says that it has no such instruction set.
    pub fn lacks(&self, isa: Isa) -> Option<&'static str> {
        Facts::of(self).lacks(isa)
    }
}

/// The instruction set of the CPU that answers so, if it has one.
pub fn isa(read: impl Fn(Address) -> Option<u64>) -> Option<Isa> {
    let addresses = [flag(Isa::Vmx).0, HIGHEST_LEAF, flag(Isa::Svm).0];
    let cpu = Cpu { id: 0, registers: addresses.map(|address| (address, read(address))).into() };
    Isa::ALL.into_iter().find(|&isa| cpu.offers(isa) == Some(true))
}

/// Of a register of which only some bits tell of virtualization, these.
pub fn relevant(address: Address, value: u64) -> u64 {
    match find(address) {
        Some(register) if register.kind == super::tables::Kind::Presence => value & register.named(),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(registers: &[(Address, Option<u64>)]) -> [Option<bool>; 2] {
        let cpu = Cpu { id: 0, registers: registers.into() };
        [Isa::Vmx, Isa::Svm].map(|isa| cpu.offers(isa))
    }

    const BASIC: Address = Address::Msr(0x480);
    const EDX: Address = Address::Cpuid(SVM_LEAF, Gpr::Edx);
    const EAX: Address = Address::Cpuid(SVM_LEAF, Gpr::Eax);

    #[test]
    fn cpuid_decides_before_registers_do() {
        let (vmx, svm) = (flag(Isa::Vmx).0, flag(Isa::Svm).0);
        assert_eq!(offers(&[]), [None, None]);
        assert_eq!(offers(&[(BASIC, None)]), [Some(true), Some(false)]);
        assert_eq!(offers(&[(BASIC, Some(1)), (vmx, Some(0))]), [Some(false), None]);
        assert_eq!(offers(&[(vmx, Some(1 << 5))]), [Some(true), Some(false)]);
        assert_eq!(offers(&[(EDX, Some(1)), (svm, Some(0)), (vmx, Some(0))]), [Some(false); 2]);
        assert_eq!(offers(&[(EDX, Some(1)), (HIGHEST_LEAF, Some(0x8000_0008))])[1], Some(false));
        assert_eq!(offers(&[(EAX, Some(0))])[1], Some(false));
        assert_eq!(offers(&[(EAX, Some(0)), (svm, Some(4))])[1], Some(true));
    }

    #[test]
    fn a_register_that_could_not_be_read_is_weak_evidence() {
        assert_eq!(offers(&[(BASIC, None), (EDX, Some(1))]), [Some(false), Some(true)]);
        assert_eq!(offers(&[(BASIC, None), (EDX, None)]), [Some(true), Some(true)]);
    }

    #[test]
    fn a_machine_is_asked_for_three_registers() {
        let intel = |address| Some(if address == flag(Isa::Vmx).0 { 1 << 5 } else { 0 });
        assert_eq!(isa(intel), Some(Isa::Vmx));
        assert_eq!(isa(|_| Some(0)), None);
        let amd = |address| {
            Some(if address == HIGHEST_LEAF {
                0x8000_001F
            } else {
                u64::from(address == flag(Isa::Svm).0) << 2
            })
        };
        assert_eq!(isa(amd), Some(Isa::Svm));
    }
}
