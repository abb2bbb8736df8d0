//! What the kernel's own checkers say at the end of a run: its log, its taint, and memory that nothing points to.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use exitscope_host::kernel_log::{KernelLog, text_of};

use super::kernel::{self, mount_at};

/// Whatever no healthy run has, in lines. Our module is unloaded for this, as only then all of its memory must be gone.
pub fn findings() -> io::Result<Vec<String>> {
    if Path::new("/sys/module/exitscope").exists() {
        kernel::remove("exitscope")?;
    }
    let leaks = leaks()?;
    let mut findings = KernelLog::open()?.read(warning)?;
    findings.extend(leaks);
    findings.extend(taint(&fs::read_to_string("/proc/sys/kernel/tainted")?));
    Ok(findings)
}

/// What the kernel's log says when something of its own is broken, or when one of its checkers has given up.
const WARNINGS: &[&str] = &[
    "WARNING: ",
    "BUG:",
    "BUG ",
    "Oops",
    "Call Trace",
    "general protection fault",
    "unable to handle",
    "possible recursive locking",
    "circular locking",
    "inconsistent lock state",
    "Invalid wait context",
    "suspicious RCU usage",
    "turning off the locking correctness validator",
    "scheduling while atomic",
    "soft lockup",
    "blocked for more than",
    "detected stall",
    "detected expedited stall",
    "ODEBUG: ",
    "list_add corruption",
    "list_del corruption",
    "refcount_t: ",
    "UBSAN",
    "KASAN: ",
    "Bad page state",
    "allocated at module unload",
    "kmemleak: Cannot",
    "leak detector disabled",
];

/// The text of a record of the log, if it is a warning of the kernel's or of one of its checkers.
fn warning(record: &str) -> Option<String> {
    let line = text_of(record)?;
    WARNINGS.iter().any(|warning| line.contains(warning)).then(|| line.to_owned())
}

/// Flags of the kernel's taint (Documentation/admin-guide/tainted-kernels.rst) that stay when the log is overrun.
const TAINTS: [(u32, &str); 4] =
    [(5, "B: a bad page"), (7, "D: an oops"), (9, "W: a warning"), (14, "L: a soft lockup")];

fn taint(text: &str) -> Vec<String> {
    let taint: u64 = text.trim().parse().unwrap_or(u64::MAX);
    let set = TAINTS.iter().filter(|(bit, _)| taint & (1 << bit) != 0);
    set.map(|(_, flag)| format!("the kernel is tainted, {flag}")).collect()
}

const DEBUGFS: &str = "/sys/kernel/debug";
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";
/// It leaves out what is younger than 5 s.
const KMEMLEAK_AGE: Duration = Duration::from_millis(5_500);

/// What kmemleak finds, on a kernel that has it.
fn leaks() -> io::Result<Vec<String>> {
    if Path::new(DEBUGFS).exists() {
        mount_at("debugfs", DEBUGFS, "debugfs")?;
    }
    if !Path::new(KMEMLEAK).exists() {
        return Ok(vec![]);
    }
    thread::sleep(KMEMLEAK_AGE);
    // Twice: a first scan does not report what has changed since the last one.
    for _ in 0..2 {
        fs::write(KMEMLEAK, "scan")?;
    }
    Ok(reports(&fs::read_to_string(KMEMLEAK)?))
}

/// A line for each of kmemleak's reports: what is lost, and who asked for it.
fn reports(text: &str) -> Vec<String> {
    let mut reports: Vec<String> = Vec::new();
    let mut in_backtrace = false;
    for line in text.lines() {
        if line.starts_with("unreferenced object") {
            reports.push(line.to_owned());
            in_backtrace = false;
        } else if line.trim_start().starts_with("backtrace") {
            in_backtrace = true;
        } else if let (true, Some(report)) = (in_backtrace, reports.last_mut()) {
            *report += " < ";
            *report += line.trim();
        }
    }
    reports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_told_from_other_lines() {
        for line in [
            "WARNING: CPU: 0 PID: 1",
            "BUG: KASAN: slab-use-after-free in exitscope_stop+0x1/0x2",
            "[ BUG: Invalid wait context ]",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "INFO: task init:1 blocked for more than 120 seconds.",
            "kmemleak: Kernel memory leak detector disabled",
        ] {
            assert_eq!(warning(&format!("4,1,2,-;{line}\n SUBSYSTEM=x")).as_deref(), Some(line));
        }
        for line in [
            "exitscope: loading out-of-tree module taints kernel.",
            "kmemleak: Kernel memory leak detector initialized (mem pool available: 39680)",
            "Running RCU self tests",
        ] {
            assert_eq!(warning(&format!("6,1,2,-;{line}")), None);
        }
    }

    #[test]
    fn taints_of_a_broken_kernel_are_told() {
        // O and E: our module is not of the kernel's tree, and not signed.
        assert!(taint("12288\n").is_empty());
        assert_eq!(taint("12800\n"), ["the kernel is tainted, W: a warning"]);
        assert_eq!(taint("16544\n").len(), 3);
    }

    #[test]
    fn each_leak_is_a_line() {
        let text = "unreferenced object 0xffff888006a2d800 (size 1024):
  comm \"init\", pid 1, jiffies 4294938611
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 0):
    __kmalloc_noprof+0x2a1/0x3f0
    0xffffffffa0200123
unreferenced object 0xffff888006a2dc00 (size 8):
";
        assert_eq!(
            reports(text),
            [
                "unreferenced object 0xffff888006a2d800 (size 1024): < __kmalloc_noprof+0x2a1/0x3f0 < 0xffffffffa0200123",
                "unreferenced object 0xffff888006a2dc00 (size 8):"
            ]
        );
        assert!(reports("").is_empty());
    }
}
