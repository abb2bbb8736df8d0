//! Calls other programs and turns their failures into errors that say what to do.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;

/// A program that the lab calls, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub name: &'static str,
    pub package: &'static str,
}

pub(crate) const DPKG_QUERY: Tool = Tool { name: "dpkg-query", package: "dpkg" };
pub(crate) const DPKG_DEB: Tool = Tool { name: "dpkg-deb", package: "dpkg" };
pub(crate) const APT_CACHE: Tool = Tool { name: "apt-cache", package: "apt" };
pub(crate) const APT_GET: Tool = Tool { name: "apt-get", package: "apt" };
pub(crate) const DEPMOD: Tool = Tool { name: "depmod", package: "kmod" };
pub(crate) const XZ: Tool = Tool { name: "xz", package: "xz-utils" };
pub(crate) const ZSTD: Tool = Tool { name: "zstd", package: "zstd" };
pub(crate) const LZ4: Tool = Tool { name: "lz4", package: "lz4" };
pub(crate) const GZIP: Tool = Tool { name: "gzip", package: "gzip" };
pub(crate) const CPUID: Tool = Tool { name: "cpuid", package: "cpuid" };
pub(crate) const QEMU: Tool = Tool { name: "qemu-system-x86_64", package: "qemu-system-x86" };
pub(crate) const BOCHS: Tool = Tool { name: "bochs", package: "bochs bochs-term" };
pub(crate) const MAKE: Tool = Tool { name: "make", package: "make" };
pub(crate) const GCC: Tool = Tool { name: "gcc", package: "gcc" };
pub(crate) const OBJCOPY: Tool = Tool { name: "objcopy", package: "binutils" };
pub(crate) const TAR: Tool = Tool { name: "tar", package: "tar" };
pub(crate) const NICE: Tool = Tool { name: "nice", package: "coreutils" };
pub(crate) const SETPRIV: Tool = Tool { name: "setpriv", package: "util-linux" };

pub(crate) const FAKEROOT: Tool = Tool { name: "fakeroot", package: "fakeroot" };
pub(crate) const MKE2FS: Tool = Tool { name: "mke2fs", package: "e2fsprogs" };

impl Tool {
    /// Where the tool is: on the PATH, or in the administrator's directories, which a user's PATH lacks.
    pub fn find(self) -> Result<PathBuf, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        self.find_in(std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]))
    }

    fn find_in(self, mut directories: impl Iterator<Item = PathBuf>) -> Result<PathBuf, Error> {
        directories
            .find_map(|directory| {
                let candidate = directory.join(self.name);
                rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK)
                    .is_ok_and(|()| candidate.is_file())
                    .then_some(candidate)
            })
            .ok_or(self.missing())
    }

    /// A command that speaks plain English, so that its output can be parsed.
    pub fn command(self) -> Result<Command, Error> {
        let mut command = Command::new(self.find()?);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        Ok(command)
    }

    /// The error for an emulator that cannot run the lab.
    pub fn unfit(self, emulator: String, reason: String) -> Error {
        Error::EmulatorUnfit { emulator, reason, package: self.package }
    }

    fn missing(self) -> Error {
        Error::ToolMissing { tool: self.name.to_owned(), package: self.package }
    }
}

/// Runs a command to its end and returns what it wrote to stdout.
pub(crate) fn output(command: &mut Command) -> Result<String, Error> {
    let output = command.output().map_err(spawn_failed(command))?;
    check(command, output.status, &output.stderr)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Like [`output`], for queries whose exit status only says that not everything was found.
pub(crate) fn output_of_query(command: &mut Command) -> Result<String, Error> {
    let output = command.output().map_err(spawn_failed(command))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a filter: `from` on its stdin, its stdout into `to`.
pub(crate) fn filter(command: &mut Command, from: File, to: File) -> Result<(), Error> {
    let output = command
        .stdin(from)
        .stdout(to)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(spawn_failed(command))?;
    check(command, output.status, &output.stderr)
}

fn check(command: &Command, status: std::process::ExitStatus, stderr: &[u8]) -> Result<(), Error> {
    if status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(stderr).trim().to_owned();
    Err(Error::ToolFailed { command: command_line(command), status, stderr })
}

/// The error of an `apt-get` that should have downloaded a package.
pub(crate) fn not_downloaded(error: Error, package: &str) -> Error {
    match error {
        Error::ToolFailed { stderr, .. } if !stderr.contains("No space left") => {
            // What failed first tells why; there may be a line for each of many packages.
            let first = stderr.lines().find(|line| line.starts_with("E: ")).unwrap_or(&stderr);
            Error::Download { package: package.to_owned(), stderr: first.to_owned() }
        }
        error => error,
    }
}

fn spawn_failed(command: &Command) -> impl FnOnce(io::Error) -> Error + use<> {
    Error::io("start", Path::new(command.get_program()))
}

fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = QEMU.find_in([PathBuf::from("/nowhere")].into_iter()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`qemu-system-x86_64` is not installed: run ./setup (or `sudo apt-get install --no-install-recommends qemu-system-x86`)"
        );
    }

    #[test]
    fn a_failed_tool_says_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c echo no luck >&2; exit 3` failed (exit status: 3): no luck");
    }
}
