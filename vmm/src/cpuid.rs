//! What CPUID tells each vCPU: KVM's offer, with the topology of one package of single-threaded cores.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX: the local APIC has a TSC deadline. KVM does not offer it by itself, since it depends on the irqchip.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX[23:16] is valid, that is, the package has more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: the package's logical processors are cores, not threads (AMD).
const CMP_LEGACY: u32 = 1 << 1;

/// Level types of leaves 0xb and 0x1f (SDM vol. 2, CPUID).
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Where a vCPU stands among the others.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// Its index and APIC id.
    pub id: u32,
    /// How many vCPUs there are.
    pub vcpus: u32,
    /// Whether the kernel emulates its local APIC, and that with a TSC deadline.
    pub tsc_deadline: bool,
}

/// The CPUID table of one vCPU, from what KVM supports.
pub fn table(supported: &[kvm_cpuid_entry2], place: Topology) -> Vec<kvm_cpuid_entry2> {
    let mut table = supported.to_vec();
    let amd = is_amd(supported);
    for entry in &mut table {
        adapt(entry, place, amd);
    }
    for leaf in [0xb, 0x1f] {
        if highest_basic_leaf(supported) >= leaf {
            table.retain(|entry| entry.function != leaf);
            table.extend(levels(leaf, place));
        }
    }
    table
}

/// Puts id and topology into one entry.
fn adapt(entry: &mut kvm_cpuid_entry2, place: Topology, amd: bool) {
    let last = place.vcpus - 1;
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & 0xffff | place.vcpus << 16 | place.id << 24;
            entry.ecx =
                entry.ecx & !TSC_DEADLINE | HYPERVISOR | if place.tsc_deadline { TSC_DEADLINE } else { 0 };
            entry.edx = entry.edx & !HTT | if last > 0 { HTT } else { 0 };
        }
        4 => {
            adapt_cache(entry, last);
            if entry.eax & 0x1f != 0 {
                entry.eax |= last.min(63) << 26;
            }
        }
        0x8000_0001 if amd => {
            entry.ecx = entry.ecx & !CMP_LEGACY | if last > 0 { CMP_LEGACY } else { 0 };
        }
        0x8000_0008 if amd => {
            entry.ecx = entry.ecx & !0xf0ff | last | id_bits(place.vcpus) << 12;
        }
        0x8000_001d if amd => adapt_cache(entry, last),
        0x8000_001e if amd => {
            entry.eax = place.id;
            entry.ebx = place.id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Caches of levels 1 and 2 belong to one core, further ones to the package (leaves 4 and 0x8000_001d).
fn adapt_cache(entry: &mut kvm_cpuid_entry2, last: u32) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let sharing = if entry.eax >> 5 & 7 >= 3 { last } else { 0 };
    entry.eax = entry.eax & 0x3fff | sharing << 14;
}

/// The sub-leaves of an extended topology leaf: thread, core, end.
fn levels(leaf: u32, place: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: place.id,
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_SMT), level(1, id_bits(place.vcpus), place.vcpus, LEVEL_CORE), level(2, 0, 0, 0)]
}

/// Bits that hold the ids of `vcpus` processors.
fn id_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

fn highest_basic_leaf(table: &[kvm_cpuid_entry2]) -> u32 {
    table.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax)
}

/// Whether the vendor is AMD, or Hygon, which follows AMD's manual.
fn is_amd(table: &[kvm_cpuid_entry2]) -> bool {
    let vendor = |entry: &kvm_cpuid_entry2| {
        let bytes = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes).concat();
        bytes == b"AuthenticAMD" || bytes == b"HygonGenuine"
    };
    table.iter().find(|entry| entry.function == 0).is_some_and(vendor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn vendor(name: &[u8; 12], highest: u32) -> kvm_cpuid_entry2 {
        let part = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        entry(0, 0, [highest, part(0), part(8), part(4)])
    }

    fn find(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let found: Vec<_> = table.iter().filter(|e| (e.function, e.index) == (function, index)).collect();
        assert_eq!(found.len(), 1, "{function:#x}.{index}");
        [found[0].eax, found[0].ebx, found[0].ecx, found[0].edx]
    }

    #[test]
    fn leaf_1_names_the_processor() {
        let supported = [vendor(b"GenuineIntel", 0x1f), entry(1, 0, [7, 0xaa00_0805, 0x1, HTT])];
        let place = Topology { id: 2, vcpus: 3, tsc_deadline: true };
        assert_eq!(
            find(&table(&supported, place), 1, 0),
            [7, 0x0203_0805, HYPERVISOR | TSC_DEADLINE | 1, HTT]
        );
        let alone = Topology { id: 0, vcpus: 1, tsc_deadline: false };
        assert_eq!(find(&table(&supported, alone), 1, 0), [7, 0x0001_0805, HYPERVISOR | 1, 0]);
    }

    #[test]
    fn extended_topology_has_both_levels_and_an_end() {
        let supported =
            [vendor(b"GenuineIntel", 0x1f), entry(0xb, 0, [9, 9, 9, 9]), entry(0xb, 1, [9, 9, 9, 9])];
        let table = table(&supported, Topology { id: 1, vcpus: 3, tsc_deadline: true });
        for leaf in [0xb, 0x1f] {
            assert_eq!(find(&table, leaf, 0), [0, 1, 0x100, 1]);
            assert_eq!(find(&table, leaf, 1), [2, 3, 0x201, 1]);
            assert_eq!(find(&table, leaf, 2), [0, 0, 2, 1]);
        }
    }

    #[test]
    fn leaves_beyond_the_highest_are_not_added() {
        let supported = [vendor(b"AuthenticAMD", 0x10)];
        let table = table(&supported, Topology { id: 0, vcpus: 2, tsc_deadline: false });
        assert!(table.iter().all(|entry| entry.function != 0x1f));
        assert!(table.iter().any(|entry| entry.function == 0xb));
    }

    #[test]
    fn amd_leaves_are_for_amd_only() {
        for (name, eax) in [(b"AuthenticAMD", 1), (b"GenuineIntel", 0x55)] {
            let supported = [vendor(name, 0xd), entry(0x8000_001e, 0, [0x55, 0x155, 0x300, 0])];
            let table = table(&supported, Topology { id: 1, vcpus: 2, tsc_deadline: false });
            assert_eq!(find(&table, 0x8000_001e, 0)[0], eax);
        }
    }

    #[test]
    fn the_last_level_cache_is_shared() {
        let cache = |level: u32| 1 | level << 5 | 0xfff << 14;
        let supported = [
            vendor(b"GenuineIntel", 0xd),
            entry(4, 0, [cache(1), 0, 0, 0]),
            entry(4, 3, [cache(3), 0, 0, 0]),
            entry(4, 4, [0; 4]),
        ];
        let table = table(&supported, Topology { id: 0, vcpus: 4, tsc_deadline: false });
        assert_eq!(find(&table, 4, 0)[0], 1 | 1 << 5 | 3 << 26);
        assert_eq!(find(&table, 4, 3)[0], 1 | 3 << 5 | 3 << 14 | 3 << 26);
        assert_eq!(find(&table, 4, 4)[0], 0);
    }

    #[test]
    fn ids_need_as_many_bits_as_they_need() {
        assert_eq!([1, 2, 3, 4, 5, 254].map(id_bits), [0, 1, 2, 2, 3, 8]);
    }
}
