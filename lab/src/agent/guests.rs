//! Runs guests in the emulated machine: each under our micro-VMM or stock QEMU, a process of its own.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use exitscope_model::Tick;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::channel::Channel;
use super::micro_vmm::{self, process, wait_for_outcome};
use super::qemu;
use super::vmm::{Clock, Vmm};
use crate::job::{Event, Guest, Payload};

/// Time that guests get to start before `meanwhile` begins.
const HEAD_START: Duration = Duration::from_millis(400);

/// Runs guests, all at once, and tells how each ended. `meanwhile` is done once they have had some time.
pub fn run(
    guests: &[Guest],
    sample_ms: Option<u64>,
    meanwhile: Option<impl FnOnce(&mut Channel) -> io::Result<()>>,
    channel: &mut Channel,
) -> io::Result<()> {
    let over = AtomicBool::new(false);
    let began = Instant::now();
    thread::scope(|scope| {
        let over = &over;
        let sampler =
            sample_ms.map(|step| scope.spawn(move || sample(began, Duration::from_millis(step), over)));
        let done = run_to_end(guests, began, meanwhile, channel);
        over.store(true, Ordering::Relaxed);
        let ticks = sampler.map(|sampler| sampler.join().map_err(|_| io::Error::other("the sampler died")));
        done?;
        match ticks.transpose()?.transpose()? {
            Some(ticks) => channel.send(&Event::Timeline { ticks }),
            None => Ok(()),
        }
    })
}

fn run_to_end(
    guests: &[Guest],
    began: Instant,
    meanwhile: Option<impl FnOnce(&mut Channel) -> io::Result<()>>,
    channel: &mut Channel,
) -> io::Result<()> {
    let start = |guest| start(guest, began);
    let mut running = guests.iter().map(start).collect::<io::Result<Vec<_>>>()?;
    if let Some(meanwhile) = meanwhile {
        thread::sleep(HEAD_START);
        guests.iter().filter(|guest| guest.lingers).try_for_each(|guest| wait_for_outcome(&guest.name))?;
        meanwhile(channel)?;
    }
    let still_running: Vec<bool> =
        running.iter_mut().map(|guest| Ok(!guest.has_ended()?)).collect::<io::Result<_>>()?;
    for (guest, still_running) in running.into_iter().zip(still_running) {
        channel.send(&guest.finish(still_running)?)?;
    }
    Ok(())
}

/// The process or thread of this number.
fn pid(text: &str) -> io::Result<Pid> {
    let pid = text.parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other(format!("`{text}` is no process")))
}

/// Stops a guest's process, or lets it go on.
pub fn pause(name: &str, on: bool) -> io::Result<()> {
    let pid = pid(&fs::read_to_string(process(name))?)?;
    Ok(kill_process(pid, if on { Signal::STOP } else { Signal::CONT })?)
}

/// Moves each of a guest's vCPUs so many times: to the next CPU, and from the last one to the first.
pub fn migrate(name: &str, times: u32) -> io::Result<()> {
    let mut vcpus = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", fs::read_to_string(process(name))?))? {
        let thread = thread?;
        if fs::read_to_string(thread.path().join("comm"))?.starts_with("vcpu") {
            vcpus.push(pid(&thread.file_name().to_string_lossy())?);
        }
    }
    let cpus = thread::available_parallelism()?.get();
    for round in 0..times as usize {
        for (index, vcpu) in vcpus.iter().enumerate() {
            let mut only = CpuSet::new();
            only.set((round + index) % cpus);
            sched_setaffinity(Some(*vcpu), &only)
                .map_err(|errno| io::Error::other(format!("move {round} of guest {name}: {errno}")))?;
        }
    }
    Ok(())
}

/// Samples the number of exits until it is over.
fn sample(began: Instant, step: Duration, over: &AtomicBool) -> io::Result<Vec<Tick>> {
    let clock = Clock::counting(began)?;
    let mut ticks = Vec::new();
    loop {
        let last = over.load(Ordering::Relaxed);
        ticks.push(clock.tick());
        if last {
            return Ok(ticks);
        }
        thread::sleep(step);
    }
}

/// Starts a guest under what is to run it.
fn start(guest: &Guest, began: Instant) -> io::Result<Box<dyn Vmm>> {
    Ok(match &guest.payload {
        Payload::Flat { workload, iterations, batch } => {
            Box::new(micro_vmm::Running::flat(guest, workload, *iterations, *batch)?)
        }
        Payload::Linux { commands } => Box::new(micro_vmm::Running::linux(guest, commands)?),
        Payload::Qemu { commands, debian } => {
            Box::new(qemu::Running::start(guest, commands, *debian, began)?)
        }
    })
}
