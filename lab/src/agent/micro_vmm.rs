//! Runs a guest under our micro-VMM, a process of its own.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use super::vmm::{COMMAND_LINE, Vmm, failure, initrd_with_job, time_limit, wait_for};
use crate::job::{Event, GUEST_KERNEL, GUEST_OUTPUT_PREFIX, Guest, Job, Output, told};

/// What it has besides under our micro-VMM, which has little more than a keyboard controller to reset by.
const IN_MICRO_VMM: &str = "reboot=k io_delay=none";

/// Where a guest's VMM tells what its vCPUs reported, when they have ended.
fn outcome(name: &str) -> PathBuf {
    PathBuf::from(format!("/tmp/{name}.outcome"))
}

/// Waits until a guest has ended, though its VMM may not have.
pub fn wait_for_outcome(name: &str) -> io::Result<()> {
    let unended = || io::Error::other(format!("guest {name} does not come to its end"));
    wait_for(|| outcome(name).exists().then_some(()).ok_or_else(unended))
}

/// Where the process of a guest's VMM is noted.
pub fn process(name: &str) -> PathBuf {
    PathBuf::from(format!("/tmp/{name}.pid"))
}

/// A guest whose micro-VMM is running; the VMM is killed when this is dropped.
pub struct Running {
    name: String,
    endless: bool,
    vmm: Child,
    outcome: PathBuf,
    console: Option<thread::JoinHandle<String>>,
}

impl Running {
    /// Starts a guest that does a flat workload.
    pub fn flat(guest: &Guest, workload: &str, iterations: u64, batch: u64) -> io::Result<Self> {
        Self::start(guest, |vmm| {
            vmm.args(["--workload", workload, "--memory", "16"]);
            vmm.args(["--iterations", &iterations.to_string(), "--batch", &batch.to_string()]);
            Ok(())
        })
    }

    /// Starts a Linux guest that runs these commands.
    pub fn linux(guest: &Guest, commands: &[Vec<String>]) -> io::Result<Self> {
        Self::start(guest, |vmm| {
            let commands = commands.to_vec();
            let job = Job::Guest { modules: vec![], port: false, system: None, commands };
            let initrd = initrd_with_job(&guest.name, &job, &[])?;
            vmm.args(["--kernel", GUEST_KERNEL, "--memory", "192"]);
            vmm.args(["--cmdline", &format!("{COMMAND_LINE} {IN_MICRO_VMM}"), "--initrd"]).arg(initrd);
            Ok(())
        })
    }

    fn start(guest: &Guest, payload: impl FnOnce(&mut Command) -> io::Result<()>) -> io::Result<Self> {
        let outcome = outcome(&guest.name);
        // That of a guest of the same name before.
        let _ = fs::remove_file(&outcome);
        let mut command = Command::new("/proc/self/exe");
        command.args([
            "vmm",
            "--name",
            &guest.name,
            "--timeout",
            &time_limit().to_string(),
            "--vcpus",
            &guest.vcpus.to_string(),
        ]);
        command.arg("--outcome").arg(&outcome);
        if guest.lingers {
            command.arg("--linger");
        }
        payload(&mut command)?;
        let mut vmm = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        fs::write(process(&guest.name), vmm.id().to_string())?;
        let told = told(&guest.name);
        let _ = fs::remove_file(&told);
        let console = vmm.stdout.take().map(|stdout| thread::spawn(move || listen(stdout, &told)));
        Ok(Self { name: guest.name.clone(), endless: guest.endless, vmm, outcome, console })
    }
}

/// Reads a guest's console to its end, and notes how many results have come.
fn listen(stdout: impl Read, told: &str) -> String {
    let (mut text, mut results) = (String::new(), 0);
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if line.starts_with(GUEST_OUTPUT_PREFIX) {
            results += 1;
            // Whoever waits for it says that it does not come.
            let _ = fs::write(told, results.to_string());
        }
        text += &line;
        text.push('\n');
    }
    text
}

impl Running {
    /// Ends a guest that has no end of its own.
    fn killed(&mut self) -> io::Result<Event> {
        self.vmm.kill()?;
        self.vmm.wait()?;
        let (name, pid) = (self.name.clone(), self.vmm.id());
        let (reports, outputs, phase_starts) = (vec![], vec![], vec![]);
        Ok(Event::Guest { name, pid, still_running: true, reports, outputs, phase_starts })
    }
}

impl Vmm for Running {
    fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.vmm.try_wait()?.is_some())
    }

    fn finish(mut self: Box<Self>, still_running: bool) -> io::Result<Event> {
        if self.endless && still_running {
            return self.killed();
        }
        // A guest that lingers may go.
        drop(self.vmm.stdin.take());
        let mut complaint = String::new();
        if let Some(mut stderr) = self.vmm.stderr.take() {
            stderr.read_to_string(&mut complaint)?;
        }
        let status = self.vmm.wait()?;
        let console = self.console.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        if !status.success() {
            return Err(failure(&self.name, status, &complaint, &console));
        }
        let reports = fs::read(&self.outcome).and_then(|text| Ok(serde_json::from_slice(&text)?))?;
        let lines = console.lines().filter_map(|line| line.strip_prefix(GUEST_OUTPUT_PREFIX));
        let outputs =
            lines.map(|line| Ok(serde_json::from_str(line)?)).collect::<io::Result<Vec<Output>>>()?;
        let (name, pid) = (self.name.clone(), self.vmm.id());
        Ok(Event::Guest { name, pid, still_running, reports, outputs, phase_starts: vec![] })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}
