//! Would it run there?

use proptest::prelude::*;

use super::*;
use crate::{Gpr, decode, feature};

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
    let laptop = cpu(&LAPTOP);
    expect(&laptop, &with(&[(0x3A, None)]), Answer::Unknown, &vmx);
    expect(&laptop, &with(&[(0x3A, Some(0b011))]), Answer::Unknown, &vmx);
    expect(&with(&[(0x3A, None)]), &laptop, Answer::Yes, &[]);
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
    let default1 = ["which of the default1 controls may be 0"];
    expect(
        &with(&[(0x48E, None)]),
        &with(&[(0x48E, Some(0xFFFB_FFFE_0401_E172))]),
        Answer::Unknown,
        &default1,
    );
    expect(&cpu(&LAPTOP), &with(&[(0x48E, None)]), Answer::Unknown, &default1);
    expect(&cpu(&LAPTOP), &with(&[(0x48D, None)]), Answer::Yes, &[]);
    expect(&cpu(&LAPTOP), &with(&[(0x481, None)]), Answer::Yes, &[]);
    let both = [(0x48B, None), (0x48C, Some(0x40))];
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
    let mut small = with(&[(0x48C, Some(0x40))]);
    small.id = 1;
    let hybrid = [cpu(&LAPTOP), small];
    let check = check(&hybrid[..1], &hybrid);
    assert_eq!((check.answer, check.pairs.len()), (Answer::No, 2));
    assert_eq!(super::check(&hybrid, &hybrid[..1]).pairs[0].require, [0, 1]);
}

/// The answer for features that are named, and the fields that stand against them.
fn named(list: &str, cpu: &Cpu) -> (Answer, Vec<String>) {
    let check = check_features(&feature::parse(list).unwrap(), std::slice::from_ref(cpu));
    let findings = check.pairs.into_iter().flat_map(|pair| pair.findings);
    (check.answer, findings.map(|finding| finding.field).collect())
}

#[test]
fn features_can_be_required_by_name() {
    let laptop = cpu(&LAPTOP);
    assert_eq!(named("vmx-rdrand-exit,vmx-vmfunc,ept,apicv", &laptop), (Answer::Yes, vec![]));
    let old = with(&[(0x48B, Some(0x0F5D_5FFF_0000_0000))]);
    let missing = vec!["RDRAND exiting".to_owned(), "Enable VM functions".to_owned()];
    assert_eq!(named("vmx-rdrand-exit,vmx-vmfunc,vmx-ept", &old).1, missing[1..]);
    assert_eq!(
        named("vmx-rdrand-exit,vmx-vmfunc", &with(&[(0x48B, Some(0x0F5D_57FF_0000_0000))])),
        (Answer::No, missing)
    );
    assert_eq!(named("eptp_switching", &old).0, Answer::No, "what needs a control is not there without it");
    assert_eq!(named("vmx-ept", &with(&[(0x48B, None)])).0, Answer::Unknown);
    assert_eq!(named("vmx-ept", &with(&[(0x3A, None)])).0, Answer::Unknown, "firmware did not answer");
    assert_eq!(named("vmx-ept", &with(&[(0x3A, Some(1))])).0, Answer::No);
    assert_eq!(named("svm", &laptop), (Answer::No, vec!["all of SVM".into()]));
    assert_eq!(named("vmx,vnmi", &laptop).0, Answer::Yes);
}

#[test]
fn qemus_noexit_means_that_a_control_may_be_0() {
    assert_eq!(named("vmx-cr3-load-noexit", &cpu(&LAPTOP)).0, Answer::Yes);
    assert_eq!(named("CR3-load exiting", &cpu(&LAPTOP)).0, Answer::Yes);
    let fixed = with(&[(0x48E, Some(0xFFFB_FFFE_0401_E172))]);
    assert_eq!(named("vmx-cr3-load-noexit", &fixed), (Answer::No, vec!["CR3-load exiting".into()]));
    assert_eq!(named("CR3-load exiting", &fixed).0, Answer::Yes);
    assert_eq!(named("vmx-cr3-load-noexit", &with(&[(0x48E, None)])).0, Answer::Unknown);
}

#[test]
fn one_register_is_the_whole_question() {
    let message = cpu(&[(0x48F, Some(0x00FF_FFFF_0003_6DFB))]);
    let host = cpu(&[(0x480, Some(0x00DA_0400_0000_0012)), (0x48F, Some(0x007F_FFFF_0003_6DFB))]);
    expect(&message, &host, Answer::No, &["Clear IA32_BNDCFGS"]);
    let check = check(std::slice::from_ref(&message), std::slice::from_ref(&message));
    assert_eq!((check.answer, check.only), (Answer::Yes, Some(Address::Msr(0x48F))));
    let two = cpu(&[(0x48F, Some(0x00FF_FFFF_0003_6DFB)), (0x485, Some(0x7004_C1E7))]);
    let check = super::check(std::slice::from_ref(&two), std::slice::from_ref(&two));
    assert_eq!((check.answer, check.only), (Answer::Unknown, None));
    assert!(check.untold.contains(&Address::Msr(0x480)), "{:?}", check.untold);
}

