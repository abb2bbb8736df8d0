//! Tests of the reader of BTF, over a small kernel of their own.

extern crate std;

use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::writer::Writer;
use super::*;

/// A small kernel, and a module of it that knows a vCPU.
fn example() -> (Vec<u8>, Vec<u8>) {
    let mut kernel = Writer::new();
    let long = kernel.add("unsigned long", kind::INT, 0, 8, &[64]);
    let int = kernel.add("int", kind::INT, 0, 4, &[32]);
    let pid = kernel.add("pid_t", kind::TYPEDEF, 0, int, &[]);
    let pid = kernel.add("", kind::CONST, 0, pid, &[]);
    kernel.add("kvm_vcpu", kind::FWD, 0, 0, &[]);
    kernel.structure("built_in", 8, &[("one", int, 0), ("two", int, 32)]);

    let mut module = Writer::on(&kernel);
    let vmcb = module.before.1 + 4;
    let regs = module.add("", kind::ARRAY, 0, 0, &[long, int, 17]);
    let nameless = module.members(kind::UNION, "", 8, &[("rip", long, 0), ("pc", long, 0)]);
    let arch = module.structure(
        "kvm_vcpu_arch",
        152,
        &[("regs", regs, 0), ("", nameless, 1088), ("pid", pid, 1152)],
    );
    assert_eq!(module.structure("vmcb", 128, &[("code", long, 896)]), vmcb);
    let pointer = module.add("", kind::PTR, 0, vmcb, &[]);
    let vcpu = module.structure("kvm_vcpu", 160, &[("id", int, 0), ("arch", arch, 64)]);
    module.structure("vcpu_svm", 168, &[("vcpu", vcpu, 0), ("vmcb", pointer, 1280)]);
    let vcpu_pointer = module.add("", kind::PTR, 0, vcpu, &[]);
    let prototype = module.add("", kind::FUNC_PROTO, 2, 0, &[0, 0, 0, vcpu_pointer]);
    module.add("destroy", kind::FUNC, 1, prototype, &[]);
    let prototype_pointer = module.add("", kind::PTR, 0, prototype, &[]);
    module.add("btf_trace_exit", kind::TYPEDEF, 0, prototype_pointer, &[]);
    let bits = module.structure("flags", 4, &[("bit", int, 1 << 24), ("all", int, 0)]);
    let info = module.types.len() - 2 * 3 - 2;
    assert_eq!(bits, module.before.1 + 13);
    module.types[info] |= 1 << 31;
    for size in [8, 16] {
        module.structure("twice", size, &[("same", int, 0), ("other", int, size * 4)]);
    }
    for _ in 0..=SAME {
        module.structure("many", 4, &[("same", int, 0)]);
    }
    (kernel.bytes(), module.bytes())
}

const PLACES: &[(&str, u32, u32)] = &[
    ("built_in.two", 4, 4),
    ("kvm_vcpu", 0, 160),
    ("kvm_vcpu.id", 0, 4),
    ("kvm_vcpu.arch", 8, 152),
    ("kvm_vcpu.arch.regs", 8, 136),
    ("kvm_vcpu.arch.rip", 144, 8),
    ("kvm_vcpu.arch.pid", 152, 4),
    ("vcpu_svm.vcpu", 0, 160),
    ("vcpu_svm.vmcb", 160, 8),
    ("vcpu_svm.vmcb->code", 112, 8),
    ("destroy(1)->arch.regs", 8, 136),
    ("btf_trace_exit(1)->id", 0, 4),
    ("flags.all", 0, 4),
    ("twice.same", 0, 4),
];

#[test]
fn places_are_found() {
    let (kernel, module) = example();
    let types = Types::read(&kernel, &module).unwrap();
    for &(expression, offset, size) in PLACES {
        assert_eq!(types.place(expression), Some(Place { offset, size }), "{expression}");
    }
}

