//! What an administrator may ask of `/dev/exitscope`: to read, a policy for one VM, a reset; and what must be refused.

use exitscope_abi::region::{CELL_SIZE, FIELDS};
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Event, Guest, Step, Way};
use exitscope_model::{self as model, Reason, Vm};
use exitscope_tests::{
    Transcript, command, exits, exits_by_code, flat, guests, insert, linux, machine, remove, sums_are_totals,
    while_running,
};
use serde::Deserialize;

use crate::leaves::{leaf, registers};
use crate::shared;

const CPUID: u32 = 0x72;
const RDMSR: u32 = 0x7c;

/// What `exitscope module status --json` prints.
#[derive(Deserialize)]
pub struct Status {
    pub memory: Memory,
    quality: model::Quality,
    vms: Vec<Vm>,
}

/// Memory of the counters, in bytes.
#[derive(Deserialize)]
pub struct Memory {
    pub used: u64,
}

pub fn status(transcript: &Transcript, label: &str) -> Status {
    serde_json::from_str(transcript.output(label)).unwrap()
}

pub fn status_step(label: &str) -> Step {
    command(label, &["module", "status", "--json"])
}

fn since_reset_step(label: &str) -> Step {
    command(label, &["module", "status", "--json", "--since-reset"])
}

/// A guest whose VM stays while the steps are done.
fn lingering(name: &str, workload: &str, iterations: u64, vcpus: u32) -> Guest {
    Guest { lingers: true, ..flat(name, workload, iterations, vcpus) }
}

fn reasons(vm: &Vm) -> Vec<Reason> {
    model::merge(vm.vcpus.iter().flat_map(|vcpu| &vcpu.reasons))
}

/// Guests with and without a policy of their own, and who may not set one.
pub fn policy_steps() -> Vec<Step> {
    let read = ["/init guest --json"];
    let [of_host, of_vcpu] = [0x4fff_fff1, 0x4fff_fff5].map(|number| leaf(number, 0));
    let read_both = [read[0], &of_host, &of_vcpu];
    let policy = |label: &str, vm: &str, policy: &str| command(label, &["module", "policy", vm, policy]);
    let no_admin = |label: &str, line: &str| Step::RunAs {
        label: label.into(),
        command: line.split_whitespace().map(str::to_owned).collect(),
        way: Way::NoAdmin,
    };
    vec![
        insert(""),
        guests(vec![flat("first", "rdmsr", 1_000, 1)]),
        while_running(
            vec![linux("quiet", &read)],
            vec![
                Step::AwaitVm { id: 2 },
                no_admin("no right to show all", "/init module policy 2 host"),
                no_admin("no right to reset", "/init module reset"),
                no_admin("off", "/init module policy 2 off"),
                status_step("during"),
            ],
        ),
        while_running(
            vec![linux("all", &read_both)],
            vec![Step::AwaitVm { id: 3 }, policy("host", "3", "host")],
        ),
        while_running(
            vec![linux("own", &read)],
            vec![Step::AwaitVm { id: 4 }, policy("vm", "4", "host"), policy("back", "4", "default")],
        ),
        policy("finished", "1", "off"),
        policy("none", "99", "off"),
        policy("wrong", "1", "everyone"),
        Step::Snapshot { label: "end".into() },
        remove(),
    ]
}

