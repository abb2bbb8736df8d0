//! The protocol between the lab and its agent: the steps of a job, and the events that answer them.

use exitscope_caps::Cpu;
use exitscope_model::{Quality, Tick, Vm};
pub use exitscope_vmm::bare::Stop;
use serde::{Deserialize, Serialize};

use crate::emulator::Link;

/// Where the agent finds its job, in the emulated machine and in its guests.
pub const JOB: &str = "/job.json";
/// Where the emulated machine keeps its kernel modules.
pub const MODULES: &str = "/modules";
/// Where the emulated machine keeps its guests' kernel.
pub const GUEST_KERNEL: &str = "/guest/kernel";
/// Where the emulated machine keeps its guests' initramfs, without a job.
pub const GUEST_INITRD: &str = "/guest/initrd";
/// Where the emulated machine keeps the modules of that kernel.
pub const GUEST_MODULES: &str = "/guest/modules";
/// Where the emulated machine keeps our kernel module.
pub const EXITSCOPE: &str = "/exitscope.ko";
/// Where a Debian guest has our program.
pub const PROGRAM_IN_DEBIAN: &str = "/run/exitscope/exitscope";
/// A phase of a guest's boot under QEMU: from the first exit.
pub const FIRMWARE: &str = "firmware";
/// From the kernel's first instruction.
pub const KERNEL: &str = "kernel";
/// From the initramfs's first process.
pub const INITRAMFS: &str = "initramfs";
/// From systemd's start.
pub const USERSPACE: &str = "userspace";
/// From the end of the guest's work.
pub const SHUTDOWN: &str = "shutdown";
/// A command of a guest that waits until its leaves say all the words that follow: names of a layout and of a policy.
/// By this and [`Step::await_told`] guest and host wait for each other.
pub const AWAIT: &str = "await";
/// What a guest's line of results begins with on its console.
pub const GUEST_OUTPUT_PREFIX: &str = "@exitscope ";

/// A job, for either of the two roles of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Job {
    /// The machine that runs KVM.
    Host {
        /// How to send events.
        link: Link,
        /// Kernel modules to load first, in this order.
        modules: Vec<Insert>,
        /// Kernel modules for guests under QEMU to load, in this order; the machine has them under the same paths.
        guest_modules: Vec<Insert>,
        /// What to do then.
        steps: Vec<Step>,
    },
    /// A Linux guest.
    Guest {
        /// Kernel modules to load first, in this order.
        modules: Vec<Insert>,
        /// Whether it sends its results through a port of its own, and not on its console.
        port: bool,
        /// The system to start; without one, the guest stays in its initramfs.
        system: Option<System>,
        /// Programs to run, one after the other, each with its arguments.
        commands: Vec<Vec<String>>,
    },
}

/// A Debian system on a disk, which a guest starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct System {
    /// The disk's device.
    pub disk: String,
    /// Kernel modules that drive it, in this order.
    pub modules: Vec<Insert>,
}

/// A kernel module to load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Insert {
    /// Its file.
    pub path: String,
    /// Its parameters.
    pub parameters: String,
}

