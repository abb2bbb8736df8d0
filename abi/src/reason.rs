//! Why a vCPU left its guest: the exit reasons of VMX and SVM, with their numbers and names.
//!
//! One table per instruction set ([`Isa::reasons`]) is the only place where a reason is written
//! down; names, help, tables, JSON and metrics derive from it. VMX follows SDM vol. 3 appendix C,
//! SVM follows APM vol. 2 appendix C.
//!
//! Counters are arrays with one slot per reason. [`Isa::dense`] finds a code's slot on the exit
//! path, `reasons()[slot]` says later which reason it was. A code without a slot is undefined.

use core::hint::black_box;

/// Builds a `&'static [Reason]` from rows of `code NAME "meaning"`.
macro_rules! table {
    ($($code:literal $name:ident $meaning:literal)*) => {
        &[$(Reason { code: $code, name: stringify!($name), meaning: $meaning }),*]
    };
}

mod svm;
mod vmx;

/// An instruction set for virtualization; the numbers are those of KVM's `KVM_ISA_VMX` and
/// `KVM_ISA_SVM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// Intel VT-x.
    Vmx = 1,
    /// AMD-V.
    Svm = 2,
}

/// One defined cause of a VM exit.
#[derive(Debug, PartialEq, Eq)]
pub struct Reason {
    /// VMX: the basic exit reason, bits 15:0 of the exit-reason field. SVM: the low 32 bits of
    /// `EXITCODE`, so that the manual's -1 is `0xFFFF_FFFF`.
    pub code: u32,
    /// The field's name for it without a prefix, such as `EPT_VIOLATION`: `[A-Z0-9_]+`.
    pub name: &'static str,
    /// What happened, in one line of ASCII without a full stop.
    pub meaning: &'static str,
}

/// The most reasons that any instruction set has: how many slots an array of counters needs.
pub const MAX_REASONS: usize = {
    let (vmx, svm) = (vmx::REASONS.len(), svm::REASONS.len());
    if vmx > svm { vmx } else { svm }
};

impl Isa {
    /// Every instruction set.
    pub const ALL: [Isa; 2] = [Isa::Vmx, Isa::Svm];

    /// `vmx` or `svm`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Vmx => "vmx",
            Isa::Svm => "svm",
        }
    }

    /// The instruction set with KVM's number `number`.
    pub const fn from_number(number: u8) -> Option<Isa> {
        match number {
            1 => Some(Isa::Vmx),
            2 => Some(Isa::Svm),
            _ => None,
        }
    }

    /// All defined reasons, in ascending order of their codes.
    pub const fn reasons(self) -> &'static [Reason] {
        match self {
            Isa::Vmx => vmx::REASONS,
            Isa::Svm => svm::REASONS,
        }
    }

    /// The index of `code` in [`Isa::reasons`], or `None` for a code that the manual does not
    /// define. Takes constant time. `code` is as in [`Reason::code`]: mask VMX's flag bits first.
    #[inline]
    pub const fn dense(self, code: u32) -> Option<usize> {
        match self {
            Isa::Vmx => vmx::dense(code),
            Isa::Svm => svm::dense(code),
        }
    }

    /// As [`Isa::dense`], for a code that a guest has chosen: the index is in bounds also where a CPU runs ahead of the
    /// comparisons with a guess (bounds-check bypass, CVE-2017-5753).
    pub fn dense_nospec(self, code: u32) -> Option<usize> {
        let index = match self {
            Isa::Vmx => vmx::dense_nospec(code),
            Isa::Svm => svm::dense(code),
        };
        index.map(|index| index_nospec(index, self.reasons().len()))
    }

    /// How many codes, from 0 on, are their own index: for these, nobody needs [`Isa::dense`].
    pub const fn consecutive(self) -> u32 {
        let reasons = self.reasons();
        let mut code = 0;
        while code < reasons.len() && reasons[code].code as usize == code {
            code += 1;
        }
        code as u32
    }

    /// The reason with the code `code`, which is as in [`Reason::code`].
    pub fn reason(self, code: u32) -> Option<&'static Reason> {
        self.reasons().get(self.dense(code)?)
    }

    /// The reason called `name`; upper and lower case are the same, and so are `-` and `_`.
    pub fn by_name(self, name: &str) -> Option<&'static Reason> {
        let same = |reason: &&Reason| {
            let folded = name.bytes().map(|byte| match byte {
                b'-' => b'_',
                other => other.to_ascii_uppercase(),
            });
            folded.eq(reason.name.bytes())
        };
        self.reasons().iter().find(same)
    }

    /// The code of the exit that CPUID causes.
    pub const fn cpuid(self) -> u32 {
        match self {
            Isa::Vmx => 10,
            Isa::Svm => 0x72,
        }
    }
}

