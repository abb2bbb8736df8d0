//! CPU time of VMMs' processes: in guests, by vCPU threads, by all others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use exitscope_model::accounts::{Accounts, RETIRED};
use exitscope_model::document::{CpuTime, CpuTimes};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::names::in_initial_namespace;

/// CPU time so far of every process that has a VM, by VM.
#[derive(Clone, Debug, Default)]
pub struct Usage(BTreeMap<u64, Process>);

#[derive(Clone, Copy, Debug)]
struct Process {
    pid: u32,
    /// ns of all its threads, those in guests, those of threads that run a vCPU.
    total: u64,
    guest: u64,
    vcpus: Option<u64>,
}

/// Reads CPU times, from files that stay open: to open them is most of what it costs.
#[derive(Debug)]
pub struct Meter {
    proc: PathBuf,
    /// ns in the unit that the kernel counts in.
    tick: u64,
    /// By process.
    files: BTreeMap<u32, Files>,
    works: bool,
    /// Descriptors that this program might have before it became more.
    descriptors: Rlimit,
}

/// Open files of a process.
#[derive(Debug, Default)]
struct Files {
    stat: Option<File>,
    /// `schedstat` of its threads.
    threads: BTreeMap<u32, Option<File>>,
}

impl Meter {
    /// Reads this machine's `/proc`.
    pub fn new() -> Self {
        let proc = PathBuf::from("/proc");
        let works = in_initial_namespace(&proc);
        // A descriptor for each vCPU: as many as we may have.
        let descriptors = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: descriptors.maximum, ..descriptors });
        let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        Self { proc, tick, files: BTreeMap::new(), works, descriptors }
    }

    /// Has a program that is started have as many descriptors as it would have without us: some count on few.
    pub fn leave_limit(&self, command: &mut Command) {
        let limit = self.descriptors;
        // SAFETY: a system call alone, which may be made between fork and exec.
        unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Nofile, limit)?)) };
    }

    /// What the processes of all live VMs have used until now.
    pub fn read(&mut self, accounts: &Accounts) -> Usage {
        let mut usage = Usage::default();
        if !self.works {
            return usage;
        }
        let mut processes: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut buffer = String::new();
        for vm in accounts.vms().iter().filter(|vm| vm.id != RETIRED && !vm.finished) {
            let known = match processes.get(&vm.pid) {
                Some(known) => Some(*known),
                None => self.process(vm.pid, &mut buffer),
            };
            let Some((total, guest)) = known else { continue };
            processes.insert(vm.pid, (total, guest));
            let vcpus = accounts.vcpus(vm).iter().map(|vcpu| self.thread(vm.pid, vcpu.thread, &mut buffer));
            usage.0.insert(vm.id, Process { pid: vm.pid, total, guest, vcpus: vcpus.sum() });
        }
        usage
    }

    /// Forgets the files of processes that have gone.
    pub fn forget(&mut self, accounts: &Accounts) {
        let live: BTreeSet<u32> = accounts.vms().iter().filter(|vm| !vm.finished).map(|vm| vm.pid).collect();
        self.files.retain(|pid, _| live.contains(pid));
    }

    /// ns of a process in all and in its guests.
    fn process(&mut self, pid: u32, buffer: &mut String) -> Option<(u64, u64)> {
        let file = &mut self.files.entry(pid).or_default().stat;
        read(file, || self.proc.join(pid.to_string()).join("stat"), buffer)?;
        let (total, guest) = parse_stat(buffer)?;
        Some((total.saturating_mul(self.tick), guest.saturating_mul(self.tick)))
    }

    /// ns of a thread.
    fn thread(&mut self, pid: u32, thread: u32, buffer: &mut String) -> Option<u64> {
        let file = self.files.entry(pid).or_default().threads.entry(thread).or_default();
        let path = || self.proc.join(pid.to_string()).join("task").join(thread.to_string()).join("schedstat");
        read(file, path, buffer)?;
        buffer.split_whitespace().next()?.parse().ok()
    }
}

