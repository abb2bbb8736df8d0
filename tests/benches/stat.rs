//! What one interval of `exitscope stat -I 1000` costs on a host with 100 VMs of 8 vCPUs: below 0.5 % of a CPU is 5 ms.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};
use std::time::Duration;

use exitscope_host::cpu::Meter;
use exitscope_host::generated::{self, Shape};
use exitscope_host::region::Region;
use exitscope_model::document::{Context, CpuTimes, Origin};
use exitscope_model::interval::Interval;
use exitscope_model::select::{Names, Selection};
use exitscope_model::stat::{By, Options};
use exitscope_view::stat::text;
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: u64 = 100;

fn shape(round: u64) -> Shape {
    Shape { vms: 100, vcpus: 8, reasons: 12, exits: 60 * (round + 1) }
}

/// CPU time of this thread, so that other work on the machine does not count.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Processes that stand for VMMs.
struct Children(Vec<Child>);

impl Children {
    fn start() -> Self {
        let start = |_| Command::new("/bin/sleep").arg("60").spawn().unwrap();
        Self((0..100).map(start).collect())
    }

    fn pid(&self, vm: u32) -> u32 {
        self.0[vm as usize].id()
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn main() {
    let children = Children::start();
    let bytes = |round| generated::region(shape(round), |vm| children.pid(vm));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes(0)).unwrap();
    let writer = File::options().write(true).open(file.path()).unwrap();
    let region = Region::open(file.path()).unwrap();
    let (selection, names, cpu, origin) =
        (Selection::default(), Names::new(), CpuTimes::new(), Origin::default());
    let by = By { reason: true, ..By::default() };
    let options = Options { by, top: 20, ..Options::default() };
    let context =
        Context { selection: &selection, names: &names, cpu: &cpu, origin: &origin, options, cycles: false };
    let mut meter = Meter::new();
    let mut earlier = region.snapshot();
    let mut used = meter.read(&earlier.accounts);
    let (mut whole, mut reading) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        writer.write_all_at(&bytes(round), 0).unwrap();
        let start = cpu_time();
        let now = region.snapshot();
        reading.push(cpu_time() - start);
        let using = meter.read(&now.accounts);
        let cpu = using.since(&used);
        let context = Context { cpu: &cpu, ..context };
        let interval = Interval::between(&earlier, &now);
        let shown = text(&interval, context, Some("now"), None);
        whole.push(cpu_time() - start);
        assert_eq!(black_box(cpu.len()), 100);
        assert_eq!(interval.accounts.exits(), 100 * 8 * 12 * 60, "{shown}");
        (earlier, used) = (now, using);
    }
    println!("100 VMs of 8 vCPUs of 12 reasons; median CPU time of {ROUNDS} intervals");
    println!("reading:                            {:?}", median(reading));
    println!("all, with /proc, as it is shown:     {:?}", median(whole));
}
