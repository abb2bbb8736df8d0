//! Flat workloads by name: each causes exactly as many VM exits of its kind as it is asked for.
//!
//! An image follows the protocol of [`exitscope_abi::flat`]. It runs the same instructions around its loop
//! whatever the number of iterations, so the counts of a run with N iterations minus the counts of a run with
//! none are exactly N exits of each of [`Workload::exit_codes`] and nothing else (host interrupts aside, which
//! arrive when they like).

use core::arch::global_asm;
use exitscope_abi::leaf::Registers;
use exitscope_abi::{flat, reason::Isa};

/// A flat guest that causes VM exits of its kind in a tight loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    /// CPUID of leaf 0: emulated in the kernel.
    Cpuid,
    /// CPUID of exitscope's leaf 0x4FFFFFF1: answered by the module, if it is there.
    Leaf,
    /// CPUID of exitscope's leaf 0x4FFFFFF0, after each of the sixteen leaves has been asked once and its answer reported:
    /// EAX and EBX, then ECX and EDX, as [`leaf_answers`] reads them. The sub-leaf is CPUID's own exit reason.
    Leaves,
    /// RDMSR of IA32_APIC_BASE (0x1B): emulated in the kernel.
    Rdmsr,
    /// WRMSR of IA32_APIC_BASE with the value it already has: emulated in the kernel.
    Wrmsr,
    /// OUT to port 0x80: goes to the VMM.
    Pio,
    /// IN from port 0x71: goes to the VMM, which answers.
    PioIn,
    /// A 32-bit store where no memory is: decoded by the kernel's instruction emulator, then goes to the VMM.
    Mmio,
    /// HLT with interrupts off and no interrupt controller in the kernel: goes to the VMM.
    Hlt,
    /// VMCALL or VMMCALL with a number that KVM does not know: answered in the kernel.
    Hypercall,
    /// VMRUN of a nested guest that asks CPUID for exitscope's leaf 0x4FFFFFF0: both exits are the kernel's, which hands
    /// the second on to the guest, as that is the nested guest's hypervisor. SVM only.
    ///
    /// The nested guest's RIP is two bytes, the length of CPUID, below that at which its hypervisor goes on: by RIP
    /// alone, its CPUID was completed. The guest ends with status 1 if its registers then hold anything but what it put
    /// there, and with 2 if the nested guest has exited for another reason.
    Nested,
}

impl Workload {
    /// Every workload, in the order in which they are listed to users; see [`Workload::on`].
    pub const ALL: [Self; 11] = [
        Self::Cpuid,
        Self::Leaf,
        Self::Leaves,
        Self::Rdmsr,
        Self::Wrmsr,
        Self::Pio,
        Self::PioIn,
        Self::Mmio,
        Self::Hlt,
        Self::Hypercall,
        Self::Nested,
    ];

    /// The workloads that CPUs with this instruction set can run, in the order of [`Workload::ALL`].
    pub fn on(isa: Isa) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |workload| workload.image(isa).is_some())
    }

    /// The name that users type.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpuid => "cpuid",
            Self::Leaf => "leaf",
            Self::Leaves => "leaves",
            Self::Rdmsr => "rdmsr",
            Self::Wrmsr => "wrmsr",
            Self::Pio => "pio",
            Self::PioIn => "pio-in",
            Self::Mmio => "mmio",
            Self::Hlt => "hlt",
            Self::Hypercall => "hypercall",
            Self::Nested => "nested",
        }
    }

    /// The workload of this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|workload| workload.name() == name)
    }

    /// The machine code, if there is one for this instruction set. Between vendors that both have it only the
    /// hypercall instruction differs, and the exit reason that is asked for.
    #[must_use]
    pub fn image(self, isa: Isa) -> Option<&'static [u8]> {
        Some(match (self, isa) {
            (Self::Cpuid, _) => cpuid::image(),
            (Self::Leaf, _) => leaf::image(),
            (Self::Leaves, Isa::Vmx) => leaves_vmx::image(),
            (Self::Leaves, Isa::Svm) => leaves_svm::image(),
            (Self::Rdmsr, _) => rdmsr::image(),
            (Self::Wrmsr, _) => wrmsr::image(),
            (Self::Pio, _) => pio::image(),
            (Self::PioIn, _) => pio_in::image(),
            (Self::Mmio, _) => mmio::image(),
            (Self::Hlt, _) => hlt::image(),
            (Self::Hypercall, Isa::Vmx) => vmcall::image(),
            (Self::Hypercall, Isa::Svm) => vmmcall::image(),
            (Self::Nested, Isa::Svm) => nested::image(),
            (Self::Nested, Isa::Vmx) => return None,
        })
    }

    /// The exit reasons that each iteration raises, once each (SDM vol. 3 appendix C; APM vol. 2 appendix C).
    ///
    /// MMIO is given for nested paging. On VMX the first access to a page is an EPT violation (48), after which
    /// KVM has marked the page and every further one is an EPT misconfiguration (49); the workload makes the
    /// first access before its loop. With shadow paging both vendors raise an exception exit instead.
    #[must_use]
    pub fn exit_codes(self, isa: Isa) -> &'static [u32] {
        let (vmx, svm): (&[u32], &[u32]) = match self {
            Self::Cpuid | Self::Leaf | Self::Leaves => (&[10], &[0x72]),
            Self::Rdmsr => (&[31], &[0x7c]),
            Self::Wrmsr => (&[32], &[0x7c]),
            Self::Pio | Self::PioIn => (&[30], &[0x7b]),
            Self::Mmio => (&[49], &[0x400]),
            Self::Hlt => (&[12], &[0x78]),
            Self::Hypercall => (&[18], &[0x81]),
            Self::Nested => (&[], &[0x80, 0x72]),
        };
        match isa {
            Isa::Vmx => vmx,
            Isa::Svm => svm,
        }
    }
}

