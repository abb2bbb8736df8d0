//! Whether a guest that uses what one machine offers would run on another.

use exitscope_abi::reason::Isa;
use serde::Serialize;

use super::common::common;
use super::diff::name;
use super::feature::{Feature, Want};
use super::rule::Rule;
use super::tables::{Allowed, Bits, Controls, Field, Kind, REGISTERS, Register, find};
use super::{Address, Cpu, Known, kinds, presence};

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-caps-check/1";

/// The answer: one JSON document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Whether it would run.
    pub answer: Answer,
    /// Why not, for each kind of CPU of the machine where it is to run.
    pub pairs: Vec<Pair>,
    /// The only register that was required, if it was one: the answer speaks of it alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<Address>,
    /// Registers of which the required machine tells nothing, though it may have them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub untold: Vec<Address>,
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

impl Check {
    /// Leaves out all but what is known to be missing.
    pub fn missing_only(&mut self) {
        self.pairs.iter_mut().for_each(|pair| pair.findings.retain(|finding| finding.answer == Answer::No));
        self.untold.clear();
    }
}

/// What stands against it on these CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// The CPUs whose common features are required; none where features were named.
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
    /// QEMU's and libvirt's names for the bits, with spaces between.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub qemu: &'static str,
    /// Linux' name for them.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub linux: &'static str,
}

const FEATURE_CONTROL: Address = Address::Msr(0x3A);
const VM_CR: Address = Address::Msr(0xC001_0114);

/// Whether a guest that uses any feature of the machine `require` runs on the machine `on`, whichever CPU it meets.
///
/// A guest of a machine whose CPUs differ can rely only on what all of them have.
pub fn check(require: &[Cpu], on: &[Cpu]) -> Check {
    let common = common(kinds(require).into_iter().map(|(cpu, _)| cpu)).cpu;
    let ids: Vec<u32> = require.iter().map(|cpu| cpu.id).collect();
    let pair = |(cpu, on)| Pair { require: ids.clone(), on, findings: findings(&common, cpu) };
    let pairs = if require.is_empty() { Vec::new() } else { kinds(on).into_iter().map(pair).collect() };
    let only = only(&common);
    let untold = if only.is_some() { Vec::new() } else { untold(&common) };
    let nothing = if pairs.is_empty() || !untold.is_empty() { Answer::Unknown } else { Answer::Yes };
    Check { schema: SCHEMA, answer: worst(&pairs, nothing), pairs, only, untold }
}

/// Whether a guest that uses these features runs on the machine `on`, whichever CPU it meets.
pub fn check_features(features: &[Feature], on: &[Cpu]) -> Check {
    let pair = |(cpu, on)| Pair { require: Vec::new(), on, findings: wanted(features, cpu) };
    let pairs: Vec<Pair> = kinds(on).into_iter().map(pair).collect();
    let nothing = if pairs.is_empty() || features.is_empty() { Answer::Unknown } else { Answer::Yes };
    Check { schema: SCHEMA, answer: worst(&pairs, nothing), pairs, only: None, untold: Vec::new() }
}

fn worst(pairs: &[Pair], nothing: Answer) -> Answer {
    let answers = pairs.iter().flat_map(|pair| &pair.findings).map(|finding| finding.answer);
    answers.max().unwrap_or(nothing).max(nothing)
}

/// The register that was read, if it was but one, as in QEMU's message that it cannot set it.
fn only(cpu: &Cpu) -> Option<Address> {
    let switch = |address| find(address).is_some_and(Register::is_switch);
    let mut registers = cpu.registers.iter().filter(|(address, _)| !switch(*address));
    let (address, _) = *registers.next()?;
    (registers.next().is_none() && cpu.registers.len() == 1).then_some(address)
}

