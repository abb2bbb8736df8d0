//! The kernel's own histogram of exits, as a witness: in a tracing instance of its own, of our guests' threads only.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::output::tell;

/// Where tracefs may be mounted.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Our instance.
const INSTANCE: &str = "instances/exitscope-selftest";
/// The event.
const EVENT: &str = "events/kvm/kvm_exit";
/// What starts the histogram.
const TRIGGER: &str = "hist:keys=common_pid,exit_reason:size=4096";

/// Exits by thread and reason.
pub type Exits = BTreeMap<(u32, u64), u64>;

/// A histogram that counts until this is dropped, which leaves nothing in tracefs.
pub struct Witness {
    instance: PathBuf,
}

impl Witness {
    /// Starts to count the exits of what this thread starts from now on, and of nobody else; or says why it cannot.
    pub fn start() -> Result<Self, String> {
        let Some(root) = PLACES.iter().map(Path::new).find(|root| root.join("instances").is_dir()) else {
            return Err("tracefs is not mounted: mount -t tracefs nodev /sys/kernel/tracing".into());
        };
        if !root.join(EVENT).is_dir() {
            return Err("the kernel has no event kvm:kvm_exit: load kvm".into());
        }
        let instance = root.join(INSTANCE);
        fs::create_dir(&instance).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => format!(
                "{} is there already: another self-test runs, or one was killed (then rmdir it)",
                instance.display()
            ),
            _ => format!("{} cannot be made: {error}", instance.display()),
        })?;
        let witness = Self { instance };
        let write = |file: &str, text: &str| {
            fs::write(witness.instance.join(file), text)
                .map_err(|error| format!("tracefs: {file} does not take `{text}`: {error}"))
        };
        // Threads that a listed one starts are listed, too; so the exits of other VMs cost no more than a look.
        write("options/event-fork", "1")?;
        write("set_event_pid", &rustix::thread::gettid().as_raw_nonzero().to_string())?;
        write(&format!("{EVENT}/trigger"), TRIGGER)?;
        Ok(witness)
    }

    /// What it has counted.
    pub fn read(&self) -> Result<Exits, String> {
        let path = self.instance.join(EVENT).join("hist");
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        parse(&text)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // Where it was never started, there is nothing to stop.
        let _ = fs::write(self.instance.join(EVENT).join("trigger"), format!("!{TRIGGER}"));
        if let Err(error) = fs::remove_dir(&self.instance) {
            tell(format_args!("{} cannot be removed (rmdir it): {error}", self.instance.display()));
        }
    }
}

/// Reads lines such as `{ common_pid:        211, exit_reason:        114 } hitcount:        552`.
fn parse(text: &str) -> Result<Exits, String> {
    let mut exits = Exits::new();
    for line in text.lines().filter(|line| line.starts_with("{ common_pid:")) {
        let words = line.split(|letter: char| letter.is_whitespace() || letter == ',');
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        let [thread, reason, count] = numbers[..] else {
            return Err(format!("the kernel's histogram has a line that cannot be read: {line}"));
        };
        let thread = u32::try_from(thread).map_err(|error| format!("{line}: {error}"))?;
        *exits.entry((thread, reason)).or_default() += count;
    }
    if !text.lines().any(|line| line.trim_start() == "Dropped: 0") {
        return Err("the kernel's histogram lost events".into());
    }
    Ok(exits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_read() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=common_pid,exit_reason:...\n#\n\n\
                    { common_pid:        211, exit_reason:        114 } hitcount:        552\n\
                    { common_pid:        211, exit_reason:       1024 } hitcount:          3\n\n\
                    Totals:\n    Hits: 555\n    Entries: 2\n    Dropped: 0\n";
        assert_eq!(parse(text).unwrap(), Exits::from([((211, 114), 552), ((211, 1024), 3)]));
        assert!(parse(&text.replace("Dropped: 0", "Dropped: 7")).unwrap_err().contains("lost"));
        assert!(parse(&text.replace("hitcount:          3", "hitcount: many")).is_err());
    }
}
