//! KVM's modules, the right to use `/dev/kvm`, and KVM's paging.

use std::io;

use exitscope_abi::reason::Isa;
use exitscope_model::doctor::{Check, Verdict};

use super::{Machine, Presence, unknown};

/// The module kvm and the one for this CPU's vendor.
pub(super) fn kvm(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("kvm", result, found);
    let kvm = match machine.presence("kvm") {
        Ok(kvm) => kvm,
        Err(absence) => return unknown("kvm", &absence),
    };
    let Some(vendor) = machine.vendor_module() else {
        let names = machine.tree.names("sys/module");
        let other = names.iter().find(|name| name.starts_with("kvm_"));
        return match (kvm, other) {
            (Presence::Absent, _) => check(Verdict::Fail, "not loaded: it needs VMX or SVM".into()),
            (_, Some(other)) => check(
                Verdict::Fail,
                format!("kvm and {other}, which needs no VMX or SVM, and which exitscope cannot see"),
            ),
            (_, None) => check(Verdict::Fail, "kvm is there, but needs VMX or SVM to run guests".into()),
        };
    };
    let present = machine.presence(vendor).unwrap_or(Presence::Absent);
    match (kvm, present) {
        (Presence::Absent, _) | (_, Presence::Absent) => not_loaded(machine, kvm, vendor),
        (Presence::BuiltIn, _) => check(Verdict::Warn, format!("kvm and {vendor}, built into the kernel")),
        (Presence::Loaded, _) => check(Verdict::Ok, format!("kvm and {vendor} are loaded")),
    }
}

fn not_loaded(machine: &Machine, kvm: Presence, vendor: &str) -> Check {
    let release = &machine.facts.release;
    let found = match kvm {
        Presence::Absent => format!("neither kvm nor {vendor} is loaded"),
        _ => format!("kvm is there, {vendor} is not"),
    };
    let check = Check::new("kvm", Verdict::Fail, found);
    // `modules.dep` has the files' names.
    let file = vendor.replace('_', "-");
    match machine.tree.text(&format!("lib/modules/{release}/modules.dep")) {
        Ok(list) if !list.contains(&file) => check.advise(format!(
            "this kernel ({release}) has no {vendor}: boot one that has, such as a distribution's own"
        )),
        _ => check.advise(format!("`sudo modprobe {vendor}`; if that fails, `dmesg | grep -i kvm` says why")),
    }
}

/// The right to use `/dev/kvm`, which whoever runs VMs needs.
pub(super) fn device(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("kvm-device", result, found);
    let error = match (machine.facts.open)(&machine.tree.path("dev/kvm"), true) {
        Ok(()) => return check(Verdict::Ok, "/dev/kvm can be opened".into()),
        Err(error) => error,
    };
    match (error.kind(), machine.container) {
        (io::ErrorKind::PermissionDenied, _) => check(Verdict::Warn, "/dev/kvm is not for this user".into()).advise(
            "to run VMs: `sudo usermod -aG kvm $USER`, then log in again; to watch the VMs of others it is not needed",
        ),
        (io::ErrorKind::NotFound, Some(_)) => check(Verdict::Warn, "there is no /dev/kvm in this container".into())
            .advise("to run VMs here, start the container with `--device /dev/kvm`"),
        (io::ErrorKind::NotFound, None) => check(Verdict::Warn, "there is no /dev/kvm".into()),
        _ => check(Verdict::Warn, format!("/dev/kvm cannot be opened: {error}"))
            .advise("`dmesg | grep -i kvm` says what KVM lacks"),
    }
}

/// Whether guests have nested paging (EPT, NPT) or KVM shadows their page tables.
pub(super) fn paging(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("paging", result, found);
    let (Some(isa), Some(vendor)) = (machine.isa(), machine.vendor_module()) else {
        return check(Verdict::Unknown, "there is no KVM that could tell".into());
    };
    let parameter = match isa {
        Isa::Vmx => "ept",
        Isa::Svm => "npt",
    };
    let value = match machine.tree.text(&format!("sys/module/{vendor}/parameters/{parameter}")) {
        Ok(value) => value,
        Err(absence) if absence.is_missing() => {
            return check(Verdict::Unknown, format!("{vendor} tells, when it is loaded"));
        }
        Err(absence) => return unknown("paging", &absence),
    };
    match value.as_str() {
        "Y" | "1" => check(Verdict::Ok, format!("nested ({})", parameter.to_uppercase())),
        "N" | "0" => check(Verdict::Warn, "shadow: every change of a guest's page tables may exit".into())
            .advise(format!(
                "while no VM runs: `sudo modprobe -r {vendor}`, then `sudo modprobe {vendor} {parameter}=1`"
            )),
        odd => check(Verdict::Unknown, format!("{vendor} says {parameter}={odd}")),
    }
}
