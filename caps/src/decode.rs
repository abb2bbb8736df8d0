//! Names the bits of raw registers: the JSON schema `exitscope-caps/1`.

use std::collections::BTreeSet;

use serde::{Serialize, Serializer};

use super::tables::{self, Allowed, Bits, Field, Kind, Register};
use super::usage::Usage;
use super::{Address, Cpu};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-caps/1";

/// The name of controls that have none, must be 1 and are meant to be.
pub const RESERVED: &str = "Reserved (default1)";

/// What was read of one machine, decoded: one JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Every CPU that was read.
    pub cpus: Vec<Decoded>,
    /// Every bit of any CPU that is set and has no name.
    pub unnamed: Vec<Unnamed>,
    /// What KVM uses of it, where that is known: of a live machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm: Option<Usage>,
}

/// A decoded CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decoded {
    /// The operating system's number of it.
    pub id: u32,
    /// Its registers, in the order in which they were read.
    pub registers: Vec<Reading>,
}

/// A decoded register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Where it is.
    pub address: Address,
    /// The manual's name; empty for a register that the tables do not know.
    pub name: &'static str,
    /// The manual's sections on it.
    pub section: &'static str,
    /// Its value; `None` if it could not be read, and then it says neither yes nor no to anything.
    #[serde(serialize_with = "hex")]
    pub raw: Option<Raw>,
    /// The register that was read too, says the same more exactly, and is to be believed instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<Address>,
    /// All named bits, set or not; none if the register could not be read.
    pub fields: Vec<Value>,
    /// Bits (for controls: their numbers) that are set and have no name.
    pub unnamed: Vec<u8>,
}

/// A register's value and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The value.
    pub value: u64,
    /// Bits of the register.
    pub width: u32,
}

/// A named bit or range of bits, and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Value {
    /// Where it is: `5`, or `high:low`; for controls the number of the control.
    pub bits: Bits,
    /// The manual's name.
    pub name: &'static str,
    /// Its value; for controls 1 if it may be 1.
    pub value: u64,
    /// Controls only.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub setting: Option<Setting>,
    /// What it says when set, or how to read the number.
    pub meaning: &'static str,
}

/// How a control may be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Whether it may be 0.
    pub can_be_0: bool,
    /// Whether it may be 1.
    pub can_be_1: bool,
    /// What software sets that does not know it.
    pub default: u8,
}

/// A bit that is set and has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unnamed {
    /// The register.
    pub address: Address,
    /// The bit, or the number of the control.
    pub bit: u8,
}

/// Names the bits of these CPUs.
pub fn decode(cpus: &[Cpu]) -> Document {
    let cpus: Vec<Decoded> = cpus.iter().map(decode_cpu).collect();
    let readings = cpus.iter().flat_map(|cpu| &cpu.registers);
    let unnamed: BTreeSet<Unnamed> = readings.flat_map(Reading::unnamed_bits).collect();
    Document { schema: SCHEMA, cpus, unnamed: unnamed.into_iter().collect(), kvm: None }
}

/// Names the bits of one CPU.
pub fn decode_cpu(cpu: &Cpu) -> Decoded {
    let registers = cpu.registers.iter().map(|&(address, value)| read(cpu, address, value)).collect();
    Decoded { id: cpu.id, registers }
}

impl Reading {
    fn unnamed_bits(&self) -> impl Iterator<Item = Unnamed> {
        self.unnamed.iter().map(|&bit| Unnamed { address: self.address, bit })
    }
}

fn read(cpu: &Cpu, address: Address, value: Option<u64>) -> Reading {
    let register = tables::find(address);
    let better = register.and_then(Register::better).filter(|&better| cpu.value(better).is_some());
    Reading {
        address,
        name: register.map_or("", |register| register.name),
        section: register.map_or("", |register| register.section),
        raw: value.map(|value| Raw { value, width: address.width() }),
        superseded_by: better,
        fields: register.zip(value).map_or_else(Vec::new, |(register, value)| fields(register, value)),
        unnamed: value.map_or_else(Vec::new, |value| unnamed(register, value)),
    }
}

fn fields(register: &Register, value: u64) -> Vec<Value> {
    let named = register.fields.iter();
    let Some(allowed) = register.kind.allowed(value) else {
        return named.map(|field| show(field, field.bits.of(value), None)).collect();
    };
    let default1 = register.kind.default1();
    let control = |field: &Field| {
        let bit = |word: u64| field.bits.of(word);
        let setting = Setting {
            can_be_0: bit(allowed.zero) != 0,
            can_be_1: bit(allowed.one) != 0,
            default: u8::from(bit(default1) != 0),
        };
        show(field, bit(allowed.one), Some(setting))
    };
    let mut values: Vec<Value> = named.map(control).collect();
    let reserved = ones(default1 & !register.named() & fixed_to_1(allowed));
    values.extend(reserved.map(|bit| Value {
        bits: Bits { high: bit, low: bit },
        name: RESERVED,
        value: 1,
        setting: Some(Setting { can_be_0: false, can_be_1: true, default: 1 }),
        meaning: "Must be 1 and means nothing yet",
    }));
    values.sort_by_key(|value| value.bits.low);
    values
}

fn show(field: &Field, value: u64, setting: Option<Setting>) -> Value {
    Value { bits: field.bits, name: field.name, value, setting, meaning: field.meaning }
}

const fn fixed_to_1(allowed: Allowed) -> u64 {
    allowed.one & !allowed.zero
}

/// A bit of a control without a name counts as set when it reads unlike one that is reserved: a default1 control
/// is reserved while it must be 1, any other while it must be 0.
fn unnamed(register: Option<&Register>, value: u64) -> Vec<u8> {
    let Some(register) = register else { return ones(value).collect() };
    let set = match (register.kind, register.kind.allowed(value)) {
        (Kind::Controls { .. }, Some(allowed)) => {
            let default1 = register.kind.default1();
            (allowed.one & !default1)
                | ((!allowed.zero & 0xFFFF_FFFF) & !default1)
                | (!fixed_to_1(allowed) & default1)
        }
        _ => value,
    };
    ones(set & !register.named()).collect()
}

impl Kind {
    /// The controls that are 1 in software that does not know them.
    const fn default1(self) -> u64 {
        match self {
            Self::Controls { default1 } => default1 as u64,
            _ => 0,
        }
    }
}

fn ones(word: u64) -> impl Iterator<Item = u8> {
    (0..64).filter(move |bit| word >> bit & 1 == 1)
}

fn hex<S: Serializer>(raw: &Option<Raw>, to: S) -> Result<S::Ok, S::Error> {
    match raw {
        Some(raw) => to.collect_str(raw),
        None => to.serialize_none(),
    }
}

/// Hexadecimal, all digits of the register's width.
impl std::fmt::Display for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#0width$x}", self.value, width = self.width as usize / 4 + 2)
    }
}

#[cfg(test)]
pub(super) mod tests;
