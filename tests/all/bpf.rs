//! eBPF as a source: what a user gets without the module, who may not have it, and what stays when its process is killed.

use std::collections::BTreeMap;

use exitscope_abi::bpf::DEFAULT_CELLS;
use exitscope_abi::leaf::{Expose, Layout};
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Request, Step, Way};
use exitscope_lab::runs::report::{GuestKind, Options, Source, Vmm};
use exitscope_lab::runs::session::{Paging, Setup};
use exitscope_tests::{
    Transcript, command, exits, exits_by_code, flat, guests, insert, lab, linux, load_bpf, machine, remove,
    report, sums_are_totals,
};
use serde_json::Value;

const RDMSR: u64 = 0x7c;
/// A user without rights: nobody.
const NOBODY: u32 = 65_534;
/// What the kernel traces by functions.
const TRACED: &str = "/sys/kernel/tracing/enabled_functions";

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn line(label: &str, line: &str) -> Step {
    command(label, &line.split_whitespace().collect::<Vec<_>>())
}

fn run_as(label: &str, way: Way, line: &str) -> Step {
    Step::RunAs { label: label.into(), command: words(line), way }
}

/// Runs `stat` beside other steps, and kills it as nobody can notice.
fn killed(label: &str, meanwhile: Vec<Step>) -> Step {
    let command = words("/init stat --source bpf -I 50 --json");
    Step::End { label: label.into(), command, by: Request::Kill, meanwhile }
}

fn steps() -> Vec<Step> {
    let read = |label: &str| Step::Read { label: label.into(), path: TRACED.into() };
    // The vendor's module alone needs KVM: the kernel lets go of programs a moment after they have been given up.
    let detached = || Step::AwaitText { path: "/sys/module/kvm/refcnt".into(), text: "1".into() };
    let [unload, load] = lab(Vendor::Amd).reload_kvm(Paging::Shadow);
    let [_, nested] = lab(Vendor::Amd).reload_kvm(Paging::Nested);
    let vmm = |count: u32| format!("/init vmm --memory 16 --vcpus 2 --workload rdmsr --iterations {count}");
    let busy = |name: &str| guests(vec![flat(name, "rdmsr", 20_000, 1)]);
    vec![
        Step::StartHistogram,
        // With both pagings, and the vendor's module replaced beneath.
        insert(""),
        load_bpf(DEFAULT_CELLS),
        guests(vec![linux("nested", &["/init --version"])]),
        unload.clone(),
        load,
        guests(vec![linux("shadow", &["/init --version"])]),
        Step::Snapshot { label: "module".into() },
        Step::BpfSnapshot { label: "bpf".into() },
        Step::ReadHistogram { label: "module".into() },
        Step::Bpf { cells: None },
        remove(),
        unload,
        nested,
        detached(),
        // Without the module.
        line("frame", &format!("stat --json -- {}", vmm(0))),
        line("whole", &format!("stat --json -- {}", vmm(3_000))),
        line("text", &format!("stat --source bpf -- {}", vmm(10))),
        run_as("no rights", Way::User(NOBODY), "/init stat --source bpf --duration 0.1"),
        run_as("bpf rights", Way::Bpf(NOBODY), "/init stat --source bpf --duration 0.1"),
        line("pin", "bpf pin --memory 1"),
        line("pin again", "bpf pin"),
        busy("pinned"),
        line("pinned", "bpf status --json"),
        line("pinned stat", &format!("stat --json -- {}", vmm(1_000))),
        line("unpin", "bpf unpin"),
        detached(),
        read("unpinned"),
        // Two of them, of which the second ends first.
        killed("first", vec![killed("second", vec![busy("two watch")]), busy("one watches")]),
        detached(),
        read("killed"),
    ]
}

#[test]
fn ebpf_counts_as_the_module_does_and_leaves_nothing_behind() {
    let transcript = &machine("bpf", steps());
    transcript.sources_agree(["module", "bpf"]);
    transcript.kernel_agrees("module");
    assert_eq!(exits_by_code(transcript.snapshot("bpf")), transcript.kernel_histogram("module"));
    stat_tells_what_was_done(transcript);
    who_may_not_is_told(transcript);
    pinned_programs_count_and_go(transcript);
    nothing_is_left_of_who_is_killed(transcript);
}

