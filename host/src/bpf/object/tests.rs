//! Tests of reading and linking objects, over objects that are made by hand.

use proptest::prelude::*;

use super::*;
use crate::bpf::made::{CALL_0, EXIT, Made, load, op};

/// What the tests' objects are linked with.
struct Known;

impl Symbols for Known {
    fn data(&self, section: usize) -> Option<RawFd> {
        Some(100 + section as RawFd)
    }

    fn value(&self, name: &str) -> Option<Value> {
        Some(match name {
            "number" => Value::Number(0x1_0000_0002),
            "map" => Value::Map(7),
            "cells" => Value::MapValue(8),
            _ => return None,
        })
    }

    fn kernel_function(&self, name: &str) -> Option<Option<u32>> {
        match name {
            "there" => Some(Some(0x1234)),
            "missing" => Some(None),
            _ => None,
        }
    }
}

/// An object whose one program does this first, which is relocated so.
fn one(instructions: &[[u8; 8]], relocations: &[(u64, u32, &str)]) -> Made {
    let code = [instructions, &[EXIT]].concat();
    let mut made = Made::new();
    let program = made.code("raw_tp/event", &code);
    made.function("program", program, 0, code.len() * 8);
    for &(offset, kind, symbol) in relocations {
        made.relocate(program, offset, kind, symbol);
    }
    made
}

fn link(made: &Made) -> Result<Vec<[u8; 8]>, Error> {
    let bytes = made.bytes();
    let object = Object::parse(&bytes)?;
    let code = object.link(&object.programs()[0], &Known)?;
    Ok(code
        .iter()
        .map(|&Instruction { code, registers, offset, imm }| {
            let ([a, b], [c, d, e, f]) = (offset.to_le_bytes(), imm.to_le_bytes());
            [code, registers, a, b, c, d, e, f]
        })
        .collect())
}

#[test]
fn programs_are_found_by_their_sections() {
    let mut made = Made::new();
    for (index, name) in
        [".text", "raw_tp/kvm_exit", "tp_btf/kvm_exit.probe", "fentry/kvm_vcpu_halt"].iter().enumerate()
    {
        let section = made.code(name, &[EXIT]);
        made.function(&format!("f{index}"), section, 0, 8);
    }
    let bytes = made.bytes();
    let object = Object::parse(&bytes).unwrap();
    let found: Vec<_> =
        object.programs().iter().map(|program| (program.kind, program.event, program.variant)).collect();
    let expected = [
        (Kind::RawTracepoint, "kvm_exit", ""),
        (Kind::TypedTracepoint, "kvm_exit", "probe"),
        (Kind::Function, "kvm_vcpu_halt", ""),
    ];
    assert_eq!(found, expected);
}

#[test]
fn numbers_and_maps_come_in() {
    // The addend is in the instruction.
    let [low, high] = load(3, 5);
    let check = |symbol: &str, addend: u64, expected: [[u8; 8]; 2]| {
        let made = one(&load(3, addend), &[(0, R_BPF_64_64, symbol)]);
        assert_eq!(link(&made).unwrap(), [expected[0], expected[1], EXIT], "{symbol}");
    };
    check("number", 5, [op(LOAD, 0x03, 0, 7), op(0, 0, 0, 1)]);
    check("number", u64::MAX, [op(LOAD, 0x03, 0, 1), op(0, 0, 0, 1)]);
    check("map", 0, [op(LOAD, 0x13, 0, 7), op(0, 0, 0, 0)]);
    check("cells", 512, [op(LOAD, 0x23, 0, 8), op(0, 0, 0, 512)]);
    // Without a relocation, it stays as it is.
    assert_eq!(link(&one(&[low, high], &[])).unwrap(), [low, high, EXIT]);
}

#[test]
fn data_becomes_maps() {
    let mut made =
        one(&[load(1, 0), load(2, 16)].concat(), &[(0, R_BPF_64_64, "value"), (16, R_BPF_64_64, ".bss")]);
    let constants = made.data(".rodata", &[1, 2, 3, 4, 5, 6, 7, 8], false);
    let zeroes = made.zeroes(".bss", 64);
    made.data(".data.unused", &[1], true);
    made.symbol("value", 1, constants, 4, 4);
    made.symbol(".bss", 3, zeroes, 0, 0);
    let bytes = made.bytes();
    let object = Object::parse(&bytes).unwrap();
    let data: Vec<_> = object.data().collect();
    let expected = [
        Data {
            section: constants,
            name: ".rodata",
            size: 8,
            bytes: &[1, 2, 3, 4, 5, 6, 7, 8],
            writable: false,
        },
        Data { section: zeroes, name: ".bss", size: 64, bytes: &[], writable: true },
    ];
    assert_eq!(data, expected);
    let code = link(&made).unwrap();
    let expected = [
        op(LOAD, 0x21, 0, 100 + constants as i32),
        op(0, 0, 0, 4),
        op(LOAD, 0x22, 0, 100 + zeroes as i32),
        op(0, 0, 0, 16),
        EXIT,
    ];
    assert_eq!(code, expected);
}

