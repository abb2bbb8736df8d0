//! Waits: for a command that is watched, for a moment, for Ctrl-C.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use signal_hook::consts::{SIGINT, SIGTERM};

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
    descriptor: OwnedFd,
}

impl Running {
    /// Starts a command, its program first.
    pub fn start(command: &[String]) -> anyhow::Result<Self> {
        let [program, arguments @ ..] = command else { return Err(anyhow!("there is no command")) };
        let child = Command::new(program)
            .args(arguments)
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        let pid =
            i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process without a number")?;
        let descriptor =
            pidfd_open(pid, PidfdFlags::empty()).context("cannot wait for a process (pidfd_open)")?;
        Ok(Self { name: program.clone(), child, descriptor })
    }

    /// Its exit status: its own, or 128 and the signal that killed it, as shells have it, which is told on stderr.
    pub fn finish(mut self) -> anyhow::Result<ExitCode> {
        let status = self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        if let Some(signal) = status.signal() {
            eprintln!("exitscope: {}: killed by signal {signal}", self.name);
            return Ok(ExitCode::from(128_u8.saturating_add(signal as u8)));
        }
        Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
    }

    fn forward(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
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
}

/// The next moment of a rhythm: those that have been missed are left out.
pub fn next(start: Instant, step: Duration) -> Option<Instant> {
    let passed = start.elapsed().as_nanos() / step.as_nanos().max(1);
    start.checked_add(step.checked_mul(u32::try_from(passed + 1).ok()?)?)
}

/// Waits until a moment, if any, at most; calls `meanwhile` now and then. With a command, only its end is the end:
/// Ctrl-C reaches it, too, and a request to end is passed on.
pub fn wait(
    running: Option<&Running>,
    until: Option<Instant>,
    stop: &Stop,
    mut meanwhile: impl FnMut(),
) -> Wake {
    const PAUSE: Duration = Duration::from_millis(50);
    let mut passed_on = false;
    loop {
        if stop.is_asked_for() && running.is_none() {
            return Wake::Over;
        }
        if let Some(running) = running
            && stop.terminated.load(Ordering::Relaxed)
            && !std::mem::replace(&mut passed_on, true)
        {
            running.forward(Signal::TERM);
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let pause = left.map_or(PAUSE, |left| left.min(PAUSE));
        let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
        let mut descriptors: Vec<PollFd<'_>> = running
            .iter()
            .map(|running| PollFd::from_borrowed_fd(running.descriptor.as_fd(), PollFlags::IN))
            .collect();
        match poll(&mut descriptors, Some(&timeout)) {
            // The end of the command comes first: the moment may have been missed.
            Ok(1..) => return Wake::Over,
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
        Running::start(&["/bin/sh".into(), "-c".into(), script.into()]).unwrap()
    }

    fn ends_with(script: &str) -> String {
        let (running, stop) = (shell(script), Stop::watch().unwrap());
        assert_eq!(wait(Some(&running), None, &stop, || {}), Wake::Over);
        format!("{:?}", running.finish().unwrap())
    }

    #[test]
    fn the_commands_status_is_passed_on() {
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            assert_eq!(ends_with(script), format!("{:?}", ExitCode::from(code)), "{script}");
        }
    }

    #[test]
    fn an_end_is_noticed_though_the_moment_has_passed() {
        let (running, stop) = (shell("exit 0"), Stop::watch().unwrap());
        assert_eq!(wait(Some(&running), None, &stop, || {}), Wake::Over);
        assert_eq!(wait(Some(&running), Some(Instant::now()), &stop, || {}), Wake::Over);
        running.finish().unwrap();
        let long = shell("sleep 5");
        assert_eq!(wait(Some(&long), Some(Instant::now()), &stop, || {}), Wake::Time);
        long.forward(Signal::KILL);
        long.finish().unwrap();
    }

    #[test]
    fn what_cannot_be_started_is_named() {
        let Err(error) = Running::start(&["/no/such/program".into()]) else { panic!("it was started") };
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
