//! What the module needs of the kernel, and refuses to be loaded without.

use exitscope_model::doctor::{Check, Verdict};

use super::{Machine, Presence, unknown};
use crate::lockdown;

/// What to do about a kernel that the module refuses.
const OTHER_KERNEL: &str = "boot a kernel that the module supports, such as Debian's linux-image-amd64";

/// What the kernel tells of its types, by which the module proves that it knows this KVM.
pub(super) fn btf(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("btf", result, found);
    let kvm = match machine.tree.find("sys/kernel").and_then(|_| machine.presence("kvm")) {
        Ok(kvm) => kvm,
        Err(absence) => return unknown("btf", &absence),
    };
    let has = |part: &str| machine.tree.has(&format!("sys/kernel/btf/{part}"));
    if !has("vmlinux") {
        return check(
            Verdict::Fail,
            "there is no /sys/kernel/btf/vmlinux: this kernel does not describe itself".into(),
        )
        .advise(format!("{OTHER_KERNEL} (CONFIG_DEBUG_INFO_BTF)"));
    }
    if kvm == Presence::Absent {
        return check(Verdict::Ok, "of the kernel; KVM's comes with KVM".into());
    }
    // What is built into the kernel is a part of its types.
    let is_module = |name: &&str| machine.presence(name).is_ok_and(|it| it == Presence::Loaded);
    let modules: Vec<&str> = ["kvm"].into_iter().chain(machine.vendor_module()).filter(is_module).collect();
    match modules.iter().find(|module| !has(module)) {
        Some(module) => {
            check(Verdict::Fail, format!("of the kernel, but there is no /sys/kernel/btf/{module}"))
                .advise(format!("{OTHER_KERNEL} (CONFIG_DEBUG_INFO_BTF_MODULES)"))
        }
        None if modules.is_empty() => check(Verdict::Ok, "of the kernel, with KVM in it".into()),
        None => check(Verdict::Ok, format!("of the kernel, {}", modules.join(" and "))),
    }
}

/// Whether this is a PREEMPT_RT kernel.
pub(super) fn preempt_rt(machine: &Machine) -> Check {
    let realtime = machine.tree.text("sys/kernel/realtime").is_ok_and(|text| text == "1");
    if realtime || machine.facts.version.contains("PREEMPT_RT") {
        let found = "in this kernel; the first exits of many vCPUs at once may be counted as unaccounted";
        return Check::new("preempt-rt", Verdict::Ok, found);
    }
    Check::new("preempt-rt", Verdict::Ok, "not in this kernel")
}

/// Whether this is a kernel with CFI. Where its configuration is not to be had, its types tell: a kernel with CFI has a
/// function that reports failures.
pub(super) fn cfi(machine: &Machine) -> Check {
    let configured =
        ["CFI_CLANG", "CFI"].iter().filter_map(|option| machine.config(option)).reduce(|a, b| a | b);
    let has_cfi = match configured {
        Some(configured) => Ok(configured),
        None => machine.btf_names("vmlinux", "report_cfi_failure"),
    };
    match has_cfi {
        Ok(true) => Check::new(
            "cfi",
            Verdict::Fail,
            "this kernel has CFI, and the module's probes carry no type hashes",
        )
        .advise(OTHER_KERNEL),
        Ok(false) => Check::new("cfi", Verdict::Ok, "not in this kernel"),
        Err(_) => {
            let release = &machine.facts.release;
            let found = format!("neither /boot/config-{release} nor the kernel's types can be read");
            Check::new("cfi", Verdict::Unknown, found)
                .advise("load the module: it refuses a kernel with CFI, and `dmesg` says so")
        }
    }
}

/// Whether functions of the kernel can be probed.
pub(super) fn ftrace(machine: &Machine) -> Check {
    let check = |result, found: &str| Check::new("ftrace", result, found);
    let enabled = match machine.tree.find("proc/sys/kernel") {
        Ok(_) => machine.tree.text("proc/sys/kernel/ftrace_enabled"),
        Err(absence) => Err(absence),
    };
    match enabled.as_deref() {
        Ok("0") => check(Verdict::Fail, "switched off").advise("`sudo sysctl kernel.ftrace_enabled=1`"),
        Ok(_) => check(Verdict::Ok, "switched on"),
        Err(absence) if absence.is_missing() && machine.tree.has("proc/sys/kernel") => {
            check(Verdict::Fail, "not in this kernel")
                .advise(format!("{OTHER_KERNEL} (CONFIG_DYNAMIC_FTRACE)"))
        }
        Err(absence) => unknown("ftrace", absence),
    }
}

/// Whether the kernel loads modules, and whose.
pub(super) fn module_loading(machine: &Machine) -> Check {
    let check = |result, found: &str| Check::new("module-loading", result, found);
    let tree = &machine.tree;
    if tree.text("proc/sys/kernel/modules_disabled").is_ok_and(|text| text == "1") {
        return check(Verdict::Fail, "switched off until the next boot (kernel.modules_disabled)")
            .advise("take `kernel.modules_disabled` out of /etc/sysctl.d, then reboot");
    }
    if tree.has("proc/version") && tree.find("proc/modules").is_err_and(|absence| absence.is_missing()) {
        return check(Verdict::Fail, "not in this kernel").advise(format!("{OTHER_KERNEL} (CONFIG_MODULES)"));
    }
    if let Some(reason) = lockdown::reason(tree.root()) {
        return check(Verdict::Warn, &format!("{reason}: modules need a signature that it knows"))
            .advise("enrol the key that signs the module (`sudo mokutil --import /var/lib/dkms/mok.pub`): docs/install.md");
    }
    match tree.find("sys/kernel") {
        Ok(_) => check(Verdict::Ok, "allowed, without a known signature too"),
        Err(absence) => unknown("module-loading", &absence),
    }
}
