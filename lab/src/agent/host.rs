//! The agent in the emulated machine: interprets the steps of its job.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use exitscope_host::compat_ioctl::{Answers, ask_both_ways};
use exitscope_host::fuzz_device::fuzz_device;
use exitscope_host::region::{DEVICE, Region};
use exitscope_model::Vm;
use exitscope_vmm::bare::{BareVm, StoppedCpuid, stop_after_cpuid};
use exitscope_vmm::init::{Inits, init_while_asking};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::channel::Channel;
use super::command::{ended, output_as, output_of};
use super::{capabilities, checkers, counters, guests, kernel, vmm};
use crate::emulator::Link;
use crate::job::{Event, Insert, Output, Step};

/// Loads the modules, does every step, and tells how it went.
pub fn run(link: Link, modules: &[Insert], steps: &[Step]) {
    // On some kernels the channel's driver is among the modules.
    let inserted = modules.iter().try_for_each(kernel::insert);
    let mut channel = match Channel::open(link) {
        Ok(channel) => channel,
        Err(error) => return eprintln!("agent: no channel: {error}"),
    };
    let done = inserted.and_then(|()| run_steps(steps, &mut channel)).and_then(|()| checkers::findings());
    let last = match done {
        Ok(warnings) => Event::Done { kernel: kernel::release(), warnings },
        Err(error) => Event::Failed { message: error.to_string() },
    };
    if let Err(error) = channel.send(&last) {
        eprintln!("agent: cannot tell the end: {error}");
    }
}

fn run_steps(steps: &[Step], channel: &mut Channel) -> io::Result<()> {
    steps.iter().try_for_each(|step| run_step(step, channel))
}

