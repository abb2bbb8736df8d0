//! The module comes and goes, beside running guests too, and refuses what it must.

use exitscope_host::model::Vm;
use exitscope_lab::job::Step;
use exitscope_tests::{exits, flat, guests, insert, machine, refused, remove, set, while_running};

const CPUID: u32 = 0x72;

fn cpuids(vm: &Vm) -> u64 {
    exits(&vm.vcpus[0].reasons, CPUID)
}

#[test]
fn the_module_comes_and_goes_many_times_with_and_without_a_guest() {
    let cycles = |times| Step::Repeat { times, steps: vec![insert(""), remove()] };
    let steps = vec![
        cycles(100),
        // Fewer, since to load it, which is to read all of the kernel's BTF, shares the one CPU with a guest.
        while_running(vec![flat("bystander", "cpuid", 400_000, 2)], vec![cycles(30)]),
        // It works after all that, for a guest that was there before it as well.
        while_running(vec![flat("early", "cpuid", 200_000, 1)], vec![insert("")]),
        guests(vec![flat("frame", "cpuid", 0, 1)]),
        guests(vec![flat("late", "cpuid", 1_000, 1)]),
        Step::Snapshot { label: "end".into() },
        remove(),
    ];
    // `machine` fails on any warning or oops in the kernel's log.
    let told = machine("life", steps);
    for guest in ["bystander", "early"] {
        assert!(told.guest(guest).outlasted, "guest {guest} ended before the module had come and gone");
    }
    let [early, frame, late] = ["early", "frame", "late"].map(|guest| cpuids(told.vm("end", guest)));
    assert!((1..200_000).contains(&early), "{early}");
    assert_eq!(late - frame, 1_000);
}

#[test]
fn finished_vms_stay_readable_within_bounds() {
    // 300 VMs of one vCPU, of which the module keeps 256 apart and the others in one sum.
    let one = guests(vec![flat("one", "cpuid", 100, 1)]);
    let steps = vec![
        Step::Witness,
        insert(""),
        Step::Repeat { times: 300, steps: vec![one] },
        Step::Snapshot { label: "end".into() },
        Step::Testify { label: "end".into() },
    ];
    let told = machine("many", steps);
    let vms = told.snapshot("end");
    assert_eq!(vms.len(), 257);
    assert!(vms.iter().all(|vm| vm.finished));
    let retired = vms.iter().find(|vm| vm.id == "retired").unwrap();
    assert_eq!(cpuids(retired), 44 * 100);
    assert_eq!(exitscope_tests::exits_by_code(vms), told.witness("end"));
}

#[test]
fn wrong_parameters_are_refused() {
    let steps = vec![
        refused("expose", insert("expose=everyone")),
        refused("layout", insert("layout=modern")),
        insert("expose=host layout=combined"),
        refused("twice", insert("")),
        refused("set expose", set("expose", "nobody")),
        refused("set layout", set("layout", "classic reordered")),
        remove(),
        refused("gone", remove()),
    ];
    let told = machine("refusals", steps);
    for (label, why) in [
        ("expose", "Invalid argument"),
        ("layout", "Invalid argument"),
        ("twice", "exists"),
        ("set expose", "Invalid argument"),
        ("set layout", "Invalid argument"),
        ("gone", "No such file"),
    ] {
        assert!(told.refusal(label).contains(why), "{label}: {}", told.refusal(label));
    }
}

#[test]
fn a_kernel_without_the_hooks_is_refused_and_says_what_it_lacks() {
    let unload = |name: &str| Step::Remove { name: name.into() };
    let steps = vec![unload("kvm_amd"), unload("kvm"), refused("no kvm", insert(""))];
    let told = machine("no-hooks", steps);
    let why = told.refusal("no kvm");
    assert!(why.contains("exitscope: Unknown symbol") && why.contains("kvm_exit"), "{why}");
}
