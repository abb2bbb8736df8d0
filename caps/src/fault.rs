//! Values that no register can have: a digit is missing, or a tool printed 0 for what it could not read.

use super::tables::{Bits, Kind, Register};
use super::{Address, Cpu, ranges};

const BASIC: Address = Address::Msr(0x480);
const PROC2: Address = Address::Msr(0x48B);
const EPT_VPID_CAP: Address = Address::Msr(0x48C);
const PROC3: Address = Address::Msr(0x492);
const EXIT2: Address = Address::Msr(0x493);
const MISC: Address = Address::Msr(0x485);
const VMCS_ENUM: Address = Address::Msr(0x48A);
const CR_FIXED: [(Address, Address); 2] =
    [(Address::Msr(0x486), Address::Msr(0x487)), (Address::Msr(0x488), Address::Msr(0x489))];
/// Bits 6 and 7 of IA32_VMX_EPT_VPID_CAP: the lengths of EPT page walks.
const WALKS: u64 = 0b1100_0000;

/// Why what was read of a register that exists cannot be so; `None` if it can.
pub fn fault(cpu: &Cpu, register: &Register) -> Option<String> {
    let address = register.address;
    let value = cpu.read(address)?;
    match register.kind {
        Kind::Controls { default1 } => controls(register, value, default1.into()),
        Kind::Fixed0 | Kind::Fixed1 => fixed(cpu, address, value),
        _ => None,
    }
    .or_else(|| match address {
        BASIC => basic(value),
        MISC | VMCS_ENUM | PROC2 | PROC3 | EXIT2 if value == 0 => {
            (register.exists(cpu) == Some(true)).then(|| "it is never 0 where it exists".into())
        }
        EPT_VPID_CAP if value & WALKS == 0 => {
            let ept = cpu.value(PROC2)? >> 33 & 1 == 1;
            ept.then(|| "EPT would have no page-walk length".into())
        }
        Address::Cpuid(0x8000_000A, super::Gpr::Eax) if value & 0xFF == 0 => {
            Some("SvmRev is never 0 where there is SVM".into())
        }
        Address::Cpuid(0x8000_000A, super::Gpr::Ebx) if value == 0 => {
            Some("there would be no address space identifier".into())
        }
        _ => None,
    })
}

fn controls(register: &Register, value: u64, default1: u64) -> Option<String> {
    let (low, high) = (value & 0xFFFF_FFFF, value >> 32);
    let neither = low & !high;
    let plain = register.better().is_some();
    let lost = default1 & !if plain { low } else { high };
    if neither != 0 {
        Some(format!("{} could be neither 0 nor 1", list("control", neither)))
    } else if lost != 0 {
        let must = if plain { "must be 1 by this register" } else { "may be 1" };
        Some(format!("{} {must} on every CPU", list("control", lost)))
    } else if register.address == PROC2 && low != 0 {
        Some("every control of it may be 0, so its low half is 0".into())
    } else {
        None
    }
}

fn fixed(cpu: &Cpu, address: Address, value: u64) -> Option<String> {
    if value == 0 {
        return Some("it is never 0 where it exists".into());
    }
    let (fixed0, fixed1) = CR_FIXED.into_iter().find(|pair| [pair.0, pair.1].contains(&address))?;
    let neither = cpu.read(fixed0)? & !cpu.read(fixed1)?;
    (neither != 0)
        .then(|| format!("by {fixed0} and {fixed1} {} could be neither 0 nor 1", list("bit", neither)))
}

fn basic(value: u64) -> Option<String> {
    let size = Bits { high: 44, low: 32 }.of(value);
    match (size, value >> 31 & 1) {
        (1..=4096, 0) => None,
        (_, 1) => Some("bit 31 is always 0".into()),
        _ => Some(format!("a VMCS region of {size} bytes cannot be")),
    }
}

/// `control 5`, `controls 25-31, 40`.
fn list(what: &str, mask: u64) -> String {
    let bits = (0..64).filter(|bit| mask >> bit & 1 == 1);
    format!("{what}{} {}", if mask.count_ones() > 1 { "s" } else { "" }, ranges(bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::find;

    fn check(registers: &[(u32, u64)], faults: &[(u32, &str)]) {
        let registers = registers.iter().map(|&(number, value)| (Address::Msr(number), Some(value)));
        let cpu = Cpu { id: 0, registers: registers.collect() };
        let told = cpu.registers.iter().filter_map(|(address, _)| {
            let register = find(*address).unwrap();
            Some((register.address.to_string(), fault(&cpu, register)?))
        });
        let told: Vec<(String, String)> = told.collect();
        let expected = faults.iter().map(|(number, what)| (format!("{number:#x}"), (*what).to_owned()));
        assert_eq!(told, expected.collect::<Vec<_>>(), "{cpu:x?}");
    }

    #[test]
    fn real_registers_have_none() {
        check(
            &[(0x480, 0x00DA_0400_0000_0012), (0x481, 0x7F_0000_0016), (0x482, 0xFFF9_FFFE_0401_E172)],
            &[],
        );
        check(&[(0x483, 0x7F_FFFF_0003_6DFF), (0x484, 0xFFFF_0000_11FF), (0x48B, 0x7CFF_0000_0000)], &[]);
        check(&[(0x48C, 0x0F01_0633_4141), (0x48D, 0x7F_0000_0016), (0x48E, 0xFFF9_FFFE_0400_6172)], &[]);
        check(&[(0x486, 0x8000_0021), (0x487, 0xFFFF_FFFF), (0x488, 0x2000), (0x489, 0x0017_67FF)], &[]);
    }

    #[test]
    fn what_cannot_be_is_told() {
        check(&[(0x48B, 0x153C_FE00_0000)], &[(0x48B, "controls 25-31 could be neither 0 nor 1")]);
        check(&[(0x48B, 0x7CFF_0000_0002)], &[(0x48B, "every control of it may be 0, so its low half is 0")]);
        check(&[(0x481, 0)], &[(0x481, "controls 1-2, 4 must be 1 by this register on every CPU")]);
        check(&[(0x48D, 0)], &[(0x48D, "controls 1-2, 4 may be 1 on every CPU")]);
        check(&[(0x480, 0)], &[(0x480, "a VMCS region of 0 bytes cannot be")]);
        check(&[(0x480, 0x00DA_0400_8000_0012)], &[(0x480, "bit 31 is always 0")]);
        check(&[(0x482, 0xFFF9_FFFE_0401_E172), (0x48B, 0)], &[(0x48B, "it is never 0 where it exists")]);
        check(&[(0x48B, 0x2_0000_0000), (0x48C, 0)], &[(0x48C, "EPT would have no page-walk length")]);
        let both = "by 0x486 and 0x487 bit 31 could be neither 0 nor 1";
        check(&[(0x486, 0x8000_0021), (0x487, 0x7FFF_FFFF)], &[(0x486, both), (0x487, both)]);
    }
}
