//! Tests of the Linux loader on files that are too short, too large, or something else.

use super::*;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

const SETUP_SECTORS: usize = 4;

/// A file in the temporary directory that goes away with this value.
struct Temporary(PathBuf);

impl Temporary {
    fn new(bytes: &[u8]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("exitscope-vmm-{}-{number}", std::process::id()));
        std::fs::write(&path, bytes).expect("a temporary file");
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A bzImage of one page that needs `init_size` bytes to unpack, changed by `change`.
fn bzimage(init_size: u32, change: impl FnOnce(&mut Vec<u8>)) -> Temporary {
    let mut bytes = vec![0; (SETUP_SECTORS + 1) * 512 + 4096];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    set(0x1f1, &[SETUP_SECTORS as u8]);
    set(0x202, b"HdrS");
    set(0x206, &0x20f_u16.to_le_bytes());
    set(0x211, &[1]);
    set(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    set(0x236, &XLF_KERNEL_64.to_le_bytes());
    set(0x238, &2047_u32.to_le_bytes());
    set(0x258, &0x10_0000_u64.to_le_bytes());
    set(0x260, &init_size.to_le_bytes());
    change(&mut bytes);
    Temporary::new(&bytes)
}

fn memory(mib: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)]).expect("memory")
}

#[test]
fn a_good_kernel_gets_its_parameters() {
    let (kernel, initrd) = (bzimage(1 << 20, |_| {}), Temporary::new(&[0x55; 5000]));
    let memory = memory(4);
    let entry = load(&memory, &kernel.0, Some(&initrd.0), "console=ttyS0", 2).expect("loads");
    assert_eq!(entry, 0x10_0200);

    let params: boot_params = memory.read_obj(GuestAddress(layout::BOOT_PARAMS)).expect("parameters");
    let header = params.hdr;
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), ((4 << 20) - 0x2000, 5000));
    assert_eq!(({ params.acpi_rsdp_addr }, params.e820_entries), (layout::ACPI, 3));
    let mut cmdline = [0; 14];
    memory.read_slice(&mut cmdline, GuestAddress(header.cmd_line_ptr.into())).expect("command line");
    assert_eq!(&cmdline, b"console=ttyS0\0");
}

/// An ELF file of one segment with `size` bytes of code at `address`, entered at `entry`.
fn elf(address: u64, size: u64, entry: u64) -> Temporary {
    let mut bytes = vec![0; 0x1000 + 16];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    set(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    set(0x18, &entry.to_le_bytes());
    set(0x20, &64_u64.to_le_bytes());
    set(0x36, &56_u16.to_le_bytes());
    set(0x38, &1_u16.to_le_bytes());
    set(64, &1_u32.to_le_bytes());
    set(64 + 8, &0x1000_u64.to_le_bytes());
    set(64 + 24, &address.to_le_bytes());
    set(64 + 32, &16_u64.to_le_bytes());
    set(64 + 40, &size.to_le_bytes());
    Temporary::new(&bytes)
}

#[test]
fn a_vmlinux_is_entered_where_it_says() {
    let memory = memory(4);
    let entry = load(&memory, &elf(0x20_0000, 0x5000, 0x20_0010).0, None, "", 1).expect("loads");
    assert_eq!(entry, 0x20_0010);
    let params: boot_params = memory.read_obj(GuestAddress(layout::BOOT_PARAMS)).expect("parameters");
    assert_eq!(({ params.hdr.boot_flag }, { params.hdr.header }), (BOOT_FLAG, HEADER_MAGIC));
    assert_eq!(kernel_end(&params.hdr), 0x20_5000);
}

#[test]
fn bad_vmlinux_files_are_refused_with_a_reason() {
    let cases = [
        (elf(0x20_0000, 0x10, 0x1000), "Invalid entry address"),
        (elf(0x20_0000, 0x10, 0x30_0000), "entry point 0x300000 lies outside"),
        (elf(0x4000_0000, 0x10, 0x4000_0000), "does not fit in 4 MiB"),
        (elf(0x20_0000, 1 << 40, 0x20_0000), "ask for more memory"),
        (elf(u64::MAX - 7, 0x10, 0x20_0000), "does not fit"),
    ];
    for (kernel, expected) in cases {
        let message = failure(&kernel.0, None, "");
        assert!(message.contains(expected), "{message}");
    }
}

/// Loads a kernel of this kind into 4 MiB and gives the message of the failure.
fn failure(kernel: &Path, initrd: Option<&Path>, cmdline: &str) -> String {
    load(&memory(4), kernel, initrd, cmdline, 1).expect_err("must not load").to_string()
}

#[test]
fn bad_kernels_are_refused_with_a_reason() {
    let cases: [(Temporary, &str); 7] = [
        (Temporary::new(b""), "not a 64-bit kernel"),
        (Temporary::new(&[0x7f, b'E', b'L', b'F']), "not a 64-bit kernel"),
        (Temporary::new(&[0; 0x10000]), "not a 64-bit kernel"),
        (bzimage(1 << 20, |bytes| bytes.truncate(0x220)), "not a 64-bit kernel"),
        (bzimage(1 << 20, |bytes| bytes[0x1f1] = 0xff), "not a 64-bit kernel"),
        (bzimage(1 << 20, |bytes| bytes[0x236] = 0), "without a 64-bit entry"),
        (bzimage(0xffff_ffff, |_| {}), "needs 4097 MiB"),
    ];
    for (kernel, expected) in cases {
        let message = failure(&kernel.0, None, "");
        assert!(message.contains(expected), "{message}");
    }
    assert!(failure(Path::new("/nonexistent"), None, "").starts_with("cannot read /nonexistent"));
    assert!(failure(Path::new("/"), None, "").contains("/"));
}

#[test]
fn an_initrd_must_fit_behind_the_kernel() {
    let (kernel, initrd) = (bzimage(2 << 20, |_| {}), Temporary::new(&vec![0; (1 << 20) + 1]));
    let message = failure(&kernel.0, Some(&initrd.0), "");
    assert!(message.contains("room for 1048576"), "{message}");
}

#[test]
fn a_command_line_must_fit_and_be_one_line() {
    let kernel = bzimage(1 << 20, |_| {});
    assert!(failure(&kernel.0, None, &"x".repeat(2048)).contains("takes 2047"));
    assert!(failure(&kernel.0, None, "a\0b").contains("zero byte"));
}

#[test]
fn the_memory_map_has_no_gaps_below_its_end() {
    let map = memory_map(256 << 20);
    for pair in map.windows(2) {
        assert_eq!({ pair[0].addr } + { pair[0].size }, { pair[1].addr });
    }
    assert_eq!(map.map(|entry| entry.r#type), [E820_RAM, E820_RESERVED, E820_RAM]);
    assert_eq!({ map[2].addr } + { map[2].size }, 256 << 20);
}
