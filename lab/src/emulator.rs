//! Starts an emulated machine and reads the lines that it sends, until its end or a deadline.
//!
//! The machine's channel is a virtio-serial port named `exitscope` (inside, [`CHANNEL`]); outside it is
//! the emulator's stdin, one end of a socket pair, so that it needs no file and ends when either side does.
//! The emulator never outlives its caller: it is killed when [`Running`] is dropped, and by the kernel
//! (`PR_SET_PDEATHSIG`, set by `setpriv`) when the thread that started it ends in any other way.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Console, Error};
use crate::tool::{self, QEMU, SETPRIV};

/// A kernel command line that boots a stock kernel fast and ends the emulator when the kernel panics.
/// The self-tests of its ciphers, which nothing here uses, take a tenth of an emulated boot.
pub const COMMAND_LINE: &str = "console=ttyS0 panic=-1 cryptomgr.notests";

/// The board. QEMU's `microvm` boots in three quarters of the time, but has nothing that a stock kernel can
/// calibrate its time stamp counter by: the kernel then gives that up as a clock, and at times hangs.
pub const BOARD: &str = "q35";

/// The machine's end of its channel.
pub const CHANNEL: &str = "/dev/vport0p1";

/// The oldest emulator whose SVM is known to run KVM: that of Debian 12.
const OLDEST: (u32, u32) = (7, 2);
/// A line longer than this is a fault of the machine, not a result.
const LONGEST_LINE: usize = 256 << 20;
/// How many lines of the console an error shows.
const TAIL_LINES: usize = 15;
/// How often we look whether an emulator that closed its channel has ended.
const END_POLL: Duration = Duration::from_millis(2);

/// An emulator on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulator {
    /// The program.
    pub path: PathBuf,
    /// Its version: major, minor, patch.
    pub version: (u32, u32, u32),
}

/// Finds the emulator and asks for its version. An emulator that is too old for the lab is an error.
pub fn probe() -> Result<Emulator, Error> {
    let path = QEMU.find()?;
    let text = tool::output(Command::new(&path).arg("--version").stdin(Stdio::null()))?;
    let first = text.lines().next().unwrap_or_default().to_owned();
    match parse_version(&first) {
        Some(version) if (version.0, version.1) >= OLDEST => Ok(Emulator { path, version }),
        Some(_) => Err(Error::EmulatorUnfit {
            emulator: first,
            reason: format!("its SVM cannot run KVM (before {}.{})", OLDEST.0, OLDEST.1),
        }),
        None => Err(Error::EmulatorUnfit {
            emulator: path.display().to_string(),
            reason: format!("`--version` said `{first}`"),
        }),
    }
}

fn parse_version(line: &str) -> Option<(u32, u32, u32)> {
    let text = line.strip_prefix("QEMU emulator version ")?.split([' ', '(']).next()?;
    let mut numbers = text.split('.').map(|number| {
        let digits = number.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().ok()
    });
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

/// A machine to emulate.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The kernel: a bzImage, or an ELF file with a PVH entry point.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub command_line: String,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Number of CPUs.
    pub cpus: u32,
    /// The board, as QEMU's `-machine` takes it.
    pub board: String,
    /// The CPU model with its features, as QEMU's `-cpu` takes it.
    pub cpu: String,
    /// Whether the clock counts instructions, so that costs are exact and repeatable. TCG only.
    pub icount: bool,
    /// Where the serial console goes.
    pub console_log: PathBuf,
    /// How long the machine may run in all.
    pub deadline: Duration,
    /// The image of its disk; what the machine writes to it is gone when it ends.
    pub disk: Option<PathBuf>,
    /// More arguments for the emulator.
    pub extra: Vec<OsString>,
}

