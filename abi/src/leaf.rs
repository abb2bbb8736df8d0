//! The CPUID leaves 0x4FFFFFF0 to 0x4FFFFFFF, by which a guest asks for its exits.
//!
//! Two families share the range. The *course leaves* 0x4FFFFFFC to 0x4FFFFFFF hold 32-bit counts, in one of three
//! numberings ([`Layout`]). exitscope's own leaves begin with the discovery leaf [`DISCOVERY`], which alone tells
//! a machine with exitscope from one without: for a leaf that it does not know, KVM answers a non-AMD guest with
//! the data of its highest basic leaf. Own leaves hold 64-bit figures.
//!
//! | leaf | sub-leaf (ECX) | EAX | EBX | ECX | EDX |
//! | --- | --- | --- | --- | --- | --- |
//! | 0x4FFFFFF0 | | version, layout, ISA, policy, last own leaf | "exit" | "scop" | "e\0\0\0" |
//! | 0x4FFFFFF1 | | exits, low | exits, high | cycles, low | cycles, high |
//! | 0x4FFFFFF2 | reason | exits, low | exits, high | cycles, low | cycles, high |
//! | 0x4FFFFFF3 | reason | min, low | min, high | max, low | max, high |
//! | 0x4FFFFFF4 | | exits of all codes that no manual defines, low | high | their cycles, low | high |
//! | 0x4FFFFFF5 | | this vCPU's exits, low | high | cycles, low | high |
//! | 0x4FFFFFF6 | reason | this vCPU's exits, low | high | cycles, low | high |
//! | 0x4FFFFFF7 | reason | this vCPU's cycles in the kernel, low | high | in user space, low | high |
//! | 0x4FFFFFF8 | reason | this vCPU's cycles polled, low | high | halted, low | high |
//! | 0x4FFFFFF9 | reason | cycles in the kernel, low | high | in user space, low | high |
//! | 0x4FFFFFFA | reason | cycles polled, low | high | halted, low | high |
//! | 0x4FFFFFFB | | this vCPU's exits of all codes that no manual defines, low | high | their cycles, low | high |
//!
//! Leaves from 0x4FFFFFF5 on came with version 2. A vCPU is told its own figures under every policy but `off`; the
//! other leaves tell those of the policy's scope: of its VM, or of the host. The four parts of a reason's cycles (kernel,
//! user, polled, halted) do not overlap, and their sum is the reason's cycles.
//!
//! A reason that the manual (SDM vol. 3 appendix C, APM vol. 2 appendix C) does not define answers an own leaf that takes
//! a reason with four times 0xFFFFFFFF, and a course leaf with EAX = EBX = ECX = 0, EDX = 0xFFFFFFFF.
//! A course leaf's count is the low 32 bits of the count. Cycles are ticks of the host's time stamp counter.

use crate::reason::Isa;

/// The discovery leaf.
pub const DISCOVERY: u32 = 0x4FFF_FFF0;
/// The last of exitscope's own leaves.
pub const LAST_OWN: u32 = 0x4FFF_FFFB;
/// Version of the own leaves.
pub const VERSION: u8 = 2;

/// The last own leaf that a version has.
const fn last_own(version: u8) -> u32 {
    if version < 2 { 0x4FFF_FFF4 } else { LAST_OWN }
}

const SIGNATURE: [u32; 3] =
    [u32::from_le_bytes(*b"exit"), u32::from_le_bytes(*b"scop"), u32::from_le_bytes(*b"e\0\0\0")];

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Registers {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl Registers {
    const fn two(first: u64, second: u64) -> Self {
        Self { eax: first as u32, ebx: (first >> 32) as u32, ecx: second as u32, edx: (second >> 32) as u32 }
    }

    const fn pair(self) -> (u64, u64) {
        (self.eax as u64 | (self.ebx as u64) << 32, self.ecx as u64 | (self.edx as u64) << 32)
    }
}

/// Declares an enum whose members have a number on the wire and a name on the command line.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$member_doc:meta])* $member:ident = $number:literal $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$member_doc])* $member = $number,)+ }

        impl $name {
            /// Every member.
            pub const ALL: &[Self] = &[$(Self::$member,)+];

            /// The name used in module parameters, options and reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$member => $text,)+ }
            }

            /// The member with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$member),)+ _ => None }
            }

            /// The member with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Self::$member),)+ _ => None }
            }
        }
    };
}

