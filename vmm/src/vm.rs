//! A VM of KVM's with its memory: from opening the device to the tables that every vCPU shares.

use crate::config::{Config, Payload};
use crate::error::Error;
use crate::{layout, long_mode};
use kvm_bindings::{
    KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Which kind of guest a VM is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Linux: the kernel emulates the interrupt controllers, and one DONE ends the VM.
    Linux,
    /// Flat: no interrupt controllers unless the kernel is to halt vCPUs, and every vCPU ends by its own DONE.
    Flat,
}

/// A VM without its vCPUs.
pub struct Vm {
    // Fields are dropped in order: KVM lets go of the memory before it is unmapped.
    fd: VmFd,
    memory: GuestMemoryMmap,
    cpuid: Vec<kvm_cpuid_entry2>,
    mode: Mode,
    vcpus: u32,
    tsc_deadline: bool,
    halts: bool,
}

impl Vm {
    /// Checks the configuration and creates the VM: memory, interrupt controllers, GDT and page tables.
    pub fn create(config: &Config) -> Result<Self, Error> {
        Self::with_memory(config, &[])
    }

    /// The same with more memory: addresses and sizes, in order and beyond all other memory.
    pub fn with_memory(config: &Config, more: &[(u64, usize)]) -> Result<Self, Error> {
        let kvm = open(&config.kvm_device)?;
        let most = layout::MAX_VCPUS.min(u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX));
        check_sizes(config, most)?;
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_error("tell what CPUID can say"))?;
        let mode = match config.payload {
            Payload::Linux { .. } => Mode::Linux,
            Payload::Flat { .. } => Mode::Flat,
        };
        let memory = map(config.memory_mib, more)?;
        let fd = create_vm(&kvm)?;
        let halts = mode == Mode::Flat && config.halt.is_some();
        prepare(&fd, mode == Mode::Linux || halts)?;
        give_memory(&fd, &memory)?;
        write_tables(&memory)?;
        let tsc_deadline = mode == Mode::Linux && kvm.check_extension(Cap::TscDeadlineTimer);
        let (cpuid, vcpus) = (cpuid.as_slice().to_vec(), config.vcpus);
        Ok(Self { fd, memory, cpuid, mode, vcpus, tsc_deadline, halts })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// What kind of guest it is for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How many vCPUs it shall have.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// What KVM can say through CPUID.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Whether its vCPUs have a local APIC with a TSC deadline.
    pub fn tsc_deadline(&self) -> bool {
        self.tsc_deadline
    }

    /// Whether the kernel halts vCPUs of a flat guest, whose halts end by kicks.
    pub fn halts(&self) -> bool {
        self.halts
    }

    /// Creates vCPU `id`.
    pub fn create_vcpu(&self, id: u32) -> Result<VcpuFd, Error> {
        self.fd.create_vcpu(id.into()).map_err(kvm_error("create a vCPU"))
    }

    /// Sends a message on the bus of the interrupt controllers, whatever a device of a guest could say by one.
    pub fn signal(&self, address: u32, data: u32) -> Result<(), Error> {
        let message = kvm_msi { address_lo: address, data, ..Default::default() };
        let what = "send a message-signalled interrupt";
        match self.fd.signal_msi(message).map_err(kvm_error(what))? {
            0 => Err(Error::Kvm {
                what: "find who a message is for",
                source: kvm_ioctls::Error::new(libc::ESRCH),
            }),
            _ => Ok(()),
        }
    }

    /// Lets KVM raise interrupt line `irq` whenever `event` is written.
    pub fn connect_irq(&self, event: &EventFd, irq: u32) -> Result<(), Error> {
        self.fd.register_irqfd(event, irq).map_err(kvm_error("connect an interrupt line"))
    }
}

/// Names the call to KVM that failed.
pub fn kvm_error(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { what, source }
}

/// Copies bytes into guest memory.
pub fn write(memory: &GuestMemoryMmap, what: &'static str, address: u64, bytes: &[u8]) -> Result<(), Error> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|error| Error::GuestMemory { what, detail: error.to_string() })
}

