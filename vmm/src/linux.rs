//! Puts a Linux kernel, packed or unpacked, into guest memory as the 64-bit boot protocol wants it.
//!
//! The protocol is the kernel's Documentation/arch/x86/boot.rst; the names of fields are its names.

use crate::error::Error;
use crate::vm::write;
use crate::{acpi, layout};
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Offset of the 64-bit entry point behind the start of the loaded kernel.
const ENTRY_64: u64 = 0x200;
/// `xloadflags`: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
/// First boot protocol with `init_size` and `xloadflags`.
const MIN_PROTOCOL: u16 = 0x20c;
/// `boot_flag` and `header`, by which a kernel knows that its boot parameters have a setup header.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// `cmdline_size` of x86 kernels, which a vmlinux does not tell.
const VMLINUX_CMDLINE_SIZE: u32 = 2047;
/// `type_of_loader` for a loader that has no number of its own.
const UNDEFINED_LOADER: u8 = 0xff;

/// All the BIOS there is: `mov al, 0xfe; out 0x64, al; 1: hlt; jmp 1b`, which resets through the keyboard controller.
///
/// Linux prefers EFI to ACPI for a reset of a hardware-reduced machine, and without EFI goes through the BIOS.
const RESET_CODE: [u8; 7] =
    [0xb0, layout::KEYBOARD_RESET, 0xe6, layout::KEYBOARD_PORT as u8, 0xf4, 0xeb, 0xfd];

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Loads kernel, initrd, command line, ACPI tables and boot parameters; gives the kernel's entry point.
pub fn load(
    memory: &GuestMemoryMmap,
    kernel: &Path,
    initrd: Option<&Path>,
    cmdline: &str,
    vcpus: u32,
) -> Result<u64, Error> {
    let Kernel { mut header, entry } = load_kernel(memory, kernel)?;
    if let Some(path) = initrd {
        load_initrd(memory, path, &mut header)?;
    }
    load_cmdline(memory, cmdline, &mut header)?;
    write(memory, "the ACPI tables", layout::ACPI, &acpi::tables(layout::ACPI, vcpus))?;
    write(memory, "the reset code", layout::RESET_VECTOR, &RESET_CODE)?;

    header.type_of_loader = UNDEFINED_LOADER;
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: layout::ACPI, ..Default::default() };
    let map = memory_map(end_of(memory));
    params.e820_table[..map.len()].copy_from_slice(&map);
    params.e820_entries = map.len() as u8;
    memory
        .write_obj(params, GuestAddress(layout::BOOT_PARAMS))
        .map_err(|error| Error::GuestMemory { what: "the boot parameters", detail: error.to_string() })?;
    Ok(entry)
}

/// A kernel that lies in guest memory.
struct Kernel {
    header: setup_header,
    /// Its 64-bit entry point.
    entry: u64,
}

/// Copies the kernel to its place, whichever of the two kinds of file it is in.
fn load_kernel(memory: &GuestMemoryMmap, path: &Path) -> Result<Kernel, Error> {
    let (mut file, size) = open(path)?;
    let mut magic = [0; 4];
    let is_elf = file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF";
    let kernel = if is_elf {
        load_elf(memory, &mut file)
    } else if layout::HIGH_MEMORY + size > end_of(memory) {
        return Err(too_large(path, layout::HIGH_MEMORY + size, memory));
    } else {
        load_bzimage(memory, &mut file)
    };
    let kernel = kernel.map_err(|why| Error::BadKernel { path: path.to_owned(), why })?;
    let need = kernel_end(&kernel.header);
    if need > end_of(memory) { Err(too_large(path, need, memory)) } else { Ok(kernel) }
}

/// Copies the protected-mode part of a bzImage to 1 MiB. The error says what is wrong with the file.
fn load_bzimage(memory: &GuestMemoryMmap, file: &mut File) -> Result<Kernel, String> {
    let loaded = BzImage::load(memory, Some(GuestAddress(layout::HIGH_MEMORY)), file, None)
        .map_err(|error| error.to_string())?;
    let header = loaded.setup_header.ok_or("no setup header")?;
    if header.version < MIN_PROTOCOL || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(format!("boot protocol {:#x} without a 64-bit entry", { header.version }));
    }
    Ok(Kernel { header, entry: layout::HIGH_MEMORY + ENTRY_64 })
}

