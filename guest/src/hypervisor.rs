//! Which hypervisor runs this machine, as CPUID tells a guest.

use exitscope_abi::leaf::Registers;

use crate::leaves::cpuid;

/// CPUID's bit 31 in ECX of leaf 1: a hypervisor runs this machine.
const PRESENT: u32 = 1 << 31;
/// Where hypervisors tell their names. One that offers another's interface besides its own, as KVM does with
/// Hyper-V's, tells its own at the second.
const LEAVES: [u32; 2] = [0x4000_0100, 0x4000_0000];
/// KVM's name.
const KVM: &str = "KVMKVMKVM";

/// The name that the hypervisor has in CPUID, such as `KVMKVMKVM` or `Microsoft Hv`; `None` if there is none.
pub fn signature() -> Option<String> {
    signature_with(cpuid)
}

fn signature_with(cpuid: impl Fn(u32, u32) -> Registers) -> Option<String> {
    if cpuid(1, 0).ecx & PRESENT == 0 {
        return None;
    }
    let [second, first] = LEAVES.map(|leaf| {
        let Registers { ebx, ecx, edx, .. } = cpuid(leaf, 0);
        let bytes: Vec<u8> = [ebx, ecx, edx].iter().flat_map(|word| word.to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    });
    Some(if second == KVM { second } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &[u8; 12]) -> Registers {
        let word = |at: usize| u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        Registers { eax: 0x4000_0001, ebx: word(0), ecx: word(4), edx: word(8) }
    }

    #[test]
    fn a_hypervisor_is_known_by_its_own_name() {
        let check = |present, first, second, expected: Option<&str>| {
            let found = signature_with(|leaf, _| match leaf {
                1 => Registers { ecx: present, ..Registers::default() },
                0x4000_0000 => name(first),
                0x4000_0100 => name(second),
                _ => Registers::default(),
            });
            assert_eq!(found.as_deref(), expected);
        };
        let none = &[0; 12];
        check(PRESENT, b"KVMKVMKVM\0\0\0", none, Some("KVMKVMKVM"));
        check(PRESENT, b"Microsoft Hv", b"KVMKVMKVM\0\0\0", Some("KVMKVMKVM"));
        check(PRESENT, b"Microsoft Hv", none, Some("Microsoft Hv"));
        check(PRESENT, none, none, Some(""));
        check(0, b"KVMKVMKVM\0\0\0", none, None);
    }
}
