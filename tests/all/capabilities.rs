//! What our decoder says of an emulated CPU against what its kernel says of it in the same boot.

use exitscope_caps::Address;
use exitscope_caps::check::check;
use exitscope_caps::decode::{Document, decode};
use exitscope_caps::dump;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::Step;
use exitscope_tests::{Transcript, command, guests, linux};
use serde_json::Value;

use crate::shared;

/// A word of /proc/cpuinfo, and the fields that must all be there for it: name of the register and of the field.
type Flag = (&'static str, &'static [(&'static str, &'static str)]);

const PIN: &str = "IA32_VMX_PINBASED_CTLS";
const PROC: &str = "IA32_VMX_PROCBASED_CTLS";
const PROC2: &str = "IA32_VMX_PROCBASED_CTLS2";
const PROC3: &str = "IA32_VMX_PROCBASED_CTLS3";
const EPT: &str = "IA32_VMX_EPT_VPID_CAP";
const SVM: &str = "SVM features";
const ENCRYPTION: &str = "Encrypted memory features";

/// The words of the line `vmx flags` (the kernel's asm/vmxfeatures.h), but for `eptp_switching`: Linux looks for it in
/// the upper half of IA32_VMX_VMFUNC (arch/x86/kernel/cpu/feat_ctl.c) and never finds it.
const VMX_FLAGS: &[Flag] = &[
    ("vnmi", &[(PIN, "Virtual NMIs")]),
    ("preemption_timer", &[(PIN, "Activate VMX-preemption timer")]),
    ("posted_intr", &[(PIN, "Process posted interrupts")]),
    ("invvpid", &[(EPT, "INVVPID")]),
    ("ept_x_only", &[(EPT, "Execute-only translations")]),
    ("ept_ad", &[(EPT, "Accessed and dirty flags for EPT")]),
    ("ept_1gb", &[(EPT, "1-GByte EPT pages")]),
    ("ept_5level", &[(EPT, "Page-walk length 5")]),
    ("flexpriority", &[(PROC, "Use TPR shadow"), (PROC2, "Virtualize APIC accesses")]),
    (
        "apicv",
        &[
            (PROC, "Use TPR shadow"),
            (PROC2, "APIC-register virtualization"),
            (PROC2, "Virtual-interrupt delivery"),
            (PIN, "Process posted interrupts"),
        ],
    ),
    ("tsc_offset", &[(PROC, "Use TSC offsetting")]),
    ("vtpr", &[(PROC, "Use TPR shadow")]),
    ("mtf", &[(PROC, "Monitor trap flag")]),
    ("vapic", &[(PROC2, "Virtualize APIC accesses")]),
    ("ept", &[(PROC2, "Enable EPT")]),
    ("vpid", &[(PROC2, "Enable VPID")]),
    ("unrestricted_guest", &[(PROC2, "Unrestricted guest")]),
    ("vapic_reg", &[(PROC2, "APIC-register virtualization")]),
    ("vid", &[(PROC2, "Virtual-interrupt delivery")]),
    ("ple", &[(PROC2, "PAUSE-loop exiting")]),
    ("shadow_vmcs", &[(PROC2, "VMCS shadowing")]),
    ("pml", &[(PROC2, "Enable PML")]),
    ("ept_violation_ve", &[(PROC2, "EPT-violation #VE")]),
    ("ept_mode_based_exec", &[(PROC2, "Mode-based execute control for EPT")]),
    ("tsc_scaling", &[(PROC2, "Use TSC scaling")]),
    ("usr_wait_pause", &[(PROC2, "Enable user wait and pause")]),
    ("notify_vm_exiting", &[(PROC2, "Instruction timeout")]),
    ("ipi_virt", &[(PROC3, "IPI virtualization")]),
];

/// Words of VMX in the line `flags`, where they were before they had a line of their own.
const VMX_FLAGS_OF_OLD: &[Flag] = &[
    ("tpr_shadow", &[(PROC, "Use TPR shadow")]),
    ("flexpriority", &[(PROC, "Use TPR shadow"), (PROC2, "Virtualize APIC accesses")]),
    ("ept", &[(PROC2, "Enable EPT")]),
    ("vpid", &[(PROC2, "Enable VPID")]),
    ("ept_ad", &[(EPT, "Accessed and dirty flags for EPT")]),
];

/// Words of the line `flags` on AMD's CPUs (the kernel's asm/cpufeatures.h, words 15 and 19).
const SVM_FLAGS: &[Flag] = &[
    ("npt", &[(SVM, "NP")]),
    ("lbrv", &[(SVM, "LbrVirt")]),
    ("svm_lock", &[(SVM, "SVML")]),
    ("nrip_save", &[(SVM, "NRIPS")]),
    ("tsc_scale", &[(SVM, "TscRateMsr")]),
    ("vmcb_clean", &[(SVM, "VmcbClean")]),
    ("flushbyasid", &[(SVM, "FlushByAsid")]),
    ("decodeassists", &[(SVM, "DecodeAssists")]),
    ("pausefilter", &[(SVM, "PauseFilter")]),
    ("pfthreshold", &[(SVM, "PauseFilterThreshold")]),
    ("avic", &[(SVM, "AVIC")]),
    ("v_vmsave_vmload", &[(SVM, "VMSAVEvirt")]),
    ("vgif", &[(SVM, "VGIF")]),
    ("x2avic", &[(SVM, "x2AVIC")]),
    ("v_spec_ctrl", &[(SVM, "SpecCtrl")]),
    ("vnmi", &[(SVM, "VNMI")]),
    ("sme", &[(ENCRYPTION, "SME")]),
    ("sev", &[(ENCRYPTION, "SEV")]),
    ("sev_es", &[(ENCRYPTION, "SEV-ES")]),
    ("sev_snp", &[(ENCRYPTION, "SEV-SNP")]),
    ("debug_swap", &[(ENCRYPTION, "DebugVirt")]),
];

