//! What a CPU's virtualization has, lacks, and leaves unsaid, in words that matter to a hypervisor.

use exitscope_abi::reason::Isa;

use super::tables::{Controls, Test};
use super::{Address, Cpu, Gpr};

/// Something that a hypervisor would use.
#[derive(Debug)]
pub struct Feature {
    /// The field's name for it.
    pub name: &'static str,
    /// Whose it is.
    pub isa: Isa,
    /// The CPU has it if all of these hold.
    pub tests: &'static [Test],
    /// What it may come with.
    pub with: &'static [(&'static str, Test)],
}

impl Feature {
    /// Whether a CPU has it; `None` if what was read does not tell.
    pub fn holds(&self, cpu: &Cpu) -> Option<bool> {
        let answers = || self.tests.iter().map(|test| test.holds(cpu));
        match answers().any(|answer| answer == Some(false)) {
            true => Some(false),
            false => answers().all(|answer| answer == Some(true)).then_some(true),
        }
    }
}

/// Features by what is known of them, in the words of [`FEATURES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The CPU has them.
    pub has: Vec<String>,
    /// It lacks them.
    pub lacks: Vec<String>,
    /// What was read does not tell.
    pub unknown: Vec<String>,
}

/// The features of one instruction set; `None` if the CPU has no such thing, or nothing was read of it.
pub fn summary(cpu: &Cpu, isa: Isa) -> Option<Summary> {
    if cpu.offers(isa) != Some(true) {
        return None;
    }
    let mut summary = Summary::default();
    for feature in FEATURES.iter().filter(|feature| feature.isa == isa) {
        let list = match feature.holds(cpu) {
            Some(true) => &mut summary.has,
            Some(false) => &mut summary.lacks,
            None => &mut summary.unknown,
        };
        list.push(words(feature, cpu));
    }
    Some(summary)
}

/// Every feature, and everything that it may come with, as `EPT: 1G pages`, each with whether the CPU has it.
pub fn features(cpu: &Cpu) -> impl Iterator<Item = (String, Option<bool>)> {
    FEATURES.iter().flat_map(move |feature| {
        let holds = match cpu.offers(feature.isa) {
            Some(true) => feature.holds(cpu),
            Some(false) => Some(false),
            None => None,
        };
        let with = feature.with.iter().map(move |(name, test)| {
            let both = if holds == Some(true) { test.holds(cpu) } else { holds };
            (format!("{}: {name}", feature.name), both)
        });
        std::iter::once((feature.name.to_owned(), holds)).chain(with)
    })
}

fn words(feature: &Feature, cpu: &Cpu) -> String {
    let has = |test: Test| feature.holds(cpu) == Some(true) && test.holds(cpu) == Some(true);
    let with: Vec<&str> = feature.with.iter().filter(|(_, test)| has(*test)).map(|(name, _)| *name).collect();
    match with.is_empty() {
        true => feature.name.into(),
        false => format!("{} with {}", feature.name, with.join(", ")),
    }
}

const fn vmx(name: &'static str, tests: &'static [Test]) -> Feature {
    Feature { name, isa: Isa::Vmx, tests, with: &[] }
}

const fn svm(name: &'static str, tests: &'static [Test]) -> Feature {
    Feature { name, isa: Isa::Svm, tests, with: &[] }
}

impl Feature {
    const fn with(mut self, with: &'static [(&'static str, Test)]) -> Self {
        self.with = with;
        self
    }
}

const fn ept(bit: u8) -> Test {
    Test::Flag(Address::Msr(0x48C), bit)
}

const fn svm_flag(bit: u8) -> Test {
    Test::Flag(Address::Cpuid(0x8000_000A, Gpr::Edx), bit)
}

const fn encryption(bit: u8) -> Test {
    Test::Flag(Address::Cpuid(0x8000_001F, Gpr::Eax), bit)
}