#[test]
fn a_policy_may_be_set_for_one_vm() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "policy of one");
    for done in ["off", "host", "vm", "back"] {
        transcript.output(done);
    }
    let during = status(transcript, "during").vms;
    let shown: Vec<_> = during.iter().map(|vm| (vm.id.as_str(), vm.expose.as_deref())).collect();
    assert_eq!(shown, [("1", None), ("2", Some("off"))]);

    let quiet = &transcript.guest("quiet").outputs[0];
    assert_eq!(quiet.status, Some(1));
    assert!(quiet.stderr.contains("no exitscope answers"), "{quiet:?}");
    let view = |guest: &str| -> model::GuestView {
        serde_json::from_str(&transcript.guest(guest).outputs[0].stdout).unwrap()
    };
    let [all, own] = ["all", "own"].map(view);
    assert_eq!((all.expose.as_str(), own.expose.as_str()), ("host", "vm"));
    let before: u64 = ["first", "quiet"].map(|guest| transcript.vm("end", guest).total().exits).iter().sum();
    assert!(all.total.exits > before, "{:?}", all.total);
    // The vCPU is told its own also then: what the host has beyond it is the others' at least.
    let [[of_host, ..], [of_vcpu, ..]] =
        [1, 2].map(|index| registers(&transcript.guest("all").outputs[index]));
    let own_exits = transcript.vm("end", "all").total().exits;
    assert!(u64::from(of_vcpu) <= own_exits && before + own_exits >= of_host.into(), "{of_host} {of_vcpu}");
    assert!(all.total.exits < of_host.into() && of_vcpu > 0);
    assert!(own.total.exits <= transcript.vm("end", "own").total().exits);

    for (label, code, why) in [
        ("finished", 1, "no live VM has the number 1"),
        ("none", 1, "no live VM has the number 99"),
        ("wrong", 2, "want off, vm, host or default"),
        ("no right to show all", 1, "CAP_SYS_ADMIN"),
        ("no right to reset", 1, "CAP_SYS_ADMIN"),
    ] {
        let end = transcript.result_of(label);
        assert_eq!(end.status, Some(code), "{end:?}");
        assert!(end.stderr.contains(why), "{end:?}");
    }
}

#[test]
fn a_reset_is_a_baseline_that_readers_subtract() {
    let steps = vec![
        Step::StartHistogram,
        insert(""),
        while_running(
            vec![lingering("before", "cpuid", 1_000, 1)],
            vec![
                command("reset", &["module", "reset"]),
                since_reset_step("nothing"),
                guests(vec![flat("frame", "rdmsr", 0, 1)]),
                guests(vec![flat("after", "rdmsr", 500, 1)]),
                since_reset_step("since"),
                status_step("all"),
                command("again", &["module", "reset"]),
            ],
        ),
        // More VMs than are kept apart: baselines go the way of the counters.
        Step::Repeat { times: 260, steps: vec![guests(vec![flat("one", "cpuid", 10, 1)])] },
        since_reset_step("later"),
        Step::Snapshot { label: "end".into() },
        Step::ReadHistogram { label: "end".into() },
        remove(),
    ];
    let transcript = machine("reset", steps);
    transcript.output("reset");
    // `before` lingers outside the guest: what has come since is not its own.
    assert!(status(&transcript, "nothing").vms.iter().all(|vm| vm.total().exits == 0));
    let since = status(&transcript, "since").vms;
    sums_are_totals(&since);
    assert_eq!(since.iter().filter(|vm| vm.total().exits > 0).count(), 2);
    let [frame, after] = [1, 2].map(|index| exits(&reasons(&since[index]), RDMSR));
    assert_eq!(after - frame, 500);
    let all = status(&transcript, "all").vms;
    assert!(exits(&reasons(&all[0]), CPUID) >= 1_000);
    assert_eq!(all[1..], since[1..]);

    let later = status(&transcript, "later").vms;
    sums_are_totals(&later);
    let cpuids: u64 = later.iter().map(|vm| exits(&reasons(vm), CPUID)).sum();
    assert_eq!(cpuids, 260 * 10);
    assert_eq!(exits_by_code(transcript.snapshot("end")), transcript.kernel_histogram("end"));
}

/// Asks the device for nonsense, and by 32-bit system calls for what has a meaning.
pub fn nonsense_steps() -> Vec<Step> {
    let fuzz = |seed| Step::FuzzDevice { seed, requests: 400 };
    // The second VM since the module is there.
    let meanwhile = vec![Step::AwaitVm { id: 2 }, Step::AskBothWays { vm: 2 }, fuzz(2), fuzz(3)];
    vec![
        Step::StartHistogram,
        insert(""),
        fuzz(1),
        while_running(vec![flat("frame", "cpuid", 0, 2)], vec![]),
        while_running(vec![flat("bystander", "cpuid", 100_000, 2)], meanwhile),
        Step::Snapshot { label: "end".into() },
        Step::ReadHistogram { label: "end".into() },
        remove(),
    ]
}

