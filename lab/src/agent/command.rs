//! Runs a program of the machine and takes what it gives.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

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
