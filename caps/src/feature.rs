//! Features by the names that people have for them: QEMU's and libvirt's, Linux', the manuals', or a register's bit.

use exitscope_abi::reason::Isa;

use super::Address;
use super::summary::FEATURES;
use super::tables::{Bits, Controls, Field, Kind, REGISTERS, Register, Test, by_name, find};

/// A feature that a guest wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// As it was asked for.
    pub name: String,
    /// What it means on the CPUs of one vendor or of the other: all wants of an instruction set are wanted.
    pub wants: Vec<Want>,
}

/// Bits that must be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The register; of controls the original form.
    pub address: Address,
    /// The bits, or the number of the control.
    pub bits: Bits,
    /// Whether a control must be allowed to be 0, too: so QEMU means it, which can turn it off.
    pub either: bool,
}

impl Want {
    /// Whose it is.
    pub fn isa(&self) -> Isa {
        find(self.address).map_or(Isa::Vmx, Register::isa)
    }

    /// The group of controls that it is one of.
    pub fn controls(&self) -> Option<Controls> {
        find(self.address)?.controls()
    }
}

/// Why a word is no feature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No name of any bit.
    #[error(
        "`{word}` is no feature{}: use QEMU's names (vmx-rdrand-exit), Linux' (ept_ad), the manuals' (\"RDRAND exiting\") \
         or a bit (0x48b.11)",
        suggest(.near)
    )]
    Unknown {
        /// The word.
        word: String,
        /// Names that contain it.
        near: Vec<&'static str>,
    },
    /// A name of several bits.
    #[error("`{word}` is the name of several bits; name one of them: {}", .bits.join(", "))]
    Ambiguous {
        /// The word.
        word: String,
        /// The bits, as they can be asked for.
        bits: Vec<String>,
    },
}

fn suggest(names: &[&str]) -> String {
    if names.is_empty() { String::new() } else { format!(" (is it {}?)", names.join(", ")) }
}

/// Words of Linux that stand for several bits.
const TOGETHER: &[(&str, &[&str])] =
    &[("flexpriority", &["vtpr", "vapic"]), ("apicv", &["vtpr", "vapic_reg", "vid", "posted_intr"])];

/// Reads a list of features with commas between.
pub fn parse(list: &str) -> Result<Vec<Feature>, Error> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty()).map(one).collect()
}

fn one(text: &str) -> Result<Feature, Error> {
    let bare = text.strip_prefix('+').unwrap_or(text);
    let bare = ["=on", "=true", "=1"].iter().find_map(|on| bare.strip_suffix(on)).unwrap_or(bare);
    // QEMU's warnings name a feature as `MSR(48BH).vmx-rdrand-exit`.
    let bare = bare.split_once(").").map_or(bare, |(_, name)| name);
    let word = same(bare);
    let wants = match TOGETHER.iter().find(|(name, _)| *name == word) {
        Some((_, parts)) => {
            parts.iter().flat_map(|part| named(&same(part), |field| vec![field.linux])).collect()
        }
        None => by_bit(bare).map_or_else(|| by_words(text, &word), |want| Ok(vec![want]))?,
    };
    Ok(Feature { name: bare.to_owned(), wants })
}

/// Names are the same in any case, with `-`, `_` or spaces in them.
fn same(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace(['_', ' '], "-")
}

/// `0x48b.11`, `cpuid.0x8000000a.edx.13`, `IA32_VMX_MISC.5`.
fn by_bit(text: &str) -> Option<Want> {
    let (register, bit) = text.rsplit_once(['.', ':'])?;
    let bit: u8 = bit.trim().parse().ok()?;
    let register = Address::parse(register).and_then(find).or_else(|| by_name(register))?;
    let wide = if let Kind::Controls { .. } = register.kind { 32 } else { register.address.width() };
    let plain = register.controls().and_then(|controls| controls.addresses().last()).copied();
    let fixed = matches!(register.kind, Kind::Fixed0 | Kind::Fixed1);
    let field = register.fields.iter().find(|field| field.bits.mask() >> bit.min(63) & 1 == 1);
    let bits = field.map_or(Bits { high: bit, low: bit }, |field| field.bits);
    let want = Want { address: plain.unwrap_or(register.address), bits, either: false };
    (u32::from(bit) < wide && !fixed).then_some(want)
}

fn by_words(text: &str, word: &str) -> Result<Vec<Want>, Error> {
    let qemu = named(word, |field| field.qemu.split_whitespace().collect());
    let qemu: Vec<Want> =
        qemu.into_iter().map(|want| Want { either: want.controls().is_some(), ..want }).collect();
    if !qemu.is_empty() {
        // Linux may have the same word for the other vendor's.
        let linux = named(word, |field| vec![field.linux]).into_iter();
        let others = linux.filter(|want| qemu.iter().all(|other| other.isa() != want.isa()));
        return Ok(qemu.iter().copied().chain(others).collect());
    }
    let linux = named(word, |field| vec![field.linux]);
    if !linux.is_empty() {
        return Ok(linux);
    }
    let manual = named(word, |field| vec![field.name]);
    if Isa::ALL.iter().any(|isa| manual.iter().filter(|want| want.isa() == *isa).count() > 1) {
        let bits = manual.iter().map(|want| format!("{}.{}", want.address, want.bits.low)).collect();
        return Err(Error::Ambiguous { word: text.into(), bits });
    }
    let summary = FEATURES.iter().filter(|feature| same(feature.name) == word);
    let tests = summary.flat_map(|feature| feature.tests.iter().filter_map(of_test));
    match manual.is_empty() {
        false => Ok(manual),
        true => Some(tests.collect::<Vec<Want>>())
            .filter(|wants| !wants.is_empty())
            .ok_or_else(|| Error::Unknown { word: text.into(), near: like(word) }),
    }
}

