//! More than one CPU: vCPUs that move between them, CPUs that go and come, time stamp counters that differ. On Bochs, as
//! QEMU's emulation of SVM is not safe with more than one.

use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_lab::runs::session::Setup;
use exitscope_model::Vcpu;
use exitscope_tests::{
    Transcript, exits, exits_by_code, flat, guests, insert, machine_with, remove, sums_are_totals,
    while_running,
};

/// VMX exit reasons.
const CPUID: u32 = 10;
const RDMSR: u32 = 31;
/// Exits on each vCPU of a guest that something is done to, which it must outlast.
const EXITS: u64 = 100_000;
/// How often a vCPU is moved.
const MOVES: u32 = 200;
const IA32_TSC_ADJUST: u32 = 0x3b;
/// By how much the second CPU's time stamp counter gets ahead: by far more than any exit takes.
const SKEW: u64 = 1 << 22;

/// One machine for all of it, since it takes its time to boot.
#[test]
fn cpus_go_and_come_and_differ_and_vcpus_move_between_them_on_intel() {
    let online = |on: bool| Step::Write {
        path: "/sys/devices/system/cpu/cpu1/online".into(),
        text: u8::from(on).to_string(),
    };
    let pause = || Step::Sleep { ms: 10 };
    let skew = Step::WriteMsr { cpu: 1, address: IA32_TSC_ADJUST, value: SKEW };
    let moves = |guest: &str, times| Step::Migrate { guest: guest.into(), times };
    let tell = |label: &str| {
        [Step::Snapshot { label: label.into() }, Step::ReadHistogram { label: label.into() }].into_iter()
    };
    let mut steps = vec![Step::Capabilities, Step::StartHistogram];
    // Loaded and unloaded with a CPU off.
    steps.extend([online(false), insert(""), guests(vec![flat("crowded", "rdmsr", 1_000, 2)])]);
    steps.extend(tell("one CPU").chain([remove(), Step::StartHistogram]));
    // Loaded with a CPU off that comes then, and unloaded with a CPU off that was there.
    steps.extend([insert(""), online(true)]);
    let blink = Step::Repeat { times: 5, steps: vec![online(false), pause(), online(true), pause()] };
    let running = |guest, workload, vcpus, meanwhile| {
        while_running(vec![flat(guest, workload, EXITS, vcpus)], meanwhile)
    };
    steps.extend([
        running("chased", "rdmsr", 2, vec![blink]),
        running("moved", "cpuid", 2, vec![moves("moved", MOVES)]),
        // Before the guest starts, and one vCPU only: where the clocks differ the scheduler takes the difference for
        // time that was used, and would let our agent wait for a CPU until a busy guest is done.
        skew,
        running("skewed", "rdmsr", 1, vec![moves("skewed", MOVES)]),
    ]);
    steps.extend(tell("two CPUs").chain([online(false), remove()]));

    let setup = Setup { name: "smp".into(), cpus: 2, ..Setup::default() };
    let transcript = machine_with(Vendor::Intel, setup, steps);
    assert_eq!(transcript.capabilities().cpus.len(), 2);
    for label in ["one CPU", "two CPUs"] {
        sums_are_totals(transcript.snapshot(label));
        assert_eq!(exits_by_code(transcript.snapshot(label)), transcript.kernel_histogram(label), "{label}");
    }
    check_counts(&transcript, "one CPU", "crowded", RDMSR, 1_000, 2);
    for (guest, code, vcpus) in [("chased", RDMSR, 2), ("moved", CPUID, 2), ("skewed", RDMSR, 1)] {
        assert!(transcript.guest(guest).still_running, "guest {guest} ended too early");
        check_counts(&transcript, "two CPUs", guest, code, EXITS, vcpus);
    }
    for guest in ["chased", "moved"] {
        for vcpu in &transcript.vm("two CPUs", guest).vcpus {
            assert_eq!((vcpu.backwards, untimed(vcpu)), (0, 1), "{guest}: {vcpu:?}");
            assert!(longest(vcpu) < SKEW, "{guest}: {vcpu:?}");
        }
    }
    for vcpu in &transcript.vm("two CPUs", "skewed").vcpus {
        // Of the moves there and of those back, some came between an exit and its entry.
        assert!(vcpu.backwards > 0, "{vcpu:?}");
        // The difference of the clocks, and the wait for a CPU that the scheduler makes of it.
        assert!((SKEW..4 * SKEW).contains(&longest(vcpu)), "{vcpu:?}");
        assert_eq!(untimed(vcpu), vcpu.backwards + 1, "{vcpu:?}");
    }
}

/// Checks what each vCPU has counted of the exits that it was to cause.
fn check_counts(transcript: &Transcript, label: &str, guest: &str, code: u32, expected: u64, vcpus: usize) {
    let vm = transcript.vm(label, guest);
    assert_eq!(vm.vcpus.len(), vcpus, "{guest}");
    for vcpu in &vm.vcpus {
        assert_eq!(exits(&vcpu.reasons, code), expected, "vCPU {} of {guest}", vcpu.id);
    }
}

/// Exits without a duration; the last one has none.
fn untimed(vcpu: &Vcpu) -> u64 {
    vcpu.reasons.iter().map(|reason| reason.untimed).sum()
}

fn longest(vcpu: &Vcpu) -> u64 {
    vcpu.reasons.iter().map(|reason| reason.max).max().unwrap_or(0)
}
