//! Reads exitscope's CPUID leaves from inside a guest.

use std::arch::x86_64::__cpuid_count;

use exitscope_abi::leaf::{DISCOVERY, Discovery, Figures, Question, Registers, Scope};
use exitscope_abi::reason::Reason;

/// No exitscope answers this machine's CPUID.
#[derive(Debug, thiserror::Error)]
#[error(
    "no exitscope answers CPUID leaf 0x4ffffff0: this machine is no KVM guest, its host has not loaded the \
     exitscope module, or the module's policy is expose=off"
)]
pub struct Absent;

/// The leaves are not any more what they were.
#[derive(Debug, thiserror::Error)]
#[error(
    "the host's exitscope has changed meanwhile (its layout, its policy, or whether it is loaded at all): begin anew"
)]
pub struct Changed;

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

    /// Checks that the discovery leaf says what it said at first: the host's administrator may have changed the layout or
    /// the policy, or unloaded the module, and what the leaves say then is another thing.
    pub fn check(&self) -> Result<(), Changed> {
        let now = Discovery::decode((self.cpuid)(DISCOVERY, 0));
        if now == Some(self.discovery) { Ok(()) } else { Err(Changed) }
    }

    /// What the discovery leaf told.
    pub fn discovery(&self) -> Discovery {
        self.discovery
    }

    /// Whether a vCPU can ask for its own exits, and anyone for the parts of a reason's cycles.
    pub fn has_vcpu_leaves(&self) -> bool {
        Question::VcpuTotal.since() <= self.discovery.version
    }

    /// Asks one question; `None` when the host's module has no leaf for it or the reason is not defined.
    pub fn ask(&self, question: Question) -> Option<Figures> {
        if question.since() > self.discovery.version {
            return None;
        }
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
        Some(Figures { exits, cycles, min, max, ..Figures::default() })
    }

    /// The four parts of a reason's cycles (kernel, user, polled, halted), of the vCPU that asks or of all that the
    /// policy tells; `None` for one that the manual does not define, and where there are no such leaves. Two questions
    /// answer it, between which a CPUID's time goes on.
    pub fn parts(&self, scope: Scope, code: u32) -> Option<Figures> {
        let (first, second) = match scope {
            Scope::Vcpu => (Question::VcpuKernelUser(code), Question::VcpuPolledHalted(code)),
            Scope::Policy => (Question::KernelUser(code), Question::PolledHalted(code)),
        };
        let Figures { kernel, user, .. } = self.ask(first)?;
        let Figures { polled, halted, .. } = self.ask(second)?;
        Some(Figures { kernel, user, polled, halted, ..Figures::default() })
    }

    /// Exits and cycles of all reasons of the vCPU that asks, which is the one that this thread runs on; `None` where
    /// there is no such leaf.
    pub fn vcpu_total(&self) -> Option<Figures> {
        self.ask(Question::VcpuTotal)
    }

    /// Exits and cycles of a reason of the vCPU that asks; `None` for one that the manual does not define, and where
    /// there is no such leaf.
    pub fn vcpu_reason(&self, code: u32) -> Option<Figures> {
        self.ask(Question::VcpuReason(code))
    }

    /// Exits and cycles of codes that no manual defines, of the vCPU that asks; `None` where there is no such leaf.
    pub fn vcpu_undefined(&self) -> Option<Figures> {
        self.ask(Question::VcpuUndefined)
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
    use exitscope_abi::leaf::{Expose, Layout, Reasons, VERSION};
    use exitscope_abi::reason::Isa;

    use super::*;

    const NONE: Figures =
        Figures { exits: 0, cycles: 0, min: 0, max: 0, kernel: 0, user: 0, polled: 0, halted: 0 };

    fn with_exitscope(leaf: u32, sub_leaf: u32) -> Registers {
        let parts = Figures { kernel: 1 << 32, user: 1 << 31, polled: 1 << 30, halted: 1 << 30, ..NONE };
        let figures = Figures { exits: 5, cycles: 1 << 33, min: 7, max: 9, ..parts };
        match Question::parse(Layout::Classic, leaf, sub_leaf) {
            Some(Question::Discovery) => {
                Discovery { version: VERSION, layout: Layout::Classic, isa: Isa::Vmx, expose: Expose::Vm }
                    .encode()
            }
            Some(question) if matches!(question.reasons(), Reasons::All | Reasons::One(10)) => {
                question.encode(figures)
            }
            Some(question) if question.reasons() == Reasons::One(35) => question.encode_undefined(),
            _ => Registers::default(),
        }
    }

    #[test]
    fn figures_are_read() {
        let leaves = Leaves::find_with(with_exitscope).unwrap();
        assert_eq!(leaves.total().cycles, 1 << 33);
        assert_eq!(leaves.reason(10).unwrap(), Figures { exits: 5, cycles: 1 << 33, min: 7, max: 9, ..NONE });
        assert_eq!(leaves.reason(11), Some(Figures::default()));
        assert_eq!(leaves.reason(35), None);
        assert_eq!(leaves.reasons().map(|(reason, _)| reason.name).collect::<Vec<_>>(), ["CPUID"]);
    }

    #[test]
    fn a_vcpus_own_figures_are_read() {
        let leaves = Leaves::find_with(with_exitscope).unwrap();
        let both = Figures { exits: 5, cycles: 1 << 33, ..NONE };
        assert_eq!([leaves.vcpu_total(), leaves.vcpu_reason(10)], [Some(both); 2]);
        assert_eq!([leaves.vcpu_reason(11), leaves.vcpu_undefined()], [Some(NONE); 2]);
        for scope in [Scope::Vcpu, Scope::Policy] {
            let Figures { kernel, user, polled, halted, .. } = leaves.parts(scope, 10).unwrap();
            assert_eq!(kernel + user + polled + halted, 1 << 33);
            assert_eq!(leaves.parts(scope, 35), None);
        }
    }

    /// On such a host the leaf is KVM's to answer, with figures that are none.
    #[test]
    fn leaves_that_the_hosts_version_lacks_are_not_asked() {
        fn earlier(leaf: u32, sub_leaf: u32) -> Registers {
            let answer = with_exitscope(leaf, sub_leaf);
            Discovery::decode(answer).map_or(answer, |now| Discovery { version: 1, ..now }.encode())
        }
        let [earlier, now] = [earlier, with_exitscope].map(|cpuid| Leaves::find_with(cpuid).unwrap());
        assert!(now.has_vcpu_leaves() && !earlier.has_vcpu_leaves());
        assert_eq!((earlier.total(), earlier.reason(10)), (now.total(), now.reason(10)));
        assert_eq!([earlier.vcpu_total(), earlier.vcpu_reason(10), earlier.vcpu_undefined()], [None; 3]);
        assert_eq!([Scope::Vcpu, Scope::Policy].map(|scope| earlier.parts(scope, 10)), [None; 2]);
    }

    #[test]
    fn a_machine_without_exitscope_is_told_apart() {
        let highest_basic_leaf = |_, _| Registers { eax: 1, ebx: 2, ecx: 3, edx: 4 };
        assert!(Leaves::find_with(highest_basic_leaf).is_err());
    }
}
