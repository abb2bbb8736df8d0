//! What the agent asks of the kernel it runs on: file systems, modules, the histogram trigger.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use exitscope_host::kernel_log::{KernelLog, text_of};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};
use rustix::system::{delete_module, finit_module};

use crate::job::Insert;

const TRIGGER: &str = "/sys/kernel/tracing/events/kvm/kvm_exit/trigger";
const HISTOGRAM: &str = "/sys/kernel/tracing/events/kvm/kvm_exit/hist";
const EVENTS: [&str; 2] =
    ["/sys/kernel/tracing/events/kvm/kvm_exit/enable", "/sys/kernel/tracing/events/kvm/kvm_entry/enable"];

/// Mounts what programs expect.
pub fn mount_all() -> io::Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")] {
        mount_at(kind, place, kind)?;
    }
    Ok(())
}

/// Mounts a file system, unless something is mounted there.
pub fn mount_at(source: &str, place: &str, kind: &str) -> io::Result<()> {
    fs::create_dir_all(place)?;
    match mount(source, place, kind, MountFlags::empty(), None) {
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(errno) => Err(named(format!("mount {source} at {place}"), errno)),
    }
}

fn named(what: String, errno: rustix::io::Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Loads a module.
pub fn insert(insert: &Insert) -> io::Result<()> {
    let Insert { path, parameters } = insert;
    let what = || format!("load {path} {parameters}");
    let file =
        File::open(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", what())))?;
    let text = CString::new(parameters.as_str())?;
    let mut log = KernelLog::from_now()?;
    finit_module(&file, &text, 0).map_err(|errno| {
        let reasons = log.read(|record| text_of(record).map(str::to_owned)).unwrap_or_default();
        let reasons: String = reasons.iter().map(|reason| format!("\n  the kernel: {reason}")).collect();
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("{}: {error}{reasons}", what()))
    })
}

/// Unloads a module; refuses to wait for its users.
pub fn remove(name: &str) -> io::Result<()> {
    let text = CString::new(name)?;
    delete_module(&text, OFlags::NONBLOCK.bits() as _).map_err(|errno| named(format!("unload {name}"), errno))
}

/// Writes to a file, most often one of the kernel's settings.
pub fn write(path: &str, text: &str) -> io::Result<()> {
    fs::write(path, text).map_err(|error| io::Error::new(error.kind(), format!("{path} = {text}: {error}")))
}

/// Writes to a register of one CPU.
pub fn write_msr(cpu: u32, address: u32, value: u64) -> io::Result<()> {
    let path = format!("/dev/cpu/{cpu}/msr");
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.write_all_at(&value.to_le_bytes(), address.into()))
        .map_err(|error| io::Error::new(error.kind(), format!("{path}, {address:#x} = {value:#x}: {error}")))
}

fn mount_tracefs() -> io::Result<()> {
    if Path::new(TRIGGER).exists() {
        return Ok(());
    }
    mount("tracefs", "/sys/kernel/tracing", "tracefs", MountFlags::empty(), None)
        .map_err(|errno| named("mount tracefs".into(), errno))
}

/// Switches tracing of both events on or off.
pub fn ftrace(on: bool) -> io::Result<()> {
    mount_tracefs()?;
    EVENTS.iter().try_for_each(|event| fs::write(event, if on { "1" } else { "0" }))
}

/// Starts the kernel's own histogram of exits by reason, from zero.
pub fn start_histogram() -> io::Result<()> {
    mount_tracefs()?;
    // Absent at the first time, and then there is nothing to remove.
    let _ = fs::write(TRIGGER, "!hist:keys=exit_reason");
    fs::write(TRIGGER, "hist:keys=exit_reason")
}

/// Reads that histogram: pairs of reason and exits.
pub fn read_histogram() -> io::Result<Vec<(u64, u64)>> {
    parse_histogram(&fs::read_to_string(HISTOGRAM)?)
}

/// Reads lines such as `{ exit_reason:        114 } hitcount:        552`.
fn parse_histogram(text: &str) -> io::Result<Vec<(u64, u64)>> {
    let mut exits = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("{ exit_reason:")) {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [reason, count] = numbers[..] else {
            return Err(io::Error::other(format!("{HISTOGRAM}: cannot read `{line}`")));
        };
        exits.push((reason, count));
    }
    if !text.lines().any(|line| line.trim_start() == "Dropped: 0") {
        return Err(io::Error::other(format!("{HISTOGRAM} lost events: it proves nothing")));
    }
    exits.sort_unstable();
    Ok(exits)
}

/// Release of the running kernel.
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_read() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=exit_reason:...\n#\n\n\
                    { exit_reason:        114 } hitcount:        552\n\
                    { exit_reason:       1024 } hitcount:          3\n\n\
                    Totals:\n    Hits: 555\n    Entries: 2\n    Dropped: 0\n";
        assert_eq!(parse_histogram(text).unwrap(), [(114, 552), (1024, 3)]);
        assert!(parse_histogram(&text.replace("Dropped: 0", "Dropped: 7")).is_err());
        assert!(parse_histogram(&text.replace("hitcount:          3", "hitcount: many")).is_err());
    }
}
