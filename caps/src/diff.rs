//! Where the capabilities of two machines differ.

use std::collections::BTreeSet;

use serde::Serialize;

use super::summary::features;
use super::tables::{Bits, Field, find};
use super::{Address, Cpu, Known};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-caps-diff/1";

/// Two machines side by side: one JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Whether nothing differs.
    pub same: bool,
    /// CPUs of one machine beside those of the other.
    pub pairs: Vec<Pair>,
}

/// A CPU of the first machine beside the one of the second that has the same number, or else its first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The numbers of all CPUs of which the same is to be told.
    pub cpus: Vec<u32>,
    /// Features that the first is known to have and the second to lack.
    pub only_a: Vec<String>,
    /// Features that the second is known to have and the first to lack.
    pub only_b: Vec<String>,
    /// Registers.
    pub registers: Vec<Register>,
}

/// A register in both machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Register {
    /// Where it is.
    pub address: Address,
    /// The manual's name; empty for a register that the tables do not know.
    pub name: &'static str,
    /// What is known of it in the first machine.
    pub a: Known,
    /// In the second.
    pub b: Known,
    /// Its bits, if both values are known.
    pub fields: Vec<Side>,
}

/// What both machines say of some bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Where they are; for controls the number of the control.
    pub bits: Bits,
    /// The manual's name.
    pub name: String,
    /// What the first says, in words or as a number.
    pub a: String,
    /// What the second says.
    pub b: String,
    /// QEMU's and libvirt's names for the bits, with spaces between.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub qemu: &'static str,
    /// Linux' name for them.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub linux: &'static str,
}

/// What is put side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What differs.
    Differences,
    /// Everything that has a name, too.
    All,
}

/// Compares two machines.
pub fn diff(a: &[Cpu], b: &[Cpu], extent: Extent) -> Diff {
    let mut same = true;
    let mut pairs = Vec::new();
    for (cpus, a, b) in paired(a, b) {
        let addresses: BTreeSet<Address> =
            [a, b].iter().flat_map(|cpu| &cpu.registers).map(|r| r.0).collect();
        same &= addresses.iter().all(|&address| said(a, address) == said(b, address));
        let registers = addresses.into_iter().map(|address| register(a, b, address, extent));
        let shown = |register: &Register| extent == Extent::All || register.a != register.b;
        let has = |yes: Option<bool>, no: Option<bool>| yes == Some(true) && no == Some(false);
        let both = || features(a).zip(features(b)).map(|((name, a), (_, b))| (name, a, b));
        let pair = Pair {
            cpus,
            only_a: both().filter(|(_, a, b)| has(*a, *b)).map(|(name, ..)| name).collect(),
            only_b: both().filter(|(_, a, b)| has(*b, *a)).map(|(name, ..)| name).collect(),
            registers: registers.filter(shown).collect(),
        };
        if extent == Extent::All || !pair.registers.is_empty() {
            pairs.push(pair);
        }
    }
    Diff { schema: SCHEMA, same, pairs }
}

/// The CPUs to compare, with the numbers of those that are the same pair.
fn paired<'a>(a: &'a [Cpu], b: &'a [Cpu]) -> Vec<(Vec<u32>, &'a Cpu, &'a Cpu)> {
    let ids: BTreeSet<u32> = a.iter().chain(b).map(|cpu| cpu.id).collect();
    let of = |cpus: &'a [Cpu], id| cpus.iter().find(|cpu| cpu.id == id).or(cpus.first());
    let mut pairs: Vec<(Vec<u32>, &Cpu, &Cpu)> = Vec::new();
    for id in ids {
        let (Some(a), Some(b)) = (of(a, id), of(b, id)) else { continue };
        let alike = |(_, first, second): &&mut (Vec<u32>, &Cpu, &Cpu)| {
            first.registers == a.registers && second.registers == b.registers
        };
        match pairs.iter_mut().find(alike) {
            Some((ids, ..)) => ids.push(id),
            None => pairs.push((vec![id], a, b)),
        }
    }
    pairs
}

/// What is known of a register; a value that cannot be so is still what was read.
fn said(cpu: &Cpu, address: Address) -> Known {
    match (cpu.known(address), cpu.read(address)) {
        (Known::Nothing, Some(value)) => Known::Value(value),
        (known, _) => known,
    }
}

fn register(a: &Cpu, b: &Cpu, address: Address, extent: Extent) -> Register {
    let (a, b) = (said(a, address), said(b, address));
    let name = find(address).map_or("", |register| register.name);
    let fields = match (a, b) {
        (Known::Value(a), Known::Value(b)) => sides(address, a, b, extent),
        _ => Vec::new(),
    };
    Register { address, name, a, b, fields }
}

fn sides(address: Address, a: u64, b: u64, extent: Extent) -> Vec<Side> {
    let Some(register) = find(address) else { return Vec::new() };
    let says = |value, bits| register.kind.says(value, bits);
    let side = |(bits, field): (Bits, Option<&Field>)| {
        let (a, b) = (says(a, bits), says(b, bits));
        let shown = a != b || extent == Extent::All && field.is_some();
        let (qemu, linux) = field.map_or(("", ""), |field| (field.qemu, field.linux));
        shown.then(|| Side { bits, name: name(bits, field), a, b, qemu, linux })
    };
    register.parts().filter_map(side).collect()
}

/// The name of bits that may have none.
pub(super) fn name(bits: Bits, field: Option<&Field>) -> String {
    field.map_or_else(|| format!("Bit {bits} (no name)"), |field| field.name.into())
}

#[cfg(test)]
mod tests;
