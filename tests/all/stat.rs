//! `exitscope stat` on the host, `exitscope guest stat` in the guest, the module's own numbers and the kernel's histogram
//! tell the same.

use std::collections::BTreeMap;

use exitscope_guest::workload::Workload;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_lab::runs::session::Setup;
use exitscope_tests::{
    Transcript, command, endless, exits_by_code, guests, insert, linux, machine_with, remove,
    sums_are_totals, while_running,
};
use serde_json::Value;

use crate::shared;

/// Runs our VMM under `stat`: options of `stat`, then those of the VMM.
fn stat(label: &str, options: &str, vmm: &str) -> Step {
    let line = format!("stat {options} -- /init vmm --memory 16 --name {label} {vmm}");
    command(label, &line.split_whitespace().collect::<Vec<_>>())
}

/// A workload on each of two vCPUs.
fn two_vcpus(vendor: Vendor) -> String {
    let [first, second] = counts(vendor);
    format!("--vcpus 2 --workload rdmsr,pio --iterations {first},{second}")
}

/// Exits of the first and of the second vCPU.
fn counts(vendor: Vendor) -> [u64; 2] {
    match vendor {
        Vendor::Amd => [20_000, 5_000],
        Vendor::Intel => [2_000, 500],
    }
}

pub fn steps(vendor: Vendor) -> Vec<Step> {
    let cpuids = if vendor == Vendor::Amd { 60_000 } else { 40_000 };
    let loop_of = |workload: &str, count| format!("--workload {workload} --iterations {count}");
    let line = |label: &str, line: &str| command(label, &line.split_whitespace().collect::<Vec<_>>());
    // In the machine's own time, of which Bochs makes less.
    let watch = |label: &str, options: &str| {
        let seconds = if vendor == Vendor::Amd { "0.2" } else { "0.02" };
        line(label, &format!("stat --duration {seconds} {options}"))
    };
    let mut steps = vec![
        line("no module", "stat --source module -- /init vmm --workload cpuid"),
        guests(vec![linux("without", &["/init guest stat -- /init --version"])]),
        Step::StartHistogram,
        insert(""),
        stat("frame", "--json", &two_vcpus(vendor).replace(&counts(vendor)[0].to_string(), "0")),
        stat("whole", "--json", &two_vcpus(vendor)),
        stat("second", "--json --vcpu 1", &two_vcpus(vendor)),
        stat("pieces", "-I 20 --json", &loop_of("cpuid", cpuids)),
        stat("ports", "--json", "--vcpus 2 --workload pio,pio-in --iterations 600,200"),
        stat("runs", "-r 3 --json", &loop_of("rdmsr", 1_000)),
        stat("text", "--by vm,vcpu,reason", &two_vcpus(vendor)),
        stat("csv", "-x, --by vcpu,reason", &two_vcpus(vendor)),
        Step::Snapshot { label: "end".into() },
        Step::ReadHistogram { label: "end".into() },
        guests(vec![linux(
            "inside",
            &[
                "/init guest stat --json -- /init --version",
                "/init guest stat --json -- /init guest --json",
                "/init guest stat -I 50 --json --no-pin -- /init guest --json",
                "/init guest stat -- /init vmm --workload none",
            ],
        )]),
        Step::Snapshot { label: "inside".into() },
        line("status", "stat -- /init vmm --workload none"),
        line("no program", "stat -- /no/such/program"),
        watch("no vm", "--vm nobody"),
        watch("no reason", "--reason NOTHING"),
    ];
    // In Bochs a guest that outlasts this takes minutes; which VM is which does not depend on the vendor.
    if vendor == Vendor::Amd {
        steps.extend(two_vms());
    }
    steps.push(remove());
    steps
}

