//! The kernel's own events of KVM, and what a source by eBPF would need.

use exitscope_model::doctor::{Check, Verdict};

use super::{Absence, Machine, Presence, unknown};

/// Where tracefs is mounted.
const PLACES: [&str; 2] = ["sys/kernel/tracing", "sys/kernel/debug/tracing"];

/// The kernel's events `kvm_exit` and `kvm_entry`, which tests and the self-test take as a witness.
pub(super) fn tracefs(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("tracefs", result, found);
    let tree = &machine.tree;
    if let Err(absence) = tree.find("sys/kernel") {
        return unknown("tracefs", &absence);
    }
    let found = PLACES.map(|place| tree.find(&format!("{place}/events")));
    if let Some(Err(absence)) =
        found.iter().find(|found| found.as_ref().is_err_and(|absence| !absence.is_missing()))
    {
        return unknown("tracefs", absence);
    }
    let Some((place, _)) = PLACES.iter().zip(&found).find(|(_, found)| found.is_ok()) else {
        return match tree.has(PLACES[0]) {
            true => check(Verdict::Warn, "not mounted".into())
                .advise("`sudo mount -t tracefs tracefs /sys/kernel/tracing` gives the kernel's own counts as a witness"),
            false => check(Verdict::Warn, "not in this kernel".into()),
        };
    };
    match tree.has(&format!("{place}/events/kvm/kvm_exit"))
        && tree.has(&format!("{place}/events/kvm/kvm_entry"))
    {
        true => check(Verdict::Ok, format!("/{place} has the events kvm_exit and kvm_entry")),
        false => check(Verdict::Warn, format!("/{place} has no events of KVM"))
            .advise("they come with KVM: load it first"),
    }
}

/// Bits of `CapEff` in `/proc/self/status`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
/// The oldest kernel that a source by eBPF is for.
const OLDEST: (u32, u32) = (6, 1);

/// What is missing, and what to do about it.
type Lack = (String, &'static str);

/// What a source by eBPF would need. Whether unprivileged users may load eBPF is of no concern: theirs cannot trace.
pub(super) fn ebpf(machine: &Machine) -> Check {
    let check = |result, found: String| Check::new("ebpf", result, found);
    let found: Result<Vec<Option<Lack>>, Absence> =
        [kernel(machine), ftrace(machine), kvm(machine), locked_down(machine), rights(machine)]
            .into_iter()
            .collect();
    let lacks: Vec<Lack> = match found {
        Ok(lacks) => lacks.into_iter().flatten().collect(),
        Err(absence) => return unknown("ebpf", &absence),
    };
    let Some((_, advice)) = lacks.first() else {
        return check(Verdict::Ok, "all is there that `exitscope stat --source bpf` needs".into());
    };
    let names: Vec<&str> = lacks.iter().map(|(what, _)| what.as_str()).collect();
    check(Verdict::Warn, format!("`exitscope stat --source bpf` lacks {}", names.join(", "))).advise(*advice)
}

fn kernel(machine: &Machine) -> Result<Option<Lack>, Absence> {
    let release = &machine.facts.release;
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|digits| digits.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST {
        return Ok(Some((format!("Linux 6.1 (this is {release})"), "boot a kernel of 6.1 or newer")));
    }
    machine.tree.find("proc/sys/kernel")?;
    // Whatever its value, it is there where bpf(2) is.
    let has_bpf = machine.tree.has("proc/sys/kernel/unprivileged_bpf_disabled");
    Ok((!has_bpf).then(|| ("bpf(2)".into(), "boot a kernel with CONFIG_BPF_SYSCALL")))
}

/// What programs at functions of the kernel (fentry) hang on: KVM's vCPUs come and go there.
fn ftrace(machine: &Machine) -> Result<Option<Lack>, Absence> {
    let enabled = machine.tree.text("proc/sys/kernel/ftrace_enabled").is_ok_and(|text| text == "1");
    Ok((!enabled).then(|| ("ftrace".into(), "see ftrace")))
}

/// The raw tracepoints of KVM, and the types that say what is where in its structures.
fn kvm(machine: &Machine) -> Result<Option<Lack>, Absence> {
    let advice = "boot a kernel with CONFIG_DEBUG_INFO_BTF and CONFIG_DEBUG_INFO_BTF_MODULES";
    let part = match machine.presence("kvm")? {
        Presence::Absent => return Ok(Some(("KVM".into(), "load KVM first"))),
        Presence::BuiltIn => "vmlinux",
        Presence::Loaded => "kvm",
    };
    for event in ["btf_trace_kvm_exit", "btf_trace_kvm_entry"] {
        match machine.btf_names(part, event) {
            Ok(true) => {}
            Ok(false) => return Ok(Some(("KVM's raw tracepoints".into(), advice))),
            Err(absence) if absence.is_missing() => {
                return Ok(Some((format!("the types of {part}"), advice)));
            }
            Err(absence) => return Err(absence),
        }
    }
    Ok(match machine.vendor_module() {
        None => Some(("VMX or SVM".into(), "see cpu")),
        Some(vendor) => match machine.presence(vendor)? {
            Presence::Loaded if !machine.tree.has(&format!("sys/kernel/btf/{vendor}")) => {
                Some((format!("the types of {vendor}"), advice))
            }
            Presence::Absent => Some((vendor.into(), "load KVM's module for this CPU first")),
            _ => None,
        },
    })
}

fn locked_down(machine: &Machine) -> Result<Option<Lack>, Absence> {
    let level = machine.tree.text("sys/kernel/security/lockdown").unwrap_or_default();
    let refused = level.contains("[confidentiality]");
    Ok(refused.then(|| {
        (
            "a kernel that lets it read".into(),
            "boot with `lockdown=integrity`: confidentiality refuses eBPF that reads",
        )
    }))
}

fn rights(machine: &Machine) -> Result<Option<Lack>, Absence> {
    let path = "proc/self/status";
    let status = machine.tree.text(path)?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    let set = set.ok_or_else(|| Absence::Unreadable(format!("/{path}"), "it has no CapEff".into()))?;
    let has = |capability: u32| set >> capability & 1 == 1;
    // Which gives the types of a module to nobody else, without which programs are not attached to its functions.
    let is_module = machine.presence("kvm")? == Presence::Loaded;
    let may = has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON) && !is_module);
    let needed = if is_module { "CAP_SYS_ADMIN, as KVM is a module" } else { "CAP_BPF and CAP_PERFMON" };
    Ok((!may).then(|| (needed.into(), "use sudo, or a service with what is lacking")))
}
