//! A stock kernel of another release of Debian, with the compiler that it was built with, as a tree in the cache.
//!
//! The programs of a kernel's build belong to its release: its headers' own need that release's C library, and a
//! module wants that release's compiler. All of them are downloaded with what they depend on and unpacked side by
//! side. Each program is then started by the tree's own loader with the tree's own libraries, so that no namespace,
//! no chroot and no root is needed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::package::{self, HEADERS, index_modules, make_movable, named_in};
use crate::error::Error;
use crate::parts::apt::Apt;
use crate::parts::cache::{Cache, Key};
use crate::parts::series::Series;
use crate::parts::shared_library;
use crate::parts::tool::{self, DPKG_DEB};
use crate::progress::Progress;

/// Stands in the place of a program.
const LAUNCHER: &str = include_str!("launcher.sh");
/// What [`LAUNCHER`] expects at the end of a program's own name.
const PROGRAM: &str = ".program";
/// About what the packages and the tree take together while they are made.
const NEEDED: u64 = 700 << 20;

/// The release of Debian that has a series, as its mirrors call it.
fn suite(series: Series) -> &'static str {
    match series {
        Series::V6_1 => "bookworm",
        // The debug kernel is built of what the machine itself has.
        Series::V6_12 | Series::Rt | Series::Debug => "trixie",
        Series::V7_2 => "sid",
    }
}

/// The kernel's release, and the root of the tree that has it. It is made once: what it was made of moves on.
pub(super) fn tree(
    series: Series,
    cache: &Cache,
    progress: &mut Progress,
) -> Result<(String, PathBuf), Error> {
    let suite = suite(series);
    let key = Key::new("kernel of another Debian: 1").text(suite).text(series.name()).text(LAUNCHER);
    let root = cache.entry("foreign", key.needs(NEEDED), |directory| {
        progress.phase(format!("reads which Linux {series} Debian {suite} has"));
        make(series, directory, progress)
    })?;
    let release = release_in(&root, series).ok_or_else(|| Error::CacheDamaged { path: root.clone() })?;
    Ok((release, root))
}

fn make(series: Series, directory: &Path, progress: &mut Progress) -> Result<(), Error> {
    let suite = suite(series);
    let work = directory.join("work");
    fs::create_dir(&work).map_err(Error::io("make", &work))?;
    let apt = Apt::of_suite(suite, &work)?;
    let listing = apt.query(&["depends", &format!("linux-headers{}", series.version_and_flavour().1)])?;
    let release = named_in(series, &listing).ok_or(Error::NoSuchKernel { series, suite })?;
    progress.phase(format!("downloads Linux {release} of Debian {suite}, and its compiler"));
    let what = format!("Linux {release} of Debian {suite}");
    let image = image_packages(&release, &apt.query(&["pkgnames", "linux-"])?);
    let image: Vec<&str> = image.iter().map(String::as_str).collect();
    // The image alone: what else it depends on is for a machine that boots it.
    apt.get(&[&["download"], &image[..]].concat(), &what)?;
    apt.get(&["-d", "install", &format!("{HEADERS}{release}")], &what)?;
    progress.phase(format!("unpacks Linux {release}"));
    unpack(apt.packages(), directory)?;
    fs::remove_dir_all(&work).map_err(Error::io("remove", &work))?;
    make_movable(&package::headers(directory, &release).join("Makefile"))?;
    index_modules(directory, &release)?;
    launch_all(&directory.join("usr"))?;
    match package::is_complete(directory, &release) {
        true => Ok(()),
        false => Err(Error::PackageIncomplete {
            path: package::image(directory, &release),
            package: format!("linux-image-{release}"),
        }),
    }
}

/// The packages that make up a kernel's image, of those that there are: one, or since Debian 14 one for each of its
/// parts. Signed ones come some hours after those that are not.
fn image_packages(release: &str, names: &str) -> Vec<String> {
    let there = |name: &String| names.lines().any(|line| line == name);
    let parts = ["image", "base", "modules"].map(|part| format!("linux-{part}-{release}"));
    let signed = format!("linux-binary-{release}");
    let unsigned = [format!("linux-binary-unsigned-{release}"), format!("linux-image-{release}-unsigned")];
    let binary = if there(&signed) || (there(&parts[0]) && !there(&parts[1])) {
        vec![signed]
    } else {
        unsigned.into()
    };
    parts.into_iter().chain(binary).filter(there).collect()
}

