//! A value of a group of controls (or of CR0 or CR4), held against what a CPU allows.

use serde::Serialize;

use super::check::{Answer, settings};
use super::decode::RESERVED;
use super::diff::name;
use super::tables::{Bits, Controls, Field, Kind, Register, find};
use super::{Address, Cpu};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-caps-value/1";

/// What a value sets, and whether that is allowed: one JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The register that tells which values are allowed.
    pub address: Address,
    /// Its name.
    pub register: &'static str,
    /// The value, in hexadecimal.
    pub value: String,
    /// Whether the CPU accepts it; `None` if no CPU was asked.
    pub answer: Option<Answer>,
    /// Every bit that has a name, or is set, or must be.
    pub bits: Vec<Bit>,
}

/// One bit of the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bit {
    /// Its number.
    pub bits: Bits,
    /// The manual's name.
    pub name: String,
    /// What it is.
    pub value: u64,
    /// What it does when it is 1.
    pub meaning: &'static str,
    /// What the CPU allows, in words; `None` if no CPU was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<&'static str>,
    /// Whether the CPU accepts it so; `None` if no CPU was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// QEMU's and libvirt's names for it, with spaces between.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub qemu: &'static str,
    /// Linux' name for it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub linux: &'static str,
}

/// Why a value cannot be looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The register does not tell which values something may have.
    #[error(
        "{0} says nothing of a value that software sets: name a register of controls (0x481 to 0x484, 0x48b, 0x48d to \
         0x493) or of CR0 or CR4 (0x486 to 0x489); its own value is decoded with `exitscope caps --from`"
    )]
    NoControls(Address),
    /// The value has more bits than what it is for.
    #[error(
        "{value:#x} has more than 32 bits, so it is no value of these controls: if it is what {address} reads as, decode \
         it with `exitscope caps --from` or compare it with `exitscope caps check --require`"
    )]
    Wide {
        /// The register.
        address: Address,
        /// The value.
        value: u64,
    },
}

/// Which settings are known to be allowed, and which are unknown.
#[derive(Clone, Copy, Default)]
struct Known {
    zero: u64,
    one: u64,
    unsure_zero: u64,
    unsure_one: u64,
}

const NOTHING: Known = Known { zero: 0, one: 0, unsure_zero: u64::MAX, unsure_one: u64::MAX };

/// Decodes `value`, which software is to put where the register at `address` allows it; on `cpu`, if there is one.
pub fn setting(address: Address, value: u64, cpu: Option<&Cpu>) -> Result<Setting, Error> {
    let register = find(address).ok_or(Error::NoControls(address))?;
    if register.controls().is_none() && !matches!(register.kind, Kind::Fixed0 | Kind::Fixed1 | Kind::Allowed1)
    {
        return Err(Error::NoControls(address));
    }
    if matches!(register.kind, Kind::Controls { .. }) && value >> 32 != 0 {
        return Err(Error::Wide { address, value });
    }
    let known = cpu.map(|cpu| of(register, cpu));
    let bits: Vec<Bit> =
        register.parts().flat_map(single).filter_map(|part| bit(register, part, value, known)).collect();
    let answer = cpu.map(|_| bits.iter().filter_map(|bit| bit.answer).max().unwrap_or(Answer::Yes));
    let width = if let Kind::Controls { .. } = register.kind { 10 } else { 18 };
    let value = format!("{value:#0width$x}");
    Ok(Setting { schema: SCHEMA, address, register: register.name, value, answer, bits })
}

