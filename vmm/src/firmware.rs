//! A Linux kernel in the memory of a machine that has no KVM beneath it: an emulator that starts from files.
//!
//! The machine gets the memory of a guest of this VMM (see `vmm/src/layout.rs`), and in place of a BIOS a ROM of 128 KiB
//! that ends at 1 MiB, as on a PC. The ROM holds the ACPI tables and, at the reset vector, the way from real mode to
//! the kernel's 64-bit entry. So nothing is probed, read from a disk or unpacked before the kernel runs.

use crate::error::Error;
use crate::vcpu::MTRR_DEF_TYPE;
use crate::{layout, linux, long_mode, vm};
use core::arch::global_asm;
use std::fs::File;
use std::io;
use std::path::Path;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Where the ROM begins.
const ROM: u64 = layout::ACPI;
/// The ROM's size in bytes.
pub const ROM_SIZE: usize = (layout::HIGH_MEMORY - ROM) as usize;
/// Where the memory below 1 MiB ends: the rest of that MiB is the video memory's and the ROMs'.
const LOW: u64 = 0xa_0000;

/// A machine that is ready to be started.
#[derive(Debug)]
pub struct Machine {
    /// The ROM, to be mapped below 4 GiB and below 1 MiB.
    pub rom: Vec<u8>,
    /// Memory without the hole between 640 KiB and 1 MiB: what lies from 1 MiB on follows what lies below 640 KiB.
    pub memory: File,
}

/// A disk's image that shall lie in memory.
#[derive(Debug)]
pub struct Disk {
    /// The image.
    pub image: File,
    /// Its size in bytes.
    pub size: u64,
    /// Where it begins: not below 1 MiB, and out of the way of kernel and initrd.
    pub address: u64,
}

/// Puts a kernel, its initrd, its command line and a disk into `memory`, an empty file that can be mapped. The kernel
/// finds `cpus` processors, of which it starts all but the first itself.
///
/// # Errors
/// What keeps one of them from being read or from fitting in `memory_mib` MiB.
pub fn load(
    memory: File,
    memory_mib: u64,
    kernel: &Path,
    initrd: &Path,
    cmdline: &str,
    cpus: u32,
    disk: Option<Disk>,
) -> Result<Machine, Error> {
    let unmapped = |detail: String| Error::MapMemory { mib: memory_mib, detail };
    let mapped = map(&memory, memory_mib << 20).map_err(|error| unmapped(error.to_string()))?;
    vm::write_tables(&mapped)?;
    let entry = linux::load(&mapped, kernel, Some(initrd), cmdline, cpus)?;
    if let Some(mut disk) = disk {
        let size = usize::try_from(disk.size).map_err(|error| unmapped(error.to_string()))?;
        mapped
            .read_exact_volatile_from(GuestAddress(disk.address), &mut disk.image, size)
            .map_err(|error| Error::GuestMemory { what: "the disk", detail: error.to_string() })?;
    }

    let mut rom = vec![0; ROM_SIZE];
    let unread = |error: vm_memory::GuestMemoryError| unmapped(error.to_string());
    mapped.read_slice(&mut rom, GuestAddress(ROM)).map_err(unread)?;
    write_start_code(&mut rom, entry, memory_mib << 20);
    Ok(Machine { rom, memory })
}

/// Maps memory that ends at `end`: its two parts in the file, and the ROM between them.
fn map(memory: &File, end: u64) -> io::Result<GuestMemoryMmap> {
    memory.set_len(end - layout::HIGH_MEMORY + LOW)?;
    let (low, high) = (memory.try_clone()?, memory.try_clone()?);
    let ranges = [
        (GuestAddress(0), LOW as usize, Some(FileOffset::new(low, 0))),
        (GuestAddress(ROM), ROM_SIZE, None),
        (
            GuestAddress(layout::HIGH_MEMORY),
            (end - layout::HIGH_MEMORY) as usize,
            Some(FileOffset::new(high, LOW)),
        ),
    ];
    GuestMemoryMmap::from_ranges_with_files(ranges).map_err(io::Error::other)
}

/// Puts the code at the end of the ROM, and what it has to know before it.
fn write_start_code(rom: &mut [u8], entry: u64, memory_end: u64) {
    // SAFETY: the symbols are the first byte of the code below, in a section that is never written, and its end.
    let code = unsafe {
        let start = &raw const exitscope_start_code;
        core::slice::from_raw_parts(start, CODE_SIZE)
    };
    let rom = &mut rom[ROM_SIZE - CODE_SIZE..];
    rom.copy_from_slice(code);
    rom[..8].copy_from_slice(&entry.to_le_bytes());
    rom[8..16].copy_from_slice(&memory_end.to_le_bytes());
}

