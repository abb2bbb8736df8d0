//! What the guests' VMMs have in common: the trait, the command line, the initramfs, the clock, how a failure is told.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use exitscope_host::region::Region;
use exitscope_model::Tick;

use super::wait::retry_for;
use super::{counters, kernel};
use crate::job::{Event, GUEST_INITRD, JOB, Job};
use crate::parts::debug_kernel::timeout_factor;
use crate::parts::image::Image;

/// A guest that takes longer, in seconds, has hung. One that asks in all layouts and under all policies takes minutes
/// under Bochs.
const TIME_LIMIT: u32 = 900;
/// The guests' kernel command line: short of log lines, each byte of which is an exit; without XSAVE, which TCG gets
/// wrong in a guest; without addresses of programs at random, whose code TCG would translate anew each time; without
/// tests of ciphers and of entropy, names of trace events' values, and REP MOVSB, all of which cost emulated time.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 norandmaps 8250.nr_uarts=1 random.trust_cpu=on noxsave cryptomgr.notests initcall_blacklist=jent_mod_init,trace_eval_init clearcpuid=erms,fsrm";
/// How much of a failed guest's console an error shows.
const TAIL_LINES: usize = 12;

/// A guest that is running, under whatever runs it.
pub trait Vmm {
    /// Whether it has ended.
    fn has_ended(&mut self) -> io::Result<bool>;
    /// Waits for its end, and says how that was; `still_running` is [`Event::Guest`]'s.
    fn finish(self: Box<Self>, still_running: bool) -> io::Result<Event>;
}

/// The timeline's clock: tells the time, and the exits until then if our module or eBPF programs count them.
pub struct Clock {
    began: Instant,
    region: Option<Region>,
}

impl Clock {
    /// A clock that began then.
    pub fn since(began: Instant) -> Self {
        Self { began, region: counters::open().ok() }
    }

    /// A clock that began then, for which one of the two must be there.
    pub fn counting(began: Instant) -> io::Result<Self> {
        Ok(Self { began, region: Some(counters::open()?) })
    }

    /// Now.
    pub fn tick(&self) -> Tick {
        let exits = self.region.as_ref().map_or(0, Region::exits);
        Tick { t_ms: self.began.elapsed().as_millis() as u64, exits }
    }
}

/// How long a guest may take on this kernel, in seconds.
pub fn time_limit() -> u32 {
    TIME_LIMIT * timeout_factor(&kernel::release())
}

/// Waits for what a guest is about to do, as long as it may take for all of it.
pub fn wait_for<T>(attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    retry_for(Duration::from_secs(time_limit().into()), Duration::from_millis(10), attempt)
}

/// The error of a guest that failed, with the end of its console.
pub fn failure(name: &str, status: ExitStatus, complaint: &str, console: &str) -> io::Error {
    let lines: Vec<&str> = console.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    let end = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
    io::Error::other(format!("guest {name} failed ({end}): {complaint}\nIts console's last lines:\n{tail}"))
}

/// The guests' initramfs with a guest's own job, and these files of this machine's: two archives in a row, which
/// the kernel unpacks both.
pub fn initrd_with_job(name: &str, job: &Job, files: &[PathBuf]) -> io::Result<PathBuf> {
    let path = PathBuf::from(format!("/tmp/{name}.initrd"));
    let mut initrd = File::create(&path)?;
    io::copy(&mut File::open(GUEST_INITRD)?, &mut initrd)?;
    let mut image = Image::new();
    let fill = || {
        files.iter().try_for_each(|file| image.file(&file.to_string_lossy(), file, 0o644).map(drop))?;
        image.bytes(JOB, serde_json::to_vec(job).unwrap_or_default(), 0o644)?.write(initrd)
    };
    fill().map_err(io::Error::other)?;
    Ok(path)
}
