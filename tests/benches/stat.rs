//! What one interval of `exitscope stat -I 1000` costs on a host with 100 VMs of 8 vCPUs, each with a process and threads of
//! its own: below 0.5 % of a CPU is 5 ms. The looks for new VMs, one or so in an interval, are a part of it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::thread;
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
const VMS: u32 = 100;
const VCPUS: u32 = 8;

fn shape(round: u64) -> Shape {
    Shape { vms: VMS, vcpus: VCPUS, reasons: 12, exits: 60 * (round + 1) }
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

/// A process that stands for a VMM, and its threads that stand for vCPUs.
struct Vmm {
    child: Child,
    threads: Vec<u32>,
}

/// All of them; each is this program once more, which tells the numbers of its threads.
struct Children(Vec<Vmm>);

/// What makes this program a VMM.
const VMM: &str = "--vmm";

impl Children {
    fn start() -> Self {
        Self((0..VMS).map(|_| Vmm::start()).collect())
    }

    fn pid(&self, vm: u32) -> u32 {
        self.0[vm as usize].child.id()
    }

    fn thread(&self, vm: u32, vcpu: u32) -> u32 {
        self.0[vm as usize].threads[vcpu as usize]
    }
}

impl Vmm {
    fn start() -> Self {
        let program = std::env::current_exe().unwrap();
        let mut child =
            Command::new(program).arg(VMM).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(VCPUS as usize);
        Self { threads: lines.map(|line| line.unwrap().parse().unwrap()).collect(), child }
    }
}

/// Runs threads until the end of stdin, which is that of our parent.
fn be_a_vmm() {
    for _ in 0..VCPUS {
        thread::spawn(|| {
            println!("{}", rustix::thread::gettid().as_raw_nonzero());
            loop {
                thread::park();
            }
        });
    }
    let _ = std::io::stdin().read_line(&mut String::new());
}

impl Drop for Children {
    fn drop(&mut self) {
        for vmm in &mut self.0 {
            let _ = vmm.child.kill();
            let _ = vmm.child.wait();
        }
    }
}

fn main() {
    if std::env::args().any(|argument| argument == VMM) {
        return be_a_vmm();
    }
    let children = Children::start();
    let bytes = |round| {
        generated::region_of(shape(round), |vm| children.pid(vm), |vm, vcpu| children.thread(vm, vcpu))
    };
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
    let (mut whole, mut reading, mut looking) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        writer.write_all_at(&bytes(round), 0).unwrap();
        let start = cpu_time();
        let now = region.snapshot();
        reading.push(cpu_time() - start);
        let look = cpu_time();
        assert_eq!(black_box(region.live_vms()).len(), VMS as usize);
        looking.push(cpu_time() - look);
        let using = meter.read(&now.accounts);
        meter.forget(&now.accounts);
        let cpu = using.since(&used);
        let context = Context { cpu: &cpu, ..context };
        let interval = Interval::between(&earlier, &now);
        let shown = text(&interval, context, Some("now"), None);
        whole.push(cpu_time() - start);
        assert_eq!(black_box(cpu.len()), VMS as usize);
        assert_eq!(interval.accounts.exits(), 100 * 8 * 12 * 60, "{shown}");
        (earlier, used) = (now, using);
    }
    println!("100 VMs of 8 vCPUs of 12 reasons; median CPU time of {ROUNDS} intervals");
    println!("reading:                            {:?}", median(reading));
    println!("a look for new VMs:                 {:?}", median(looking));
    println!("all, with /proc, as it is shown:    {:?}", median(whole));
}
