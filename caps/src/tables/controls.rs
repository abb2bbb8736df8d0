//! The controls of VMX: what can be made to exit, saved, loaded and virtualized.

use super::Field;

pub const PIN: &[Field] = fields![
    0 "External-interrupt exiting" "External interrupts exit" qemu "vmx-intr-exit"
    3 "NMI exiting" "NMIs exit" qemu "vmx-nmi-exit"
    5 "Virtual NMIs" "NMIs of the guest are blocked and unblocked apart from the CPU's" qemu "vmx-vnmi" linux "vnmi"
    6 "Activate VMX-preemption timer" "The guest exits when a countdown ends" qemu "vmx-preemption-timer" linux "preemption_timer"
    7 "Process posted interrupts" "Interrupts posted in memory reach the guest without an exit" qemu "vmx-posted-intr" linux "posted_intr"
];

pub const PROC: &[Field] = fields![
    2 "Interrupt-window exiting" "The guest exits as soon as it can take an interrupt" qemu "vmx-vintr-pending"
    3 "Use TSC offsetting" "The guest's time stamps have an offset" qemu "vmx-tsc-offset" linux "tsc_offset"
    7 "HLT exiting" "HLT exits" qemu "vmx-hlt-exit"
    9 "INVLPG exiting" "INVLPG exits" qemu "vmx-invlpg-exit"
    10 "MWAIT exiting" "MWAIT exits" qemu "vmx-mwait-exit"
    11 "RDPMC exiting" "RDPMC exits" qemu "vmx-rdpmc-exit"
    12 "RDTSC exiting" "RDTSC and RDTSCP exit" qemu "vmx-rdtsc-exit"
    15 "CR3-load exiting" "MOV to CR3 exits, but for the CR3-target values" qemu "vmx-cr3-load-noexit"
    16 "CR3-store exiting" "MOV from CR3 exits" qemu "vmx-cr3-store-noexit"
    17 "Activate tertiary controls" "The tertiary processor-based controls count"
    19 "CR8-load exiting" "MOV to CR8 exits" qemu "vmx-cr8-load-exit"
    20 "CR8-store exiting" "MOV from CR8 exits" qemu "vmx-cr8-store-exit"
    21 "Use TPR shadow" "CR8 and the task priority are kept in a virtual-APIC page" qemu "vmx-flexpriority" linux "vtpr"
    22 "NMI-window exiting" "The guest exits as soon as it can take a virtual NMI" qemu "vmx-vnmi-pending"
    23 "MOV-DR exiting" "MOV to and from debug registers exits" qemu "vmx-movdr-exit"
    24 "Unconditional I/O exiting" "Every port access exits" qemu "vmx-io-exit"
    25 "Use I/O bitmaps" "Bitmaps say which ports exit" qemu "vmx-io-bitmap"
    27 "Monitor trap flag" "The guest exits after each instruction" qemu "vmx-mtf" linux "mtf"
    28 "Use MSR bitmaps" "Bitmaps say which MSRs exit; without them all do" qemu "vmx-msr-bitmap"
    29 "MONITOR exiting" "MONITOR exits" qemu "vmx-monitor-exit"
    30 "PAUSE exiting" "PAUSE exits" qemu "vmx-pause-exit"
    31 "Activate secondary controls" "The secondary processor-based controls count" qemu "vmx-secondary-ctls"
];

