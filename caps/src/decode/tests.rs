//! Decoding of real values, and of any value there and back.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::{dump, tables::REGISTERS};

fn cpu(registers: &[(u32, Option<u64>)]) -> Cpu {
    Cpu { id: 0, registers: registers.iter().map(|&(number, value)| (Address::Msr(number), value)).collect() }
}

/// The one field of this name in the one register.
fn field(number: u32, value: u64, name: &str) -> Json {
    let document = serde_json::to_value(decode(&[cpu(&[(number, Some(value))])])).unwrap();
    let fields = document["cpus"][0]["registers"][0]["fields"].as_array().unwrap().clone();
    let mut found = fields.into_iter().filter(|field| field["name"] == name);
    found.next().filter(|_| found.next().is_none()).unwrap_or_else(|| panic!("{name}"))
}

#[test]
fn the_document_has_the_contracts_shape() {
    let document =
        serde_json::to_value(decode(&[cpu(&[(0x480, Some(0x3DA_0500_0000_0013)), (0x491, None)])]));
    let document = document.unwrap();
    assert_eq!(document["schema"], "exitscope-caps/1");
    assert_eq!(document["unnamed"], json!([{ "address": "0x480", "bit": 57 }]));
    let registers = &document["cpus"][0]["registers"];
    assert_eq!(document["cpus"][0]["id"], 0);
    assert_eq!(registers[0]["address"], "0x480");
    assert_eq!(registers[0]["name"], "IA32_VMX_BASIC");
    assert_eq!(registers[0]["raw"], "0x03da050000000013");
    let revision = json!({
        "bits": "30:0", "name": "VMCS revision identifier", "value": 0x13,
        "meaning": "Software writes it to the first bytes of each VMXON and VMCS region",
    });
    assert_eq!(registers[0]["fields"][0], revision);
    assert_eq!((&registers[1]["raw"], &registers[1]["fields"]), (&Json::Null, &json!([])));
}

#[test]
fn numbers_are_cut_out() {
    assert_eq!(field(0x480, 0x3DA_0500_0000_0013, "VMCS region size")["value"], 0x500);
    assert_eq!(field(0x480, 0x3DA_0500_0000_0013, "VMCS memory type")["value"], 6);
    assert_eq!(field(0x485, 0x7004_C1E7, "CR3-target values")["value"], 4);
    assert_eq!(field(0x48C, 0x0001_0F01_06F3_4141, "Maximum HLAT prefix size")["value"], 1);
}

#[test]
fn controls_say_how_they_may_be_set() {
    let setting = |number, value, name: &str| {
        let field = field(number, value, name);
        (field["can_be_0"] == true, field["can_be_1"] == true, field["default"] == 1)
    };
    let proc = 0xFFF9_FFFE_0401_E172;
    assert_eq!(setting(0x482, proc, "CR3-load exiting"), (false, true, true));
    assert_eq!(setting(0x482, proc, "HLT exiting"), (true, true, false));
    assert_eq!(setting(0x482, proc, "Activate tertiary controls"), (true, false, false));
    assert_eq!(setting(0x48E, 0xFFF9_FFFE_0400_6172, "CR3-load exiting"), (true, true, true));
    assert_eq!(setting(0x492, 0x10, "IPI virtualization"), (true, true, false));
    assert_eq!(setting(0x492, 0x10, "Enable HLAT"), (true, false, false));
}

fn check_unnamed(number: u32, value: u64, expected: &[u8]) {
    let document = decode(&[cpu(&[(number, Some(value))])]);
    let bits: Vec<u8> = document.unnamed.iter().map(|unnamed| unnamed.bit).collect();
    assert_eq!(bits, expected, "{number:#x} {value:#x}");
}

#[test]
fn a_bit_without_a_name_is_a_number() {
    check_unnamed(0x48B, 1 << (32 + 29), &[29]);
    check_unnamed(0x48B, 1 << 29, &[29]);
    check_unnamed(0x484, 0x01FF_FFFF_0000_11FF, &[24]);
    check_unnamed(0x492, 1 << 63, &[63]);
    check_unnamed(0x486, 0x8000_0021 | 1 << 40, &[40]);
    check_unnamed(0x487, 0xFFFF_FFFF, &[]);
    check_unnamed(0x494, 0b101, &[0, 2]);
}

#[test]
fn default1_controls_are_reserved_until_they_may_be_0() {
    check_unnamed(0x481, 0x0000_00FF_0000_0016, &[]);
    check_unnamed(0x48D, 0x0000_00FF_0000_0012, &[2]);
    assert_eq!(field(0x481, 0x0000_0002_0000_0002, "Reserved (default1)")["can_be_0"], false);
}

#[test]
fn the_true_form_supersedes_where_it_was_read() {
    const PIN: u64 = 0x7F_0000_0016;
    let superseded = |better| {
        let document = decode(&[cpu(&[(0x481, Some(PIN)), (0x48D, better)])]);
        document.cpus[0].registers[0].superseded_by
    };
    assert_eq!(superseded(Some(PIN)), Some(Address::Msr(0x48D)));
    assert_eq!(superseded(Some(0)), None, "that cannot be");
    assert_eq!(superseded(None), None);
}

/// CPUs as a dump may hold them: each register of the tables at most once, with a value of its width or none.
pub fn cpus() -> impl Strategy<Value = Vec<Cpu>> {
    let registers = vec(option::of(option::of(any::<u64>())), REGISTERS.len()).prop_map(|values| {
        let read = REGISTERS.iter().zip(values).filter_map(|(register, value)| {
            let mask = u64::MAX >> (64 - register.address.width());
            Some((register.address, value?.map(|value| value & mask)))
        });
        read.collect::<Vec<_>>()
    });
    vec(registers, 0..4)
        .prop_map(|cpus| (0..).zip(cpus).map(|(id, registers)| Cpu { id, registers }).collect())
}

proptest! {
    #[test]
    fn json_brings_back_what_was_decoded(cpus in cpus()) {
        let json = serde_json::to_string(&decode(&cpus)).unwrap();
        let parsed = dump::parse(json.as_bytes());
        prop_assert_eq!(&parsed.cpus, &cpus);
        prop_assert_eq!(serde_json::to_string(&decode(&parsed.cpus)).unwrap(), json);
    }

    #[test]
    fn every_set_bit_is_named_or_numbered(index in 0..REGISTERS.len(), value: u64) {
        let address = REGISTERS[index].address;
        let value = value & (u64::MAX >> (64 - address.width()));
        let document = decode(&[Cpu { id: 0, registers: vec![(address, Some(value))] }]);
        prop_assume!(!document.cpus[0].registers[0].absent);
        let reading = &document.cpus[0].registers[0];
        let named = reading.fields.iter().fold(0, |mask, field| mask | field.bits.mask());
        let told = reading.unnamed.iter().fold(named, |mask, bit| mask | 1 << bit);
        let set = match REGISTERS[index].kind {
            Kind::Presence => 0,
            kind => kind.allowed(value).map_or(value, |allowed| allowed.one),
        };
        prop_assert_eq!(set & !told, 0);
    }
}