fn document(transcript: &Transcript, label: &str) -> Value {
    let output = transcript.result_of(label);
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{label}: {error}: {output:?}"))
}

/// Exits of each vCPU of the one VM, by reason.
fn by_vcpu(document: &Value) -> Vec<BTreeMap<u64, u64>> {
    let exits = |reason: &Value| (reason["code"].as_u64().unwrap(), reason["exits"].as_u64().unwrap());
    let vcpus = document["vms"][0]["vcpus"].as_array().unwrap().iter();
    vcpus.map(|vcpu| vcpu["reasons"].as_array().unwrap().iter().map(exits).collect()).collect()
}

fn stat_tells_what_was_done(transcript: &Transcript) {
    let [frame, whole] = ["frame", "whole"].map(|label| document(transcript, label));
    assert_eq!(whole["source"], "bpf");
    assert_eq!(whole["quality"]["why"], "the module is not loaded", "{}", whole["quality"]);
    assert_eq!(whole["quality"]["lost"], 0);
    for (frame, whole) in by_vcpu(&frame).iter().zip(by_vcpu(&whole)) {
        assert_eq!(whole[&RDMSR] - frame.get(&RDMSR).unwrap_or(&0), 3_000);
    }
    let text = transcript.output("text");
    assert!(text.contains("source bpf;") && text.contains("MSR"), "{text}");
}

fn who_may_not_is_told(transcript: &Transcript) {
    for (label, words) in [
        ("no rights", "CAP_BPF and CAP_PERFMON"),
        // Since KVM is a module, whose types the kernel gives to nobody else.
        ("bpf rights", "CAP_SYS_ADMIN"),
    ] {
        let output = transcript.result_of(label);
        assert!(output.status == Some(1) && output.stderr.contains(words), "{label}: {output:?}");
    }
}

fn pinned_programs_count_and_go(transcript: &Transcript) {
    let status = document(transcript, "pinned");
    let counted = status["exits"].as_u64().unwrap();
    assert!(status["pinned"] == true && counted > 20_000, "{status}");
    let again = transcript.result_of("pin again");
    assert!(again.status == Some(1) && again.stderr.contains("bpf unpin"), "{again:?}");
    let stat = document(transcript, "pinned stat");
    assert_eq!(stat["quality"]["why"], "the module is not loaded; pinned programs");
    assert!(by_vcpu(&stat).iter().all(|vcpu| vcpu[&RDMSR] >= 1_000), "{stat}");
    assert_eq!(kvm_functions(transcript.output("unpinned")), 0);
}

fn kvm_functions(traced: &str) -> usize {
    traced.lines().filter(|line| line.starts_with("kvm_")).count()
}

/// Each has seen the guest that ran beside it, and nothing is attached after that.
fn nothing_is_left_of_who_is_killed(transcript: &Transcript) {
    for label in ["first", "second"] {
        let lines = &transcript.result_of(label).stdout;
        let exits: u64 = lines
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|document| document["total"]["exits"].as_u64().unwrap())
            .sum();
        assert!(exits > 1_000, "{label}: {exits}");
    }
    assert_eq!(kvm_functions(transcript.output("killed")), 0);
}

/// `exitscope lab run --source bpf`.
#[test]
fn the_main_job_counts_by_ebpf() {
    let (report, _) = report(&Options {
        setup: Setup { name: "amd-main-job-bpf".into(), ..Setup::default() },
        source: Source::Bpf,
        guest: GuestKind::Linux,
        vmm: Vmm::Exitscope,
        vcpus: 2,
        layout: Layout::Classic,
        expose: Expose::Vm,
    });
    sums_are_totals(&report.vms);
    assert_eq!((report.source.as_str(), report.vms.len(), report.vms[0].vcpus.len()), ("bpf", 1, 2));
    assert!(report.guest.is_none() && report.timeline.len() > 1, "{report:?}");
    // Ticks of a ns, and what a boot shows: ports of the console, pages, halts.
    assert_eq!(report.machine.tsc_khz, 1_000_000);
    for code in [0x7b, 0x400, 0x78] {
        assert!(exits(&report.reasons, code) > 0, "{code:#x}: {:?}", report.reasons);
    }
    let text = exitscope_view::text::report(&report);
    assert!(text.contains("source bpf") && text.contains("a cycle is a ns"), "{text}");
}
