//! The registers of a vCPU as a person wants to read them.

use kvm_bindings::{kvm_regs, kvm_sregs};
use std::fmt;

/// The registers of a vCPU at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registers {
    /// General registers, RIP and RFLAGS.
    pub general: kvm_regs,
    /// Segments, control registers and EFER.
    pub special: kvm_sregs,
}

impl Registers {
    /// Whether this is the state in which INIT leaves a processor.
    ///
    /// KVM on AMD resets a vCPU before it reports a triple fault, so that nothing of the fault remains.
    #[must_use]
    pub fn is_reset_state(&self) -> bool {
        self.general.rip == 0xfff0 && self.special.cs.base == 0xffff_0000
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (g, s) = (&self.general, &self.special);
        let rows = [
            [("rip", g.rip), ("rsp", g.rsp), ("rfl", g.rflags), ("efr", s.efer)],
            [("cr0", s.cr0), ("cr2", s.cr2), ("cr3", s.cr3), ("cr4", s.cr4)],
            [("rax", g.rax), ("rbx", g.rbx), ("rcx", g.rcx), ("rdx", g.rdx)],
            [("rsi", g.rsi), ("rdi", g.rdi), ("rbp", g.rbp), ("r8 ", g.r8)],
            [("r9 ", g.r9), ("r10", g.r10), ("r11", g.r11), ("r12", g.r12)],
            [("r13", g.r13), ("r14", g.r14), ("r15", g.r15), ("cs@", s.cs.base)],
        ];
        for (index, row) in rows.iter().enumerate() {
            let separator = if index == 0 { "  " } else { "\n  " };
            f.write_str(separator)?;
            for (name, value) in row {
                write!(f, "{name} {value:016x}  ")?;
            }
        }
        if self.is_reset_state() {
            write!(
                f,
                "\n  (the state after INIT: KVM on AMD resets a vCPU before it reports a triple fault)"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_is_shown_once() {
        let mut registers = Registers::default();
        registers.general.rip = 0x1234_5678;
        registers.special.cr2 = 0xdead_beef;
        let text = registers.to_string();
        assert!(text.contains("rip 0000000012345678") && text.contains("cr2 00000000deadbeef"), "{text}");
        for name in
            ["rsp", "rfl", "efr", "cr0", "cr3", "cr4", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"]
        {
            assert_eq!(text.matches(&format!("{name} ")).count(), 1, "{name} in {text}");
        }
        assert!(!text.contains("after INIT"));
    }

    #[test]
    fn the_reset_state_is_called_so() {
        let mut registers = Registers::default();
        registers.general.rip = 0xfff0;
        registers.special.cs.base = 0xffff_0000;
        assert!(registers.to_string().contains("after INIT"));
    }
}
