//! Whether a guest that uses what one machine offers would run on another.

use exitscope_abi::reason::Isa;
use serde::Serialize;

use super::diff::name;
use super::tables::{Allowed, Bits, Controls, Field, Kind, REGISTERS, Register, find};
use super::{Address, Cpu, Gpr, Known, kinds};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-caps-check/1";

/// The answer: one JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Whether it would run.
    pub answer: Answer,
    /// Why not, for each kind of CPU of the one machine on each kind of the other.
    pub pairs: Vec<Pair>,
}

/// Whether it would run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Everything that it may use is there.
    Yes,
    /// What was read does not tell.
    Unknown,
    /// Something that it may use is missing.
    No,
}

/// What stands against it on these CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The CPUs that are required.
    pub require: Vec<u32>,
    /// The CPUs that are there.
    pub on: Vec<u32>,
    /// What stands against it.
    pub findings: Vec<Finding>,
}

/// Something that is required and not there, or not known to be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// [`Answer::No`] or [`Answer::Unknown`].
    pub answer: Answer,
    /// The register.
    pub address: Address,
    /// The manual's name of it.
    pub register: &'static str,
    /// Its bits; none for a register that is unknown or a machine of the other vendor.
    pub bits: Option<Bits>,
    /// What they are called, or what is the matter.
    pub field: String,
    /// What is required.
    pub require: String,
    /// What is there.
    pub on: String,
}

/// How bits there (`on`) must stand to those required.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
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
    const fn holds(self, require: u64, on: u64) -> bool {
        match self {
            Self::Superset => require & !on == 0,
            Self::Subset => on & !require == 0,
            Self::AtLeast => on >= require,
            Self::AtMost => on <= require,
            Self::Same => require == 0 || on == require,
            Self::Free => true,
        }
    }

    /// The rule for the bits from `low` up.
    fn of(register: &Register, low: u8) -> Self {
        let exception =
            EXCEPTIONS.iter().find(|(address, bit, _)| (*address, *bit) == (register.address, low));
        exception.map_or_else(
            || match register.kind {
                Kind::Fixed0 => Self::Subset,
                Kind::Fixed1 | Kind::Allowed1 | Kind::Controls { .. } => Self::Superset,
                Kind::Plain => Self::AtLeast,
            },
            |(.., rule)| *rule,
        )
    }
}

/// Fields that are neither a flag of something useful nor a number of which more is better.
const EXCEPTIONS: &[(Address, u8, Rule)] = &[
    (BASIC, 0, Rule::Free),
    // Software allocates the 4 KiB that every size fits into.
    (BASIC, 32, Rule::Free),
    (BASIC, 48, Rule::AtMost),
    (BASIC, 50, Rule::Same),
    (Address::Msr(0x485), 0, Rule::Same),
    (Address::Msr(0x485), 32, Rule::Free),
    (Address::Cpuid(0x8000_001F, Gpr::Eax), 11, Rule::Free),
    (Address::Cpuid(0x8000_001F, Gpr::Ebx), 0, Rule::Same),
    (Address::Cpuid(0x8000_001F, Gpr::Ebx), 6, Rule::Free),
    (Address::Cpuid(0x8000_001F, Gpr::Edx), 0, Rule::Free),
];

const BASIC: Address = Address::Msr(0x480);
const FEATURE_CONTROL: Address = Address::Msr(0x3A);
const VM_CR: Address = Address::Msr(0xC001_0114);

/// Whether a guest that uses any feature of the machine `require` runs on the machine `on`, whichever CPU it meets.
pub fn check(require: &[Cpu], on: &[Cpu]) -> Check {
    let mut pairs = Vec::new();
    for (a, require) in kinds(require) {
        for (b, on) in kinds(on) {
            pairs.push(Pair { require: require.clone(), on, findings: findings(a, b) });
        }
    }
    let answers = pairs.iter().flat_map(|pair| &pair.findings).map(|finding| finding.answer);
    let nothing = if pairs.is_empty() { Answer::Unknown } else { Answer::Yes };
    Check { schema: SCHEMA, answer: answers.max().unwrap_or(nothing), pairs }
}

fn findings(a: &Cpu, b: &Cpu) -> Vec<Finding> {
    let mut findings = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|&isa| a.tells_of(isa)) {
        if b.tells_of(isa) {
            let registers = REGISTERS.iter().filter(|register| register.isa() == isa);
            registers.for_each(|register| findings.extend(in_register(register, a, b)));
            findings.extend(turned_off(b, isa));
        } else {
            findings.push(other_vendor(isa));
        }
    }
    if a.tells_of(Isa::Vmx) && b.tells_of(Isa::Vmx) {
        Controls::ALL.iter().for_each(|&controls| findings.extend(in_controls(controls, a, b)));
    }
    findings.extend(in_unnamed(a, b));
    findings
}