/// Unpacks every package, without what only people read.
fn unpack(packages: &Path, root: &Path) -> Result<(), Error> {
    let files = fs::read_dir(packages).map_err(Error::io("read", packages))?;
    let files = files.flatten().map(|file| file.path());
    for package in files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")) {
        tool::output(DPKG_DEB.command()?.arg("-x").args([package.as_path(), root]))?;
    }
    let share = root.join("usr/share");
    fs::remove_dir_all(&share).map_err(Error::io("remove", &share))
}

/// Puts the launcher in the place of every program below a directory.
fn launch_all(directory: &Path) -> Result<(), Error> {
    let children = fs::read_dir(directory).map_err(Error::io("read", directory))?;
    for child in children.flatten() {
        let path = child.path();
        let data = child.metadata().map_err(Error::io("read", &path))?;
        if data.is_dir() {
            launch_all(&path)?;
        } else if data.is_file() && data.permissions().mode() & 0o111 != 0 && is_program(&path)? {
            launch(&path)?;
        }
    }
    Ok(())
}

/// Whether a file is a program that needs a loader. So is the C library, by form.
fn is_program(path: &Path) -> Result<bool, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(!name.contains(".so") && shared_library::has_interpreter(path)?)
}

fn launch(program: &Path) -> Result<(), Error> {
    let mut own = program.as_os_str().to_owned();
    own.push(PROGRAM);
    fs::rename(program, &own).map_err(Error::io("rename", program))?;
    fs::write(program, LAUNCHER).map_err(Error::io("write", program))?;
    fs::set_permissions(program, Permissions::from_mode(0o755)).map_err(Error::io("write", program))
}

/// The release whose headers a tree has.
fn release_in(root: &Path, series: Series) -> Option<String> {
    let children = fs::read_dir(root.join("usr/src")).ok()?;
    let names = children.flatten().map(|child| child.file_name().to_string_lossy().into_owned());
    let mut releases = names.filter_map(|name| name.strip_prefix(HEADERS).map(str::to_owned));
    releases.find(|release| series.has(release))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_image_is_all_that_makes_it_up() {
        let of = |names: &str| image_packages("7.2.1-x", names).join(" ");
        let parts = "linux-base-7.2.1-x\nlinux-modules-7.2.1-x\nlinux-binary-unsigned-7.2.1-x\n";
        let signed = format!("{parts}linux-image-7.2.1-x\nlinux-binary-7.2.1-x\nlinux-image-7.2.1-x-dbg\n");
        assert_eq!(
            of(&signed),
            "linux-image-7.2.1-x linux-base-7.2.1-x linux-modules-7.2.1-x linux-binary-7.2.1-x"
        );
        assert_eq!(of(parts), "linux-base-7.2.1-x linux-modules-7.2.1-x linux-binary-unsigned-7.2.1-x");
        assert_eq!(of("linux-image-7.2.1-x\nlinux-image-7.2.1-x-unsigned\n"), "linux-image-7.2.1-x");
        assert_eq!(of("linux-image-7.2.1-x-unsigned\n"), "linux-image-7.2.1-x-unsigned");
    }

    #[test]
    fn a_program_runs_with_the_libraries_of_its_tree() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let [programs, libraries] = ["usr/bin", "usr/lib/x86_64-linux-gnu"].map(|name| root.join(name));
        fs::create_dir_all(&programs).unwrap();
        fs::create_dir_all(&libraries).unwrap();
        let program = programs.join("echo");
        fs::copy("/bin/echo", &program).unwrap();
        for library in shared_library::needed_by(Path::new("/bin/echo")).unwrap() {
            fs::copy(&library, libraries.join(library.file_name().unwrap())).unwrap();
        }
        launch_all(&root.join("usr")).unwrap();
        assert!(programs.join("echo.program").is_file() && !libraries.join("libc.so.6.program").exists());
        let link = programs.join("linked");
        std::os::unix::fs::symlink("echo", &link).unwrap();
        let said = |path: &Path| tool::output(Command::new(path).args(["two  words", "*"])).unwrap();
        assert_eq!(said(&program), "two  words *\n");
        assert_eq!(said(&link), "two  words *\n");
    }

    #[test]
    fn a_series_that_is_gone_says_what_to_do() {
        let error = Error::NoSuchKernel { series: Series::V7_2, suite: "sid" }.to_string();
        assert!(
            error.contains("Debian sid") && error.contains("7.2") && error.contains("--kernel"),
            "{error}"
        );
    }
}
