//! Which registers of a live machine are asked for, in which order, and which must not be.

use exitscope_abi::reason::Isa;

use super::tables::REGISTERS;
use super::{Address, Cpu, presence};

/// Reads the capability registers of one CPU through `read`, which answers `None` for one that cannot be read.
///
/// A register that the CPU lacks by what the ones before it said is left out; one of which they do not tell is not
/// asked for, and unknown.
pub fn read(id: u32, isa: Isa, read: impl Fn(Address) -> Option<u64>) -> Cpu {
    let mut cpu = Cpu { id, registers: Vec::new() };
    for register in REGISTERS.iter().filter(|register| register.isa() == isa) {
        let address = register.address;
        match register.exists(&cpu) {
            Some(true) => {
                let value = read(address).map(|value| presence::relevant(address, value));
                cpu.registers.push((address, value));
            }
            Some(false) => {}
            None => cpu.registers.push((address, None)),
        }
    }
    cpu
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::Gpr;
    use crate::tables::HIGHEST_LEAF;

    /// The primary controls that are 1 by default.
    const PROC: u64 = 0x0401_E172;

    /// What an MSR reads as on a CPU that has none but the first.
    fn old(number: u32) -> Option<u64> {
        Some(match number {
            0x480 => 0x005A_0400_0000_0012,
            0x482 => PROC << 32 | PROC,
            0x483 => 0x0003_6DFF_0003_6DFF,
            0x48B => 0x4_0000_0000,
            _ => 0,
        })
    }

    /// The MSRs that are asked for on a CPU whose MSRs read so, all others as on an old one.
    fn asked(values: &[(u32, Option<u64>)]) -> Vec<u32> {
        let asked = RefCell::new(Vec::new());
        read(0, Isa::Vmx, |address| {
            let Address::Msr(number) = address else { return Some(1 << 5) };
            asked.borrow_mut().push(number);
            values.iter().find(|(known, _)| *known == number).map_or(old(number), |(_, value)| *value)
        });
        asked.into_inner()
    }

    const ALWAYS: [u32; 12] =
        [0x3A, 0x480, 0x481, 0x482, 0x483, 0x484, 0x485, 0x486, 0x487, 0x488, 0x489, 0x48A];

    fn check(values: &[(u32, Option<u64>)], more: &[u32]) {
        let expected: Vec<u32> = ALWAYS.iter().chain(more).copied().collect();
        assert_eq!(asked(values), expected, "{values:x?}");
    }

    #[test]
    fn an_msr_is_asked_for_only_where_it_exists() {
        let proc = |controls: u64| (0x482, Some(controls << 32 | PROC << 32 | PROC));
        let secondary = proc(1 << 31);
        check(&[], &[]);
        check(&[secondary], &[0x48B]);
        check(&[secondary, (0x48B, Some(1 << 33))], &[0x48B, 0x48C]);
        check(&[secondary, (0x48B, Some(1 << 37))], &[0x48B, 0x48C]);
        check(&[secondary, (0x48B, Some(1 << 45))], &[0x48B, 0x491]);
        check(&[proc(1 << 17)], &[0x492]);
        check(&[(0x483, Some(0x8003_6DFF_0003_6DFF))], &[0x493]);
        check(&[(0x480, Some(0x00DA_0400_0000_0012))], &[0x48D, 0x48E, 0x48F, 0x490]);
    }

    #[test]
    fn what_is_not_told_is_unknown_and_not_asked_for() {
        check(&[(0x482, None)], &[]);
        let cpu = read(3, Isa::Vmx, |address| match address {
            Address::Msr(0x482) => None,
            Address::Msr(number) => old(number),
            Address::Cpuid(..) => Some(1 << 5),
        });
        let unknown = [0x482, 0x48B, 0x48C, 0x491, 0x492].map(Address::Msr);
        let registers = cpu.registers.iter().filter(|(_, value)| value.is_none());
        assert!(registers.map(|(address, _)| *address).eq(unknown));
    }

    #[test]
    fn svm_has_one_msr_and_two_leaves_if_there_are_so_many() {
        let read = |highest: u64| {
            read(0, Isa::Svm, |address| {
                Some(if address == HIGHEST_LEAF { highest } else { u64::from(address.width()) | 0b100 })
            })
        };
        let cpu = read(0x8000_001F);
        assert_eq!(cpu.registers[0], (Address::Msr(0xC001_0114), Some(68)));
        assert_eq!(
            cpu.registers[2],
            (Address::Cpuid(0x8000_0001, Gpr::Ecx), Some(0b100)),
            "of 36 the SVM bit"
        );
        assert_eq!(cpu.registers.len(), 3 + 2 * Gpr::ALL.len());
        assert_eq!(read(0x8000_001B).registers.len(), 3 + Gpr::ALL.len());
    }
}
