//! Whose exits a guest may read: `vm` only one's own, `host` everyone's, `off` nothing at all.

use exitscope_abi::leaf::Layout;
use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Output, Step};
use exitscope_model::GuestView;
use exitscope_tests::{Transcript, exits, flat, remove};

use crate::asking::{self, GUEST, Phase};
use crate::shared;

/// Hypercalls that the other guest makes on each of its two vCPUs; a Linux guest of one vCPU makes next to none.
const OTHERS: u64 = 20_000;

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

/// All policies, and at last no module.
pub fn phases(vendor: Vendor) -> Vec<Phase> {
    let alone = |says: &str, change| Phase {
        change: vec![change],
        says: says.into(),
        commands: all_leaves(vendor),
        beside: None,
        snapshot: None,
    };
    // The other's exits are there when the guest reads.
    let beside_other = |expose: &'static str| Phase {
        change: vec![Step::set("expose", expose)],
        says: expose.into(),
        commands: vec!["/init guest --json".into()],
        beside: Some(flat(&format!("other-{expose}"), "hypercall", OTHERS, 2)),
        snapshot: Some(expose),
    };
    let off = alone("off", Step::set("expose", "off"));
    vec![off, beside_other("vm"), beside_other("host"), alone("off", remove())]
}

/// Checks what a machine answered to [`asking::steps`].
pub fn check(transcript: &Transcript, vendor: Vendor) {
    let hypercall = Workload::Hypercall.exit_codes(vendor.isa())[0];
    let [off, vm, host, without] =
        [0, 1, 2, 3].map(|phase| asking::answers(transcript, Layout::ALL.len() + phase));
    let own = view(vm);
    assert_eq!(own.expose, "vm");
    let counted = transcript.vm("vm", GUEST).total();
    assert!(own.total.exits <= counted.exits, "{:?}", own.total);
    assert!(exits(&own.reasons, hypercall) < 1_000, "guest A sees guest B's exits");

    let everyones = view(host);
    assert_eq!(everyones.expose, "host");
    // At least those of the first neighbour, which had ended by then.
    assert!(exits(&everyones.reasons, hypercall) >= 2 * OTHERS, "{:?}", everyones.reasons);

    assert_eq!([without.len(), off.len()], [all_leaves(vendor).len(); 2]);
    for (without, off) in without.iter().zip(off) {
        assert_eq!(without, off, "the leaves differ from those of a kernel without the module");
    }
    let complaint = off.last().unwrap();
    assert_eq!(complaint.status, Some(1));
    assert!(complaint.stderr.contains("no exitscope answers"), "{complaint:?}");
}
