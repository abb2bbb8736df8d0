//! A kernel's Debian packages once they are unpacked: where what lies in them, and how they get there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::parts::series::Series;
use crate::parts::tool::{self, APT_GET, DEPMOD, DPKG_DEB};

/// What the names of header packages begin with.
pub const HEADERS: &str = "linux-headers-";

/// A kernel to run and to build modules for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its series.
    pub series: Series,
    /// Its release, as `uname -r` prints it: `6.12.117+deb12-cloud-amd64`.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The directory `…/lib/modules/RELEASE`, with `modules.dep`.
    pub modules: PathBuf,
    /// The directory to build modules against.
    pub build: PathBuf,
    /// Where the programs are to build them with, if they are not this machine's.
    pub tools: Option<PathBuf>,
}

/// Finds the release of the series in what `apt-cache depends` prints for its meta packages.
pub fn named_in(series: Series, listing: &str) -> Option<String> {
    let depends = listing.lines().filter_map(|line| line.trim().split_once("Depends: "));
    let mut releases = depends.flat_map(|(_, depends)| releases_in(depends));
    releases.find(|release| series.has(release)).map(str::to_owned)
}

/// The releases in a dependency field: those of `linux-headers-RELEASE`.
pub fn releases_in(depends: &str) -> impl Iterator<Item = &str> {
    depends.split([',', '|', ' ', '(', ')']).filter_map(|word| word.strip_prefix(HEADERS))
}

/// The bzImage below `root`: since Debian 14 it is a package's file beside the modules.
pub fn image(root: &Path, release: &str) -> PathBuf {
    let beside = modules(root, release).join("vmlinuz");
    if beside.is_file() { beside } else { root.join("boot").join(format!("vmlinuz-{release}")) }
}

/// The directory of headers below `root`.
pub fn headers(root: &Path, release: &str) -> PathBuf {
    root.join("usr/src").join(format!("{HEADERS}{release}"))
}

/// The directory of modules below `root`, where that of a package may have `/usr` before it.
pub fn modules(root: &Path, release: &str) -> PathBuf {
    let merged = root.join("usr/lib/modules").join(release);
    if merged.is_dir() { merged } else { root.join("lib/modules").join(release) }
}

/// Whether image and modules are there, and may be read.
pub fn is_complete(root: &Path, release: &str) -> bool {
    let dependencies = modules(root, release).join("modules.dep");
    File::open(image(root, release)).is_ok() && File::open(dependencies).is_ok()
}

/// Downloads a package and unpacks it into `directory`, for which nobody need be root.
pub fn download(package: &str, directory: &Path) -> Result<(), Error> {
    let fetched = tool::output(APT_GET.command()?.args(["download", package]).current_dir(directory));
    fetched.map_err(|error| tool::not_downloaded(error, package))?;
    let files = fs::read_dir(directory).map_err(Error::io("read", directory))?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let archive = files.flatten().map(|file| file.path()).find(is_package);
    let archive = archive.ok_or_else(|| Error::PackageIncomplete {
        package: package.to_owned(),
        path: directory.join(package),
    })?;
    tool::output(DPKG_DEB.command()?.arg("-x").args([archive.as_path(), directory]))?;
    fs::remove_file(&archive).map_err(Error::io("remove", &archive))
}

/// Lets the headers' Makefile find itself and the shared one beside it, wherever both are. Their links are relative
/// already.
pub fn make_movable(makefile: &Path) -> Result<(), Error> {
    let text = fs::read_to_string(makefile).map_err(Error::io("read", makefile))?;
    let text = text.replace("/usr/src/", "$(HERE)../");
    let text = format!("HERE := $(dir $(realpath $(lastword $(MAKEFILE_LIST))))\n{text}");
    fs::write(makefile, text).map_err(Error::io("write", makefile))
}

/// Writes `modules.dep`, which is no part of the package.
pub fn index_modules(root: &Path, release: &str) -> Result<(), Error> {
    let base = if root.join("usr/lib/modules").is_dir() { root.join("usr") } else { root.into() };
    tool::output(DEPMOD.command()?.arg("-b").arg(base).arg(release)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::tool::MAKE;

    #[test]
    fn unpacked_headers_find_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let makefile = directory.path().join("linux-headers-6.12-cloud/Makefile");
        let common = directory.path().join("linux-headers-6.12-common/Makefile");
        for file in [&makefile, &common] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        fs::write(&common, "all:\n\t@echo $(KBUILD_OUTPUT)\n").unwrap();
        let own = "KBUILD_OUTPUT=/usr/src/linux-headers-6.12-cloud\ninclude /usr/src/linux-headers-6.12-common/Makefile\n";
        fs::write(&makefile, own).unwrap();
        make_movable(&makefile).unwrap();
        let Ok(mut make) = MAKE.command() else {
            println!("skipped: make is not installed");
            return;
        };
        let said = tool::output(make.arg("-sC").arg(makefile.parent().unwrap())).unwrap();
        assert_eq!(
            Path::new(said.trim()).canonicalize().unwrap(),
            makefile.parent().unwrap().canonicalize().unwrap()
        );
    }
}
