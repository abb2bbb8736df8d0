//! Runs a program of the machine and takes what it gives.

use std::io;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::job::Output;

/// Runs a program to its end. `sleep MS` is no program: there is none in an initramfs of ours.
pub fn output_of(command: &[String]) -> Output {
    let [program, arguments @ ..] = command else { return Output::default() };
    let base = Output { command: command.to_vec(), ..Output::default() };
    if let ("sleep", [ms]) = (program.as_str(), arguments)
        && let Ok(ms) = ms.parse()
    {
        thread::sleep(Duration::from_millis(ms));
        return Output { status: Some(0), ..base };
    }
    finished(base, Command::new(program).args(arguments).stdin(Stdio::null()).output())
}

/// Runs a program to its end, which SIGINT shall bring about after this time.
pub fn interrupted(command: &[String], after: Duration) -> Output {
    let [program, arguments @ ..] = command else { return Output::default() };
    let base = Output { command: command.to_vec(), ..Output::default() };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = command.spawn().inspect(|child| {
        thread::sleep(after);
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // It is our child and not waited for, so the number is still its own.
            let _ = kill_process(pid, Signal::INT);
        }
    });
    finished(base, started.and_then(Child::wait_with_output))
}

fn finished(base: Output, done: io::Result<std::process::Output>) -> Output {
    match done {
        Ok(done) => Output {
            status: done.status.code(),
            stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
            ..base
        },
        Err(error) => {
            let program = base.command.first().cloned().unwrap_or_default();
            Output { stderr: format!("{program}: {error}"), ..base }
        }
    }
}
