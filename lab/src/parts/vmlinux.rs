//! Takes the kernel proper out of a bzImage, so that the emulated CPU need not decompress it.
//!
//! It is the same kernel: a bzImage holds a compressed ELF file and a program that unpacks it. Kernels with
//! the PVH entry point (`CONFIG_PVH`) can be started without that program, which saves about a second of
//! emulated time. It skips the random placement of the kernel's image; nothing here depends on that.
//! The format: Documentation/arch/x86/boot.rst of the kernel, fields `payload_offset` and `payload_length`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::abi::PT_NOTE;
use elf::endian::LittleEndian;
use elf::note::Note;

use crate::error::Error;
use crate::parts::cache::{Cache, Key};
use crate::parts::kernel::Kernel;
use crate::parts::tool::{self, GZIP, LZ4, Tool, XZ, ZSTD};

/// The note that gives the PVH entry point (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PHYS32_ENTRY: u64 = 18;
/// About what an unpacked kernel takes.
const UNPACKED: u64 = 80 << 20;

/// The image of a kernel that boots fastest: the kernel proper if it can be started, else the bzImage.
pub fn boot_image(kernel: &Kernel, cache: &Cache) -> Result<PathBuf, Error> {
    let key = Key::new("vmlinux with PVH: 2").file(&kernel.image)?.needs(UNPACKED);
    let entry = cache.entry("vmlinux", key, |directory| unpack(&kernel.image, directory))?;
    let vmlinux = entry.join("vmlinux");
    Ok(if vmlinux.is_file() { vmlinux } else { kernel.image.clone() })
}

/// Leaves `vmlinux` in `directory` if that kernel has a PVH entry point, else nothing.
fn unpack(image: &Path, directory: &Path) -> Result<(), Error> {
    let bytes = fs::read(image).map_err(Error::io("read", image))?;
    let Some((tool, payload)) = payload(&bytes) else { return Ok(()) };
    let packed = directory.join("payload");
    let unpacked = directory.join("vmlinux");
    fs::write(&packed, payload).map_err(Error::io("write", &packed))?;
    let source = File::open(&packed).map_err(Error::io("read", &packed))?;
    let target = File::create(&unpacked).map_err(Error::io("write", &unpacked))?;
    tool::filter(tool.command()?.arg("-dc"), source, target)?;
    fs::remove_file(&packed).map_err(Error::io("remove", &packed))?;
    let kernel = fs::read(&unpacked).map_err(Error::io("read", &unpacked))?;
    if !has_pvh_entry(&kernel) {
        fs::remove_file(&unpacked).map_err(Error::io("remove", &unpacked))?;
    }
    Ok(())
}

/// The compressed kernel in a bzImage, and what decompresses it.
fn payload(image: &[u8]) -> Option<(Tool, &[u8])> {
    const SETUP_SECTORS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;

    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let number = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let sectors = match *image.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + number(PAYLOAD_OFFSET)?;
    let payload = image.get(start..start.checked_add(number(PAYLOAD_LENGTH)?)?)?;
    // The kernel's build appends the unpacked size, which gzip's own format ends with anyway.
    let unsized_payload = payload.get(..payload.len().checked_sub(4)?)?;
    match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some((ZSTD, unsized_payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some((XZ, unsized_payload)),
        [0x02, 0x21, 0x4c, 0x18, ..] => Some((LZ4, unsized_payload)),
        [0x1f, 0x8b, ..] => Some((GZIP, payload)),
        _ => None,
    }
}

fn has_pvh_entry(kernel: &[u8]) -> bool {
    let Ok(file) = ElfBytes::<LittleEndian>::minimal_parse(kernel) else { return false };
    file.segments()
        .into_iter()
        .flatten()
        .filter(|segment| segment.p_type == PT_NOTE)
        .filter_map(|segment| file.segment_data_as_notes(&segment).ok())
        .flatten()
        .any(|note| matches!(note, Note::Unknown(note) if note.n_type == PHYS32_ENTRY && note.name_str().is_ok_and(|name| name.trim_end_matches('\0') == "Xen")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&512u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn the_payload_is_found_by_its_magic() {
        type Case<'a> = (&'a [u8], Option<(&'a str, &'a [u8])>);
        let cases: [Case; 5] = [
            (b"\x02\x21\x4c\x18body\0\0\0\0", Some(("lz4", b"\x02\x21\x4c\x18body"))),
            (b"\x28\xb5\x2f\xfdbody\0\0\0\0", Some(("zstd", b"\x28\xb5\x2f\xfdbody"))),
            (b"\xfd7zXZ\0body\0\0\0\0", Some(("xz", b"\xfd7zXZ\0body"))),
            (b"\x1f\x8bbody", Some(("gzip", b"\x1f\x8bbody"))),
            (b"something else", None),
        ];
        for (bytes, expected) in cases {
            let image = image(bytes);
            assert_eq!(payload(&image).map(|(tool, payload)| (tool.name, payload)), expected);
        }
    }

    #[test]
    fn what_is_no_image_has_no_payload() {
        assert!(payload(b"").is_none());
        assert!(payload(&[0; 4096]).is_none());
        let mut cut = image(b"\x1f\x8bbody");
        cut.truncate(3 * 512 + 2);
        assert!(payload(&cut).is_none());
        assert!(!has_pvh_entry(b"no ELF file"));
    }
}
