//! Waits: for a command that is watched, for a moment, for Ctrl-C.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::output::{explain, is_broken_pipe, tell};

/// Notes Ctrl-C and requests to end, which then end the watching and not this process.
pub struct Stop {
    interrupted: Arc<AtomicBool>,
    terminated: Arc<AtomicBool>,
}

impl Stop {
    /// From now on.
    pub fn watch() -> anyhow::Result<Self> {
        let stop = Self { interrupted: Arc::default(), terminated: Arc::default() };
        for (signal, flag) in [(SIGINT, &stop.interrupted), (SIGTERM, &stop.terminated)] {
            signal_hook::flag::register(signal, flag.clone()).context("cannot wait for Ctrl-C")?;
        }
        Ok(stop)
    }

    /// Whether it is time to end.
    pub fn is_asked_for(&self) -> bool {
        [&self.interrupted, &self.terminated].iter().any(|flag| flag.load(Ordering::Relaxed))
    }
}

/// A command that runs.
pub struct Running {
    name: String,
    child: Child,
    /// Tells of its end; `None` where the system has no such thing, then it is asked now and then.
    descriptor: Option<OwnedFd>,
    /// Whether a request to end has been passed on to it.
    passed_on: bool,
}

impl Running {
    /// Starts a command, its program first. With `aside` its output goes to our stderr, as our stdout is for a program;
    /// `prepare` is called before.
    pub fn start(
        command: &[String],
        aside: bool,
        prepare: impl FnOnce(&mut Command),
    ) -> anyhow::Result<Self> {
        let [program, arguments @ ..] = command else { return Err(anyhow!("there is no command")) };
        let mut command = Command::new(program);
        command.args(arguments);
        if aside {
            command.stdout(io::stderr().as_fd().try_clone_to_owned().context("there is no stderr")?);
        }
        prepare(&mut command);
        let child = command.spawn().with_context(|| format!("{program} cannot be started"))?;
        let descriptor = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        Ok(Self { name: program.clone(), child, descriptor, passed_on: false })
    }

    /// Waits for its end: its own exit status, or 128 and the signal that killed it, as shells have it, which is told on
    /// stderr. A request to end is passed on meanwhile.
    pub fn finish(mut self, stop: &Stop) -> anyhow::Result<u8> {
        wait(Some(&mut self), None, false, stop, || {});
        let status = self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        if let Some(signal) = status.signal() {
            tell(format_args!("{}: killed by signal {signal}", self.name));
            return Ok(128_u8.saturating_add(signal as u8));
        }
        Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
    }

    /// Waits for its end, whatever has become of the watching, which is told at once: its exit status, or 1 instead of 0
    /// when the watching has failed. That nobody reads our output any more is no failure.
    pub fn finish_after(self, watched: &anyhow::Result<()>, stop: &Stop) -> anyhow::Result<u8> {
        let failed = tell_failure(watched);
        let status = self.finish(stop)?;
        Ok(if failed { status.max(1) } else { status })
    }

    fn forward(&mut self, signal: Signal) {
        // Until it has been waited for the number is its own.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// Passes a request to end on, once.
    fn pass_on(&mut self, stop: &Stop) {
        if stop.terminated.load(Ordering::Relaxed) && !std::mem::replace(&mut self.passed_on, true) {
            self.forward(Signal::TERM);
        }
    }

    /// Whether it has ended, where no descriptor tells.
    fn has_ended(&mut self) -> bool {
        self.descriptor.is_none() && matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }
}

/// Tells an error, if it is one: that nobody reads our output any more is none.
fn tell_failure(result: &anyhow::Result<()>) -> bool {
    let failed = result.as_ref().err().filter(|error| !is_broken_pipe(error));
    failed.inspect(|error| tell(explain(error))).is_some()
}

/// The status of a command that has ended, or 1 instead of 0 when what came after it has failed, which is told.
pub fn as_status(after: anyhow::Result<()>, status: u8) -> anyhow::Result<u8> {
    match status {
        0 => after.map(|()| 0),
        status => {
            tell_failure(&after);
            Ok(status)
        }
    }
}

/// What ended the waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The command has ended, or without one the user wants to end.
    Over,
    /// The moment has come.
    Time,
    /// Nobody reads stdout any more.
    Unread,
}

impl Wake {
    /// Whether it is the end; an error where nobody reads what we write.
    pub fn is_over(self) -> io::Result<bool> {
        if self == Self::Unread { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(self == Self::Over) }
    }
}

/// The next moment of a rhythm: those that have been missed are left out.
pub fn next(start: Instant, step: Duration) -> Option<Instant> {
    let passed = start.elapsed().as_nanos() / step.as_nanos().max(1);
    start.checked_add(step.checked_mul(u32::try_from(passed + 1).ok()?)?)
}

