//! Builds the debug kernel: Debian's source of 6.12, as small as the lab's machines allow, with the kernel's own checkers.
//!
//! `lab/kernel/debug.config` says what is in it and why. It is built once, for its source, that file and the compiler.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::error::Error;
use crate::parts::cache::{Cache, Key};
use crate::parts::kernel::package::{Kernel, download};
use crate::parts::series::Series;
use crate::parts::tool::{self, APT_CACHE, DEPMOD, GCC, MAKE, NICE, OBJCOPY, TAR, Tool};

/// What is in it; all else that can be left out is.
const CONFIG: &str = include_str!("../../kernel/debug.config");
/// What its release ends with.
const SUFFIX: &str = "-exitscope-debug";
/// Debian's meta package of its source has the same name as the package itself.
const PACKAGE: &str = "linux-source-6.12";
/// What the build needs besides what `./setup` installs for everyday use.
const TOOLS: [Tool; 3] = [
    Tool { name: "flex", package: "flex" },
    Tool { name: "bison", package: "bison" },
    Tool { name: "bc", package: "bc" },
];
/// What the build takes on the disk until it is done; a twentieth of that is kept.
const BUILD_SIZE: u64 = 6 << 30;

/// The debug kernel, from the cache if it has been built before.
pub fn resolve(cache: &Cache) -> Result<Kernel, Error> {
    let shown = tool::output_of_query(APT_CACHE.command()?.args(["show", "--no-all-versions", PACKAGE]))?;
    let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
    let version = version.ok_or(Error::NoKernelSource { package: PACKAGE })?;
    let compiler = tool::output(GCC.command()?.arg("--version"))?;
    let key = Key::new("debug kernel: 1").text(CONFIG).text(version).text(&compiler).needs(BUILD_SIZE);
    let root = cache.entry("debug-kernel", key, build)?;
    let build = root.join("build");
    let release = fs::read_to_string(release_file(&build)).map_err(Error::io("read", &build))?;
    let release = release.trim().to_owned();
    Ok(Kernel {
        series: Series::Debug,
        image: root.join("bzImage"),
        modules: root.join("lib/modules").join(&release),
        build,
        tools: None,
        release,
    })
}

/// By what to multiply timeouts on this kernel: the checkers of the debug kernel make it several times slower.
pub fn timeout_factor(release: &str) -> u32 {
    if release.ends_with(SUFFIX) { 5 } else { 1 }
}

/// Where a build tree says what `uname -r` will.
fn release_file(tree: &Path) -> std::path::PathBuf {
    tree.join("include/config/kernel.release")
}

/// Leaves in `directory` the kernel, its modules and what modules are built against.
fn build(directory: &Path) -> Result<(), Error> {
    for tool in TOOLS {
        tool.find()?;
    }
    let source = directory.join("source");
    unpack(directory, &source)?;
    configure(&source)?;
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    tool::output(make(&source)?.arg(format!("-j{jobs}")).args(["bzImage", "modules"]))?;
    install(directory, &source)?;
    fs::remove_dir_all(&source).map_err(Error::io("remove", &source))
}

fn unpack(directory: &Path, source: &Path) -> Result<(), Error> {
    download(PACKAGE, directory)?;
    let package = directory.join("usr");
    let archive = package.join("src").join(format!("{PACKAGE}.tar.xz"));
    fs::create_dir(source).map_err(Error::io("make", source))?;
    let mut tar = TAR.command()?;
    tool::output(tar.arg("-xJf").arg(&archive).arg("-C").arg(source).arg("--strip-components=1"))?;
    fs::remove_dir_all(&package).map_err(Error::io("remove", &package))
}

/// Makes the configuration, and looks whether it has all that was asked for: kconfig says nothing of an option that it
/// drops.
fn configure(source: &Path) -> Result<(), Error> {
    let wanted = source.join("wanted.config");
    fs::write(&wanted, CONFIG).map_err(Error::io("write", &wanted))?;
    tool::output(make(source)?.env("KCONFIG_ALLCONFIG", &wanted).arg("allnoconfig"))?;
    let config = source.join(".config");
    let made = fs::read_to_string(&config).map_err(Error::io("read", &config))?;
    match missing(&made) {
        Some(option) => Err(Error::KernelLacks { option: option.to_owned() }),
        None => Ok(()),
    }
}

/// The first option that a configuration has not, or not as it was asked for.
fn missing(made: &str) -> Option<&'static str> {
    CONFIG
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .find(|option| !option.ends_with("=n") && !made.lines().any(|line| line == *option))
}

fn install(directory: &Path, source: &Path) -> Result<(), Error> {
    let build = directory.join("build");
    // Without debug info, but with BTF, which is another section.
    let mut modules = make(source)?;
    modules.arg(assign("INSTALL_MOD_PATH", directory)).arg("INSTALL_MOD_STRIP=1");
    tool::output(modules.arg(assign("DEPMOD", &DEPMOD.find()?)).arg("modules_install"))?;
    // What a package of headers has.
    let script = format!("$(srctree)/scripts/package/install-extmod-build {}", build.display());
    tool::output(make(source)?.arg(format!("KBUILD_RUN_COMMAND={script}")).arg("run-command"))?;
    // Types of modules refer to those of the kernel.
    let mut objcopy = OBJCOPY.command()?;
    tool::output(objcopy.arg("--strip-debug").arg(source.join("vmlinux")).arg(build.join("vmlinux")))?;
    let (from, to) = (source.join("arch/x86/boot/bzImage"), directory.join("bzImage"));
    fs::copy(&from, &to).map_err(Error::io("copy", &from)).map(drop)
}

/// The kernel's own build, which leaves room for others: it takes long.
fn make(source: &Path) -> Result<Command, Error> {
    let mut command = NICE.command()?;
    command.arg(MAKE.find()?).arg("-s").arg("-C").arg(source);
    // A make above us would hand down its flags and variables.
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("MFLAGS");
    Ok(command)
}

fn assign(variable: &str, path: &Path) -> String {
    format!("{variable}={}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_was_dropped_is_named() {
        assert_eq!(missing(CONFIG), None);
        assert_eq!(
            missing(&CONFIG.replace("CONFIG_KASAN=y", "# CONFIG_KASAN is not set")),
            Some("CONFIG_KASAN=y")
        );
    }

    #[test]
    fn the_release_tells_a_debug_kernel() {
        assert!(CONFIG.contains(&format!("CONFIG_LOCALVERSION=\"{SUFFIX}\"")));
        assert!(timeout_factor("6.12.117-exitscope-debug") > timeout_factor("6.12.117+deb12-cloud-amd64"));
    }

    #[test]
    fn every_option_has_its_reason() {
        let mut reason = false;
        for line in CONFIG.lines() {
            assert!(reason || !line.starts_with("CONFIG_"), "{line}");
            reason = line.starts_with("# ") || (reason && !line.is_empty());
        }
    }
}
