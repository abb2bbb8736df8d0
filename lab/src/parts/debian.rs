//! Makes a disk with a Debian system that boots, from Debian's packages, as a normal user.
//!
//! apt resolves and downloads the packages as if nothing were installed; `debian/unpack.sh` unpacks them and
//! makes an ext4 image of that. Nothing is mounted, no namespace is needed, and no root either: `fakeroot`
//! pretends it, so that files get their owners, also for a root who may not give files away. Nothing of ours
//! is on the disk, so it is made anew only when Debian's packages are.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::parts::apt::Apt;
use crate::parts::cache::{Cache, Key};
use crate::parts::tool::{self, APT_CACHE, DPKG_DEB, FAKEROOT, MKE2FS};

/// What is installed, besides all that this needs. Without `usr-is-merged`, a Perl is drawn in to merge `/usr`.
const PACKAGES: [&str; 5] = ["?essential", "usr-is-merged", "systemd-sysv", "udev", "dbus"];
/// What is installed without what it needs: only a script of it wants Perl.
const WITHOUT_DEPENDENCIES: &str = "cpuid";
/// The packages whose versions tell one Debian from another: those of its point releases, and its first process.
const VERSION_PACKAGES: [&str; 2] = ["base-files", "systemd"];
/// The script that makes the image.
const UNPACK: &str = include_str!("debian/unpack.sh");
/// The image's name in its entry of the cache.
const DISK: &str = "disk";
/// About what the packages, the tree and the image take together while they are made.
const NEEDED: u64 = 300 << 20;

/// The image of the disk, made if there is none yet.
pub fn disk(cache: &Cache) -> Result<PathBuf, Error> {
    let versions =
        versions(&tool::output_of_query(APT_CACHE.command()?.arg("policy").args(VERSION_PACKAGES))?);
    let key =
        Key::new("disk with Debian: 1").text(UNPACK).text(&versions).text(&PACKAGES.join(" ")).needs(NEEDED);
    let entry = cache.entry("debian", key, make)?;
    let disk = entry.join(DISK);
    match is_intact(&disk) {
        true => Ok(disk),
        false => Err(Error::CacheDamaged { path: entry }),
    }
}

/// The versions that apt would install, from what `apt-cache policy` prints.
fn versions(policy: &str) -> String {
    let candidates = policy.lines().filter_map(|line| line.trim().strip_prefix("Candidate: "));
    candidates.collect::<Vec<_>>().join(" ")
}

fn make(directory: &Path) -> Result<(), Error> {
    let work = directory.join("work");
    let [script, root] = ["unpack.sh", "root"].map(|name| work.join(name));
    // Asked for before anything is downloaded.
    let mut command = FAKEROOT.command()?;
    [DPKG_DEB, MKE2FS].iter().try_for_each(|tool| tool.find().map(drop))?;
    fs::create_dir(&work).map_err(Error::io("make", &work))?;
    let apt = Apt::of_machine(&work)?;
    let what = "the packages of a Debian system";
    // The one first, so that a dead network is known at once, and not after trying each of a hundred.
    apt.get(&["download", WITHOUT_DEPENDENCIES], what)?;
    apt.get(&[&["-d", "install"], &PACKAGES[..]].concat(), what)?;
    fs::write(&script, UNPACK).map_err(Error::io("write", &script))?;
    tool::output(
        command.args(["--", "sh"]).arg(&script).arg(directory.join(DISK)).args([apt.packages(), &root]),
    )?;
    fs::remove_dir_all(&work).map_err(Error::io("remove", &work))
}

/// Whether a file is an ext4 file system with nothing cut off.
fn is_intact(disk: &Path) -> bool {
    /// Offsets in the file of the superblock's fields.
    const BLOCKS: usize = 0x404;
    const LOG_BLOCK_SIZE: usize = 0x418;
    const MAGIC: usize = 0x438;
    let mut head = [0; 0x440];
    let read = File::open(disk).and_then(|file| {
        file.read_exact_at(&mut head, 0)?;
        file.metadata()
    });
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let size = u64::from(word(BLOCKS)) << (10 + word(LOG_BLOCK_SIZE).min(6));
    read.is_ok_and(|data| head[MAGIC..MAGIC + 2] == [0x53, 0xef] && data.len() >= size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_install_is_known() {
        let policy = "base-files:\n  Installed: 12.4\n  Candidate: 12.4+deb12u15\n  Version table:\n\
                      systemd:\n  Installed: (none)\n  Candidate: 252.39-1\n";
        assert_eq!(versions(policy), "12.4+deb12u15 252.39-1");
    }

    #[test]
    fn a_damaged_disk_is_found_out() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        assert!(!is_intact(&disk));
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        assert!(!is_intact(&disk));
        let Ok(mut mke2fs) = MKE2FS.command() else {
            println!("skipped: mke2fs is not installed");
            return;
        };
        tool::output(mke2fs.args(["-q", "-F", "-t", "ext4"]).arg(&disk)).unwrap();
        assert!(is_intact(&disk));
        File::options().write(true).open(&disk).unwrap().set_len(1 << 19).unwrap();
        assert!(!is_intact(&disk));
    }
}
