//! Would it run there?

use proptest::prelude::*;

use super::*;
use crate::decode;

fn cpu(registers: &[(u32, Option<u64>)]) -> Cpu {
    Cpu { id: 0, registers: registers.iter().map(|&(number, value)| (Address::Msr(number), value)).collect() }
}

/// A laptop's registers.
const LAPTOP: [(u32, Option<u64>); 21] = [
    (0x03A, Some(0x0000_0000_0000_0005)),
    (0x480, Some(0x00DA_0500_0000_0013)),
    (0x481, Some(0x0000_00FF_0000_0016)),
    (0x482, Some(0xFFFB_FFFE_0401_E172)),
    (0x483, Some(0xF77F_FFFF_0003_6DFF)),
    (0x484, Some(0x0076_FFFF_0000_11FF)),
    (0x485, Some(0x0000_0000_7004_C1E7)),
    (0x486, Some(0x0000_0000_8000_0021)),
    (0x487, Some(0x0000_0000_FFFF_FFFF)),
    (0x488, Some(0x0000_0000_0000_2000)),
    (0x489, Some(0x0000_0000_01FF_6FFF)),
    (0x48A, Some(0x0000_0000_0000_002E)),
    (0x48B, Some(0x0F5D_7FFF_0000_0000)),
    (0x48C, Some(0x0001_0F01_06F3_4141)),
    (0x48D, Some(0x0000_00FF_0000_0016)),
    (0x48E, Some(0xFFFB_FFFE_0400_6172)),
    (0x48F, Some(0xF77F_FFFF_0003_6DFB)),
    (0x490, Some(0x0076_FFFF_0000_11FB)),
    (0x491, Some(0x0000_0000_0000_0001)),
    (0x492, Some(0x0000_0000_0000_0010)),
    (0x493, Some(0x0000_0000_0000_0008)),
];

/// The laptop with some registers as given.
fn with(registers: &[(u32, Option<u64>)]) -> Cpu {
    let changed = |number| registers.iter().find(|(known, _)| *known == number).map(|(_, value)| *value);
    cpu(&LAPTOP.map(|(number, value)| (number, changed(number).unwrap_or(value))))
}

/// Expects this answer and these fields for a guest of `a` on `b`.
fn expect(a: &Cpu, b: &Cpu, answer: Answer, fields: &[&str]) {
    let check = check(std::slice::from_ref(a), std::slice::from_ref(b));
    let found: Vec<&str> = check.pairs[0].findings.iter().map(|finding| finding.field.as_str()).collect();
    assert_eq!((check.answer, found.as_slice()), (answer, fields));
}

/// A guest of the laptop on one that differs so, and the reverse.
fn on(registers: &[(u32, Option<u64>)], fields: &[&str], back: &[&str]) {
    let answer = |fields: &[&str]| if fields.is_empty() { Answer::Yes } else { Answer::No };
    expect(&cpu(&LAPTOP), &with(registers), answer(fields), fields);
    expect(&with(registers), &cpu(&LAPTOP), answer(back), back);
}

#[test]
fn a_control_must_be_settable_there_as_here() {
    let ept = (1 << 1) << 32;
    on(&[(0x48B, Some(0x0F5D_7FFF_0000_0000 - ept))], &["Enable EPT"], &[]);
    on(&[(0x48B, Some(0x0F5D_7FFF_0000_0002))], &["Enable EPT"], &[]);
    on(&[(0x48B, Some(0x2F5D_7FFF_0000_0000))], &[], &["Bit 29 (no name)"]);
    on(&[(0x492, Some(0x12))], &[], &["Enable HLAT"]);
    on(&[(0x48E, Some(0xFFFB_FFFE_0401_6172))], &["CR3-store exiting"], &[]);
}

#[test]
fn the_true_form_is_weighed_against_the_plain_one() {
    let mut old = cpu(&LAPTOP);
    old.registers.retain(|(address, _)| !matches!(address, Address::Msr(0x48D..=0x490)));
    old.registers[1].1 = Some(0x005A_0500_0000_0013);
    let fields = [
        "TRUE controls",
        "CR3-load exiting",
        "CR3-store exiting",
        "Save debug controls",
        "Load debug controls",
    ];
    expect(&cpu(&LAPTOP), &old, Answer::No, &fields);
    expect(&old, &cpu(&LAPTOP), Answer::Yes, &[]);
}

#[test]
fn a_group_that_is_not_there_has_no_control_at_1() {
    let mut old = with(&[(0x482, Some(0xFFF9_FFFE_0401_E172)), (0x48E, Some(0xFFF9_FFFE_0400_6172))]);
    old.registers.retain(|(address, _)| *address != Address::Msr(0x492));
    let fields = ["Activate tertiary controls", "IPI virtualization"];
    expect(&cpu(&LAPTOP), &old, Answer::No, &fields);
    expect(&old, &cpu(&LAPTOP), Answer::Yes, &[]);
}

