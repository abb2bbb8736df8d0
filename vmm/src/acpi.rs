//! The ACPI tables of the guest: which processors, which interrupt controller, which serial port.
//!
//! The machine is "hardware-reduced" (ACPI 6.5 section 4.1): no PM timer, no SCI, no legacy PIC or PIT. Linux then
//! takes its time from kvmclock and its ticks from the local APIC's TSC deadline, and probes nothing that is not there.

use crate::layout;
use acpi_tables::{
    Aml, aml,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};

const OEM: [u8; 6] = *b"EXITSC";
const OEM_TABLE: [u8; 8] = *b"EXITSCOP";
const OEM_REVISION: u32 = 1;

/// IAPC_BOOT_ARCH: no VGA, no CMOS clock (and, bits being clear: no legacy devices, no keyboard controller).
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// All tables for a machine of `vcpus` processors as they shall lie from `base` on, the RSDP first.
pub fn tables(base: u64, vcpus: u32) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len()];
    let mut append = |table: &dyn Aml| {
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        let address = base + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        address
    };
    let dsdt = append(&dsdt());
    let fadt = append(&fadt(dsdt).finalize());
    let madt = append(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&xsdt);

    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    bytes
}

/// The serial port with its interrupt, and what to write for soft-off.
fn dsdt() -> Sdt {
    let mut code = Vec::new();
    aml::Scope::new(
        "_SB_".into(),
        vec![&aml::Device::new(
            "COM1".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::Interrupt::new(true, true, false, false, layout::SERIAL_IRQ),
                        &aml::IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, 8),
                    ]),
                ),
            ],
        )],
    )
    .to_aml_bytes(&mut code);
    let off = aml::Package::new(vec![&layout::SLEEP_TYPE_OFF]);
    aml::Name::new("_S5_".into(), &off).to_aml_bytes(&mut code);

    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// Hardware-reduced, with a reset register (the keyboard controller's) and the sleep registers.
fn fadt(dsdt: u64) -> FADTBuilder {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(layout::KEYBOARD_PORT);
    fadt.reset_value = layout::KEYBOARD_RESET;
    fadt.sleep_control_reg = port(layout::SLEEP_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_PORT + 1);
    fadt
}

/// One local APIC for each processor, with the processor's index as its id, and one I/O APIC behind them.
fn madt(vcpus: u32) -> MADT {
    let address = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, address);
    // Ids fit a byte: layout::MAX_VCPUS keeps them below the broadcast address.
    for id in 0..vcpus as u8 {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus as u8, layout::IO_APIC, 0));
    madt
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xe_0000;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at a guest physical address, its signature and checksum checked.
    fn table<'a>(bytes: &'a [u8], address: u64, signature: &[u8; 4]) -> &'a [u8] {
        let start = usize::try_from(address - BASE).expect("address fits");
        let length = word(bytes, start + 4) as usize;
        let table = &bytes[start..start + length];
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(table), 0, "checksum of {}", String::from_utf8_lossy(signature));
        table
    }

    #[test]
    fn tables_lead_to_each_other_and_add_up() {
        let bytes = tables(BASE, 3);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0));
        let xsdt = table(&bytes, long(&bytes, 24), b"XSDT");
        let fadt = table(&bytes, long(xsdt, 36), b"FACP");
        let madt = table(&bytes, long(xsdt, 44), b"APIC");
        table(&bytes, long(fadt, 140), b"DSDT");
        assert_ne!(word(fadt, 112) & 1 << 20, 0, "hardware-reduced");
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        assert_eq!((madt[44 + 2 * 8 + 2], madt[44 + 2 * 8 + 3]), (2, 2), "the last processor's ids");
    }

    #[test]
    fn the_largest_machine_fits() {
        let bytes = tables(BASE, layout::MAX_VCPUS);
        assert!((bytes.len() as u64) < layout::ACPI_ROOM, "{} bytes", bytes.len());
    }
}
