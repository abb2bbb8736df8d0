//! What works on a machine and what does not, read from its files and from what is passed in; changes nothing.

mod cpu;
mod ebpf;
mod facts;
mod kernel;
mod kvm;
mod module;
#[cfg(test)]
mod tests;
mod tree;

use std::path::Path;

use exitscope_abi::reason::Isa;
use exitscope_model::doctor::{Check, Diagnosis, GUEST, MODULE, Verdict};

pub use facts::{Cpu, Facts};
use tree::{Absence, Tree};

/// Examines the machine whose root directory is `root`.
pub fn examine(root: &Path, facts: &Facts) -> Diagnosis {
    let machine = Machine::new(root, facts);
    let mut checks = vec![
        cpu::cpu(&machine),
        cpu::hypervisor(&machine),
        kvm::kvm(&machine),
        kvm::device(&machine),
        kvm::paging(&machine),
        kernel::btf(&machine),
        kernel::preempt_rt(&machine),
        kernel::cfi(&machine),
        kernel::ftrace(&machine),
        kernel::module_loading(&machine),
    ];
    let module = module::module(&machine, &checks);
    let device = module::device(&machine);
    let leaves = cpu::leaves(&machine);
    let works = |check: &Check| check.result == Verdict::Ok;
    let sources = [(MODULE, works(&device)), (GUEST, facts.cpu.leaves.is_some())];
    checks.extend([
        module,
        device,
        ebpf::tracefs(&machine),
        ebpf::ebpf(&machine),
        cpu::clock(&machine),
        leaves,
    ]);
    Diagnosis::new(
        sources.iter().filter(|(_, works)| *works).map(|(name, _)| (*name).into()).collect(),
        checks,
    )
}

/// What several checks look at.
struct Machine<'a> {
    tree: Tree<'a>,
    facts: &'a Facts,
    /// `/proc/cpuinfo` of the first CPU.
    cpuinfo: Result<String, Absence>,
    /// The container that this program runs in, if it is in one.
    container: Option<&'static str>,
}

/// Whether a module is in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Absent,
    Loaded,
    BuiltIn,
}

impl<'a> Machine<'a> {
    fn new(root: &'a Path, facts: &'a Facts) -> Self {
        let tree = Tree::new(root);
        let cpuinfo = tree.text("proc/cpuinfo");
        let cpuinfo = cpuinfo.map(|text| text.split("\n\n").next().unwrap_or_default().to_owned());
        let containers =
            [(".dockerenv", "Docker"), ("run/.containerenv", "Podman"), ("run/systemd/container", "one")];
        let container = containers.iter().find(|(sign, _)| tree.has(sign)).map(|&(_, name)| name);
        Self { tree, facts, cpuinfo, container }
    }

    fn isa(&self) -> Option<Isa> {
        self.facts.cpu.isa
    }

    /// The value of a line of `/proc/cpuinfo`.
    fn cpuinfo(&self, key: &str) -> Option<&str> {
        let lines = self.cpuinfo.as_ref().ok()?.lines();
        lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == key)
            .map(|(_, value)| value.trim())
    }

    /// Whether the kernel uses a feature of the CPU; `None` if nothing tells.
    fn flag(&self, name: &str) -> Option<bool> {
        Some(self.cpuinfo("flags")?.split_whitespace().any(|flag| flag == name))
    }

    /// Whether a module is in the kernel; an error where there is no `/sys`.
    fn presence(&self, module: &str) -> Result<Presence, Absence> {
        self.tree.find("sys/module")?;
        let of = |name: &str| self.tree.has(&format!("sys/module/{module}{name}"));
        Ok(match (of("/initstate"), of("")) {
            (true, _) => Presence::Loaded,
            (false, true) => Presence::BuiltIn,
            (false, false) => Presence::Absent,
        })
    }

    /// KVM's module for this CPU: `kvm_intel` or `kvm_amd`.
    fn vendor_module(&self) -> Option<&'static str> {
        Some(match self.isa()? {
            Isa::Vmx => "kvm_intel",
            Isa::Svm => "kvm_amd",
        })
    }

    /// Whether the kernel was built with an option; `None` if its configuration is not there.
    fn config(&self, option: &str) -> Option<bool> {
        let release = &self.facts.release;
        let places = [format!("boot/config-{release}"), format!("lib/modules/{release}/config")];
        let text = places.iter().find_map(|path| self.tree.text(path).ok())?;
        let wanted = [format!("CONFIG_{option}=y"), format!("CONFIG_{option}=m")];
        Some(text.lines().any(|line| wanted.iter().any(|wanted| line == wanted)))
    }

    /// Whether the types of a part of the kernel (`vmlinux`, or a module) name something.
    fn btf_names(&self, part: &str, name: &str) -> Result<bool, Absence> {
        let types = self.tree.bytes(&format!("sys/kernel/btf/{part}"))?;
        let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
        Ok(types.windows(wanted.len()).any(|window| window == wanted))
    }
}

/// A check that could not be made, as something was not to be read.
fn unknown(name: &str, absence: &Absence) -> Check {
    Check::new(name, Verdict::Unknown, absence.to_string()).advise(match absence {
        Absence::Missing(_) => {
            "run it where /proc and /sys are mounted: on the host, not in a bare container or chroot"
        }
        Absence::Unreadable(..) => "run it as root: `sudo exitscope doctor`",
    })
}