/// Writes what a processor needs to start in 64-bit mode: a GDT and page tables.
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<(), Error> {
    write(memory, "the GDT", layout::GDT, &bytes(&long_mode::gdt()))?;
    let tables = long_mode::page_tables(layout::PAGE_TABLES);
    write(memory, "the page tables", layout::PAGE_TABLES, &bytes(&tables))
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Opens the KVM device and makes sure that it is one.
pub fn open(path: &Path) -> Result<Kvm, Error> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::NoKvm(path.to_owned()))?;
    let kvm = Kvm::new_with_path(&name).map_err(|errno| {
        let source = io::Error::from(errno);
        match source.kind() {
            io::ErrorKind::NotFound => Error::NoKvm(path.to_owned()),
            io::ErrorKind::PermissionDenied => Error::KvmPermission(path.to_owned()),
            _ => Error::KvmOpen { path: path.to_owned(), source },
        }
    })?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => Ok(kvm),
        version => Err(Error::NotKvm { path: path.to_owned(), version }),
    }
}

/// Checks the numbers in a configuration.
fn check_sizes(config: &Config, most_vcpus: u32) -> Result<(), Error> {
    if !(1..=most_vcpus).contains(&config.vcpus) {
        return Err(Error::Vcpus { asked: config.vcpus, most: most_vcpus });
    }
    let (min_mib, max_mib) = (layout::MIN_MEMORY_MIB, layout::MAX_MEMORY_MIB);
    if !(min_mib..=max_mib).contains(&config.memory_mib) {
        return Err(Error::Memory { asked_mib: config.memory_mib, min_mib, max_mib });
    }
    Ok(())
}

/// Maps `mib` MiB for the guest's memory from address 0 on, and more at other addresses.
fn map(mib: u64, more: &[(u64, usize)]) -> Result<GuestMemoryMmap, Error> {
    let error = |detail: String| Error::MapMemory { mib, detail };
    let size = usize::try_from(mib << 20).map_err(|error_| error(error_.to_string()))?;
    let ranges = [(0, size)].into_iter().chain(more.iter().copied());
    let ranges: Vec<_> = ranges.map(|(address, size)| (GuestAddress(address), size)).collect();
    GuestMemoryMmap::from_ranges(&ranges).map_err(|error_| error(error_.to_string()))
}

/// Creates the VM; a signal may interrupt that for a while.
fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::Interrupted => {}
            result => return result.map_err(kvm_error("create a VM")),
        }
    }
}

/// Sets what has to be set before the first vCPU is created.
fn prepare(fd: &VmFd, interrupt_controllers: bool) -> Result<(), Error> {
    // Intel processors without unrestricted guest need both for what runs without paging.
    fd.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm_error("place its identity map"))?;
    fd.set_tss_address(layout::KVM_TSS).map_err(kvm_error("place its TSS"))?;
    match interrupt_controllers {
        true => fd.create_irq_chip().map_err(kvm_error("create interrupt controllers")),
        false => Ok(()),
    }
}

/// Makes the mapped memory the guest's.
fn give_memory(fd: &VmFd, memory: &GuestMemoryMmap) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: vm_memory::GuestMemoryRegion::start_addr(region).0,
            memory_size: vm_memory::GuestMemoryRegion::len(region),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the range is a mapping of exactly this size that `memory` owns, and nothing else of this process
        // lies there. `Vm` keeps `memory` until its VM is gone, and vCPU threads keep it by the `Arc` in each
        // mapping (`Vcpu::_memory`), so KVM never writes to memory that has been given back.
        unsafe { fd.set_user_memory_region(region) }.map_err(kvm_error("take the guest's memory"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a configuration of these sizes, if anything.
    fn check(vcpus: u32, memory_mib: u64) -> Option<String> {
        let config = Config { vcpus, memory_mib, ..Config::default() };
        check_sizes(&config, 254).err().map(|error| error.to_string())
    }

    #[test]
    fn sizes_have_bounds() {
        assert_eq!(check(1, 2), None);
        assert_eq!(check(254, 3072), None);
        assert_eq!(check(0, 256).as_deref(), Some("0 vCPUs asked for: choose 1 to 254"));
        assert_eq!(check(255, 256).as_deref(), Some("255 vCPUs asked for: choose 1 to 254"));
        assert_eq!(check(1, 1).as_deref(), Some("1 MiB of memory asked for: choose 2 to 3072"));
        assert!(check(1, u64::MAX).is_some());
    }

    #[test]
    fn devices_that_are_none_are_told_apart() {
        let message =
            |path: &str| open(Path::new(path)).err().map(|error| error.to_string()).unwrap_or_default();
        let missing = message("/nonexistent/kvm");
        assert_eq!(missing, "no /nonexistent/kvm: load kvm_amd or kvm_intel, or use `exitscope lab`");
        assert!(message("/dev/null").contains("/dev/null is not a KVM device"));
        assert!(message("/nonexistent\0kvm").starts_with("no "));
    }
}