/// The index where it is below `length`, else 0: by arithmetic, with which no CPU runs ahead, as the kernel's
/// `array_index_nospec`. `length` is at most `isize::MAX`.
fn index_nospec(index: usize, length: usize) -> usize {
    // The compiler must not see that a comparison has come before, or it would leave the mask out; nor what the mask is
    // made of, or it might compare again.
    let index = black_box(index);
    let beyond = (index | length.wrapping_sub(1).wrapping_sub(index)) as isize >> (isize::BITS - 1);
    index & !black_box(beyond as usize)
}

// A table whose rows are out of order or not where `dense` says does not compile.
const _: () = {
    let mut isa = 0;
    while isa < Isa::ALL.len() {
        let reasons = Isa::ALL[isa].reasons();
        let mut i = 0;
        while i < reasons.len() {
            assert!(i == 0 || reasons[i - 1].code < reasons[i].code);
            assert!(matches!(Isa::ALL[isa].dense(reasons[i].code), Some(index) if index == i));
            i += 1;
        }
        isa += 1;
    }
};

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::format;

    /// Every code that is tried where all codes would take too long: the ranges in which codes
    /// are defined and far around them, and each power of two.
    fn codes() -> impl Iterator<Item = u32> {
        let powers = (17..32).map(|bit| 1 << bit);
        let host = 0xEFFF_0000..=0xF001_0000;
        (0..=0x1_FFFF).chain(powers).chain(host).chain(0xFFFE_0000..=u32::MAX)
    }

    #[test]
    fn rows_are_well_formed() {
        for isa in Isa::ALL {
            for Reason { code, name, meaning } in isa.reasons() {
                let row = format!("{} {code:#x} {name}: {meaning}", isa.name());
                let upper = |c: u8| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_';
                assert!(!name.is_empty() && name.bytes().all(upper), "{row}");
                assert!(!meaning.is_empty() && meaning.len() <= 90, "{row}");
                assert!(meaning.bytes().all(|c| c == b' ' || c.is_ascii_graphic()), "{row}");
                assert!(meaning.starts_with(|c: char| c.is_ascii_uppercase()), "{row}");
                assert!(!meaning.ends_with(['.', ' ']), "{row}");
            }
        }
    }

    #[test]
    fn codes_ascend_and_names_are_unique() {
        for isa in Isa::ALL {
            let reasons = isa.reasons();
            assert!(reasons.is_sorted_by(|a, b| a.code < b.code), "{isa:?}");
            for (i, reason) in reasons.iter().enumerate() {
                assert!(reasons[..i].iter().all(|other| other.name != reason.name), "{reason:?}");
            }
        }
    }

    #[test]
    fn dense_finds_each_row_and_nothing_else() {
        for isa in Isa::ALL {
            let mut next = 0;
            for code in codes() {
                let defined = isa.reasons().get(next).is_some_and(|reason| reason.code == code);
                assert_eq!(isa.dense(code), defined.then_some(next), "{isa:?} {code:#x}");
                assert_eq!(isa.reason(code).map(|reason| reason.code), defined.then_some(code));
                next += usize::from(defined);
            }
            assert_eq!(next, isa.reasons().len(), "{isa:?}: codes that were not tried");
            assert!(next <= MAX_REASONS);
        }
    }

    #[test]
    fn names_are_found_in_any_spelling() {
        for isa in Isa::ALL {
            for reason in isa.reasons() {
                let lower = reason.name.to_lowercase();
                for spelling in [reason.name, &lower, &lower.replace('_', "-")] {
                    assert_eq!(isa.by_name(spelling), Some(reason), "{spelling}");
                }
            }
            for unknown in ["", "_", "CPUI", "CPUIDS", " CPUID", "cpuid\0", "EPT VIOLATION"] {
                assert_eq!(isa.by_name(unknown), None, "{unknown:?}");
            }
        }
    }

    #[test]
    fn isas_have_kvms_numbers() {
        for isa in Isa::ALL {
            assert_eq!(Isa::from_number(isa as u8), Some(isa));
        }
        assert_eq!((Isa::Vmx as u8, Isa::Svm as u8), (1, 2));
        assert_eq!((Isa::from_number(0), Isa::from_number(3)), (None, None));
        assert_eq!(Isa::ALL.map(Isa::name), ["vmx", "svm"]);
    }

    #[test]
    fn cpuid_is_the_code_of_cpuid() {
        for isa in Isa::ALL {
            assert_eq!(isa.reason(isa.cpuid()).map(|reason| reason.name), Some("CPUID"));
        }
    }

    /// Spot checks against the manuals; an empty name stands for an undefined code.
    #[test]
    fn numbers_are_the_manuals() {
        use Isa::{Svm, Vmx};
        let known = [
            (Vmx, 0, "EXCEPTION_NMI"),
            (Vmx, 1, "EXTERNAL_INTERRUPT"),
            (Vmx, 6, "OTHER_SMI"),
            (Vmx, 10, "CPUID"),
            (Vmx, 12, "HLT"),
            (Vmx, 18, "VMCALL"),
            (Vmx, 28, "CR_ACCESS"),
            (Vmx, 30, "IO_INSTRUCTION"),
            (Vmx, 32, "MSR_WRITE"),
            (Vmx, 35, ""),
            (Vmx, 38, ""),
            (Vmx, 40, "PAUSE_INSTRUCTION"),
            (Vmx, 42, ""),
            (Vmx, 48, "EPT_VIOLATION"),
            (Vmx, 49, "EPT_MISCONFIG"),
            (Vmx, 52, "PREEMPTION_TIMER"),
            (Vmx, 54, "WBINVD"),
            (Vmx, 58, "INVPCID"),
            (Vmx, 65, "PCONFIG"),
            (Vmx, 71, ""),
            (Vmx, 75, "NOTIFY"),
            (Vmx, 79, "WRMSRLIST"),
            (Vmx, 82, ""),
            (Vmx, 83, ""),
            (Vmx, 85, "MSR_WRITE_IMM"),
            (Vmx, 86, ""),
            (Svm, 0, "CR0_READ"),
            (Svm, 19, "CR3_WRITE"),
            (Svm, 0x27, "DR7_READ"),
            (Svm, 0x3F, "DR15_WRITE"),
            (Svm, 0x4E, "EXCP_PF"),
            (Svm, 0x4F, "EXCP_15"),
            (Svm, 0x60, "INTR"),
            (Svm, 0x64, "VINTR"),
            (Svm, 0x72, "CPUID"),
            (Svm, 0x78, "HLT"),
            (Svm, 0x79, "INVLPG"),
            (Svm, 0x7B, "IOIO"),
            (Svm, 0x7C, "MSR"),
            (Svm, 0x7F, "SHUTDOWN"),
            (Svm, 0x81, "VMMCALL"),
            (Svm, 0x8D, "XSETBV"),
            (Svm, 0x98, "CR8_WRITE_TRAP"),
            (Svm, 0xA6, "IDLE_HLT"),
            (Svm, 0xA7, ""),
            (Svm, 0x3FF, ""),
            (Svm, 0x400, "NPF"),
            (Svm, 0x403, "VMGEXIT"),
            (Svm, 0x404, ""),
            (Svm, 0x407, "PML_FULL"),
            (Svm, 0xF000_0000, "SW"),
            (Svm, -4_i32 as u32, "INVALID_PMC"),
            (Svm, -1_i32 as u32, "INVALID"),
        ];
        for (isa, code, name) in known {
            let found = isa.reason(code).map_or("", |reason| reason.name);
            assert_eq!(found, name, "{isa:?} {code:#x}");
        }
    }
}
