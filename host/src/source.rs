//! Where numbers come from: the module's device, eBPF programs, or a copy of what either shows.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use exitscope_abi::bpf::DEFAULT_CELLS;
use exitscope_model::Quality;
use exitscope_model::document::Origin;
use exitscope_model::snapshot::Snapshot;

use crate::bpf::pin::Pinned;
use crate::bpf::{self, Bpf};
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
    /// The eBPF programs cannot be had.
    #[error(transparent)]
    Bpf(#[from] bpf::Error),
    /// There is neither the module nor what eBPF needs.
    #[error("neither source can be had.\nThe module: {module}\neBPF: {bpf}")]
    Neither {
        /// Why not the module.
        module: region::Error,
        /// Why not eBPF.
        bpf: Box<Self>,
    },
}

/// A source that is open.
#[derive(Debug)]
pub struct Source {
    region: Region,
    programs: Programs,
    origin: Origin,
    live: bool,
}

/// What keeps a source's numbers coming.
#[derive(Debug)]
enum Programs {
    /// Nothing that would be this process's.
    None,
    /// Programs of its own.
    Own(Bpf),
    /// Those that are pinned.
    Pinned(Pinned),
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
        match choice {
            Choice::Auto => match Self::module("it is loaded") {
                Err(region::Error::Missing { path, advice }) => {
                    let module = region::Error::Missing { path, advice };
                    Self::bpf("the module is not loaded")
                        .map_err(|bpf| Error::Neither { module, bpf: bpf.into() })
                }
                module => Ok(module?),
            },
            Choice::Module => Ok(Self::module("")?),
            Choice::Bpf => Self::bpf(""),
            Choice::File(path) => {
                let region = Region::open(path)?;
                let origin = Origin { source: path.display().to_string(), copy: true, ..Origin::default() };
                Ok(Self { region, programs: Programs::None, origin, live: false })
            }
        }
    }

    fn module(why: &str) -> Result<Self, region::Error> {
        let region = Region::open(Path::new(DEVICE))?;
        Ok(Self { region, programs: Programs::None, origin: origin("module", why.into()), live: true })
    }

    /// The programs that are pinned, or else some of its own, which end with it.
    fn bpf(why: &str) -> Result<Self, Error> {
        // Who may not look for pinned ones may still have the right to load others.
        let (region, programs, kind) = match Pinned::open() {
            Ok(Some(pinned)) => (pinned.region()?, Programs::Pinned(pinned), "pinned programs"),
            Ok(None) => {
                let bpf = Bpf::load(DEFAULT_CELLS)?;
                (bpf.region()?, Programs::Own(bpf), "")
            }
            Err(bpf::pin::Error::Access { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                let bpf = Bpf::load(DEFAULT_CELLS)?;
                (bpf.region()?, Programs::Own(bpf), "pinned programs would be root's to read")
            }
            Err(error) => return Err(bpf::Error::from(error).into()),
        };
        let why = [why, kind].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        Ok(Self { region, programs, origin: origin("bpf", why), live: true })
    }

    /// Whether KVM's part for this CPU was replaced beneath the source, whose numbers end there: open it anew.
    pub fn is_stale(&self) -> bool {
        match &self.programs {
            // The module follows by itself.
            Programs::None => false,
            Programs::Own(bpf) => bpf.is_stale(),
            Programs::Pinned(pinned) => pinned.is_stale(),
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
        let missed = match &self.programs {
            Programs::Own(bpf) => bpf.missed(),
            Programs::None | Programs::Pinned(_) => 0,
        };
        let quality = Quality { missed, ..snapshot.quality };
        Snapshot { at: snapshot.at.filter(|_| self.live), quality, ..snapshot }
    }
}

fn origin(source: &str, why: String) -> Origin {
    Origin { source: source.into(), why, emulator: emulator(Path::new("/proc/cmdline")), copy: false }
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
