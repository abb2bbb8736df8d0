//! What a guest's CPUID is answered.

use exitscope_abi::leaf::{Discovery, Expose, Layout, Question, Registers, Scope, VERSION};
use exitscope_abi::reason::Isa;

use crate::Sum;

/// How the leaves are set for the vCPU that asks.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Whose exits are told.
    pub expose: Expose,
    /// Numbering of the course leaves.
    pub layout: Layout,
    /// Instruction set that the vCPU runs on.
    pub isa: Isa,
}

/// Adds up counters for a [`Scope`], for those that the policy lets the guest see.
pub trait Figured {
    /// The sum.
    fn sum(&self, scope: Scope) -> Sum;
}

/// Answers a CPUID of this leaf (EAX) and sub-leaf (ECX); `None` leaves the answer to KVM.
pub fn answer(setting: Setting, leaf: u32, sub_leaf: u32, counted: &impl Figured) -> Option<Registers> {
    let Setting { expose, layout, isa } = setting;
    if expose == Expose::Off {
        return None;
    }
    let question = Question::parse(layout, leaf, sub_leaf)?;
    Some(match question.scope() {
        Scope::Nothing => Discovery { version: VERSION, layout, isa, expose }.encode(),
        Scope::Reason(code) if isa.dense(code).is_none() => question.encode_undefined(),
        scope => question.encode(counted.sum(scope).figures()),
    })
}

#[cfg(test)]
mod tests {
    use exitscope_abi::leaf::Figures;
    use exitscope_abi::region::Counters;

    use super::*;

    struct Seen(Counters);

    impl Figured for Seen {
        fn sum(&self, scope: Scope) -> Sum {
            let mut sum = Sum::default();
            if matches!(scope, Scope::All | Scope::Reason(10)) {
                sum.add(&self.0);
            }
            sum
        }
    }

    fn ask(expose: Expose, leaf: u32, sub_leaf: u32) -> Option<[u32; 4]> {
        let seen = Seen(Counters::default());
        seen.0.exits.store(3, core::sync::atomic::Ordering::Relaxed);
        let setting = Setting { expose, layout: Layout::Classic, isa: Isa::Vmx };
        answer(setting, leaf, sub_leaf, &seen).map(|r| [r.eax, r.ebx, r.ecx, r.edx])
    }

    #[test]
    fn defined_reasons_have_figures_and_undefined_ones_a_mark() {
        assert_eq!(ask(Expose::Vm, 0x4FFF_FFFF, 0), Some([3, 0, 0, 0]));
        assert_eq!(ask(Expose::Vm, 0x4FFF_FFFD, 10), Some([3, 0, 0, 0]));
        assert_eq!(ask(Expose::Vm, 0x4FFF_FFFD, 11), Some([0; 4]));
        for undefined in [35, 38, 42, u32::MAX] {
            assert_eq!(ask(Expose::Vm, 0x4FFF_FFFD, undefined), Some([0, 0, 0, u32::MAX]));
            assert_eq!(ask(Expose::Vm, 0x4FFF_FFFC, undefined), Some([0, 0, 0, u32::MAX]));
        }
    }

    #[test]
    fn other_leaves_and_a_policy_of_off_are_left_to_kvm() {
        assert_eq!(ask(Expose::Vm, 0x4FFF_FFF9, 0), None);
        assert_eq!(ask(Expose::Vm, 1, 0), None);
        for leaf in 0x4FFF_FFF0..=0x4FFF_FFFF {
            assert_eq!(ask(Expose::Off, leaf, 0), None);
        }
    }

    #[test]
    fn nothing_timed_is_told_as_zero() {
        assert_eq!(Sum::default().figures(), Figures::default());
    }
}
