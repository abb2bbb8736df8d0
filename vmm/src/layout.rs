//! Where things lie in guest physical memory.
//!
//! ```text
//! 0x0000_1000  GDT
//! 0x0000_2000  page tables (6 pages)
//! 0x0000_8000  Linux: boot parameters ("zero page")
//! 0x0000_9000  Linux: command line
//! 0x0001_0000  flat: stacks, 2 KiB for each vCPU
//! 0x000e_0000  Linux: ACPI tables
//! 0x000f_fff0  Linux: code at the reset vector, which stands for the BIOS
//! 0x0010_0000  kernel or flat image, then the rest of memory, with the initrd at its end
//! 0xd000_0000  flat: the MMIO hole
//! 0xfec0_0000  I/O APIC, local APICs at 0xfee0_0000 (KVM's)
//! 0xfffb_c000  identity-map page and TSS, for Intel processors without unrestricted guest (KVM's)
//! ```

/// The GDT.
pub const GDT: u64 = 0x1000;
/// The first of [`PAGE_TABLE_PAGES`] page-table pages: the PML4.
pub const PAGE_TABLES: u64 = 0x2000;
/// Page-table pages: one PML4, one PDPT and one page directory for each of 4 GiB.
pub const PAGE_TABLE_PAGES: usize = 6;
/// Linux' boot parameters.
pub const BOOT_PARAMS: u64 = 0x8000;
/// Linux' command line.
pub const CMDLINE: u64 = 0x9000;
/// Room for the command line with its final zero byte.
pub const CMDLINE_ROOM: usize = 0x7000;
/// The bottom of the first flat vCPU's stack.
pub const STACKS: u64 = 0x1_0000;
/// Size of one flat vCPU's stack.
pub const STACK_SIZE: u64 = 0x800;
/// End of the memory below 1 MiB that Linux may use: what a PC has below its extended BIOS data area.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The RSDP, with the other ACPI tables behind it.
pub const ACPI: u64 = 0xe_0000;
/// Room for the ACPI tables.
pub const ACPI_ROOM: u64 = 0x1_0000;
/// Where a processor starts in real mode, and where Linux jumps to when it resets through the BIOS.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Start of the memory above 1 MiB.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Registers of the I/O APIC that KVM emulates.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Registers of the local APICs that KVM emulates.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that KVM may use for an identity page table.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM may use for a TSS.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Least memory of a guest in MiB: what lies below 1 MiB, and 1 MiB above.
pub const MIN_MEMORY_MIB: u64 = 2;
/// Most memory of a guest in MiB: it ends below the MMIO hole.
pub const MAX_MEMORY_MIB: u64 = 3072;
/// Most vCPUs: xAPIC ids end at 254, since 255 is the broadcast address.
pub const MAX_VCPUS: u32 = 254;

/// First port of the serial console, with seven more behind it.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt line of the serial console.
pub const SERIAL_IRQ: u32 = 4;
/// Command port of the keyboard controller, whose only function here is to reset.
pub const KEYBOARD_PORT: u16 = 0x64;
/// What the guest writes to [`KEYBOARD_PORT`] in order to reset.
pub const KEYBOARD_RESET: u8 = 0xfe;
/// ACPI's sleep control register; the sleep status register is the port after it.
pub const SLEEP_PORT: u16 = 0x600;
/// Bit of the sleep control register that makes the machine sleep; soft-off is the only sleep we declare.
pub const SLEEP_ENABLE: u8 = 1 << 5;
/// Sleep type for soft-off (S5), as ACPI's `\_S5` declares it.
pub const SLEEP_TYPE_OFF: u8 = 5;

const _: () = assert!(PAGE_TABLES + PAGE_TABLE_PAGES as u64 * 0x1000 <= BOOT_PARAMS);
const _: () = assert!(CMDLINE + CMDLINE_ROOM as u64 <= STACKS);
const _: () = assert!(ACPI + ACPI_ROOM <= RESET_VECTOR);
const _: () = assert!(STACKS + STACK_SIZE * MAX_VCPUS as u64 <= LOW_MEMORY_END);
const _: () = assert!(MAX_MEMORY_MIB << 20 <= exitscope_abi::flat::MMIO_HOLE);
const _: () = assert!(HIGH_MEMORY == exitscope_abi::flat::LOAD_ADDRESS);