/// A byte that is 0 until the machine has started.
const STARTED: u16 = 0x500;
/// Where Bochs' own BIOS writes `Shutdown` to end the emulator.
const SHUTDOWN_PORT: u16 = 0x8900;

/// Size of the code that starts the processor.
const CODE_SIZE: usize = 0x200;

unsafe extern "C" {
    static exitscope_start_code: u8;
}

// The last 512 bytes below 4 GiB. On the GDT and the page tables that lie in memory it goes from real mode straight to
// 64-bit mode (SDM vol. 3 section 10.8.5), and then reads every page of memory once, in order: Bochs gives its memory
// blocks their places in the order of their first use, and loads an image as if that were the order of addresses.
global_asm!(
    ".pushsection .rodata.exitscope_start_code, \"a\", @progbits",
    ".hidden exitscope_start_code",
    ".global exitscope_start_code",
    "exitscope_start_code:",
    "    .quad 0", // the kernel's entry
    "    .quad 0", // the end of memory
    "    .word {gdt_limit}",
    "    .long {gdt}",
    ".code16",
    "3:",
    "    cmp byte ptr [{started}], 0",
    "    jne 5f",
    "    mov byte ptr [{started}], 1",
    "    lgdt cs:[0xfe10]",
    "    mov eax, {cr4}",
    "    mov cr4, eax",
    "    mov eax, {page_tables}",
    "    mov cr3, eax",
    "    mov ecx, 0xc0000080", // EFER
    "    mov eax, {lme}",
    "    xor edx, edx",
    "    wrmsr",
    "    mov eax, {cr0}",
    "    mov cr0, eax",
    "    .byte 0x66, 0xea", // a far jump of 32 bits
    "    .long 0xfffffe80",
    "    .word {code}",
    ".org exitscope_start_code + 0x80",
    ".code64",
    "    mov eax, {data}",
    "    mov ds, eax",
    "    mov es, eax",
    "    mov ss, eax",
    "    mov fs, eax",
    "    mov gs, eax",
    "    mov ecx, {mtrr}",
    "    mov eax, {mtrr_value}",
    "    xor edx, edx",
    "    wrmsr",
    "    xor esi, esi",
    "4:",
    "    mov al, [rsi]",
    "    add rsi, 0x1000",
    "    cmp rsi, [rip + exitscope_start_code + 8]",
    "    jb 4b",
    "    mov esi, {boot_params}",
    "    jmp [rip + exitscope_start_code]",
    ".code16",
    "5:", // a machine that resets itself has ended
    "    mov dx, {shutdown_port}",
    ".irpc letter, Shutdown",
    "    mov al, '\\letter'",
    "    out dx, al",
    ".endr",
    "6:",
    "    hlt",
    "    jmp 6b",
    ".org exitscope_start_code + 0x1f0", // the reset vector
    ".code16",
    "    jmp 3b",
    ".org exitscope_start_code + {size}",
    ".code64",
    ".popsection",
    gdt_limit = const long_mode::GDT_LIMIT,
    gdt = const layout::GDT,
    cr4 = const long_mode::CR4,
    page_tables = const layout::PAGE_TABLES,
    lme = const long_mode::EFER_LME,
    cr0 = const long_mode::CR0,
    code = const long_mode::CODE,
    data = const long_mode::DATA,
    mtrr = const MTRR_DEF_TYPE.0,
    mtrr_value = const MTRR_DEF_TYPE.1,
    boot_params = const layout::BOOT_PARAMS,
    started = const STARTED,
    shutdown_port = const SHUTDOWN_PORT,
    size = const CODE_SIZE,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_code_knows_the_entry_and_begins_at_the_reset_vector() {
        let mut rom = vec![0; ROM_SIZE];
        write_start_code(&mut rom, 0x100_0b53, 512 << 20);
        let code = &rom[ROM_SIZE - CODE_SIZE..];
        assert_eq!(code[..16], [0x53, 0x0b, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0]);
        // A near jump back, to right behind the data.
        let [opcode, low, high] = [code[0x1f0], code[0x1f1], code[0x1f2]];
        assert_eq!(opcode, 0xe9);
        assert_eq!(0x1f3 + i32::from(i16::from_le_bytes([low, high])), 0x16);
    }

    #[test]
    fn memory_from_1_mib_on_follows_what_lies_below_640_kib() {
        let file = tempfile();
        let memory = map(&file, 4 << 20).unwrap();
        memory.write_slice(&[7], GuestAddress(layout::HIGH_MEMORY)).unwrap();
        memory.write_slice(&[8], GuestAddress(LOW - 1)).unwrap();
        let mut bytes = [0; 2];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, LOW - 1).unwrap();
        assert_eq!(bytes, [8, 7]);
    }

    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("exitscope-firmware-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }
}
