//! What a CPU's virtualization can do: every capability register of VMX and SVM, read, decoded and compared.
//!
//! One direction: this machine ([`live`]) or a dump ([`dump`]) gives [`Cpu`]s, which hold raw values only;
//! [`decode`] names their bits by the [`tables`]; [`diff`] and [`check`] put machines side by side.

use std::collections::HashMap;
use std::fmt::{self, Display};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub mod ask;
pub mod check;
pub mod common;
pub mod decode;
pub mod diff;
pub mod dump;
pub mod fault;
pub mod feature;
pub mod live;
pub mod presence;
pub mod rule;
pub mod setting;
pub mod summary;
pub mod tables;
pub mod usage;

/// The capability registers of one logical CPU, as they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// The operating system's number of it.
    pub id: u32,
    /// Address and value; `None` for a register that could not be read, which says nothing about what the CPU can do.
    pub registers: Vec<(Address, Option<u64>)>,
}

/// Where a capability register is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A model-specific register, read by RDMSR.
    Msr(u32),
    /// A register that CPUID fills, sub-leaf 0.
    Cpuid(u32, Gpr),
}

/// A register that CPUID fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Gpr {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What is known of a register of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Its value.
    Value(u64),
    /// The CPU has no such register.
    Absent,
    /// Neither of that.
    Nothing,
}

/// The value in hexadecimal, `absent` or `unknown`.
impl Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{value:#x}"),
            Self::Absent => f.write_str("absent"),
            Self::Nothing => f.write_str("unknown"),
        }
    }
}

impl Serialize for Known {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Gpr {
    /// In the order in which CPUID's results are written down.
    pub const ALL: [Self; 4] = [Self::Eax, Self::Ebx, Self::Ecx, Self::Edx];

    /// `eax`, `ebx`, `ecx` or `edx`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

impl Address {
    /// Bits of the register.
    pub const fn width(self) -> u32 {
        match self {
            Self::Msr(_) => 64,
            Self::Cpuid(..) => 32,
        }
    }

    /// The inverse of its `Display`.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let Some(cpuid) = text.strip_prefix("cpuid.") else {
            return hex(text).map(Self::Msr);
        };
        let (leaf, register) = cpuid.split_once('.')?;
        let register = Gpr::ALL.into_iter().find(|gpr| gpr.name() == register)?;
        Some(Self::Cpuid(hex(leaf)?, register))
    }
}

/// `0x480` for an MSR, `cpuid.0x8000000a.edx` for what CPUID tells.
impl Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Msr(number) => write!(f, "{number:#x}"),
            Self::Cpuid(leaf, register) => write!(f, "cpuid.{leaf:#x}.{}", register.name()),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text)
            .ok_or_else(|| de::Error::custom(format_args!("`{text}` is no address of a register")))
    }
}

impl Cpu {
    /// What is known of the register at `address`: a value counts only where the register exists and can read so.
    pub fn known(&self, address: Address) -> Known {
        let read = self.read(address);
        let Some(register) = tables::find(address) else { return read.map_or(Known::Nothing, Known::Value) };
        match (register.exists(self), read) {
            (Some(false), _) => Known::Absent,
            (_, Some(value)) if fault::fault(self, register).is_none() => Known::Value(value),
            _ => Known::Nothing,
        }
    }

    /// The value at `address`, if it is known.
    pub fn value(&self, address: Address) -> Option<u64> {
        match self.known(address) {
            Known::Value(value) => Some(value),
            Known::Absent | Known::Nothing => None,
        }
    }

    /// What was read at `address`, whether or not it can be so.
    pub fn read(&self, address: Address) -> Option<u64> {
        self.registers.iter().find(|(at, _)| *at == address)?.1
    }

    /// Whether the register at `address` was asked for.
    pub fn asked(&self, address: Address) -> bool {
        self.registers.iter().any(|(at, _)| *at == address)
    }
}

/// Numbers in ascending order as `0-7, 9`.
pub fn ranges(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let show = |&(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// CPUs that read alike, by the first of each kind.
pub fn kinds(cpus: &[Cpu]) -> Vec<(&Cpu, Vec<u32>)> {
    let mut groups: Vec<(&Cpu, Vec<u32>)> = Vec::new();
    let mut places = HashMap::new();
    for cpu in cpus {
        let index = *places.entry(&cpu.registers).or_insert_with(|| {
            groups.push((cpu, Vec::new()));
            groups.len() - 1
        });
        groups[index].1.push(cpu.id);
    }
    groups
}
