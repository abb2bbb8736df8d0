//! Every capability register and every bit that the manuals define in it: the only place where they are written down.
//!
//! Section numbers are those of the SDM of October 2025 (vol. 3; appendix A for the registers, chapter 26 for
//! the controls) and of the APM (vol. 3 appendix E for CPUID, vol. 2 for VM_CR).

use std::fmt;

use exitscope_abi::reason::Isa;
use serde::{Serialize, Serializer};

use super::{Address, Cpu, Gpr, Known};

/// Builds a `&'static [Field]` from rows of `bit "name" "meaning"` or `high:low "name" "meaning"`, each with the names
/// that QEMU and Linux have for it, if they have any.
macro_rules! fields {
    ($($high:literal $(: $low:literal)? $name:literal $meaning:literal $(qemu $qemu:literal)? $(linux $linux:literal)?)*) => {
        &[$($crate::tables::Field {
            bits: $crate::tables::Bits { high: $high, low: fields!(@low $high $($low)?) },
            name: $name,
            meaning: $meaning,
            qemu: concat!($($qemu)?),
            linux: concat!($($linux)?),
        }),*]
    };
    (@low $high:literal) => { $high };
    (@low $high:literal $low:literal) => { $low };
}

mod controls;
mod fixed;
mod plain;
mod svm;

/// A range of bits, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// The highest bit.
    pub high: u8,
    /// The lowest bit.
    pub low: u8,
}

impl Bits {
    /// These bits of `value`, as a number.
    pub const fn of(self, value: u64) -> u64 {
        (value & self.mask()) >> self.low
    }

    /// A word with these bits set.
    pub const fn mask(self) -> u64 {
        (u64::MAX >> (63 - (self.high - self.low))) << self.low
    }
}

/// `5`, or `high:low`.
impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.high == self.low {
            true => write!(f, "{}", self.low),
            false => write!(f, "{}:{}", self.high, self.low),
        }
    }
}

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A named bit or range of bits.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    /// Where it is; in a register of controls, the number of the control.
    pub bits: Bits,
    /// The manual's name for it.
    pub name: &'static str,
    /// What it says when set (or, for a number, how to read it), in one line without a full stop.
    pub meaning: &'static str,
    /// What QEMU and libvirt call it, several names with spaces between; empty if they have none. Of a control the
    /// name says that it may be 0 and may be 1.
    pub qemu: &'static str,
    /// What Linux calls it in `/proc/cpuinfo`; empty if it has no name there. Of a control it says that it may be 1.
    pub linux: &'static str,
}

impl Field {
    /// Every name that others have for it, QEMU's first.
    pub fn aliases(&self) -> impl Iterator<Item = &'static str> {
        self.qemu.split_whitespace().chain((!self.linux.is_empty()).then_some(self.linux))
    }
}

/// How a register says what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Flags and numbers.
    Plain,
    /// Flags of which only those with names tell of virtualization.
    Presence,
    /// 32 controls: bit X of the low half is 1 if control X must be 1, bit X of the high half if it may be 1.
    Controls {
        /// The class of controls that software which does not know them leaves at 1 (SDM vol. 3 A.2).
        default1: u32,
    },
    /// 64 controls, each of which may be 0; bit X is 1 if control X may be 1.
    Allowed1,
    /// Bit X is 1 if bit X of the control register must be 1 in VMX operation.
    Fixed0,
    /// Bit X is 0 if bit X of the control register must be 0 in VMX operation.
    Fixed1,
}

/// A capability register.
#[derive(Debug)]
pub struct Register {
    /// Where it is.
    pub address: Address,
    /// The manual's name.
    pub name: &'static str,
    /// Other names of it, by those who print it; see [`by_name`].
    pub also: &'static [&'static str],
    /// The manual's sections on it and on its bits.
    pub section: &'static str,
    /// How to read it.
    pub kind: Kind,
    /// It exists if one of these holds; always, if there are none.
    pub needs: &'static [Test],
    /// Its bits, in ascending order.
    pub fields: &'static [Field],
}

/// A question that one bit answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Whether a control may be 1.
    Control(Controls, u8),
    /// Whether a flag is set.
    Flag(Address, u8),
    /// Whether CPUID has this extended leaf.
    Leaf(u32),
}

