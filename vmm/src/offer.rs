//! What KVM offers its guests of virtualization: its feature MSRs and what CPUID can tell them. Needs no VM.

use std::path::Path;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::Kvm;

use crate::error::Error;
use crate::vm::{kvm_error, open};

/// KVM's offer.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    msrs: Vec<(u32, u64)>,
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl Offer {
    /// Asks a device, usually `/dev/kvm`.
    pub fn of(device: &Path) -> Result<Self, Error> {
        let kvm = open(device)?;
        let list = kvm.get_msr_feature_index_list().map_err(kvm_error("list its feature MSRs"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(kvm_error("tell what CPUID can say"))?.as_slice().to_vec();
        let msrs = list.as_slice().iter().filter_map(|&number| Some((number, msr(&kvm, number)?))).collect();
        Ok(Self { msrs, cpuid })
    }

    /// The value of a feature MSR; `None` if KVM offers none of that number.
    pub fn msr(&self, number: u32) -> Option<u64> {
        self.msrs.iter().find(|(known, _)| *known == number).map(|(_, value)| *value)
    }

    /// EAX, EBX, ECX and EDX of a leaf, sub-leaf 0; `None` if KVM does not offer it.
    pub fn cpuid(&self, leaf: u32) -> Option<[u32; 4]> {
        let entry = self.cpuid.iter().find(|entry| entry.function == leaf && entry.index == 0)?;
        Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
    }
}

/// Asked one at a time: KVM stops at the first that it cannot tell.
fn msr(kvm: &Kvm, number: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: number, ..Default::default() }]).ok()?;
    let told = kvm.get_msrs(&mut msrs).ok()?;
    msrs.as_slice().first().filter(|_| told == 1).map(|entry| entry.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_no_kvm_is_told() {
        assert!(matches!(Offer::of(Path::new("/dev/null")), Err(Error::NotKvm { .. } | Error::Kvm { .. })));
        assert!(matches!(Offer::of(Path::new("/nowhere/kvm")), Err(Error::NoKvm(_))));
    }

    #[test]
    fn what_is_not_offered_is_told_apart() {
        let entry = kvm_cpuid_entry2 { function: 0x8000_000A, eax: 1, edx: 4, ..Default::default() };
        let offer = Offer { msrs: vec![(0x480, 7)], cpuid: vec![entry] };
        assert_eq!((offer.msr(0x480), offer.msr(0x481)), (Some(7), None));
        assert_eq!((offer.cpuid(0x8000_000A), offer.cpuid(0x8000_001F)), (Some([1, 0, 0, 4]), None));
    }
}
