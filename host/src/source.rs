//! Where numbers come from: the module's device, or a copy of what it shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use exitscope_model::document::Origin;
use exitscope_model::snapshot::Snapshot;

use crate::region::{self, DEVICE, Region};

/// What a user may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best that is there.
    #[default]
    Auto,
    /// The kernel module.
    Module,
    /// eBPF programs.
    Bpf,
    /// A file: a copy of the module's region.
    File(PathBuf),
}

impl Choice {
    /// Reads what stands on a command line.
    pub fn parse(text: &str) -> Self {
        match text {
            "auto" => Self::Auto,
            "module" => Self::Module,
            "bpf" => Self::Bpf,
            path => Self::File(path.into()),
        }
    }
}

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The region cannot be read.
    #[error(transparent)]
    Region(#[from] region::Error),
    /// There is no such source.
    #[error("this version has no eBPF source: load the module (`exitscope doctor` says what it needs here)")]
    NoBpf,
}

/// A source that is open.
#[derive(Debug)]
pub struct Source {
    region: Region,
    origin: Origin,
    live: bool,
}

/// When [`Source::arrivals`] looked last, and what there was.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    at: Instant,
    used_cells: u32,
}

impl Source {
    /// Opens a source.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    pub fn open(choice: &Choice) -> Result<Self, Error> {
        let emulator = emulator(Path::new("/proc/cmdline"));
        let module = |why: &str| {
            let region = Region::open(Path::new(DEVICE))?;
            let emulator = emulator.clone();
            let origin = Origin { source: "module".into(), why: why.into(), emulator, copy: false };
            Ok(Self { region, origin, live: true })
        };
        match choice {
            Choice::Auto => module("it is loaded"),
            Choice::Module => module(""),
            Choice::Bpf => Err(Error::NoBpf),
            Choice::File(path) => {
                let region = Region::open(path)?;
                let origin = Origin { source: path.display().to_string(), copy: true, ..Origin::default() };
                Ok(Self { region, origin, live: false })
            }
        }
    }

    /// Where its numbers come from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether its numbers change: not those of a file.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Number and process of every VM that lives, where some may have come since the last look; asked often, it looks
    /// seldom.
    pub fn arrivals(&self, last: &mut Option<Look>) -> Vec<(u64, u32)> {
        // Where one comes and another goes, the cells in use may stay as many.
        const AT_LEAST: Duration = Duration::from_secs(1);
        let used_cells = self.region.used_cells();
        let same = |look: &Look| look.used_cells == used_cells && look.at.elapsed() < AT_LEAST;
        if last.as_ref().is_some_and(same) {
            return Vec::new();
        }
        *last = Some(Look { at: Instant::now(), used_cells });
        self.region.live_vms()
    }

    /// Everything that has been counted until now, or until the copy was made.
    pub fn snapshot(&self) -> Snapshot {
        let snapshot = self.region.snapshot();
        Snapshot { at: snapshot.at.filter(|_| self.live), ..snapshot }
    }
}

/// The emulator of this machine's CPU, which the lab tells by the kernel's command line (`lab.emulator=NAME`);
/// empty on a real CPU.
fn emulator(cmdline: &Path) -> String {
    let text = fs::read_to_string(cmdline).unwrap_or_default();
    text.split_whitespace().find_map(|word| word.strip_prefix("lab.emulator=")).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use exitscope_abi::region::{FIELDS, kind};

    use super::*;
    use crate::generated::{Shape, region};

    #[test]
    fn vms_are_looked_for_only_where_there_may_be_new_ones() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let shape = Shape { vms: 2, vcpus: 1, reasons: 1, exits: 6 };
        fs::write(file.path(), region(shape, |vm| vm + 10)).unwrap();
        let source = Source::open(&Choice::File(file.path().into())).unwrap();
        let mut last = None;
        let vms = [(1, 10), (2, 11)];
        assert_eq!([source.arrivals(&mut last), source.arrivals(&mut last)], [vms.to_vec(), vec![]]);
        let field =
            FIELDS.iter().find(|field| field.kind == kind::HEADER && field.name == "used_cells").unwrap();
        let writer = fs::File::options().write(true).open(file.path()).unwrap();
        writer.write_all_at(&9_u32.to_le_bytes(), field.offset.into()).unwrap();
        assert_eq!(source.arrivals(&mut last), vms);
        last = last.map(|look| Look { at: look.at.checked_sub(Duration::from_secs(2)).unwrap(), ..look });
        assert_eq!(source.arrivals(&mut last), vms);
    }

    #[test]
    fn of_a_copy_no_time_is_known() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), region(Shape { vms: 1, vcpus: 1, reasons: 1, exits: 6 }, |_| 1)).unwrap();
        let source = Source::open(&Choice::File(file.path().into())).unwrap();
        assert!(source.snapshot().at.is_none() && source.origin().copy);
    }
}