/// The answers of the leaves from 0x4FFFFFF0 to 0x4FFFFFFF that [`Workload::Leaves`] has reported, in order.
#[must_use]
pub fn leaf_answers(reports: &[u64]) -> Vec<Registers> {
    let low_high = |word: u64| (word as u32, (word >> 32) as u32);
    let answer = |pair: &[u64]| match pair {
        &[first, second] => {
            let ((eax, ebx), (ecx, edx)) = (low_high(first), low_high(second));
            Some(Registers { eax, ebx, ecx, edx })
        }
        _ => None,
    };
    reports.chunks(2).filter_map(answer).take(LEAVES).collect()
}

/// How many leaves [`Workload::Leaves`] asks.
pub const LEAVES: usize = 16;

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
/// Asks each leaf from 0x4FFFFFF0 to 0x4FFFFFFF with this sub-leaf, and reports the answers.
macro_rules! ask_all_leaves {
    ($sub_leaf:literal) => {
        concat!(
            "mov r14d, 0x4ffffff0\n",
            "10: mov eax, r14d\n mov ecx, ",
            $sub_leaf,
            "\n cpuid\n mov r15d, edx\n",
            "mov edx, {report}\n out dx, eax\n mov eax, ebx\n out dx, eax\n",
            "mov eax, ecx\n out dx, eax\n mov eax, r15d\n out dx, eax\n",
            "inc r14d\n cmp r14d, 0x50000000\n jne 10b\n",
        )
    };
}
flat_image!(
    leaves_vmx,
    "CPUID of leaf 0x4FFFFFF0, and first of all sixteen, on VMX.",
    once: ask_all_leaves!("10"),
    batch: "",
    each: "mov eax, 0x4ffffff0\n cpuid"
);
flat_image!(
    leaves_svm,
    "CPUID of leaf 0x4FFFFFF0, and first of all sixteen, on SVM.",
    once: ask_all_leaves!("0x72"),
    batch: "",
    each: "mov eax, 0x4ffffff0\n cpuid"
);
flat_image!(rdmsr, "RDMSR of IA32_APIC_BASE.", once: "", batch: "mov ecx, 0x1b", each: "rdmsr");
flat_image!(
    wrmsr,
    "WRMSR of IA32_APIC_BASE with the value read before the loop.",
    once: "mov ecx, 0x1b\n rdmsr\n mov r14d, eax\n mov r15d, edx",
    batch: "mov ecx, 0x1b\n mov eax, r14d\n mov edx, r15d",
    each: "wrmsr"
);
flat_image!(pio, "OUT to the ignored port.", once: "", batch: "", each: "out 0x80, al");
flat_image!(pio_in, "IN from port 0x71.", once: "", batch: "", each: "in al, 0x71");
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
flat_image!(
    nested,
    "VMRUN of a nested guest, whose CPUID is of leaf 0x4FFFFFF0. Offsets into the VMCB are those of APM vol. 2 \
     appendix B.",
    once: concat!(
        // Two pages for each vCPU: the VMCB at R14, and the one that VM_HSAVE_PA (0xC0010117) must name.
        "mov r14d, edi\n shl r14d, 13\n add r14d, 0x101000\n",
        "mov ecx, 0xc0000080\n rdmsr\n or eax, 0x1000\n wrmsr\n", // EFER.SVME
        "lea eax, [r14 + 0x1000]\n xor edx, edx\n mov ecx, 0xc0010117\n wrmsr\n",
        "mov dword ptr [r14 + 0x00c], 1 << 18\n", // intercept CPUID
        "mov dword ptr [r14 + 0x010], 1\n", // intercept VMRUN, as the manual demands
        "mov dword ptr [r14 + 0x058], 1\n", // ASID
        // Protected mode with 32-bit code and without paging: RIP is beyond the 64 KiB of real mode.
        "mov dword ptr [r14 + 0x558], 0x11\n", // CR0: PE, ET
        "mov dword ptr [r14 + 0x4d0], 0x1000\n", // EFER: SVME, as the manual demands
        "mov dword ptr [r14 + 0x570], 2\n", // RFLAGS
        "mov dword ptr [r14 + 0x410], 0x0c9b0008\n", // CS: attributes and selector
        "mov dword ptr [r14 + 0x414], 0xffffffff\n", // CS: limit
        // RIP is two bytes below label 8, which a base for CS makes the address of the CPUID at label 20.
        "lea rax, [rip + 8f - 2]\n mov [r14 + 0x578], rax\n",
        "lea rcx, [rip + 20f]\n sub rcx, rax\n mov [r14 + 0x418], rcx\n",
        "mov dword ptr [r14 + 0x5f8], 0x4ffffff0\n", // RAX
        "mov rax, r14\n vmrun rax", // the first one makes KVM map the CPUID for nested guests
    ),
    batch: "",
    // Of these registers VMRUN and #VMEXIT exchange RAX only; an answer would clear the upper half of each. GIF stays
    // clear from the first #VMEXIT on, as there are no interrupts to take.
    each: concat!(
        "mov rax, r14\n mov rbx, -1\n mov rcx, rbx\n mov rdx, rbx\n",
        "vmrun rax\n",
        "8: cmp rax, r14\n jne 21f\n",
        "and rbx, rcx\n and rbx, rdx\n cmp rbx, -1\n jne 21f\n",
        "cmp qword ptr [r14 + 0x070], 0x72\n je 23f\n", // EXITCODE
        "mov eax, 2\n jmp 22f\n",
        "20: cpuid\n", // of the nested guest
        "21: mov eax, 1\n",
        "22: mov edx, {done}\n out dx, eax\n",
        "23:",
    )
);

