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

/// Waits until a moment, if any, at most; calls `meanwhile` now and then. With a command, only its end is the end:
/// Ctrl-C reaches it, too, and a request to end is passed on.
pub fn wait(
    running: Option<&Running>,
    until: Option<Instant>,
    stop: &Stop,
    mut meanwhile: impl FnMut(),
) -> Wake {
    const PAUSE: Duration = Duration::from_millis(250);
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
        if left.is_some_and(|left| left.is_zero()) {
            return Wake::Time;
        }
        let pause = left.map_or(PAUSE, |left| left.min(PAUSE));
        let timeout = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
        let mut descriptors: Vec<PollFd<'_>> = running
            .iter()
            .map(|running| PollFd::from_borrowed_fd(running.descriptor.as_fd(), PollFlags::IN))
            .collect();
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => meanwhile(),
            Ok(_) => return Wake::Over,
            // Cannot happen; without a pause this would be a busy loop.
            Err(_) => std::thread::sleep(pause),
        }
    }
}