named! {
    /// Which numbering the course leaves follow; it changed from year to year.
    Layout {
        /// F: total exits, E: total cycles, D: exits of a reason, C: cycles of a reason.
        Classic = 1 "classic",
        /// C: total exits, D: total cycles, E: exits of a reason, F: cycles of a reason.
        Reordered = 2 "reordered",
        /// F: total exits and total cycles, E: exits of a reason; C and D are not exitscope's.
        Combined = 3 "combined",
    }
}

named! {
    /// Whose exits a guest is told.
    Expose {
        /// None: the leaves answer as on a kernel without the module.
        Off = 0 "off",
        /// Those of its own VM.
        Vm = 1 "vm",
        /// Those of every VM on the host.
        Host = 2 "host",
    }
}

/// One thing that a guest can ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Is exitscope there, and how is it set?
    Discovery,
    /// Own leaf: exits and cycles of all reasons.
    Total,
    /// Own leaf: exits and cycles of a reason.
    Reason(u32),
    /// Own leaf: fewest and most cycles of a reason.
    Extremes(u32),
    /// Own leaf: exits and cycles of all codes that no manual defines.
    Undefined,
    /// Own leaf: exits and cycles of all reasons of the vCPU that asks.
    VcpuTotal,
    /// Own leaf: exits and cycles of a reason of the vCPU that asks.
    VcpuReason(u32),
    /// Own leaf: cycles of a reason of the vCPU that asks, in the kernel and in user space.
    VcpuKernelUser(u32),
    /// Own leaf: cycles of a reason of the vCPU that asks, polled and halted.
    VcpuPolledHalted(u32),
    /// Own leaf: cycles of a reason, in the kernel and in user space.
    KernelUser(u32),
    /// Own leaf: cycles of a reason, polled and halted.
    PolledHalted(u32),
    /// Own leaf: exits and cycles of all codes that no manual defines, of the vCPU that asks.
    VcpuUndefined,
    /// Course leaf: exits of all reasons, in EAX.
    CourseExits,
    /// Course leaf: cycles of all reasons, in EBX:ECX.
    CourseCycles,
    /// Course leaf: exits of all reasons in EAX and their cycles in EBX:ECX.
    CourseBoth,
    /// Course leaf: exits of a reason, in EAX.
    CourseReasonExits(u32),
    /// Course leaf: cycles of a reason, in EBX:ECX.
    CourseReasonCycles(u32),
}

/// Whose counters answer a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of the vCPU that asks.
    Vcpu,
    /// Those that the policy tells: of all vCPUs of the VM, or of the host.
    Policy,
}

/// The reasons whose counters answer a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reasons {
    /// None: the answer does not depend on counters.
    None,
    /// All: of them exits and cycles only.
    All,
    /// The one with this code.
    One(u32),
    /// The codes that no manual defines, and exits that found no room: of them exits and cycles only.
    Undefined,
}

/// The figures of one reason, or of several together. Cycles are ticks of the host's time stamp counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Exits.
    pub exits: u64,
    /// Cycles from exit to next entry, all exits together.
    pub cycles: u64,
    /// Fewest cycles of one exit; 0 when none was timed.
    pub min: u64,
    /// Most cycles of one exit.
    pub max: u64,
    /// Of the cycles, those in the host's kernel.
    pub kernel: u64,
    /// Of the cycles, those in the VMM's user space.
    pub user: u64,
    /// Of the cycles, those of halt polling.
    pub polled: u64,
    /// Of the cycles, those that the vCPU's thread slept, as its vCPU was halted or blocked.
    pub halted: u64,
}

/// What the discovery leaf tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Version of the own leaves.
    pub version: u8,
    /// Numbering of the course leaves.
    pub layout: Layout,
    /// Instruction set whose reasons are counted.
    pub isa: Isa,
    /// Whose exits are told.
    pub expose: Expose,
}