/// Two VMs at once, whose processes have numbers of which one is a part of the other.
fn two_vms() -> [Step; 2] {
    let line = |label: &str, line: &str| command(label, &line.split_whitespace().collect::<Vec<_>>());
    let watch = |label: &str, options: &str| line(label, &format!("stat --duration 0.2 {options}"));
    let next_pid =
        |pid: u32| Step::Write { path: "/proc/sys/kernel/ns_last_pid".into(), text: (pid - 1).to_string() };
    let busy = |name: &str, workload: &str| endless(name, workload, 1);
    [
        next_pid(2300),
        while_running(
            vec![busy("spin", "cpuid")],
            vec![
                next_pid(12300),
                while_running(
                    vec![busy("spin-2", "rdmsr")],
                    vec![
                        // The second of them: eleven VMs came before.
                        Step::AwaitVm { id: 13 },
                        watch("by pid", "--json --vm 2300"),
                        watch("by name", "--json --vm spin-2"),
                        watch("all", "--json"),
                        watch("cpu", "--by vm"),
                    ],
                ),
            ],
        ),
    ]
}

/// One document of `stat --json`.
struct Document(Value);

impl Document {
    fn of(transcript: &Transcript, label: &str) -> Self {
        let text = transcript.output(label);
        Self(serde_json::from_str(text).unwrap_or_else(|error| panic!("{label}: {error}: {text}")))
    }

    /// Exits by reason in one of the document's lists of reasons.
    fn exits(reasons: &Value) -> BTreeMap<u64, u64> {
        let reasons = reasons.as_array().unwrap().iter();
        reasons.map(|reason| (reason["code"].as_u64().unwrap(), reason["exits"].as_u64().unwrap())).collect()
    }

    fn all(&self) -> BTreeMap<u64, u64> {
        Self::exits(&self.0["reasons"])
    }

    fn of_vcpu(&self, index: usize) -> BTreeMap<u64, u64> {
        Self::exits(&self.0["vms"][0]["vcpus"][index]["reasons"])
    }
}

fn code(vendor: Vendor, workload: Workload) -> u64 {
    workload.exit_codes(vendor.isa())[0].into()
}

fn check(transcript: &Transcript, vendor: Vendor) {
    agrees_with_all_others(transcript, vendor);
    intervals_are_the_whole(transcript);
    vcpus_and_vms_never_mix(transcript, vendor);
    every_form_says_the_same(transcript, vendor);
    what_goes_wrong_is_told(transcript);
    a_guest_sees_what_its_command_causes(transcript, vendor);
}

/// Two commands that differ by a known number of CPUIDs: one asks all leaves.
fn a_guest_sees_what_its_command_causes(transcript: &Transcript, vendor: Vendor) {
    let outputs = transcript.guest("inside").outputs;
    let document = |index: usize| {
        // What the command itself writes comes first.
        let text = &outputs[index].stdout;
        let start =
            text.find("{\n  \"schema\": \"exitscope-guest-stat/1\"").unwrap_or_else(|| panic!("{text}"));
        let document: Value = serde_json::from_str(&text[start..]).unwrap();
        document
    };
    let cpuids = |document: &Value| {
        let reasons = document["reasons"].as_array().unwrap().iter();
        let cpuid = reasons.clone().find(|reason| reason["name"] == "CPUID").unwrap();
        cpuid["exits"].as_u64().unwrap()
    };
    let (frame, whole) = (document(0), document(1));
    // Discovery, the total, four leaves for each reason, and codes that no manual defines.
    let asked = 4 * vendor.isa().reasons().len() as u64 + 3;
    assert_eq!(cpuids(&whole) - cpuids(&frame), asked, "{whole}");
    let vm = transcript.vm("inside", "inside");
    assert!(whole["exits"].as_u64().unwrap() < vm.total().exits);
    assert!(
        whole["ns"]["kernel"].as_u64() > Some(0) && whole["percent_of_time"].as_f64() > Some(0.0),
        "{whole}"
    );
    assert!(outputs[2].stdout.contains("\"cpu\":null"), "{:?}", outputs[2]);
    assert_eq!(outputs[3].status, Some(2), "{:?}", outputs[3]);
    assert!(outputs[3].stdout.contains("kept on CPU 0"), "{:?}", outputs[3]);
    let without = &transcript.guest("without").outputs[0];
    assert_eq!((without.status, without.stdout.as_str()), (Some(1), ""));
    assert!(without.stderr.contains("no exitscope answers"), "{without:?}");
}