/// One step of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Step {
    /// Load a kernel module.
    Insert(Insert),
    /// Unload a kernel module.
    Remove {
        /// Its name.
        name: String,
    },
    /// Write to a file, most often one of the kernel's settings.
    Write {
        /// The file.
        path: String,
        /// What.
        text: String,
    },
    /// Start the kernel's own histogram of the event `kvm_exit` by exit reason: an independent count.
    StartHistogram,
    /// Report that histogram: [`Event::Histogram`].
    ReadHistogram {
        /// Names the event that answers.
        label: String,
    },
    /// Switch the kernel's own tracing of the events `kvm_exit` and `kvm_entry` on or off.
    Ftrace {
        /// On or off.
        on: bool,
    },
    /// Load our eBPF programs, or unload them.
    Bpf {
        /// How many cells their region has; `None` unloads them.
        cells: Option<u32>,
    },
    /// Report everything that our module has counted, or without it our eBPF programs: [`Event::Snapshot`].
    Snapshot {
        /// Names the event that answers.
        label: String,
    },
    /// Report everything that our eBPF programs have counted, the module or not: [`Event::Snapshot`].
    BpfSnapshot {
        /// Names the event that answers.
        label: String,
    },
    /// Report what the CPU's virtualization can do: [`Event::Capabilities`].
    Capabilities,
    /// Run guests, all at once, to their end: an [`Event::Guest`] each.
    Guests {
        /// The guests.
        guests: Vec<Guest>,
        /// Sample the number of exits at this interval in ms: [`Event::Timeline`].
        sample_ms: Option<u64>,
        /// What to do while they run, once each has had some time.
        meanwhile: Vec<Step>,
    },
    /// Keep VMs whose vCPUs have each had an exit, all of one process, while other steps are done.
    HaltedVms {
        /// How many.
        vms: u32,
        /// vCPUs of each.
        vcpus: u32,
        /// What to do meanwhile.
        meanwhile: Vec<Step>,
    },
    /// Have KVM return after a guest's CPUID of a leaf of ours, set its registers, and let it go on:
    /// [`Event::StoppedCpuid`].
    StopAfterCpuid {
        /// Names the event that answers.
        label: String,
        /// What makes KVM return.
        stop: Stop,
        /// The leaf; the sub-leaf is 0.
        leaf: u32,
        /// EAX, EBX, ECX and EDX as the VMM sets them then; `None` leaves them.
        set: Option<[u64; 4]>,
    },
    /// Have a guest ask a leaf all the time, and send it INITs: [`Event::Inits`].
    InitWhileAsking {
        /// Names the event that answers.
        label: String,
        /// The leaf; the sub-leaf is 0.
        leaf: u32,
        /// How many INITs.
        times: u32,
    },
    /// Read a file: [`Event::Output`].
    Read {
        /// Names the event that answers.
        label: String,
        /// The file.
        path: String,
    },
    /// Run a program: [`Event::Output`].
    Run {
        /// Names the event that answers.
        label: String,
        /// The program and its arguments.
        command: Vec<String>,
    },
    /// Run a program in a way of its own: [`Event::Output`].
    RunAs {
        /// Names the event that answers.
        label: String,
        /// The program and its arguments.
        command: Vec<String>,
        /// Which way.
        way: Way,
    },
    /// Run a program, do steps once it has started, and ask it to end, unless it ends before: [`Event::Output`].
    End {
        /// Names the event that answers.
        label: String,
        /// The program and its arguments.
        command: Vec<String>,
        /// How it is asked.
        by: Request,
        /// What to do meanwhile.
        meanwhile: Vec<Step>,
    },
    /// Stop the process of a guest that is running (SIGSTOP), or let it go on (SIGCONT).
    Pause {
        /// From [`Guest::name`].
        guest: String,
        /// Whether to stop it.
        on: bool,
    },
    /// Wait until a file says this, blanks around it aside.
    AwaitText {
        /// The file.
        path: String,
        /// What it shall say.
        text: String,
    },
    /// Wait until our module has seen a VM.
    AwaitVm {
        /// Its number.
        id: u32,
    },
    /// Wait until our module has seen a VM's end.
    AwaitEnd {
        /// Its number.
        id: u32,
    },
    /// Move the vCPUs' threads of a guest that is running from CPU to CPU.
    Migrate {
        /// From [`Guest::name`].
        guest: String,
        /// How often each.
        times: u32,
    },
    /// Write to a register of one CPU.
    WriteMsr {
        /// Which CPU.
        cpu: u32,
        /// The register.
        address: u32,
        /// Its value.
        value: u64,
    },
    /// Sleep.
    Sleep {
        /// How long, in ms.
        ms: u64,
    },
    /// Make random invalid requests of our module's device, and write random bytes to its parameters.
    FuzzDevice {
        /// Which sequence of requests.
        seed: u64,
        /// How many.
        requests: u32,
    },
    /// Make requests of our module's device by 64-bit and by 32-bit system calls: [`Event::Requests`].
    AskBothWays {
        /// The number of a live VM, whose policy is the module's afterwards.
        vm: u64,
    },
    /// Do this step, which must fail: [`Event::Refused`].
    Refused {
        /// Names the event that answers.
        label: String,
        /// What must fail.
        step: Box<Step>,
    },
    /// Do these steps several times.
    Repeat {
        /// How often.
        times: u32,
        /// What.
        steps: Vec<Step>,
    },
}

impl Step {
    /// Sets a parameter of our module: `expose` or `layout`.
    pub fn set(parameter: &str, value: &str) -> Self {
        let path = format!("/sys/module/exitscope/parameters/{parameter}");
        Self::Write { path, text: value.into() }
    }

    /// Waits until so many commands of a Linux guest under our micro-VMM have ended.
    pub fn await_told(guest: &str, commands: usize) -> Self {
        Self::AwaitText { path: told(guest), text: commands.to_string() }
    }
}

/// Where the agent notes how many commands of a guest have ended.
pub(crate) fn told(guest: &str) -> String {
    format!("/tmp/{guest}.told")
}

/// How a program is run that shall not be run as others are: by root, to its end, without a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// By a user of this number, with no rights.
    User(u32),
    /// By root without CAP_SYS_ADMIN.
    NoAdmin,
    /// By a user of this number, with CAP_BPF and CAP_PERFMON.
    Bpf(u32),
    /// Its output is read until so many lines have come, and then closed.
    ClosedAfter(usize),
    /// Its output is a terminal of so many columns.
    Terminal(u16),
}

/// How a program is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// By SIGINT, as Ctrl-C does.
    Interrupt,
    /// By SIGTERM, as `kill` does.
    Terminate,
    /// By SIGKILL, which it does not notice.
    Kill,
}

/// A guest to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guest {
    /// Names its results.
    pub name: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// What it does.
    pub payload: Payload,
    /// Whether its VM is kept after its workload has ended, until the steps of `meanwhile` are done. Those then begin
    /// only when it has ended. Not under QEMU.
    #[serde(default)]
    pub lingers: bool,
    /// Whether its work is more than it shall do: its VMM is killed when the steps of `meanwhile` are done, if it is
    /// still running. Then it has no results. Not under QEMU.
    #[serde(default)]
    pub endless: bool,
}

