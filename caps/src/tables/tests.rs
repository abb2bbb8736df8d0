//! The tables are complete, unique and in bounds.

use super::*;

#[test]
fn registers_ascend_and_have_unique_names() {
    assert!(REGISTERS.is_sorted_by(|a, b| a.address < b.address));
    for (index, register) in REGISTERS.iter().enumerate() {
        assert!(REGISTERS[..index].iter().all(|other| other.name != register.name), "{}", register.name);
        assert_eq!(find(register.address).map(|found| found.name), Some(register.name));
        assert!(["SDM vol. ", "APM vol. "].iter().any(|manual| register.section.starts_with(manual)));
    }
}

#[test]
fn every_capability_register_is_there() {
    let numbers = (0x480..=0x493).chain([0x3A, 0xC001_0114]).map(Address::Msr);
    let leaves = [0x8000_000A, 0x8000_001F].into_iter();
    let leaves = leaves.flat_map(|leaf| Gpr::ALL.map(|gpr| Address::Cpuid(leaf, gpr)));
    for address in numbers.chain(leaves) {
        assert!(find(address).is_some(), "{address}");
        assert_eq!(Address::parse(&address.to_string()), Some(address));
    }
}

#[test]
fn no_bit_is_defined_twice_or_out_of_bounds() {
    for register in REGISTERS {
        let width = if let Kind::Controls { .. } = register.kind { 32 } else { register.address.width() };
        let mut taken = 0;
        for field in register.fields {
            let row = format!("{} {}", register.name, field.name);
            assert!(field.bits.low <= field.bits.high && u32::from(field.bits.high) < width, "{row}");
            assert_eq!(taken & field.bits.mask(), 0, "{row}");
            assert!(field.bits.mask() > taken, "{row}");
            taken |= field.bits.mask();
        }
    }
}

#[test]
fn rows_are_well_formed() {
    for register in REGISTERS {
        for (index, Field { name, meaning, .. }) in register.fields.iter().enumerate() {
            let row = format!("{} {name}: {meaning}", register.name);
            assert!(!name.is_empty() && !meaning.is_empty() && meaning.len() <= 90, "{row}");
            assert!(meaning.is_ascii() && !meaning.ends_with(['.', ' ']), "{row}");
            assert!(
                meaning.starts_with(|c: char| !c.is_ascii_lowercase()) || meaning.starts_with("x87"),
                "{row}"
            );
            assert!(register.fields[..index].iter().all(|other| other.name != *name), "{row}");
        }
    }
}

#[test]
fn both_forms_of_controls_share_their_table() {
    for register in REGISTERS {
        let Some(better) = register.better().and_then(find) else { continue };
        assert_eq!(better.name.replace("TRUE_", ""), register.name);
        assert_eq!((better.kind, better.fields), (register.kind, register.fields));
    }
}

/// The masks of bits that the manuals define, from their tables' bit columns.
#[test]
fn the_manuals_bits_have_names() {
    let expected = [
        (0x480, 0x05FF_1FFF_7FFF_FFFF),
        (0x481, 0x0000_00E9),
        (0x482, 0xFBFB_9E8C),
        (0x483, 0xFFFC_9204),
        (0x484, 0x00FF_EE04),
        (0x485, 0xFFFF_FFFF_7FFF_C1FF),
        (0x48A, 0x0000_03FE),
        (0x48B, 0xDFFF_FFFF),
        (0x48C, 0x003F_0F01_06F3_41C1),
        (0x491, 0x1),
        (0x492, 0x1DF),
        (0x493, 0xB),
        (0x3A, 0x0016_FF07),
    ];
    for (number, mask) in expected {
        let register = find(Address::Msr(number)).unwrap();
        let named = register.fields.iter().fold(0, |mask, field| mask | field.bits.mask());
        assert_eq!(named, mask, "{}: {named:#x}", register.name);
    }
}

#[test]
fn a_register_that_needs_another_waits_for_its_answer() {
    let secondary = find(Address::Msr(0x48B)).unwrap();
    let read = |value| Cpu { id: 0, registers: vec![(Address::Msr(0x482), value)] };
    assert_eq!(secondary.exists(&read(None)), None);
    assert_eq!(secondary.exists(&read(Some(0x7FFF_FFFF_0401_E172))), Some(false));
    assert_eq!(secondary.exists(&read(Some(0xFFFF_FFFF_0401_E172))), Some(true));
    let ept = Test::Control(Controls::Proc2, 1);
    assert_eq!(ept.holds(&read(None)), None);
    assert_eq!(
        ept.holds(&read(Some(0x7FFF_FFFF_0401_E172))),
        Some(false),
        "no secondary controls, hence no EPT"
    );
    assert_eq!(ept.holds(&read(Some(u64::MAX))), None, "not read, hence not known");
    let one_gigabyte = Test::Flag(Address::Msr(0x48C), 17);
    assert_eq!(one_gigabyte.holds(&read(Some(0x7FFF_FFFF_0401_E172))), Some(false));
    assert_eq!(one_gigabyte.holds(&read(Some(u64::MAX))), None);
}

#[test]
fn registers_have_many_names() {
    for (name, number) in [
        ("IA32_VMX_BASIC", 0x480),
        ("MSR_IA32_VMX_BASIC_INFO", 0x480),
        ("ia32_vmx_procbased_ctls2", 0x48B),
        ("MSR_A32_VMX_VMFUNC", 0x491),
        ("MSR_VMX_TRUE_PINBASED_CTLS", 0x48D),
        ("MSR_IA32_FEAT_CTL", 0x3A),
        ("IA32_VMX_EPT_VPID_CAPS", 0x48C),
        ("MSR_K8_VM_CR", 0xC001_0114),
        ("MSR_AMD64_VM_CR", 0xC001_0114),
        ("VM_CR", 0xC001_0114),
    ] {
        assert_eq!(by_name(name).map(|register| register.address), Some(Address::Msr(number)), "{name}");
    }
    for name in ["IA32_VMX", "IA32_MISC_ENABLE", "SVM features", "", "IA32_VMX_PROCBASED_CTLS4"] {
        assert!(by_name(name).is_none(), "{name}");
    }
    for register in REGISTERS {
        for name in register.also {
            assert_eq!(by_name(name).map(|found| found.name), Some(register.name), "{name}");
        }
    }
}
