//! Finds the stock Debian cloud kernel of a series: its image, its modules and the headers to build against.
//!
//! Package versions move, so no release is written down here: Debian's meta packages say which one it is.
//! Installed headers decide, since the module is built against them. What is not installed is downloaded and
//! unpacked into the cache, which a normal user may do, and which leaves the machine's own boot alone: to
//! install the headers of 6.12 on Debian 12 would install its image too, and make that the one to boot.
//! A series that this machine's Debian does not have comes from one that does, with its compiler (`foreign`).

mod foreign;
pub(super) mod package;

use std::path::{Path, PathBuf};

pub use package::Kernel;
use package::{
    HEADERS, download, headers, image, index_modules, is_complete, make_movable, modules, named_in,
    releases_in,
};

use crate::error::Error;
use crate::parts::cache::{Cache, Key};
use crate::parts::debug_kernel;
use crate::parts::series::Series;
use crate::parts::tool::{self, APT_CACHE, DPKG_QUERY};
use crate::progress::Progress;

/// About what an unpacked image package takes.
const IMAGE_SIZE: u64 = 150 << 20;
/// About what the unpacked header packages take.
const HEADERS_SIZE: u64 = 110 << 20;

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

/// The meta packages that may bring a series' headers, the more specific one first.
fn metas(series: Series) -> [String; 2] {
    let (version, flavour) = series.version_and_flavour();
    [format!("{HEADERS}{version}{flavour}"), format!("linux-headers{flavour}")]
}

/// The release of the series whose headers are installed.
fn installed_headers(series: Series) -> Result<Option<String>, Error> {
    let installed = tool::output_of_query(DPKG_QUERY.command()?.args([
        "--show",
        "--showformat=${db:Status-Status}\t${Package}\t${Version}\t${Depends}\n",
        &format!("{HEADERS}*{}", series.version_and_flavour().1),
    ]))?;
    Ok(choose(series, &installed))
}

fn installed_build(release: &str) -> PathBuf {
    let build = Path::new("/lib/modules").join(release).join("build");
    if build.is_dir() { build } else { headers(Path::new("/"), release) }
}

/// The release of the series that Debian's package lists have now.
fn available_headers(series: Series) -> Result<Option<String>, Error> {
    let listing = tool::output_of_query(APT_CACHE.command()?.arg("depends").args(metas(series)))?;
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
    metas(series).iter().find_map(named_by).or_else(newest).map(str::to_owned)
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
                || (package.starts_with(HEADERS) && package.contains("-common"))
        })
        .collect()
}

/// The numbers in a release, to order by.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
