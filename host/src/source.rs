//! Where numbers come from: the module's device, or a copy of what it shows.

use std::fs;
use std::path::{Path, PathBuf};

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

    /// Number and process of every VM that lives.
    pub fn live_vms(&self) -> Vec<(u64, u32)> {
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
