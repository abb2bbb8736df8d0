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

pub const BASIC: &[Field] = fields![
    30:0 "VMCS revision identifier" "Software writes it to the first bytes of each VMXON and VMCS region"
    44:32 "VMCS region size" "Bytes to allocate for a VMXON or VMCS region, at most 4096"
    48 "32-bit physical addresses" "Regions and structures of VMX must lie below 4 GiB"
    49 "Dual-monitor treatment" "SMIs and SMM may be left to a monitor of their own"
    53:50 "VMCS memory type" "Memory type for VMX structures: 0 uncacheable, 6 write-back"
    54 "INS/OUTS information" "Exits by INS and OUTS fill the VM-exit instruction-information field"
    55 "TRUE controls" "Controls of the default1 class may be 0: the TRUE registers say which"
    56 "Error code optional" "An injected hardware exception may have an error code or not, whatever its vector"
    58 "Nested exceptions" "Event injection and exits tell nested exceptions, as FRED needs"
];

pub const MISC: &[Field] = fields![
    4:0 "VMX-preemption timer rate" "The timer counts down by 1 when bit N of the TSC changes"
    5 "Store EFER.LMA" "Exits store EFER.LMA into the IA-32e mode guest control"
    6 "Activity state HLT" "A VM entry may leave the guest halted"
    7 "Activity state shutdown" "A VM entry may leave the guest shut down"
    8 "Activity state wait-for-SIPI" "A VM entry may leave the guest waiting for a startup IPI"
    14 "Intel PT in VMX operation" "Processor trace may be used in VMX operation"
    15 "IA32_SMBASE readable in SMM" "RDMSR in SMM reads the IA32_SMBASE register"
    24:16 "CR3-target values" "Number of CR3 values that a guest may load without an exit"
    27:25 "MSR list size" "512 * (N + 1) MSRs are the recommended most of each MSR list"
    28 "Block SMIs until VMXOFF" "Bit 2 of IA32_SMM_MONITOR_CTL can be set: VMXOFF unblocks SMIs unless told not to"
    29 "VMWRITE to any field" "VMWRITE may write VM-exit information fields too"
    30 "Injection with length 0" "Events of software may be injected with an instruction length of 0"
    63:32 "MSEG revision identifier" "Revision of the SMM monitor's segment that the CPU uses"
];

pub const VMCS_ENUM: &[Field] = fields![
    9:1 "Highest VMCS index" "The largest index that the encoding of any VMCS field has"
];

pub const EPT_VPID_CAP: &[Field] = fields![
    0 "Execute-only translations" "An EPT entry may allow fetches without reads"
    6 "Page-walk length 4" "EPT may have 4 levels"
    7 "Page-walk length 5" "EPT may have 5 levels"
    8 "EPT memory type UC" "EPT structures may be uncacheable"
    14 "EPT memory type WB" "EPT structures may be write-back"
    16 "2-MByte EPT pages" "An EPT page-directory entry may map a page"
    17 "1-GByte EPT pages" "An EPT page-directory-pointer entry may map a page"
    20 "INVEPT" "The INVEPT instruction exists"
    21 "Accessed and dirty flags for EPT" "The CPU sets accessed and dirty flags in EPT entries"
    22 "Advanced EPT-violation information" "EPT violations tell more of the guest's page permissions"
    23 "Supervisor shadow-stack control" "EPT can keep supervisor shadow-stack pages apart"
    25 "Single-context INVEPT" "INVEPT can drop what one EPT pointer gave"
    26 "All-context INVEPT" "INVEPT can drop what all EPT pointers gave"
    32 "INVVPID" "The INVVPID instruction exists"
    40 "Individual-address INVVPID" "INVVPID can drop one address of one VPID"
    41 "Single-context INVVPID" "INVVPID can drop one VPID"
    42 "All-context INVVPID" "INVVPID can drop all VPIDs but 0"
    43 "Single-context-retaining-globals INVVPID" "INVVPID can drop one VPID but its global pages"
    53:48 "Maximum HLAT prefix size" "The longest prefix of linear addresses that selects HLAT paging"
];
