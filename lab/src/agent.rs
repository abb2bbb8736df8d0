//! The first process of the emulated machine and of its guests: does the job, tells the result, powers off.

mod capabilities;
mod guests;
mod host;
mod kernel;

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use rustix::system::{RebootCommand, reboot};

use crate::emulator::Link;
use crate::job::{GUEST_MARK, JOB, Job, Output};

/// Whether this process is the agent: the first one, with a job.
pub fn is_called_for() -> bool {
    std::process::id() == 1 && fs::exists(JOB).unwrap_or(false)
}

/// Does the job and ends the machine; comes back only when even that fails.
pub fn main() -> io::Error {
    let mut end = RebootCommand::PowerOff;
    let done =
        kernel::mount_all().and_then(|()| fs::read(JOB)).and_then(|text| Ok(serde_json::from_slice(&text)?));
    match done {
        Ok(Job::Host { link, modules, steps }) => {
            host::run(link, &modules, &steps);
            if link == Link::Frames {
                end = RebootCommand::Restart;
            }
        }
        Ok(Job::Guest { commands }) => in_guest(&commands),
        Err(error) => eprintln!("agent: {error}"),
    }
    rustix::fs::sync();
    match reboot(end) {
        Ok(()) => io::ErrorKind::Other.into(),
        Err(errno) => errno.into(),
    }
}

/// In a guest: runs the commands, and tells each result as a line on the console.
fn in_guest(commands: &[Vec<String>]) {
    for command in commands {
        let output = output_of(command);
        let line = serde_json::to_string(&output).unwrap_or_default();
        // In one piece, so that no line of the kernel's comes between.
        let _ = io::stdout().write_all(format!("\n{GUEST_MARK}{line}\n").as_bytes());
    }
    let _ = rustix::termios::tcdrain(io::stdout());
}

/// Runs a program to its end.
fn output_of(command: &[String]) -> Output {
    let [program, arguments @ ..] = command else { return Output::default() };
    let base = Output { command: command.to_vec(), ..Output::default() };
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
