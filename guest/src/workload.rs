//! Flat workloads by name: each causes exactly as many VM exits of one kind as it is asked for.
//!
//! An image follows the protocol of [`exitscope_abi::flat`]. It runs the same instructions around its loop
//! whatever the number of iterations, so the counts of a run with N iterations minus the counts of a run with
//! none are exactly N exits of [`Workload::exit_code`] and nothing else (host interrupts aside, which arrive
//! when they like).

use core::arch::global_asm;
use exitscope_abi::{flat, reason::Isa};

/// A flat guest that causes one kind of VM exit in a tight loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    /// CPUID of leaf 0: emulated in the kernel.
    Cpuid,
    /// CPUID of exitscope's leaf 0x4FFFFFF1: answered by the module, if it is there.
    Leaf,
    /// RDMSR of IA32_APIC_BASE (0x1B): emulated in the kernel.
    Rdmsr,
    /// WRMSR of IA32_APIC_BASE with the value it already has: emulated in the kernel.
    Wrmsr,
    /// OUT to port 0x80: goes to the VMM.
    Pio,
    /// A 32-bit store where no memory is: decoded by the kernel's instruction emulator, then goes to the VMM.
    Mmio,
    /// HLT with interrupts off and no interrupt controller in the kernel: goes to the VMM.
    Hlt,
    /// VMCALL or VMMCALL with a number that KVM does not know: answered in the kernel.
    Hypercall,
}

impl Workload {
    /// Every workload, in the order in which they are listed to users.
    pub const ALL: [Self; 8] = [
        Self::Cpuid,
        Self::Leaf,
        Self::Rdmsr,
        Self::Wrmsr,
        Self::Pio,
        Self::Mmio,
        Self::Hlt,
        Self::Hypercall,
    ];

    /// The name that users type.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpuid => "cpuid",
            Self::Leaf => "leaf",
            Self::Rdmsr => "rdmsr",
            Self::Wrmsr => "wrmsr",
            Self::Pio => "pio",
            Self::Mmio => "mmio",
            Self::Hlt => "hlt",
            Self::Hypercall => "hypercall",
        }
    }

    /// The workload of this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|workload| workload.name() == name)
    }

    /// The machine code. Only the hypercall instruction differs between vendors.
    #[must_use]
    pub fn image(self, isa: Isa) -> &'static [u8] {
        match (self, isa) {
            (Self::Cpuid, _) => cpuid::image(),
            (Self::Leaf, _) => leaf::image(),
            (Self::Rdmsr, _) => rdmsr::image(),
            (Self::Wrmsr, _) => wrmsr::image(),
            (Self::Pio, _) => pio::image(),
            (Self::Mmio, _) => mmio::image(),
            (Self::Hlt, _) => hlt::image(),
            (Self::Hypercall, Isa::Vmx) => vmcall::image(),
            (Self::Hypercall, Isa::Svm) => vmmcall::image(),
        }
    }

    /// The exit reason that each iteration raises (SDM vol. 3 appendix C; APM vol. 2 appendix C).
    ///
    /// MMIO is given for nested paging. On VMX the first access to a page is an EPT violation (48), after which
    /// KVM has marked the page and every further one is an EPT misconfiguration (49); the workload makes the
    /// first access before its loop. With shadow paging both vendors raise an exception exit instead.
    #[must_use]
    pub fn exit_code(self, isa: Isa) -> u32 {
        let (vmx, svm) = match self {
            Self::Cpuid | Self::Leaf => (10, 0x72),
            Self::Rdmsr => (31, 0x7c),
            Self::Wrmsr => (32, 0x7c),
            Self::Pio => (30, 0x7b),
            Self::Mmio => (49, 0x400),
            Self::Hlt => (12, 0x78),
            Self::Hypercall => (18, 0x81),
        };
        match isa {
            Isa::Vmx => vmx,
            Isa::Svm => svm,
        }
    }
}