/// Waits until a moment, if any, at most; calls `meanwhile` now and then. With a command, only its end is the end:
/// Ctrl-C reaches it, too, and a request to end is passed on. With `stdout`, also until nobody reads that any more: we might
/// have nothing to write, and never learn it.
pub fn wait(
    mut running: Option<&mut Running>,
    until: Option<Instant>,
    stdout: bool,
    stop: &Stop,
    mut meanwhile: impl FnMut(),
) -> Wake {
    const PAUSE: Duration = Duration::from_millis(50);
    loop {
        if stop.is_asked_for() && running.is_none() {
            return Wake::Over;
        }
        if let Some(running) = &mut running {
            running.pass_on(stop);
            if running.has_ended() {
                return Wake::Over;
            }
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let pause = left.map_or(PAUSE, |left| left.min(PAUSE));
        let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
        let output = io::stdout();
        let mut descriptors: Vec<PollFd<'_>> = running
            .iter()
            .filter_map(|running| running.descriptor.as_ref())
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN))
            .collect();
        let commands = descriptors.len();
        if stdout {
            descriptors.push(PollFd::from_borrowed_fd(output.as_fd(), PollFlags::empty()));
        }
        match poll(&mut descriptors, Some(&timeout)) {
            // The end of the command comes first: the moment may have been missed.
            Ok(1..) if descriptors[..commands].iter().any(|command| !command.revents().is_empty()) => {
                return Wake::Over;
            }
            Ok(1..) => return Wake::Unread,
            _ if left.is_some_and(|left| left.is_zero()) => return Wake::Time,
            Ok(0) | Err(Errno::INTR) => meanwhile(),
            // Cannot happen; without a pause this would be a busy loop.
            Err(_) => std::thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        Running::start(&["/bin/sh".into(), "-c".into(), script.into()], false, |_| {}).unwrap()
    }

    fn ends_with(script: &str) -> u8 {
        let (mut running, stop) = (shell(script), Stop::watch().unwrap());
        assert_eq!(wait(Some(&mut running), None, false, &stop, || {}), Wake::Over);
        running.finish(&stop).unwrap()
    }

    #[test]
    fn the_commands_status_is_passed_on() {
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            assert_eq!(ends_with(script), code, "{script}");
        }
    }

    #[test]
    fn an_end_is_noticed_though_the_moment_has_passed() {
        let (mut running, stop) = (shell("exit 0"), Stop::watch().unwrap());
        assert_eq!(wait(Some(&mut running), None, false, &stop, || {}), Wake::Over);
        assert_eq!(wait(Some(&mut running), Some(Instant::now()), false, &stop, || {}), Wake::Over);
        running.finish(&stop).unwrap();
        let mut long = shell("sleep 5");
        assert_eq!(wait(Some(&mut long), Some(Instant::now()), false, &stop, || {}), Wake::Time);
        long.forward(Signal::KILL);
        long.finish(&stop).unwrap();
    }

    #[test]
    fn a_request_to_end_reaches_the_command_once_and_is_waited_for() {
        // It would end by a second one.
        let mut running = shell("trap 'trap - TERM; sleep 0.3; exit 5' TERM; while :; do sleep 0.05; done");
        std::thread::sleep(Duration::from_millis(200));
        let stop = Stop { interrupted: Arc::default(), terminated: Arc::new(true.into()) };
        for _ in 0..3 {
            wait(Some(&mut running), Some(Instant::now() + Duration::from_millis(20)), false, &stop, || {});
        }
        assert_eq!(running.finish(&stop).unwrap(), 5);
    }

    #[test]
    fn the_end_is_noticed_without_a_descriptor() {
        let (running, stop) = (shell("exit 3"), Stop::watch().unwrap());
        let mut running = Running { descriptor: None, ..running };
        assert_eq!(wait(Some(&mut running), None, false, &stop, || {}), Wake::Over);
        assert_eq!(running.finish(&stop).unwrap(), 3);
    }

    #[test]
    fn the_commands_status_comes_before_an_error_of_ours() {
        let stop = Stop::watch().unwrap();
        let after = |script, error| shell(script).finish_after(&Err(error), &stop);
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe).into();
        assert_eq!(after("exit 0", pipe()).unwrap(), 0);
        assert_eq!(after("exit 4", pipe()).unwrap(), 4);
        assert_eq!(after("exit 4", anyhow!("the disk is full")).unwrap(), 4);
        assert_eq!(after("exit 0", anyhow!("the disk is full")).unwrap(), 1);
    }

    #[test]
    fn what_cannot_be_started_is_named() {
        let Err(error) = Running::start(&["/no/such/program".into()], false, |_| {}) else {
            panic!("it was started")
        };
        assert!(format!("{error:#}").contains("/no/such/program cannot be started: No such file"));
    }

    #[test]
    fn missed_moments_are_left_out() {
        let step = Duration::from_secs(10);
        let start = Instant::now() - Duration::from_secs(25);
        let next = next(start, step).unwrap();
        assert_eq!(next - start, Duration::from_secs(30));
    }
}
