//! Runs a program of the machine and takes what it gives.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::Duration;

use exitscope_abi::leaf::Expose;
use exitscope_guest::leaves::Leaves;
use rustix::io::Errno;
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, pidfd_open, pidfd_send_signal};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities, set_keep_capabilities, set_thread_res_gid, set_thread_res_uid,
};

use super::kernel::mount_at;
use super::wait::retry_for;
use crate::job::{AWAIT, Output, Request, Way};

/// What the leaves say where nobody answers them.
const OFF: &str = Expose::Off.name();
/// How long a guest waits for its host: as long as that has a reason to.
const AWAIT_LIMIT: Duration = Duration::from_secs(1_200);
/// How often it looks.
const AWAIT_POLL: Duration = Duration::from_millis(20);

/// Runs a program to its end. Two are none, as an initramfs of ours has no others: `sleep MS`, and [`AWAIT`] in a guest.
pub fn output_of(command: &[String]) -> Output {
    let [program, arguments @ ..] = command else { return Output::default() };
    let base = Output { command: command.to_vec(), ..Output::default() };
    let ours = match (program.as_str(), arguments) {
        ("sleep", [ms]) => ms.parse().ok().map(|ms| {
            thread::sleep(Duration::from_millis(ms));
            Ok(())
        }),
        (AWAIT, words) => Some(await_policy(words)),
        _ => None,
    };
    match ours {
        Some(Ok(())) => Output { status: Some(0), ..base },
        Some(Err(error)) => Output { stderr: error.to_string(), ..base },
        None => finished(base, Command::new(program).args(arguments).stdin(Stdio::null()).output()),
    }
}

/// Waits until the leaves of the guest that this runs in say all these words.
fn await_policy(words: &[String]) -> io::Result<()> {
    retry_for(AWAIT_LIMIT, AWAIT_POLL, || {
        let found = Leaves::find().map(|leaves| leaves.discovery());
        let said = found.map_or([OFF, ""], |found| [found.expose.name(), found.layout.name()]);
        let all = words.iter().all(|word| said.contains(&word.as_str()));
        all.then_some(()).ok_or_else(|| io::Error::other(format!("the leaves say {said:?}, not {words:?}")))
    })
}

/// Runs a program to its end, which it is asked for when `meanwhile` is done. That this fails is an error.
pub fn ended(
    command: &[String],
    by: Request,
    meanwhile: impl FnOnce() -> io::Result<()>,
) -> io::Result<Output> {
    let (base, mut command) = piped(command);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(finished(base, Err(error))),
    };
    // It names this process only, also when that has ended.
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    // Read all the time, so that it never waits for us.
    let reader = thread::spawn(|| child.wait_with_output());
    let done = meanwhile();
    if let Ok(process) = process {
        let signal = match by {
            Request::Interrupt => Signal::INT,
            Request::Terminate => Signal::TERM,
            Request::Kill => Signal::KILL,
        };
        let _ = pidfd_send_signal(process, signal);
    }
    let output = reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader of its output died")));
    done.map(|()| finished(base, output))
}

/// Runs a program in a way of its own.
pub fn output_as(command: &[String], way: Way) -> Output {
    let (base, mut command) = piped(command);
    let output = match way {
        Way::User(user) => command.uid(user).gid(user).output(),
        Way::NoAdmin => no_admin(command),
        Way::Bpf(user) => with_bpf(command, user),
        Way::ClosedAfter(lines) => closed_after(command, lines),
        Way::Terminal(columns) => on_terminal(command, columns),
    };
    finished(base, output)
}

/// A program with pipes for what it writes, and what is known of it so far.
fn piped(command: &[String]) -> (Output, Command) {
    let base = Output { command: command.to_vec(), ..Output::default() };
    let [program, arguments @ ..] = command else { return (base, Command::new("")) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    (base, command)
}

/// A thread has a set of capabilities that its programs cannot get, not even root's.
fn no_admin(mut command: Command) -> io::Result<process::Output> {
    let run = move || {
        remove_capability_from_bounding_set(CapabilitySet::SYS_ADMIN)?;
        command.output()
    };
    thread::spawn(run).join().unwrap_or_else(|_| Err(io::Error::other("its thread died")))
}

/// Capabilities that a thread keeps when it becomes another user, and hands down to its programs.
fn with_bpf(mut command: Command, user: u32) -> io::Result<process::Output> {
    let run = move || {
        let kept = CapabilitySet::BPF | CapabilitySet::PERFMON;
        set_keep_capabilities(true)?;
        set_thread_res_gid(Gid::from_raw(user), Gid::from_raw(user), Gid::from_raw(user))?;
        set_thread_res_uid(Uid::from_raw(user), Uid::from_raw(user), Uid::from_raw(user))?;
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
        for capability in [CapabilitySet::BPF, CapabilitySet::PERFMON] {
            configure_capability_in_ambient_set(capability, true)?;
        }
        command.output()
    };
    thread::spawn(run).join().unwrap_or_else(|_| Err(io::Error::other("its thread died")))
}

fn closed_after(mut command: Command, lines: usize) -> io::Result<process::Output> {
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines);
    let read = stdout.take(lines).collect::<io::Result<Vec<String>>>()?;
    let output = child.wait_with_output()?;
    Ok(process::Output { stdout: read.concat().into_bytes(), ..output })
}

fn on_terminal(mut command: Command, columns: u16) -> io::Result<process::Output> {
    mount_at("devpts", "/dev/pts", "devpts")?;
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    unlockpt(&ours)?;
    let theirs =
        File::options().read(true).write(true).open(OsStr::from_bytes(ptsname(&ours, [])?.as_bytes()))?;
    tcsetwinsize(&theirs, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    let child = command.stdout(theirs).spawn()?;
    // With it goes our copy of the terminal's other end, so that the end of the program is the end of its output.
    drop(command);
    let mut stdout = Vec::new();
    let read = File::from(ours).read_to_end(&mut stdout);
    let output = child.wait_with_output()?;
    // EIO is how a terminal tells that nobody is left who writes to it.
    read.or_else(
        |error| if error.raw_os_error() == Some(Errno::IO.raw_os_error()) { Ok(0) } else { Err(error) },
    )?;
    Ok(process::Output { stdout, ..output })
}

fn finished(base: Output, done: io::Result<process::Output>) -> Output {
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
