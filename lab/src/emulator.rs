//! Starts an emulated machine and reads the lines that it sends, until its end or a deadline.
//!
//! [`qemu`] emulates AMD CPUs, [`bochs`] Intel ones; each says how its machine's lines come out (its [`Link`]).
//! The emulator never outlives its caller: it is killed when [`Running`] is dropped, and by the kernel
//! (`PR_SET_PDEATHSIG`, set by `setpriv`) when the thread that started it ends in any other way.

pub mod bochs;
mod machine;
pub mod qemu;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use machine::Prepared;
pub use machine::{Emulator, Link, Machine, Vendor};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::error::{Console, Error};
use crate::frame::Decoder;
use crate::parts::tool::{QEMU, SETPRIV};

/// A line longer than this is a fault of the machine, not a result.
const MAX_LINE: usize = 256 << 20;
/// How many lines of the console an error shows.
const TAIL_LINES: usize = 15;
/// An emulator that sends nothing and uses no CPU time for so long hangs: the timer interrupts of its kernel alone would
/// cost some.
const HANG_TIMEOUT: Duration = Duration::from_secs(10);
/// How often we look whether an emulator that closed its channel has ended.
const END_POLL: Duration = Duration::from_millis(2);

/// Finds the emulator and asks what it is. One that cannot run the lab is an error.
pub fn probe(vendor: Vendor) -> Result<Emulator, Error> {
    match vendor {
        Vendor::Amd => qemu::probe(),
        Vendor::Intel => bochs::probe(),
    }
}

impl Machine {
    /// A machine with the lab's usual hardware: one CPU, as no emulator is faster with more.
    pub fn new(
        vendor: Vendor,
        kernel: impl Into<PathBuf>,
        initrd: impl Into<PathBuf>,
        console_log: impl Into<PathBuf>,
    ) -> Self {
        let (command_line, memory_mib) = match vendor {
            Vendor::Amd => (qemu::COMMAND_LINE, qemu::MEMORY_MIB),
            Vendor::Intel => (bochs::COMMAND_LINE, bochs::MEMORY_MIB),
        };
        Self {
            vendor,
            kernel: kernel.into(),
            initrd: initrd.into(),
            command_line: command_line.into(),
            memory_mib,
            cpus: 1,
            icount: false,
            console_log: console_log.into(),
            deadline: Duration::from_secs(300),
            disk: None,
        }
    }

    /// Starts the machine. Keep the thread that called this alive: the machine ends with it.
    pub fn start(&self) -> Result<Running, Error> {
        let emulator = probe(self.vendor)?;
        // So that an old console is never taken for this machine's.
        File::create(&self.console_log).map_err(Error::io("write", &self.console_log))?;
        let started = Instant::now();
        let Prepared { arguments, stdin, channel, files } = match self.vendor {
            Vendor::Amd => qemu::prepare(self, &emulator)?,
            Vendor::Intel => bochs::prepare(self, &emulator)?,
        };
        let io = |what| Error::io(what, &emulator.path);
        let stderr = tempfile::tempfile().map_err(io("make a log for"))?;
        let child = Command::new(SETPRIV.find()?)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&emulator.path)
            .args(arguments)
            // Bochs draws its screen through curses, which wants to know on what.
            .env("TERM", "xterm")
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(stderr.try_clone().map_err(io("make a log for"))?)
            .spawn()
            .map_err(io("start"))?;
        Ok(Running {
            process: Process { child, status: None },
            channel,
            pending: Vec::new(),
            scanned: 0,
            stderr,
            emulator,
            console_log: self.console_log.clone(),
            started,
            deadline: self.deadline,
            phase: "boots".into(),
            link: self.vendor.link(),
            decoder: Decoder::default(),
            _files: files,
        })
    }
}

