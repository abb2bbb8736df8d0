//! The vCPU that this thread runs on: staying on it, its clock, what else the guest's kernel did there.

use std::fs;
use std::io;

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

/// Keeps this thread, and what it starts, on the CPU that it runs on; gives its number.
///
/// # Errors
/// When the kernel refuses.
pub fn stay() -> io::Result<u32> {
    let cpu = sched_getcpu();
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::other(format!("CPU {cpu} is beyond what this program can name")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)?;
    u32::try_from(cpu).map_err(io::Error::other)
}

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// What the guest's kernel did on a CPU so far, or on all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// Interrupts that it took there; `None` when it does not tell.
    pub interrupts: Option<u64>,
    /// Context switches, of all CPUs, as it tells no other.
    pub context_switches: Option<u64>,
}

impl Elsewhere {
    /// Until now.
    pub fn now(cpu: Option<u32>) -> Self {
        let read = |path| fs::read_to_string(path).ok();
        let switches = read("/proc/stat").and_then(|text| context_switches(&text));
        Self {
            interrupts: read("/proc/interrupts").map(|text| interrupts(&text, cpu)),
            context_switches: switches,
        }
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
        Self {
            interrupts: less(self.interrupts, earlier.interrupts),
            context_switches: less(self.context_switches, earlier.context_switches),
        }
    }
}

/// The sum of a CPU's column in `/proc/interrupts`, or of all columns.
fn interrupts(text: &str, cpu: Option<u32>) -> u64 {
    let mut lines = text.lines();
    let heads: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let wanted = |index: usize| match cpu {
        Some(cpu) => heads.get(index).is_some_and(|head| *head == format!("CPU{cpu}")),
        None => true,
    };
    let of_line = |line: &str| -> u64 {
        let numbers = line.split_whitespace().skip(1).take(heads.len());
        numbers
            .enumerate()
            .filter(|(index, _)| wanted(*index))
            .filter_map(|(_, number)| number.parse::<u64>().ok())
            .sum()
    };
    lines.map(of_line).sum()
}

fn context_switches(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("ctxt "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_those_of_the_column() {
        let text = "            CPU0       CPU2\n  0:         10         20   IO-APIC   2-edge  timer\nLOC:          1 3   Local timer\nERR:  7\n";
        assert_eq!(
            [interrupts(text, Some(0)), interrupts(text, Some(2)), interrupts(text, None)],
            [18, 23, 41]
        );
        assert_eq!(interrupts("", Some(0)), 0);
        assert_eq!(context_switches("cpu 1 2\nctxt 123\n"), Some(123));
    }

    #[test]
    fn a_thread_stays_where_it_is() {
        let cpu = stay().unwrap();
        assert_eq!(stay().unwrap(), cpu);
    }
}