/// Copies the segments of a vmlinux to where it was linked to run. The error says what is wrong with the file.
///
/// The entry point is that of a bzImage, minus the code that unpacks it and chooses a random address.
fn load_elf(memory: &GuestMemoryMmap, file: &mut File) -> Result<Kernel, String> {
    let loaded = Elf::load(memory, None, file, Some(GuestAddress(layout::HIGH_MEMORY)))
        .map_err(|error| format!("{error}, or it does not fit in {} MiB", end_of(memory) >> 20))?;
    let entry = loaded.kernel_load.raw_value();
    if entry >= loaded.kernel_end {
        return Err(format!("its entry point {entry:#x} lies outside of it"));
    }
    let header = setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: MIN_PROTOCOL,
        cmdline_size: VMLINUX_CMDLINE_SIZE,
        initrd_addr_max: i32::MAX as u32,
        pref_address: layout::HIGH_MEMORY,
        // What would not fit 32 bits does not fit in the guest either, which is checked next.
        init_size: u32::try_from(loaded.kernel_end - layout::HIGH_MEMORY).unwrap_or(u32::MAX),
        ..Default::default()
    };
    Ok(Kernel { header, entry })
}

fn too_large(path: &Path, need: u64, memory: &GuestMemoryMmap) -> Error {
    let (need_mib, has_mib) = (need.div_ceil(1 << 20), end_of(memory) >> 20);
    Error::KernelTooLarge { path: path.to_owned(), need_mib, has_mib }
}

/// Where the memory ends that the kernel needs to unpack itself.
fn kernel_end(header: &setup_header) -> u64 {
    let start = { header.pref_address }.max(layout::HIGH_MEMORY);
    start.saturating_add(header.init_size.into())
}

/// Copies the initrd to the end of memory, where it is out of the kernel's way.
fn load_initrd(memory: &GuestMemoryMmap, path: &Path, header: &mut setup_header) -> Result<(), Error> {
    let (mut file, size) = open(path)?;
    let highest = u64::from(header.initrd_addr_max).saturating_add(1);
    let (floor, end) = (kernel_end(header).next_multiple_of(0x1000), end_of(memory).min(highest));
    let room = end.saturating_sub(floor);
    if size > room {
        return Err(Error::InitrdTooLarge { path: path.to_owned(), size, room });
    }
    let address = (end - size) & !0xfff;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|error| Error::GuestMemory { what: "the initrd", detail: error.to_string() })?;
    // Both fit 32 bits, since guest memory ends below 4 GiB.
    (header.ramdisk_image, header.ramdisk_size) = (address as u32, size as u32);
    Ok(())
}

/// Copies the command line, with the zero byte that ends it.
fn load_cmdline(memory: &GuestMemoryMmap, cmdline: &str, header: &mut setup_header) -> Result<(), Error> {
    let most = (header.cmdline_size as usize).min(layout::CMDLINE_ROOM - 1);
    if cmdline.len() > most {
        return Err(Error::CmdlineTooLong { length: cmdline.len(), most });
    }
    if cmdline.contains('\0') {
        return Err(Error::CmdlineZero);
    }
    let bytes = [cmdline.as_bytes(), &[0]].concat();
    header.cmd_line_ptr = layout::CMDLINE as u32;
    write(memory, "the command line", layout::CMDLINE, &bytes)
}

/// The memory map of a guest whose memory ends at `end`.
fn memory_map(end: u64) -> [boot_e820_entry; 3] {
    let entry =
        |start: u64, end: u64, r#type: u32| boot_e820_entry { addr: start, size: end - start, r#type };
    [
        entry(0, layout::LOW_MEMORY_END, E820_RAM),
        entry(layout::LOW_MEMORY_END, layout::HIGH_MEMORY, E820_RESERVED),
        entry(layout::HIGH_MEMORY, end, E820_RAM),
    ]
}

fn end_of(memory: &GuestMemoryMmap) -> u64 {
    memory.last_addr().raw_value() + 1
}

/// Opens a regular file and tells its size.
fn open(path: &Path) -> Result<(File, u64), Error> {
    let error = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    let size = file.metadata().map_err(error)?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests;
