//! Machines whose capabilities are asked for: this one, what its KVM offers, or a dump.

use std::convert::Infallible;
use std::fmt::{self, Display};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow, bail};
use exitscope_abi::reason::Isa;
use exitscope_caps::feature::{self, Feature};
use exitscope_caps::live::{self, Live};
use exitscope_caps::usage::Usage;
use exitscope_caps::{Address, Cpu, Gpr, ask, dump, presence};
use exitscope_vmm::offer::Offer;

/// Where KVM is.
const KVM: &str = "/dev/kvm";

/// A machine, as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machine {
    /// This one.
    Live,
    /// A guest of this one's KVM.
    Kvm,
    /// One that was dumped; `-` for standard input.
    Dump(PathBuf),
}

/// What a guest may use: all of a machine, or features by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Required {
    /// A machine.
    Machine(Machine),
    /// Features.
    Features(Vec<Feature>),
}

/// A file, `live` and `kvm` are machines; anything else is a list of features, if it can be one.
impl FromStr for Required {
    type Err = feature::Error;

    fn from_str(text: &str) -> Result<Self, feature::Error> {
        let Ok(machine) = text.parse::<Machine>();
        let is_file = text.contains('/') || Path::new(text).exists();
        if !matches!(machine, Machine::Dump(_)) || text == "-" || is_file {
            return Ok(Self::Machine(machine));
        }
        match feature::parse(text) {
            Ok(features) if !features.is_empty() => Ok(Self::Features(features)),
            // A word that is neither is more likely a file that is missing.
            Ok(_) => Ok(Self::Machine(machine)),
            Err(feature::Error::Unknown { near, .. }) if near.is_empty() && !text.contains(',') => {
                Ok(Self::Machine(machine))
            }
            Err(error) => Err(error),
        }
    }
}

impl Display for Required {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(machine) => machine.fmt(f),
            Self::Features(features) => {
                let names: Vec<&str> = features.iter().map(|feature| feature.name.as_str()).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

/// What could be read of a machine.
pub struct Reading {
    /// Its CPUs.
    pub cpus: Vec<Cpu>,
    /// What KVM uses of them, of a live machine.
    pub kvm: Option<Usage>,
    /// What could not.
    pub complaint: Option<anyhow::Error>,
}

impl FromStr for Machine {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "live" => Self::Live,
            "kvm" => Self::Kvm,
            path => Self::Dump(path.into()),
        })
    }
}

impl Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live => f.write_str("live"),
            Self::Kvm => f.write_str("kvm"),
            Self::Dump(path) => path.display().fmt(f),
        }
    }
}

impl Machine {
    /// Reads what can be read of it.
    pub fn read(&self) -> anyhow::Result<Reading> {
        match self {
            Self::Live => {
                let Live { cpus, kvm, complaint } = live::read()?;
                Ok(Reading { cpus, kvm, complaint: complaint.map(anyhow::Error::from) })
            }
            Self::Kvm => {
                Ok(Reading { cpus: vec![offered(&Offer::of(Path::new(KVM))?)?], kvm: None, complaint: None })
            }
            Self::Dump(path) => {
                let dump = dump::parse(&bytes(path)?);
                let errors: Vec<String> = dump.errors.iter().map(ToString::to_string).collect();
                let complaint = anyhow!("{}: {}", path.display(), errors.join("\n  "));
                Ok(Reading {
                    cpus: dump.cpus,
                    kvm: None,
                    complaint: (!errors.is_empty()).then_some(complaint),
                })
            }
        }
    }
}

fn bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path != Path::new("-") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    Ok(bytes)
}

/// The registers that a guest of KVM may be shown.
fn offered(offer: &Offer) -> anyhow::Result<Cpu> {
    let value = |address| match address {
        Address::Msr(number) => offer.msr(number),
        Address::Cpuid(leaf, gpr) => {
            // A leaf that is not offered says no to everything.
            let results = Gpr::ALL.into_iter().zip(offer.cpuid(leaf).unwrap_or_default());
            results.into_iter().find(|(of, _)| *of == gpr).map(|(_, value)| value.into())
        }
    };
    let isa = presence::isa(value).filter(|isa| *isa == Isa::Svm || value(Address::Msr(0x480)).is_some());
    let Some(isa) = isa else {
        bail!("{KVM} offers its guests neither VMX nor SVM: load kvm_intel or kvm_amd with nested=1")
    };
    let mut cpu = ask::read(0, isa, value);
    // An MSR that KVM does not list is no feature but a state of each guest.
    cpu.registers.retain(|(_, value)| value.is_some());
    Ok(cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_told_from_files() {
        let parse = |text: &str| text.parse::<Machine>().unwrap_or(Machine::Live);
        assert_eq!([parse("live"), parse("kvm")], [Machine::Live, Machine::Kvm]);
        for file in ["-", "./live", "dump.txt"] {
            assert_eq!(parse(file), Machine::Dump(file.into()));
            assert_eq!(parse(file).to_string(), file);
        }
    }

    #[test]
    fn features_are_told_from_machines() {
        let features = |text: &str| matches!(text.parse(), Ok(Required::Features(_)));
        assert!(features("vmx-rdrand-exit,vmx-vmfunc") && features("ept"));
        for machine in ["live", "kvm", "-", "./ept", "nowhere"] {
            assert!(matches!(machine.parse(), Ok(Required::Machine(_))), "{machine}");
        }
        assert!("vmx-ept,nowhere".parse::<Required>().is_err());
    }

    #[test]
    fn a_kvm_that_offers_nothing_says_so() {
        let error = offered(&Offer::default()).unwrap_err().to_string();
        assert!(error.contains("nested=1"), "{error}");
    }
}
