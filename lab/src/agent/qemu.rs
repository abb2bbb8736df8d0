//! Runs a guest under stock QEMU in the emulated machine, and notes when the phases of its boot begin.
//!
//! The guest tells through a virtio port of its own, which here is QEMU's stdin. When the firmware is done is
//! seen from outside, so that it costs the guest no exit: QEMU traces what is read from its fw_cfg device,
//! and the last read is the boot loader's, on its jump into the kernel.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use exitscope_model::Tick;

use super::kernel;
use super::vmm::{COMMAND_LINE, Clock, Vmm, failure, initrd_with_job};
use super::wait::retry_for;
use crate::job::{
    Event, GUEST_KERNEL, Guest, GuestMessage, Insert, JOB, Job, KERNEL, Output, PhaseStart, SHUTDOWN, System,
};
use crate::parts::debug_kernel::timeout_factor;
use crate::parts::image::QEMU_PROGRAM;

/// A guest that takes longer has hung: Debian with several vCPUs on a busy computer takes two minutes.
const TIME_LIMIT: Duration = Duration::from_secs(300);
/// How often we look whether something has happened.
const POLL: Duration = Duration::from_millis(5);
/// What the emulated machine may call the disk with the Debian system, and how long that may take to appear.
const DISKS: [&str; 2] = ["/dev/vda", "/dev/pmem0"];
const DISK_WAIT: Duration = Duration::from_secs(10);
/// What the guest calls it, and the module that drives it there.
const GUEST_DISK: &str = "/dev/vda";
const GUEST_DISK_MODULE: &str = "virtio_blk";
/// The event of QEMU's own that is traced; its lines begin with it.
const TRACE: &str = "fw_cfg_select";

/// A guest whose QEMU is running; it is killed when this is dropped.
pub struct Running {
    name: String,
    qemu: Child,
    started: Instant,
    time_limit: Duration,
    console: PathBuf,
    words: Option<JoinHandle<io::Result<Messages>>>,
    log: Option<JoinHandle<io::Result<Log>>>,
}

/// What the guest has sent.
#[derive(Default)]
struct Messages {
    outputs: Vec<Output>,
    phase_starts: Vec<PhaseStart>,
}

/// What QEMU has said.
#[derive(Default)]
struct Log {
    kernel_begins: Option<Tick>,
    complaint: String,
}

