//! Why there are no eBPF programs here, and what to do about it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use exitscope_abi::bpf::MOST_CELLS;
use exitscope_core::btf::Place;

use super::object;
use super::pin;
use super::sys::Refusal;
use crate::lockdown;

/// How many of the verifier's last lines an error has.
const LINES: usize = 8;
/// `ENOTSUPP`, which the kernel keeps for itself, but bpf(2) gives.
const ENOTSUPP: i32 = 524;

/// Why the programs are not loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM is not there.
    #[error(
        "KVM is not loaded: `sudo modprobe kvm_amd` or `sudo modprobe kvm_intel`, whichever is for this CPU"
    )]
    NoKvm,
    /// The vendor's part of KVM is not there.
    #[error(
        "KVM's part for this CPU is not loaded: `sudo modprobe kvm_amd` or `sudo modprobe kvm_intel`; if that fails, \
         `exitscope doctor` says what is missing"
    )]
    NoVendor,
    /// The kernel does not describe its types.
    #[error(
        "{path}: {source}: this kernel does not tell its types (BTF), which eBPF needs: boot one that was built with \
         CONFIG_DEBUG_INFO_BTF and CONFIG_DEBUG_INFO_BTF_MODULES, as distributions' are, or load the module"
    )]
    NoTypes {
        /// Where its types should be.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its types are of an unknown kind.
    #[error("{path} has types (BTF) of a kind that this program does not know: use a newer exitscope")]
    NotUnderstood {
        /// Where they are.
        path: PathBuf,
    },
    /// KVM has no tracepoints.
    #[error(
        "this kernel's KVM has no tracepoints kvm_exit and kvm_entry, which everything hangs on: boot a kernel that \
         was built with CONFIG_TRACEPOINTS and types of modules (CONFIG_DEBUG_INFO_BTF_MODULES)"
    )]
    NoTracepoint,
    /// KVM has not the function or the tracepoint that a program is for.
    #[error("this kernel's KVM has no {0} that a program could be attached to: this kernel is not supported")]
    NoEvent(String),
    /// The kernel's structures are not as they should be.
    #[error(
        "{path} {}: this kernel is not supported, and reading would give wrong numbers",
        match found {
            Some(Place { offset, size }) => format!("has {what} at byte {offset} (of {size} bytes), which is no use"),
            None => format!("does not say where {what} is"),
        }
    )]
    Fact {
        /// What says so.
        path: PathBuf,
        /// The fact that does not hold, as C has it.
        what: &'static str,
        /// What there is instead.
        found: Option<Place>,
    },
    /// The kernel is locked down.
    #[error(
        "this kernel is locked down (lockdown=confidentiality), so eBPF may not read what KVM says: boot with \
         `lockdown=integrity`, or load the module, signed with a key that this machine knows (docs/install.md)"
    )]
    Lockdown,
    /// The process lacks rights.
    #[error(
        "cannot {what}: not permitted; this process lacks {}: use sudo, or give a service these capabilities",
        lacks.join(" and ")
    )]
    Rights {
        /// What was not permitted.
        what: String,
        /// The capabilities.
        lacks: Vec<&'static str>,
    },
    /// The kernel has no eBPF.
    #[error("this kernel has no bpf(2): boot one that was built with CONFIG_BPF_SYSCALL and CONFIG_BPF_JIT")]
    NoBpf,
    /// Functions cannot be traced.
    #[error(
        "programs cannot be attached to functions of KVM ({source}), as ftrace {}",
        if *off { "is switched off: `sudo sysctl kernel.ftrace_enabled=1`" }
        else { "cannot do so here: boot a kernel that was built with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS" }
    )]
    Ftrace {
        /// What the kernel said.
        source: io::Error,
        /// Whether it could be switched on.
        off: bool,
    },
    /// The verifier refuses a program.
    #[error(
        "the kernel refuses the program for {event} ({source}); please report this, with its words:\n{words}"
    )]
    Refused {
        /// What the program is for.
        event: String,
        /// What the kernel said.
        source: io::Error,
        /// The last of the verifier's words.
        words: String,
    },
    /// There is not enough memory.
    #[error(
        "cannot {what}: no memory; ask for fewer counters (`exitscope bpf pin --memory`), or raise the limit of this \
         process's cgroup"
    )]
    Memory {
        /// What it was for.
        what: String,
    },
    /// So many cells cannot be.
    #[error(
        "a region of eBPF programs has a power of two from {} to {MOST_CELLS} cells of 512 bytes, not {cells}",
        super::FEWEST_CELLS
    )]
    Size {
        /// The cells that were asked for.
        cells: u32,
    },
    /// The programs are wrong.
    #[error(transparent)]
    Object(#[from] object::Error),
    /// Something about pins.
    #[error(transparent)]
    Pin(#[from] pin::Error),
    /// The kernel refuses something without saying why.
    #[error(
        "cannot {what}: {source}{}",
        if source.kind() == io::ErrorKind::PermissionDenied { ", by a policy of this kernel or container" } else { "" }
    )]
    System {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Capabilities, by their bits in `CapEff`.
const SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");
const PERFMON: (u32, &str) = (38, "CAP_PERFMON");
const BPF: (u32, &str) = (39, "CAP_BPF");

impl Error {
    /// What bpf(2) said to something.
    pub(super) fn of_system(what: &str, source: io::Error) -> Self {
        explain(Path::new("/"), what, source, &[BPF, PERFMON])
    }

    /// What it said when it was asked for a module's types.
    pub(super) fn of_types(source: io::Error) -> Self {
        let what = "find the types of the module kvm, to attach programs to its functions";
        match source.kind() {
            io::ErrorKind::NotFound => {
                Self::NoTypes { path: Path::new("/").join(super::facts::TYPES).join("kvm"), source }
            }
            _ => explain(Path::new("/"), what, source, &[BPF, PERFMON, SYS_ADMIN]),
        }
    }

    /// Why a program was not loaded.
    pub(super) fn of_refusal(event: &str, refusal: Refusal) -> Self {
        refused(Path::new("/"), event, refusal)
    }

    /// Why a program was not attached.
    pub(super) fn of_attach(event: &str, source: io::Error) -> Self {
        not_attached(Path::new("/"), event, source)
    }
}

fn explain(root: &Path, what: &str, source: io::Error, needed: &[(u32, &'static str)]) -> Error {
    let what = what.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOSYS) => Error::NoBpf,
        Some(libc::ENOMEM) => Error::Memory { what },
        Some(libc::EPERM | libc::EACCES) => match lacks(root, needed) {
            lacks if !lacks.is_empty() => Error::Rights { what, lacks },
            _ if is_confidential(root) => Error::Lockdown,
            _ => Error::System { what, source },
        },
        _ => Error::System { what, source },
    }
}

fn refused(root: &Path, event: &str, Refusal { error, log }: Refusal) -> Error {
    let explained = explain(root, &format!("load the program for {event}"), error, &[BPF, PERFMON]);
    let Error::System { what, source } = explained else { return explained };
    if is_confidential(root) {
        return Error::Lockdown;
    }
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let words = lines[lines.len().saturating_sub(LINES)..].join("\n");
    match words.is_empty() {
        true => Error::System { what, source },
        false => Error::Refused { event: event.into(), source, words },
    }
}

fn not_attached(root: &Path, event: &str, source: io::Error) -> Error {
    let off = is_ftrace_off(root);
    match source.raw_os_error() {
        Some(libc::ENOENT) => Error::NoEvent(event.into()),
        Some(libc::EBUSY | libc::ENODEV) if off => Error::Ftrace { source, off },
        Some(ENOTSUPP | libc::EOPNOTSUPP) => Error::Ftrace { source, off },
        _ => explain(root, &format!("attach the program for {event}"), source, &[BPF, PERFMON]),
    }
}

/// Whether an administrator has switched ftrace off.
pub(super) fn is_ftrace_off(root: &Path) -> bool {
    fs::read_to_string(root.join("proc/sys/kernel/ftrace_enabled")).is_ok_and(|text| text.trim() == "0")
}

/// Which of the capabilities this process has not. CAP_SYS_ADMIN stands for all.
fn lacks(root: &Path, needed: &[(u32, &'static str)]) -> Vec<&'static str> {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(set) = set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()) else {
        return Vec::new();
    };
    let has = |bit: u32| set >> bit & 1 == 1;
    if has(SYS_ADMIN.0) {
        return Vec::new();
    }
    needed.iter().filter(|(bit, _)| !has(*bit)).map(|&(_, name)| name).collect()
}

fn is_confidential(root: &Path) -> bool {
    lockdown::level(root).contains("[confidentiality]")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        root
    }

    fn error(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    const STATUS: &str = "proc/self/status";
    const LOCKDOWN: (&str, &str) = ("sys/kernel/security/lockdown", "none integrity [confidentiality]\n");
    const ROOT: (&str, &str) = (STATUS, "Name:\tx\nCapEff:\t000001ffffffffff\n");

    #[test]
    fn missing_rights_are_named() {
        for (set, needed, expected) in [
            ("0000000000000000", &[BPF, PERFMON][..], &["CAP_BPF", "CAP_PERFMON"][..]),
            ("0000008000000000", &[BPF, PERFMON], &["CAP_PERFMON"]),
            ("0000004000000000", &[BPF, PERFMON], &["CAP_BPF"]),
            ("000000c000000000", &[BPF, PERFMON, SYS_ADMIN], &["CAP_SYS_ADMIN"]),
        ] {
            let root = machine(&[(STATUS, &format!("CapEff:\t{set}\n"))]);
            let explained = explain(root.path(), "make a map", error(libc::EPERM), needed);
            let Error::Rights { lacks, .. } = &explained else { panic!("{explained}") };
            assert_eq!(lacks, expected);
            assert!(explained.to_string().contains("use sudo"), "{explained}");
        }
    }

    #[test]
    fn what_is_not_a_matter_of_rights_is_told_apart() {
        let of = |files: &[(&str, &str)], number| {
            explain(machine(files).path(), "make a map", error(number), &[BPF, PERFMON])
        };
        assert!(matches!(of(&[ROOT, LOCKDOWN], libc::EPERM), Error::Lockdown));
        assert!(matches!(of(&[ROOT], libc::EPERM), Error::System { .. }));
        assert!(matches!(of(&[ROOT], libc::ENOSYS), Error::NoBpf));
        assert!(matches!(of(&[ROOT], libc::ENOMEM), Error::Memory { .. }));
        let text = of(&[ROOT], libc::EINVAL).to_string();
        assert!(text.starts_with("cannot make a map: "), "{text}");
    }

    #[test]
    fn the_verifiers_last_words_are_told() {
        let log: String = (0..20).map(|line| format!("line {line}\n\n")).collect();
        let of = |files: &[(&str, &str)], log: &str| {
            let refusal = Refusal { error: error(libc::EACCES), log: log.into() };
            refused(machine(files).path(), "kvm_exit", refusal).to_string()
        };
        let text = of(&[ROOT], &log);
        assert!(text.contains("kvm_exit") && text.ends_with("line 18\nline 19"), "{text}");
        assert!(!text.contains("line 11\n") && text.contains("line 12\n"), "{text}");
        assert!(of(&[ROOT], "").starts_with("cannot load the program for kvm_exit: "));
        assert!(of(&[ROOT, LOCKDOWN], &log).contains("lockdown=confidentiality"));
    }

    #[test]
    fn what_hinders_attaching_is_told() {
        let of =
            |files: &[(&str, &str)], number| not_attached(machine(files).path(), "kvm_exit", error(number));
        assert!(matches!(of(&[ROOT], libc::ENOENT), Error::NoEvent(event) if event == "kvm_exit"));
        let off = [ROOT, ("proc/sys/kernel/ftrace_enabled", "0\n")];
        assert!(of(&off, libc::EBUSY).to_string().ends_with("`sudo sysctl kernel.ftrace_enabled=1`"));
        assert!(matches!(of(&[ROOT], libc::EBUSY), Error::System { .. }));
        assert!(of(&[ROOT], ENOTSUPP).to_string().contains("DIRECT_CALLS"));
    }
}
