//! Who is told what: `vm` only one's own, `host` everyone's, `off` nothing at all.

use exitscope_host::model::GuestView;
use exitscope_lab::job::{Output, Step};
use exitscope_tests::{exits, flat, guests, insert, linux, machine, set, while_running};

/// VMMCALL: the other guest makes a hundred thousand; a Linux guest of one vCPU next to none.
const VMMCALL: u32 = 0x81;
const OTHERS: u64 = 100_000;

const ALL_LEAVES: &[&str] = &[
    "/usr/bin/cpuid -1 -r -l 0x4ffffff0 -s 0",
    "/usr/bin/cpuid -1 -r -l 0x4ffffff1 -s 0",
    "/usr/bin/cpuid -1 -r -l 0x4ffffff2 -s 114",
    "/usr/bin/cpuid -1 -r -l 0x4ffffff3 -s 114",
    "/usr/bin/cpuid -1 -r -l 0x4ffffff4 -s 0",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffc -s 114",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffd -s 114",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffe -s 169",
    "/usr/bin/cpuid -1 -r -l 0x4fffffff -s 0",
    "/init guest",
];

/// Starts another guest first, so that its exits are there when the Linux guest reads.
fn beside(name: &str) -> Step {
    let other = flat(&format!("other-{name}"), "hypercall", OTHERS, 2);
    while_running(vec![other], vec![guests(vec![linux(name, &["/init guest --json"])])])
}

fn view(outputs: &[Output]) -> GuestView {
    serde_json::from_str(&outputs[0].stdout).unwrap_or_else(|error| panic!("{error}: {:?}", outputs[0]))
}

#[test]
fn a_guest_is_told_what_the_policy_lets_it_see() {
    let steps = vec![
        guests(vec![linux("without", ALL_LEAVES)]),
        insert(""),
        beside("vm"),
        set("expose", "host"),
        beside("host"),
        set("expose", "off"),
        guests(vec![linux("off", ALL_LEAVES)]),
        Step::Snapshot { label: "end".into() },
    ];
    let told = machine("policy", steps);

    let own = view(told.guest("vm").outputs);
    assert_eq!(own.expose, "vm");
    let counted = told.vm("end", "vm").total();
    assert!(own.total.exits <= counted.exits && own.total.exits < OTHERS, "{:?}", own.total);
    assert!(exits(&own.reasons, VMMCALL) < 1_000, "guest A sees guest B's exits");

    let everyones = view(told.guest("host").outputs);
    assert_eq!(everyones.expose, "host");
    // At least those of the first neighbour, which had ended by then.
    assert!(exits(&everyones.reasons, VMMCALL) >= 2 * OTHERS, "{:?}", everyones.reasons);

    let [without, off] = ["without", "off"].map(|name| told.guest(name).outputs);
    assert_eq!(without.len(), ALL_LEAVES.len());
    for (without, off) in without.iter().zip(off) {
        assert_eq!(without, off, "the leaves differ from those of a kernel without the module");
    }
    let complaint = &off[ALL_LEAVES.len() - 1];
    assert_eq!(complaint.status, Some(1));
    assert!(complaint.stderr.contains("no exitscope answers"), "{complaint:?}");
}
