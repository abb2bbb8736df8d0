//! What several CPUs have in common: all that a guest can rely on which may meet any of them.

use exitscope_abi::reason::Isa;

use super::fault::fault;
use super::rule::Rule;
use super::tables::{Kind, REGISTERS, Register, find};
use super::{Address, Cpu, Known};

const FEATURE_CONTROL: Address = Address::Msr(0x3A);
const VM_CR: Address = Address::Msr(0xC001_0114);

/// What CPUs have in common, as the registers of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// Its number is 0. A register that is unknown on one of them is unknown.
    pub cpu: Cpu,
    /// Where they contradict each other.
    pub conflicts: Vec<String>,
}

/// The intersection of these CPUs.
pub fn common<'a>(cpus: impl IntoIterator<Item = &'a Cpu>) -> Common {
    let cpus: Vec<&Cpu> = cpus.into_iter().collect();
    if let [only] = cpus[..] {
        return Common { cpu: Cpu { id: 0, ..only.clone() }, conflicts: Vec::new() };
    }
    let mut common = Common::default();
    let some = |isa, answer| cpus.iter().any(|cpu| cpu.offers(isa) == answer);
    for isa in Isa::ALL {
        if some(isa, Some(true)) && some(isa, Some(false)) {
            common.conflicts.push(format!("not all of them have {}", isa.name().to_uppercase()));
        }
    }
    for register in REGISTERS {
        if let Some(value) = in_all(register, &cpus, &mut common.conflicts) {
            common.cpu.registers.push((register.address, value));
        }
    }
    // What has no table is common if it is the same.
    for &(address, value) in cpus.first().iter().flat_map(|cpu| &cpu.registers) {
        if find(address).is_none() && cpus.iter().all(|cpu| cpu.asked(address)) {
            let same = cpus.iter().all(|cpu| cpu.read(address) == value);
            common.cpu.registers.push((address, value.filter(|_| same)));
        }
    }
    contradictions(&mut common);
    common
}

/// The value of a register that holds for all CPUs, `Some(None)` if it is unknown; `None` if one of them lacks it, or
/// none was asked.
fn in_all(register: &Register, cpus: &[&Cpu], conflicts: &mut Vec<String>) -> Option<Option<u64>> {
    let mut value = None;
    let mut unknown = false;
    let mut asked = false;
    for cpu in cpus {
        asked |= cpu.asked(register.address);
        match plain(cpu, register) {
            Known::Absent => return None,
            Known::Nothing => unknown = true,
            Known::Value(next) => {
                value = Some(value.map_or(next, |value| meet(register, value, next)));
            }
        }
    }
    let value = value.filter(|_| asked && !unknown);
    let neither = value.and_then(|value| register.kind.allowed(value)).map_or(0, |allowed| {
        let named = if let Kind::Controls { .. } = register.kind { 0xFFFF_FFFF } else { 0 };
        !allowed.zero & !allowed.one & named
    });
    if neither != 0 {
        conflicts.push(format!("{}: controls {neither:#x} have no setting that all allow", register.name));
        return Some(None);
    }
    asked.then_some(value)
}

/// What is known of a register; of the original form of controls also what the TRUE form says of it.
fn plain(cpu: &Cpu, register: &Register) -> Known {
    let better = || cpu.value(register.better()?);
    match (cpu.known(register.address), register.kind) {
        (Known::Nothing, Kind::Controls { default1 }) => {
            better().map_or(Known::Nothing, |value| Known::Value(value | u64::from(default1)))
        }
        (known, _) => known,
    }
}

fn meet(register: &Register, a: u64, b: u64) -> u64 {
    match (register.address, register.kind) {
        // Those that keep hypervisors out count most.
        (FEATURE_CONTROL, _) if a & 0b101 == 0b001 => a,
        (FEATURE_CONTROL, _) if b & 0b101 == 0b001 => b,
        (VM_CR, _) => (a & b) | ((a | b) & 0b1_0000),
        (_, Kind::Controls { .. }) => (a & b & !0xFFFF_FFFF) | ((a | b) & 0xFFFF_FFFF),
        _ => Rule::meet_all(register, a, b),
    }
}

