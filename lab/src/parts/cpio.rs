//! Writes cpio archives in the `newc` format, from which Linux unpacks its first file system.
//!
//! The archive depends on its contents only: times are 0 and inode numbers count up. It is not compressed,
//! since the emulator copies it in no time and an emulated kernel unpacks it fastest as it is.
//! The format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

use std::io::{self, Read, Write};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHAR_DEVICE: u32 = 0o020_000;

/// Writes an archive to `W`, entry by entry. A directory must come before what is in it.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    inode: u32,
    /// Bytes written, for alignment.
    offset: u64,
}

impl<W: Write> Writer<W> {
    /// An empty archive.
    pub fn new(output: W) -> Self {
        Self { output, inode: 0, offset: 0 }
    }

    /// Adds a directory. `mode` has permissions only, here and below.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(path, DIRECTORY | mode, (0, 0), 0, &mut io::empty())
    }

    /// Adds a file of `size` bytes, which `contents` must give exactly.
    pub fn file(&mut self, path: &str, mode: u32, size: u64, contents: &mut dyn Read) -> io::Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), size, contents)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.len() as u64, &mut target.as_bytes())
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHAR_DEVICE | mode, (major, minor), 0, &mut io::empty())
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.header(TRAILER, 0, 1, (0, 0), 0, 0)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        size: u64,
        contents: &mut dyn Read,
    ) -> io::Result<()> {
        let size = u32::try_from(size)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 GiB"))?;
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // The kernel's unpacker takes paths relative to its root.
        self.header(path.trim_start_matches('/'), mode, links, device, self.inode, size)?;
        let copied = io::copy(&mut Read::take(&mut *contents, u64::from(size)), &mut self.output)?;
        if copied != u64::from(size) || contents.read(&mut [0])? != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its size changed while it was read"));
        }
        self.offset += copied;
        self.align()
    }

    fn header(
        &mut self,
        name: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        inode: u32,
        size: u32,
    ) -> io::Result<()> {
        let name_size = name.len() as u32 + 1;
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = MAGIC.to_owned();
        header.extend(fields.map(|field| format!("{field:08X}")));
        header.push_str(name);
        header.push('\0');
        self.output.write_all(header.as_bytes())?;
        self.offset += header.len() as u64;
        self.align()
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = self.offset.next_multiple_of(4) - self.offset;
        self.offset += padding;
        self.output.write_all(&[0; 3][..padding as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn archive() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.directory("/dev", 0o755).unwrap();
        writer.char_device("/dev/console", 0o600, 5, 1).unwrap();
        writer.file("/init", 0o755, 5, &mut &b"hello"[..]).unwrap();
        writer.file("/empty", 0o644, 0, &mut io::empty()).unwrap();
        writer.symlink("/bin", "usr/bin").unwrap();
        writer.finish().unwrap()
    }

    /// Name, mode, links, device and contents.
    type Entry = (String, u32, u32, (u32, u32), Vec<u8>);

    /// What is in an archive, by a reader of our own.
    fn parse(archive: &[u8]) -> Vec<Entry> {
        let (mut at, mut entries) = (0, Vec::new());
        loop {
            assert_eq!(&archive[at..at + 6], MAGIC.as_bytes());
            let field = |n: usize| {
                let digits = &archive[at + 6 + n * 8..at + 14 + n * 8];
                u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&archive[at + 110..at + 109 + name_size]).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(data, archive.len());
                return entries;
            }
            entries.push((
                name.to_owned(),
                field(1),
                field(4),
                (field(9), field(10)),
                archive[data..data + size].to_vec(),
            ));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let expected = [
            ("dev", 0o040_755, 2, (0, 0), &b""[..]),
            ("dev/console", 0o020_600, 1, (5, 1), b""),
            ("init", 0o100_755, 1, (0, 0), b"hello"),
            ("empty", 0o100_644, 1, (0, 0), b""),
            ("bin", 0o120_777, 1, (0, 0), b"usr/bin"),
        ];
        let found = parse(&archive());
        assert_eq!(found.len(), expected.len());
        for (found, (name, mode, links, device, data)) in found.into_iter().zip(expected) {
            assert_eq!(found, (name.to_owned(), mode, links, device, data.to_vec()));
        }
    }

    #[test]
    fn the_same_contents_give_the_same_archive() {
        assert_eq!(archive(), archive());
    }

    #[test]
    fn a_file_of_another_size_is_an_error() {
        for contents in [&b"four"[..], b"sixsix"] {
            let error = Writer::new(Vec::new()).file("/f", 0o644, 5, &mut &*contents).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn cpio_lists_it() {
        let Ok(mut child) = Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            println!("skipped: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&archive()).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        let columns: Vec<(&str, &str)> =
            listing.lines().map(|line| (&line[..10], line.split(" 1970 ").nth(1).unwrap())).collect();
        assert_eq!(
            columns,
            [
                ("drwxr-xr-x", "dev"),
                ("crw-------", "dev/console"),
                ("-rwxr-xr-x", "init"),
                ("-rw-r--r--", "empty"),
                ("lrwxrwxrwx", "bin -> usr/bin"),
            ]
        );
    }
}