/// Reads a file from its beginning, which stays open as long as that works.
fn read(file: &mut Option<File>, path: impl FnOnce() -> PathBuf, buffer: &mut String) -> Option<()> {
    let mut bytes = [0; 1024];
    let open = file.take().or_else(|| File::open(path()).ok())?;
    let length = open.read_at(&mut bytes, 0).ok()?;
    *file = Some(open);
    buffer.clear();
    buffer.push_str(&String::from_utf8_lossy(&bytes[..length]));
    Some(())
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

/// utime + stime, and guest_time, from `/proc/PID/stat` (proc(5), fields 14, 15 and 43).
fn parse_stat(text: &str) -> Option<(u64, u64)> {
    // The program's name, in parentheses, may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)?.saturating_add(field(15)?), field(43)?))
}

impl Usage {
    /// What was used since `earlier`.
    pub fn since(&self, earlier: &Self) -> CpuTimes {
        let (now_by_pid, before_by_pid) = (self.by_process(), earlier.by_process());
        let mut times = CpuTimes::new();
        for (&id, now) in &self.0 {
            let Some(before) = earlier.0.get(&id).filter(|before| before.pid == now.pid) else { continue };
            let total = now.total.saturating_sub(before.total);
            let guest = now.guest.saturating_sub(before.guest);
            let (vms, vcpus) = now_by_pid.get(&now.pid).copied().unwrap_or_default();
            let (vms_before, vcpus_before) = before_by_pid.get(&now.pid).copied().unwrap_or_default();
            // Where a VM has come or gone, the time of its vCPUs until now, or since, is not known.
            let vcpus = vcpus.zip(vcpus_before).filter(|_| vms == vms_before);
            let vcpus = vcpus.map(|(now, before)| now.saturating_sub(before));
            let elsewhere = vcpus.map(|vcpus| total.saturating_sub(vcpus));
            times.insert(id, CpuTime { total, guest, elsewhere, vms });
        }
        times
    }

    /// How many VMs each process has, and ns of all threads that run their vCPUs, if each is known.
    fn by_process(&self) -> BTreeMap<u32, (u32, Option<u64>)> {
        let mut processes = BTreeMap::new();
        for process in self.0.values() {
            let (vms, vcpus) = processes.entry(process.pid).or_insert((0, Some(0_u64)));
            *vms += 1;
            *vcpus = vcpus.zip(process.vcpus).map(|(sum, more)| sum + more);
        }
        processes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_may_hold_anything() {
        let rest: Vec<String> = (3..=52).map(|field: u32| field.to_string()).collect();
        let text = format!("12 (a) b) {}", rest.join(" "));
        assert_eq!(parse_stat(&text), Some((29, 43)));
        assert_eq!(parse_stat("12 (a"), None);
        assert_eq!(parse_stat("12 (a) S 1"), None);
    }

    #[test]
    fn work_that_no_vcpu_does_is_elsewhere() {
        let process = |total, guest, vcpus| Process { pid: 7, total, guest, vcpus: Some(vcpus) };
        let earlier = Usage(BTreeMap::from([(1, process(100, 10, 60)), (2, process(100, 10, 20))]));
        let later = Usage(BTreeMap::from([(1, process(190, 40, 100)), (2, process(190, 40, 20))]));
        let times = later.since(&earlier);
        assert_eq!(times[&1], CpuTime { total: 90, guest: 30, elsewhere: Some(50), vms: 2 });
        assert_eq!(times.len(), 2);
        // One vCPU's thread cannot be read: its time must not count as another's work.
        let mut unknown = later.clone();
        unknown.0.insert(2, Process { vcpus: None, ..process(190, 40, 0) });
        assert_eq!(unknown.since(&earlier)[&1].elsewhere, None);
        // Nor must what a VM had that has gone meanwhile, or that has come.
        let mut fewer = later.clone();
        fewer.0.remove(&2);
        let mut more = later;
        more.0.insert(3, process(1, 1, 1));
        assert_eq!([fewer, more].map(|usage| usage.since(&earlier)[&1].elsewhere), [None; 2]);
    }

    #[test]
    fn a_thread_that_cannot_be_read_is_unknown_and_what_has_gone_is_forgotten() {
        let mut accounts = Accounts::default();
        let pid = std::process::id();
        for (id, thread) in [(1, pid), (2, 0)] {
            accounts.begin_vm(id, pid, false, None);
            accounts.begin_vcpu(0, thread, 0, 0);
        }
        let mut meter = Meter { works: true, ..Meter::new() };
        let usage = meter.read(&accounts);
        assert!(usage.0[&1].vcpus.is_some());
        assert_eq!((usage.0[&2].vcpus, meter.files.len()), (None, 1));
        meter.forget(&Accounts::default());
        assert!(meter.files.is_empty());
    }

    #[test]
    fn a_command_has_the_limit_that_was() {
        let descriptors = Rlimit { current: Some(123), ..getrlimit(Resource::Nofile) };
        let meter = Meter { descriptors, ..Meter::new() };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -n"]);
        meter.leave_limit(&mut command);
        let shown = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(shown.trim(), "123");
    }
}
