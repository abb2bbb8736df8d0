//! What is found on machines that are trees of files.

use std::fs;
use std::io;
use std::path::Path;

use exitscope_abi::leaf::{Discovery, Expose, Layout, VERSION};
use exitscope_abi::reason::Isa;
use exitscope_abi::region::{self, CELL_SIZE, MAGIC};
use exitscope_model::doctor::{Check, Diagnosis, Verdict};

use super::{Cpu, Facts, examine};

const RELEASE: &str = "6.12.101+deb13-amd64";
const KMOD: &str = "lib/modules/6.12.101+deb13-amd64/updates/dkms/exitscope.ko";
const DEVICE: &str = "dev/exitscope";
const CONFIG: &str = "boot/config-6.12.101+deb13-amd64";
const SECURE_BOOT: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const ALL: &str = "000001ffffffffff";
const PLAIN_USER: &str = "0000000000000000";

/// A machine that is a tree of files.
struct Fake {
    root: tempfile::TempDir,
    facts: Facts,
}

fn open(device: &Path, _: bool) -> io::Result<()> {
    fs::metadata(device).map(drop)
}

fn forbidden(_: &Path, _: bool) -> io::Result<()> {
    Err(io::ErrorKind::PermissionDenied.into())
}

fn broken(_: &Path, _: bool) -> io::Result<()> {
    Err(io::Error::other("it smokes"))
}

fn header(version: u32) -> Vec<u8> {
    let mut cell = vec![0; CELL_SIZE];
    cell[..8].copy_from_slice(&MAGIC.to_le_bytes());
    cell[8..12].copy_from_slice(&version.to_le_bytes());
    cell
}

impl Fake {
    /// A machine without any file.
    fn bare(isa: Option<Isa>) -> Self {
        let facts = Facts {
            release: RELEASE.into(),
            version: "#1 SMP PREEMPT_DYNAMIC Debian 6.12.101-1".into(),
            cpu: Cpu { isa, hypervisor: None, leaves: None },
            open,
            log: Some(Vec::new()),
        };
        Self { root: tempfile::tempdir().unwrap(), facts }
    }