/// Registers that the CPU may have and that were not asked for.
fn untold(cpu: &Cpu) -> Vec<Address> {
    let may_have = |register: &&Register| {
        let better = register.better().is_some_and(|better| cpu.asked(better));
        let ours = cpu.offers(register.isa()) == Some(true) && !register.is_switch();
        ours && !cpu.asked(register.address) && !better && register.exists(cpu) != Some(false)
    };
    REGISTERS.iter().filter(may_have).map(|register| register.address).collect()
}

fn findings(a: &Cpu, b: &Cpu) -> Vec<Finding> {
    let mut findings = Vec::new();
    let required = Isa::ALL.into_iter().filter(|&isa| a.offers(isa) == Some(true));
    for isa in required.clone() {
        match b.offers(isa) {
            Some(true) => {
                let registers = REGISTERS.iter().filter(|register| register.isa() == isa);
                registers.for_each(|register| findings.extend(in_register(register, a, b)));
                findings.extend(firmware(b, isa));
            }
            there => findings.push(whole(isa, "present", there)),
        }
    }
    if required.clone().next().is_none() {
        findings.extend(nothing_required(a, b));
    }
    if [a, b].iter().all(|cpu| cpu.offers(Isa::Vmx) == Some(true)) {
        Controls::ALL.iter().for_each(|&controls| findings.extend(in_controls(controls, a, b)));
    }
    findings.extend(in_unnamed(a, b));
    findings
}

/// A machine without virtualization asks for nothing, and none runs on another such.
fn nothing_required(a: &Cpu, b: &Cpu) -> Vec<Finding> {
    let told = |isa: &Isa| [a, b].iter().any(|cpu| cpu.offers(*isa).is_some());
    let all = |isa: Isa| {
        let there = b.offers(isa);
        let answer = if there == Some(false) { Answer::No } else { Answer::Unknown };
        Finding { answer, ..whole(isa, if a.offers(isa).is_some() { "absent" } else { "unknown" }, there) }
    };
    let findings: Vec<Finding> = Isa::ALL.into_iter().filter(|isa| told(isa)).map(all).collect();
    let somewhere = Isa::ALL.iter().filter(|isa| told(isa)).any(|isa| b.offers(*isa) != Some(false));
    let unsure = |finding: Finding| Finding { answer: Answer::Unknown, ..finding };
    if somewhere { findings.into_iter().map(unsure).collect() } else { findings }
}

/// An instruction set that is not there, or not known to be.
fn whole(isa: Isa, require: &str, there: Option<bool>) -> Finding {
    let answer = if there == Some(false) { Answer::No } else { Answer::Unknown };
    let on = match there {
        Some(true) => "present",
        Some(false) => "absent",
        None => "unknown",
    };
    let field = format!("all of {}", isa.name().to_uppercase());
    finding(answer, presence::flag(isa).0, None, field, require, on)
}

/// What registers without a table say is not known to be needed, unless there it is the same.
fn in_unnamed<'a>(a: &'a Cpu, b: &'a Cpu) -> impl Iterator<Item = Finding> + 'a {
    let unnamed = a.registers.iter().filter(|(address, value)| find(*address).is_none() && *value != Some(0));
    unnamed.filter(|(address, value)| value.is_none() || b.value(*address) != *value).map(|&(address, _)| {
        let field = "a register without a name";
        finding(Answer::Unknown, address, None, field, a.known(address), b.known(address))
    })
}

/// Firmware that keeps hypervisors out, or was asked and did not answer.
fn firmware(cpu: &Cpu, isa: Isa) -> Option<Finding> {
    let (address, low) = match isa {
        Isa::Vmx => (FEATURE_CONTROL, 2),
        Isa::Svm => (VM_CR, 4),
    };
    let (answer, on) = match (isa, cpu.read(address)) {
        (_, None) if cpu.asked(address) => (Answer::Unknown, "unknown"),
        (_, None) => return None,
        (Isa::Vmx, Some(value)) if value & 0b111 == 0b011 => (Answer::Unknown, "on inside SMX only"),
        (Isa::Vmx, Some(value)) if value & 0b101 == 0b001 => (Answer::No, "turned off by firmware"),
        (Isa::Svm, Some(value)) if value & 0b1_0000 != 0 => (Answer::No, "turned off by firmware"),
        _ => return None,
    };
    let bits = Bits { high: low, low };
    let field = find(address)?.fields.iter().find(|field| field.bits == bits);
    Some(of_field(answer, address, bits, field, "on", on))
}