/// What a summary tells, the most wanted first.
#[rustfmt::skip]
pub static FEATURES: &[Feature] = {
    use Controls::{Entry, Pin, Proc, Proc2, Proc3};
    use Test::{Control, Flag};
    &[
        vmx("EPT", &[Control(Proc2, 1)]).with(&[
            ("1G pages", ept(17)), ("2M pages", ept(16)), ("execute-only pages", ept(0)),
            ("accessed and dirty flags", ept(21)), ("5 levels", ept(7)),
        ]),
        vmx("VPID", &[Control(Proc2, 5)]),
        vmx("unrestricted guest", &[Control(Proc2, 7)]),
        vmx("mode-based execute control", &[Control(Proc2, 22)]),
        vmx("posted interrupts", &[Control(Pin, 7)]),
        vmx("virtual-interrupt delivery", &[Control(Proc2, 9)]),
        vmx("APIC-register virtualization", &[Control(Proc2, 8)]),
        vmx("IPI virtualization", &[Control(Proc3, 4)]),
        vmx("TPR shadow", &[Control(Proc, 21)]),
        vmx("virtual NMIs", &[Control(Pin, 5)]),
        vmx("preemption timer", &[Control(Pin, 6)]),
        vmx("TSC scaling", &[Control(Proc2, 25)]),
        vmx("MSR bitmaps", &[Control(Proc, 28)]),
        vmx("shadow VMCS", &[Control(Proc2, 14)]),
        vmx("PML", &[Control(Proc2, 17)]),
        vmx("VM functions", &[Control(Proc2, 13)]).with(&[("EPTP switching", Flag(Address::Msr(0x491), 0))]),
        vmx("EPT-violation #VE", &[Control(Proc2, 18)]),
        vmx("sub-page write permissions", &[Control(Proc2, 23)]),
        vmx("HLAT", &[Control(Proc3, 1)]),
        vmx("PAUSE-loop exiting", &[Control(Proc2, 10)]),
        vmx("bus-lock exits", &[Control(Proc2, 30)]),
        vmx("instruction timeout", &[Control(Proc2, 31)]),
        vmx("Intel PT in guests", &[Flag(Address::Msr(0x485), 14), Control(Proc2, 24)]),
        vmx("CET state", &[Control(Entry, 20)]),
        vmx("FRED state", &[Control(Entry, 23)]),
        vmx("TRUE controls", &[Flag(Address::Msr(0x480), 55)]),
        svm("nested paging", &[svm_flag(0)]).with(&[("guest-mode execute trap", svm_flag(17))]),
        svm("AVIC", &[svm_flag(13)]).with(&[("x2APIC mode", svm_flag(18))]),
        svm("virtual GIF", &[svm_flag(16)]),
        svm("virtual NMIs", &[svm_flag(25)]),
        svm("virtual VMSAVE/VMLOAD", &[svm_flag(15)]),
        svm("TSC scaling", &[svm_flag(4)]),
        svm("next RIP", &[svm_flag(3)]),
        svm("decode assists", &[svm_flag(7)]),
        svm("flush by ASID", &[svm_flag(6)]),
        svm("VMCB clean bits", &[svm_flag(5)]),
        svm("LBR virtualization", &[svm_flag(1)]),
        svm("performance counter virtualization", &[svm_flag(8)]),
        svm("pause filter", &[svm_flag(10)]).with(&[("threshold", svm_flag(12))]),
        svm("bus-lock threshold", &[svm_flag(29)]),
        svm("idle HLT intercept", &[svm_flag(30)]),
        svm("PML", &[Flag(Address::Cpuid(0x8000_000A, Gpr::Ecx), 4)]),
        svm("SEV", &[encryption(1)]).with(&[("SEV-ES", encryption(3)), ("SEV-SNP", encryption(4))]),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_yes_no_and_unknown_apart() {
        // A Wildcat Lake's registers, but for the one of the EPT's details.
        let registers = [
            (0x480, Some(0x03DA_0500_0000_0013)),
            (0x481, Some(0x0000_00FF_0000_0016)),
            (0x482, Some(0xFFF9_FFFE_0401_E172)),
            (0x48B, Some(0x0F5D_7FFF_0000_0000)),
            (0x48C, None),
        ];
        let registers = registers.map(|(number, value)| (Address::Msr(number), value)).into();
        let summary = |cpu: &Cpu| summary(cpu, Isa::Vmx).unwrap();
        let mut cpu = Cpu { id: 0, registers };
        let said = summary(&cpu);
        assert_eq!(said.has[..3], ["EPT", "VPID", "unrestricted guest"]);
        assert!(said.has.contains(&"posted interrupts".into()));
        assert!(said.lacks.contains(&"IPI virtualization".into()), "no tertiary controls, hence no IPIs");
        assert_eq!(said.unknown, ["Intel PT in guests", "CET state", "FRED state"]);
        cpu.registers[4].1 = Some(0x0001_0F01_06F3_4141);
        let ept = "EPT with 1G pages, 2M pages, execute-only pages, accessed and dirty flags";
        assert_eq!(summary(&cpu).has[0], ept);
        assert_eq!(super::summary(&cpu, Isa::Svm), None);
    }

    #[test]
    fn every_feature_asks_for_a_named_bit() {
        for feature in FEATURES {
            for test in feature.tests.iter().copied().chain(feature.with.iter().map(|(_, test)| *test)) {
                let (address, bit) = match test {
                    Test::Control(controls, bit) => (controls.addresses()[0], bit),
                    Test::Flag(address, bit) => (address, bit),
                    Test::Leaf(leaf) => panic!("{leaf:#x} is no bit"),
                };
                let register = super::super::tables::find(address).unwrap();
                assert_eq!(register.isa(), feature.isa, "{}", feature.name);
                assert!(
                    register.fields.iter().any(|field| field.bits.low == bit),
                    "{}: {test:?}",
                    feature.name
                );
            }
        }
    }
}