fn agrees_with_all_others(transcript: &Transcript, vendor: Vendor) {
    let (frame, whole) = (Document::of(transcript, "frame"), Document::of(transcript, "whole"));
    let [rdmsr, _] = counts(vendor);
    let msr = code(vendor, Workload::Rdmsr);
    let count = |document: &Document| document.of_vcpu(0).get(&msr).copied().unwrap_or(0);
    assert_eq!(count(&whole) - count(&frame), rdmsr);
    // The module's own numbers for the same VM, which came and went while `stat` watched.
    let vms = transcript.snapshot("end");
    sums_are_totals(vms);
    let pid = whole.0["vms"][0]["pid"].as_u64().unwrap();
    let vm: Vec<_> = vms.iter().filter(|vm| u64::from(vm.pid) == pid).cloned().collect();
    assert_eq!(vm.len(), 1);
    assert_eq!(whole.all(), exits_by_code(&vm));
    assert_eq!(exits_by_code(vms), transcript.kernel_histogram("end"));
    let document = &whole.0;
    assert_eq!(document["schema"], "exitscope-stat/1");
    assert_eq!((&document["source"], &document["emulated"]), (&"module".into(), &true.into()));
    assert_eq!(document["quality"]["lost"], 0);
    // A VM may be gone before anyone asks for its name; that of longer ones is asked for below.
    assert!([Value::Null, "whole".into()].contains(&document["vms"][0]["name"]), "{document}");
    for reason in document["reasons"].as_array().unwrap() {
        let ns = |part: &str| reason["ns"][part].as_u64().unwrap();
        let all = ["kernel", "user", "polled", "halted"].map(ns).iter().sum::<u64>();
        let timed = reason["exits"].as_i64().unwrap() - reason["untimed"].as_i64().unwrap();
        let mean = reason["mean_ns"].as_u64().unwrap_or(0) as i64;
        // A mean is rounded down twice: to ticks and to ns.
        assert!((all as i64 - mean * timed).abs() <= 2 * timed + 4, "{reason}");
    }
    let ports = Document::of(transcript, "ports").0;
    let io = ports["reasons"].as_array().unwrap().iter();
    let io = io.clone().find(|reason| reason["code"] == code(vendor, Workload::Pio)).unwrap();
    assert!(io["exits"].as_u64().unwrap() >= 800 && io["ns"]["user"].as_u64() > Some(0), "{io}");
}

fn intervals_are_the_whole(transcript: &Transcript) {
    let text = transcript.output("pieces");
    let pieces: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(pieces.len() > 1, "{text}");
    let mut sum: BTreeMap<u64, u64> = BTreeMap::new();
    for (code, exits) in pieces.iter().flat_map(|piece| Document::exits(&piece["reasons"])) {
        *sum.entry(code).or_default() += exits;
    }
    let pid = pieces.iter().find_map(|piece| piece["vms"][0]["pid"].as_u64()).unwrap();
    let vms: Vec<_> =
        transcript.snapshot("end").iter().filter(|vm| u64::from(vm.pid) == pid).cloned().collect();
    assert_eq!(sum, exits_by_code(&vms));
}

fn vcpus_and_vms_never_mix(transcript: &Transcript, vendor: Vendor) {
    let (msr, cpuid, io) =
        (code(vendor, Workload::Rdmsr), code(vendor, Workload::Cpuid), code(vendor, Workload::Pio));
    let second = Document::of(transcript, "second").all();
    assert!(second.get(&io) >= Some(&counts(vendor)[1]), "{second:?}");
    let few = second.get(&msr).copied().unwrap_or(0);
    assert!(few < 50, "vCPU 1 has {few} RDMSRs");
    if vendor != Vendor::Amd {
        return;
    }
    let [first, other, all] = ["by pid", "by name", "all"].map(|label| Document::of(transcript, label));
    assert_eq!(first.0["vms"][0]["pid"], 2300);
    assert_eq!(other.0["vms"][0]["pid"], 12300);
    assert!(first.all().get(&cpuid) > Some(&10) && !first.all().contains_key(&msr), "{:?}", first.all());
    assert!(other.all().get(&msr) > Some(&10) && !other.all().contains_key(&cpuid), "{:?}", other.all());
    assert_eq!(all.0["vms"].as_array().unwrap().iter().filter(|vm| vm["finished"] == false).count(), 2);
    let cpu = transcript.output("cpu");
    assert!(cpu.contains("ELSEWHERE") && cpu.contains("spin-2"), "{cpu}");
}