/// The findings in a register that is none of controls.
fn in_register(register: &Register, a: &Cpu, b: &Cpu) -> Vec<Finding> {
    let address = register.address;
    if register.controls().is_some() || register.is_switch() {
        return Vec::new();
    }
    let (require, on) = (a.known(address), b.known(address));
    let values = match (require, on) {
        (Known::Absent, _) => return Vec::new(),
        (Known::Nothing, _) if !a.asked(address) => return Vec::new(),
        (Known::Value(a), Known::Value(b)) => (a, b),
        (Known::Value(a), Known::Absent) => (a, 0),
        (Known::Nothing, _) | (_, Known::Nothing) => {
            return vec![finding(
                Answer::Unknown,
                address,
                None,
                "all of it",
                shown(a, address),
                shown(b, address),
            )];
        }
    };
    let broken = |(bits, _): &(Bits, Option<&Field>)| {
        !Rule::of(register, bits.low).holds(bits.of(values.0), bits.of(values.1))
    };
    let tell = |(bits, field): (Bits, Option<&'static Field>)| {
        let says = |value| register.kind.says(value, bits);
        let on = if on == Known::Absent { on.to_string() } else { says(values.1) };
        of_field(Answer::No, address, bits, field, says(values.0), on)
    };
    register.parts().filter(broken).map(tell).collect()
}

/// What is known of a register; of a value that cannot be so, that.
fn shown(cpu: &Cpu, address: Address) -> String {
    match (cpu.known(address), cpu.read(address)) {
        (Known::Nothing, Some(value)) => format!("{value:#x} cannot be"),
        (known, _) => known.to_string(),
    }
}

/// Which settings of controls a CPU is known to allow.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    /// The settings that it allows for certain.
    pub allowed: Allowed,
    /// Controls of which only the TRUE form, which was not read, would tell whether they may be 0.
    pub unsure: u64,
}

/// The settings that a CPU allows; `None` if what was read does not tell.
///
/// The original and the TRUE form say the same of which controls may be 1.
pub(super) fn settings(cpu: &Cpu, controls: Controls) -> Option<Settings> {
    let allowed = cpu.allowed(controls)?;
    let (exact, plain) = (*controls.addresses().first()?, *controls.addresses().last()?);
    let from_plain = cpu.known(exact) == Known::Nothing && cpu.value(plain).is_some();
    let default1 = match find(plain)?.kind {
        Kind::Controls { default1 } if from_plain => u64::from(default1),
        _ => 0,
    };
    Some(Settings { allowed, unsure: default1 & !allowed.zero })
}

/// The findings in a group of controls: what may be 1, or 0, must be allowed to be so there.
fn in_controls(controls: Controls, a: &Cpu, b: &Cpu) -> Vec<Finding> {
    let mut registers = controls.addresses().iter().filter_map(|&address| find(address));
    let asked = controls.addresses().iter().any(|&address| a.asked(address));
    let told = registers.clone().find(|register| a.value(register.address).is_some());
    let Some(register) = told.or(registers.next_back()) else { return Vec::new() };
    let address = register.address;
    let (require, on) = match (settings(a, controls), settings(b, controls)) {
        (Some(Settings { allowed: Allowed { one: 0, .. }, .. }), _) => return Vec::new(),
        (None, _) if !asked => return Vec::new(),
        (Some(a), Some(b)) => (a, b),
        (first, second) => {
            let known = |cpu, told: Option<Settings>| told.map_or(shown(cpu, address), |_| "known".into());
            return vec![finding(
                Answer::Unknown,
                address,
                None,
                "all of it",
                known(a, first),
                known(b, second),
            )];
        }
    };
    let missing =
        (require.allowed.one & !on.allowed.one) | (require.allowed.zero & !on.allowed.zero & !on.unsure);
    let broken = register.parts().filter(|(bits, _)| bits.mask() & missing != 0);
    let tell = |(bits, field): (Bits, Option<&'static Field>)| {
        of_field(Answer::No, address, bits, field, require.allowed.says(bits), on.allowed.says(bits))
    };
    let mut findings: Vec<Finding> = broken.map(tell).collect();
    let exact = *controls.addresses().first().unwrap_or(&address);
    let unsure = if a.asked(exact) && exact != address { require.unsure & !on.allowed.zero } else { 0 };
    if unsure | (require.allowed.zero & on.unsure) != 0 {
        let field = "which of the default1 controls may be 0";
        findings.push(finding(Answer::Unknown, exact, None, field, shown(a, exact), shown(b, exact)));
    }
    findings
}

