//! The module comes and goes, beside running guests too, and refuses what it must.

use exitscope_abi::bpf::DEFAULT_CELLS;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_lab::parts::series::Series;
use exitscope_lab::runs::session::{Paging, Setup};
use exitscope_model::{Reason, Vm};
use exitscope_tests::{
    Transcript, command, default_series, endless, exits, flat, guests, insert, lab, linux, load_bpf, machine,
    machine_with, refused, remove, while_running,
};

use crate::interface::{status, status_step};
use crate::shared;

const CPUID: u32 = 0x72;
const RDMSR: u32 = 0x7c;

fn cpuids(vm: &Vm) -> u64 {
    exits(&vm.vcpus[0].reasons, CPUID)
}

#[test]
fn the_module_comes_and_goes_many_times_with_and_without_a_guest() {
    let cycles = |times| Step::Repeat { times, steps: vec![insert(""), remove()] };
    // Fewer, since to load it, which is to read all of the kernel's BTF, shares the one CPU with a guest.
    let with_a_guest = if default_series() == Series::Debug { 4 } else { 30 };
    let steps = vec![
        cycles(100),
        while_running(vec![endless("bystander", "cpuid", 2)], vec![cycles(with_a_guest)]),
        // It works after all that, for a guest that was there before it as well.
        while_running(vec![flat("early", "cpuid", 200_000, 1)], vec![insert("")]),
        guests(vec![flat("frame", "cpuid", 0, 1)]),
        guests(vec![flat("late", "cpuid", 1_000, 1)]),
        Step::Snapshot { label: "end".into() },
        remove(),
    ];
    // `machine` fails on any warning or oops in the kernel's log.
    let transcript = machine("life", steps);
    for guest in ["bystander", "early"] {
        assert!(
            transcript.guest(guest).still_running,
            "guest {guest} ended before the module had come and gone"
        );
    }
    let early = cpuids(transcript.vm("end", "early"));
    assert!((1..200_000).contains(&early), "{early}");
    assert_eq!(transcript.added("end", &["frame", "late"], CPUID), [1_000]);
}

#[test]
fn a_thousand_vms_in_a_row_leave_what_is_bounded() {
    // The module keeps 256 finished vCPUs apart, and the others in one sum; its memory grows no more.
    let one = || guests(vec![flat("one", "cpuid", 100, 1)]);
    // The eBPF programs have room for a hundred of them, and move the others to their sum.
    let cells = 1 << 10;
    let steps = vec![
        Step::StartHistogram,
        insert(""),
        load_bpf(cells),
        Step::Repeat { times: 300, steps: vec![one()] },
        status_step("bounded"),
        Step::Repeat { times: 700, steps: vec![one()] },
        status_step("end"),
        Step::Snapshot { label: "end".into() },
        Step::BpfSnapshot { label: "by eBPF".into() },
        Step::ReadHistogram { label: "end".into() },
    ];
    let transcript = machine("many", steps);
    let vms = transcript.snapshot("end");
    assert_eq!(vms.len(), 257);
    assert!(vms.iter().all(|vm| vm.finished));
    let retired = vms.iter().find(|vm| vm.id == "retired").unwrap();
    assert_eq!(cpuids(retired), 744 * 100);
    assert_eq!(exitscope_tests::exits_by_code(vms), transcript.kernel_histogram("end"));
    let used = |label: &str| status(&transcript, label).memory.used;
    // But for a reason that one VM has shown and another one has not.
    let (bounded, end) = (used("bounded"), used("end"));
    assert!(end.abs_diff(bounded) < bounded / 4, "{bounded} bytes, then {end}");

    let vms = transcript.snapshot("by eBPF");
    assert_eq!(exitscope_tests::exits_by_code(vms), transcript.kernel_histogram("end"));
    assert!(
        (50..cells as usize / 4).contains(&vms.len()) && vms.iter().all(|vm| vm.finished),
        "{}",
        vms.len()
    );
    let kept: u64 = vms.iter().filter(|vm| vm.id != "retired").map(cpuids).sum();
    assert_eq!(kept, (vms.len() as u64 - 1) * 100);
}

/// VMs that run at once.
pub fn at_once_steps() -> Vec<Step> {
    let crowd = |count: u64| (0..32).map(|vm| flat(&format!("vm-{vm}-{count}"), "rdmsr", count, 1)).collect();
    vec![
        Step::StartHistogram,
        insert(""),
        load_bpf(DEFAULT_CELLS),
        guests(vec![flat("frame", "rdmsr", 0, 1)]),
        Step::Repeat { times: 3, steps: vec![guests(crowd(2_000))] },
        Step::Snapshot { label: "end".into() },
        Step::BpfSnapshot { label: "by eBPF".into() },
        Step::ReadHistogram { label: "end".into() },
        Step::Bpf { cells: None },
        remove(),
    ]
}

