//! Reads exitscope's CPUID leaves from inside a guest.

use std::arch::x86_64::__cpuid_count;

use exitscope_abi::leaf::{DISCOVERY, Discovery, Figures, Question, Registers};
use exitscope_abi::reason::Reason;

/// No exitscope answers this machine's CPUID.
#[derive(Debug, thiserror::Error)]
#[error(
    "no exitscope answers CPUID leaf 0x4ffffff0: this machine is no KVM guest, its host has not loaded the \
     exitscope module, or the module's policy is expose=off"
)]
pub struct Absent;

/// The leaves of a machine that has answered the discovery leaf.
#[derive(Clone, Copy, Debug)]
pub struct Leaves {
    discovery: Discovery,
    cpuid: fn(u32, u32) -> Registers,
}

pub(crate) fn cpuid(leaf: u32, sub_leaf: u32) -> Registers {
    // SAFETY: every x86-64 CPU has CPUID, and it changes nothing but the four registers.
    #[allow(unused_unsafe, reason = "safe from Rust 1.94 on")]
    let answer = unsafe { __cpuid_count(leaf, sub_leaf) };
    Registers { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
}

impl Leaves {
    /// Asks the discovery leaf.
    pub fn find() -> Result<Self, Absent> {
        Self::find_with(cpuid)
    }

    fn find_with(cpuid: fn(u32, u32) -> Registers) -> Result<Self, Absent> {
        let discovery = Discovery::decode(cpuid(DISCOVERY, 0)).ok_or(Absent)?;
        Ok(Self { discovery, cpuid })
    }

    /// What the discovery leaf told.
    pub fn discovery(&self) -> Discovery {
        self.discovery
    }

    /// Asks one question; `None` when the layout has no leaf for it or the reason is not defined.
    pub fn ask(&self, question: Question) -> Option<Figures> {
        let (leaf, sub_leaf) = question.address(self.discovery.layout)?;
        question.decode((self.cpuid)(leaf, sub_leaf))
    }

    /// Exits and cycles of all reasons.
    pub fn total(&self) -> Figures {
        self.ask(Question::Total).unwrap_or_default()
    }

    /// All four figures of a reason; `None` for one that the manual does not define.
    pub fn reason(&self, code: u32) -> Option<Figures> {
        let Figures { exits, cycles, .. } = self.ask(Question::Reason(code))?;
        let Figures { min, max, .. } = self.ask(Question::Extremes(code))?;
        Some(Figures { exits, cycles, min, max })
    }

    /// Every reason that has exits, by code.
    pub fn reasons(&self) -> impl Iterator<Item = (&'static Reason, Figures)> {
        let all = self.discovery.isa.reasons().iter();
        all.filter_map(|reason| Some((reason, self.reason(reason.code)?)))
            .filter(|(_, figures)| figures.exits > 0)
    }

    /// Exits and cycles of codes that no manual defines.
    pub fn undefined(&self) -> Figures {
        self.ask(Question::Undefined).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use exitscope_abi::leaf::{Expose, Layout, VERSION};
    use exitscope_abi::reason::Isa;

    use super::*;

    fn with_exitscope(leaf: u32, sub_leaf: u32) -> Registers {
        let figures = Figures { exits: 5, cycles: 1 << 33, min: 7, max: 9 };
        match Question::parse(Layout::Classic, leaf, sub_leaf) {
            Some(Question::Discovery) => {
                Discovery { version: VERSION, layout: Layout::Classic, isa: Isa::Vmx, expose: Expose::Vm }
                    .encode()
            }
            Some(question @ (Question::Reason(10) | Question::Extremes(10) | Question::Total)) => {
                question.encode(figures)
            }
            Some(question @ Question::Reason(35)) => question.encode_undefined(),
            _ => Registers::default(),
        }
    }

    #[test]
    fn figures_are_read() {
        let leaves = Leaves::find_with(with_exitscope).unwrap();
        assert_eq!(leaves.total().cycles, 1 << 33);
        assert_eq!(leaves.reason(10).unwrap(), Figures { exits: 5, cycles: 1 << 33, min: 7, max: 9 });
        assert_eq!(leaves.reason(11), Some(Figures::default()));
        assert_eq!(leaves.reason(35), None);
        assert_eq!(leaves.reasons().map(|(reason, _)| reason.name).collect::<Vec<_>>(), ["CPUID"]);
    }

    #[test]
    fn a_machine_without_exitscope_is_told_apart() {
        let highest_basic_leaf = |_, _| Registers { eax: 1, ebx: 2, ecx: 3, edx: 4 };
        assert!(Leaves::find_with(highest_basic_leaf).is_err());
    }
}
