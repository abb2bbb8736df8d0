//! Runs guests in the emulated machine: each under our micro-VMM, a process of its own.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use exitscope_host::model::Tick;
use exitscope_host::region::{DEVICE, Region};

use super::host::{Channel, run_steps};
use crate::cpio;
use crate::job::{Event, GUEST_INITRD, GUEST_KERNEL, GUEST_MARK, Guest, JOB, Job, Output, Payload, Step};

/// Time that guests get to start before the steps of `meanwhile` begin.
const HEAD_START: Duration = Duration::from_millis(400);
/// A guest that takes longer has hung.
const TIME_LIMIT: &str = "120";
/// The guests' kernel command line: short of log lines, each byte of which is an exit, and without XSAVE, which TCG
/// gets wrong in a guest.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=k 8250.nr_uarts=1 random.trust_cpu=on io_delay=none noxsave cryptomgr.notests initcall_blacklist=jent_mod_init clearcpuid=erms,fsrm";
/// How much of a failed guest's console an error shows.
const TAIL_LINES: usize = 12;

/// Runs guests, all at once, and tells how each ended.
pub fn run(
    guests: &[Guest],
    sample_ms: Option<u64>,
    meanwhile: &[Step],
    channel: &mut Channel,
) -> io::Result<()> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = &over;
        let sampler = sample_ms.map(|step| scope.spawn(move || sample(Duration::from_millis(step), over)));
        let done = run_to_end(guests, meanwhile, channel);
        over.store(true, Ordering::Relaxed);
        let ticks = sampler.map(|sampler| sampler.join().map_err(|_| io::Error::other("the sampler died")));
        done?;
        match ticks.transpose()?.transpose()? {
            Some(ticks) => channel.tell(&Event::Timeline { ticks }),
            None => Ok(()),
        }
    })
}

fn run_to_end(guests: &[Guest], meanwhile: &[Step], channel: &mut Channel) -> io::Result<()> {
    let mut running = guests.iter().map(Running::start).collect::<io::Result<Vec<_>>>()?;
    if !meanwhile.is_empty() {
        thread::sleep(HEAD_START);
        run_steps(meanwhile, channel)?;
    }
    let outlasted: Vec<bool> =
        running.iter_mut().map(|guest| Ok(guest.vmm.try_wait()?.is_none())).collect::<io::Result<_>>()?;
    for (guest, outlasted) in running.into_iter().zip(outlasted) {
        channel.tell(&guest.finish(outlasted)?)?;
    }
    Ok(())
}

/// Samples the number of exits until it is over.
fn sample(step: Duration, over: &AtomicBool) -> io::Result<Vec<Tick>> {
    let region = Region::open(Path::new(DEVICE)).map_err(io::Error::other)?;
    let start = Instant::now();
    let mut ticks = Vec::new();
    loop {
        let last = over.load(Ordering::Relaxed);
        let t_ms = start.elapsed().as_millis() as u64;
        ticks.push(Tick { t_ms, exits: region.exits() });
        if last {
            return Ok(ticks);
        }
        thread::sleep(step);
    }
}

/// A guest whose VMM is running; the VMM is killed when this is dropped.
struct Running {
    name: String,
    vmm: Child,
    outcome: PathBuf,
    console: Option<thread::JoinHandle<String>>,
}

impl Running {
    fn start(guest: &Guest) -> io::Result<Self> {
        let outcome = PathBuf::from(format!("/tmp/{}.outcome", guest.name));
        let mut command = Command::new("/proc/self/exe");
        command.args(["vmm", "--timeout", TIME_LIMIT, "--vcpus", &guest.vcpus.to_string()]);
        command.arg("--outcome").arg(&outcome);
        match &guest.payload {
            Payload::Flat { workload, iterations, batch } => {
                command.args(["--workload", workload, "--memory", "16"]);
                command.args(["--iterations", &iterations.to_string(), "--batch", &batch.to_string()]);
            }
            Payload::Linux { commands } => {
                let initrd = initrd_with_job(&guest.name, commands)?;
                command
                    .args([
                        "--kernel",
                        GUEST_KERNEL,
                        "--memory",
                        "192",
                        "--cmdline",
                        COMMAND_LINE,
                        "--initrd",
                    ])
                    .arg(initrd);
            }
        }
        let mut vmm = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let console = vmm.stdout.take().map(|mut stdout| {
            thread::spawn(move || {
                let mut text = Vec::new();
                let _ = stdout.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        Ok(Self { name: guest.name.clone(), vmm, outcome, console })
    }

    fn finish(mut self, outlasted: bool) -> io::Result<Event> {
        let mut complaint = String::new();
        if let Some(mut stderr) = self.vmm.stderr.take() {
            stderr.read_to_string(&mut complaint)?;
        }
        let status = self.vmm.wait()?;
        let console = self.console.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        if !status.success() {
            return Err(self.failure(status, &complaint, &console));
        }
        let reports = fs::read(&self.outcome).and_then(|text| Ok(serde_json::from_slice(&text)?))?;
        let lines = console.lines().filter_map(|line| line.strip_prefix(GUEST_MARK));
        let outputs =
            lines.map(|line| Ok(serde_json::from_str(line)?)).collect::<io::Result<Vec<Output>>>()?;
        Ok(Event::Guest { name: self.name.clone(), pid: self.vmm.id(), outlasted, reports, outputs })
    }

    fn failure(&self, status: ExitStatus, complaint: &str, console: &str) -> io::Error {
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        let end = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
        let name = &self.name;
        io::Error::other(format!(
            "guest {name} failed ({end}): {complaint}\nIts console's last lines:\n{tail}"
        ))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

/// The guests' initramfs with a guest's own job: two archives in a row, which the kernel unpacks both.
fn initrd_with_job(name: &str, commands: &[Vec<String>]) -> io::Result<PathBuf> {
    let path = PathBuf::from(format!("/tmp/{name}.initrd"));
    let mut file = File::create(&path)?;
    io::copy(&mut File::open(GUEST_INITRD)?, &mut file)?;
    let job = serde_json::to_vec(&Job::Guest { commands: commands.to_vec() })?;
    let mut archive = cpio::Writer::new(file);
    archive.file(JOB.trim_start_matches('/'), 0o644, job.len() as u64, &mut job.as_slice())?;
    archive.finish()?;
    Ok(path)
}