fn run_step(step: &Step, channel: &mut Channel) -> io::Result<()> {
    match step {
        Step::Insert(insert) => {
            kernel::insert(insert)?;
            channel.send(&Event::Inserted { path: insert.path.clone(), instructions: None })
        }
        Step::Remove { name } => kernel::remove(name),
        Step::Write { path, text } => kernel::write(path, text),
        Step::StartHistogram => kernel::start_histogram(),
        Step::Ftrace { on } => kernel::ftrace(*on),
        Step::ReadHistogram { label } => {
            channel.send(&Event::Histogram { label: label.clone(), exits: kernel::read_histogram()? })
        }
        Step::Bpf { cells } => counters::set_bpf(*cells),
        Step::Snapshot { label } => channel.send(&snapshot(label, &counters::open()?)),
        Step::BpfSnapshot { label } => channel.send(&snapshot(label, &counters::of_bpf()?)),
        Step::Capabilities => channel.send(&capabilities::read()?),
        Step::Guests { guests, sample_ms, meanwhile } => {
            let names: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
            let names = if names.len() > 4 { format!("{} guests", names.len()) } else { names.join(", ") };
            channel.phase(format!("runs {names}"))?;
            let meanwhile =
                (!meanwhile.is_empty()).then_some(|channel: &mut Channel| run_steps(meanwhile, channel));
            guests::run(guests, *sample_ms, meanwhile, channel)
        }
        Step::HaltedVms { vms, vcpus, meanwhile } => {
            channel.phase(format!("keeps {vms} VMs of {vcpus} vCPUs"))?;
            // KVM's own, the VM's and those of its vCPUs.
            let files = Some(u64::from(*vms) * (2 + u64::from(*vcpus)) + 1_024);
            setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files })?;
            let vms: Vec<BareVm> = (0..*vms)
                .map(|_| BareVm::halted(*vcpus))
                .collect::<Result<_, _>>()
                .map_err(io::Error::other)?;
            run_steps(meanwhile, channel)?;
            drop(vms);
            Ok(())
        }
        Step::StopAfterCpuid { label, stop, leaf, set } => {
            let StoppedCpuid { read, synced, after } =
                stop_after_cpuid(*stop, *leaf, 0, *set).map_err(io::Error::other)?;
            channel.send(&Event::StoppedCpuid { label: label.clone(), read, synced, after })
        }
        Step::InitWhileAsking { label, leaf, times } => {
            channel.phase(format!("sends {times} INITs"))?;
            let Inits { registers, cpuids } = init_while_asking(*leaf, *times).map_err(io::Error::other)?;
            channel.send(&Event::Inits { label: label.clone(), registers, cpuids })
        }
        Step::Read { label, path } => {
            let output = Output {
                command: vec![],
                status: Some(0),
                stdout: fs::read_to_string(path)?,
                stderr: String::new(),
            };
            channel.send(&Event::Output { label: label.clone(), output })
        }
        Step::Run { label, command } => {
            channel.send(&Event::Output { label: label.clone(), output: output_of(command) })
        }
        Step::RunAs { label, command, way } => {
            channel.phase(format!("runs {label}"))?;
            channel.send(&Event::Output { label: label.clone(), output: output_as(command, *way) })
        }
        Step::End { label, command, by, meanwhile } => {
            channel.phase(format!("runs {label} until it is asked to end"))?;
            let output = ended(command, *by, || run_steps(meanwhile, channel))?;
            channel.send(&Event::Output { label: label.clone(), output })
        }
        Step::Pause { guest, on } => guests::pause(guest, *on),
        Step::AwaitText { path, text } => await_text(path, text),
        Step::AwaitVm { id } => await_vm(*id, |_| true),
        Step::AwaitEnd { id } => await_vm(*id, |vm| vm.finished),
        Step::Migrate { guest, times } => guests::migrate(guest, *times),
        Step::WriteMsr { cpu, address, value } => kernel::write_msr(*cpu, *address, *value),
        Step::Sleep { ms } => {
            thread::sleep(Duration::from_millis(*ms));
            Ok(())
        }
        Step::FuzzDevice { seed, requests } => {
            channel.phase("asks the module's device for nonsense")?;
            fuzz_device(Path::new(DEVICE), *seed, *requests)
        }
        Step::AskBothWays { vm } => {
            let answers = ask_both_ways(Path::new(DEVICE), *vm)?.map(|answers| {
                let pair = |answer: Answers| (answer.request.into(), [answer.by_64_bit, answer.by_32_bit]);
                answers.into_iter().map(pair).collect()
            });
            channel.send(&Event::Requests { answers })
        }
        Step::Refused { label, step } => match run_step(step, channel) {
            Ok(()) => Err(io::Error::other(format!("{label}: {step:?} succeeded, but must fail"))),
            Err(error) => channel.send(&Event::Refused { label: label.clone(), message: error.to_string() }),
        },
        Step::Repeat { times, steps } => (0..*times).try_for_each(|_| run_steps(steps, channel)),
    }
}

fn await_text(path: &str, text: &str) -> io::Result<()> {
    vmm::wait_for(|| {
        let found = fs::read_to_string(path)?;
        let is_it = found.trim() == text;
        is_it.then_some(()).ok_or_else(|| io::Error::other(format!("{path} says {found:?}, never {text}")))
    })
}

fn await_vm(id: u32, is_so: impl Fn(&Vm) -> bool) -> io::Result<()> {
    let region = counters::open()?;
    let id = id.to_string();
    vmm::wait_for(|| {
        let found = region.snapshot().vms().iter().any(|vm| vm.id == id && is_so(vm));
        found.then_some(()).ok_or_else(|| io::Error::other(format!("VM {id} does not come, or does not end")))
    })
}

fn snapshot(label: &str, region: &Region) -> Event {
    let snapshot = region.snapshot();
    Event::Snapshot {
        label: label.into(),
        isa: snapshot.isa.map(|isa| isa.name().into()).unwrap_or_default(),
        tsc_khz: snapshot.clock.khz,
        vms: snapshot.vms(),
        quality: snapshot.quality,
    }
}
