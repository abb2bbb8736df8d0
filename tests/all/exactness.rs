//! Every exit is counted, once, for its reason, its vCPU and its VM; the kernel's own histogram is the witness.

use exitscope_abi::bpf::DEFAULT_CELLS;
use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Insert, Step};
use exitscope_lab::runs::session::Setup;
use exitscope_tests::{
    Transcript, console, exits_by_code, flat, guests, insert, lab, load_bpf, machine_with, remove, zero_and,
    zero_and_names,
};

use crate::shared;

const EXITS: u64 = 100_000;

/// Exits of every kind on the default kernel: Bochs takes ten times as long for each.
pub fn count(vendor: Vendor) -> u64 {
    match vendor {
        Vendor::Amd => EXITS,
        Vendor::Intel => EXITS / 10,
    }
}

#[test]
fn every_kind_of_exit_is_counted_exactly_and_a_witness_agrees() {
    check(shared::transcript(Vendor::Amd), Vendor::Amd, count(Vendor::Amd));
}

#[test]
fn every_kind_of_exit_is_counted_exactly_on_intel_and_a_witness_agrees() {
    check(shared::transcript(Vendor::Intel), Vendor::Intel, count(Vendor::Intel));
}

/// So many exits of every kind, counted by our module, by our eBPF programs and by the kernel's histogram.
pub fn steps(vendor: Vendor, count: u64) -> Vec<Step> {
    let mut steps = vec![Step::StartHistogram, insert(""), load_bpf(DEFAULT_CELLS)];
    for workload in Workload::on(vendor.isa()) {
        steps.extend(zero_and(workload.name(), workload.name(), count, 1));
    }
    steps.push(Step::Snapshot { label: "exactness".into() });
    steps.push(Step::BpfSnapshot { label: "exactness by eBPF".into() });
    steps.push(Step::ReadHistogram { label: "exactness".into() });
    steps.push(Step::Bpf { cells: None });
    steps.push(remove());
    steps
}

/// Checks what a machine answered to [`steps`].
pub fn check(transcript: &Transcript, vendor: Vendor, count: u64) {
    for workload in Workload::on(vendor.isa()) {
        let names = zero_and_names(workload.name(), count);
        assert!(names.iter().all(|guest| transcript.vm("exactness", guest).finished));
        for &code in workload.exit_codes(vendor.isa()) {
            assert_eq!(
                transcript.added("exactness", &names, code),
                [count],
                "{}: {code:#x}",
                workload.name()
            );
        }
    }
    let vms = transcript.snapshot("exactness");
    assert_eq!(vms.len(), 2 * Workload::on(vendor.isa()).count());
    transcript.kernel_agrees("exactness");
    transcript.sources_agree(["exactness", "exactness by eBPF"]);
}

/// What the other tests here prove, they could fail to prove.
#[test]
fn a_module_that_counts_wrongly_is_found_out() {
    const PATH: &str = "/miscount.ko";
    let lab = lab(Vendor::Amd);
    let files = vec![(PATH.into(), lab.module_variant("miscount").unwrap())];
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
    assert!(console(Vendor::Amd, "miscount").contains("this is the build miscount"));
}

/// Two guests at once, after two that do nothing.
pub fn two_guests_steps() -> Vec<Step> {
    let pair = |count| {
        let name = |workload: &str| format!("{workload}-{count}");
        let [cpuid, rdmsr] = ["cpuid", "rdmsr"].map(|workload| flat(&name(workload), workload, count, 2));
        guests(vec![cpuid, rdmsr])
    };
    vec![
        Step::StartHistogram,
        insert(""),
        pair(0),
        pair(EXITS),
        Step::Snapshot { label: "end".into() },
        Step::ReadHistogram { label: "end".into() },
        remove(),
    ]
}

#[test]
fn two_guests_at_once_have_each_exactly_their_own() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "two guests");
    for (workload, other) in [(Workload::Cpuid, Workload::Rdmsr), (Workload::Rdmsr, Workload::Cpuid)] {
        let names = zero_and_names(workload.name(), EXITS);
        let added = |kind: Workload| {
            let code = kind.exit_codes(Vendor::Amd.isa())[0];
            transcript.added("end", &names, code)
        };
        assert_eq!(added(workload), [EXITS; 2], "{}", workload.name());
        assert_eq!(added(other), [0; 2], "{} of the other guest", other.name());
    }
    transcript.kernel_agrees("end");
}