impl Discovery {
    /// The answer to [`Question::Discovery`]: EAX holds the version in bits 7:0, the layout in 11:8, the ISA in
    /// 15:12, the policy in 19:16 and the low byte of the last own leaf in 31:24.
    pub const fn encode(self) -> Registers {
        let eax = self.version as u32
            | (self.layout as u32) << 8
            | (self.isa as u32) << 12
            | (self.expose as u32) << 16
            | (last_own(self.version) & 0xFF) << 24;
        Registers { eax, ebx: SIGNATURE[0], ecx: SIGNATURE[1], edx: SIGNATURE[2] }
    }

    /// Reads an answer; `None` when it is not exitscope's, or of a version that this code does not know. It knows the
    /// earlier ones, too: their leaves are the first of ours.
    pub fn decode(answer: Registers) -> Option<Self> {
        let version = answer.eax as u8;
        if [answer.ebx, answer.ecx, answer.edx] != SIGNATURE || !(1..=VERSION).contains(&version) {
            return None;
        }
        Some(Self {
            version,
            layout: Layout::from_number((answer.eax >> 8 & 0xF) as u8)?,
            isa: Isa::from_number((answer.eax >> 12 & 0xF) as u8)?,
            expose: Expose::from_number((answer.eax >> 16 & 0xF) as u8)?,
        })
    }
}

/// The bits of a leaf in which all of exitscope's are alike.
pub const COMMON_BITS: u32 = 0xFFFF_FFF0;

/// Whether a leaf can be exitscope's; a first, cheap sieve.
#[inline]
pub const fn may_be_ours(leaf: u32) -> bool {
    leaf & COMMON_BITS == DISCOVERY
}

impl Question {
    /// What a guest asks with this leaf (EAX) and sub-leaf (ECX); `None` when the leaf is not exitscope's.
    #[inline]
    pub const fn parse(layout: Layout, leaf: u32, sub_leaf: u32) -> Option<Self> {
        let course = match layout {
            Layout::Classic => match leaf {
                0x4FFF_FFFF => Some(Self::CourseExits),
                0x4FFF_FFFE => Some(Self::CourseCycles),
                0x4FFF_FFFD => Some(Self::CourseReasonExits(sub_leaf)),
                0x4FFF_FFFC => Some(Self::CourseReasonCycles(sub_leaf)),
                _ => None,
            },
            Layout::Reordered => match leaf {
                0x4FFF_FFFC => Some(Self::CourseExits),
                0x4FFF_FFFD => Some(Self::CourseCycles),
                0x4FFF_FFFE => Some(Self::CourseReasonExits(sub_leaf)),
                0x4FFF_FFFF => Some(Self::CourseReasonCycles(sub_leaf)),
                _ => None,
            },
            Layout::Combined => match leaf {
                0x4FFF_FFFF => Some(Self::CourseBoth),
                0x4FFF_FFFE => Some(Self::CourseReasonExits(sub_leaf)),
                _ => None,
            },
        };
        if course.is_some() {
            return course;
        }
        match leaf {
            DISCOVERY => Some(Self::Discovery),
            0x4FFF_FFF1 => Some(Self::Total),
            0x4FFF_FFF2 => Some(Self::Reason(sub_leaf)),
            0x4FFF_FFF3 => Some(Self::Extremes(sub_leaf)),
            0x4FFF_FFF4 => Some(Self::Undefined),
            0x4FFF_FFF5 => Some(Self::VcpuTotal),
            0x4FFF_FFF6 => Some(Self::VcpuReason(sub_leaf)),
            0x4FFF_FFF7 => Some(Self::VcpuKernelUser(sub_leaf)),
            0x4FFF_FFF8 => Some(Self::VcpuPolledHalted(sub_leaf)),
            0x4FFF_FFF9 => Some(Self::KernelUser(sub_leaf)),
            0x4FFF_FFFA => Some(Self::PolledHalted(sub_leaf)),
            LAST_OWN => Some(Self::VcpuUndefined),
            _ => None,
        }
    }