/// Each bit of a field of several.
fn single(
    (bits, field): (Bits, Option<&'static Field>),
) -> impl Iterator<Item = (Bits, Option<&'static Field>)> {
    (bits.low..=bits.high).map(move |bit| (Bits { high: bit, low: bit }, field))
}

fn bit(
    register: &Register,
    part: (Bits, Option<&'static Field>),
    value: u64,
    known: Option<Known>,
) -> Option<Bit> {
    let (bits, field) = part;
    let set = bits.of(value);
    let has = |word: u64| bits.of(word) != 0;
    let answer = known.map(|known| {
        let (sure, unsure) =
            if set == 1 { (known.one, known.unsure_one) } else { (known.zero, known.unsure_zero) };
        match (has(sure), has(unsure)) {
            (true, _) => Answer::Yes,
            (false, true) => Answer::Unknown,
            (false, false) => Answer::No,
        }
    });
    let allowed = known.map(|known| match (has(known.zero), has(known.one)) {
        _ if has(known.unsure_zero) && has(known.unsure_one) => "unknown",
        _ if has(known.unsure_zero) => "1, and unknown if 0",
        (true, true) => "0 or 1",
        (true, false) => "0 only",
        (false, true) => "1 only",
        (false, false) => "neither 0 nor 1",
    });
    let reserved = match register.kind {
        Kind::Controls { default1 } if field.is_none() => bits.of(default1.into()) == 1,
        _ => false,
    };
    let broken = answer.is_some_and(|answer| answer == Answer::No);
    let (meaning, qemu, linux) = field.map_or(("", "", ""), |field| (field.meaning, field.qemu, field.linux));
    let shown = field.is_some() || set == 1 || broken;
    let name = if reserved { RESERVED.into() } else { name(bits, field) };
    shown.then_some(Bit { bits, name, value: set, meaning, allowed, answer, qemu, linux })
}

fn of(register: &Register, cpu: &Cpu) -> Known {
    match (register.controls(), register.kind) {
        (Some(controls), _) => of_controls(controls, cpu),
        (_, Kind::Allowed1) => match cpu.known(register.address) {
            super::Known::Value(one) => Known { zero: u64::MAX, one, ..Known::default() },
            super::Known::Absent => Known { zero: u64::MAX, ..Known::default() },
            super::Known::Nothing => NOTHING,
        },
        _ => of_control_register(register.address, cpu),
    }
}

fn of_controls(controls: Controls, cpu: &Cpu) -> Known {
    let Some(settings) = settings(cpu, controls) else { return NOTHING };
    let allowed = settings.allowed;
    Known { zero: allowed.zero, one: allowed.one, unsure_zero: settings.unsure, unsure_one: 0 }
}

fn of_control_register(address: Address, cpu: &Cpu) -> Known {
    let (fixed0, fixed1) = match address {
        Address::Msr(0x486 | 0x487) => (Address::Msr(0x486), Address::Msr(0x487)),
        _ => (Address::Msr(0x488), Address::Msr(0x489)),
    };
    let word = |address| cpu.value(address);
    Known {
        zero: word(fixed0).map_or(0, |fixed| !fixed),
        unsure_zero: word(fixed0).map_or(u64::MAX, |_| 0),
        one: word(fixed1).unwrap_or(0),
        unsure_one: word(fixed1).map_or(u64::MAX, |_| 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(registers: &[(u32, u64)]) -> Cpu {
        let registers = registers.iter().map(|&(number, value)| (Address::Msr(number), Some(value)));
        Cpu { id: 0, registers: registers.collect() }
    }

    /// The answer, and what is refused or unknown.
    fn told(number: u32, value: u64, cpu: &Cpu) -> (Answer, Vec<(u8, Answer)>) {
        let setting = setting(Address::Msr(number), value, Some(cpu)).unwrap();
        let bits = setting.bits.iter().filter(|bit| bit.answer != Some(Answer::Yes));
        (setting.answer.unwrap(), bits.map(|bit| (bit.bits.low, bit.answer.unwrap())).collect())
    }

    #[test]
    fn a_value_is_held_against_what_is_allowed() {
        let host = cpu(&[(0x480, 0x005A_0400_0000_0012), (0x482, 0xFFF9_FFFE_0401_E172)]);
        assert_eq!(told(0x482, 0x8401_E172, &host), (Answer::Yes, vec![]));
        assert_eq!(told(0x482, 0x8403_E172, &host), (Answer::No, vec![(17, Answer::No)]));
        assert_eq!(told(0x482, 0x8400_E172, &host), (Answer::No, vec![(16, Answer::No)]));
        let true_forms = cpu(&[(0x482, 0xFFF9_FFFE_0401_E172)]);
        assert_eq!(told(0x482, 0x8400_E172, &true_forms), (Answer::Unknown, vec![(16, Answer::Unknown)]));
        assert_eq!(told(0x48B, 2, &true_forms).0, Answer::Unknown);
    }

    #[test]
    fn cr0_is_held_against_both_registers() {
        let host = cpu(&[(0x486, 0x8000_0021), (0x487, 0xFFFF_FFFF)]);
        assert_eq!(told(0x486, 0x8000_0031, &host), (Answer::Yes, vec![]));
        assert_eq!(told(0x487, 0x8000_0030, &host), (Answer::No, vec![(0, Answer::No)]));
        assert_eq!(told(0x486, 0x8000_0031, &cpu(&[(0x486, 0x8000_0021)])).0, Answer::Unknown);
    }

    #[test]
    fn without_a_cpu_bits_have_names_only() {
        let told = setting(Address::Msr(0x48B), 0x2002, None).unwrap();
        assert_eq!(told.answer, None);
        let set: Vec<&str> =
            told.bits.iter().filter(|bit| bit.value == 1).map(|bit| bit.name.as_str()).collect();
        assert_eq!(set, ["Enable EPT", "Enable VM functions"]);
        assert!(matches!(setting(Address::Msr(0x480), 1, None), Err(Error::NoControls(_))));
        assert!(matches!(setting(Address::Msr(0x482), 1 << 32, None), Err(Error::Wide { .. })));
    }
}
