//! Whether our module is loaded, or why it is not, and whether its device can be read.

use std::io;

use exitscope_model::doctor::{Check, Verdict};

use super::{Machine, Presence, unknown};
use crate::lockdown;
use crate::region::{self, Region};

/// Checks whose failure makes the module refuse to be loaded.
const REFUSED_BY: &[&str] = &["cpu", "btf", "cfi", "ftrace", "module-loading"];

/// Whether the module is loaded, or why it is not.
pub(super) fn module(machine: &Machine, checks: &[Check]) -> Check {
    let check = |result, found: String| Check::new("module", result, found);
    match machine.presence("exitscope") {
        Err(absence) => return unknown("module", &absence),
        Ok(Presence::Absent) => {}
        Ok(_) => return check(Verdict::Ok, loaded(machine)),
    }
    let refused = |check: &&Check| check.result == Verdict::Fail && REFUSED_BY.contains(&check.name.as_str());
    let refusals: Vec<&str> = checks.iter().filter(refused).map(|check| check.name.as_str()).collect();
    if !refusals.is_empty() {
        let found = format!("not loaded, and would not be: see {}", refusals.join(", "));
        return check(Verdict::Fail, found);
    }
    let (found, advice) = not_loaded(machine);
    let said =
        last_words(machine).map(|line| format!("; the kernel's log has of it: {line}")).unwrap_or_default();
    let advice = match machine.container {
        Some(_) => format!("on the host of this container: {advice}"),
        None => advice,
    };
    check(Verdict::Fail, format!("not loaded; {found}{said}")).advise(advice)
}

fn loaded(machine: &Machine) -> String {
    let parameter = |name: &str| {
        let value = machine.tree.text(&format!("sys/module/exitscope/parameters/{name}")).ok()?;
        Some(format!("{name} {value}"))
    };
    let parameters: Vec<String> = ["expose", "layout"].into_iter().filter_map(parameter).collect();
    let text = format!("loaded, {}", parameters.join(", "));
    text.trim_end_matches([',', ' ']).to_owned()
}

/// What the module's last line in the kernel's log was, but for those of every module from outside the kernel's tree.
fn last_words<'a>(machine: &Machine<'a>) -> Option<&'a str> {
    let of_no_concern = |line: &&str| !line.contains("taint");
    machine.facts.log.iter().flatten().map(String::as_str).rfind(of_no_concern)
}

/// Where the module is, and how to get it into the kernel.
fn not_loaded(machine: &Machine) -> (String, String) {
    let release = &machine.facts.release;
    if let Some(file) = installed(machine, release) {
        return match built_for(machine, &file) {
            Some(other) if other != *release => (
                format!("/{file} was built for another kernel ({other})"),
                "build it anew: `sudo dkms autoinstall`, or `make module` and `sudo insmod`".into(),
            ),
            _ => (format!("installed for this kernel (/{file})"), lockdown::advice(machine.tree.root())),
        };
    }
    let headers = match machine.tree.has(&format!("lib/modules/{release}/build")) {
        true => String::new(),
        false => {
            "install this kernel's headers (Debian: `sudo apt install linux-headers-$(uname -r)`), then "
                .into()
        }
    };
    let others: Vec<String> = machine.tree.names("lib/modules");
    let others: Vec<&str> =
        others.iter().map(String::as_str).filter(|other| installed(machine, other).is_some()).collect();
    let has_dkms = machine.tree.has("var/lib/dkms/exitscope");
    let found = match (others.is_empty(), has_dkms) {
        (false, _) => format!("not built for this kernel ({release}), but for {}", others.join(", ")),
        (true, true) => format!("DKMS has its source and has not built it for this kernel ({release})"),
        (true, false) => "not installed".into(),
    };
    let advice = match has_dkms {
        true => format!("{headers}`sudo dkms autoinstall && sudo modprobe exitscope`"),
        false => format!(
            "{headers}`make module` and `sudo insmod target/module/$(uname -r)/exitscope.ko`, or Debian's way: \
             docs/install.md"
        ),
    };
    (found, advice)
}

/// The module's file for a kernel; what compresses it gives it one more ending.
fn installed(machine: &Machine, release: &str) -> Option<String> {
    let base = format!("lib/modules/{release}");
    let listed = machine.tree.text(&format!("{base}/modules.dep")).unwrap_or_default();
    let listed = listed.lines().filter_map(|line| line.split(':').next());
    let listed =
        listed.filter(|file| file.rsplit('/').next().is_some_and(|name| name.starts_with("exitscope.ko")));
    let usual = ["updates/dkms", "updates", "extra"].into_iter().flat_map(|directory| {
        ["", ".xz", ".zst", ".gz"].map(|ending| format!("{directory}/exitscope.ko{ending}"))
    });
    let files = listed.map(str::to_owned).chain(usual).map(|file| format!("{base}/{file}"));
    files.into_iter().find(|file| machine.tree.has(file))
}

/// The kernel that a module's file was built for, where it is not compressed.
fn built_for(machine: &Machine, file: &str) -> Option<String> {
    const MARK: &[u8] = b"\0vermagic=";
    let bytes = machine.tree.bytes(file).ok()?;
    let at = bytes.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let end = bytes[at..].iter().position(|&byte| byte == b' ' || byte == 0)?;
    Some(String::from_utf8_lossy(&bytes[at..at + end]).into_owned())
}

/// Whether the module's device can be read by this user and this program.
pub(super) fn device(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("device", result, found);
    let path = machine.tree.path("dev/exitscope");
    let error = match (machine.facts.open)(&path, false) {
        Ok(()) => match Region::open(&path) {
            Ok(_) => return check(Verdict::Ok, format!("{} can be read", region::DEVICE)),
            Err(region::Error::Version { found, .. }) => {
                let version = exitscope_abi::region::VERSION;
                let found =
                    format!("{} has layout version {found}, this program knows {version}", region::DEVICE);
                return check(Verdict::Fail, found).advise("build and install both from the same source");
            }
            Err(region::Error::Access { source, .. }) => source,
            Err(error) => io::Error::other(error),
        },
        Err(error) => error,
    };
    match (error.kind(), machine.presence("exitscope")) {
        (io::ErrorKind::NotFound, Ok(Presence::Loaded)) => {
            let advice = match machine.container {
                Some(_) => "start this container with `--device /dev/exitscope`",
                None => {
                    "devtmpfs or udev makes it: `sudo mount -t devtmpfs devtmpfs /dev`, or load the module anew"
                }
            };
            check(Verdict::Fail, format!("there is no {}, though the module is loaded", region::DEVICE))
                .advise(advice)
        }
        (io::ErrorKind::NotFound, _) => check(Verdict::Fail, format!("there is no {}", region::DEVICE)),
        (io::ErrorKind::PermissionDenied, _) => {
            check(Verdict::Fail, format!("{} is not for this user", region::DEVICE))
                .advise("use sudo, or let a group read it: docs/install.md says how")
        }
        _ => check(Verdict::Fail, format!("{} cannot be read: {error}", region::DEVICE))
            .advise("load the module anew: `sudo rmmod exitscope`, `sudo modprobe exitscope`"),
    }
}