impl Running {
    /// Starts a guest that runs these commands, on the disk's Debian or in its initramfs.
    pub fn start(guest: &Guest, commands: &[Vec<String>], debian: bool, began: Instant) -> io::Result<Self> {
        let console = PathBuf::from(format!("/tmp/{}.console", guest.name));
        let initrd = initrd(&guest.name, commands, debian)?;
        let (port, theirs) = UnixStream::pair()?;
        let mut command = Command::new(QEMU_PROGRAM);
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-trace", TRACE])
            .args(["-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "320"])
            .args(["-smp", &guest.vcpus.to_string()])
            .args(["-kernel", GUEST_KERNEL, "-append", COMMAND_LINE, "-initrd"])
            .arg(initrd)
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-device", "virtio-serial-pci", "-chardev", "socket,id=port,fd=0"])
            .args(["-device", "virtserialport,chardev=port,name=exitscope"]);
        if debian {
            let drive = format!("file={},format=raw,if=none,id=disk,cache=unsafe", disk()?);
            command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
        }
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut qemu = command.spawn()?;
        let stderr = qemu.stderr.take();
        Ok(Self {
            name: guest.name.clone(),
            qemu,
            started: Instant::now(),
            time_limit: TIME_LIMIT * timeout_factor(&kernel::release()),
            console,
            words: Some(thread::spawn(move || listen(port, &Clock::since(began)))),
            log: stderr.map(|stderr| thread::spawn(move || read_log(stderr, &Clock::since(began)))),
        })
    }

    /// The error of a guest that failed, with what it or QEMU complained.
    fn failure(&self, status: ExitStatus, complaint: &str) -> io::Error {
        let console = fs::read(&self.console).unwrap_or_default();
        let complaint = match self.started.elapsed() {
            elapsed if elapsed > self.time_limit => format!("it was stopped after {} s", elapsed.as_secs()),
            _ => complaint.to_owned(),
        };
        failure(&self.name, status, &complaint, &String::from_utf8_lossy(&console))
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.qemu.try_wait()? {
                return Ok(status);
            }
            if self.started.elapsed() > self.time_limit {
                self.qemu.kill()?;
            }
            thread::sleep(POLL);
        }
    }
}

impl Vmm for Running {
    fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.qemu.try_wait()?.is_some())
    }

    fn finish(mut self: Box<Self>, still_running: bool) -> io::Result<Event> {
        let status = self.wait()?;
        let words = join(self.words.take());
        let Log { kernel_begins, complaint } = join(self.log.take())?;
        if !status.success() {
            return Err(self.failure(status, &complaint));
        }
        let Messages { outputs, mut phase_starts } = words?;
        if phase_starts.last().is_none_or(|mark| mark.phase != SHUTDOWN) {
            return Err(self.failure(status, "it ended before its work was done"));
        }
        if let Some(at) = kernel_begins {
            phase_starts.insert(0, PhaseStart { phase: KERNEL.into(), at });
        }
        let (name, pid) = (self.name.clone(), self.qemu.id());
        Ok(Event::Guest { name, pid, still_running, reports: vec![], outputs, phase_starts })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn join<T: Default>(reader: Option<JoinHandle<io::Result<T>>>) -> io::Result<T> {
    let read = reader.map(|reader| reader.join().map_err(|_| io::Error::other("a guest's reader died"))?);
    Ok(read.transpose()?.unwrap_or_default())
}

/// Receives the guest's messages, and notes when each phase begins.
fn listen(port: UnixStream, clock: &Clock) -> io::Result<Messages> {
    let mut words = Messages::default();
    for line in BufReader::new(port).lines() {
        match serde_json::from_str(&line?)? {
            GuestMessage::Phase(phase) => words.phase_starts.push(PhaseStart { phase, at: clock.tick() }),
            GuestMessage::Output(output) => words.outputs.push(output),
        }
    }
    Ok(words)
}

/// Takes in QEMU's trace as it comes, and whatever else it says.
fn read_log(stderr: ChildStderr, clock: &Clock) -> io::Result<Log> {
    let mut log = Log::default();
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        if line.starts_with(TRACE) {
            log.kernel_begins = Some(clock.tick());
        } else {
            log.complaint += &(line + "\n");
        }
    }
    Ok(log)
}

/// The guest's initramfs, with the modules of its devices.
fn initrd(name: &str, commands: &[Vec<String>], debian: bool) -> io::Result<PathBuf> {
    let Job::Host { guest_modules, .. } = serde_json::from_slice(&fs::read(JOB)?)? else {
        return Err(io::Error::other(format!("{JOB} is no host's job")));
    };
    let files: Vec<PathBuf> = guest_modules.iter().map(|insert| insert.path.clone().into()).collect();
    let is_disks = |insert: &Insert| insert.path.contains(GUEST_DISK_MODULE);
    let (disks, modules): (Vec<_>, Vec<_>) = guest_modules.into_iter().partition(is_disks);
    let system = debian.then(|| System { disk: GUEST_DISK.into(), modules: disks });
    initrd_with_job(name, &Job::Guest { modules, port: true, system, commands: commands.to_vec() }, &files)
}

/// The device of the emulated machine's disk, once it is there.
fn disk() -> io::Result<&'static str> {
    retry_for(DISK_WAIT, POLL, || {
        let disk = DISKS.into_iter().find(|disk| Path::new(disk).exists());
        disk.ok_or_else(|| io::Error::other(format!("no disk: none of {} has appeared", DISKS.join(", "))))
    })
}