#[test]
fn flags_numbers_and_fixed_bits_have_their_rules() {
    on(&[(0x48C, Some(0x0000_0F01_06F1_4141))], &["1-GByte EPT pages", "Maximum HLAT prefix size"], &[]);
    on(&[(0x491, Some(0b11))], &[], &["Bit 1 (no name)"]);
    on(&[(0x480, Some(0x00DA_0400_0000_0012))], &[], &[]);
    on(&[(0x480, Some(0x00DB_0500_0000_0013))], &["32-bit physical addresses"], &[]);
    on(&[(0x480, Some(0x00C2_0500_0000_0013))], &["VMCS memory type"], &[]);
    on(&[(0x485, Some(0x7002_C1E7))], &["CR3-target values"], &[]);
    let timer = ["VMX-preemption timer rate"];
    on(&[(0x485, Some(0x7004_C1E5))], &timer, &timer);
    on(&[(0x486, Some(0x8000_0020))], &[], &["PE"]);
    on(&[(0x489, Some(0x01FF_67FF))], &["UMIP"], &[]);
    on(&[(0x48A, Some(0x30))], &[], &["Highest VMCS index"]);
}

#[test]
fn firmware_that_turns_it_off_is_told() {
    let vmx = ["Enable VMX outside SMX operation"];
    on(&[(0x3A, Some(0b001))], &vmx, &[]);
    on(&[(0x3A, Some(0b000))], &[], &[]);
    on(&[(0x3A, None)], &[], &[]);
    let amd = |value| {
        let edx = (Address::Cpuid(0x8000_000A, Gpr::Edx), Some(1));
        Cpu { id: 0, registers: vec![(VM_CR, Some(value)), edx] }
    };
    let found = check(&[amd(0)], &[amd(0x10)]).pairs[0].findings.clone();
    assert!(found.iter().any(|finding| finding.field == "SVMDIS"), "{found:#?}");
}

#[test]
fn unknown_is_neither_yes_nor_no() {
    let all = ["all of it"];
    for number in [0x480, 0x485, 0x487, 0x48C] {
        expect(&cpu(&LAPTOP), &with(&[(number, None)]), Answer::Unknown, &all);
        expect(&with(&[(number, None)]), &cpu(&LAPTOP), Answer::Unknown, &all);
    }
    // The plain form does not tell which default1 controls may be 0.
    expect(&with(&[(0x48D, None)]), &cpu(&LAPTOP), Answer::Unknown, &all);
    expect(&cpu(&LAPTOP), &with(&[(0x48D, None)]), Answer::Unknown, &all);
    expect(&cpu(&LAPTOP), &with(&[(0x481, None)]), Answer::Yes, &[]);
    let both = [(0x48B, None), (0x48C, Some(0))];
    assert_eq!(check(&[cpu(&LAPTOP)], &[with(&both)]).answer, Answer::No);
    assert_eq!(check(&[], &[]).answer, Answer::Unknown);
    let mut newer = cpu(&LAPTOP);
    newer.registers.push((Address::Msr(0x494), Some(1)));
    expect(&newer, &cpu(&LAPTOP), Answer::Unknown, &["a register without a name"]);
    expect(&newer, &newer, Answer::Yes, &[]);
}

#[test]
fn the_other_vendors_machine_has_nothing_of_it() {
    let amd = Cpu { id: 0, registers: vec![(Address::Cpuid(0x8000_000A, Gpr::Edx), Some(1))] };
    expect(&cpu(&LAPTOP), &amd, Answer::No, &["all of VMX"]);
    expect(&amd, &cpu(&LAPTOP), Answer::No, &["all of SVM"]);
}

#[test]
fn every_kind_of_cpu_counts() {
    let mut small = with(&[(0x48C, Some(0))]);
    small.id = 1;
    let hybrid = [cpu(&LAPTOP), small];
    let check = check(&hybrid[..1], &hybrid);
    assert_eq!((check.answer, check.pairs.len()), (Answer::No, 2));
}

#[test]
fn exceptions_speak_of_fields_that_exist() {
    for (address, low, _) in EXCEPTIONS {
        let register = find(*address).unwrap();
        assert!(register.fields.iter().any(|field| field.bits.low == *low), "{} {low}", register.name);
    }
}

proptest! {
    #[test]
    fn what_is_known_in_full_runs_on_itself(cpus in decode::tests::cpus()) {
        for cpu in &cpus {
            let check = check(std::slice::from_ref(cpu), std::slice::from_ref(cpu));
            let denied = check.pairs[0].findings.iter().find(|finding| finding.answer == Answer::No);
            let off = |address, mask, value| cpu.value(address).is_some_and(|word| word & mask == value);
            let off = off(FEATURE_CONTROL, 0b101, 1) || off(VM_CR, 0x10, 0x10);
            let both = cpu.tells_of(Isa::Vmx) && cpu.tells_of(Isa::Svm);
            prop_assert!(denied.is_none() || off || both, "{denied:?}");
        }
    }
}
