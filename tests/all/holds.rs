//! How long interrupts are off while the module's lock is held, in instructions, whatever VMs there are.

use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Insert, Step};
use exitscope_lab::runs::session::Setup;
use exitscope_tests::{command, flat, guests, lab, machine_with, remove};

/// The build of the module that measures it.
const PATH: &str = "/holds.ko";
/// Most instructions that the lock may be held.
const LIMIT: u64 = 50_000;

#[test]
fn the_lock_is_held_shortly_however_many_vms_there_are() {
    let files = vec![(PATH.into(), lab(Vendor::Amd).module_variant("holds").unwrap())];
    let longest = "/sys/module/exitscope/parameters/longest_hold";
    let read = |label: &str| {
        vec![
            Step::Read { label: label.into(), path: longest.into() },
            Step::Write { path: longest.into(), text: "0".into() },
        ]
    };
    let reset = || vec![command("", &["module", "reset"])];
    let halted = |vms, vcpus, meanwhile| Step::HaltedVms { vms, vcpus, meanwhile };
    // Each reason of every kind: a vCPU that comes and goes brings many.
    let all_kinds =
        || vec![guests(["cpuid", "rdmsr", "pio", "wrmsr"].map(|kind| flat(kind, kind, 100, 1)).into())];
    let with_the_many = [read("first"), reset(), read("reset"), all_kinds(), read("others")].concat();
    let with_the_large = [
        read("vcpus"),
        reset(),
        read("reset again"),
        vec![command("", &["module", "policy", "1", "off"])],
        read("policy"),
    ]
    .concat();
    let steps = [
        vec![Step::Insert(Insert { path: PATH.into(), parameters: String::new() })],
        vec![halted(1_000, 1, with_the_many)],
        read("ends"),
        vec![halted(1, 1_024, with_the_large)],
        read("end"),
        vec![remove()],
    ]
    .concat();
    let setup =
        Setup { name: "holds".into(), icount: true, memory_mib: Some(4_096), files, ..Setup::default() };
    let transcript = machine_with(Vendor::Amd, setup, steps);
    for label in ["first", "reset", "others", "ends", "vcpus", "reset again", "policy", "end"] {
        let instructions: u64 = transcript.output(label).trim().parse().unwrap();
        eprintln!("{label}: {instructions}");
        assert!((1..=LIMIT).contains(&instructions), "{label}: {instructions} instructions");
    }
}
