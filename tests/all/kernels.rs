//! The other kernels than the default one: exactness, the kernel's own histogram, layouts and policy of each, in one boot per vendor.

use std::process::Command;

use exitscope_lab::emulator::Vendor;
use exitscope_lab::parts::series::Series;
use exitscope_tests::{Lane, machine_of, module};

use crate::{exactness, leaves, policy, registers, shared};

#[test]
fn all_of_it_works_on_6_1() {
    all_of_it_works(Vendor::Amd, Series::V6_1);
}

#[test]
fn all_of_it_works_on_6_1_on_intel() {
    all_of_it_works(Vendor::Intel, Series::V6_1);
}

#[test]
fn all_of_it_works_on_7_2() {
    all_of_it_works(Vendor::Amd, Series::V7_2);
}

#[test]
fn all_of_it_works_on_7_2_on_intel() {
    all_of_it_works(Vendor::Intel, Series::V7_2);
}

/// On Intel's lane only: KVM wants a CPU of constant TSC there, which QEMU's emulation has none of for AMD.
#[test]
fn exits_are_counted_and_answers_right_with_preempt_rt() {
    let (vendor, exits) = (Vendor::Intel, 500);
    let steps = [exactness::steps(vendor, exits), registers::steps(vendor)].concat();
    let transcript = machine_of(Lane { vendor, series: Series::Rt }, "rt", steps);
    exactness::check(&transcript, vendor, exits);
    registers::check(vendor, &transcript);
}

fn all_of_it_works(vendor: Vendor, series: Series) {
    let transcript = shared::OTHER.part(Lane { vendor, series }, shared::ALL);
    exactness::check(transcript, vendor, shared::OTHER_EXITS);
    leaves::check(transcript, vendor);
    policy::check(transcript, vendor);
    registers::check(vendor, transcript);
}

/// What the kernel's own objtool leaves for it: each return to be patched, in C and in Rust, and how to unwind.
#[test]
fn every_kernel_can_patch_our_returns_and_unwind_our_functions() {
    for series in Series::STOCK {
        let module = module(Lane { vendor: Vendor::Amd, series });
        let output = Command::new("readelf").arg("-rW").arg(module).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let in_section = |name: &str| {
            let mut parts = text.split("\nRelocation section '");
            let part = parts.find(|part| part.strip_prefix(name).is_some_and(|rest| rest.starts_with('\'')));
            part.unwrap_or_default().lines().filter(|line| line.contains("R_X86_64")).count()
        };
        let returns = text.lines().filter(|line| line.contains("__x86_return_thunk")).count();
        assert!(returns > 50, "{series}: {returns}");
        assert_eq!(in_section(".rela.return_sites"), returns, "{series}");
        // Several places for each of our functions, which are over 50.
        let places = in_section(".rela.orc_unwind_ip");
        assert!(places > 2 * returns, "{series}: {places}");
    }
}
