//! What VMs are called: by their VMM's command line, else by their process.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use exitscope_model::select::Names;

/// Names of VMs, each read once.
#[derive(Debug)]
pub struct Resolver {
    proc: PathBuf,
    names: Names,
    /// VMs that have been asked for, whether they have a name or not.
    asked: BTreeSet<u64>,
}

/// The inode of the initial PID namespace, in which the source numbers processes (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

impl Resolver {
    /// Reads names from this machine's `/proc`.
    pub fn new() -> Self {
        Self::at("/proc".into())
    }

    fn at(proc: PathBuf) -> Self {
        Self { proc, names: Names::new(), asked: BTreeSet::new() }
    }

    /// Asks for the names of VMs that have come.
    ///
    /// `live` is the number and the process of each VM that lives.
    pub fn update(&mut self, live: impl IntoIterator<Item = (u64, u32)>) {
        for (vm, pid) in live {
            if self.asked.insert(vm)
                && let Some(name) = name(&self.proc, pid)
            {
                self.names.insert(vm, name);
            }
        }
    }

    /// The names that are known.
    pub fn names(&self) -> &Names {
        &self.names
    }
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether `/proc` here numbers processes as the source does: not in a container with processes of its own.
pub fn in_initial_namespace(proc: &Path) -> bool {
    fs::read_link(proc.join("self/ns/pid")).is_ok_and(|link| link.as_os_str() == INITIAL_PID_NAMESPACE)
}

/// The name of the VM that a process runs; `None` when its command line cannot be read.
fn name(proc: &Path, pid: u32) -> Option<String> {
    if !in_initial_namespace(proc) {
        return None;
    }
    let text = fs::read(proc.join(pid.to_string()).join("cmdline")).ok()?;
    let words: Vec<String> = text
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).chars().filter(|letter| !letter.is_control()).collect())
        .collect();
    from_command(&words)
}

/// The name in a VMM's command line (QEMU, Firecracker, crosvm, kvmtool, cloud-hypervisor), else the program's.
fn from_command(words: &[String]) -> Option<String> {
    let program = words.first()?.rsplit('/').next().filter(|program| !program.is_empty())?;
    let after = |option: &str| {
        let at = words.iter().position(|word| word == option)?;
        words.get(at + 1).cloned()
    };
    let with = |option: &str| {
        let attached = words.iter().find_map(|word| word.strip_prefix(option)?.strip_prefix('='));
        after(option).or_else(|| attached.map(str::to_owned))
    };
    let name = if program.starts_with("qemu") || program == "kvm" {
        after("-name").or_else(|| with("--name")).and_then(|value| guest_of(&value))
    } else if program.starts_with("firecracker") || program == "jailer" {
        with("--id")
    } else if program.starts_with("cloud-hypervisor") {
        with("--api-socket").map(|socket| {
            let path = socket.strip_prefix("path=").unwrap_or(&socket);
            let file = path.rsplit('/').next().unwrap_or(path);
            file.strip_suffix(".sock").or(file.strip_suffix(".socket")).unwrap_or(file).to_owned()
        })
    } else {
        with("--name").or_else(|| after("-n").filter(|_| program == "lkvm"))
    };
    name.filter(|name| !name.is_empty()).or_else(|| Some(program.to_owned()))
}

/// The guest's name in the value of QEMU's `-name`: `guest=web,debug-threads=on`, `web,process=x`, `web`. A doubled comma
/// stands for one.
fn guest_of(value: &str) -> Option<String> {
    const COMMA: char = '\u{1}';
    let folded = value.replace(",,", &COMMA.to_string());
    let parts: Vec<&str> = folded.split(',').collect();
    let guest = parts.iter().find_map(|part| part.strip_prefix("guest="));
    let name = guest.or_else(|| parts.first().copied().filter(|first| !first.contains('=')))?;
    Some(name.replace(COMMA, ","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(command: &str) -> String {
        from_command(&command.split(' ').map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default()
    }

    #[test]
    fn each_vmm_says_it_its_own_way() {
        for (command, name) in [
            ("/usr/bin/qemu-system-x86_64 -name guest=web-1,debug-threads=on -m 1G", "web-1"),
            ("qemu-system-x86_64 -m 1G -name plain", "plain"),
            ("kvm -name a,,b,process=x", "a,b"),
            ("qemu-system-x86_64 -name process=x", "qemu-system-x86_64"),
            ("qemu-system-x86_64 -m 1G", "qemu-system-x86_64"),
            ("/usr/bin/firecracker --api-sock /s --id 7f-2", "7f-2"),
            ("/firecracker --id=7f-3", "7f-3"),
            ("crosvm run --name vm5 kernel", "vm5"),
            ("lkvm run --name guest-9", "guest-9"),
            ("cloud-hypervisor --api-socket path=/run/ch/db.sock", "db"),
            ("/init vmm --flat cpuid", "init"),
            ("qemu-system-x86_64 -name", "qemu-system-x86_64"),
        ] {
            assert_eq!(named(command), name, "{command}");
        }
        assert_eq!(from_command(&[String::new()]), None);
    }

    #[test]
    fn what_cannot_be_read_has_no_name() {
        let root = tempfile::tempdir().unwrap();
        let live = [(1, 12), (2, 13)];
        fs::create_dir_all(root.path().join("12")).unwrap();
        fs::write(root.path().join("12/cmdline"), b"qemu\0-name\0a\x1b[2Jb\0").unwrap();
        fs::create_dir_all(root.path().join("self/ns")).unwrap();
        let link = root.path().join("self/ns/pid");
        std::os::unix::fs::symlink("pid:[4026532000]", &link).unwrap();
        let mut contained = Resolver::at(root.path().into());
        contained.update(live);
        assert!(contained.names().is_empty());
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(INITIAL_PID_NAMESPACE, &link).unwrap();
        let mut resolver = Resolver::at(root.path().into());
        resolver.update(live);
        assert_eq!(resolver.names(), &Names::from([(1, "a[2Jb".into())]));
    }
}
