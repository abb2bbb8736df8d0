//! What KVM on this kernel uses of the CPU: its module's parameters, which it corrects when it is loaded.

use std::fs;
use std::path::Path;

use exitscope_abi::reason::Isa;
use serde::Serialize;

/// Where the kernel shows the parameters of its modules.
const MODULES: &str = "/sys/module";

/// What a module of KVM's uses. A feature that it does not tell of is in neither list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// `kvm_intel` or `kvm_amd`.
    pub module: &'static str,
    /// Features that it uses, or offers where guests ask for them.
    pub uses: Vec<&'static str>,
    /// Features that the CPU lacks or that it was told to leave alone.
    pub leaves: Vec<&'static str>,
}

/// Parameters of `kvm_intel` and the features that they switch.
const INTEL: &[(&str, &str)] = &[
    ("ept", "EPT"),
    ("eptad", "EPT: accessed and dirty flags"),
    ("vpid", "VPID"),
    ("unrestricted_guest", "unrestricted guest"),
    ("enable_apicv", "posted interrupts and virtual-interrupt delivery"),
    ("enable_ipiv", "IPI virtualization"),
    ("flexpriority", "TPR shadow"),
    ("vnmi", "virtual NMIs"),
    ("preemption_timer", "preemption timer"),
    ("enable_shadow_vmcs", "shadow VMCS"),
    ("pml", "PML"),
    ("nested", "nested virtualization"),
];

/// Parameters of `kvm_amd` and the features that they switch.
const AMD: &[(&str, &str)] = &[
    ("npt", "nested paging"),
    ("avic", "AVIC"),
    ("vgif", "virtual GIF"),
    ("vnmi", "virtual NMIs"),
    ("vls", "virtual VMSAVE/VMLOAD"),
    ("tsc_scaling", "TSC scaling"),
    ("nrips", "next RIP"),
    ("lbrv", "LBR virtualization"),
    ("sev", "SEV"),
    ("sev_es", "SEV-ES"),
    ("sev_snp", "SEV-SNP"),
    ("nested", "nested virtualization"),
];

impl Usage {
    /// Reads it; `None` if the module is not loaded.
    pub fn read(isa: Isa) -> Option<Self> {
        Self::read_from(Path::new(MODULES), isa)
    }

    fn read_from(modules: &Path, isa: Isa) -> Option<Self> {
        let (module, features) = match isa {
            Isa::Vmx => ("kvm_intel", INTEL),
            Isa::Svm => ("kvm_amd", AMD),
        };
        let parameters = modules.join(module).join("parameters");
        let mut usage = parameters.is_dir().then(|| Self { module, uses: Vec::new(), leaves: Vec::new() })?;
        for (parameter, feature) in features {
            match fs::read_to_string(parameters.join(parameter)).unwrap_or_default().trim() {
                "Y" | "1" => usage.uses.push(feature),
                "N" | "0" => usage.leaves.push(feature),
                _ => {}
            }
        }
        Some(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read() {
        let modules = tempfile::tempdir().unwrap();
        let parameters = modules.path().join("kvm_amd/parameters");
        fs::create_dir_all(&parameters).unwrap();
        for (parameter, value) in
            [("npt", "Y\n"), ("vgif", "1\n"), ("avic", "N\n"), ("nested", "0\n"), ("vls", "?")]
        {
            fs::write(parameters.join(parameter), value).unwrap();
        }
        let usage = Usage::read_from(modules.path(), Isa::Svm).unwrap();
        assert_eq!(usage.uses, ["nested paging", "virtual GIF"]);
        assert_eq!(usage.leaves, ["AVIC", "nested virtualization"]);
        assert_eq!(Usage::read_from(modules.path(), Isa::Vmx), None);
    }
}