/// Defines a module whose `image()` is the flat guest with the given instructions.
///
/// `once` runs before the loop, also when there are no iterations; `batch` runs before each batch and restores
/// what timing has clobbered (RAX, RDX); `each` is the loop's body. They may use RAX, RBX, RCX, RDX, R14, R15.
macro_rules! flat_image {
    ($name:ident, $doc:literal, once: $once:expr, batch: $batch:expr, each: $each:expr) => {
        #[doc = $doc]
        mod $name {
            use super::*;

            global_asm!(
                concat!(
                    ".pushsection .rodata.exitscope_flat_", stringify!($name), ", \"a\", @progbits\n",
                    ".global exitscope_flat_", stringify!($name), "_start\n",
                    ".global exitscope_flat_", stringify!($name), "_end\n",
                    ".hidden exitscope_flat_", stringify!($name), "_start\n",
                    ".hidden exitscope_flat_", stringify!($name), "_end\n",
                    ".balign 64\n",
                    "exitscope_flat_", stringify!($name), "_start:",
                ),
                "    mov r8, rsi", // iterations left
                "    mov r9, rdx", // batch
                "    mov r10, {no_batch}", // the fastest batch so far, in ticks
                $once,
                "    mov edx, {ready}",
                "    out dx, eax",
                "2:", // the next batch, of R11 iterations
                "    test r8, r8",
                "    jz 5f",
                "    mov r11, r9",
                "    test r9, r9",
                "    cmovz r11, r8",
                "    cmp r11, r8",
                "    cmova r11, r8",
                "    sub r8, r11",
                "    mov r12, r11",
                "    test r9, r9",
                "    jz 3f",
                "    rdtsc",
                "    shl rdx, 32",
                "    or rax, rdx",
                "    mov r13, rax",
                "3:",
                $batch,
                "4:",
                $each,
                "    dec r11",
                "    jnz 4b",
                "    test r9, r9",
                "    jz 2b",
                "    rdtsc",
                "    shl rdx, 32",
                "    or rax, rdx",
                "    sub rax, r13",
                "    cmp r12, r9", // a batch that is not whole does not count
                "    jne 2b",
                "    cmp rax, r10",
                "    cmovb r10, rax",
                "    jmp 2b",
                "5:", // all iterations done
                "    test r9, r9",
                "    jz 6f",
                "    mov edx, {report}",
                "    mov rax, r10",
                "    out dx, eax",
                "    shr rax, 32",
                "    out dx, eax",
                "6:",
                "    mov edx, {done}",
                "    xor eax, eax",
                "    out dx, eax",
                "7:", // not reached: the VMM does not re-enter after DONE
                "    jmp 7b",
                concat!("exitscope_flat_", stringify!($name), "_end:"),
                ".popsection",
                no_batch = const flat::NO_BATCH as i64,
                ready = const flat::PORT_READY,
                report = const flat::PORT_REPORT,
                done = const flat::PORT_DONE,
            );

            unsafe extern "C" {
                #[link_name = concat!("exitscope_flat_", stringify!($name), "_start")]
                static START: u8;
                #[link_name = concat!("exitscope_flat_", stringify!($name), "_end")]
                static END: u8;
            }

            /// The bytes between the two symbols.
            pub(super) fn image() -> &'static [u8] {
                let (start, end) = (&raw const START, &raw const END);
                // SAFETY: the assembler block above defines both symbols in one read-only section, END after
                // START, with nothing but the image's initialised bytes between them; nobody writes them.
                unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
            }
        }
    };
}

flat_image!(cpuid, "CPUID of leaf 0.", once: "", batch: "", each: "xor eax, eax\n cpuid");
flat_image!(leaf, "CPUID of leaf 0x4FFFFFF1.", once: "", batch: "", each: "mov eax, 0x4ffffff1\n cpuid");
flat_image!(rdmsr, "RDMSR of IA32_APIC_BASE.", once: "", batch: "mov ecx, 0x1b", each: "rdmsr");
flat_image!(
    wrmsr,
    "WRMSR of IA32_APIC_BASE with the value read before the loop.",
    once: "mov ecx, 0x1b\n rdmsr\n mov r14d, eax\n mov r15d, edx",
    batch: "mov ecx, 0x1b\n mov eax, r14d\n mov edx, r15d",
    each: "wrmsr"
);
flat_image!(pio, "OUT to the ignored port.", once: "", batch: "", each: "out 0x80, al");
flat_image!(
    mmio,
    "A store into the MMIO hole; the first one makes KVM mark the page.",
    once: "mov ebx, 0xd0000000\n mov dword ptr [rbx], eax",
    batch: "",
    each: "mov dword ptr [rbx], eax"
);
flat_image!(hlt, "HLT.", once: "", batch: "", each: "hlt");
flat_image!(vmcall, "An unknown hypercall on VMX.", once: "", batch: "", each: "mov eax, 0x45584954\n vmcall");
flat_image!(vmmcall, "An unknown hypercall on SVM.", once: "", batch: "", each: "mov eax, 0x45584954\n vmmcall");

// The instructions above say these numbers in digits, because an instruction is one literal.
const _: () = assert!(flat::PORT_IGNORED == 0x80);
const _: () = assert!(flat::MMIO_HOLE == 0xd000_0000);
const _: () = assert!(flat::UNKNOWN_HYPERCALL == 0x4558_4954);

#[cfg(test)]
mod tests {
    use super::*;

    /// The instruction that each workload is about, as bytes.
    fn opcode(workload: Workload, isa: Isa) -> &'static [u8] {
        match (workload, isa) {
            (Workload::Cpuid | Workload::Leaf, _) => &[0x0f, 0xa2],
            (Workload::Rdmsr, _) => &[0x0f, 0x32],
            (Workload::Wrmsr, _) => &[0x0f, 0x30],
            (Workload::Pio, _) => &[0xe6, 0x80],
            (Workload::Mmio, _) => &[0x89, 0x03],
            (Workload::Hlt, _) => &[0xf4],
            (Workload::Hypercall, Isa::Vmx) => &[0x0f, 0x01, 0xc1],
            (Workload::Hypercall, Isa::Svm) => &[0x0f, 0x01, 0xd9],
        }
    }

    #[test]
    fn names_are_unique_and_lead_back() {
        for workload in Workload::ALL {
            assert_eq!(Workload::from_name(workload.name()), Some(workload));
        }
        assert_eq!(Workload::from_name("cpu"), None);
    }

    #[test]
    fn images_hold_their_instruction_and_fit_a_page() {
        for isa in [Isa::Vmx, Isa::Svm] {
            for workload in Workload::ALL {
                let (image, opcode) = (workload.image(isa), opcode(workload, isa));
                assert!(image.len() < 4096, "{workload:?}: {} bytes", image.len());
                let found = image.windows(opcode.len()).filter(|bytes| bytes == &opcode).count();
                let expected = 1 + usize::from(workload == Workload::Mmio);
                assert_eq!(found, expected, "{workload:?}: {image:02x?}");
            }
        }
    }

    #[test]
    fn only_the_hypercall_depends_on_the_vendor() {
        for workload in Workload::ALL {
            let same = workload.image(Isa::Vmx) == workload.image(Isa::Svm);
            assert_eq!(same, workload != Workload::Hypercall, "{workload:?}");
        }
    }
}