#[test]
fn a_register_that_does_not_exist_has_no_say() {
    let mut old = cpu(&LAPTOP);
    old.registers[1].1 = Some(0x005A_0500_0000_0013);
    for (address, value) in &mut old.registers {
        if matches!(address, Address::Msr(0x48D..=0x490)) {
            *value = Some(0);
        }
    }
    let less = Cpu { registers: old.registers.clone(), ..Cpu::default() };
    expect(&old, &less, Answer::Yes, &[]);
    let mut less = less;
    less.registers[2].1 = Some(0x0000_00DF_0000_0016);
    expect(&old, &less, Answer::No, &["Virtual NMIs"]);
}

#[test]
fn what_cannot_be_so_is_unknown() {
    let torn = with(&[(0x48B, Some(0x153C_FE00_0000))]);
    assert_eq!(check(&[cpu(&LAPTOP)], std::slice::from_ref(&torn)).answer, Answer::Unknown);
    assert_eq!(check(&[torn], &[cpu(&LAPTOP)]).answer, Answer::Unknown);
}

#[test]
fn a_hybrid_runs_on_itself() {
    let mut small = with(&[(0x48B, Some(0x035D_6FFF_0000_0000))]);
    small.id = 4;
    let hybrid = [cpu(&LAPTOP), small];
    assert_eq!(check(&hybrid, &hybrid).answer, Answer::Yes);
    assert_eq!(check(&hybrid[..1], &hybrid).answer, Answer::No);
}

/// An AMD CPU: the highest leaf, the extended flags, leaf 0x8000000a and VM_CR if it was asked for.
fn amd(highest: u64, flags: Option<u64>, edx: u64, vm_cr: Option<Option<u64>>) -> Cpu {
    let leaf = |gpr, value| (Address::Cpuid(0x8000_000A, gpr), Some(value));
    let mut registers = vec![
        (Address::Cpuid(0x8000_0000, Gpr::Eax), Some(highest)),
        (Address::Cpuid(0x8000_0001, Gpr::Ecx), flags),
        leaf(Gpr::Eax, 1),
        leaf(Gpr::Ebx, 0x8000),
        leaf(Gpr::Ecx, 0),
        leaf(Gpr::Edx, edx),
    ];
    registers.extend(vm_cr.map(|value| (VM_CR, value)));
    Cpu { id: 0, registers }
}

#[test]
fn svm_is_there_only_if_cpuid_says_so() {
    let on = amd(0x8000_001B, Some(0x37FF), 0xF, None);
    expect(&on, &on, Answer::Yes, &[]);
    let off = amd(0x8000_001B, Some(0x37FB), 0xF, None);
    expect(&on, &off, Answer::No, &["all of SVM"]);
    expect(&off, &off, Answer::No, &["all of SVM"]);
    assert_eq!(
        check(&[off], std::slice::from_ref(&on)).answer,
        Answer::Unknown,
        "it asks for nothing that can be told"
    );
    let newer = amd(0x8000_001F, Some(0x37FF), 0xF, None);
    assert_eq!(
        check(std::slice::from_ref(&newer), std::slice::from_ref(&newer)).answer,
        Answer::Unknown,
        "leaf 0x8000001f was not asked"
    );
    expect(&on, &amd(0x8000_001B, Some(0x37FF), 0xF, Some(None)), Answer::Unknown, &["SVMDIS"]);
    expect(&amd(0x8000_001B, Some(0x37FF), 0x80F, None), &on, Answer::Yes, &[]);
}

proptest! {
    #[test]
    fn what_is_known_in_full_runs_on_itself(cpus in decode::tests::cpus()) {
        for cpu in &cpus {
            let check = check(std::slice::from_ref(cpu), std::slice::from_ref(cpu));
            let denied = check.pairs[0].findings.iter().find(|finding| finding.answer == Answer::No);
            let off = |address, mask, value| cpu.value(address).is_some_and(|word| word & mask == value);
            let off = off(FEATURE_CONTROL, 0b101, 1) || off(VM_CR, 0x10, 0x10);
            let none = Isa::ALL.iter().all(|isa| cpu.offers(*isa) != Some(true));
            prop_assert!(denied.is_none() || off || none, "{denied:?}");
        }
    }
}