/// Whether a control may be 1, or a flag is 1; no if the CPU lacks the register.
fn has(document: &Document, register: &str, field: &str) -> bool {
    let mut readings = document.cpus[0].registers.iter();
    let Some(reading) = readings.find(|reading| reading.name == register) else { return false };
    assert!(reading.raw.is_some(), "{register} could not be read");
    let mut fields = reading.fields.iter().filter(|found| found.name == field);
    let found = fields.next().unwrap_or_else(|| panic!("{register} has no field {field}"));
    found.value == 1
}

/// Every word of the table is among the kernel's exactly if our decoder says so. Tells how many are.
fn check_flags(document: &Document, kernels: &[String], table: &[Flag]) -> usize {
    let mut there = 0;
    for (flag, fields) in table {
        let ours = fields.iter().all(|(register, field)| has(document, register, field));
        let kernels = kernels.iter().any(|word| word == flag);
        assert_eq!(kernels, ours, "{flag}: the kernel lists it: {kernels}; {fields:?}");
        there += usize::from(ours);
    }
    there
}

/// The agent and the command read capabilities; on AMD a guest does before.
pub fn steps(vendor: Vendor) -> Vec<Step> {
    let first = || guests(vec![linux("nested", &["/init caps --json"])]);
    let first = (vendor == Vendor::Amd).then(first);
    let steps = [
        Step::Capabilities,
        command("live", &["caps", "--json"]),
        command("kvm", &["caps", "--kvm", "--json"]),
        command("same", &["caps", "diff", "live", "live"]),
        command("words", &["caps"]),
        Step::Remove { name: "msr".into() },
        command("without the driver", &["caps", "--json"]),
    ];
    first.into_iter().chain(steps).collect()
}

/// The command in the machine says what is decoded here, and that KVM uses this feature first of all.
fn check_command(transcript: &Transcript, here: &Document, feature: &str) {
    let mut there: Value = serde_json::from_str(transcript.output("live")).unwrap();
    let kvm = there.as_object_mut().and_then(|object| object.remove("kvm")).unwrap();
    assert_eq!(there, serde_json::to_value(here).unwrap());
    assert_eq!(kvm["uses"][0], feature, "{kvm}");
    assert!(transcript.output("words").starts_with("kvm_"), "what KVM uses comes first");
    assert_eq!(transcript.output("same"), "live and live tell the same\n");
}

/// What KVM offers its guests that the CPU lacks.
fn more_than_the_cpu(transcript: &Transcript) -> Vec<String> {
    let kvm = dump::parse(transcript.output("kvm").as_bytes());
    assert_eq!(kvm.errors, []);
    let check = check(&kvm.cpus, transcript.capabilities().cpus);
    check.pairs.into_iter().flat_map(|pair| pair.findings).map(|finding| finding.field).collect()
}

/// What CPUID says, of a dump of one CPU.
fn leaves(dump: &str) -> Vec<(Address, Option<u64>)> {
    let cpus = dump::parse(dump.as_bytes()).cpus;
    assert_eq!(cpus.len(), 1, "{dump}");
    let registers = cpus.into_iter().flat_map(|cpu| cpu.registers);
    registers.filter(|(address, _)| matches!(address, Address::Cpuid(..))).collect()
}

#[test]
fn bochs_says_what_kvm_intels_kernel_says() {
    let transcript = shared::DEFAULT.part(Vendor::Intel, "capabilities");
    let capabilities = transcript.capabilities();
    let document = decode(capabilities.cpus);
    let there = check_flags(&document, capabilities.vmx_flags, VMX_FLAGS);
    assert_eq!(there, capabilities.vmx_flags.len(), "words without a row: {:?}", capabilities.vmx_flags);
    assert!(there > 15, "{:?}", capabilities.vmx_flags);
    assert_eq!(check_flags(&document, capabilities.flags, VMX_FLAGS_OF_OLD), VMX_FLAGS_OF_OLD.len());
    check_command(transcript, &document, "EPT");
    let without = transcript.result_of("without the driver");
    assert_eq!((without.status, without.stdout.as_str()), (Some(1), ""));
    assert!(
        without.stderr.contains("/dev/cpu/0/msr does not exist: load the kernel's driver"),
        "{without:?}"
    );
    assert_eq!(
        more_than_the_cpu(transcript),
        ["VMX-preemption timer rate"],
        "KVM makes the timer of its own"
    );
}

#[test]
fn qemu_says_what_kvm_amds_kernel_says() {
    let transcript = shared::DEFAULT.part(Vendor::Amd, "capabilities");
    let capabilities = transcript.capabilities();
    let document = decode(capabilities.cpus);
    assert!(check_flags(&document, capabilities.flags, SVM_FLAGS) >= 2, "{:?}", capabilities.flags);
    check_command(transcript, &document, "nested paging");

    let without = transcript.result_of("without the driver");
    assert!(without.stderr.contains("sudo modprobe msr"), "{without:?}");
    let mut unread = capabilities.cpus.to_vec();
    unread[0].registers[0].1 = None;
    let read = dump::parse(without.stdout.as_bytes());
    assert_eq!(
        (without.status, read.cpus),
        (Some(1), unread),
        "what needs no driver is read, VM_CR is unknown"
    );

    let guests = &transcript.guest("nested").outputs[0];
    assert_eq!(
        leaves(&guests.stdout),
        leaves(transcript.output("kvm")),
        "a guest sees what KVM offers: {guests:?}"
    );
    assert_eq!(
        more_than_the_cpu(transcript),
        ["VmcbClean", "FlushByAsid"],
        "KVM does these by itself for its guests"
    );
}
