//! Runs guests in the emulated machine: each under our micro-VMM or stock QEMU, a process of its own.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use exitscope_host::region::{DEVICE, Region};
use exitscope_model::Tick;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::host::{Channel, run_steps};
use super::{kernel, qemu, within};
use crate::job::{Event, GUEST_INITRD, GUEST_KERNEL, GUEST_MARK, Guest, JOB, Job, Output, Payload, Step};
use crate::parts::debug_kernel::patience;
use crate::parts::image::Image;

/// Time that guests get to start before the steps of `meanwhile` begin.
const HEAD_START: Duration = Duration::from_millis(400);
/// A guest that takes longer, in seconds, has hung.
const TIME_LIMIT: u32 = 300;
/// The guests' kernel command line: short of log lines, each byte of which is an exit; without XSAVE, which TCG gets
/// wrong in a guest; without tests of ciphers and of entropy, and without REP MOVSB, all of which cost emulated time.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 8250.nr_uarts=1 random.trust_cpu=on noxsave cryptomgr.notests initcall_blacklist=jent_mod_init clearcpuid=erms,fsrm";
/// What it has besides under our micro-VMM, which has little more than a keyboard controller to reset by.
const IN_MICRO_VMM: &str = "reboot=k io_delay=none";
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
    let began = Instant::now();
    thread::scope(|scope| {
        let over = &over;
        let sampler =
            sample_ms.map(|step| scope.spawn(move || sample(began, Duration::from_millis(step), over)));
        let done = run_to_end(guests, began, meanwhile, channel);
        over.store(true, Ordering::Relaxed);
        let ticks = sampler.map(|sampler| sampler.join().map_err(|_| io::Error::other("the sampler died")));
        done?;
        match ticks.transpose()?.transpose()? {
            Some(ticks) => channel.tell(&Event::Timeline { ticks }),
            None => Ok(()),
        }
    })
}

fn run_to_end(guests: &[Guest], began: Instant, meanwhile: &[Step], channel: &mut Channel) -> io::Result<()> {
    let start = |guest| start(guest, began);
    let mut running = guests.iter().map(start).collect::<io::Result<Vec<_>>>()?;
    if !meanwhile.is_empty() {
        thread::sleep(HEAD_START);
        guests.iter().filter(|guest| guest.lingers).try_for_each(|guest| wait_for_outcome(&guest.name))?;
        run_steps(meanwhile, channel)?;
    }
    let outlasted: Vec<bool> =
        running.iter_mut().map(|guest| Ok(!guest.has_ended()?)).collect::<io::Result<_>>()?;
    for (guest, outlasted) in running.into_iter().zip(outlasted) {
        channel.tell(&guest.finish(outlasted)?)?;
    }
    Ok(())
}

/// How long a guest may take on this kernel, in seconds.
fn time_limit() -> u32 {
    TIME_LIMIT * patience(&kernel::release())
}

/// Waits for what a guest is about to do, as long as it may take for all of it.
pub fn wait_for<T>(attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    within(Duration::from_secs(time_limit().into()), Duration::from_millis(10), attempt)
}

/// Where a guest's VMM tells what its vCPUs reported, when they have ended.
fn outcome(name: &str) -> PathBuf {
    PathBuf::from(format!("/tmp/{name}.outcome"))
}

fn wait_for_outcome(name: &str) -> io::Result<()> {
    let unended = || io::Error::other(format!("guest {name} does not come to its end"));
    wait_for(|| outcome(name).exists().then_some(()).ok_or_else(unended))
}

/// Where the process of a guest's VMM is noted.
fn process(name: &str) -> PathBuf {
    PathBuf::from(format!("/tmp/{name}.pid"))
}

/// The process or thread of this number.
fn pid(text: &str) -> io::Result<Pid> {
    let pid = text.parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other(format!("`{text}` is no process")))
}

/// Stops a guest's process, or lets it go on.
pub fn pause(name: &str, on: bool) -> io::Result<()> {
    let pid = pid(&fs::read_to_string(process(name))?)?;
    Ok(kill_process(pid, if on { Signal::STOP } else { Signal::CONT })?)
}

/// Moves each of a guest's vCPUs so many times: to the next CPU, and from the last one to the first.
pub fn migrate(name: &str, times: u32) -> io::Result<()> {
    let mut vcpus = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", fs::read_to_string(process(name))?))? {
        let thread = thread?;
        if fs::read_to_string(thread.path().join("comm"))?.starts_with("vcpu") {
            vcpus.push(pid(&thread.file_name().to_string_lossy())?);
        }
    }
    let cpus = thread::available_parallelism()?.get();
    for round in 0..times as usize {
        for (index, vcpu) in vcpus.iter().enumerate() {
            let mut only = CpuSet::new();
            only.set((round + index) % cpus);
            sched_setaffinity(Some(*vcpu), &only)
                .map_err(|errno| io::Error::other(format!("move {round} of guest {name}: {errno}")))?;
        }
    }
    Ok(())
}