#[test]
fn thirty_two_vms_at_once_have_each_their_own() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "at once");
    let vms = transcript.snapshot("end");
    assert_eq!(vms.len(), 1 + 3 * 32);
    let rdmsrs = |vm: &Vm| exits(&vm.vcpus[0].reasons, RDMSR);
    let frame = rdmsrs(transcript.vm("end", "frame"));
    assert!(vms[1..].iter().all(|vm| rdmsrs(vm) - frame == 2_000));
    assert_eq!(exitscope_tests::exits_by_code(vms), transcript.kernel_histogram("end"));
    transcript.sources_agree(["end", "by eBPF"]);
}

/// A VMM that is stopped and goes on.
pub fn stopped_steps() -> Vec<Step> {
    let pause = |on| Step::Pause { guest: "stopped".into(), on };
    vec![
        Step::StartHistogram,
        insert(""),
        guests(vec![flat("frame", "rdmsr", 0, 2)]),
        while_running(
            vec![flat("stopped", "rdmsr", 100_000, 2)],
            vec![pause(true), Step::Sleep { ms: 500 }, pause(false)],
        ),
        Step::Snapshot { label: "end".into() },
        Step::ReadHistogram { label: "end".into() },
        remove(),
    ]
}

#[test]
fn a_vmm_that_is_stopped_for_a_while_loses_nothing() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "stopped");
    assert!(transcript.guest("stopped").still_running);
    assert_eq!(transcript.added("end", &["frame", "stopped"], RDMSR), [100_000; 2]);
    for stopped in &transcript.vm("end", "stopped").vcpus {
        // A signal sends a vCPU through user space.
        let user: u64 = stopped.reasons.iter().map(|reason| reason.user).sum();
        assert!(user > 0, "{stopped:?}");
    }
    transcript.kernel_agrees("end");
}

/// A guest that sleeps is halted, one that writes to its console is in the VMM's user space, one that runs a CPUID is in
/// the kernel: each reason has its time where it was.
#[test]
fn time_is_kept_where_it_was_spent() {
    // KVM polls if halts were shorter than this lately, for longer each time; the usual 200 us are less than a nap.
    let polling =
        Step::Write { path: "/sys/module/kvm/parameters/halt_poll_ns".into(), text: "1000000000".into() };
    let steps = vec![
        polling,
        insert(""),
        load_bpf(DEFAULT_CELLS),
        guests(vec![linux("sleeper", &["/init guest", "sleep 300"])]),
        Step::Snapshot { label: "end".into() },
        Step::BpfSnapshot { label: "by eBPF".into() },
        remove(),
    ];
    // Its clock counts instructions, so that the guest is idle at times however slowly it runs here.
    let setup = Setup { name: "time-split".into(), icount: true, ..Setup::default() };
    let transcript = machine_with(Vendor::Amd, setup, steps);
    let all: Vec<_> = transcript.vm("end", "sleeper").vcpus.iter().flat_map(|vcpu| &vcpu.reasons).collect();
    for reason in &all {
        assert_eq!(reason.kernel + reason.user + reason.polled + reason.halted, reason.cycles, "{reason:?}");
    }
    let vcpu = &transcript.vm("end", "sleeper").vcpus[0];
    assert!(vcpu.thread > 0, "{vcpu:?}");
    let find = |name: &str| all.iter().find(|reason| reason.name == name).unwrap();
    assert_eq!([find("CPUID").user, find("CPUID").polled, find("CPUID").halted], [0; 3]);
    assert!(find("IOIO").user > find("IOIO").kernel / 4);
    assert_eq!([find("IOIO").polled, find("IOIO").halted], [0; 2]);
    let halts = find("HLT");
    assert!(halts.polled + halts.halted > halts.cycles / 2, "{halts:?}");
    assert!(halts.polled > 0 && halts.halted > 0, "{halts:?}");
    parts_agree(&transcript);
}

