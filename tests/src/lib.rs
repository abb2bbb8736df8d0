//! The framework of the tests of the whole: a test says which steps an emulated machine shall do, and looks at what it answered.
#![forbid(unsafe_code)]

mod turn;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use exitscope_abi::leaf::{Expose, Layout};
use exitscope_caps::Cpu;
use exitscope_lab::Error;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{EXITSCOPE, Event, Guest, Insert, Output, Payload, Step};
use exitscope_lab::parts::series::Series;
use exitscope_lab::progress::Progress;
use exitscope_lab::runs::bench::{self, Bench};
use exitscope_lab::runs::report::{self, GuestKind, Options, Source, Vmm};
use exitscope_lab::runs::session::{Lab, Setup};
use exitscope_model::{self as model, Quality, Reason, Report, Vcpu, Vm};

/// The project's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The release build of the `exitscope` command, which `make test` makes first.
///
/// # Panics
/// When there is none.
pub fn program() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let program = target.join("x86_64-unknown-linux-gnu/release/exitscope");
    assert!(
        program.is_file(),
        "{} is missing: run `make test`, or `cargo build --release` first",
        program.display()
    );
    program
}

/// The kernel of a test that names none: `EXITSCOPE_TEST_KERNEL`, by which `make test-kernel-debug` chooses another.
///
/// # Panics
/// When there is no such kernel.
pub fn default_series() -> Series {
    let name = std::env::var("EXITSCOPE_TEST_KERNEL").ok();
    name.map_or(Series::default(), |name| name.parse().unwrap_or_else(|error| panic!("{error}")))
}

/// A kind of machine: whose CPU it has, and which kernel.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    /// Vendor of its CPU.
    pub vendor: Vendor,
    /// Series of its kernel.
    pub series: Series,
}

impl From<Vendor> for Lane {
    fn from(vendor: Vendor) -> Self {
        Self { vendor, series: default_series() }
    }
}

impl Lane {
    /// The name of a test's machine.
    fn named(self, test: &str) -> String {
        format!("{}-{}-{test}", self.vendor.name(), self.series)
    }
}

/// The lab of a lane, made once.
///
/// # Panics
/// When the lab cannot be made: that fails the test.
pub fn lab(lane: impl Into<Lane>) -> &'static Lab {
    static LABS: [[OnceLock<Lab>; Series::ALL.len()]; 2] =
        [const { [const { OnceLock::new() }; Series::ALL.len()] }; 2];
    let Lane { vendor, series } = lane.into();
    LABS[vendor as usize][series as usize].get_or_init(|| {
        // One at a time: what several lanes need is made once.
        static MAKING: Mutex<()> = Mutex::new(());
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("{} {series}", vendor.name());
        let prepare = |progress: &mut Progress| Lab::prepare(vendor, series, &program(), &logs(), progress);
        expect(&name, with_progress(&name, prepare))
    })
}

/// Where the machines' consoles are.
fn logs() -> PathBuf {
    root().join("target/lab/tests")
}

