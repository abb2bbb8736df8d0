//! The VMX registers of flags and numbers.

use super::Field;

pub const FEATURE_CONTROL: &[Field] = fields![
    0 "Lock" "Writes to this register fault until the next reset"
    1 "Enable VMX inside SMX operation" "VMXON works after GETSEC[SENTER]"
    2 "Enable VMX outside SMX operation" "VMXON works without GETSEC[SENTER]"
    14:8 "SENTER local function enables" "Functions of GETSEC[SENTER] that may be used"
    15 "SENTER global enable" "GETSEC[SENTER] may be used"
    17 "SGX launch control enable" "The IA32_SGXLEPUBKEYHASH registers may be written"
    18 "SGX global enable" "SGX leaf functions may be used"
    20 "LMCE on" "A machine check may go to one logical processor only"
];

pub const FEATURE_FLAGS: &[Field] = fields![
    5 "VMX" "The CPU has VMX" qemu "vmx" linux "vmx"
];

pub const BASIC: &[Field] = fields![
    30:0 "VMCS revision identifier" "Software writes it to the first bytes of each VMXON and VMCS region"
    44:32 "VMCS region size" "Bytes to allocate for a VMXON or VMCS region, at most 4096"
    48 "32-bit physical addresses" "Regions and structures of VMX must lie below 4 GiB"
    49 "Dual-monitor treatment" "SMIs and SMM may be left to a monitor of their own"
    53:50 "VMCS memory type" "Memory type for VMX structures: 0 uncacheable, 6 write-back"
    54 "INS/OUTS information" "Exits by INS and OUTS fill the VM-exit instruction-information field" qemu "vmx-ins-outs"
    55 "TRUE controls" "Controls of the default1 class may be 0: the TRUE registers say which" qemu "vmx-true-ctls"
    56 "Error code optional" "An injected hardware exception may have an error code or not, whatever its vector" qemu "vmx-any-errcode"
    58 "Nested exceptions" "Event injection and exits tell nested exceptions, as FRED needs" qemu "vmx-nested-exception"
];

pub const MISC: &[Field] = fields![
    4:0 "VMX-preemption timer rate" "The timer counts down by 1 when bit N of the TSC changes"
    5 "Store EFER.LMA" "Exits store EFER.LMA into the IA-32e mode guest control" qemu "vmx-store-lma"
    6 "Activity state HLT" "A VM entry may leave the guest halted" qemu "vmx-activity-hlt"
    7 "Activity state shutdown" "A VM entry may leave the guest shut down" qemu "vmx-activity-shutdown"
    8 "Activity state wait-for-SIPI" "A VM entry may leave the guest waiting for a startup IPI" qemu "vmx-activity-wait-sipi"
    14 "Intel PT in VMX operation" "Processor trace may be used in VMX operation"
    15 "IA32_SMBASE readable in SMM" "RDMSR in SMM reads the IA32_SMBASE register"
    24:16 "CR3-target values" "Number of CR3 values that a guest may load without an exit"
    27:25 "MSR list size" "512 * (N + 1) MSRs are the recommended most of each MSR list"
    28 "Block SMIs until VMXOFF" "Bit 2 of IA32_SMM_MONITOR_CTL can be set: VMXOFF unblocks SMIs unless told not to"
    29 "VMWRITE to any field" "VMWRITE may write VM-exit information fields too" qemu "vmx-vmwrite-vmexit-fields"
    30 "Injection with length 0" "Events of software may be injected with an instruction length of 0" qemu "vmx-zero-len-inject"
    63:32 "MSEG revision identifier" "Revision of the SMM monitor's segment that the CPU uses"
];

pub const VMCS_ENUM: &[Field] = fields![
    9:1 "Highest VMCS index" "The largest index that the encoding of any VMCS field has"
];

pub const EPT_VPID_CAP: &[Field] = fields![
    0 "Execute-only translations" "An EPT entry may allow fetches without reads" qemu "vmx-ept-execonly" linux "ept_x_only"
    6 "Page-walk length 4" "EPT may have 4 levels" qemu "vmx-page-walk-4"
    7 "Page-walk length 5" "EPT may have 5 levels" qemu "vmx-page-walk-5" linux "ept_5level"
    8 "EPT memory type UC" "EPT structures may be uncacheable" qemu "vmx-ept-uc"
    14 "EPT memory type WB" "EPT structures may be write-back" qemu "vmx-ept-wb"
    16 "2-MByte EPT pages" "An EPT page-directory entry may map a page" qemu "vmx-ept-2mb"
    17 "1-GByte EPT pages" "An EPT page-directory-pointer entry may map a page" qemu "vmx-ept-1gb" linux "ept_1gb"
    20 "INVEPT" "The INVEPT instruction exists" qemu "vmx-invept"
    21 "Accessed and dirty flags for EPT" "The CPU sets accessed and dirty flags in EPT entries" qemu "vmx-eptad" linux "ept_ad"
    22 "Advanced EPT-violation information" "EPT violations tell more of the guest's page permissions" qemu "vmx-ept-advanced-exitinfo"
    23 "Supervisor shadow-stack control" "EPT can keep supervisor shadow-stack pages apart"
    25 "Single-context INVEPT" "INVEPT can drop what one EPT pointer gave" qemu "vmx-invept-single-context"
    26 "All-context INVEPT" "INVEPT can drop what all EPT pointers gave" qemu "vmx-invept-all-context"
    32 "INVVPID" "The INVVPID instruction exists" qemu "vmx-invvpid" linux "invvpid"
    40 "Individual-address INVVPID" "INVVPID can drop one address of one VPID" qemu "vmx-invvpid-single-addr"
    41 "Single-context INVVPID" "INVVPID can drop one VPID" qemu "vmx-invvpid-single-context"
    42 "All-context INVVPID" "INVVPID can drop all VPIDs but 0" qemu "vmx-invvpid-all-context"
    43 "Single-context-retaining-globals INVVPID" "INVVPID can drop one VPID but its global pages" qemu "vmx-invvpid-single-context-noglobals vmx-invept-single-context-noglobals"
    53:48 "Maximum HLAT prefix size" "The longest prefix of linear addresses that selects HLAT paging"
];