    /// The leaf and sub-leaf that ask this; `None` when the layout has no such leaf.
    pub const fn address(self, layout: Layout) -> Option<(u32, u32)> {
        use Layout::{Classic, Combined, Reordered};
        Some(match (self, layout) {
            (Self::Discovery, _) => (DISCOVERY, 0),
            (Self::Total, _) => (0x4FFF_FFF1, 0),
            (Self::Reason(code), _) => (0x4FFF_FFF2, code),
            (Self::Extremes(code), _) => (0x4FFF_FFF3, code),
            (Self::Undefined, _) => (0x4FFF_FFF4, 0),
            (Self::VcpuTotal, _) => (0x4FFF_FFF5, 0),
            (Self::VcpuReason(code), _) => (0x4FFF_FFF6, code),
            (Self::VcpuKernelUser(code), _) => (0x4FFF_FFF7, code),
            (Self::VcpuPolledHalted(code), _) => (0x4FFF_FFF8, code),
            (Self::KernelUser(code), _) => (0x4FFF_FFF9, code),
            (Self::PolledHalted(code), _) => (0x4FFF_FFFA, code),
            (Self::VcpuUndefined, _) => (LAST_OWN, 0),
            (Self::CourseExits, Classic) | (Self::CourseBoth, Combined) => (0x4FFF_FFFF, 0),
            (Self::CourseExits, Reordered) => (0x4FFF_FFFC, 0),
            (Self::CourseCycles, Classic) => (0x4FFF_FFFE, 0),
            (Self::CourseCycles, Reordered) => (0x4FFF_FFFD, 0),
            (Self::CourseReasonExits(code), Classic) => (0x4FFF_FFFD, code),
            (Self::CourseReasonExits(code), Reordered | Combined) => (0x4FFF_FFFE, code),
            (Self::CourseReasonCycles(code), Classic) => (0x4FFF_FFFC, code),
            (Self::CourseReasonCycles(code), Reordered) => (0x4FFF_FFFF, code),
            (Self::CourseExits | Self::CourseCycles | Self::CourseReasonCycles(_), Combined)
            | (Self::CourseBoth, Classic | Reordered) => return None,
        })
    }

    /// The version of the own leaves from which on this can be asked.
    pub const fn since(self) -> u8 {
        match self {
            Self::VcpuTotal
            | Self::VcpuReason(_)
            | Self::VcpuKernelUser(_)
            | Self::VcpuPolledHalted(_)
            | Self::KernelUser(_)
            | Self::PolledHalted(_)
            | Self::VcpuUndefined => 2,
            _ => 1,
        }
    }

    /// Whose counters the answer needs.
    pub const fn scope(self) -> Scope {
        match self {
            Self::VcpuTotal
            | Self::VcpuReason(_)
            | Self::VcpuKernelUser(_)
            | Self::VcpuPolledHalted(_)
            | Self::VcpuUndefined => Scope::Vcpu,
            _ => Scope::Policy,
        }
    }

    /// The reasons whose counters the answer needs.
    pub const fn reasons(self) -> Reasons {
        match self {
            Self::Discovery => Reasons::None,
            Self::Total | Self::VcpuTotal | Self::CourseExits | Self::CourseCycles | Self::CourseBoth => {
                Reasons::All
            }
            Self::Undefined | Self::VcpuUndefined => Reasons::Undefined,
            Self::Reason(code)
            | Self::Extremes(code)
            | Self::VcpuReason(code)
            | Self::VcpuKernelUser(code)
            | Self::VcpuPolledHalted(code)
            | Self::KernelUser(code)
            | Self::PolledHalted(code)
            | Self::CourseReasonExits(code)
            | Self::CourseReasonCycles(code) => Reasons::One(code),
        }
    }

    /// The answer, given the figures of [`Question::reasons`] in [`Question::scope`]; the discovery leaf has its own,
    /// [`Discovery::encode`].
    pub const fn encode(self, figures: Figures) -> Registers {
        let Figures { exits, cycles, min, max, kernel, user, polled, halted } = figures;
        let (high, low) = ((cycles >> 32) as u32, cycles as u32);
        match self {
            Self::Discovery
            | Self::Total
            | Self::Reason(_)
            | Self::Undefined
            | Self::VcpuTotal
            | Self::VcpuReason(_)
            | Self::VcpuUndefined => Registers::two(exits, cycles),
            Self::Extremes(_) => Registers::two(min, max),
            Self::KernelUser(_) | Self::VcpuKernelUser(_) => Registers::two(kernel, user),
            Self::PolledHalted(_) | Self::VcpuPolledHalted(_) => Registers::two(polled, halted),
            Self::CourseExits | Self::CourseReasonExits(_) => {
                Registers { eax: exits as u32, ebx: 0, ecx: 0, edx: 0 }
            }
            Self::CourseCycles | Self::CourseReasonCycles(_) => {
                Registers { eax: 0, ebx: high, ecx: low, edx: 0 }
            }
            Self::CourseBoth => Registers { eax: exits as u32, ebx: high, ecx: low, edx: 0 },
        }
    }

