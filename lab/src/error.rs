//! What can go wrong in the lab, each said with the path or command it speaks of and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::parts::series::Series;

/// An error of the lab. Its text is complete: it names the thing that failed and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// None of the variables that could name the cache directory is set.
    #[error(
        "no place for the cache: set EXITSCOPE_CACHE to a writable directory (neither it, nor XDG_CACHE_HOME, nor HOME is an absolute path)"
    )]
    NoCacheDirectory,

    /// The cache directory cannot be made or written.
    #[error("cannot write to the cache {}: {source}; set EXITSCOPE_CACHE (or XDG_CACHE_HOME, or HOME) to a writable directory", path.display())]
    CacheUnusable {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// The file system of the cache is full; the unfinished entry has been removed.
    #[error("{}", disk_full(path, *written, *free, *needed))]
    DiskFull {
        /// The entry that was being built.
        path: PathBuf,
        /// Bytes written before it failed.
        written: u64,
        /// Bytes free on that file system, now that the unfinished entry is gone.
        free: u64,
        /// Bytes that the entry needs, where that is known.
        needed: Option<u64>,
    },

    /// An entry of the cache is not as it was made.
    #[error("{} is damaged: delete it, and it is made anew", path.display())]
    CacheDamaged {
        /// The entry.
        path: PathBuf,
    },

    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A program that the lab calls is not installed.
    #[error(
        "`{tool}` is not installed: run ./setup (or `sudo apt-get install --no-install-recommends {package}`)"
    )]
    ToolMissing {
        /// The program.
        tool: String,
        /// The Debian package that has it.
        package: &'static str,
    },

    /// A program that the lab calls failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    ToolFailed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },

    /// The release of Debian that had a series of kernels has another one now.
    #[error(
        "Debian {suite} has no stock cloud kernel of series {series} any more: choose another with --kernel"
    )]
    NoSuchKernel {
        /// The series that was asked for.
        series: Series,
        /// The release of Debian.
        suite: &'static str,
    },

    /// This machine's apt knows no mirror of Debian.
    #[error(
        "apt has read no package lists of Debian's main archive: run `sudo apt-get update`, with that archive among apt's sources"
    )]
    NoMirror,
    /// This machine's package lists have no source to build the debug kernel of.
    #[error(
        "this machine's package lists have no {package}, of which the debug kernel is built: run `sudo apt-get update`; Debian 12 has it in its security archive"
    )]
    NoKernelSource {
        /// The package.
        package: &'static str,
    },

    /// The source of the debug kernel has no such option, or not with these others.
    #[error(
        "the debug kernel has not got {option}, which lab/kernel/debug.config asks for: its source or compiler has changed, so that file must"
    )]
    KernelLacks {
        /// The option.
        option: String,
    },

    /// A package of a kernel could not be downloaded.
    #[error(
        "cannot download {package}: {stderr}; check the network, and refresh the package lists with `sudo apt-get update`"
    )]
    Download {
        /// The package.
        package: String,
        /// What apt-get said.
        stderr: String,
    },

    /// A downloaded or installed package has not the file it should have.
    #[error("{} is missing, which {package} should contain: reinstall it with `sudo apt-get install --reinstall {package}`", path.display())]
    PackageIncomplete {
        /// The package.
        package: String,
        /// The file.
        path: PathBuf,
    },

    /// A kernel has no such module.
    #[error("Linux {release} has no module `{module}`: neither modules.dep nor modules.builtin lists it")]
    NoSuchModule {
        /// The kernel's release.
        release: String,
        /// The module's name.
        module: String,
    },

    /// A module is compressed in a way we do not know.
    #[error("{} is compressed in a way we do not know (known: .ko, .ko.xz, .ko.zst, .ko.gz)", path.display())]
    ModuleFormat {
        /// The module's file.
        path: PathBuf,
    },

    /// A path in an initramfs is not absolute, or holds `..`.
    #[error("`{path}` is no path of an initramfs: it must be absolute, without `.` and `..`")]
    ImagePath {
        /// The path.
        path: String,
    },

    /// A file is too large for a newc archive, or changed while it was read.
    #[error("cannot put {} into the initramfs: {reason}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },

    /// A program to be copied into an initramfs is not an ELF file that we understand.
    #[error("cannot read {} as an ELF program: {reason}", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A shared library that a program needs is not installed.
    #[error("{} needs the library {library}, which is in none of {}", path.display(), searched.join(", "))]
    LibraryMissing {
        /// The program or library that needs it.
        path: PathBuf,
        /// The library's name.
        library: String,
        /// The directories searched.
        searched: Vec<String>,
    },

    /// The emulator is too old, or built without what we need.
    #[error("{emulator} cannot run the lab: {reason}; install Debian's {package} (run ./setup)")]
    EmulatorUnfit {
        /// The emulator and its version.
        emulator: String,
        /// What it lacks.
        reason: String,
        /// The Debian package that has a better one.
        package: &'static str,
    },

    /// The emulated machine took too long and was stopped.
    #[error("the emulated machine was stopped after {} s, while it {phase}{console}", after.as_secs())]
    TimedOut {
        /// What it was doing.
        phase: String,
        /// How long it had run.
        after: Duration,
        /// The end of its console.
        console: Console,
    },

    /// The emulated machine's CPU does nothing any more, not even for its clock.
    #[error("the emulated machine hangs since it {phase}{console}")]
    Hung {
        /// What it was doing.
        phase: String,
        /// The end of its console.
        console: Console,
    },

    /// The emulator ended by itself with a failure.
    #[error("the emulator ended ({status}), while the machine {phase}{}{console}", indented(stderr))]
    EmulatorFailed {
        /// What the machine was doing.
        phase: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
        /// The end of the machine's console.
        console: Console,
    },

    /// The emulated kernel panicked.
    #[error("the emulated machine's kernel panicked, while it {phase}: {message}{console}")]
    Panicked {
        /// What the machine was doing.
        phase: String,
        /// The kernel's message.
        message: String,
        /// The end of its console.
        console: Console,
    },

    /// The emulated machine ended before it had said all that was expected of it.
    #[error("the emulated machine ended before its work was done, while it {phase}{console}")]
    Unfinished {
        /// What the machine was doing.
        phase: String,
        /// The end of its console.
        console: Console,
    },

    /// The emulated machine sent something that is no line of text.
    #[error("the emulated machine sent {reason}, while it {phase}{console}")]
    Channel {
        /// What the machine was doing.
        phase: String,
        /// What it sent.
        reason: &'static str,
        /// The end of its console.
        console: Console,
    },

    /// The kernel module's sources are not where the lab looks for them.
    #[error(
        "the kernel module's sources (kernel/module) are neither here nor in a directory above {}: run this in a clone of exitscope", path.display()
    )]
    NoSources {
        /// Where the search began.
        path: PathBuf,
    },

    /// A machine's memory could not be filled.
    #[error("cannot make the emulated machine: {0}")]
    Memory(#[from] exitscope_vmm::Error),

    /// A step of the job failed in the emulated machine.
    #[error("{message}
(the emulated machine's whole console: {})", log.display())]
    StepFailed {
        /// What the agent said.
        message: String,
        /// The console.
        log: PathBuf,
    },

    /// The emulated kernel's log holds a warning or worse.
    #[error("the emulated kernel complained:
  {}
(its whole console: {})", lines.join("\n  "), log.display())]
    KernelWarnings {
        /// The lines of the log.
        lines: Vec<String>,
        /// The console.
        log: PathBuf,
    },

    /// A run's results lack something they must have.
    #[error("the emulated machine reported nothing of {what}: this is a fault of the lab")]
    NotReported {
        /// What is missing.
        what: &'static str,
    },
}

impl Error {
    /// An [`Error::Io`] builder for `map_err`.
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    /// Whether this comes from a file system without space.
    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } | Self::CacheUnusable { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::ToolFailed { stderr, .. } | Self::Download { stderr, .. } => {
                stderr.contains("No space left on device") || stderr.contains("free space")
            }
            _ => false,
        }
    }
}

/// The end of an emulated machine's console, and where all of it is.
#[derive(Debug, Clone, Default)]
pub struct Console {
    /// The file that has the whole console.
    pub log: PathBuf,
    /// Its last lines.
    pub tail: Vec<String>,
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tail.is_empty() {
            return write!(f, "\nits console is empty ({})", self.log.display());
        }
        write!(f, "\nthe last lines of its console ({}):", self.log.display())?;
        self.tail.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// A size in bytes, for people.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 10.0 { format!("{mib:.0} MiB") } else { format!("{mib:.1} MiB") }
}

fn disk_full(path: &Path, written: u64, free: u64, needed: Option<u64>) -> String {
    let needs = match needed {
        Some(needed) => format!("it needs {}", size(needed)),
        None => format!("it needs more than {}", size(written.max(free))),
    };
    format!(
        "the disk is full: {} was discarded; {needs}, {} is free; make room, or set EXITSCOPE_CACHE to a directory on another disk",
        path.display(),
        size(free)
    )
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("\n  {line}")).collect()
}