/// The parts of all exits of the guest that sleeps are the same for the module and for the eBPF programs, but for 2 % at
/// most, which is what each adds to what the other one measures.
fn parts_agree(transcript: &Transcript) {
    transcript.sources_agree(["end", "by eBPF"]);
    let parts = |label: &str| {
        let khz = transcript.tsc_khz(label) as f64;
        let reasons = transcript.vm(label, "sleeper").vcpus.iter().flat_map(|vcpu| &vcpu.reasons);
        let add = |sum: [u64; 4], reason: &Reason| {
            let parts = [reason.kernel, reason.user, reason.polled, reason.halted];
            std::array::from_fn(|part| sum[part] + parts[part])
        };
        reasons.fold([0; 4], add).map(|ticks| ticks as f64 / khz)
    };
    let [module, bpf] = ["end", "by eBPF"].map(parts);
    eprintln!("ms in the kernel, user space, polled, halted: {module:.3?} and {bpf:.3?}");
    for (module, bpf) in module.into_iter().zip(bpf) {
        assert!(module > 0.0 && (bpf / module - 1.0).abs() < 0.02, "{module} ms and {bpf} ms");
    }
}

/// All that is refused.
pub fn refusals_steps() -> Vec<Step> {
    [parameter_steps(), probe_steps(), hook_steps()].concat()
}

fn refusals() -> &'static Transcript {
    shared::DEFAULT.part(Vendor::Amd, "refusals")
}

/// What the kernel says it traces.
const TRACED: &str = "/sys/kernel/tracing/enabled_functions";

fn hook_steps() -> Vec<Step> {
    let read = |label: &str| Step::Read { label: label.into(), path: TRACED.into() };
    let [without, with] = lab(Vendor::Amd).reload_kvm(Paging::Nested);
    vec![
        Step::StartHistogram,
        without,
        insert(""),
        read("waiting"),
        with,
        read("watching"),
        guests(vec![flat("hooked", "pio", 10, 1)]),
        remove(),
        read("gone"),
    ]
}

#[test]
fn kvm_is_hooked_only_while_its_exits_can_be_counted() {
    let traced = |label: &str| refusals().output(label).lines().filter(|line| line.contains("kvm")).count();
    assert_eq!(["waiting", "watching", "gone"].map(traced), [0, 5, 0], "{}", refusals().output("watching"));
}

fn parameter_steps() -> Vec<Step> {
    vec![
        refused("expose", insert("expose=everyone")),
        refused("layout", insert("layout=modern")),
        insert("expose=host layout=combined"),
        refused("twice", insert("")),
        refused("set expose", Step::set("expose", "nobody")),
        refused("set layout", Step::set("layout", "classic reordered")),
        remove(),
        refused("gone", remove()),
    ]
}

#[test]
fn wrong_parameters_are_refused() {
    for (label, why) in [
        ("expose", "Invalid argument"),
        ("layout", "Invalid argument"),
        ("twice", "exists"),
        ("set expose", "Invalid argument"),
        ("set layout", "Invalid argument"),
        ("gone", "No such file"),
    ] {
        assert!(refusals().refusal(label).contains(why), "{label}: {}", refusals().refusal(label));
    }
}

fn probe_steps() -> Vec<Step> {
    // That of ftrace's, on which the ends of vCPUs depend.
    let ftrace = |on: &str| Step::Write { path: "/proc/sys/kernel/ftrace_enabled".into(), text: on.into() };
    vec![
        insert(""),
        refused("while it is loaded", ftrace("0")),
        remove(),
        ftrace("0"),
        refused("without ftrace", insert("")),
        ftrace("1"),
        insert(""),
        remove(),
    ]
}

#[test]
fn nobody_switches_our_probes_off() {
    let why = refusals().refusal("while it is loaded");
    assert!(why.contains("busy"), "{why}");
    let why = refusals().refusal("without ftrace");
    assert!(why.contains("sysctl kernel.ftrace_enabled=1"), "{why}");
}

#[test]
fn a_kernel_without_the_hooks_is_refused_and_says_what_it_lacks() {
    let unload = |name: &str| Step::Remove { name: name.into() };
    let stat = command("no kvm, eBPF", &["stat", "--source", "bpf", "--duration", "0.1"]);
    let steps = vec![unload("kvm_amd"), unload("kvm"), refused("no kvm", insert("")), stat];
    let transcript = machine("no-hooks", steps);
    let why = transcript.refusal("no kvm");
    assert!(why.contains("exitscope: Unknown symbol") && why.contains("kvm_exit"), "{why}");
    let stat = transcript.result_of("no kvm, eBPF");
    assert!(stat.status == Some(1) && stat.stderr.contains("KVM"), "{stat:?}");
}