/// What a test's machine wrote on its console.
///
/// # Panics
/// When there has been no such machine.
pub fn console(lane: impl Into<Lane>, test: &str) -> String {
    let path = logs().join(format!("{}.log", lane.into().named(test)));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs an AMD machine that does these steps; see [`machine_of`].
pub fn machine(name: &str, steps: Vec<Step>) -> Transcript {
    machine_of(Vendor::Amd, name, steps)
}

/// Runs a machine that does these steps. `name` is that of its console's log in `target/lab/tests`.
///
/// # Panics
/// When a step fails or the machine's kernel complains: that fails the test.
pub fn machine_of(lane: impl Into<Lane>, name: &str, steps: Vec<Step>) -> Transcript {
    machine_with(lane, Setup { name: name.into(), ..Setup::default() }, steps)
}

/// As [`machine_of`], with a machine that is set up like this.
///
/// # Panics
/// As [`machine_of`].
pub fn machine_with(lane: impl Into<Lane>, setup: Setup, steps: Vec<Step>) -> Transcript {
    let lane = lane.into();
    let setup = Setup { name: lane.named(&setup.name), ..setup };
    Transcript(expect(&setup.name, in_turn(&setup.name, |progress| lab(lane).run(&setup, steps, progress))))
}

/// Runs a Linux guest with nested and with shadow paging.
///
/// # Panics
/// When the machine fails.
pub fn both_pagings(vendor: Vendor) -> [Report; 2] {
    let name = format!("{}-pagings", vendor.name());
    let options = Options {
        setup: Setup { name: name.clone(), ..Setup::default() },
        source: Source::Module,
        guest: GuestKind::Linux,
        vmm: Vmm::Exitscope,
        vcpus: 1,
        layout: Layout::Classic,
        expose: Expose::Vm,
    };
    expect(&name, in_turn(&name, |progress| report::run_both(lab(vendor), &options, progress)))
}

/// Runs the main job as `exitscope lab run` does: its report, and all that the machine answered.
///
/// # Panics
/// When the machine fails.
pub fn report(options: &Options) -> (Report, Transcript) {
    let name = &options.setup.name;
    let run = |progress: &mut Progress| report::run_with_events(lab(Vendor::Amd), options, progress);
    let (report, events) = expect(name, in_turn(name, run));
    (report, Transcript(events))
}

/// Runs an AMD machine with the debug kernel that does these steps, with the module of `tests/faults` as `/fault.ko`:
/// what the kernel's checkers find.
///
/// # Panics
/// When they find nothing: then they do not check, and that fails the test.
pub fn findings(name: &str, steps: Vec<Step>) -> Vec<String> {
    static FAULT: OnceLock<PathBuf> = OnceLock::new();
    let lab = lab(Lane { vendor: Vendor::Amd, series: Series::Debug });
    let files = vec![("/fault.ko".into(), FAULT.get_or_init(|| build_fault(lab)).clone())];
    let setup = Setup { name: format!("debug-{name}"), files, ..Setup::default() };
    match in_turn(&setup.name, |progress| lab.run(&setup, steps, progress)) {
        Err(Error::KernelWarnings { lines, .. }) => lines,
        Err(error) => panic!("{name}: {error}"),
        Ok(_) => panic!("the kernel's checkers found nothing"),
    }
}

/// Builds the module of `tests/faults` for the lab's kernel.
fn build_fault(lab: &Lab) -> PathBuf {
    let (from, to) = (root().join("tests/faults"), logs().join("faults"));
    std::fs::create_dir_all(&to).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
    for file in ["fault.c", "Kbuild"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(lab.build_tree()).arg(format!("M={}", to.display())).arg("modules");
    let output = make.output().unwrap_or_else(|error| panic!("make: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    to.join("fault.ko")
}

/// Shows what takes time, when it is over: other tests have their machines meanwhile.
fn with_progress<T>(name: &str, run: impl FnOnce(&mut Progress) -> Result<T, Error>) -> Result<T, Error> {
    let mut progress = Progress::collected();
    progress.note(&format!("{name}:"));
    let done = run(&mut progress)?;
    progress.done();
    Ok(done)
}

/// The same for what keeps a CPU busy, when it is its turn. What has not been run here before goes by its vendor: Bochs
/// takes several times as long.
fn in_turn<T>(name: &str, run: impl FnOnce(&mut Progress) -> Result<T, Error>) -> Result<T, Error> {
    let guess = Duration::from_secs(if name.starts_with(Vendor::Intel.name()) { 100 } else { 10 });
    turn::take(&logs(), name, guess, || with_progress(name, run))
}

fn expect<T>(name: &str, done: Result<T, Error>) -> T {
    done.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The kernel module as built for a lane's kernel.
pub fn module(lane: impl Into<Lane>) -> PathBuf {
    root().join("target/module").join(lab(lane).release()).join("exitscope.ko")
}

/// Measures what watching costs, as `exitscope lab bench` does.
///
/// # Panics
/// When the machine fails.
pub fn bench(vendor: Vendor) -> Bench {
    let name = format!("{}-bench", vendor.name());
    expect(&name, in_turn(&name, |progress| bench::run(lab(vendor), progress)))
}

/// All that a machine answered, in order.
pub struct Transcript(Vec<Event>);

/// A test's part of what a shared machine does: its name and its steps.
pub type Part = (&'static str, Vec<Step>);

/// Runs a machine that does one part after the other: what it answered to each.
///
/// # Panics
/// As [`machine_of`].
pub fn machine_of_parts(
    lane: impl Into<Lane>,
    setup: Setup,
    parts: Vec<Part>,
) -> BTreeMap<&'static str, Transcript> {
    let (names, steps): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let end = Step::Read { label: END_OF_PART.into(), path: "/proc/uptime".into() };
    let steps = steps.into_iter().flat_map(|steps| [steps, vec![end.clone()]].concat()).collect();
    let Transcript(events) = machine_with(lane, setup, steps);
    let is_end =
        |event: &Event| matches!(event, Event::Output { label, .. } if label.as_str() == END_OF_PART);
    names.into_iter().zip(events.split(is_end).map(|events| Transcript(events.to_vec()))).collect()
}

/// The label of what ends a part.
const END_OF_PART: &str = "end of a part";

/// A guest's end.
pub struct GuestEnd<'a> {
    /// Its VMM's process.
    pub pid: u32,
    /// Whether it was still running after the steps of `meanwhile`.
    pub still_running: bool,
    /// What its commands gave.
    pub outputs: &'a [Output],
}

/// What the CPU's virtualization can do.
pub struct Capabilities<'a> {
    /// The kernel's list of features.
    pub flags: &'a [String],
    /// The kernel's list of VMX features.
    pub vmx_flags: &'a [String],
    /// The registers.
    pub cpus: &'a [Cpu],
}

impl Transcript {
    /// The first event that `pick` takes.
    ///
    /// # Panics
    /// When there is none; `what` and `name` say which.
    pub fn find<'a, T>(&'a self, what: &str, name: &str, pick: impl Fn(&'a Event) -> Option<T>) -> T {
        self.0
            .iter()
            .find_map(pick)
            .unwrap_or_else(|| panic!("the machine answered nothing about the {what} {name}"))
    }

    /// The VMs of a snapshot.
    pub fn snapshot(&self, name: &str) -> &[Vm] {
        self.find("snapshot", name, |event| match event {
            Event::Snapshot { label, vms, quality, .. } if label == name => {
                assert_eq!(*quality, Quality::default(), "memory was short");
                Some(vms.as_slice())
            }
            _ => None,
        })
    }

    /// How a guest ended.
    pub fn guest(&self, wanted: &str) -> GuestEnd<'_> {
        self.find("guest", wanted, |event| match event {
            Event::Guest { name, pid, still_running, outputs, .. } if name == wanted => {
                Some(GuestEnd { pid: *pid, still_running: *still_running, outputs })
            }
            _ => None,
        })
    }

    /// A guest's account in a snapshot.
    pub fn vm(&self, snapshot: &str, guest: &str) -> &Vm {
        let pid = self.guest(guest).pid;
        let mut vms = self.snapshot(snapshot).iter().filter(|vm| vm.pid == pid);
        let vm = vms.next().unwrap_or_else(|| panic!("snapshot {snapshot} has no VM of guest {guest}"));
        assert!(vms.next().is_none(), "two VMs of guest {guest}");
        vm
    }

    /// Checks that a snapshot's sums are its totals, and that it has the exits that the kernel's own histogram has under
    /// the same label.
    ///
    /// # Panics
    /// When they differ.
    pub fn kernel_agrees(&self, label: &str) {
        sums_are_totals(self.snapshot(label));
        assert_eq!(exits_by_code(self.snapshot(label)), self.kernel_histogram(label), "{label}");
    }

    /// Ticks per ms of the times of a snapshot.
    ///
    /// # Panics
    /// When there is no such snapshot.
    pub fn tsc_khz(&self, name: &str) -> u32 {
        self.find("snapshot", name, |event| match event {
            Event::Snapshot { label, tsc_khz, .. } if label == name => Some(*tsc_khz),
            _ => None,
        })
    }

    /// Checks that two snapshots have the same exits of each reason of each vCPU, and as many of them untimed; VMs are the
    /// same if their processes are.
    ///
    /// # Panics
    /// When they differ.
    pub fn sources_agree(&self, [one, other]: [&str; 2]) {
        let counts = |label: &str| {
            let mut counts = BTreeMap::new();
            for vm in self.snapshot(label) {
                for (vcpu, reason) in
                    vm.vcpus.iter().flat_map(|vcpu| vcpu.reasons.iter().map(move |r| (vcpu, r)))
                {
                    counts.insert((vm.pid, vcpu.id, reason.code), (reason.exits, reason.untimed));
                }
            }
            counts
        };
        assert_eq!(counts(one), counts(other), "{one} and {other}");
    }

    /// Exits of a code that each vCPU of guest `full` has more than the same vCPU of guest `frame`. Where both did the
    /// same workload, `frame` none of it, that is what the workload caused, without the start and end of a guest.
    ///
    /// # Panics
    /// When the guests have different vCPUs, or `full` fewer exits.
    pub fn added(&self, snapshot: &str, [frame, full]: &[impl AsRef<str>; 2], code: u32) -> Vec<u64> {
        let [frame, full] = [frame, full].map(|guest| &self.vm(snapshot, guest.as_ref()).vcpus);
        for vcpus in [frame, full] {
            assert!(vcpus.iter().map(|vcpu| vcpu.id).eq(0..full.len() as u32), "vCPUs in {snapshot}");
        }
        let exits = |vcpu: &Vcpu| exits(&vcpu.reasons, code);
        frame.iter().zip(full).map(|(frame, full)| exits(full) - exits(frame)).collect()
    }

    /// What the kernel's own histogram counted.
    pub fn kernel_histogram(&self, name: &str) -> BTreeMap<u64, u64> {
        self.find("witness", name, |event| match event {
            Event::Histogram { label, exits } if label == name => Some(exits.iter().copied().collect()),
            _ => None,
        })
    }

    /// What a program gave, however it ended.
    pub fn result_of(&self, name: &str) -> &Output {
        self.find("program", name, |event| match event {
            Event::Output { label, output } if label == name => Some(output),
            _ => None,
        })
    }

    /// What a program wrote, which must have ended with status 0.
    pub fn output(&self, name: &str) -> &str {
        let output = self.result_of(name);
        assert_eq!(output.status, Some(0), "{output:?}");
        &output.stdout
    }

    /// What the CPU's virtualization can do, as the machine read it and as its kernel lists it.
    pub fn capabilities(&self) -> Capabilities<'_> {
        self.find("CPU's", "capabilities", |event| match event {
            Event::Capabilities { flags, vmx_flags, cpus, .. } => {
                Some(Capabilities { flags, vmx_flags, cpus })
            }
            _ => None,
        })
    }

    /// Why a step was refused.
    pub fn refusal(&self, name: &str) -> &str {
        self.find("refusal", name, |event| match event {
            Event::Refused { label, message } if label == name => Some(message.as_str()),
            _ => None,
        })
    }
}

/// Exits per code over VMs, as the witness has them.
pub fn exits_by_code(vms: &[Vm]) -> BTreeMap<u64, u64> {
    let all = vms.iter().flat_map(|vm| &vm.vcpus).flat_map(|vcpu| &vcpu.reasons);
    model::merge(all).into_iter().map(|reason| (reason.code, reason.exits)).collect()
}

/// Exits of a code.
pub fn exits(reasons: &[Reason], code: u32) -> u64 {
    reasons.iter().filter(|reason| reason.code == u64::from(code)).map(|reason| reason.exits).sum()
}

/// Checks that every sum over reasons is its total.
///
/// # Panics
/// When one is not.
pub fn sums_are_totals(vms: &[Vm]) {
    for vcpu in vms.iter().flat_map(|vm| &vm.vcpus) {
        assert_eq!(vcpu.total, model::total(&vcpu.reasons));
        for reason in &vcpu.reasons {
            let timed: u64 = reason.histogram.iter().map(|&(_, count)| count).sum();
            assert_eq!(timed + reason.untimed, reason.exits, "{}", reason.name);
        }
    }
}

/// Runs our own command in the machine.
pub fn command(label: &str, arguments: &[&str]) -> Step {
    let command = std::iter::once(&"/init").chain(arguments).map(|&word| word.to_owned()).collect();
    Step::Run { label: label.into(), command }
}

/// Loads our module with these parameters.
pub fn insert(parameters: &str) -> Step {
    Step::Insert(Insert { path: EXITSCOPE.into(), parameters: parameters.into() })
}

/// Loads our eBPF programs.
pub fn load_bpf(cells: u32) -> Step {
    Step::Bpf { cells: Some(cells) }
}

/// Unloads our module.
pub fn remove() -> Step {
    Step::Remove { name: "exitscope".into() }
}

/// Does a step that must fail.
pub fn refused(label: &str, step: Step) -> Step {
    Step::Refused { label: label.into(), step: Box::new(step) }
}

/// Runs guests to their end.
pub fn guests(guests: Vec<Guest>) -> Step {
    while_running(guests, vec![])
}

/// Runs guests to their end, and does steps while they run.
pub fn while_running(guests: Vec<Guest>, meanwhile: Vec<Step>) -> Step {
    Step::Guests { guests, sample_ms: None, meanwhile }
}

/// A guest of so many exits of a kind on each vCPU.
pub fn flat(name: &str, workload: &str, iterations: u64, vcpus: u32) -> Guest {
    let payload = Payload::Flat { workload: workload.into(), iterations, batch: 0 };
    Guest { name: name.into(), vcpus, payload, lingers: false, endless: false }
}

/// A guest of more exits of a kind than there is time for, which ends with the steps that are done while it runs.
pub fn endless(name: &str, workload: &str, vcpus: u32) -> Guest {
    Guest { endless: true, ..flat(name, workload, 1 << 40, vcpus) }
}

/// The names of the two guests of [`zero_and`].
pub fn zero_and_names(name: &str, count: u64) -> [String; 2] {
    [0, count].map(|count| format!("{name}-{count}"))
}

/// Runs a guest that does nothing of a workload, then one that does it `count` times: see [`Transcript::added`].
pub fn zero_and(name: &str, workload: &str, count: u64, vcpus: u32) -> [Step; 2] {
    let [frame, full] = zero_and_names(name, count);
    [(frame, 0), (full, count)].map(|(name, count)| guests(vec![flat(&name, workload, count, vcpus)]))
}

/// A Linux guest that runs these commands, each a line.
pub fn linux(name: &str, commands: &[&str]) -> Guest {
    let words = |line: &&str| line.split_whitespace().map(str::to_owned).collect();
    Guest {
        name: name.into(),
        vcpus: 1,
        payload: Payload::Linux { commands: commands.iter().map(words).collect() },
        lingers: false,
        endless: false,
    }
}