pub const PROC2: &[Field] = fields![
    0 "Virtualize APIC accesses" "Accesses to the APIC's page are caught, or served from the virtual-APIC page" qemu "vmx-apicv-xapic" linux "vapic"
    1 "Enable EPT" "Guest-physical addresses are translated by extended page tables" qemu "vmx-ept" linux "ept"
    2 "Descriptor-table exiting" "LGDT, LIDT, LLDT, LTR and their stores exit" qemu "vmx-desc-exit"
    3 "Enable RDTSCP" "RDTSCP works in the guest" qemu "vmx-rdtscp-exit"
    4 "Virtualize x2APIC mode" "MSRs of the x2APIC are served from the virtual-APIC page" qemu "vmx-apicv-x2apic"
    5 "Enable VPID" "Cached translations carry the virtual processor's number" qemu "vmx-vpid" linux "vpid"
    6 "WBINVD exiting" "WBINVD and WBNOINVD exit" qemu "vmx-wbinvd-exit"
    7 "Unrestricted guest" "The guest may run without paging, or in real mode" qemu "vmx-unrestricted-guest" linux "unrestricted_guest"
    8 "APIC-register virtualization" "Most reads of APIC registers are served without an exit" qemu "vmx-apicv-register" linux "vapic_reg"
    9 "Virtual-interrupt delivery" "The CPU evaluates and delivers virtual interrupts" qemu "vmx-apicv-vid" linux "vid"
    10 "PAUSE-loop exiting" "A loop of PAUSEs exits" qemu "vmx-ple" linux "ple"
    11 "RDRAND exiting" "RDRAND exits" qemu "vmx-rdrand-exit"
    12 "Enable INVPCID" "INVPCID works in the guest" qemu "vmx-invpcid-exit"
    13 "Enable VM functions" "VMFUNC works in the guest" qemu "vmx-vmfunc"
    14 "VMCS shadowing" "VMREAD and VMWRITE of the guest may use a shadow VMCS" qemu "vmx-shadow-vmcs" linux "shadow_vmcs"
    15 "Enable ENCLS exiting" "A bitmap says which leaves of ENCLS exit" qemu "vmx-encls-exit"
    16 "RDSEED exiting" "RDSEED exits" qemu "vmx-rdseed-exit"
    17 "Enable PML" "Addresses of pages that become dirty are logged" qemu "vmx-pml" linux "pml"
    18 "EPT-violation #VE" "EPT violations may become exceptions of the guest" linux "ept_violation_ve"
    19 "Conceal VMX from PT" "Processor trace tells nothing of VMX"
    20 "Enable XSAVES/XRSTORS" "XSAVES and XRSTORS work in the guest" qemu "vmx-xsaves"
    21 "PASID translation" "PASIDs of ENQCMD and ENQCMDS are translated"
    22 "Mode-based execute control for EPT" "EPT allows fetches apart for user and supervisor addresses" qemu "vmx-mbec" linux "ept_mode_based_exec"
    23 "Sub-page write permissions for EPT" "EPT allows writes by units of 128 bytes"
    24 "Intel PT uses guest physical addresses" "Addresses of trace output are translated by EPT"
    25 "Use TSC scaling" "The guest's time stamps have a multiplier" qemu "vmx-tsc-scaling" linux "tsc_scaling"
    26 "Enable user wait and pause" "TPAUSE, UMONITOR and UMWAIT work in the guest" qemu "vmx-enable-user-wait-pause" linux "usr_wait_pause"
    27 "Enable PCONFIG" "PCONFIG works in the guest, and a bitmap says which leaves exit"
    28 "Enable ENCLV exiting" "A bitmap says which leaves of ENCLV exit"
    30 "VMM bus-lock detection" "Bus locks exit" linux "bus_lock_detection"
    31 "Instruction timeout" "The guest exits when no instruction ends for too long" linux "notify_vm_exiting"
];

pub const PROC3: &[Field] = fields![
    0 "LOADIWKEY exiting" "LOADIWKEY exits"
    1 "Enable HLAT" "Paging that the hypervisor holds translates chosen linear addresses"
    2 "EPT paging-write control" "EPT can allow page walks to write where it allows the guest not to"
    3 "Guest-paging verification" "EPT can check which paging structures led to a page"
    4 "IPI virtualization" "IPIs of the guest are posted without an exit" linux "ipi_virt"
    6 "Enable MSR-list instructions" "RDMSRLIST and WRMSRLIST work in the guest"
    7 "Virtualize IA32_SPEC_CTRL" "The hypervisor holds bits of the guest's IA32_SPEC_CTRL"
    8 "Virtualize guest APIC timer" "The guest's TSC deadline works without an exit"
];