#[test]
fn what_is_not_there_is_not_found() {
    let (kernel, module) = example();
    let types = Types::read(&kernel, &module).unwrap();
    for expression in [
        "",
        "kvm",
        "kvm_vcpu_",
        "vcpu_svm.",
        "vcpu_svm.vmc",
        "vcpu_svm.vmcb.code",
        "vcpu_svm.vmcb->",
        "vcpu_svm.vcpu->id",
        "kvm_vcpu.id.x",
        "kvm_vcpu(0)->id",
        "destroy(0)->id",
        "destroy(2)->id",
        "destroy(1",
        "destroy(x)->id",
        "destroy(1).id",
        "destroy",
        "flags.bit",
        "twice.other",
        "twice",
        "many.same",
    ] {
        assert_eq!(types.place(expression), None, "{expression}");
    }
    let alone = Types::read(&kernel, &[]).unwrap();
    assert_eq!(alone.place("built_in.two"), Some(Place { offset: 4, size: 4 }));
    assert_eq!(alone.place("kvm_vcpu.id"), None);
}

#[test]
fn a_type_that_is_not_understood_makes_all_uncertain() {
    let mut kernel = Writer::new();
    let int = kernel.add("int", kind::INT, 0, 4, &[32]);
    kernel.structure("known", 4, &[("one", int, 0)]);
    let known = kernel.bytes();
    assert!(Types::read(&known, &[]).is_some());
    kernel.add("new", kind::ENUM64 + 1, 0, 0, &[]);
    assert!(Types::read(&kernel.bytes(), &[]).is_none());
}

#[test]
fn numbers_are_those_of_the_order() {
    let (kernel, module) = example();
    let types = Types::read(&kernel, &module).unwrap();
    for (kind, name, number) in [
        (Kind::Structure, "built_in", Some(6)),
        (Kind::Structure, "kvm_vcpu_arch", Some(6 + 3)),
        (Kind::Structure, "kvm_vcpu", Some(6 + 6)),
        (Kind::Function, "destroy", Some(6 + 10)),
        (Kind::Typedef, "btf_trace_exit", Some(6 + 12)),
        (Kind::Typedef, "pid_t", Some(3)),
        (Kind::Typedef, "destroy", None),
        (Kind::Function, "btf_trace_exit", None),
        (Kind::Structure, "twice", None),
        (Kind::Structure, "kvm", None),
        (Kind::Function, "", None),
    ] {
        assert_eq!(types.number_of(kind, name), number, "{name}");
    }
    assert!(types.is_of_module(7) && !types.is_of_module(6));
    let alone = Types::read(&kernel, &[]).unwrap();
    assert_eq!(alone.number_of(Kind::Structure, "built_in"), Some(6));
    assert_eq!(alone.number_of(Kind::Structure, "kvm_vcpu"), None);
}

#[test]
fn cut_off_btf_is_refused() {
    let (kernel, module) = example();
    for length in 0..kernel.len() {
        assert!(Types::read(&kernel[..length], &module).is_none(), "{length}");
    }
    for length in 1..module.len() {
        assert!(Types::read(&kernel, &module[..length]).is_none(), "{length}");
    }
}

/// Every bit turned: nothing panics.
#[test]
fn damaged_btf_does_no_harm() {
    let (kernel, module) = example();
    let ask = |kernel: &[u8], module: &[u8]| {
        let Some(types) = Types::read(kernel, module) else { return };
        for &(expression, ..) in PLACES {
            types.place(expression);
        }
    };
    let damaged = |whole: &[u8], bit: usize| {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    (0..module.len() * 8).for_each(|bit| ask(&kernel, &damaged(&module, bit)));
    (0..kernel.len() * 8).for_each(|bit| ask(&damaged(&kernel, bit), &module));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(types in prop::collection::vec(any::<u32>(), 0..64), expression in "[a-z.()>0-9-]{0,12}") {
        // Kinds that exist, so that more than the first type is read.
        let types = types.chunks(3).flat_map(|chunk| match *chunk {
            [name, info, detail] => std::vec![name % 8, info & 0x9f00_0003, detail % 32],
            _ => std::vec![],
        });
        let mut writer = Writer::new();
        writer.name("a.b(0)->c");
        writer.types = types.collect();
        let bytes = writer.bytes();
        if let Some(types) = Types::read(&bytes, &bytes) {
            types.place(&expression);
            types.place("a");
        }
    }

    #[test]
    fn no_expression_makes_it_panic(expression in any::<String>()) {
        let (kernel, module) = example();
        Types::read(&kernel, &module).unwrap().place(&expression);
    }
}
