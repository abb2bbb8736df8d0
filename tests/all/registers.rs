//! What a VMM reads and sets of a guest's registers, when the guest has just asked for one of our leaves; and a policy for
//! VMs that this VMM has not made yet. What is answered when an INIT comes in between.

use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Event, Step, Stop};
use exitscope_tests::{Transcript, command, exits, insert, remove};

use crate::shared;

/// Exits and cycles of all reasons.
const LEAF: u32 = 0x4fff_fff1;
/// INITs of a guest that does nothing but ask that, and the snapshot after them.
const INITS: u32 = 100;
const AFTER_INITS: &str = "after INITs";
const SET: [u64; 4] = [0x1111, 0x2222, 0x3333, 0x4444];

/// What makes KVM return. Bochs reports a single step before the guest's first instruction.
fn stops(vendor: Vendor) -> &'static [Stop] {
    match vendor {
        Vendor::Amd => &[Stop::Step, Stop::Window],
        Vendor::Intel => &[Stop::Window],
    }
}

pub fn steps(vendor: Vendor) -> Vec<Step> {
    let ask = |label: &str, set| {
        let step = |&stop| Step::StopAfterCpuid { label: name(label, stop), stop, leaf: LEAF, set };
        stops(vendor).iter().map(step).collect()
    };
    let init =
        |label: &str, times| vec![Step::InitWhileAsking { label: init_name(label), leaf: LEAF, times }];
    let policy = |label: &str, pid: &str, policy: &str| {
        vec![command(label, &["module", "policy", "--pid", pid, policy])]
    };
    [
        ask("KVM's", None),
        init("KVM's", 3),
        vec![insert("")],
        init("ours", INITS),
        vec![Step::Snapshot { label: AFTER_INITS.into() }],
        ask("left", None),
        ask("set", Some(SET)),
        vec![Step::set("expose", "off")],
        ask("off", None),
        vec![Step::set("expose", "vm")],
        // The machine's agent is the VMM.
        policy("", "1", "off"),
        ask("off for the process", None),
        policy("", "1", "default"),
        ask("as the module has it", None),
        policy("nobody", "4000000", "off"),
        vec![remove()],
    ]
    .concat()
}

#[test]
fn what_a_vmm_sets_stays_and_what_it_reads_is_the_answer() {
    check(Vendor::Amd, shared::transcript(Vendor::Amd));
}

#[test]
fn what_a_vmm_sets_stays_and_what_it_reads_is_the_answer_on_intel() {
    check(Vendor::Intel, shared::transcript(Vendor::Intel));
}

/// Checks what the machine of [`steps`] answered.
pub fn check(vendor: Vendor, transcript: &Transcript) {
    for &stop in stops(vendor) {
        let registers = |label: &str| stopped(transcript, &name(label, stop));
        let (kvms, left) = (registers("KVM's"), registers("left"));
        // The guest has had one exit or a few; the upper halves are empty.
        let [exits, exits_high, cycles, cycles_high] = left[0];
        assert!((1..100).contains(&exits) && exits_high == 0 && cycles > 0 && cycles_high == 0, "{left:x?}");
        // The VMM sees the answer in both ways, and the guest has it.
        assert_eq!(left, [left[0]; 3]);
        // What the VMM sets stays.
        let [read, synced, after] = registers("set");
        assert!(read == synced && read != kvms[0], "{read:x?} {synced:x?}");
        assert_eq!(after, SET);
        assert_eq!(registers("off"), kvms);
        assert_eq!(registers("off for the process"), kvms);
        assert_ne!(registers("as the module has it")[2], kvms[2]);
    }
    an_init_leaves_no_answer(vendor, transcript);
    let refused = transcript.result_of("nobody");
    assert!(refused.status == Some(1) && refused.stderr.contains("4000000"), "{refused:?}");
}

/// KVM resets a vCPU that gets an INIT, and what it asked before is not answered.
fn an_init_leaves_no_answer(vendor: Vendor, transcript: &Transcript) {
    let (kvms, _) = inits(transcript, "KVM's");
    let (ours, went_on) = inits(transcript, "ours");
    assert!(kvms.len() == 1 && ours == kvms, "{kvms:x?} {ours:x?}");
    // After some exits for a CPUID the guest has not gone on: an INIT came before the next entry, or after one that an
    // interrupt made end at once, which is an exit of its own.
    let reasons = &transcript.snapshot(AFTER_INITS).last().unwrap().vcpus[0].reasons;
    let cpuids = exits(reasons, Workload::Cpuid.exit_codes(vendor.isa())[0]);
    let interrupts = exits(reasons, interrupt(vendor));
    let between = (cpuids - u64::from(went_on)).saturating_sub(interrupts);
    println!("at least {between} of {INITS} INITs came between one of {cpuids} queries and its answer");
    assert!((1..=INITS.into()).contains(&between), "{cpuids} {went_on} {interrupts}");
}

/// The exit for an interrupt of the host's.
fn interrupt(vendor: Vendor) -> u32 {
    match vendor {
        Vendor::Amd => 0x60,
        Vendor::Intel => 1,
    }
}

fn init_name(label: &str) -> String {
    format!("{label}, INIT")
}

/// The registers after the INITs, and how many CPUIDs the guest has gone on after.
fn inits<'a>(transcript: &'a Transcript, label: &str) -> (&'a [[u64; 4]], u32) {
    let wanted = init_name(label);
    transcript.find("INITs", &wanted, |event| match event {
        Event::Inits { label, registers, cpuids } if *label == wanted => Some((&registers[..], *cpuids)),
        _ => None,
    })
}

fn name(label: &str, stop: Stop) -> String {
    format!("{label}, {stop:?}")
}

/// What the VMM read, what it was shown, and what the guest had in the end.
fn stopped(transcript: &Transcript, wanted: &str) -> [[u64; 4]; 3] {
    transcript.find("CPUID", wanted, |event| match event {
        Event::StoppedCpuid { label, read, synced, after } if label == wanted => {
            Some([*read, *synced, *after])
        }
        _ => None,
    })
}
