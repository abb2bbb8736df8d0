//! Finds the stock Debian cloud kernel of a series: its image, its modules and the headers to build against.
//!
//! Package versions move, so no release is written down here: Debian's meta packages say which one it is.
//! Installed headers decide, since the module is built against them. What is not installed is downloaded and
//! unpacked into the cache, which a normal user may do, and which leaves the machine's own boot alone: to
//! install the headers of 6.12 on Debian 12 would install its image too, and make that the one to boot.
//! A series that this machine's Debian does not have comes from one that does, with its compiler (`foreign`).

mod foreign;

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;
use crate::parts::cache::{Cache, Key};
use crate::parts::debug_kernel;
use crate::parts::tool::{self, APT_CACHE, APT_GET, DEPMOD, DPKG_DEB, DPKG_QUERY};
use crate::progress::Progress;

const HEADERS: &str = "linux-headers-";
const FLAVOUR: &str = "-cloud-amd64";
/// About what an unpacked image package takes.
const IMAGE_SIZE: u64 = 150 << 20;
/// About what the unpacked header packages take.
const HEADERS_SIZE: u64 = 110 << 20;

/// A kernel that the lab runs on: the stock one of a series, or the one that it builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum Series {
    /// Debian 12's own.
    V6_1,
    /// Debian 13's own, and in Debian 12's security archive.
    #[default]
    V6_12,
    /// Debian sid's.
    V7_2,
    /// Debian's source of 6.12, built with the kernel's own checkers: see [`crate::parts::debug_kernel`].
    Debug,
}

impl Series {
    /// All of them: the stock ones, oldest first, and the one that is built.
    pub const ALL: [Self; 4] = [Self::V6_1, Self::V6_12, Self::V7_2, Self::Debug];
    /// The stock ones, oldest first.
    pub const STOCK: [Self; 3] = [Self::V6_1, Self::V6_12, Self::V7_2];