    /// A machine with files of Debian's, but without KVM.
    fn debian(isa: Option<Isa>, vendor: &str) -> Self {
        let flag = isa.map_or("", |isa| isa.name());
        let cpuinfo = format!(
            "processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu constant_tsc nonstop_tsc {flag}\n\n\
             processor\t: 1\nvendor_id\t: odd\nflags\t\t: none\n\n"
        );
        let clock = "sys/devices/system/clocksource/clocksource0";
        Self::bare(isa)
            .with("proc/cpuinfo", &cpuinfo)
            .with("proc/version", "Linux version 6.12")
            .with("proc/modules", "")
            .with("proc/self/status", &format!("Name:\tx\nCapEff:\t{ALL}\n"))
            .with("proc/sys/kernel/ftrace_enabled", "1\n")
            .with("proc/sys/kernel/modules_disabled", "0\n")
            .with("proc/sys/kernel/unprivileged_bpf_disabled", "2\n")
            .with("sys/kernel/btf/vmlinux", "\0do_exit\0")
            .with("sys/module/module/parameters/sig_enforce", "N\n")
            .with("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
            .with("sys/kernel/tracing/events/header_page", "")
            .with(CONFIG, "CONFIG_KVM=m\n# CONFIG_CFI_CLANG is not set\n")
            .with("lib/modules/6.12.101+deb13-amd64/modules.dep", "kernel/arch/x86/kvm/kvm-amd.ko.xz:\n")
            .with("lib/modules/6.12.101+deb13-amd64/build/Makefile", "")
            .with(&format!("{clock}/current_clocksource"), "tsc\n")
            .with(&format!("{clock}/available_clocksource"), "tsc hpet acpi_pm \n")
    }

    /// A host of VMs with the module loaded.
    fn host(isa: Isa) -> Self {
        let (vendor, kvm, paging) = match isa {
            Isa::Vmx => ("GenuineIntel", "kvm_intel", "ept"),
            Isa::Svm => ("AuthenticAMD", "kvm_amd", "npt"),
        };
        Self::debian(Some(isa), vendor)
            .with("dev/kvm", "")
            .with("sys/module/kvm/initstate", "live\n")
            .with(&format!("sys/module/{kvm}/initstate"), "live\n")
            .with(&format!("sys/module/{kvm}/parameters/{paging}"), "Y\n")
            .with("sys/kernel/btf/kvm", "\0btf_trace_kvm_entry\0btf_trace_kvm_exit\0")
            .with(&format!("sys/kernel/btf/{kvm}"), "")
            .with("sys/kernel/tracing/events/kvm/kvm_exit/id", "1")
            .with("sys/kernel/tracing/events/kvm/kvm_entry/id", "2")
            .with("sys/module/exitscope/initstate", "live\n")
            .with("sys/module/exitscope/parameters/expose", "vm\n")
            .with("sys/module/exitscope/parameters/layout", "classic\n")
            .with_bytes(DEVICE, &header(region::VERSION))
    }

    /// An AMD host whose module is not loaded.
    fn unloaded() -> Self {
        Self::host(Isa::Svm).without("sys/module/exitscope").without(DEVICE)
    }

    fn with(self, path: &str, text: &str) -> Self {
        self.with_bytes(path, text.as_bytes())
    }

    fn with_bytes(self, path: &str, bytes: &[u8]) -> Self {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    fn without(self, path: &str) -> Self {
        let path = self.root.path().join(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        self
    }

    /// With a directory where a file should be: what cannot be read, even by root.
    fn with_odd(self, path: &str) -> Self {
        let place = self.root.path().join(path);
        if place.is_file() {
            fs::remove_file(&place).unwrap();
        }
        fs::create_dir_all(place).unwrap();
        self
    }

    fn with_facts(mut self, change: impl FnOnce(&mut Facts)) -> Self {
        change(&mut self.facts);
        self
    }

    fn examine(&self) -> Diagnosis {
        examine(self.root.path(), &self.facts)
    }

    /// The machine's check of this name ends like this, and says this in what it found or advises.
    #[track_caller]
    fn has(&self, name: &str, result: Verdict, words: &str) -> &Self {
        let diagnosis = self.examine();
        let check = find(&diagnosis, name);
        let said = format!("{} -> {}", check.found, check.advice.as_deref().unwrap_or_default());
        assert_eq!(check.result, result, "{name}: {said}");
        assert!(said.contains(words), "{name} does not say `{words}`: {said}");
        self
    }

    /// The module is not loaded and would not be, for this reason; the same is said where it stands.
    #[track_caller]
    fn refuses(&self, name: &str, words: &str) {
        self.has(name, Verdict::Fail, words).has("module", Verdict::Fail, "would not be: see");
        let diagnosis = self.examine();
        assert!(find(&diagnosis, "module").found.contains(name), "{diagnosis:?}");
        assert!(find(&diagnosis, name).advice.is_some() && !diagnosis.works);
    }
}

fn find<'a>(diagnosis: &'a Diagnosis, name: &str) -> &'a Check {
    diagnosis.checks.iter().find(|check| check.name == name).unwrap()
}

#[test]
fn on_a_healthy_host_everything_is_well() {
    for (isa, cpu, paging) in
        [(Isa::Svm, "AMD, SVM", "nested (NPT)"), (Isa::Vmx, "Intel, VMX", "nested (EPT)")]
    {
        let host = Fake::host(isa);
        let diagnosis = host.examine();
        for check in &diagnosis.checks {
            assert_eq!((check.result, &check.advice), (Verdict::Ok, &None), "{check:?}");
        }
        assert_eq!((diagnosis.works, diagnosis.sources.as_slice()), (true, ["module".to_owned()].as_slice()));
        host.has("cpu", Verdict::Ok, cpu).has("paging", Verdict::Ok, paging);
        host.has("module", Verdict::Ok, "loaded, expose vm, layout classic");
    }
}

#[test]
fn the_checks_are_the_same_ones_everywhere() {
    let names =
        |fake: Fake| -> Vec<String> { fake.examine().checks.into_iter().map(|check| check.name).collect() };
    assert_eq!(names(Fake::bare(None)), names(Fake::host(Isa::Vmx)));
}

#[test]
fn each_reason_to_refuse_the_module_is_found() {
    let fake = Fake::unloaded;
    fake().with(CONFIG, "CONFIG_CFI_CLANG=y\n").refuses("cfi", "type hashes");
    fake().with(CONFIG, "CONFIG_CFI=y\n").refuses("cfi", "type hashes");
    fake()
        .without(CONFIG)
        .with("sys/kernel/btf/vmlinux", "\0report_cfi_failure\0")
        .refuses("cfi", "type hashes");
    fake().with("proc/sys/kernel/ftrace_enabled", "0\n").refuses("ftrace", "sysctl kernel.ftrace_enabled=1");
    fake().without("proc/sys/kernel/ftrace_enabled").refuses("ftrace", "CONFIG_DYNAMIC_FTRACE");
    fake().without("sys/kernel/btf").refuses("btf", "CONFIG_DEBUG_INFO_BTF");
    fake().without("sys/kernel/btf/kvm").refuses("btf", "no /sys/kernel/btf/kvm");
    fake().without("sys/kernel/btf/kvm_amd").refuses("btf", "no /sys/kernel/btf/kvm_amd");
    fake().with("proc/sys/kernel/modules_disabled", "1\n").refuses("module-loading", "reboot");
    fake().without("proc/modules").refuses("module-loading", "CONFIG_MODULES");
    fake().with_facts(|facts| facts.cpu.isa = None).refuses("cpu", "neither VMX nor SVM");
    let off = "vendor_id\t: AuthenticAMD\nflags\t: fpu\n";
    fake().with("proc/cpuinfo", off).refuses("cpu", "the firmware has switched off");
}

#[test]
fn what_the_module_copes_with_is_no_reason_to_refuse_it() {
    let built_in = Fake::unloaded()
        .with("sys/module/kvm/parameters/x", "")
        .without("sys/module/kvm/initstate")
        .without("sys/kernel/btf/kvm");
    built_in.has("btf", Verdict::Ok, "of the kernel, kvm_amd");
    let all_built_in = built_in
        .with("sys/module/kvm_amd/parameters/x", "")
        .without("sys/module/kvm_amd/initstate")
        .without("sys/kernel/btf/kvm_amd");
    all_built_in.has("btf", Verdict::Ok, "with KVM in it");
    let realtime = Fake::unloaded().with("sys/kernel/realtime", "1\n");
    realtime.has("preempt-rt", Verdict::Ok, "unaccounted");
    let named = Fake::unloaded().with_facts(|facts| facts.version = "#1 SMP PREEMPT_RT Debian".into());
    named.has("preempt-rt", Verdict::Ok, "unaccounted");
    for isa in Isa::ALL {
        let hyper_v = |facts: &mut Facts| facts.cpu.hypervisor = Some("Microsoft Hv".into());
        Fake::host(isa).with_facts(hyper_v).has("hypervisor", Verdict::Ok, "Hyper-V");
    }
}

#[test]
fn signatures_that_are_wanted_are_told_and_refuse_nothing_for_certain() {
    let lockdown =
        ("sys/kernel/security/lockdown", &b"none [integrity] confidentiality\n"[..], "locked down");
    let enforced = ("sys/module/module/parameters/sig_enforce", &b"Y\n"[..], "enforces signatures");
    for (path, contents, reason) in [lockdown, enforced, (SECURE_BOOT, &[6, 0, 0, 0, 1], "Secure Boot is on")]
    {
        let fake = Fake::unloaded().with(KMOD, "").with_bytes(path, contents);
        fake.has("module-loading", Verdict::Warn, reason).has(
            "module-loading",
            Verdict::Warn,
            "mokutil --import",
        );
        fake.has("module", Verdict::Fail, "docs/install.md").has("ebpf", Verdict::Ok, "");
    }
    let fake = Fake::unloaded().with("sys/kernel/security/lockdown", "none integrity [confidentiality]\n");
    fake.has("ebpf", Verdict::Warn, "lockdown=integrity");
}

#[test]
fn a_module_that_is_not_loaded_tells_why() {
    let fake = Fake::unloaded;
    fake().has("module", Verdict::Fail, "not installed").has("module", Verdict::Fail, "-> `make module`");
    fake().has("device", Verdict::Fail, "there is no /dev/exitscope");
    fake().with(KMOD, "\0vermagic=6.12.101+deb13-amd64 SMP\0").has(
        "module",
        Verdict::Fail,
        "sudo modprobe exitscope",
    );
    fake().with(&format!("{KMOD}.xz"), "").has(
        "module",
        Verdict::Fail,
        "installed for this kernel (/lib/modules/",
    );
    fake().with(KMOD, "\0vermagic=6.1.0-50-amd64 SMP\0").has(
        "module",
        Verdict::Fail,
        "another kernel (6.1.0-50-amd64)",
    );
    let elsewhere = fake().with("lib/modules/6.1.0-50-amd64/extra/exitscope.ko.zst", "");
    elsewhere.has(
        "module",
        Verdict::Fail,
        "not built for this kernel (6.12.101+deb13-amd64), but for 6.1.0-50-amd64",
    );
    let dkms = fake().with("var/lib/dkms/exitscope/0.1.0/source", "");
    dkms.has("module", Verdict::Fail, "DKMS has its source").has("module", Verdict::Fail, "dkms autoinstall");
    let headless = dkms.without("lib/modules/6.12.101+deb13-amd64/build");
    headless.has("module", Verdict::Fail, "linux-headers-$(uname -r)");
    let listed = fake()
        .with("lib/modules/6.12.101+deb13-amd64/modules.dep", "weak-updates/exitscope.ko: kvm.ko\n")
        .with("lib/modules/6.12.101+deb13-amd64/weak-updates/exitscope.ko", "");
    listed.has("module", Verdict::Fail, "weak-updates/exitscope.ko");
    let log = ["loading out-of-tree module taints kernel.", "this kernel's kvm cannot be probed (-22)"];
    let told = fake().with_facts(|facts| facts.log = Some(log.map(str::to_owned).into()));
    told.has("module", Verdict::Fail, "the kernel's log has of it: this kernel's kvm cannot be probed (-22)");
    fake().with_facts(|facts| facts.log = None).has("module", Verdict::Fail, "not installed ->");
}

#[test]
fn a_device_that_cannot_be_read_tells_why() {
    let host = || Fake::host(Isa::Svm);
    let user = host().with_facts(|facts| facts.open = forbidden);
    user.has("device", Verdict::Fail, "use sudo").has("kvm-device", Verdict::Warn, "usermod -aG kvm");
    assert!(!user.examine().works);
    let broken = host().with_facts(|facts| facts.open = broken);
    broken.has("device", Verdict::Fail, "it smokes").has("kvm-device", Verdict::Warn, "it smokes");
    host().with_bytes(DEVICE, &header(region::VERSION + 1)).has("device", Verdict::Fail, "same source");
    host().with(DEVICE, "").has("device", Verdict::Fail, "cannot be read");
    host().with_odd(DEVICE).has("device", Verdict::Fail, "cannot be read");
    host().without(DEVICE).has("device", Verdict::Fail, "though the module is loaded");
    let contained = host().without(DEVICE).with(".dockerenv", "");
    contained.has("device", Verdict::Fail, "--device /dev/exitscope");
}

#[test]
fn a_host_without_kvm_is_told_how_to_get_it() {
    let amd = Fake::debian(Some(Isa::Svm), "AuthenticAMD");
    amd.has("kvm", Verdict::Fail, "sudo modprobe kvm_amd").has(
        "kvm-device",
        Verdict::Warn,
        "there is no /dev/kvm",
    );
    amd.has("paging", Verdict::Unknown, "kvm_amd").has("btf", Verdict::Ok, "comes with KVM");
    amd.has("tracefs", Verdict::Warn, "no events of KVM").has("ebpf", Verdict::Warn, "load KVM first");
    let intel = Fake::debian(Some(Isa::Vmx), "GenuineIntel");
    intel.has("kvm", Verdict::Fail, "has no kvm_intel");
    let half = Fake::host(Isa::Vmx).without("sys/module/kvm_intel");
    half.has("kvm", Verdict::Fail, "kvm is there, kvm_intel is not").has("ebpf", Verdict::Warn, "kvm_intel");
    let none = Fake::debian(None, "AuthenticAMD");
    none.has("cpu", Verdict::Fail, "firmware").has("kvm", Verdict::Fail, "needs VMX or SVM");
    none.has("paging", Verdict::Unknown, "no KVM");
    let other =
        Fake::debian(None, "AuthenticAMD").with("sys/module/kvm/x", "").with("sys/module/kvm_pvm/x", "");
    other.has("kvm", Verdict::Fail, "kvm_pvm").has("btf", Verdict::Ok, "with KVM in it");
}

#[test]
fn a_guest_is_told_of_its_host() {
    let kvm = |facts: &mut Facts| facts.cpu.hypervisor = Some("KVMKVMKVM".into());
    let guest = Fake::debian(None, "GenuineIntel").with_facts(kvm);
    guest.has("cpu", Verdict::Fail, "nested=1").has(
        "hypervisor",
        Verdict::Ok,
        "KVM: this machine is a guest",
    );
    guest.has("guest-leaves", Verdict::Warn, "expose=vm");
    assert!(!guest.examine().works);
    let discovery =
        Discovery { version: VERSION, layout: Layout::Classic, isa: Isa::Vmx, expose: Expose::Vm };
    let answered = guest.with_facts(|facts| facts.cpu.leaves = Some(discovery));
    answered.has("guest-leaves", Verdict::Ok, "layout classic, expose vm");
    assert_eq!(answered.examine().sources, ["guest"]);
    Fake::host(Isa::Vmx).with_facts(kvm).has("hypervisor", Verdict::Ok, "nested");
    let tcg = Fake::host(Isa::Svm).with_facts(|facts| facts.cpu.hypervisor = Some("TCGTCGTCGTCG".into()));
    tcg.has("hypervisor", Verdict::Ok, "times are those of an emulated CPU");
    Fake::host(Isa::Svm).with("sys/hypervisor/type", "xen\n").has("hypervisor", Verdict::Ok, "xen");
}

#[test]
fn in_a_container_without_sys_what_cannot_be_known_is_unknown() {
    let fake = Fake::host(Isa::Vmx).without("sys").without("dev").with(".dockerenv", "");
    for name in ["kvm", "btf", "module", "tracefs", "ebpf", "clock", "module-loading"] {
        fake.has(name, Verdict::Unknown, "where /proc and /sys are mounted");
    }
    fake.has("kvm-device", Verdict::Warn, "--device /dev/kvm").has("device", Verdict::Fail, "");
    let with_sys = Fake::unloaded().with(".dockerenv", "");
    with_sys.has("module", Verdict::Fail, "on the host of this container");
}

#[test]
fn a_machine_without_any_file_is_no_failure() {
    let bare = Fake::bare(Some(Isa::Svm)).examine();
    assert!(!bare.works);
    for check in &bare.checks {
        let silent = ["device", "kvm-device", "paging"].contains(&check.name.as_str());
        assert!(check.result != Verdict::Unknown || silent || check.advice.is_some(), "{check:?}");
    }
}

#[test]
fn odd_files_are_unknown() {
    let odd = |path: &str| Fake::host(Isa::Svm).with_odd(path);
    odd("sys/module/kvm_amd/parameters/npt").has("paging", Verdict::Unknown, "sudo exitscope doctor");
    odd("proc/sys/kernel/ftrace_enabled").has("ftrace", Verdict::Unknown, "sudo exitscope doctor");
    odd("proc/self/status").has("ebpf", Verdict::Unknown, "it is no file");
    odd("proc/cpuinfo").has("cpu", Verdict::Ok, "vendor unknown, SVM").has("clock", Verdict::Ok, "available");
    odd(CONFIG).has("cfi", Verdict::Ok, "");
    odd(CONFIG).with_odd("sys/kernel/btf/vmlinux").has("cfi", Verdict::Unknown, "refuses a kernel with CFI");
    odd("sys/kernel/btf/kvm").has("ebpf", Verdict::Unknown, "/sys/kernel/btf/kvm");
    let noise: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    for path in
        ["proc/cpuinfo", "proc/self/status", "sys/module/kvm_amd/parameters/npt", CONFIG, KMOD, DEVICE]
    {
        Fake::host(Isa::Svm).with_bytes(path, &noise).examine();
        Fake::unloaded().with_bytes(path, &noise).examine();
    }
    Fake::host(Isa::Svm).with("sys/module/kvm_amd/parameters/npt", "2").has(
        "paging",
        Verdict::Unknown,
        "npt=2",
    );
}

#[test]
fn shadow_paging_an_untrusted_clock_and_hidden_events_are_warnings() {
    let host = || Fake::host(Isa::Vmx);
    host().with("sys/module/kvm_intel/parameters/ept", "N\n").has("paging", Verdict::Warn, "kvm_intel ept=1");
    let clock = "sys/devices/system/clocksource/clocksource0";
    let hpet = host()
        .with(&format!("{clock}/current_clocksource"), "hpet\n")
        .with(&format!("{clock}/available_clocksource"), "hpet acpi_pm\n");
    hpet.has("clock", Verdict::Warn, "may jump");
    let kvm_clock = host().with(&format!("{clock}/current_clocksource"), "kvm-clock\n");
    kvm_clock.has("clock", Verdict::Ok, "kvm-clock");
    let old = "vendor_id\t: GenuineIntel\nflags\t: vmx constant_tsc\n";
    host().with("proc/cpuinfo", old).has("clock", Verdict::Warn, "lacks nonstop_tsc");
    host().without("sys/kernel/tracing/events").has("tracefs", Verdict::Warn, "mount -t tracefs");
    host().without("sys/kernel/tracing").has("tracefs", Verdict::Warn, "not in this kernel");
}

#[test]
fn what_a_source_by_ebpf_would_lack_is_told() {
    let host = || Fake::host(Isa::Vmx);
    let status = |set: &str| format!("CapEff:\t{set}\n");
    host().with("proc/self/status", &status(PLAIN_USER)).has(
        "ebpf",
        Verdict::Warn,
        "CAP_SYS_ADMIN, as KVM is a module",
    );
    let both = status("000000c000000000");
    host().with("proc/self/status", &both).has("ebpf", Verdict::Warn, "CAP_SYS_ADMIN");
    host().with("proc/self/status", &status("0000000000200000")).has("ebpf", Verdict::Ok, "");
    host().with_facts(|facts| facts.release = "5.10.0-30-amd64".into()).has(
        "ebpf",
        Verdict::Warn,
        "6.1 or newer",
    );
    host().with_facts(|facts| facts.release = "odd".into()).has("ebpf", Verdict::Warn, "Linux 6.1");
    host().without("proc/sys/kernel/unprivileged_bpf_disabled").has(
        "ebpf",
        Verdict::Warn,
        "CONFIG_BPF_SYSCALL",
    );
    host().with("proc/sys/kernel/ftrace_enabled", "0\n").has("ebpf", Verdict::Warn, "lacks ftrace");
    host().with("sys/kernel/btf/kvm", "\0kvm_vcpu\0").has("ebpf", Verdict::Warn, "raw tracepoints");
    host().without("sys/kernel/btf/kvm").has("ebpf", Verdict::Warn, "the types of kvm");
    host().without("sys/kernel/btf/kvm_intel").has("ebpf", Verdict::Warn, "the types of kvm_intel");
}
