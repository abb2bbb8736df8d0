//! A guest of the self-test: a micro-VMM of our own program, what it reported, and what the source counted of it.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use exitscope_guest::workload::Workload;
use exitscope_model::snapshot::Snapshot;
use exitscope_model::tally::Tally;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::workload::Stop;

/// How often a wait looks whether the user wants to end.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// The most seconds that a guest may take: it is there for one that hangs.
const TIMEOUT: &str = "60";

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Its workload.
    pub workload: Workload,
    /// Exits of the workload's kind.
    pub iterations: u64,
    /// Exits in a timed batch; 0 for none.
    pub batch: u64,
    /// How long its VMM sleeps for each write to the ignored port.
    pub port_delay: Duration,
    /// Has the kernel halt it, and ends halts once in so long.
    pub halt: Option<Duration>,
}

impl Work {
    /// So many exits of a kind.
    pub fn new(workload: Workload, iterations: u64) -> Self {
        Self { workload, iterations, batch: 0, port_delay: Duration::ZERO, halt: None }
    }
}

/// A guest that has ended.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// What it reported.
    pub reports: Vec<u64>,
    /// From its VMM's start until the guest's end.
    pub elapsed: Duration,
}

/// What the source counted of a guest's only vCPU.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// The thread that ran the vCPU.
    pub thread: u32,
    /// Per exit reason.
    pub reasons: BTreeMap<u64, Tally>,
}

impl Counted {
    /// The sum of all reasons.
    pub fn total(&self) -> Tally {
        self.reasons.values().fold(Tally::default(), |mut sum, tally| {
            sum.merge(tally);
            sum
        })
    }

    /// Exits of a code.
    pub fn exits(&self, code: u32) -> u64 {
        self.reasons.get(&code.into()).map_or(0, |tally| tally.exits)
    }
}

/// The process of a guest's VMM, which is killed when this is dropped.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a guest to its end, and calls `then` with its VMM's process while the VM still exists.
pub fn run<T>(
    work: &Work,
    stop: &Stop,
    then: impl FnOnce(u32) -> anyhow::Result<T>,
) -> anyhow::Result<(Ended, T)> {
    let started = Instant::now();
    let mut vmm = start(work)?;
    let pid = vmm.0.id();
    let stdout = vmm.0.stdout.take().context("a VMM without an output")?;
    let reports = read_reports(stdout, stop)?;
    let elapsed = started.elapsed();
    let Some(reports) = reports else { bail!("guest {}: {}", work.workload.name(), complaint(&mut vmm.0)) };
    let result = then(pid)?;
    // The end of its input is the end of its VM.
    drop(vmm.0.stdin.take());
    if !vmm.0.wait().context("cannot wait for a VMM")?.success() {
        bail!("guest {}: {}", work.workload.name(), complaint(&mut vmm.0));
    }
    Ok((Ended { reports, elapsed }, result))
}

fn start(work: &Work) -> anyhow::Result<Vmm> {
    let Work { workload, iterations, batch, port_delay, halt } = work;
    let mut command = Command::new("/proc/self/exe");
    command.args(["vmm", "--memory", "16", "--linger", "--timeout", TIMEOUT]);
    command.args(["--name", &format!("exitscope-selftest-{}", workload.name())]);
    // Under this name even where /dev has no links.
    command.args(["--outcome", "/proc/self/fd/1"]);
    command.args(["--workload", workload.name(), "--iterations", &iterations.to_string()]);
    command.args(["--batch", &batch.to_string()]);
    command.args(["--port-delay-us", &port_delay.as_micros().to_string()]);
    if let Some(halt) = halt {
        command.args(["--halt-us", &halt.as_micros().to_string()]);
    }
    // Ctrl-C is for us, who then end it.
    command.process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(Vmm(command.spawn().context("cannot start our own program as a VMM")?))
}

/// What the only vCPU reported; `None` when the VMM has ended without telling.
fn read_reports(mut stdout: ChildStdout, stop: &Stop) -> anyhow::Result<Option<Vec<u64>>> {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if stop.is_asked_for() {
            bail!("interrupted: nothing is proven, and nothing is left behind");
        }
        let ready = poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&PAUSE));
        match ready {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno).context("cannot wait for a VMM"),
        }
        let length = stdout.read(&mut buffer).context("cannot read a VMM's output")?;
        text.extend_from_slice(&buffer[..length]);
        if let Ok(vcpus) = serde_json::from_slice::<Vec<Vec<u64>>>(&text) {
            return Ok(Some(vcpus.into_iter().next().unwrap_or_default()));
        }
        if length == 0 {
            return Ok(None);
        }
    }
}

/// What a VMM that has ended, or is about to, complains of.
fn complaint(vmm: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut stderr) = vmm.stderr.take() {
        let _ = stderr.read_to_string(&mut text);
    }
    let text = text.trim().trim_start_matches("exitscope: ");
    if text.is_empty() { "its VMM ended without a word".into() } else { text.into() }
}

/// What the source counted of the only vCPU of the live VM of a process.
pub fn counted(snapshot: &Snapshot, pid: u32) -> anyhow::Result<Counted> {
    let accounts = &snapshot.accounts;
    let mut vms = accounts.vms().iter().filter(|vm| vm.pid == pid && !vm.finished);
    let Some(vm) = vms.next() else {
        bail!(
            "the source does not know the self-test's own VM: run it in the host's PID namespace, not in a container"
        );
    };
    let [vcpu] = accounts.vcpus(vm) else {
        bail!("the source knows {} vCPUs of a VM with one", accounts.vcpus(vm).len())
    };
    let tally = |account| Tally::of(account, accounts.histogram(account));
    let reasons = accounts.reasons(vcpu).iter().map(|account| (account.code, tally(account))).collect();
    Ok(Counted { thread: vcpu.thread, reasons })
}