/// What the machine answered to that, which fails on any warning in the kernel's log.
fn nonsense() -> &'static Transcript {
    shared::DEFAULT.part(Vendor::Amd, "nonsense")
}

#[test]
fn programs_of_32_bits_are_answered_like_those_of_64() {
    const OK: i32 = 0;
    const ENOENT: i32 = 2;
    const ESRCH: i32 = 3;
    const EBADF: i32 = 9;
    const EFAULT: i32 = 14;
    const EINVAL: i32 = 22;
    const ENOTTY: i32 = 25;
    let answers = nonsense().find("device's", "answers", |event| match event {
        Event::Requests { answers } => Some(answers),
        _ => None,
    });
    let Some(answers) = answers else {
        return println!("skipped: the machine's kernel has no 32-bit system calls");
    };
    let expected = [
        ("a policy for a VM", OK),
        ("the module's policy for it", OK),
        ("a policy for no VM", ENOENT),
        ("no policy", EINVAL),
        ("a policy for no process", ESRCH),
        ("a reset", OK),
        ("another request", ENOTTY),
        ("no address", EFAULT),
        ("a reset by a reader", EBADF),
    ];
    assert_eq!(*answers, expected.map(|(request, answer)| (request.to_owned(), [answer; 2])));
}

#[test]
fn nonsense_is_refused_and_disturbs_nobody() {
    let transcript = nonsense();
    assert!(transcript.guest("bystander").still_running);
    assert_eq!(transcript.added("end", &["frame", "bystander"], CPUID), [100_000; 2]);
    transcript.kernel_agrees("end");
}

/// Prints how the region describes itself.
pub fn description_steps() -> Vec<Step> {
    vec![insert(""), command("description", &["module", "layout", "--json"]), remove()]
}

#[test]
fn the_region_describes_itself() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "description");
    let shown: serde_json::Value = serde_json::from_str(transcript.output("description")).unwrap();
    let expected: Vec<_> = FIELDS
        .iter()
        .map(|field| {
            serde_json::json!({
                "kind": field.kind, "offset": field.offset, "width": field.width,
                "count": field.count, "name": field.name,
            })
        })
        .collect();
    assert_eq!(shown, serde_json::Value::from(expected));
}

/// VMs at once, and the vCPUs of each.
const VMS: u32 = 8;
const VCPUS: u32 = 128;

/// Many vCPUs at once, and then more than stay apart.
pub fn crowd_steps() -> Vec<Step> {
    let crowd =
        |count| (0..VMS).map(|vm| lingering(&format!("vm-{count}-{vm}"), "rdmsr", count, VCPUS)).collect();
    vec![
        Step::StartHistogram,
        insert(""),
        guests(vec![flat("frame", "rdmsr", 0, 1)]),
        while_running(crowd(20), vec![status_step("crowd")]),
        guests(vec![flat("large", "rdmsr", 20, 254)]),
        guests(vec![flat("last", "rdmsr", 20, 3)]),
        status_step("after"),
        Step::ReadHistogram { label: "after".into() },
        remove(),
    ]
}

#[test]
fn a_thousand_vcpus_are_counted_at_once() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "crowd");
    let crowd = status(transcript, "crowd");
    assert_eq!(crowd.quality, model::Quality::default());
    let frame = exits(&reasons(&crowd.vms[0]), RDMSR);
    let live: Vec<&Vm> = crowd.vms.iter().filter(|vm| !vm.finished).collect();
    assert_eq!(live.len(), VMS as usize);
    for vm in live {
        assert_eq!(vm.vcpus.len(), VCPUS as usize);
        for vcpu in &vm.vcpus {
            assert_eq!(exits(&vcpu.reasons, RDMSR) - frame, 20, "vCPU {} of VM {}", vcpu.id, vm.id);
        }
    }
    // With the last one there are more than the 256 finished vCPUs that stay. The large one went into the sum of all
    // before it as a whole, though most of its vCPUs have not been added to it yet: their cells are still in use, a
    // vCPU's own, those of its overflow and of one reason at least.
    let after = status(transcript, "after");
    let [retired, last] = after.vms.as_slice() else { panic!("{:?}", after.vms) };
    assert_eq!((retired.id.as_str(), retired.finished, last.vcpus.len()), ("retired", true, 3));
    assert_eq!(retired.vcpus.len(), 1);
    assert!(after.memory.used > 200 * 3 * CELL_SIZE as u64, "{}", after.memory.used);
    assert_eq!(exits_by_code(&after.vms), transcript.kernel_histogram("after"));
}