/// The emulator's process, which does not outlive this value.
#[derive(Debug)]
struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// How it ended, if it has.
    fn poll(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// CPU time that it has used, in the kernel's ticks: utime and stime of proc(5).
    fn time_used(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace().skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    }

    fn stop(&mut self) {
        if self.poll().is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A machine that has been started. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    process: Process,
    channel: OwnedFd,
    /// What has come in and is not yet a line.
    pending: Vec<u8>,
    /// How much of that holds no end of a line.
    scanned: usize,
    stderr: File,
    emulator: Emulator,
    console_log: PathBuf,
    started: Instant,
    deadline: Duration,
    phase: String,
    link: Link,
    decoder: Decoder,
    _files: Vec<OwnedFd>,
}

impl Running {
    /// How long ago the machine was started.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Says what the machine does from now on, for errors: `boots the guest`.
    pub fn phase(&mut self, phase: impl Into<String>) {
        self.phase = phase.into();
    }

    /// The next line that the machine sends, without its end; `None` when the machine has powered off.
    ///
    /// Fails when the deadline passes (the machine is then stopped), when the emulator fails, and when the
    /// machine's kernel panics.
    pub fn next_line(&mut self) -> Result<Option<String>, Error> {
        loop {
            if let Some(line) = self.take_line() {
                let line = match self.link {
                    Link::Port => line,
                    Link::Frames => match self.decoder.push(&line) {
                        Some(line) => line,
                        None => continue,
                    },
                };
                let text = |_| self.channel_fault("bytes that are no UTF-8");
                return String::from_utf8(line).map(Some).map_err(text);
            }
            if self.pending.len() > MAX_LINE {
                self.process.stop();
                return Err(self.channel_fault("a line without an end"));
            }
            if !self.receive()? {
                self.wait_for_end()?;
                return Ok(None);
            }
        }
    }

    /// How many instructions the machine had executed when it sent its last line, if its emulator tells.
    pub fn instructions(&self) -> Option<u64> {
        (self.link == Link::Frames).then_some(self.decoder.instructions)
    }

    /// Waits until the machine has powered off. What it still sends is dropped.
    pub fn finish(mut self) -> Result<(), Error> {
        while self.next_line()?.is_some() {}
        Ok(())
    }

    /// The error to report when the machine has ended, but has not said all that was expected.
    pub fn unfinished(&self) -> Error {
        Error::Unfinished { phase: self.phase.clone(), console: self.console() }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        match self.pending[self.scanned..].iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let end = self.scanned + end;
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.truncate(end);
                self.scanned = 0;
                Some(line)
            }
            None => {
                self.scanned = self.pending.len();
                None
            }
        }
    }

    /// Waits for bytes from the machine; false at the end of its channel.
    fn receive(&mut self) -> Result<bool, Error> {
        let mut buffer = [0; 1 << 16];
        let left = self.time_left()?;
        let timeout = Timespec::try_from(left.min(HANG_TIMEOUT)).ok();
        let used = self.process.time_used();
        let mut ready = [PollFd::new(&self.channel, PollFlags::IN)];
        let read = match rustix::event::poll(&mut ready, timeout.as_ref()) {
            Ok(0) if left > HANG_TIMEOUT && used.is_some() && used == self.process.time_used() => {
                self.process.stop();
                return Err(Error::Hung { phase: self.phase.clone(), console: self.console() });
            }
            Ok(0) => return self.receive_more(),
            Ok(_) => rustix::io::read(&self.channel, &mut buffer).map_err(io::Error::from),
            Err(errno) => Err(errno.into()),
        };
        match read {
            // A last line may lack its end.
            Ok(0) if self.pending.is_empty() => Ok(false),
            Ok(0) => {
                self.pending.push(b'\n');
                Ok(true)
            }
            Ok(size) => {
                self.pending.extend_from_slice(&buffer[..size]);
                Ok(true)
            }
            Err(error) => match error.kind() {
                // Out of time, which the next call finds, or interrupted by a signal.
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => self.receive_more(),
                // The emulator died with bytes for the machine unread.
                ErrorKind::ConnectionReset => Ok(false),
                _ => Err(Error::io("read from", &self.emulator.path)(error)),
            },
        }
    }

    fn receive_more(&mut self) -> Result<bool, Error> {
        self.time_left().map(|_| true)
    }

    /// What is left until the deadline; if nothing is, stops the machine.
    fn time_left(&mut self) -> Result<Duration, Error> {
        let after = self.elapsed();
        match self.deadline.checked_sub(after) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => {
                self.process.stop();
                Err(Error::TimedOut { phase: self.phase.clone(), after, console: self.console() })
            }
        }
    }

    /// Waits for the emulator, whose channel is closed, to end, and looks how it ended.
    fn wait_for_end(&mut self) -> Result<(), Error> {
        let status = loop {
            match self.process.poll() {
                Some(status) => break status,
                None => std::thread::sleep(END_POLL.min(self.time_left()?)),
            }
        };
        let console = self.console();
        let phase = self.phase.clone();
        // Bochs knows no other way to end by itself than to panic.
        if !status.success() && !self.decoder.has_shut_down() {
            let stderr = format!("{}{}", self.stderr(), self.decoder.panic());
            if stderr.contains("invalid accelerator") {
                return Err(QEMU.unfit(self.emulator.path.display().to_string(), stderr));
            }
            return Err(Error::EmulatorFailed { phase, status, stderr, console });
        }
        match panic_in(&console_lines(&self.console_log)) {
            Some(message) => Err(Error::Panicked { phase, message, console }),
            None => Ok(()),
        }
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        let read = self.stderr.rewind().and_then(|()| self.stderr.read_to_string(&mut text));
        read.map_or_else(|error| error.to_string(), |_| text.trim().to_owned())
    }

    fn channel_fault(&self, reason: &'static str) -> Error {
        Error::Channel { phase: self.phase.clone(), reason, console: self.console() }
    }

    fn console(&self) -> Console {
        let mut tail = console_lines(&self.console_log);
        tail.drain(..tail.len().saturating_sub(TAIL_LINES));
        Console { log: self.console_log.clone(), tail }
    }
}

/// The last lines of a console, without what a terminal would act upon.
fn console_lines(log: &Path) -> Vec<String> {
    const MAX_BYTES: u64 = 64 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(MAX_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.lines().map(plain).filter(|line| !line.trim().is_empty()).collect()
}

/// A line without escape sequences and other control characters.
fn plain(line: &str) -> String {
    let mut characters = line.chars();
    let mut plain = String::new();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                characters.find(|c| c.is_ascii_alphabetic());
            }
            '\t' => plain.push(' '),
            character if character.is_control() => {}
            character => plain.push(character),
        }
    }
    plain.trim_end().to_owned()
}

fn panic_in(console: &[String]) -> Option<String> {
    const PANIC_PREFIX: &str = "Kernel panic - not syncing: ";
    let line = console.iter().find(|line| line.contains(PANIC_PREFIX))?;
    Some(line.split(PANIC_PREFIX).nth(1)?.to_owned())
}

#[cfg(test)]
mod tests;