/// What registers without a table say is not known to be needed, unless there it is the same.
fn in_unnamed<'a>(a: &'a Cpu, b: &'a Cpu) -> impl Iterator<Item = Finding> + 'a {
    let unnamed = a.registers.iter().filter(|(address, value)| find(*address).is_none() && *value != Some(0));
    unnamed.filter(|(address, value)| value.is_none() || b.value(*address) != *value).map(|&(address, _)| {
        finding(
            Answer::Unknown,
            address,
            None,
            "a register without a name",
            a.known(address),
            b.known(address),
        )
    })
}

/// Nothing that a machine of one vendor offers is there on one of the other.
fn other_vendor(isa: Isa) -> Finding {
    let address = if isa == Isa::Vmx { BASIC } else { Address::Cpuid(0x8000_000A, Gpr::Edx) };
    let field = format!("all of {}", isa.name().to_uppercase());
    finding(Answer::No, address, None, field, "present", "absent")
}

/// Firmware that keeps hypervisors out.
fn turned_off(cpu: &Cpu, isa: Isa) -> Option<Finding> {
    let (address, low, off) = match isa {
        Isa::Vmx => (FEATURE_CONTROL, 2, cpu.value(FEATURE_CONTROL)? & 0b101 == 0b001),
        Isa::Svm => (VM_CR, 4, cpu.value(VM_CR)? & 0b1_0000 != 0),
    };
    let bits = Bits { high: low, low };
    let field = find(address)?.fields.iter().find(|field| field.bits == bits);
    off.then(|| finding(Answer::No, address, Some(bits), name(bits, field), "on", "turned off by firmware"))
}

/// The findings in a register that is none of controls.
fn in_register(register: &Register, a: &Cpu, b: &Cpu) -> Vec<Finding> {
    let address = register.address;
    let of_controls = Controls::ALL.iter().any(|controls| controls.addresses().contains(&address));
    if of_controls || [FEATURE_CONTROL, VM_CR].contains(&address) {
        return Vec::new();
    }
    let (require, on) = (a.known(address), b.known(address));
    let values = match (require, on) {
        (Known::Absent, _) => return Vec::new(),
        (Known::Value(a), Known::Value(b)) => (a, b),
        (Known::Value(a), Known::Absent) => (a, 0),
        (Known::Nothing, _) | (_, Known::Nothing) => {
            return vec![finding(Answer::Unknown, address, None, "all of it", require, on)];
        }
    };
    let broken = |(bits, _): &(Bits, Option<&Field>)| {
        !Rule::of(register, bits.low).holds(bits.of(values.0), bits.of(values.1))
    };
    let tell = |(bits, field): (Bits, Option<&Field>)| {
        let says = |value| register.kind.says(value, bits);
        let on = if on == Known::Absent { on.to_string() } else { says(values.1) };
        finding(Answer::No, address, Some(bits), name(bits, field), says(values.0), on)
    };
    register.parts().filter(broken).map(tell).collect()
}

/// The findings in a group of controls: what may be 1, or 0, must be allowed to be so there.
fn in_controls(controls: Controls, a: &Cpu, b: &Cpu) -> Vec<Finding> {
    let mut registers = controls.addresses().iter().filter_map(|&address| find(address));
    let told = registers.clone().find(|register| a.value(register.address).is_some());
    let Some(register) = told.or(registers.next_back()) else { return Vec::new() };
    let address = register.address;
    let (require, on) = match (settings(a, controls), settings(b, controls)) {
        (Some(Allowed { one: 0, .. }), _) => return Vec::new(),
        (Some(a), Some(b)) => (a, b),
        (a, b) => {
            let known = |allowed: Option<Allowed>| if allowed.is_some() { "known" } else { "unknown" };
            return vec![finding(Answer::Unknown, address, None, "all of it", known(a), known(b))];
        }
    };
    let missing = (require.one & !on.one) | (require.zero & !on.zero);
    let broken = register.parts().filter(|(bits, _)| bits.mask() & missing != 0);
    let tell = |(bits, field): (Bits, Option<&Field>)| {
        finding(Answer::No, address, Some(bits), name(bits, field), require.says(bits), on.says(bits))
    };
    broken.map(tell).collect()
}

/// The settings that a CPU allows; `None` if the register that tells them most exactly is unknown.
fn settings(cpu: &Cpu, controls: Controls) -> Option<Allowed> {
    let exact = *controls.addresses().first()?;
    (cpu.known(exact) != Known::Nothing).then(|| cpu.allowed(controls)).flatten()
}

fn finding(
    answer: Answer,
    address: Address,
    bits: Option<Bits>,
    field: impl Into<String>,
    require: impl ToString,
    on: impl ToString,
) -> Finding {
    let register = find(address).map_or("", |register| register.name);
    let (field, require, on) = (field.into(), require.to_string(), on.to_string());
    Finding { answer, address, register, bits, field, require, on }
}

#[cfg(test)]
mod tests;