fn of_test(test: &Test) -> Option<Want> {
    let bit = |bit| Bits { high: bit, low: bit };
    match *test {
        Test::Control(controls, number) => {
            Some(Want { address: *controls.addresses().last()?, bits: bit(number), either: false })
        }
        Test::Flag(address, number) => Some(Want { address, bits: bit(number), either: false }),
        Test::Leaf(_) => None,
    }
}

/// Registers whose bits can be wanted: not the TRUE forms, which have the same names, not what firmware decides, and
/// not what CR0 and CR4 may hold.
fn registers() -> impl Iterator<Item = &'static Register> {
    REGISTERS.iter().filter(|register| {
        let plain =
            register.controls().is_none_or(|group| group.addresses().last() == Some(&register.address));
        let wanted = !register.is_switch() || register.kind == Kind::Presence;
        plain && wanted && !matches!(register.kind, Kind::Fixed0 | Kind::Fixed1)
    })
}

fn named(word: &str, names: impl Fn(&'static Field) -> Vec<&'static str>) -> Vec<Want> {
    let fields = registers().flat_map(|register| register.fields.iter().map(move |field| (register, field)));
    let found = fields.filter(|(_, field)| names(field).iter().any(|name| same(name) == word));
    found
        .map(|(register, field)| Want { address: register.address, bits: field.bits, either: false })
        .collect()
}

/// Names of others that contain the word, or are contained in it.
fn like(word: &str) -> Vec<&'static str> {
    let stem = word.trim_start_matches("vmx-").trim_end_matches("ing");
    let names = registers().flat_map(|register| register.fields).flat_map(Field::aliases);
    names.filter(|name| stem.len() > 2 && same(name).contains(stem)).take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(word: &str) -> Vec<(String, u8, bool)> {
        let features = parse(word).unwrap_or_else(|error| panic!("{error}"));
        let wants = features.into_iter().flat_map(|feature| feature.wants);
        wants.map(|want| (want.address.to_string(), want.bits.low, want.either)).collect()
    }

    #[test]
    fn every_name_finds_its_bit() {
        for register in registers() {
            for field in register.fields {
                for name in field.aliases() {
                    let found = wants(name);
                    assert!(
                        found.iter().any(|(address, low, _)| {
                            (address, *low) == (&register.address.to_string(), field.bits.low)
                        }),
                        "{name}: {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn qemus_names_are_unique() {
        let fields = registers().flat_map(|register| register.fields);
        let names: Vec<&str> = fields.flat_map(|field| field.qemu.split_whitespace()).collect();
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{name}");
        }
    }

    #[test]
    fn words_are_understood_in_many_ways() {
        let one = |address: &str, bit, either| vec![(address.to_owned(), bit, either)];
        for word in ["vmx-rdrand-exit", "VMX_RDRAND_EXIT", "+vmx-rdrand-exit", "vmx-rdrand-exit=on"] {
            assert_eq!(wants(word), one("0x48b", 11, true), "{word}");
        }
        assert_eq!(wants("MSR(48BH).vmx-rdrand-exit"), one("0x48b", 11, true));
        for word in ["RDRAND exiting", "rdrand-exiting", "0x48b.11", "IA32_VMX_PROCBASED_CTLS2.11"] {
            assert_eq!(wants(word), one("0x48b", 11, false), "{word}");
        }
        assert_eq!(wants("0x48e.7"), one("0x482", 7, false), "the TRUE form is the same group");
        assert_eq!(wants("vnmi").len(), 2, "one of each vendor's");
        assert_eq!(wants("apicv").len(), 4);
        assert_eq!(wants("posted interrupts"), one("0x481", 7, false));
        assert_eq!(wants("avic"), one("cpuid.0x8000000a.edx", 13, false));
        assert_eq!(wants("vmx-ept, vmx-vpid,").len(), 2);
    }

    #[test]
    fn what_is_no_feature_is_told() {
        let told = |word| parse(word).unwrap_err().to_string();
        assert!(told("vmx-rdrand").contains("is it vmx-rdrand-exit?"), "{}", told("vmx-rdrand"));
        assert!(told("Load IA32_PAT").contains("0x483.19, 0x484.14"), "{}", told("Load IA32_PAT"));
        for word in ["nowhere", "0x48b.32", "0x48b.x", "0x10.1", "-vmx-ept", "vmx-ept=off", "0x486.0"] {
            assert!(told(word).contains("is no feature"), "{word}");
        }
    }
}
