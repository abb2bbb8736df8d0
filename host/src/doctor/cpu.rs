//! What the CPU is, who runs this machine, its clock, and whether its host's exitscope answers.

use exitscope_model::doctor::{Check, Verdict};

use super::{Machine, unknown};

/// What works all the same.
const NO_HARDWARE: &str = "; `exitscope lab run` works without";

/// The CPU's vendor, and VMX or SVM.
pub(super) fn cpu(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("cpu", result, found);
    let id = machine.cpuinfo("vendor_id");
    let vendor = match id {
        Some("GenuineIntel") => "Intel",
        Some("AuthenticAMD") => "AMD",
        Some("HygonGenuine") => "Hygon",
        Some("CentaurHauls" | "Shanghai") => "Zhaoxin",
        Some(other) => other,
        None => "vendor unknown",
    };
    let Some(isa) = machine.isa() else {
        let module = if vendor == "AMD" || vendor == "Hygon" { "kvm_amd" } else { "kvm_intel" };
        let advice = match &machine.facts.cpu.hypervisor {
            Some(_) => {
                format!("on its host, allow nested VMs (KVM: `modprobe {module} nested=1`, CPU model `host`)")
            }
            None => "switch it on in the firmware's setup (VT-x, SVM Mode), if this CPU has it".into(),
        };
        let found = format!("{vendor}, neither VMX nor SVM");
        return check(Verdict::Fail, found).advise(format!("{advice}{NO_HARDWARE}"));
    };
    let name = isa.name().to_uppercase();
    if machine.flag(isa.name()) == Some(false) {
        return check(Verdict::Fail, format!("{vendor}, {name}, which the firmware has switched off"))
            .advise(format!("switch it on in the firmware's setup (VT-x, SVM Mode){NO_HARDWARE}"));
    }
    check(Verdict::Ok, format!("{vendor}, {name}"))
}

/// Names of hypervisors in CPUID, and what people call them.
const HYPERVISORS: &[(&str, &str)] = &[
    (KVM, "KVM"),
    ("Microsoft Hv", "Hyper-V"),
    ("XenVMMXenVMM", "Xen"),
    ("VMwareVMware", "VMware"),
    (TCG, "QEMU's emulation"),
    ("VBoxVBoxVBox", "VirtualBox"),
    ("bhyve bhyve ", "bhyve"),
    ("ACRNACRNACRN", "ACRN"),
];
const KVM: &str = "KVMKVMKVM";
const TCG: &str = "TCGTCGTCGTCG";

/// Whether this machine is itself a guest, and of whom.
pub(super) fn hypervisor(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("hypervisor", result, found);
    let told = machine.facts.cpu.hypervisor.clone();
    let Some(signature) = told.or_else(|| machine.tree.text("sys/hypervisor/type").ok()) else {
        return check(Verdict::Ok, "none: this machine is no guest".into());
    };
    let known = HYPERVISORS.iter().find(|(known, _)| *known == signature);
    let name = match (known, signature.as_str()) {
        (Some((_, name)), _) => name,
        (None, "") => "one without a name",
        (None, name) => name,
    };
    let consequence = match machine.isa() {
        _ if signature == TCG => "; times are those of an emulated CPU",
        Some(_) => "; VMs here are nested, and their exits cost more than on hardware",
        None => "",
    };
    check(Verdict::Ok, format!("{name}: this machine is a guest{consequence}"))
}

/// The clock that the module times exits with.
pub(super) fn clock(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("clock", result, found);
    let read = |name: &str| machine.tree.text(&format!("sys/devices/system/clocksource/clocksource0/{name}"));
    let current = match read("current_clocksource") {
        Ok(current) => current,
        Err(absence) => return unknown("clock", &absence),
    };
    let available = read("available_clocksource").unwrap_or_else(|_| current.clone());
    let lacks: Vec<&str> = ["constant_tsc", "nonstop_tsc"]
        .into_iter()
        .filter(|flag| machine.flag(flag) == Some(false))
        .collect();
    let jumps = "counts are right; times from the module, which reads the TSC, may jump";
    if !available.split_whitespace().any(|name| name == "tsc") {
        return check(Verdict::Warn, format!("clocksource {current}; the kernel does not trust the TSC"))
            .advise(format!("{jumps}: `dmesg | grep -i tsc` says why the kernel gave it up"));
    }
    if !lacks.is_empty() {
        return check(Verdict::Warn, format!("clocksource {current}; the TSC lacks {}", lacks.join(" and ")))
            .advise(format!("{jumps} with the CPU's frequency or idle states"));
    }
    match machine.flag("constant_tsc") {
        None => check(Verdict::Ok, format!("clocksource {current}; the TSC is available")),
        Some(_) => {
            check(Verdict::Ok, format!("clocksource {current}; the TSC is constant and does not stop"))
        }
    }
}

/// Whether the host's exitscope answers CPUID leaf 0x4FFFFFF0.
pub(super) fn leaves(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("guest-leaves", result, found);
    let cpu = &machine.facts.cpu;
    if let Some(discovery) = cpu.leaves {
        let (layout, expose) = (discovery.layout.name(), discovery.expose.name());
        return check(Verdict::Ok, format!("the host's exitscope answers: layout {layout}, expose {expose}"));
    }
    match cpu.hypervisor.as_deref() {
        Some(KVM) => check(Verdict::Warn, "no exitscope answers CPUID leaf 0x4ffffff0".into()).advise(
            "to see this guest's own exits, load the module on its host, with expose=vm (the default)",
        ),
        _ => check(Verdict::Ok, "nobody to ask: this machine is no guest of KVM".into()),
    }
}