    /// The answer for a reason that the manual does not define.
    pub const fn encode_undefined(self) -> Registers {
        match self {
            Self::CourseReasonExits(_) | Self::CourseReasonCycles(_) => {
                Registers { eax: 0, ebx: 0, ecx: 0, edx: u32::MAX }
            }
            _ => Registers { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX },
        }
    }

    /// Reads an answer: the figures that this question asks for, the others 0; `None` for an undefined reason.
    pub fn decode(self, answer: Registers) -> Option<Figures> {
        if matches!(self.reasons(), Reasons::One(_)) && answer == self.encode_undefined() {
            return None;
        }
        let (first, second) = answer.pair();
        let course_cycles = u64::from(answer.ebx) << 32 | u64::from(answer.ecx);
        let none = Figures::default();
        Some(match self {
            Self::Discovery => none,
            Self::Total
            | Self::Reason(_)
            | Self::Undefined
            | Self::VcpuTotal
            | Self::VcpuReason(_)
            | Self::VcpuUndefined => Figures { exits: first, cycles: second, ..none },
            Self::Extremes(_) => Figures { min: first, max: second, ..none },
            Self::KernelUser(_) | Self::VcpuKernelUser(_) => Figures { kernel: first, user: second, ..none },
            Self::PolledHalted(_) | Self::VcpuPolledHalted(_) => {
                Figures { polled: first, halted: second, ..none }
            }
            Self::CourseExits | Self::CourseReasonExits(_) => Figures { exits: answer.eax.into(), ..none },
            Self::CourseCycles | Self::CourseReasonCycles(_) => Figures { cycles: course_cycles, ..none },
            Self::CourseBoth => Figures { exits: answer.eax.into(), cycles: course_cycles, ..none },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURES: Figures = Figures {
        exits: 0x1_2345_6789,
        cycles: 0xABCD_0123_4567,
        min: 7,
        max: 1 << 40,
        kernel: 0xABCD_0000_0000,
        user: 0x0123_0000,
        polled: 0x4500,
        halted: 0x67,
    };

    fn questions() -> [Question; 17] {
        use Question::*;
        [
            Discovery,
            Total,
            Reason(48),
            Extremes(48),
            Undefined,
            VcpuTotal,
            VcpuReason(48),
            VcpuKernelUser(48),
            VcpuPolledHalted(48),
            KernelUser(48),
            PolledHalted(48),
            VcpuUndefined,
            CourseExits,
            CourseCycles,
            CourseBoth,
            CourseReasonExits(48),
            CourseReasonCycles(48),
        ]
    }

    #[test]
    fn every_question_is_found_at_its_address() {
        for &layout in Layout::ALL {
            for question in questions() {
                if let Some((leaf, sub_leaf)) = question.address(layout) {
                    assert!(may_be_ours(leaf));
                    assert_eq!(Question::parse(layout, leaf, sub_leaf), Some(question), "{layout:?}");
                }
            }
        }
    }

    #[test]
    fn every_leaf_asks_a_question_with_that_address_or_none() {
        for &layout in Layout::ALL {
            for leaf in DISCOVERY..=0x4FFF_FFFF {
                if let Some(question) = Question::parse(layout, leaf, 0) {
                    assert_eq!(question.address(layout), Some((leaf, 0)), "{layout:?} {leaf:#x}");
                }
            }
            assert_eq!(Question::parse(layout, 0x4000_0000, 0), None);
        }
        assert_eq!(Question::parse(Layout::Combined, 0x4FFF_FFFD, 0), None);
    }

    /// Who knows only an earlier version finds its leaves where they were.
    #[test]
    fn every_version_has_the_leaves_up_to_its_last() {
        for &layout in Layout::ALL {
            for version in 1..=VERSION {
                for leaf in DISCOVERY..=LAST_OWN {
                    let question = Question::parse(layout, leaf, 0).unwrap();
                    assert_eq!(question.since() <= version, leaf <= last_own(version), "{question:?}");
                }
            }
        }
    }

    #[test]
    fn the_leaves_of_a_vcpu_say_the_same_as_those_of_its_vm() {
        use Question::*;
        for (vm, vcpu) in [
            (Total, VcpuTotal),
            (Reason(48), VcpuReason(48)),
            (KernelUser(48), VcpuKernelUser(48)),
            (PolledHalted(48), VcpuPolledHalted(48)),
            (Undefined, VcpuUndefined),
        ] {
            assert_eq!((vm.scope(), vcpu.scope()), (Scope::Policy, Scope::Vcpu));
            assert_eq!(vm.reasons(), vcpu.reasons());
            assert_eq!(vm.encode(FIGURES), vcpu.encode(FIGURES));
            assert_eq!(vm.decode(vm.encode(FIGURES)), vcpu.decode(vm.encode(FIGURES)));
        }
    }

    /// Who answers need not add up anything else for them.
    #[test]
    fn questions_for_several_reasons_want_exits_and_cycles_only() {
        let counts = Figures { exits: FIGURES.exits, cycles: FIGURES.cycles, ..Figures::default() };
        for question in questions() {
            if matches!(question.reasons(), Reasons::All | Reasons::Undefined) {
                assert_eq!(question.encode(counts), question.encode(FIGURES), "{question:?}");
            }
        }
    }

    /// The rows of the course's assignments, register by register.
    #[test]
    fn course_leaves_are_laid_out_as_assigned() {
        let ask = |layout, leaf| {
            let answer = Question::parse(layout, leaf, 10).map(|question| question.encode(FIGURES));
            answer.map(|r| [r.eax, r.ebx, r.ecx, r.edx])
        };
        let exits = Some([0x2345_6789, 0, 0, 0]);
        let cycles = Some([0, 0xABCD, 0x0123_4567, 0]);
        let both = Some([0x2345_6789, 0xABCD, 0x0123_4567, 0]);
        let leaves = [0x4FFF_FFFF, 0x4FFF_FFFE, 0x4FFF_FFFD, 0x4FFF_FFFC];
        assert_eq!(leaves.map(|leaf| ask(Layout::Classic, leaf)), [exits, cycles, exits, cycles]);
        assert_eq!(leaves.map(|leaf| ask(Layout::Reordered, leaf)), [cycles, exits, cycles, exits]);
        assert_eq!(leaves.map(|leaf| ask(Layout::Combined, leaf)), [both, exits, None, None]);
    }

    #[test]
    fn answers_decode_to_what_they_encode() {
        for question in questions() {
            let answer = question.encode(FIGURES);
            let figures = question.decode(answer).unwrap();
            assert_eq!(
                question.encode(figures),
                if question == Question::Discovery { Registers::default() } else { answer }
            );
        }
        assert_eq!(Question::Total.decode(Question::Total.encode(FIGURES)).unwrap().exits, FIGURES.exits);
    }

    #[test]
    fn an_undefined_reason_is_no_figure() {
        for question in questions() {
            let undefined = question.decode(question.encode_undefined());
            assert_eq!(undefined.is_none(), matches!(question.reasons(), Reasons::One(_)), "{question:?}");
        }
    }

    #[test]
    fn discovery_round_trips_and_knows_its_own() {
        for &layout in Layout::ALL {
            for &expose in Expose::ALL {
                for isa in Isa::ALL {
                    for version in 1..=VERSION {
                        let discovery = Discovery { version, layout, isa, expose };
                        assert_eq!(Discovery::decode(discovery.encode()), Some(discovery));
                    }
                    for version in [0, VERSION + 1, u8::MAX] {
                        let discovery = Discovery { version, layout, isa, expose };
                        assert_eq!(Discovery::decode(discovery.encode()), None);
                    }
                }
            }
        }
        let strangers = Registers { eax: 0x0000_0001, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69 };
        assert_eq!(Discovery::decode(strangers), None);
        assert_eq!(Discovery::decode(Registers::default()), None);
    }
}