impl Machine {
    /// A machine with the lab's usual hardware.
    pub fn new(
        kernel: impl Into<PathBuf>,
        initrd: impl Into<PathBuf>,
        console_log: impl Into<PathBuf>,
    ) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: initrd.into(),
            command_line: COMMAND_LINE.into(),
            memory_mib: 1024,
            // One: kernels patch code that other CPUs run (static keys, tracepoints), and QEMU 7.2 with a thread
            // per CPU now and then runs the stale INT3 of such a patch; with CPUs that take turns, KVM's guests
            // hang now and then. With one CPU neither was ever seen.
            cpus: 1,
            board: BOARD.into(),
            cpu: "max".into(),
            icount: false,
            console_log: console_log.into(),
            deadline: Duration::from_secs(300),
            disk: None,
            extra: Vec::new(),
        }
    }

    /// Starts the machine. Keep the thread that called this alive: the machine ends with it.
    pub fn start(&self) -> Result<Running, Error> {
        let emulator = probe()?;
        let io = |what| Error::io(what, &emulator.path);
        let (channel, theirs) = UnixStream::pair().map_err(io("make a channel for"))?;
        let stderr = tempfile::tempfile().map_err(io("make a log for"))?;
        // So that an old console is never taken for this machine's.
        File::create(&self.console_log).map_err(Error::io("write", &self.console_log))?;
        let child = Command::new(SETPRIV.find()?)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&emulator.path)
            .args(self.arguments())
            .stdin(OwnedFd::from(theirs))
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
            started: Instant::now(),
            deadline: self.deadline,
            phase: "boots".into(),
        })
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        add("-accel", "tcg".into());
        if self.icount {
            add("-icount", "shift=0,sleep=off".into());
        }
        add("-machine", self.board.clone().into());
        add("-cpu", self.cpu.clone().into());
        add("-smp", self.cpus.to_string().into());
        add("-m", self.memory_mib.to_string().into());
        add("-display", "none".into());
        add("-kernel", self.kernel.clone().into());
        add("-initrd", self.initrd.clone().into());
        add("-append", self.command_line.clone().into());
        let mut console = OsString::from("file,id=console,path=");
        console.push(quoted(&self.console_log));
        add("-chardev", console);
        add("-serial", "chardev:console".into());
        add("-device", "virtio-serial-pci".into());
        add("-chardev", "socket,id=channel,fd=0".into());
        add("-device", "virtserialport,chardev=channel,name=exitscope".into());
        if let Some(disk) = &self.disk {
            let mut drive = OsString::from("if=virtio,format=raw,snapshot=on,file=");
            drive.push(quoted(disk));
            add("-drive", drive);
        }
        arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
        arguments.extend(self.extra.iter().cloned());
        arguments
    }
}

/// A path as a value in one of QEMU's lists, where a comma is written twice.
fn quoted(path: &Path) -> OsString {
    let mut quoted = OsString::new();
    let text = path.to_string_lossy();
    for (index, part) in text.split(',').enumerate() {
        if index > 0 {
            quoted.push(",,");
        }
        quoted.push(part);
    }
    quoted
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
    channel: UnixStream,
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
                let text = |_| self.channel_fault("bytes that are no UTF-8");
                return String::from_utf8(line).map(Some).map_err(text);
            }
            if self.pending.len() > LONGEST_LINE {
                self.process.stop();
                return Err(self.channel_fault("a line without an end"));
            }
            if !self.receive()? {
                self.wait_for_end()?;
                return Ok(None);
            }
        }
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
        let read = self.channel.set_read_timeout(Some(left)).and_then(|()| self.channel.read(&mut buffer));
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
        if !status.success() {
            let stderr = self.stderr();
            if stderr.contains("invalid accelerator") {
                let emulator = self.emulator.path.display().to_string();
                return Err(Error::EmulatorUnfit { emulator, reason: stderr });
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
    const ENOUGH: u64 = 64 << 10;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let start = file.metadata()?.len().saturating_sub(ENOUGH);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(ENOUGH).read_to_end(&mut bytes)?;
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
    const MARK: &str = "Kernel panic - not syncing: ";
    let line = console.iter().find(|line| line.contains(MARK))?;
    Some(line.split(MARK).nth(1)?.to_owned())
}

#[cfg(test)]
#[path = "emulator_tests.rs"]
mod tests;