    /// As it is written: `6.12`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
            Self::Debug => "debug",
        }
    }

    /// Whether a release such as `6.12.117+deb12-cloud-amd64` is of this series.
    fn has(self, release: &str) -> bool {
        release.strip_prefix(self.name()).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The meta packages that may bring this series' headers, the more specific one first.
    fn metas(self) -> [String; 2] {
        [format!("{HEADERS}{self}{FLAVOUR}"), format!("linux-headers{FLAVOUR}")]
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|series| series.name() == text).ok_or_else(|| {
            format!("no kernel series `{text}`: choose one of {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

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

/// The kernel of a series, with what is not installed of it downloaded into the cache, or built there.
pub fn resolve(series: Series, cache: &Cache, progress: &mut Progress) -> Result<Kernel, Error> {
    if series == Series::Debug {
        return debug_kernel::resolve(cache);
    }
    let (release, build) = if let Some(release) = installed_headers(series)? {
        (release.clone(), installed_build(&release))
    } else if let Some(release) = available_headers(series)? {
        let root = download_headers(&release, cache)?;
        (release.clone(), headers(&root, &release))
    } else {
        let (release, root) = foreign::tree(series, cache, progress)?;
        let build = headers(&root, &release);
        return Ok(kernel(series, &root, release, build, Some(root.join("usr/bin"))));
    };
    let root =
        if is_complete(Path::new("/"), &release) { "/".into() } else { download_image(&release, cache)? };
    Ok(kernel(series, &root, release, build, None))
}

fn kernel(series: Series, root: &Path, release: String, build: PathBuf, tools: Option<PathBuf>) -> Kernel {
    Kernel { series, image: image(root, &release), modules: modules(root, &release), build, tools, release }
}

/// The release of the series whose headers are installed.
fn installed_headers(series: Series) -> Result<Option<String>, Error> {
    let installed = tool::output_of_query(DPKG_QUERY.command()?.args([
        "--show",
        "--showformat=${db:Status-Status}\t${Package}\t${Version}\t${Depends}\n",
        "linux-headers-*cloud-amd64",
    ]))?;
    Ok(choose(series, &installed))
}

fn installed_build(release: &str) -> PathBuf {
    let build = Path::new("/lib/modules").join(release).join("build");
    if build.is_dir() { build } else { headers(Path::new("/"), release) }
}

/// The release of the series that Debian's package lists have now.
fn available_headers(series: Series) -> Result<Option<String>, Error> {
    let listing = tool::output_of_query(APT_CACHE.command()?.arg("depends").args(series.metas()))?;
    Ok(named_in(series, &listing))
}

/// Picks the release from `dpkg-query`'s lines of status, package, version and dependencies: the one that
/// an installed meta package names, else the newest.
fn choose(series: Series, listing: &str) -> Option<String> {
    let packages: Vec<[&str; 4]> = listing
        .lines()
        .filter_map(|line| line.split('\t').collect::<Vec<_>>().try_into().ok())
        .filter(|[status, ..]: &[&str; 4]| *status == "installed")
        .collect();
    let releases: Vec<&str> = packages
        .iter()
        .filter_map(|[_, package, ..]| package.strip_prefix(HEADERS))
        .filter(|release| series.has(release))
        .collect();
    let named_by = |meta: &String| {
        let [.., depends] = packages.iter().find(|[_, package, ..]| package == meta)?;
        releases_in(depends).find(|release| releases.contains(release))
    };
    let newest = || releases.iter().max_by_key(|release| numbers(release)).copied();
    series.metas().iter().find_map(named_by).or_else(newest).map(str::to_owned)
}

/// Finds the release of the series in what `apt-cache depends` prints for its meta packages.
fn named_in(series: Series, listing: &str) -> Option<String> {
    let depends = listing.lines().filter_map(|line| line.trim().split_once("Depends: "));
    let mut releases = depends.flat_map(|(_, depends)| releases_in(depends));
    releases.find(|release| series.has(release)).map(str::to_owned)
}

/// The packages that headers cannot be used without, from what `apt-cache depends` prints for them: the
/// sources that all flavours share, and the programs of the kernel's build. Not the kernel's image, which
/// they also depend on, and which would become what the machine itself boots if it were installed.
fn companions(listing: &str) -> Vec<&str> {
    let depends = listing.lines().filter_map(|line| line.trim().split_once("Depends: "));
    depends
        .map(|(_, package)| package)
        .filter(|package| {
            package.starts_with("linux-kbuild-")
                || (package.starts_with(HEADERS) && package.ends_with("-common"))
        })
        .collect()
}

/// The releases in a dependency field: those of `linux-headers-RELEASE`.
fn releases_in(depends: &str) -> impl Iterator<Item = &str> {
    depends
        .split([',', '|', ' ', '(', ')'])
        .filter_map(|word| word.strip_prefix(HEADERS))
        .filter(|release| release.ends_with(FLAVOUR))
}

/// The numbers in a release, to order by.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The bzImage below `root`: since Debian 14 it is a package's file beside the modules.
fn image(root: &Path, release: &str) -> PathBuf {
    let beside = modules(root, release).join("vmlinuz");
    if beside.is_file() { beside } else { root.join("boot").join(format!("vmlinuz-{release}")) }
}

fn headers(root: &Path, release: &str) -> PathBuf {
    root.join("usr/src").join(format!("{HEADERS}{release}"))
}

/// The directory of modules below `root`, where that of a package may have `/usr` before it.
fn modules(root: &Path, release: &str) -> PathBuf {
    let merged = root.join("usr/lib/modules").join(release);
    if merged.is_dir() { merged } else { root.join("lib/modules").join(release) }
}

/// Whether image and modules are there, and may be read.
fn is_complete(root: &Path, release: &str) -> bool {
    let dependencies = modules(root, release).join("modules.dep");
    File::open(image(root, release)).is_ok() && File::open(dependencies).is_ok()
}

/// Unpacks the image package of a release, and returns the directory that is its root.
fn download_image(release: &str, cache: &Cache) -> Result<PathBuf, Error> {
    let package = format!("linux-image-{release}");
    let key = Key::new("image package, depmod: 1").text(&package).needs(IMAGE_SIZE);
    cache.entry("kernel", key, |directory| {
        download(&package, directory)?;
        index_modules(directory, release)?;
        match is_complete(directory, release) {
            true => Ok(()),
            false => Err(Error::PackageIncomplete { path: image(directory, release), package }),
        }
    })
}

/// Unpacks the header packages of a release, and returns the directory that is their root.
fn download_headers(release: &str, cache: &Cache) -> Result<PathBuf, Error> {
    let package = format!("{HEADERS}{release}");
    let key = Key::new("header packages, relative Makefile: 1").text(&package).needs(HEADERS_SIZE);
    cache.entry("headers", key, |directory| {
        let listing = tool::output_of_query(APT_CACHE.command()?.args(["depends", &package]))?;
        for companion in companions(&listing) {
            download(companion, directory)?;
        }
        download(&package, directory)?;
        make_movable(&headers(directory, release).join("Makefile"))
    })
}

/// Downloads a package and unpacks it into `directory`, for which nobody need be root.
pub(crate) fn download(package: &str, directory: &Path) -> Result<(), Error> {
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
fn make_movable(makefile: &Path) -> Result<(), Error> {
    let text = fs::read_to_string(makefile).map_err(Error::io("read", makefile))?;
    let text = text.replace("/usr/src/", "$(HERE)../");
    let text = format!("HERE := $(dir $(realpath $(lastword $(MAKEFILE_LIST))))\n{text}");
    fs::write(makefile, text).map_err(Error::io("write", makefile))
}

/// Writes `modules.dep`, which is no part of the package.
fn index_modules(root: &Path, release: &str) -> Result<(), Error> {
    let base = if root.join("usr/lib/modules").is_dir() { root.join("usr") } else { root.into() };
    tool::output(DEPMOD.command()?.arg("-b").arg(base).arg(release)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::tool::MAKE;

    /// What `dpkg-query` prints on Debian 12 with the headers of 6.12 (shortened).
    const BOOKWORM: &str = "\
installed\tlinux-headers-6.12-cloud-amd64\t6.12.117-1~deb12u1\tlinux-headers-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)
installed\tlinux-headers-6.12.117+deb12-cloud-amd64\t6.12.117-1~deb12u1\tlinux-base (>= 4.12~), linux-headers-6.12.117+deb12-common (= 6.12.117-1~deb12u1), linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1) | linux-image-6.12.117+deb12-cloud-amd64-unsigned (= 6.12.117-1~deb12u1), linux-kbuild-6.12.117+deb12, gcc-12
";

    /// What `apt-cache depends` prints there for the meta packages of 6.12.
    const BOOKWORM_APT: &str = "\
linux-headers-6.12-cloud-amd64
  Depends: linux-headers-6.12.117+deb12-cloud-amd64
linux-headers-cloud-amd64
  Depends: linux-headers-6.1.0-56-cloud-amd64
";

    fn headers(status: &str, release: &str) -> String {
        format!("{status}\tlinux-headers-{release}\t1\tlinux-base\n")
    }

    #[test]
    fn the_meta_package_decides() {
        assert_eq!(choose(Series::V6_12, BOOKWORM).as_deref(), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(choose(Series::V6_1, BOOKWORM), None);
        // Newer headers that the meta package does not name, left by hand, are not the stock ones.
        let listing = headers("installed", "6.12.200+deb12-cloud-amd64") + BOOKWORM;
        assert_eq!(choose(Series::V6_12, &listing).as_deref(), Some("6.12.117+deb12-cloud-amd64"));
    }

    #[test]
    fn the_general_meta_package_counts_for_its_series_only() {
        let listing = "installed\tlinux-headers-cloud-amd64\t6.1.192-2\tlinux-headers-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n".to_owned()
            + &headers("installed", "6.1.0-56-cloud-amd64");
        assert_eq!(choose(Series::V6_1, &listing).as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(choose(Series::V6_12, &listing), None);
    }

    #[test]
    fn without_a_meta_package_the_newest_headers_count() {
        let listing = headers("installed", "6.12.9+deb13-cloud-amd64")
            + &headers("installed", "6.12.63+deb13-cloud-amd64")
            + &headers("config-files", "6.12.99+deb13-cloud-amd64")
            + &headers("not-installed", "6.12-cloud-amd64");
        assert_eq!(choose(Series::V6_12, &listing).as_deref(), Some("6.12.63+deb13-cloud-amd64"));
    }

    #[test]
    fn what_is_available_comes_from_the_meta_packages() {
        let named = |series, listing| named_in(series, listing).unwrap_or_default();
        assert_eq!(named(Series::V6_12, BOOKWORM_APT), "6.12.117+deb12-cloud-amd64");
        assert_eq!(named(Series::V6_1, BOOKWORM_APT), "6.1.0-56-cloud-amd64");
        assert_eq!(named(Series::V7_2, BOOKWORM_APT), "");
        let trixie = "linux-headers-cloud-amd64\n  Depends: linux-headers-6.12.63+deb13-cloud-amd64\n";
        assert_eq!(named(Series::V6_12, trixie), "6.12.63+deb13-cloud-amd64");
        assert_eq!(named(Series::V6_1, trixie), "");
    }

    #[test]
    fn headers_come_without_the_image() {
        let listing = "\
linux-headers-6.12.117+deb12-cloud-amd64
  Depends: linux-base
  Depends: linux-headers-6.12.117+deb12-common
 |Depends: linux-image-6.12.117+deb12-cloud-amd64
  Depends: linux-image-6.12.117+deb12-cloud-amd64-unsigned
  Depends: linux-kbuild-6.12.117+deb12
  Depends: gcc-12
";
        let expected = ["linux-headers-6.12.117+deb12-common", "linux-kbuild-6.12.117+deb12"];
        assert_eq!(companions(listing), expected);
    }

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

    #[test]
    fn a_series_that_is_gone_says_what_to_do() {
        let error = Error::NoSuchKernel { series: Series::V7_2, suite: "sid" }.to_string();
        assert!(
            error.contains("Debian sid") && error.contains("7.2") && error.contains("--kernel"),
            "{error}"
        );
    }

    #[test]
    fn a_series_is_read_as_it_is_written() {
        for series in Series::ALL {
            assert_eq!(series.to_string().parse(), Ok(series));
        }
        assert!("6.13".parse::<Series>().unwrap_err().contains("6.1, 6.12, 7.2, debug"));
        assert!(!Series::V6_1.has("6.12.1-cloud-amd64") && Series::V6_1.has("6.1.0-1-cloud-amd64"));
    }
}