/// The findings of features that were named.
fn wanted(features: &[Feature], cpu: &Cpu) -> Vec<Finding> {
    let mut findings: Vec<Finding> = features.iter().flat_map(|feature| of_feature(feature, cpu)).collect();
    let used = |isa: &Isa| features.iter().flat_map(|feature| &feature.wants).any(|want| want.isa() == *isa);
    let there = Isa::ALL.into_iter().filter(used).filter(|&isa| cpu.offers(isa) == Some(true));
    findings.extend(there.filter_map(|isa| firmware(cpu, isa)));
    findings
}

/// One that both vendors have is wanted of the vendor at hand.
fn of_feature(feature: &Feature, cpu: &Cpu) -> Vec<Finding> {
    let there = |want: &&Want| cpu.offers(want.isa()) != Some(false);
    let wants: Vec<&Want> = feature.wants.iter().filter(there).collect();
    match (wants.as_slice(), feature.wants.first()) {
        ([], Some(first)) => vec![whole(first.isa(), "present", Some(false))],
        (wants, _) => wants.iter().filter_map(|want| of_want(want, cpu)).collect(),
    }
}

fn of_want(want: &Want, cpu: &Cpu) -> Option<Finding> {
    let Want { address, bits, either } = *want;
    let register = find(address)?;
    let field = register.fields.iter().find(|field| field.bits == bits);
    let tell = |answer, require: &str, on: String| Some(of_field(answer, address, bits, field, require, on));
    if register.kind == Kind::Presence {
        return match cpu.offers(register.isa()) {
            Some(true) => None,
            there => Some(whole(register.isa(), "present", there)),
        };
    }
    let require = if either { "0 or 1" } else { "1" };
    if let Some(controls) = register.controls() {
        let Some(settings) = settings(cpu, controls) else {
            return tell(Answer::Unknown, require, shown(cpu, address));
        };
        let has = |word: u64| bits.of(word) != 0;
        return match (has(settings.allowed.one), has(settings.allowed.zero) || !either) {
            (true, true) => None,
            (true, false) if has(settings.unsure) => {
                tell(Answer::Unknown, require, "1, and unknown if 0".into())
            }
            _ => tell(Answer::No, require, settings.allowed.says(bits).into()),
        };
    }
    match cpu.known(address) {
        Known::Value(value) if bits.of(value) != 0 => None,
        Known::Value(_) => tell(Answer::No, "1", "0".into()),
        Known::Absent => tell(Answer::No, "1", Known::Absent.to_string()),
        Known::Nothing => tell(Answer::Unknown, "1", shown(cpu, address)),
    }
}

fn of_field(
    answer: Answer,
    address: Address,
    bits: Bits,
    field: Option<&'static Field>,
    require: impl ToString,
    on: impl ToString,
) -> Finding {
    let (qemu, linux) = field.map_or(("", ""), |field| (field.qemu, field.linux));
    Finding { qemu, linux, ..finding(answer, address, Some(bits), name(bits, field), require, on) }
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
    Finding { answer, address, register, bits, field, require, on, qemu: "", linux: "" }
}

#[cfg(test)]
mod tests;