// The instructions above say these numbers in digits, because an instruction is one literal.
const _: () = assert!(flat::PORT_IGNORED == 0x80);
const _: () = assert!(flat::MMIO_HOLE == 0xd000_0000);
const _: () = assert!(flat::LOAD_ADDRESS == 0x10_0000);
const _: () = assert!(flat::UNKNOWN_HYPERCALL == 0x4558_4954);
const _: () = assert!(exitscope_abi::leaf::DISCOVERY == 0x4fff_fff0);

#[cfg(test)]
mod tests {
    use super::*;

    /// The instruction that each workload is about, as bytes.
    fn opcode(workload: Workload, isa: Isa) -> &'static [u8] {
        match (workload, isa) {
            (Workload::Cpuid | Workload::Leaf | Workload::Leaves, _) => &[0x0f, 0xa2],
            (Workload::Rdmsr, _) => &[0x0f, 0x32],
            (Workload::Wrmsr, _) => &[0x0f, 0x30],
            (Workload::Pio, _) => &[0xe6, 0x80],
            (Workload::PioIn, _) => &[0xe4, 0x71],
            (Workload::Mmio, _) => &[0x89, 0x03],
            (Workload::Hlt, _) => &[0xf4],
            (Workload::Hypercall, Isa::Vmx) => &[0x0f, 0x01, 0xc1],
            (Workload::Hypercall, Isa::Svm) => &[0x0f, 0x01, 0xd9],
            (Workload::Nested, _) => &[0x0f, 0x01, 0xd8],
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
            for workload in Workload::on(isa) {
                let (image, opcode) = (workload.image(isa).unwrap(), opcode(workload, isa));
                assert!(image.len() < 4096, "{workload:?}: {} bytes", image.len());
                let found = image.windows(opcode.len()).filter(|bytes| bytes == &opcode).count();
                let expected =
                    1 + usize::from(matches!(workload, Workload::Leaves | Workload::Mmio | Workload::Nested));
                assert_eq!(found, expected, "{workload:?}: {image:02x?}");
            }
        }
    }

    #[test]
    fn what_differs_between_vendors_depends_on_the_vendor() {
        for workload in Workload::ALL {
            let same = workload.image(Isa::Vmx) == workload.image(Isa::Svm);
            let differs = matches!(workload, Workload::Hypercall | Workload::Leaves | Workload::Nested);
            assert_eq!(same, !differs, "{workload:?}");
        }
    }

    #[test]
    fn reports_are_answers() {
        let answers = leaf_answers(&[0x2_0000_0001, 0x4_0000_0003, 7]);
        assert_eq!(answers, [Registers { eax: 1, ebx: 2, ecx: 3, edx: 4 }]);
    }

    #[test]
    fn what_has_an_image_has_exits() {
        for isa in [Isa::Vmx, Isa::Svm] {
            for workload in Workload::ALL {
                let exits = !workload.exit_codes(isa).is_empty();
                assert_eq!(exits, workload.image(isa).is_some(), "{workload:?}");
            }
        }
    }
}
