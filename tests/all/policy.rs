//! Whose exits a guest may read: `vm` only one's own, `host` everyone's, `off` nothing at all.

use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Output, Step};
use exitscope_model::GuestView;
use exitscope_tests::{Transcript, exits, flat, guests, insert, linux, remove, while_running};

use crate::shared;

/// Hypercalls that the other guest makes on each of its two vCPUs; a Linux guest of one vCPU makes next to none.
fn others(vendor: Vendor) -> u64 {
    match vendor {
        Vendor::Amd => 100_000,
        Vendor::Intel => 20_000,
    }
}

/// A question to each of our leaves and to each of the course's, and one by our own command.
fn all_leaves(vendor: Vendor) -> Vec<String> {
    let cpuid = Workload::Cpuid.exit_codes(vendor.isa())[0];
    let questions = [
        (0x4fff_fff0, 0),
        (0x4fff_fff1, 0),
        (0x4fff_fff2, cpuid),
        (0x4fff_fff3, cpuid),
        (0x4fff_fff4, 0),
        (0x4fff_fffc_u32, cpuid),
        (0x4fff_fffd, cpuid),
        (0x4fff_fffe, 169),
        (0x4fff_ffff, 0),
    ];
    let ask = |(leaf, code)| format!("/usr/bin/cpuid -1 -r -l {leaf:#x} -s {code}");
    questions.map(ask).into_iter().chain(["/init guest".into()]).collect()
}

/// Starts another guest first, so that its exits are there when the Linux guest reads.
fn with_other_guest(vendor: Vendor, name: &str) -> Step {
    let other = flat(&format!("other-{name}"), "hypercall", others(vendor), 2);
    while_running(vec![other], vec![guests(vec![linux(name, &["/init guest --json"])])])
}

fn view(outputs: &[Output]) -> GuestView {
    serde_json::from_str(&outputs[0].stdout).unwrap_or_else(|error| panic!("{error}: {:?}", outputs[0]))
}

#[test]
fn a_guest_is_told_what_the_policy_lets_it_see() {
    check(shared::transcript(Vendor::Amd), Vendor::Amd);
}

#[test]
fn a_guest_is_told_what_the_policy_lets_it_see_on_intel() {
    check(shared::transcript(Vendor::Intel), Vendor::Intel);
}

/// A guest under each policy, and one without the module.
pub fn steps(vendor: Vendor) -> Vec<Step> {
    let leaves = all_leaves(vendor);
    let leaves: Vec<&str> = leaves.iter().map(String::as_str).collect();
    vec![
        guests(vec![linux("without", &leaves)]),
        insert(""),
        with_other_guest(vendor, "vm"),
        Step::set("expose", "host"),
        with_other_guest(vendor, "host"),
        Step::set("expose", "off"),
        guests(vec![linux("off", &leaves)]),
        Step::Snapshot { label: "policy".into() },
        remove(),
    ]
}

/// Checks what a machine answered to [`steps`].
pub fn check(transcript: &Transcript, vendor: Vendor) {
    let (others, hypercall) = (others(vendor), Workload::Hypercall.exit_codes(vendor.isa())[0]);
    let own = view(transcript.guest("vm").outputs);
    assert_eq!(own.expose, "vm");
    let counted = transcript.vm("policy", "vm").total();
    assert!(own.total.exits <= counted.exits, "{:?}", own.total);
    assert!(exits(&own.reasons, hypercall) < 1_000, "guest A sees guest B's exits");

    let everyones = view(transcript.guest("host").outputs);
    assert_eq!(everyones.expose, "host");
    // At least those of the first neighbour, which had ended by then.
    assert!(exits(&everyones.reasons, hypercall) >= 2 * others, "{:?}", everyones.reasons);

    let [without, off] = ["without", "off"].map(|name| transcript.guest(name).outputs);
    assert_eq!(without.len(), all_leaves(vendor).len());
    for (without, off) in without.iter().zip(off) {
        assert_eq!(without, off, "the leaves differ from those of a kernel without the module");
    }
    let complaint = off.last().unwrap();
    assert_eq!(complaint.status, Some(1));
    assert!(complaint.stderr.contains("no exitscope answers"), "{complaint:?}");
}