#[test]
fn functions_follow_their_callers_once() {
    // `.text` is unused, first, second; first calls second within the section, by distance.
    let nop = op(0xb7, 0, 0, 5);
    let mut made = one(
        &[CALL_0, CALL_0, op(CALL, 0x10, 0, 2), op(CALL, 0, 0, 14)],
        &[(0, R_BPF_64_32, "second"), (8, R_BPF_64_32, "first"), (16, R_BPF_64_32, ".text")],
    );
    let text = made.code(".text", &[nop, EXIT, nop, op(CALL, 0x10, 0, 1), EXIT, EXIT]);
    made.function("unused", text, 0, 16);
    made.function("first", text, 16, 24);
    made.function("second", text, 40, 8);
    made.symbol(".text", 3, text, 0, 0);
    // By the section's symbol: the third instruction there is `first`, and one is counted from the next instruction.
    made.set_imm(0, 16, 1);
    let code = link(&made).unwrap();
    let expected = [
        op(CALL, 0x10, 0, 4),
        op(CALL, 0x10, 0, 4),
        op(CALL, 0x10, 0, 3),
        op(CALL, 0, 0, 14),
        EXIT,
        // second
        EXIT,
        // first
        nop,
        op(CALL, 0x10, 0, -3),
        EXIT,
    ];
    assert_eq!(code, expected);
}

#[test]
fn functions_of_the_kernel_are_called_by_number() {
    let call = |name| link(&one(&[CALL_0], &[(0, R_BPF_64_32, name)])).map(|code| code[0]);
    assert_eq!(call("there").unwrap(), op(CALL, 0x20, 0, 0x1234));
    assert_eq!(call("missing").unwrap(), op(MOVE, 0, 0, 0));
    assert!(matches!(call("memcpy"), Err(Error::Unknown(name)) if name == "memcpy()"));
}

#[test]
fn what_is_not_understood_is_refused() {
    let [low, high] = load(1, 0);
    let refused = |made: &Made, what: &str| {
        let error = link(made).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(&one(&[low, high], &[(0, R_BPF_64_64, "nobody")]), "nobody");
    refused(&one(&[low, high], &[(0, 3, "number")]), "another kind");
    refused(&one(&[CALL_0], &[(0, R_BPF_64_64, "there")]), "another kind");
    refused(&one(&[EXIT], &[(0, R_BPF_64_64, "number")]), "nothing to relocate");
    refused(&one(&[low, high], &[(0, R_BPF_64_64, "program")]), "address of a function");
    refused(&one(&load(1, 8), &[(0, R_BPF_64_64, "map")]), "not one value");
    refused(&one(&load(1, u64::MAX), &[(0, R_BPF_64_64, "cells")]), "beyond");
    refused(&one(&[op(LOAD, 0x41, 0, 0), high], &[]), "load of something unknown");
    refused(&one(&[op(CALL, 0x30, 0, 0)], &[]), "call of something unknown");
    refused(&one(&[op(CALL, 0x10, 0, 0)], &[]), "no function");
    refused(&one(&[op(CALL, 0x10, 0, i32::MIN)], &[]), "no function");
    let mut made = one(&[low], &[]);
    made.cut_function("program", 8);
    refused(&made, "half a load");
    for size in [0, 4, 24] {
        let mut made = one(&[], &[]);
        made.cut_function("program", size);
        refused(&made, "not where it should be");
    }
    let mut made = one(&[low, high], &[(0, R_BPF_64_64, "value")]);
    let data = made.data(".data.rel.ro", &[0; 8], false);
    made.symbol("value", 1, data, 0, 8);
    made.relocate(data, 0, 2, "program");
    refused(&made, "data that has addresses");
    assert!(Object::parse(&[]).is_err());
}

/// An object with something of everything.
fn whole() -> Made {
    let code = [&[CALL_0][..], &load(1, 0), &load(2, 0), &[CALL_0]].concat();
    let relocations = [
        (0, R_BPF_64_32, "first"),
        (8, R_BPF_64_64, "value"),
        (24, R_BPF_64_64, "number"),
        (40, R_BPF_64_32, "there"),
    ];
    let mut made = one(&code, &relocations);
    let text = made.code(".text", &[op(CALL, 0x10, 0, 0), EXIT]);
    made.function("first", text, 0, 16);
    made.function("second", text, 8, 8);
    let data = made.data(".data", &[1; 16], true);
    made.symbol("value", 1, data, 8, 8);
    made
}

/// Nothing that is done with bytes panics.
fn try_all(bytes: &[u8]) {
    let Ok(object) = Object::parse(bytes) else { return };
    object.data().for_each(drop);
    for program in object.programs() {
        let _ = object.link(program, &Known);
    }
}

#[test]
fn damaged_objects_do_no_harm() {
    assert_eq!(link(&whole()).unwrap().len(), 7 + 2 + 1);
    let bytes = whole().bytes();
    (0..bytes.len()).for_each(|length| try_all(&bytes[..length]));
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        try_all(&bytes);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..16)) {
        let mut bytes = whole().bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        try_all(&bytes);
    }
}
