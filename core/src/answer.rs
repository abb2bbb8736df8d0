//! What a guest's CPUID is answered.

use exitscope_abi::leaf::{Discovery, Expose, Layout, Question, Reasons, Registers, Scope, VERSION};
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

/// The accounts that a guest may be told of.
pub trait Accounts {
    /// The sum of those of these reasons, of whom the scope says.
    fn sum(&self, scope: Scope, reasons: Reasons) -> Sum;
}

/// Answers a CPUID of this leaf (EAX) and sub-leaf (ECX); `None` leaves the answer to KVM.
pub fn answer(setting: Setting, leaf: u32, sub_leaf: u32, accounts: &impl Accounts) -> Option<Registers> {
    let Setting { expose, layout, isa } = setting;
    if expose == Expose::Off {
        return None;
    }
    let question = Question::parse(layout, leaf, sub_leaf)?;
    Some(match question.reasons() {
        Reasons::None => Discovery { version: VERSION, layout, isa, expose }.encode(),
        Reasons::One(code) if isa.dense_nospec(code).is_none() => question.encode_undefined(),
        reasons => question.encode(accounts.sum(question.scope(), reasons).figures()),
    })
}

#[cfg(test)]
mod tests {
    use exitscope_abi::leaf::Figures;
    use exitscope_abi::region::Counters;

    use super::*;

    struct Seen(Counters);

    impl Accounts for Seen {
        fn sum(&self, scope: Scope, reasons: Reasons) -> Sum {
            let mut sum = Sum::default();
            let vcpus = if scope == Scope::Vcpu { 1 } else { 2 };
            if matches!(reasons, Reasons::All | Reasons::One(10)) {
                (0..vcpus).for_each(|_| sum.add(&self.0));
            }
            sum
        }
    }

    fn ask(expose: Expose, leaf: u32, sub_leaf: u32) -> Option<[u32; 4]> {
        let seen = Seen(Counters::default());
        for (counter, number) in [
            (&seen.0.exits, 3),
            (&seen.0.cycles, 100),
            (&seen.0.user, 20),
            (&seen.0.polled, 7),
            (&seen.0.halted, 1),
        ] {
            counter.store(number, core::sync::atomic::Ordering::Relaxed);
        }
        let setting = Setting { expose, layout: Layout::Classic, isa: Isa::Vmx };
        answer(setting, leaf, sub_leaf, &seen).map(|r| [r.eax, r.ebx, r.ecx, r.edx])
    }

    #[test]
    fn defined_reasons_have_figures_and_undefined_ones_a_mark() {
        assert_eq!(ask(Expose::Vm, 0x4FFF_FFFF, 0), Some([6, 0, 0, 0]));
        assert_eq!(ask(Expose::Vm, 0x4FFF_FFFD, 10), Some([6, 0, 0, 0]));
        assert_eq!(ask(Expose::Vm, 0x4FFF_FFFD, 11), Some([0; 4]));
        for undefined in [35, 38, 42, u32::MAX] {
            assert_eq!(ask(Expose::Vm, 0x4FFF_FFFD, undefined), Some([0, 0, 0, u32::MAX]));
            assert_eq!(ask(Expose::Vm, 0x4FFF_FFFC, undefined), Some([0, 0, 0, u32::MAX]));
            for leaf in [2, 3, 6, 7, 8, 9, 0xA] {
                assert_eq!(ask(Expose::Vm, 0x4FFF_FFF0 | leaf, undefined), Some([u32::MAX; 4]), "{leaf}");
            }
        }
    }

    #[test]
    fn a_vcpu_is_told_its_own_whatever_the_policy_and_parts_add_up() {
        for expose in [Expose::Vm, Expose::Host] {
            let own = [5, 6, 7, 8, 0xB].map(|leaf| ask(expose, 0x4FFF_FFF0 | leaf, 10).unwrap());
            let all = [1, 2, 9, 0xA, 4].map(|leaf| ask(expose, 0x4FFF_FFF0 | leaf, 10).unwrap());
            assert_eq!(own, [[3, 0, 100, 0], [3, 0, 100, 0], [72, 0, 20, 0], [7, 0, 1, 0], [0; 4]]);
            assert_eq!(all, own.map(|registers| registers.map(|register| 2 * register)));
        }
    }

    #[test]
    fn other_leaves_and_a_policy_of_off_are_left_to_kvm() {
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
