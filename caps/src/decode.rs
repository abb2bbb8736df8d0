//! Names the bits of raw registers: the JSON schema `exitscope-caps/1`.

use std::collections::BTreeSet;

use exitscope_abi::reason::Isa;
use serde::{Serialize, Serializer};

use super::fault::fault;
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
    /// The instruction sets that it is known to lack, and what says so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
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
    /// The CPU has no such register, by what its others say: the value means nothing.
    #[serde(skip_serializing_if = "is_false")]
    pub absent: bool,
    /// Why the value cannot be so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The register that was read too, says the same more exactly, and is to be believed instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<Address>,
    /// All named bits, set or not; none if the register could not be read, or is absent.
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
    /// QEMU's and libvirt's names for it, with spaces between.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub qemu: &'static str,
    /// Linux' name for it in `/proc/cpuinfo`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub linux: &'static str,
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
    let lacks = Isa::ALL
        .into_iter()
        .filter_map(|isa| Some(format!("{}: {}", isa.name().to_uppercase(), cpu.lacks(isa)?)));
    Decoded { id: cpu.id, registers, lacks: lacks.collect() }
}

impl Reading {
    fn unnamed_bits(&self) -> impl Iterator<Item = Unnamed> {
        self.unnamed.iter().map(|&bit| Unnamed { address: self.address, bit })
    }
}

fn read(cpu: &Cpu, address: Address, value: Option<u64>) -> Reading {
    let register = tables::find(address);
    let absent = register.is_some_and(|register| register.exists(cpu) == Some(false));
    let better = register.and_then(Register::better).filter(|&better| cpu.value(better).is_some());
    let told = value.filter(|_| !absent);
    Reading {
        address,
        name: register.map_or("", |register| register.name),
        section: register.map_or("", |register| register.section),
        raw: value.map(|value| Raw { value, width: address.width() }),
        absent,
        fault: register.filter(|_| !absent).and_then(|register| fault(cpu, register)),
        superseded_by: better,
        fields: register.zip(told).map_or_else(Vec::new, |(register, value)| fields(register, value)),
        unnamed: told.map_or_else(Vec::new, |value| unnamed(register, value)),
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
        qemu: "",
        linux: "",
    }));
    values.sort_by_key(|value| value.bits.low);
    values
}

fn show(field: &Field, value: u64, setting: Option<Setting>) -> Value {
    let Field { bits, name, meaning, qemu, linux } = *field;
    Value { bits, name, value, setting, meaning, qemu, linux }
}

const fn fixed_to_1(allowed: Allowed) -> u64 {
    allowed.one & !allowed.zero
}

/// A bit of a control without a name counts as set when it reads unlike one that is reserved: a default1 control
/// is reserved while it must be 1, any other while it must be 0.
fn unnamed(register: Option<&Register>, value: u64) -> Vec<u8> {
    let Some(register) = register else { return ones(value).collect() };
    let set = match (register.kind, register.kind.allowed(value)) {
        (Kind::Presence, _) => 0,
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

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's way to ask")]
const fn is_false(is: &bool) -> bool {
    !*is
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
