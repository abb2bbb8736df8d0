//! VMX's basic exit reasons, bits 15:0 of the exit-reason field (SDM vol. 3 appendix C).
//!
//! The names are KVM's (`arch/x86/include/uapi/asm/vmx.h`) where it has one, else the manual's.
//! Numbers that are missing here, such as 35, 38 and 42, are undefined. `ENCLV` stays although the
//! newest editions no longer list it: its number was assigned and has not been used for anything else.

use super::Reason;

pub(super) const REASONS: &[Reason] = table! {
    0 EXCEPTION_NMI "Guest raised an intercepted exception, or an NMI arrived"
    1 EXTERNAL_INTERRUPT "A hardware interrupt arrived for the host"
    2 TRIPLE_FAULT "Guest failed to deliver a double fault; a real machine would reset"
    3 INIT_SIGNAL "An INIT signal reached the processor"
    4 SIPI_SIGNAL "A start-up IPI reached a vCPU that was waiting for one"
    5 IO_SMI "An SMI arrived right after an I/O instruction (seen by an SMM monitor only)"
    6 OTHER_SMI "An SMI arrived, but not after an I/O instruction (seen by an SMM monitor only)"
    7 INTERRUPT_WINDOW "Guest became able to take an interrupt"
    8 NMI_WINDOW "Guest became able to take an NMI"
    9 TASK_SWITCH "Guest attempted a hardware task switch"
    10 CPUID "Guest asked what the processor is and can do"
    11 GETSEC "Guest executed GETSEC, an instruction of Trusted Execution Technology"
    12 HLT "Guest halted until its next interrupt"
    13 INVD "Guest discarded the caches without writing them back"
    14 INVLPG "Guest flushed one page from the TLB"
    15 RDPMC "Guest read a performance counter"
    16 RDTSC "Guest read the time-stamp counter"
    17 RSM "Guest returned from system-management mode"
    18 VMCALL "Guest called the hypervisor"
    19 VMCLEAR "Guest hypervisor flushed and released a VMCS"
    20 VMLAUNCH "Guest hypervisor started its own guest"
    21 VMPTRLD "Guest hypervisor chose its current VMCS"
    22 VMPTRST "Guest hypervisor asked which VMCS is current"
    23 VMREAD "Guest hypervisor read a VMCS field"
    24 VMRESUME "Guest hypervisor resumed its own guest"
    25 VMWRITE "Guest hypervisor wrote a VMCS field"
    26 VMOFF "Guest hypervisor left VMX operation (VMXOFF)"
    27 VMON "Guest hypervisor entered VMX operation (VMXON)"
    28 CR_ACCESS "Guest accessed a control register (CR0, CR3, CR4 or CR8)"
    29 DR_ACCESS "Guest accessed a debug register"
    30 IO_INSTRUCTION "Guest accessed an intercepted I/O port"
    31 MSR_READ "Guest read an intercepted model-specific register (RDMSR)"
    32 MSR_WRITE "Guest wrote an intercepted model-specific register (WRMSR or WRMSRNS)"
    33 INVALID_STATE "VM entry failed: the guest state is not valid"
    34 MSR_LOAD_FAIL "VM entry failed: an MSR could not be loaded"
    36 MWAIT_INSTRUCTION "Guest waited for a monitored write (MWAIT)"
    37 MONITOR_TRAP_FLAG "Guest was single-stepped by the hypervisor"
    39 MONITOR_INSTRUCTION "Guest armed address monitoring (MONITOR)"
    40 PAUSE_INSTRUCTION "Guest executed PAUSE, usually while it spins on a lock"
    41 MCE_DURING_VMENTRY "VM entry failed: a machine check occurred"
    43 TPR_BELOW_THRESHOLD "Guest's task priority fell below the hypervisor's threshold"
    44 APIC_ACCESS "Guest accessed the memory page of its APIC"
    45 EOI_INDUCED "Guest completed an interrupt whose end the hypervisor asked to see"
    46 GDTR_IDTR "Guest read or wrote the GDT or IDT register"
    47 LDTR_TR "Guest read or wrote the LDT or task register"
    48 EPT_VIOLATION "Guest touched memory that EPT does not map or does not permit"
    49 EPT_MISCONFIG "Guest touched memory behind a malformed EPT entry; KVM marks MMIO this way"
    50 INVEPT "Guest hypervisor flushed translations cached from EPT"
    51 RDTSCP "Guest read the time-stamp counter together with the CPU number"
    52 PREEMPTION_TIMER "The VMX-preemption timer ran out"
    53 INVVPID "Guest hypervisor flushed translations of a virtual processor"
    54 WBINVD "Guest wrote the caches back to memory (WBINVD or WBNOINVD)"
    55 XSETBV "Guest chose which extended register states are enabled"
    56 APIC_WRITE "Guest wrote an APIC register; the hypervisor must finish the work"
    57 RDRAND "Guest asked for a random number"
    58 INVPCID "Guest flushed TLB entries by process context"
    59 VMFUNC "Guest invoked a VM function that is off or needs the hypervisor"
    60 ENCLS "Guest executed an SGX instruction of the operating system"
    61 RDSEED "Guest asked for a random seed"
    62 PML_FULL "The log of pages that the guest has dirtied is full"
    63 XSAVES "Guest saved an extended register state that is intercepted"
    64 XRSTORS "Guest restored an extended register state that is intercepted"
    65 PCONFIG "Guest configured a platform feature, such as memory-encryption keys"
    66 SPP_EVENT "Sub-page write permissions were missing or malformed"
    67 UMWAIT "Guest waited for a monitored write in user code (UMWAIT)"
    68 TPAUSE "Guest paused until a given time"
    69 LOADIWKEY "Guest loaded the wrapping key of Key Locker"
    70 ENCLV "Guest executed an SGX instruction of a hypervisor"
    72 ENQCMD_PASID "The PASID of an ENQCMD could not be translated"
    73 ENQCMDS_PASID "The PASID of an ENQCMDS could not be translated"
    74 BUS_LOCK "Guest took a bus lock"
    75 NOTIFY "Guest kept the processor busy in one instruction for too long"
    76 SEAMCALL "Guest called the TDX module as a host does"
    77 TDCALL "Guest called the TDX module as a trust domain does"
    78 RDMSRLIST "Guest read a list of MSRs, one of them intercepted"
    79 WRMSRLIST "Guest wrote a list of MSRs, one of them intercepted"
    80 URDMSR "Guest read an intercepted MSR from user code (URDMSR)"
    81 UWRMSR "Guest wrote an intercepted MSR from user code (UWRMSR)"
    84 MSR_READ_IMM "Guest read an intercepted MSR that the instruction names (RDMSR immediate)"
    85 MSR_WRITE_IMM "Guest wrote an intercepted MSR that the instruction names (WRMSRNS immediate)"
};

/// What [`INDEX`] holds for a code that the manual does not define.
const UNDEFINED: u8 = u8::MAX;

/// One more than the highest code.
const CODES: usize = REASONS[REASONS.len() - 1].code as usize + 1;

/// The index in [`REASONS`] of every code below [`CODES`].
static INDEX: [u8; CODES] = {
    assert!(REASONS.len() <= UNDEFINED as usize);
    let mut index = [UNDEFINED; CODES];
    let mut i = 0;
    while i < REASONS.len() {
        index[REASONS[i].code as usize] = i as u8;
        i += 1;
    }
    index
};

/// As [`dense`], for [`super::Isa::dense_nospec`].
pub(super) fn dense_nospec(code: u32) -> Option<usize> {
    if code as usize >= CODES {
        return None;
    }
    dense(super::index_nospec(code as usize, CODES) as u32)
}

/// The index of `code` in [`REASONS`]: one bounds check and one load from two cache lines.
#[inline]
pub(super) const fn dense(code: u32) -> Option<usize> {
    if code as usize >= CODES {
        return None;
    }
    match INDEX[code as usize] {
        UNDEFINED => None,
        index => Some(index as usize),
    }
}