/// What cannot be so in the result, though each CPU's own can, is no common ground.
fn contradictions(common: &mut Common) {
    let faults: Vec<(Address, String)> = common
        .cpu
        .registers
        .iter()
        .filter_map(|&(address, _)| {
            let register = find(address)?;
            let told = register.exists(&common.cpu) != Some(false);
            Some((address, fault(&common.cpu, register).filter(|_| told)?))
        })
        .collect();
    for (address, what) in faults {
        common.conflicts.push(format!("{address}: {what}"));
        common.cpu.registers.iter_mut().filter(|(at, _)| *at == address).for_each(|(_, value)| *value = None);
    }
    let absent =
        |cpu: &Cpu, address| find(address).is_some_and(|register| register.exists(cpu) == Some(false));
    let cpu = common.cpu.clone();
    common.cpu.registers.retain(|(address, _)| !absent(&cpu, *address));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Answer, check};
    use crate::decode;
    use proptest::prelude::*;

    fn cpu(registers: &[(u32, u64)]) -> Cpu {
        let registers = registers.iter().map(|&(number, value)| (Address::Msr(number), Some(value)));
        Cpu { id: 0, registers: registers.collect() }
    }

    fn told(cpus: &[Cpu]) -> (Vec<(u32, Option<u64>)>, Vec<String>) {
        let common = common(cpus);
        let registers = common.cpu.registers.into_iter().map(|(address, value)| match address {
            Address::Msr(number) => (number, value),
            Address::Cpuid(leaf, _) => (leaf, value),
        });
        (registers.collect(), common.conflicts)
    }

    #[test]
    fn controls_flags_and_numbers_meet() {
        let a = cpu(&[(0x480, 0x00DA_0400_0000_0012), (0x482, 0xFFF9_FFFE_0401_E172), (0x485, 0x7004_C1E7)]);
        let b = cpu(&[(0x480, 0x009A_0400_0000_000F), (0x482, 0xB5F9_FFFE_0401_E172), (0x485, 0x3002_C1E5)]);
        let (registers, conflicts) = told(&[a, b]);
        assert_eq!(conflicts, [""; 0]);
        let expected = [
            (0x480, Some(0x009A_0400_0000_0012)),
            (0x482, Some(0xB5F9_FFFE_0401_E172)),
            (0x485, Some(0x3002_C1E0)),
        ];
        assert_eq!(registers, expected);
    }

    #[test]
    fn a_register_that_one_lacks_is_in_no_intersection() {
        let a = cpu(&[(0x480, 0x00DA_0400_0000_0012), (0x481, 0x7F_0000_0016), (0x48D, 0x7F_0000_0012)]);
        let b = cpu(&[(0x480, 0x005A_0400_0000_0012), (0x481, 0x3F_0000_0016), (0x48D, 0)]);
        let expected = vec![(0x480, Some(0x005A_0400_0000_0012)), (0x481, Some(0x3F_0000_0016))];
        assert_eq!(told(&[a, b]).0, expected);
    }

    #[test]
    fn what_one_does_not_tell_is_unknown() {
        let (registers, _) =
            told(&[cpu(&[(0x485, 0x7004_C1E7), (0x48A, 0x2E)]), cpu(&[(0x485, 0x7004_C1E7)])]);
        assert_eq!(registers, [(0x485, Some(0x7004_C1E7)), (0x48A, None)]);
    }

    #[test]
    fn the_vendors_have_nothing_in_common() {
        let amd = Cpu { id: 0, registers: vec![(Address::Cpuid(0x8000_000A, crate::Gpr::Edx), Some(1))] };
        let (registers, conflicts) = told(&[cpu(&[(0x485, 0x7004_C1E7)]), amd]);
        assert_eq!(registers, []);
        assert_eq!(conflicts, ["not all of them have VMX", "not all of them have SVM"]);
    }

    #[test]
    fn firmware_that_keeps_hypervisors_out_of_one_does_of_all() {
        for [a, b, expected] in [[5, 1, 1], [1, 4, 1], [5, 5, 5], [7, 5, 5], [4, 5, 4]] {
            assert_eq!(told(&[cpu(&[(0x3A, a)]), cpu(&[(0x3A, b)])]).0, [(0x3A, Some(expected))]);
        }
        let amd = |value| cpu(&[(0xC001_0114, value)]);
        assert_eq!(told(&[amd(8), amd(0x10)]).0, [(0xC001_0114, Some(0x10))]);
    }

    proptest! {
        #[test]
        fn every_machine_has_what_is_common(cpus in decode::tests::cpus()) {
            let common = common(&cpus).cpu;
            for cpu in &cpus {
                let check = check(std::slice::from_ref(&common), std::slice::from_ref(cpu));
                let denied = check.pairs[0].findings.iter().find(|finding| {
                    finding.answer == Answer::No && find(finding.address).is_some_and(|found| !found.is_switch())
                });
                let offers = Isa::ALL.iter().any(|isa| cpu.offers(*isa) == Some(true));
                prop_assert!(denied.is_none() || !offers, "{denied:?} {common:x?}");
            }
        }
    }
}