/// Guests for which there is not enough room.
pub fn short_steps() -> Vec<Step> {
    vec![
        Step::StartHistogram,
        // Nine cells for VMs: one of one vCPU with some of a Linux guest's reasons, and then none.
        insert("pages=2"),
        guests(vec![linux("one", &["/init guest"])]),
        guests(vec![flat("five", "mmio", 1_000, 5)]),
        status_step("end"),
        Step::ReadHistogram { label: "end".into() },
        remove(),
        // A VM of eight vCPUs that may have eight counters in all, and one that comes after it.
        insert("pages=64 vm_pages=1"),
        guests(vec![flat("greedy", "mmio", 1_000, 8)]),
        guests(vec![flat("modest", "mmio", 1_000, 1)]),
        status_step("quota"),
        remove(),
    ]
}

#[test]
fn where_memory_is_short_the_overflow_counts_and_a_flag_says_so() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "short");
    a_vm_has_no_more_counters_than_its_quota(transcript);
    let end = status(transcript, "end");
    assert!(end.quality.overflowed && end.quality.unaccounted > 0, "{:?}", end.quality);
    sums_are_totals(&end.vms);
    let counted: u64 = end.vms.iter().map(|vm| vm.total().exits).sum();
    let witnessed: u64 = transcript.kernel_histogram("end").values().sum();
    assert_eq!(counted + end.quality.unaccounted, witnessed);
    assert!(end.vms.iter().map(overflow).sum::<u64>() > 0);
}

fn a_vm_has_no_more_counters_than_its_quota(transcript: &Transcript) {
    let Status { vms, quality, .. } = status(transcript, "quota");
    assert!(quality.overflowed && quality.unaccounted == 0, "{quality:?}");
    let [greedy, modest] = [&vms[vms.len() - 2], &vms[vms.len() - 1]];
    let own = reasons(greedy)
        .into_iter()
        .filter(|reason| reason.code != model::OVERFLOW && reason.exits > 0)
        .count();
    assert!(own <= 8 && overflow(greedy) > 0 && greedy.total().exits >= 8 * 1_000, "{greedy:?}");
    assert_eq!(overflow(modest), 0);
}

fn overflow(vm: &Vm) -> u64 {
    reasons(vm).into_iter().filter(|reason| reason.code == model::OVERFLOW).map(|reason| reason.exits).sum()
}

/// A VM after the other where there is room for few.
pub fn room_steps() -> Vec<Step> {
    // There is room for two or three VMs.
    let one = |number: u32| guests(vec![flat(&format!("vm-{number}"), "hypercall", 1_000, 1)]);
    let mut steps = vec![Step::StartHistogram, insert("pages=3")];
    steps.extend((0..20).map(one));
    steps.extend([status_step("end"), Step::ReadHistogram { label: "end".into() }, remove()]);
    steps
}

#[test]
fn finished_vms_make_room_for_new_ones() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "room");
    let end = status(transcript, "end");
    assert_eq!((end.quality.overflowed, end.quality.unaccounted), (false, 0));
    sums_are_totals(&end.vms);
    assert_eq!(exits_by_code(&end.vms), transcript.kernel_histogram("end"));
    let (newest, retired) = (end.vms.last().unwrap(), end.vms.first().unwrap());
    assert_eq!((newest.id.as_str(), retired.id.as_str()), ("20", "retired"));
    assert!(retired.total().exits >= 10 * 1_000);
}
