//! Programs that count without a process: their attachments and their region have names in a bpffs, which only root
//! may look at.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::mount::{MountFlags, mount};

use super::facts::Vendor;
use super::{Bpf, region_of, sys};
use crate::region::{self, Region};

/// Where a bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";
/// Where our names are in it.
pub const DIRECTORY: &str = "/sys/fs/bpf/exitscope";
/// The region's name there; the attachments' are those of their events.
const CELLS: &str = "cells";
/// `BPF_FS_MAGIC`
const MAGIC: u64 = 0xcafe_4a11;

/// What is wrong with pins.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Some are there.
    #[error("{DIRECTORY} is there already: `sudo exitscope bpf unpin` removes it, and ends its counting")]
    Exists,
    /// Somebody was killed who pinned or unpinned them.
    #[error(
        "{DIRECTORY} is half made, and what is there may cost every exit: `sudo exitscope bpf unpin` removes it"
    )]
    Half,
    /// There can be none.
    #[error(
        "{path}: {source}{}",
        if source.kind() == io::ErrorKind::PermissionDenied { " (this is root's: use sudo)" } else { "" }
    )]
    Access {
        /// What could not be had.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn access(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::Access { path, source }
}

/// Pinned programs, and what they have counted.
#[derive(Debug)]
pub struct Pinned {
    cells: OwnedFd,
    pub(super) vendor: Option<Vendor>,
}

impl Bpf {
    /// Lets the programs count until [`unpin`], also without this process.
    ///
    /// # Errors
    /// If programs are pinned already, or this is not permitted; then nothing is left of the attempt.
    pub fn pin(&self) -> Result<(), Error> {
        mount_bpffs(Path::new(BPFFS))?;
        self.pin_in(Path::new(DIRECTORY))
    }

    pub(super) fn pin_in(&self, directory: &Path) -> Result<(), Error> {
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists),
            result => result.map_err(access(directory))?,
        }
        let pinned = self.pin_all(directory);
        if pinned.is_err() {
            // That the attempt failed is worth more than why its traces stay.
            let _ = unpin_in(directory);
        }
        pinned
    }

    fn pin_all(&self, directory: &Path) -> Result<(), Error> {
        let vendor = directory.join(name_of(&self.vendor));
        fs::DirBuilder::new().mode(0o700).create(&vendor).map_err(access(&vendor))?;
        // The region at last: who finds it finds all.
        let links = self.links.iter().map(|(event, link)| (event.as_str(), link));
        for (name, object) in links.chain([(CELLS, &self.cells)]) {
            let path = directory.join(name);
            sys::pin(object.as_fd(), &path).map_err(access(&path))?;
        }
        Ok(())
    }
}

/// Ends the counting of pinned programs and forgets what they counted; false if there are none.
pub fn unpin() -> Result<bool, Error> {
    unpin_in(Path::new(DIRECTORY))
}

pub(super) fn unpin_in(directory: &Path) -> Result<bool, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(access(directory))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(access(directory))?.path());
    }
    // The region first: nobody finds half of it.
    paths.sort_by_key(|path| !path.ends_with(CELLS));
    // As much as can be: what stays is attached.
    let mut removed = Ok(true);
    for path in &paths {
        let result = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        removed = removed.and(result.map_err(access(path)).map(|()| true));
    }
    removed.and(fs::remove_dir(directory).map_err(access(directory)).map(|()| true))
}

impl Pinned {
    /// Finds pinned programs; `None` if there are none.
    ///
    /// # Errors
    /// If they may be there, but not for this user.
    pub fn open() -> Result<Option<Self>, Error> {
        Self::open_in(Path::new(DIRECTORY))
    }

    pub(super) fn open_in(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(CELLS);
        let cells = match sys::open_pinned(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return if directory.exists() { Err(Error::Half) } else { Ok(None) };
            }
            cells => cells.map_err(access(&path))?,
        };
        let names = fs::read_dir(directory).map_err(access(directory))?;
        let vendor = names.flatten().find_map(|entry| vendor_of(entry.file_name().to_str()?));
        Ok(Some(Self { cells, vendor }))
    }

    /// What they have counted.
    pub fn region(&self) -> Result<Region, region::Error> {
        region_of(self.cells.as_fd(), &Path::new(DIRECTORY).join(CELLS))
    }

    /// As [`Bpf::is_stale`]; also when they are pinned no more.
    pub fn is_stale(&self) -> bool {
        !Path::new(DIRECTORY).join(CELLS).exists()
            || self.vendor.as_ref().is_none_or(|vendor| vendor.is_stale(Path::new("/")))
    }
}

/// The name of a directory without anything in it, which tells what programs were made for.
fn name_of(vendor: &Vendor) -> String {
    let digits: String = vendor.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{digits}", vendor.module)
}

fn vendor_of(name: &str) -> Option<Vendor> {
    let (module, digits) = name.split_once('-')?;
    let module = ["kvm_amd", "kvm_intel"].into_iter().find(|known| *known == module)?;
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    Some(Vendor { module, build_id: pairs.iter().map(byte).collect::<Option<_>>()? })
}

/// Mounts a bpffs unless there is one.
pub(super) fn mount_bpffs(at: &Path) -> Result<(), Error> {
    let kind = statfs(at).map_err(|errno| access(at)(errno.into()))?.f_type;
    if kind as u64 == MAGIC {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", at, "bpf", flags, c"mode=0700").map_err(|errno| access(at)(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vendors_name_says_all_of_it() {
        for (module, build_id, name) in
            [("kvm_amd", &[0x0a, 0xff][..], "kvm_amd-0aff"), ("kvm_intel", &[], "kvm_intel-")]
        {
            let vendor = Vendor { module, build_id: build_id.into() };
            assert_eq!(name_of(&vendor), name);
            assert_eq!(vendor_of(name), Some(vendor));
        }
        for name in ["cells", "kvm_exit", "kvm_amd", "kvm_amd-0", "kvm_amd-0g", "kvm-00", "kvm_amd-é"] {
            assert_eq!(vendor_of(name), None, "{name}");
        }
    }

    #[test]
    fn where_nothing_is_pinned_nothing_is_found() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("exitscope");
        assert!(!unpin_in(&directory).unwrap());
        fs::create_dir(&directory).unwrap();
        fs::create_dir(directory.join("kvm_amd-00")).unwrap();
        assert!(unpin_in(&directory).unwrap() && !directory.exists());
    }
}
