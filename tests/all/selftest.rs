//! `exitscope selftest` passes with the true module on every kernel, fails with one that counts wrongly, and leaves nothing behind.

use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{EXITSCOPE, Insert, MODULES, Request, Step};
use exitscope_lab::parts::series::Series;
use exitscope_lab::runs::session::Setup;
use exitscope_model::selftest::{SCHEMA, Selftest, Verdict};
use exitscope_tests::{Lane, Transcript, command, endless, insert, lab, machine_with, remove, while_running};

use crate::shared::{self, Shared};

/// Where the machine has the module that counts wrongly.
const MISCOUNT: &str = "/miscount.ko";

/// Exits of every kind, and pairs of the cost's measurements; Bochs takes ten times as long for an exit.
fn sizes(vendor: Vendor) -> [&'static str; 2] {
    match vendor {
        Vendor::Amd => ["10000", "3"],
        Vendor::Intel => ["2000", "1"],
    }
}

/// A self-test as a step of a machine, with more options.
fn selftest(vendor: Vendor, label: &str, options: &[&str]) -> Step {
    let [iterations, pairs] = sizes(vendor);
    command(label, &[&["selftest", "--iterations", iterations, "--pairs", pairs], options].concat())
}

#[test]
fn it_passes_and_fails_as_it_should() {
    let miscount =
        |parameters: &str| Step::Insert(Insert { path: MISCOUNT.into(), parameters: parameters.into() });
    let amd = Vendor::Amd;
    let steps = vec![
        // Mounts tracefs, which systems have mounted.
        Step::Ftrace { on: false },
        selftest(amd, "no module", &["--source", "module"]),
        Step::End {
            by: Request::Interrupt,
            label: "interrupted".into(),
            command: ["/init", "selftest", "--module", EXITSCOPE].map(str::to_owned).to_vec(),
            meanwhile: vec![Step::Sleep { ms: 3_000 }],
        },
        selftest(amd, "bpf", &["--source", "bpf", "--json"]),
        selftest(amd, "cost", &["--module", EXITSCOPE, "--json"]),
        command("unloaded", &["module", "status"]),
        insert("layout=combined"),
        // Others on the host are neither disturbed nor counted.
        while_running(
            vec![endless("neighbour", "hypercall", 1)],
            vec![selftest(amd, "loaded", &["--module", EXITSCOPE])],
        ),
        Step::set("expose", "host"),
        selftest(amd, "host", &["--json"]),
        Step::set("expose", "off"),
        selftest(amd, "off", &["--json"]),
        remove(),
        miscount(""),
        selftest(amd, "wrong", &["--json"]),
        remove(),
        // A KVM that can do less.
        Step::Remove { name: amd.kvm_module().into() },
        Step::Insert(Insert {
            path: format!("{MODULES}/{}.ko", amd.kvm_module()),
            parameters: "npt=0 nested=0".into(),
        }),
        insert(""),
        selftest(amd, "less", &["--json"]),
        remove(),
    ];
    let files = vec![(MISCOUNT.into(), lab(amd).module_variant("miscount").unwrap())];
    let transcript = machine_with(amd, Setup { name: "selftest".into(), files, ..Setup::default() }, steps);

    let missing = transcript.result_of("no module");
    assert_eq!(missing.status, Some(1), "{missing:?}");
    assert!(missing.stderr.contains("/dev/exitscope does not exist"), "{missing:?}");

    let interrupted = transcript.result_of("interrupted");
    assert_eq!(interrupted.status, Some(1), "{interrupted:?}");
    assert!(interrupted.stderr.contains("interrupted: nothing is proven"), "{interrupted:?}");

    let bpf = passed(&transcript, "bpf", amd);
    let leaves = ["leaf-discovery", "leaf-total", "leaf-vcpu", "leaf-course"];
    assert_eq!(skipped(&bpf), [&leaves[..], &["cost"]].concat());

    // It has found neither the module nor a tracing instance of the one before, or it would skip.
    let cost = passed(&transcript, "cost", amd);
    let workloads: Vec<(&str, &str)> =
        cost.cost.iter().map(|cost| (cost.source.as_str(), cost.workload.as_str())).collect();
    let expected =
        ["cpuid", "rdmsr", "pio"].map(|workload| [("none", workload), ("module", workload)]).concat();
    assert_eq!(workloads, expected);
    assert!(cost.cost.iter().all(|cost| cost.ns_per_exit > 0.0 && cost.pairs == 3), "{:?}", cost.cost);
    assert!(skipped(&cost).is_empty(), "{:?}", cost.checks);
    assert_eq!(transcript.result_of("unloaded").status, Some(1));

    let loaded = transcript.output("loaded");
    println!("{loaded}");
    assert!(loaded.contains("layout combined") && loaded.contains("skip  cost"), "{loaded}");
    assert!(transcript.guest("neighbour").still_running);

    assert_eq!(skipped(&passed(&transcript, "host", amd)), ["cost"]);
    assert_eq!(skipped(&passed(&transcript, "off", amd)), ["leaf-total", "leaf-vcpu", "leaf-course", "cost"]);

    let less = passed(&transcript, "less", amd);
    assert_eq!(
        (less.machine.paging.as_str(), skipped(&less)),
        ("shadow", vec!["exact-mmio", "exact-nested", "cost"])
    );

    let output = transcript.result_of("wrong");
    assert_eq!(output.status, Some(1), "{output:?}");
    let wrong: Selftest = serde_json::from_str(&output.stdout).unwrap();
    assert!(!wrong.passed);
    let failed = names(&wrong, Verdict::Fail);
    println!("{:#?}\n{:#?}", wrong.checks, cost.cost);
    assert!(
        Workload::on(amd.isa())
            .all(|workload| { failed.contains(&format!("exact-{}", workload.name()).as_str()) }),
        "{failed:?}"
    );
    assert!(failed.contains(&"witness") && failed.contains(&"sums"), "{failed:?}");
}

