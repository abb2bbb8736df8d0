//! Every exit is counted, once, for its reason, its vCPU and its VM; the kernel's own histogram is the witness.

use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Insert, Step};
use exitscope_lab::runs::session::Setup;
use exitscope_tests::{
    Transcript, console, exits, exits_by_code, flat, guests, insert, lab, machine, machine_of, machine_with,
    remove, sums_are_totals,
};

const EXITS: u64 = 100_000;
/// Bochs takes ten times as long for an exit.
const EXITS_IN_BOCHS: u64 = 10_000;

/// A name for a guest that causes so many exits of a kind.
fn named(workload: Workload, count: u64) -> String {
    format!("{}-{count}", workload.name())
}

#[test]
fn every_kind_of_exit_is_counted_exactly_and_a_witness_agrees() {
    let transcript = machine("exactness", steps(Vendor::Amd, EXITS));
    check(&transcript, Vendor::Amd, EXITS);
}

#[test]
fn every_kind_of_exit_is_counted_exactly_on_intel_and_a_witness_agrees() {
    let transcript = machine_of(Vendor::Intel, "exactness", steps(Vendor::Intel, EXITS_IN_BOCHS));
    check(&transcript, Vendor::Intel, EXITS_IN_BOCHS);
}

/// So many exits of every kind, by our module and by the witness.
pub fn steps(vendor: Vendor, count: u64) -> Vec<Step> {
    let mut steps = vec![Step::StartHistogram, insert("")];
    for workload in Workload::on(vendor.isa()) {
        // One after the other: the first shows what the frame of a workload costs, the second adds the exits.
        steps.extend(
            [0, count].map(|count| guests(vec![flat(&named(workload, count), workload.name(), count, 1)])),
        );
    }
    steps.push(Step::Snapshot { label: "exactness".into() });
    steps.push(Step::ReadHistogram { label: "exactness".into() });
    steps.push(remove());
    steps
}

/// Checks what a machine answered to [`steps`].
pub fn check(transcript: &Transcript, vendor: Vendor, count: u64) {
    for workload in Workload::on(vendor.isa()) {
        let [frame, full] = [0, count].map(|count| {
            let vm = transcript.vm("exactness", &named(workload, count));
            assert_eq!(vm.vcpus.len(), 1);
            assert!(vm.finished);
            &vm.vcpus[0].reasons
        });
        for &code in workload.exit_codes(vendor.isa()) {
            assert_eq!(exits(full, code) - exits(frame, code), count, "{}: {code:#x}", workload.name());
        }
    }
    let vms = transcript.snapshot("exactness");
    assert_eq!(vms.len(), 2 * Workload::on(vendor.isa()).count());
    sums_are_totals(vms);
    assert_eq!(exits_by_code(vms), transcript.kernel_histogram("exactness"));
}

/// What the other tests here prove, they could fail to prove.
#[test]
fn a_module_that_counts_wrongly_is_found_out() {
    const PATH: &str = "/miscount.ko";
    let lab = lab(Vendor::Amd);
    let files = vec![(PATH.into(), lab.miscounting_module().unwrap())];
    let steps = vec![
        Step::StartHistogram,
        Step::Insert(Insert { path: PATH.into(), parameters: String::new() }),
        guests(vec![flat("wrong", "rdmsr", EXITS, 1)]),
        Step::Snapshot { label: "end".into() },
        Step::ReadHistogram { label: "end".into() },
        remove(),
    ];
    let transcript =
        machine_with(Vendor::Amd, Setup { name: "miscount".into(), files, ..Setup::default() }, steps);
    let counted: u64 = exits_by_code(transcript.snapshot("end")).values().sum();
    let witnessed: u64 = transcript.kernel_histogram("end").values().sum();
    assert_eq!(counted, witnessed - witnessed / 1_000);
    assert!(console(Vendor::Amd, "miscount").contains("this build counts wrongly"));
}

#[test]
fn two_guests_at_once_have_each_exactly_their_own() {
    let pair = |count| {
        let name = |workload: &str| format!("{workload}-{count}");
        let [cpuid, rdmsr] = ["cpuid", "rdmsr"].map(|workload| flat(&name(workload), workload, count, 2));
        guests(vec![cpuid, rdmsr])
    };
    let steps = vec![
        Step::StartHistogram,
        insert(""),
        pair(0),
        pair(EXITS),
        Step::Snapshot { label: "end".into() },
        Step::ReadHistogram { label: "end".into() },
    ];
    let transcript = machine("two-guests", steps);
    for (workload, other) in [(Workload::Cpuid, Workload::Rdmsr), (Workload::Rdmsr, Workload::Cpuid)] {
        let [frame, full] = [0, EXITS].map(|count| transcript.vm("end", &named(workload, count)));
        assert_eq!(full.vcpus.iter().map(|vcpu| vcpu.id).collect::<Vec<_>>(), [0, 1]);
        for (frame, full) in frame.vcpus.iter().zip(&full.vcpus) {
            let added = |workload: Workload| {
                let code = workload.exit_codes(Vendor::Amd.isa())[0];
                exits(&full.reasons, code) - exits(&frame.reasons, code)
            };
            assert_eq!(added(workload), EXITS, "{} on vCPU {}", workload.name(), full.id);
            assert_eq!(added(other), 0, "{} on vCPU {} of the other guest", other.name(), full.id);
        }
    }
    sums_are_totals(transcript.snapshot("end"));
    assert_eq!(exits_by_code(transcript.snapshot("end")), transcript.kernel_histogram("end"));
}
