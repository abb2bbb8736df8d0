//! Starts a thread for each vCPU, waits for the guest's end or the time limit, and leaves no thread behind.

use crate::config::Config;
use crate::devices::Devices;
use crate::error::Error;
use crate::outcome::{Outcome, VcpuOutcome};
use crate::vcpu::{End, Vcpu};
use crate::vcpu_sync::VcpuSync;
use crate::vm::Mode;
use std::ffi::{c_int, c_void};
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// How long a thread has to notice a kick before it is kicked again.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// A vCPU whose thread has ended.
#[derive(Debug)]
struct Ended {
    id: u32,
    end: End,
    user_exits: u64,
}

/// The threads of a VM.
struct VcpuThreads {
    mode: Mode,
    sync: Arc<VcpuSync>,
    /// Those that have not been joined yet, by vCPU.
    threads: Vec<Option<JoinHandle<Ended>>>,
    /// The index of each vCPU whose thread is about to end.
    exiting: Receiver<u32>,
    /// In the order in which they ended.
    ended: Vec<Ended>,
}

/// Runs the vCPUs to the guest's end, or for as long as the configuration allows.
pub fn run(vcpus: Vec<Vcpu>, devices: Devices, mode: Mode, config: &Config) -> Result<Outcome, Error> {
    let (timeout, halt) = (config.timeout, config.halt);
    make_kicks_harmless()?;
    let devices = Arc::new(devices);
    let started = Instant::now();
    let mut vcpus = VcpuThreads::start(vcpus, &devices, mode)?;
    vcpus.wait(timeout.and_then(|timeout| started.checked_add(timeout)), halt);
    let elapsed = started.elapsed();
    vcpus.stop_all();
    outcome_of(vcpus.ended, mode, timeout.unwrap_or(elapsed), elapsed, &devices)
}

impl VcpuThreads {
    /// Starts a thread for each vCPU. If one cannot be started, those that were are stopped again.
    fn start(vcpus: Vec<Vcpu>, devices: &Arc<Devices>, mode: Mode) -> Result<Self, Error> {
        let sync = Arc::new(VcpuSync::new(vcpus.len() as u32, mode == Mode::Flat));
        let (sender, exiting) = channel();
        let mut threads = Self { mode, sync, threads: Vec::new(), exiting, ended: Vec::new() };
        for vcpu in vcpus {
            match spawn(vcpu, Arc::clone(devices), Arc::clone(&threads.sync), sender.clone()) {
                Ok(thread) => threads.threads.push(Some(thread)),
                Err(source) => {
                    threads.stop_all();
                    return Err(Error::System { what: "start a thread for a vCPU", source });
                }
            }
        }
        Ok(threads)
    }

    /// Waits until the guest has ended, or until the deadline; ends halts meanwhile, once in `halt`.
    fn wait(&mut self, deadline: Option<Instant>, halt: Option<Duration>) {
        while self.ended.len() < self.threads.len() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let leaver = match left.into_iter().chain(halt).min() {
                Some(pause) => self.exiting.recv_timeout(pause).ok(),
                None => self.exiting.recv().ok(),
            };
            if leaver.is_none() && halt.is_some() && left.is_none_or(|left| !left.is_zero()) {
                self.kick_all();
                continue;
            }
            let Some(id) = leaver else { return };
            self.join(id as usize);
            if self.ended.last().is_some_and(|last| ends_the_guest(&last.end, self.mode)) {
                return;
            }
        }
    }

    /// Interrupts KVM_RUN once in every thread that is in it.
    fn kick_all(&self) {
        for thread in self.threads.iter().flatten().filter(|thread| !thread.is_finished()) {
            // Failing to send a signal means that the thread is no more.
            let _ = thread.kill(SIGRTMIN());
        }
    }

    /// Gets every thread out of KVM_RUN, and joins it.
    fn stop_all(&mut self) {
        self.sync.stop();
        for index in 0..self.threads.len() {
            // A signal that arrives after the thread has read the stop flag and before it is in KVM_RUN is lost:
            // hence again and again. Failing to send one means that the thread is no more.
            while let Some(thread) = self.threads[index].as_ref().filter(|thread| !thread.is_finished()) {
                let _ = thread.kill(SIGRTMIN());
                sleep(KICK_INTERVAL);
            }
            self.join(index);
        }
    }

    /// Takes in a thread that has ended or is about to; a panic of its becomes ours.
    fn join(&mut self, index: usize) {
        if let Some(thread) = self.threads[index].take() {
            match thread.join() {
                Ok(ended) => self.ended.push(ended),
                Err(panic) => resume_unwind(panic),
            }
        }
    }
}

