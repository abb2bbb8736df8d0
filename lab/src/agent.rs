//! The first process of the emulated machine and of its guests: does the job, tells the result, powers off.

mod capabilities;
mod channel;
mod checkers;
mod command;
mod counters;
mod guest;
mod guests;
mod host;
mod kernel;
mod micro_vmm;
mod qemu;
mod vmm;
mod wait;

use std::fs;
use std::io;

use rustix::system::{RebootCommand, reboot};

use crate::emulator::Link;
use crate::job::{JOB, Job};

/// Whether this process is the agent: PID 1 with a job, or a guest's service.
pub fn is_agent() -> bool {
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
