//! What AMD's CPUs tell of SVM and of encrypted guests.

use super::Field;

pub const VM_CR: &[Field] = fields![
    0 "DPD" "Debug ports are off"
    1 "R_INIT" "INIT becomes an exception"
    2 "DIS_A20M" "The A20 line is ignored"
    3 "LOCK" "SVMDIS and this bit cannot be written"
    4 "SVMDIS" "SVM cannot be turned on"
];

pub const HIGHEST_LEAF: &[Field] = fields![
    31:0 "LFuncExt" "Highest extended leaf; the CPU has none beyond it"
];

pub const FEATURE_FLAGS: &[Field] = fields![
    2 "SVM" "The CPU has SVM" qemu "svm" linux "svm"
];

pub const REVISION: &[Field] = fields![
    7:0 "SvmRev" "Revision of SVM"
];

pub const ASIDS: &[Field] = fields![
    31:0 "NASID" "Number of address space identifiers, the host's included"
];

pub const FEATURES_ECX: &[Field] = fields![
    4 "PML" "Addresses of pages that become dirty are logged"
    5 "EnhancedTlbi" "Broadcast invalidations reach guests more exactly"
    6 "x2AVIC_EXT" "AVIC serves up to 4096 vCPUs in x2APIC mode"
];

pub const FEATURES: &[Field] = fields![
    0 "NP" "Guest-physical addresses are translated by nested page tables" qemu "npt" linux "npt"
    1 "LbrVirt" "Last-branch records are saved and loaded" qemu "lbrv" linux "lbrv"
    2 "SVML" "VM_CR can be locked, and unlocked with a key" qemu "svm-lock" linux "svm_lock"
    3 "NRIPS" "Exits tell the address of the next instruction" qemu "nrip-save" linux "nrip_save"
    4 "TscRateMsr" "The guest's time stamps have a multiplier" qemu "tsc-scale" linux "tsc_scale"
    5 "VmcbClean" "Parts of the VMCB that did not change need not be loaded" qemu "vmcb-clean" linux "vmcb_clean"
    6 "FlushByAsid" "Translations of one guest can be dropped" qemu "flushbyasid" linux "flushbyasid"
    7 "DecodeAssists" "Exits tell what the instruction's bytes and operands are" qemu "decodeassists" linux "decodeassists"
    8 "PmcVirt" "Performance counters are saved and loaded"
    9 "Ssse3Sse5Dis" "SSSE3 and SSE5 can be turned off"
    10 "PauseFilter" "Some PAUSEs are let pass before one exits" qemu "pause-filter" linux "pausefilter"
    11 "EncryptedMcodePatch" "Microcode patches are encrypted"
    12 "PauseFilterThreshold" "Only PAUSEs close to each other are counted" qemu "pfthreshold" linux "pfthreshold"
    13 "AVIC" "Interrupts reach the guest, and its APIC works, without an exit" qemu "avic" linux "avic"
    15 "VMSAVEvirt" "VMSAVE and VMLOAD of the guest work without an exit" qemu "v-vmsave-vmload" linux "v_vmsave_vmload"
    16 "VGIF" "The guest has a global interrupt flag of its own" qemu "vgif" linux "vgif"
    17 "GMET" "Nested page tables allow fetches apart for user and supervisor"
    18 "x2AVIC" "AVIC serves x2APIC mode too" linux "x2avic"
    19 "SSSCheck" "Nested page tables can keep supervisor shadow stacks apart"
    20 "SpecCtrl" "The guest's SPEC_CTRL is kept apart from the host's" linux "v_spec_ctrl"
    21 "ROGPT" "Nested page tables can let page tables of the guest be read-only"
    23 "HOST_MCE_OVERRIDE" "A machine check exits even when the guest has turned them off"
    24 "TlbiCtl" "INVLPGB and TLBSYNC can be allowed to the guest"
    25 "VNMI" "NMIs of the guest are held and blocked by the CPU" qemu "vnmi" linux "vnmi"
    26 "IbsVirt" "Instruction-based sampling is virtualized"
    27 "ExtLvtAvicAccessChg" "AVIC lets reads of the extended local vectors pass and traps writes"
    28 "NestedVirtVmcbAddrChk" "The address of a VMCB in the guest is checked" qemu "svme-addr-chk"
    29 "BusLockThreshold" "Bus locks exit after a count"
    30 "IdleHltIntercept" "HLT exits only if nothing is pending for the guest"
    31 "EnhancedShutdownIntercept" "A shutdown exits without loss of the guest's state"
];