/// Tells the others that a vCPU's thread is exiting, however it does so.
struct ExitNotice {
    id: u32,
    sync: Arc<VcpuSync>,
    sender: Sender<u32>,
}

impl Drop for ExitNotice {
    fn drop(&mut self) {
        self.sync.leave(self.id);
        // Nobody receives this once all threads are being stopped.
        let _ = self.sender.send(self.id);
    }
}

fn spawn(
    mut vcpu: Vcpu,
    devices: Arc<Devices>,
    sync: Arc<VcpuSync>,
    sender: Sender<u32>,
) -> io::Result<JoinHandle<Ended>> {
    let id = vcpu.id();
    Builder::new().name(format!("vcpu{id}")).spawn(move || {
        let notice = ExitNotice { id, sync, sender };
        let end = vcpu.run(&devices, &notice.sync);
        Ended { id, end, user_exits: vcpu.user_exits() }
    })
}

/// Whether the guest has ended when one of its vCPUs ends like this.
fn ends_the_guest(end: &End, mode: Mode) -> bool {
    match end {
        End::Failed(..) => true,
        End::Done(_) => mode == Mode::Linux,
        End::Stopped(_) => false,
    }
}

/// The guest's outcome, from how its vCPUs ended, in that order.
fn outcome_of(
    mut ended: Vec<Ended>,
    mode: Mode,
    timeout: Duration,
    elapsed: Duration,
    devices: &Devices,
) -> Result<Outcome, Error> {
    // What comes after the guest's end is only a consequence of being stopped.
    let decisive = ended.iter().position(|ended| ends_the_guest(&ended.end, mode));
    if let Some(index) = decisive
        && let End::Failed(..) = ended[index].end
        && let Ended { id, end: End::Failed(failure, registers), .. } = ended.swap_remove(index)
    {
        return Err(Error::GuestFailed { vcpu: id, failure, registers: Box::new(registers) });
    }
    ended.sort_by_key(|ended| ended.id);
    let all_done = ended.iter().all(|ended| matches!(ended.end, End::Done(_)));
    if decisive.is_none() && !all_done {
        let stopped = |ended: Ended| match ended.end {
            End::Stopped(registers) => Some((ended.id, registers)),
            End::Done(_) | End::Failed(..) => None,
        };
        let registers = ended.into_iter().filter_map(stopped).collect();
        return Err(Error::TimedOut { after: timeout, registers });
    }
    let statuses = ended.iter().filter_map(|ended| match ended.end {
        End::Done(status) => Some(status),
        End::Failed(..) | End::Stopped(_) => None,
    });
    let status = statuses.clone().find(|status| *status != 0).unwrap_or(0);
    let outcome = |ended: &Ended| VcpuOutcome {
        id: ended.id,
        reports: devices.take_reports(ended.id),
        user_exits: ended.user_exits,
    };
    Ok(Outcome { status, vcpus: ended.iter().map(outcome).collect(), elapsed })
}

/// Gives the kick's signal a handler that does nothing, so that it interrupts a system call and no more.
fn make_kicks_harmless() -> Result<(), Error> {
    extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
    register_signal_handler(SIGRTMIN(), nothing)
        .map_err(|errno| Error::System { what: "handle a signal", source: errno.into() })
}