/// A group of controls, which one or two registers describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controls {
    /// Pin-based VM-execution controls.
    Pin,
    /// Primary processor-based VM-execution controls.
    Proc,
    /// Secondary processor-based VM-execution controls.
    Proc2,
    /// Tertiary processor-based VM-execution controls.
    Proc3,
    /// Primary VM-exit controls.
    Exit,
    /// Secondary VM-exit controls.
    Exit2,
    /// VM-entry controls.
    Entry,
}

impl Controls {
    /// All groups.
    pub const ALL: [Self; 7] =
        [Self::Pin, Self::Proc, Self::Proc2, Self::Proc3, Self::Exit, Self::Exit2, Self::Entry];

    /// The registers that describe it, the one to believe first, the one that comes with the group last.
    pub const fn addresses(self) -> &'static [Address] {
        use Address::Msr;
        match self {
            Self::Pin => &[Msr(0x48D), Msr(0x481)],
            Self::Proc => &[Msr(0x48E), Msr(0x482)],
            Self::Proc2 => &[Msr(0x48B)],
            Self::Proc3 => &[Msr(0x492)],
            Self::Exit => &[Msr(0x48F), Msr(0x483)],
            Self::Exit2 => &[Msr(0x493)],
            Self::Entry => &[Msr(0x490), Msr(0x484)],
        }
    }
}

/// Which settings of controls a CPU allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Bit X: control X may be 0.
    pub zero: u64,
    /// Bit X: control X may be 1.
    pub one: u64,
}

impl Allowed {
    /// What it says of a control, in words.
    pub const fn says(self, control: Bits) -> &'static str {
        match (control.of(self.zero) != 0, control.of(self.one) != 0) {
            (true, true) => "0 or 1",
            (true, false) => "0 only",
            (false, true) => "1 only",
            (false, false) => "neither 0 nor 1",
        }
    }
}

impl Kind {
    /// The settings that a register of controls with this value allows; `None` if it is none.
    pub const fn allowed(self, value: u64) -> Option<Allowed> {
        match self {
            Self::Controls { .. } => Some(Allowed { zero: !value & 0xFFFF_FFFF, one: value >> 32 }),
            Self::Allowed1 => Some(Allowed { zero: u64::MAX, one: value }),
            Self::Plain | Self::Presence | Self::Fixed0 | Self::Fixed1 => None,
        }
    }

    /// What a register of this kind, which reads as `value`, says of some bits, in words or as a number.
    pub fn says(self, value: u64, bits: Bits) -> String {
        match self.allowed(value) {
            Some(allowed) => allowed.says(bits).into(),
            None => self.plainly(bits.of(value)),
        }
    }

    /// Bits of a register that is not one of controls.
    pub fn plainly(self, bits: u64) -> String {
        match (self, bits) {
            (Self::Fixed0, 0) => "may be 0".into(),
            (Self::Fixed0, _) => "must be 1".into(),
            (Self::Fixed1, 0) => "must be 0".into(),
            (Self::Fixed1, _) => "may be 1".into(),
            _ => bits.to_string(),
        }
    }
}

impl Register {
    /// The instruction set that it belongs to.
    pub const fn isa(&self) -> Isa {
        match self.address {
            Address::Msr(0..0x1000) | Address::Cpuid(1, _) => Isa::Vmx,
            _ => Isa::Svm,
        }
    }

    /// Whether it says if virtualization is there, or if firmware lets it be used, rather than what it can do.
    pub const fn is_switch(&self) -> bool {
        matches!(
            self.address,
            Address::Msr(0x3A | 0xC001_0114) | Address::Cpuid(1 | 0x8000_0000 | 0x8000_0001, _)
        )
    }

    /// Whether this CPU has it; `None` if what was read does not tell.
    pub fn exists(&self, cpu: &Cpu) -> Option<bool> {
        if !self.is_switch() && cpu.offers(self.isa()) == Some(false) {
            return Some(false);
        }
        if self.needs.is_empty() {
            return Some(true);
        }
        let mut answers = self.needs.iter().map(|test| test.holds(cpu));
        let no = |answer: Option<bool>| answer == Some(false);
        match answers.clone().any(|answer| answer == Some(true)) {
            true => Some(true),
            false => answers.all(no).then_some(false),
        }
    }

    /// All its bits: those that have names by field, then the others one by one.
    pub fn parts(&self) -> impl Iterator<Item = (Bits, Option<&'static Field>)> {
        let width = match self.kind {
            Kind::Controls { .. } => 32,
            Kind::Presence => 0,
            _ => self.address.width(),
        };
        let others = (0..64).filter(move |&bit| u32::from(bit) < width && self.named() >> bit & 1 == 0);
        let named = self.fields.iter().map(|field| (field.bits, Some(field)));
        named.chain(others.map(|bit| (Bits { high: bit, low: bit }, None)))
    }

