//! Machines side by side.

use super::*;
use crate::decode;
use proptest::prelude::*;

const PROC: u32 = 0x482;
const PROC2: u32 = 0x48B;

fn cpu(id: u32, registers: &[(u32, Option<u64>)]) -> Cpu {
    Cpu { id, registers: registers.iter().map(|&(number, value)| (Address::Msr(number), value)).collect() }
}

/// The differences, as `CPUs register field: A B`.
fn told(a: &[Cpu], b: &[Cpu]) -> Vec<String> {
    let diff = diff(a, b, Extent::Differences);
    let mut told = Vec::new();
    for pair in &diff.pairs {
        for register in &pair.registers {
            let start = format!("{:?} {}", pair.cpus, register.address);
            told.push(format!("{start}: {} {}", register.a, register.b));
            let fields = register.fields.iter().map(|side| format!("{}: {} {}", side.name, side.a, side.b));
            told.extend(fields.map(|field| format!("{start} {field}")));
        }
    }
    assert_eq!(diff.same, told.is_empty());
    told
}

#[test]
fn fields_that_differ_are_told() {
    let a = cpu(0, &[(PROC2, Some(0x2022 << 32))]);
    let b = cpu(0, &[(PROC2, Some(0x2000_0020 << 32))]);
    let expected = [
        "[0] 0x48b: 0x202200000000 0x2000002000000000",
        "[0] 0x48b Enable EPT: 0 or 1 0 only",
        "[0] 0x48b Enable VM functions: 0 or 1 0 only",
        "[0] 0x48b Bit 29 (no name): 0 only 0 or 1",
    ];
    assert_eq!(told(&[a], &[b]), expected);
}

#[test]
fn unknown_and_absent_are_told_apart() {
    let a = [cpu(0, &[(PROC, Some(0x8401_E172 << 32 | 0x0401_E172)), (PROC2, Some(0))])];
    let unknown = [cpu(0, &[(PROC, Some(0x8401_E172 << 32 | 0x0401_E172)), (PROC2, None)])];
    let unlisted = [cpu(0, &[(PROC, Some(0x8401_E172 << 32 | 0x0401_E172))])];
    let absent = [cpu(0, &[(PROC, Some(0x0401_E172 << 32 | 0x0401_E172))])];
    assert_eq!(told(&a, &unknown), ["[0] 0x48b: 0x0 unknown"]);
    assert_eq!(told(&a, &unlisted), ["[0] 0x48b: 0x0 unknown"]);
    assert_eq!(told(&unknown, &unlisted), [""; 0]);
    assert_eq!(told(&a, &absent).last().map(String::as_str), Some("[0] 0x48b: 0x0 absent"));
}

#[test]
fn a_cpu_without_a_partner_is_compared_with_the_first() {
    let [big, small] = [Some(0), Some(2)].map(|value| move |id| cpu(id, &[(0x480, value)]));
    assert_eq!(told(&[big(0)], &[big(0), big(1), big(2)]), [""; 0]);
    let hybrid = [big(0), big(1), small(2), small(3)];
    assert_eq!(told(&hybrid, &hybrid), [""; 0]);
    let told = told(&[big(0)], &hybrid);
    assert_eq!(told, ["[2, 3] 0x480: 0x0 0x2", "[2, 3] 0x480 VMCS revision identifier: 0 2"]);
}

#[test]
fn the_vendors_have_nothing_in_common() {
    let amd = Cpu { id: 0, registers: vec![(Address::Cpuid(0x8000_000A, crate::Gpr::Edx), Some(1))] };
    let intel = cpu(0, &[(0x480, Some(1))]);
    assert_eq!(told(&[intel], &[amd]), ["[0] 0x480: 0x1 absent", "[0] cpuid.0x8000000a.edx: absent 0x1"]);
}

proptest! {
    #[test]
    fn nothing_differs_from_itself(cpus in decode::tests::cpus()) {
        prop_assert_eq!(told(&cpus, &cpus), [""; 0]);
    }

    #[test]
    fn both_directions_tell_the_same(a in decode::tests::cpus(), b in decode::tests::cpus()) {
        prop_assert_eq!(told(&a, &b).len(), told(&b, &a).len());
    }
}