/// What a guest does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Payload {
    /// A flat workload: so many exits of one kind on each vCPU, and no operating system.
    Flat {
        /// Name of the workload.
        workload: String,
        /// Exits of its kind.
        iterations: u64,
        /// Exits per timed batch; 0 for no timing.
        batch: u64,
    },
    /// Linux, running these commands.
    Linux {
        /// Programs with their arguments.
        commands: Vec<Vec<String>>,
    },
    /// The same under stock QEMU, with firmware. The emulated machine must have been given it.
    Qemu {
        /// Programs with their arguments.
        commands: Vec<Vec<String>>,
        /// Whether Debian starts from the emulated machine's disk, and runs them when all else is started.
        debian: bool,
    },
}

/// What a guest under QEMU sends, a line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestMessage {
    /// The phase of its boot that begins now.
    Phase(String),
    /// What a command wrote, and its status.
    Output(Output),
}

/// The beginning of a phase of a guest's boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseStart {
    /// The phase.
    pub phase: String,
    /// When, on the timeline's clock, and after how many exits of all VMs.
    pub at: Tick,
}

/// What the agent sends, a line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// What it is doing, for the person who waits.
    Phase {
        /// In words.
        text: String,
    },
    /// A kernel module has been loaded.
    Inserted {
        /// Its file.
        path: String,
        /// How many instructions the machine had executed by then, which only the lab can know, of some emulators.
        #[serde(default)]
        instructions: Option<u64>,
    },
    /// What our module has counted.
    Snapshot {
        /// From [`Step::Snapshot`].
        label: String,
        /// `vmx` or `svm`; empty before the first exit.
        isa: String,
        /// Frequency of the time stamp counter in kHz.
        tsc_khz: u32,
        /// Every VM.
        vms: Vec<Vm>,
        /// What limits the numbers.
        quality: Quality,
    },
    /// What the CPU's virtualization can do.
    Capabilities {
        /// The CPU's name.
        name: String,
        /// The features that the kernel lists.
        flags: Vec<String>,
        /// The features of VMX that the kernel lists.
        vmx_flags: Vec<String>,
        /// The capability registers of every CPU.
        cpus: Vec<Cpu>,
    },
    /// What the kernel's own histogram has counted: exits per reason.
    Histogram {
        /// From [`Step::ReadHistogram`].
        label: String,
        /// Pairs of an exit reason and its exits, by reason.
        exits: Vec<(u64, u64)>,
    },
    /// A guest's EAX, EBX, ECX and EDX around a CPUID after which KVM returned.
    StoppedCpuid {
        /// From [`Step::StopAfterCpuid`].
        label: String,
        /// What the VMM reads.
        read: [u64; 4],
        /// What the page that it shares with KVM says then.
        synced: [u64; 4],
        /// What the guest has two instructions later.
        after: [u64; 4],
    },
    /// A guest's EAX, EBX, ECX and EDX after INITs that came while it asked a leaf all the time.
    Inits {
        /// From [`Step::InitWhileAsking`].
        label: String,
        /// The registers after the INITs, each combination once.
        registers: Vec<[u64; 4]>,
        /// CPUIDs that the guest has gone on after.
        cpuids: u32,
    },
    /// What requests of our module's device were answered; `None` where the kernel has no 32-bit system calls.
    Requests {
        /// Each request, and 0 or an errno: by a 64-bit system call, and by a 32-bit one.
        answers: Option<Vec<(String, [i32; 2])>>,
    },
    /// How exits came while guests ran.
    Timeline {
        /// Samples.
        ticks: Vec<Tick>,
    },
    /// How a guest ended.
    Guest {
        /// From [`Guest::name`].
        name: String,
        /// Its VMM's process.
        pid: u32,
        /// Whether it was still running when the steps of `meanwhile` were done.
        still_running: bool,
        /// What each vCPU of a flat guest reported.
        reports: Vec<Vec<u64>>,
        /// What each command of a Linux guest gave.
        outputs: Vec<Output>,
        /// When the phases of its boot began, after the first; for guests under QEMU.
        phase_starts: Vec<PhaseStart>,
    },
    /// What a program gave.
    Output {
        /// From [`Step::Run`].
        label: String,
        /// The result.
        output: Output,
    },
    /// A step failed, as it was to.
    Refused {
        /// From [`Step::Refused`].
        label: String,
        /// Why it failed.
        message: String,
    },
    /// A step failed; the machine powers off.
    Failed {
        /// Why.
        message: String,
    },
    /// Everything is done.
    Done {
        /// Release of the machine's kernel.
        kernel: String,
        /// What its checkers found, which no healthy run has: a line each.
        warnings: Vec<String>,
    },
}

/// What a program gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its exit status; `None` when it could not run or died.
    pub status: Option<i32>,
    /// What it wrote.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}