    /// The bits that have names.
    pub fn named(&self) -> u64 {
        self.fields.iter().fold(0, |mask, field| mask | field.bits.mask())
    }

    /// The register that says the same of the same controls, and more exactly; SDM vol. 3 A.2.
    pub fn better(&self) -> Option<Address> {
        match self.address {
            Address::Msr(plain @ 0x481..=0x484) => Some(Address::Msr(plain + 0x48D - 0x481)),
            _ => None,
        }
    }

    /// The group of controls that it describes.
    pub fn controls(&self) -> Option<Controls> {
        Controls::ALL.into_iter().find(|controls| controls.addresses().contains(&self.address))
    }

    /// What it says of some bits of a value, in words or as a number.
    pub fn says(&self, value: u64, bits: Bits) -> String {
        self.kind.says(value, bits)
    }
}

impl Test {
    /// The answer; `None` if what was read does not tell.
    pub fn holds(self, cpu: &Cpu) -> Option<bool> {
        match self {
            Self::Control(controls, bit) => Some(cpu.allowed(controls)?.one >> bit & 1 == 1),
            Self::Flag(address, bit) => match cpu.known(address) {
                Known::Value(value) => Some(value >> bit & 1 == 1),
                Known::Absent => Some(false),
                Known::Nothing => None,
            },
            Self::Leaf(leaf) => Some(cpu.read(HIGHEST_LEAF)? >= u64::from(leaf)),
        }
    }
}

impl Cpu {
    /// The settings of controls that it allows, by the TRUE form where that is known; all 0 if it lacks the group;
    /// `None` if what was read does not tell.
    pub fn allowed(&self, controls: Controls) -> Option<Allowed> {
        let mut registers = controls.addresses().iter().filter_map(|&address| find(address));
        let read =
            registers.clone().find_map(|register| register.kind.allowed(self.value(register.address)?));
        let plain = registers.next_back()?;
        read.or_else(|| (plain.exists(self) == Some(false)).then_some(Allowed { zero: u64::MAX, one: 0 }))
    }
}

/// The register at `address`.
pub fn find(address: Address) -> Option<&'static Register> {
    let index = REGISTERS.binary_search_by_key(&address, |register| register.address).ok()?;
    REGISTERS.get(index)
}

/// The register that this name means: the manual's or another's, with or without `MSR_` and `IA32_`, in any case.
pub fn by_name(name: &str) -> Option<&'static Register> {
    let stem = stem(name)?;
    let mut registers = REGISTERS.iter().filter(|register| matches!(register.address, Address::Msr(_)));
    let own =
        |name: &'static str| name.strip_prefix("IA32_").unwrap_or(name).bytes().filter(|byte| *byte != b'_');
    registers.find(|register| own(register.name).eq(stem.bytes()) || register.also.contains(&stem.as_str()))
}

/// What is left of a name: no prefix, no underscores, no small letters.
fn stem(name: &str) -> Option<String> {
    if name.len() > 40 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return None;
    }
    let mut stem = name.to_ascii_uppercase();
    for prefix in ["X86_", "MSR_", "IA32_", "A32_", "AMD64_", "AMD_", "K8_"] {
        if stem.starts_with(prefix) {
            stem.drain(..prefix.len());
        }
    }
    stem.retain(|c| c != '_');
    Some(stem)
}

/// The highest extended leaf of CPUID.
pub const HIGHEST_LEAF: Address = Address::Cpuid(0x8000_0000, Gpr::Eax);
const SVM_LEAF: &[Test] = &[Test::Leaf(0x8000_000A)];
const ENCRYPTION_LEAF: &[Test] = &[Test::Leaf(0x8000_001F)];
const TRUE_FORMS: &[Test] = &[Test::Flag(Address::Msr(0x480), 55)];
const PIN: Kind = Kind::Controls { default1: 0x0000_0016 };
const PROC: Kind = Kind::Controls { default1: 0x0401_E172 };
const PROC2: Kind = Kind::Controls { default1: 0 };
const EXIT: Kind = Kind::Controls { default1: 0x0003_6DFF };
const ENTRY: Kind = Kind::Controls { default1: 0x0000_11FF };

