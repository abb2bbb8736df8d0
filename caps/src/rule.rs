//! How the bits of one machine must stand to those of another, and what several machines have in common of them.

use super::tables::{Bits, Kind, Register};
use super::{Address, Gpr};

/// How bits there (`on`) must stand to those required.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Every bit that is set must be set there.
    Superset,
    /// No bit may be set there that is not.
    Subset,
    /// The number must be at least as large.
    AtLeast,
    /// The number must be at most as large.
    AtMost,
    /// It must be the same, unless it is 0, which says that there is nothing of the kind.
    Same,
    /// It does not matter: an identity, firmware's choice, or a limit that a guest is told elsewhere.
    Free,
}

impl Rule {
    /// Whether `on` does for those who require `require`.
    pub const fn holds(self, require: u64, on: u64) -> bool {
        match self {
            Self::Superset => require & !on == 0,
            Self::Subset => on & !require == 0,
            Self::AtLeast => on >= require,
            Self::AtMost => on <= require,
            Self::Same => require == 0 || on == require,
            Self::Free => true,
        }
    }

    /// The most that may be required of two machines at once.
    pub const fn meet(self, a: u64, b: u64) -> u64 {
        match self {
            Self::Superset => a & b,
            Self::Subset => a | b,
            Self::AtLeast if b < a => b,
            Self::AtMost if b > a => b,
            Self::Same if a != b => 0,
            Self::AtLeast | Self::AtMost | Self::Same | Self::Free => a,
        }
    }

    /// The rule for the bits from `low` up.
    pub fn of(register: &Register, low: u8) -> Self {
        let exception =
            EXCEPTIONS.iter().find(|(address, bit, _)| (*address, *bit) == (register.address, low));
        exception.map_or_else(
            || match register.kind {
                Kind::Fixed0 => Self::Subset,
                Kind::Fixed1 | Kind::Allowed1 | Kind::Controls { .. } | Kind::Presence => Self::Superset,
                Kind::Plain => Self::AtLeast,
            },
            |(.., rule)| *rule,
        )
    }

    /// What two values of a register that is none of controls have in common.
    pub fn meet_all(register: &Register, a: u64, b: u64) -> u64 {
        let part = |bits: Bits| Self::of(register, bits.low).meet(bits.of(a), bits.of(b)) << bits.low;
        register.parts().fold(0, |value, (bits, _)| value | part(bits))
    }
}

const BASIC: Address = Address::Msr(0x480);

/// Fields that are neither a flag of something useful nor a number of which more is better.
pub const EXCEPTIONS: &[(Address, u8, Rule)] = &[
    (BASIC, 0, Rule::Free),
    // Software allocates the 4 KiB that every size fits into.
    (BASIC, 32, Rule::Free),
    (BASIC, 48, Rule::AtMost),
    (BASIC, 50, Rule::Same),
    (Address::Msr(0x485), 0, Rule::Same),
    (Address::Msr(0x485), 32, Rule::Free),
    // How microcode comes is no guest's business.
    (Address::Cpuid(0x8000_000A, Gpr::Edx), 11, Rule::Free),
    (Address::Cpuid(0x8000_001F, Gpr::Eax), 11, Rule::Free),
    (Address::Cpuid(0x8000_001F, Gpr::Ebx), 0, Rule::Same),
    (Address::Cpuid(0x8000_001F, Gpr::Ebx), 6, Rule::Free),
    (Address::Cpuid(0x8000_001F, Gpr::Edx), 0, Rule::Free),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::find;

    #[test]
    fn exceptions_speak_of_fields_that_exist() {
        for (address, low, _) in EXCEPTIONS {
            let register = find(*address).unwrap();
            assert!(register.fields.iter().any(|field| field.bits.low == *low), "{} {low}", register.name);
        }
    }

    #[test]
    fn what_is_common_is_there_on_both() {
        for rule in [Rule::Superset, Rule::Subset, Rule::AtLeast, Rule::AtMost, Rule::Same, Rule::Free] {
            for (a, b) in (0..16).flat_map(|a| (0..16).map(move |b| (a, b))) {
                let common = rule.meet(a, b);
                assert!(rule.holds(common, a) && rule.holds(common, b), "{rule:?} {a} {b}");
            }
        }
    }
}