#[test]
fn it_passes_on_intel() {
    check(&shared::DEFAULT, Lane { vendor: Vendor::Intel, series: Series::default() });
}

#[test]
fn it_passes_on_6_1() {
    check(&shared::OTHER, Lane { vendor: Vendor::Amd, series: Series::V6_1 });
}

#[test]
fn it_passes_on_7_2() {
    check(&shared::OTHER, Lane { vendor: Vendor::Amd, series: Series::V7_2 });
}

/// The name of the part of a shared machine that [`steps`] are.
pub const PART: &str = "selftest";

/// Self-tests that pass.
pub fn steps(vendor: Vendor) -> Vec<Step> {
    vec![
        Step::Ftrace { on: false },
        selftest(vendor, "all", &["--module", EXITSCOPE, "--json"]),
        // The second one finds tracefs as the first one did.
        selftest(vendor, "again", &["--module", EXITSCOPE]),
    ]
}

fn check(machine: &'static Shared, lane: Lane) {
    let transcript = machine.part(lane, PART);
    let all = passed(transcript, "all", lane.vendor);
    assert!(skipped(&all).is_empty() && all.machine.paging == "nested", "{all:?}");
    let again = transcript.output("again");
    // For who wants to see it: `--nocapture`.
    println!("{again}");
    assert!(again.contains("\npassed: ") && again.contains("0 failed, 0 skipped"), "{again}");
}

/// A self-test that has passed: its document.
fn passed(transcript: &Transcript, label: &str, vendor: Vendor) -> Selftest {
    let output = transcript.result_of(label);
    let selftest: Selftest =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert!(selftest.passed && output.status == Some(0), "{:#?}", selftest.checks);
    assert_eq!(selftest.schema, SCHEMA);
    let machine = &selftest.machine;
    assert!(machine.emulated && machine.vendor == vendor.name(), "{machine:?}");
    // The clock of eBPF is not the TSC.
    assert_eq!(machine.tsc_khz > 0, label != "bpf", "{machine:?}");
    assert!(!machine.nested && !machine.cpu.is_empty(), "{machine:?}");
    selftest
}

fn names(selftest: &Selftest, result: Verdict) -> Vec<&str> {
    selftest.checks.iter().filter(|check| check.result == result).map(|check| check.name.as_str()).collect()
}

fn skipped(selftest: &Selftest) -> Vec<&str> {
    names(selftest, Verdict::Skip)
}