const fn msr(
    number: u32,
    name: &'static str,
    section: &'static str,
    kind: Kind,
    fields: &'static [Field],
) -> Register {
    Register { address: Address::Msr(number), name, also: &[], section, kind, needs: &[], fields }
}

const fn cpuid(
    leaf: u32,
    gpr: Gpr,
    name: &'static str,
    section: &'static str,
    fields: &'static [Field],
) -> Register {
    let address = Address::Cpuid(leaf, gpr);
    Register { address, name, also: &[], section, kind: Kind::Plain, needs: &[], fields }
}

impl Register {
    const fn also(mut self, also: &'static [&'static str]) -> Self {
        self.also = also;
        self
    }

    const fn presence(mut self) -> Self {
        self.kind = Kind::Presence;
        self
    }

    const fn needs(mut self, needs: &'static [Test]) -> Self {
        self.needs = needs;
        self
    }
}

/// All capability registers, in ascending order of their addresses, which is a fit order for reading them.
#[rustfmt::skip]
pub static REGISTERS: &[Register] = &[
    msr(0x03A, "IA32_FEATURE_CONTROL", "SDM vol. 3, 25.7; vol. 4, table 2-2", Kind::Plain, plain::FEATURE_CONTROL)
        .also(&["FEATCTL", "FEATCTRL", "FEATURECONTROLMSR", "FEATURECTRL"]),
    msr(0x480, "IA32_VMX_BASIC", "SDM vol. 3, A.1", Kind::Plain, plain::BASIC)
        .also(&["VMXBASICINFO"]),
    msr(0x481, "IA32_VMX_PINBASED_CTLS", "SDM vol. 3, A.3.1 and 26.6.1", PIN, controls::PIN)
        .also(&["VMXPINBASEDCTL", "VMXPINBASEDCONTROLS", "VMXPINBASED"]),
    msr(0x482, "IA32_VMX_PROCBASED_CTLS", "SDM vol. 3, A.3.2 and 26.6.2", PROC, controls::PROC)
        .also(&["VMXPROCBASEDCTL", "VMXPROCBASEDCONTROLS", "VMXPROCBASED"]),
    msr(0x483, "IA32_VMX_EXIT_CTLS", "SDM vol. 3, A.4.1 and 26.7.1", EXIT, controls::EXIT)
        .also(&["VMXEXITCTL", "VMXEXITCONTROLS"]),
    msr(0x484, "IA32_VMX_ENTRY_CTLS", "SDM vol. 3, A.5 and 26.8.1", ENTRY, controls::ENTRY)
        .also(&["VMXENTRYCTL", "VMXENTRYCONTROLS"]),
    msr(0x485, "IA32_VMX_MISC", "SDM vol. 3, A.6", Kind::Plain, plain::MISC)
        .also(&["VMXMISCINFO"]),
    msr(0x486, "IA32_VMX_CR0_FIXED0", "SDM vol. 3, A.7 and 2.5", Kind::Fixed0, fixed::CR0),
    msr(0x487, "IA32_VMX_CR0_FIXED1", "SDM vol. 3, A.7 and 2.5", Kind::Fixed1, fixed::CR0),
    msr(0x488, "IA32_VMX_CR4_FIXED0", "SDM vol. 3, A.8 and 2.5", Kind::Fixed0, fixed::CR4),
    msr(0x489, "IA32_VMX_CR4_FIXED1", "SDM vol. 3, A.8 and 2.5", Kind::Fixed1, fixed::CR4),
    msr(0x48A, "IA32_VMX_VMCS_ENUM", "SDM vol. 3, A.9", Kind::Plain, plain::VMCS_ENUM),
    msr(0x48B, "IA32_VMX_PROCBASED_CTLS2", "SDM vol. 3, A.3.3 and 26.6.2", PROC2, controls::PROC2)
        .also(&["VMXPROCBASED2CTLS", "VMXPROCBASED2", "VMXPROCBASED2CTL", "VMXSECONDARYCTLS"])
        .needs(&[Test::Control(Controls::Proc, 31)]),
    msr(0x48C, "IA32_VMX_EPT_VPID_CAP", "SDM vol. 3, A.10", Kind::Plain, plain::EPT_VPID_CAP)
        .also(&["VMXEPTVPIDCAPS", "VMXEPTVPIDCAPABILITIES", "VMXEPTVPIDENUM"])
        .needs(&[Test::Control(Controls::Proc2, 1), Test::Control(Controls::Proc2, 5)]),
    msr(0x48D, "IA32_VMX_TRUE_PINBASED_CTLS", "SDM vol. 3, A.3.1 and 26.6.1", PIN, controls::PIN).needs(TRUE_FORMS)
        .also(&["VMXTRUEPINBASEDCTL", "VMXTRUEPINBASED"]),
    msr(0x48E, "IA32_VMX_TRUE_PROCBASED_CTLS", "SDM vol. 3, A.3.2 and 26.6.2", PROC, controls::PROC).needs(TRUE_FORMS)
        .also(&["VMXTRUEPROCBASEDCTL", "VMXTRUEPROCBASED"]),
    msr(0x48F, "IA32_VMX_TRUE_EXIT_CTLS", "SDM vol. 3, A.4.1 and 26.7.1", EXIT, controls::EXIT).needs(TRUE_FORMS)
        .also(&["VMXTRUEEXITCTL"]),
    msr(0x490, "IA32_VMX_TRUE_ENTRY_CTLS", "SDM vol. 3, A.5 and 26.8.1", ENTRY, controls::ENTRY).needs(TRUE_FORMS)
        .also(&["VMXTRUEENTRYCTL"]),
    msr(0x491, "IA32_VMX_VMFUNC", "SDM vol. 3, A.11 and 26.6.14", Kind::Allowed1, controls::VMFUNC)
        .also(&["VMXVMFUNCS", "VMXVMFUNCTIONS"])
        .needs(&[Test::Control(Controls::Proc2, 13)]),
    msr(0x492, "IA32_VMX_PROCBASED_CTLS3", "SDM vol. 3, A.3.4 and 26.6.2", Kind::Allowed1, controls::PROC3)
        .also(&["VMXPROCBASED3CTLS", "VMXPROCBASED3"])
        .needs(&[Test::Control(Controls::Proc, 17)]),
    msr(0x493, "IA32_VMX_EXIT_CTLS2", "SDM vol. 3, A.4.2 and 26.7.1", Kind::Allowed1, controls::EXIT2)
        .needs(&[Test::Control(Controls::Exit, 31)]),
    msr(0xC001_0114, "VM_CR", "APM vol. 2, 15.30.1", Kind::Plain, svm::VM_CR)
        .also(&["SVMVMCR"]),
    cpuid(1, Gpr::Ecx, "Feature flags", "SDM vol. 3, 25.6; vol. 2, CPUID", plain::FEATURE_FLAGS).presence(),
    cpuid(0x8000_0000, Gpr::Eax, "Highest extended leaf", "APM vol. 3, E.4.1", svm::HIGHEST_LEAF),
    cpuid(0x8000_0001, Gpr::Ecx, "Extended feature flags", "APM vol. 3, E.4.2", svm::FEATURE_FLAGS).presence(),
    cpuid(0x8000_000A, Gpr::Eax, "SVM revision", "APM vol. 3, E.4.9", svm::REVISION).needs(SVM_LEAF),
    cpuid(0x8000_000A, Gpr::Ebx, "SVM address space identifiers", "APM vol. 3, E.4.9", svm::ASIDS).needs(SVM_LEAF),
    cpuid(0x8000_000A, Gpr::Ecx, "SVM features, continued", "APM vol. 3, E.4.9", svm::FEATURES_ECX).needs(SVM_LEAF),
    cpuid(0x8000_000A, Gpr::Edx, "SVM features", "APM vol. 3, E.4.9", svm::FEATURES).needs(SVM_LEAF),
    cpuid(0x8000_001F, Gpr::Eax, "Encrypted memory features", "APM vol. 3, E.4.17", svm::ENCRYPTION).needs(ENCRYPTION_LEAF),
    cpuid(0x8000_001F, Gpr::Ebx, "Encrypted memory parameters", "APM vol. 3, E.4.17", svm::ENCRYPTION_EBX).needs(ENCRYPTION_LEAF),
    cpuid(0x8000_001F, Gpr::Ecx, "Encrypted guests", "APM vol. 3, E.4.17", svm::ENCRYPTED_GUESTS).needs(ENCRYPTION_LEAF),
    cpuid(0x8000_001F, Gpr::Edx, "Lowest SEV ASID", "APM vol. 3, E.4.17", svm::LOWEST_SEV_ASID).needs(ENCRYPTION_LEAF),
];

#[cfg(test)]
mod tests;