fn every_form_says_the_same(transcript: &Transcript, vendor: Vendor) {
    let name = if vendor == Vendor::Amd { "MSR" } else { "MSR_READ" };
    let text = transcript.output("text");
    let heads = |line: &str| line.split_whitespace().take(4).eq(["VM", "NAME", "VCPU", "EXIT"]);
    assert!(text.lines().any(heads), "{text}");
    assert!(text.contains("*emulated*") && text.contains("0 lost"), "{text}");
    // In Bochs the VM is gone before anyone asks for its name.
    let named = |line: &str| vendor != Vendor::Amd || line.contains("text");
    let grouped = |line: &&str| named(line) && line.contains(name);
    assert!(text.lines().any(|line| grouped(&line)), "{text}");
    let csv: Vec<Vec<&str>> =
        transcript.output("csv").lines().map(|line| line.split(',').collect()).collect();
    assert!(csv.iter().all(|row| row.len() == csv[0].len()), "{csv:?}");
    let column = |name: &str| csv[0].iter().position(|head| *head == name).unwrap();
    let row = csv.iter().find(|row| row[column("vcpu")] == "0" && row[column("reason")] == name).unwrap();
    let exits: u64 = row[column("exits")].parse().unwrap();
    assert!(exits >= counts(vendor)[0], "{row:?}");
    let runs = Document::of(transcript, "runs").0;
    assert_eq!(runs["runs"], 3);
    let msr = runs["reasons"].as_array().unwrap().iter().find(|reason| reason["name"] == name).unwrap();
    assert!(msr["exits_per_run"]["mean"].as_f64() >= Some(1_000.0), "{msr}");
    assert!(msr["exits_per_run"]["deviation"].as_f64() < Some(50.0), "{msr}");
}

fn what_goes_wrong_is_told(transcript: &Transcript) {
    let expect = |label: &str, status: i32, words: &str| {
        let output = transcript.result_of(label);
        assert_eq!(output.status, Some(status), "{output:?}");
        assert!(output.stderr.contains(words), "{output:?}");
    };
    expect("no module", 1, "load the module first");
    expect("status", 2, "unknown workload none");
    expect("no program", 1, "/no/such/program cannot be started");
    expect("no vm", 1, "there is no VM `nobody`; known are:");
    expect("no reason", 2, "no exit reason `NOTHING`");
}

#[test]
fn stat_agrees_with_the_module_and_the_kernel() {
    check(shared::DEFAULT.part(Vendor::Amd, "stat"), Vendor::Amd);
}

#[test]
fn stat_agrees_with_the_module_and_the_kernel_on_intel() {
    check(shared::DEFAULT.part(Vendor::Intel, "stat"), Vendor::Intel);
}

/// A guest that sleeps and then prints: what it prints costs most, and its sleep only where that is asked for. Two
/// `stat` watch the same guest at once.
#[test]
fn sleep_leads_only_where_it_counts() {
    let both = "stat -x, --duration 21 -- /init stat -x, --with-halt --duration 20";
    let sleeper = linux("sleeper", &["sleep 5000", "/init --help", "/init vmm --help"]);
    let watch = command("both", &both.split_whitespace().collect::<Vec<_>>());
    let steps = vec![insert(""), while_running(vec![sleeper], vec![watch]), remove()];
    // Its clock counts instructions, so that the guest has booted in the time that is watched.
    let setup = Setup { name: "sleeper".into(), icount: true, ..Setup::default() };
    let transcript = machine_with(Vendor::Amd, setup, steps);
    // What the command prints does not come between our own rows.
    let both = transcript.result_of("both");
    let first = |text: &str| {
        let mut reasons = text.lines().filter_map(|line| line.split(',').nth(2));
        reasons.find(|name| *name == "reason");
        reasons.next().map(str::to_owned)
    };
    let [without, with_halt] = [&both.stdout, &both.stderr].map(|text| first(text));
    assert_eq!([without.as_deref(), with_halt.as_deref()], [Some("IOIO"), Some("HLT")], "{both:?}");
}
