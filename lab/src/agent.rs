//! The first process of the emulated machine and of its guests: does the job, tells the result, powers off.

mod capabilities;
mod checkers;
mod guest;
mod guests;
mod host;
mod kernel;
mod qemu;

use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::system::{RebootCommand, reboot};

use crate::emulator::Link;
use crate::job::{JOB, Job, Output};

/// Whether this process is the agent: the first one, with a job, or a guest's service.
pub fn is_called_for() -> bool {
    guest::is_service() || (std::process::id() == 1 && fs::exists(JOB).unwrap_or(false))
}

/// Does the job and ends the machine, or the service; comes back only when the machine does not end.
pub fn main() -> io::Error {
    if guest::is_service() {
        guest::serve();
    }
    let mut end = RebootCommand::PowerOff;
    let done =
        kernel::mount_all().and_then(|()| fs::read(JOB)).and_then(|text| Ok(serde_json::from_slice(&text)?));
    match done {
        Ok(Job::Host { link, modules, steps, .. }) => {
            host::run(link, &modules, &steps);
            if link == Link::Frames {
                end = RebootCommand::Restart;
            }
        }
        Ok(Job::Guest { modules, port, system, commands }) => {
            guest::run(&modules, port, system.as_ref(), &commands)
        }
        Err(error) => eprintln!("agent: {error}"),
    }
    rustix::fs::sync();
    match reboot(end) {
        Ok(()) => io::ErrorKind::Other.into(),
        Err(errno) => errno.into(),
    }
}

/// Tries again and again until it succeeds, for so long; gives back the last try's error.
fn within<T>(limit: Duration, pause: Duration, attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(_) if begun.elapsed() < limit => thread::sleep(pause),
            result => return result,
        }
    }
}

/// Runs a program to its end. `sleep MS` is no program: there is none in an initramfs of ours.
fn output_of(command: &[String]) -> Output {
    let [program, arguments @ ..] = command else { return Output::default() };
    let base = Output { command: command.to_vec(), ..Output::default() };
    if let ("sleep", [ms]) = (program.as_str(), arguments)
        && let Ok(ms) = ms.parse()
    {
        thread::sleep(Duration::from_millis(ms));
        return Output { status: Some(0), ..base };
    }
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(done) => Output {
            status: done.status.code(),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
            ..base
        },
        Err(error) => Output { stderr: format!("{program}: {error}"), ..base },
    }
}