/// Samples the number of exits until it is over.
fn sample(began: Instant, step: Duration, over: &AtomicBool) -> io::Result<Vec<Tick>> {
    let clock = Clock { began, region: Some(Region::open(Path::new(DEVICE)).map_err(io::Error::other)?) };
    let mut ticks = Vec::new();
    loop {
        let last = over.load(Ordering::Relaxed);
        ticks.push(clock.tick());
        if last {
            return Ok(ticks);
        }
        thread::sleep(step);
    }
}

/// The timeline's clock: tells the time, and the exits until then if our module counts them.
pub struct Clock {
    began: Instant,
    region: Option<Region>,
}

impl Clock {
    /// A clock that began then.
    pub fn since(began: Instant) -> Self {
        Self { began, region: Region::open(Path::new(DEVICE)).ok() }
    }

    /// Now.
    pub fn tick(&self) -> Tick {
        let exits = self.region.as_ref().map_or(0, Region::exits);
        Tick { t_ms: self.began.elapsed().as_millis() as u64, exits }
    }
}

/// A guest that is running, under whatever runs it.
pub trait Vmm {
    /// Whether it has ended.
    fn has_ended(&mut self) -> io::Result<bool>;
    /// Waits for its end, and says how that was; `outlasted` is [`Event::Guest`]'s.
    fn finish(self: Box<Self>, outlasted: bool) -> io::Result<Event>;
}

/// Starts a guest under what is to run it.
fn start(guest: &Guest, began: Instant) -> io::Result<Box<dyn Vmm>> {
    Ok(match &guest.payload {
        Payload::Flat { workload, iterations, batch } => Box::new(Running::start(guest, |vmm| {
            vmm.args(["--workload", workload, "--memory", "16"]);
            vmm.args(["--iterations", &iterations.to_string(), "--batch", &batch.to_string()]);
            Ok(())
        })?),
        Payload::Linux { commands } => Box::new(Running::start(guest, |vmm| {
            let job = Job::Guest { modules: vec![], port: false, system: None, commands: commands.clone() };
            let initrd = initrd_with_job(&guest.name, &job, &[])?;
            vmm.args(["--kernel", GUEST_KERNEL, "--memory", "192"]);
            vmm.args(["--cmdline", &format!("{COMMAND_LINE} {IN_MICRO_VMM}"), "--initrd"]).arg(initrd);
            Ok(())
        })?),
        Payload::Qemu { commands, debian } => {
            Box::new(qemu::Running::start(guest, commands, *debian, began)?)
        }
    })
}

/// A guest whose micro-VMM is running; the VMM is killed when this is dropped.
struct Running {
    name: String,
    vmm: Child,
    outcome: PathBuf,
    console: Option<thread::JoinHandle<String>>,
}

impl Running {
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
        let console = vmm.stdout.take().map(|mut stdout| {
            thread::spawn(move || {
                let mut text = Vec::new();
                let _ = stdout.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        Ok(Self { name: guest.name.clone(), vmm, outcome, console })
    }
}

impl Vmm for Running {
    fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.vmm.try_wait()?.is_some())
    }

    fn finish(mut self: Box<Self>, outlasted: bool) -> io::Result<Event> {
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
        let lines = console.lines().filter_map(|line| line.strip_prefix(GUEST_MARK));
        let outputs =
            lines.map(|line| Ok(serde_json::from_str(line)?)).collect::<io::Result<Vec<Output>>>()?;
        let (name, pid) = (self.name.clone(), self.vmm.id());
        Ok(Event::Guest { name, pid, outlasted, reports, outputs, marks: vec![] })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

/// The error of a guest that failed, with the end of its console.
pub fn failure(name: &str, status: ExitStatus, complaint: &str, console: &str) -> io::Error {
    let lines: Vec<&str> = console.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    let end = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
    io::Error::other(format!("guest {name} failed ({end}): {complaint}\nIts console's last lines:\n{tail}"))
}

/// The guests' initramfs with a guest's own job, and these files of this machine's: two archives in a row, which
/// the kernel unpacks both.
pub fn initrd_with_job(name: &str, job: &Job, files: &[PathBuf]) -> io::Result<PathBuf> {
    let path = PathBuf::from(format!("/tmp/{name}.initrd"));
    let mut initrd = File::create(&path)?;
    io::copy(&mut File::open(GUEST_INITRD)?, &mut initrd)?;
    let mut image = Image::new();
    let fill = || {
        files.iter().try_for_each(|file| image.file(&file.to_string_lossy(), file, 0o644).map(drop))?;
        image.bytes(JOB, serde_json::to_vec(job).unwrap_or_default(), 0o644)?.write(initrd)
    };
    fill().map_err(io::Error::other)?;
    Ok(path)
}