pub const EXIT: &[Field] = fields![
    2 "Save debug controls" "Exits save DR7 and IA32_DEBUGCTL" qemu "vmx-exit-nosave-debugctl"
    9 "Host address-space size" "The host runs in 64-bit mode after an exit"
    12 "Load IA32_PERF_GLOBAL_CTRL" "Exits load it" qemu "vmx-exit-load-perf-global-ctrl"
    15 "Acknowledge interrupt on exit" "An exit by an external interrupt takes the vector from the interrupt controller" qemu "vmx-exit-ack-intr"
    18 "Save IA32_PAT" "Exits save it" qemu "vmx-exit-save-pat"
    19 "Load IA32_PAT" "Exits load it" qemu "vmx-exit-load-pat"
    20 "Save IA32_EFER" "Exits save it" qemu "vmx-exit-save-efer"
    21 "Load IA32_EFER" "Exits load it" qemu "vmx-exit-load-efer"
    22 "Save VMX-preemption timer value" "Exits save what is left of the countdown" qemu "vmx-exit-save-preemption-timer"
    23 "Clear IA32_BNDCFGS" "Exits clear it" qemu "vmx-exit-clear-bndcfgs"
    24 "Conceal VMX from PT" "Processor trace tells nothing of exits"
    25 "Clear IA32_RTIT_CTL" "Exits clear it, which stops processor trace" qemu "vmx-exit-clear-rtit-ctl"
    26 "Clear IA32_LBR_CTL" "Exits clear it, which stops last-branch records"
    27 "Clear UINV" "Exits clear the user-interrupt notification vector"
    28 "Load CET state" "Exits load the registers of control-flow enforcement"
    29 "Load PKRS" "Exits load the supervisor protection keys" qemu "vmx-exit-load-pkrs"
    30 "Save IA32_PERF_GLOBAL_CTRL" "Exits save it"
    31 "Activate secondary controls" "The secondary VM-exit controls count" qemu "vmx-exit-secondary-ctls"
];

pub const EXIT2: &[Field] = fields![
    0 "Save IA32_FRED" "Exits save the guest's FRED registers"
    1 "Load IA32_FRED" "Exits load the host's FRED registers"
    3 "Prematurely busy shadow stack" "Exits tell when they left a supervisor shadow stack busy too early"
];

pub const ENTRY: &[Field] = fields![
    2 "Load debug controls" "Entries load DR7 and IA32_DEBUGCTL" qemu "vmx-entry-noload-debugctl"
    9 "IA-32e mode guest" "The guest runs in IA-32e mode after an entry" qemu "vmx-entry-ia32e-mode"
    10 "Entry to SMM" "The guest is in SMM after an entry"
    11 "Deactivate dual-monitor treatment" "SMIs go their default way after an entry"
    13 "Load IA32_PERF_GLOBAL_CTRL" "Entries load it" qemu "vmx-entry-load-perf-global-ctrl"
    14 "Load IA32_PAT" "Entries load it" qemu "vmx-entry-load-pat"
    15 "Load IA32_EFER" "Entries load it" qemu "vmx-entry-load-efer"
    16 "Load IA32_BNDCFGS" "Entries load it" qemu "vmx-entry-load-bndcfgs"
    17 "Conceal VMX from PT" "Processor trace tells nothing of entries"
    18 "Load IA32_RTIT_CTL" "Entries load it" qemu "vmx-entry-load-rtit-ctl"
    19 "Load UINV" "Entries load the user-interrupt notification vector"
    20 "Load CET state" "Entries load the registers of control-flow enforcement"
    21 "Load guest IA32_LBR_CTL" "Entries load it"
    22 "Load PKRS" "Entries load the supervisor protection keys" qemu "vmx-entry-load-pkrs"
    23 "Load IA32_FRED" "Entries load the guest's FRED registers" qemu "vmx-entry-load-fred"
];

pub const VMFUNC: &[Field] = fields![
    0 "EPTP switching" "The guest may choose among EPT pointers that the hypervisor lists" qemu "vmx-eptp-switching" linux "eptp_switching"
];