pub const ENCRYPTION: &[Field] = fields![
    0 "SME" "Memory can be encrypted" linux "sme"
    1 "SEV" "Guests can have encrypted memory" linux "sev"
    2 "PageFlushMsr" "An MSR flushes a page of an encrypted guest"
    3 "SEV-ES" "Guests can have encrypted registers" linux "sev_es"
    4 "SEV-SNP" "Memory of guests is protected from changes by the host" linux "sev_snp"
    5 "VMPL" "A guest can have privilege levels"
    6 "RMPQUERY" "RMPQUERY works"
    7 "VmplSSS" "Privilege levels know supervisor shadow stacks"
    8 "SecureTsc" "A guest's time stamps are out of the host's reach"
    9 "TscAuxVirtualization" "TSC_AUX is saved and loaded"
    10 "HwEnfCacheCoh" "Caches agree on encrypted memory without flushes"
    11 "64BitHost" "Encrypted guests need a 64-bit host"
    12 "RestrictedInjection" "The host can inject one kind of event only"
    13 "AlternateInjection" "The guest itself says what is injected"
    14 "DebugVirt" "Debug registers of an encrypted guest are swapped" linux "debug_swap"
    15 "PreventHostIbs" "The host cannot sample the guest's instructions"
    16 "VTE" "The guest's memory can be transparently encrypted"
    17 "VmgexitParameter" "VMGEXIT takes a parameter"
    18 "VirtualTomMsr" "The guest can say up to where its memory is encrypted"
    19 "IbsVirtGuestCtl" "The guest controls its instruction-based sampling"
    20 "PmcVirtGuestCtl" "The guest controls its performance counters"
    21 "RMPREAD" "RMPREAD works"
    22 "GuestInterceptCtl" "A guest's higher levels can intercept its lower ones"
    23 "SegmentedRmp" "The reverse map may lie in segments"
    24 "VmsaRegProt" "Saved registers are obscured"
    25 "SmtProtection" "No other guest runs on the sibling thread"
    26 "SecureAvic" "The guest's interrupt controller is out of the host's reach"
    27 "AllowedSevFeatures" "The host can say which features a guest may use"
    28 "SvsmCommPageMsr" "An MSR tells where the guest's service module listens"
    29 "NestedVirtSnpMsr" "MSRs for SNP in nested virtualization exist"
    30 "HvInUseWrAllowed" "Pages in use may be written if the hypervisor owns them"
    31 "IbpbOnEntry" "Entries can flush the branch predictor"
];

pub const ENCRYPTION_EBX: &[Field] = fields![
    5:0 "CbitPosition" "Bit of a page-table entry that says encrypted"
    11:6 "PhysAddrReduction" "Bits by which physical addresses shrink while memory is encrypted"
    15:12 "NumVMPL" "Number of a guest's privilege levels"
    31 "COHERENCY_SFW_NO" "Caches need no flush when a page changes its owner"
];

pub const ENCRYPTED_GUESTS: &[Field] = fields![
    31:0 "NumEncryptedGuests" "Most encrypted guests at a time"
];

pub const LOWEST_SEV_ASID: &[Field] = fields![
    31:0 "MinSevNoEsAsid" "Lowest address space identifier of a guest with SEV but not SEV-ES"
];
