//! Writes cpio archives in the `newc` format, from which Linux unpacks its first file system.
//!
//! The archive depends on its contents only: times are 0 and inode numbers count up. It is not compressed,
//! since the emulator copies it in no time and an emulated kernel unpacks it fastest as it is.
//! The format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

use std::io::{self, Read, Write};

use cpio::newc::{self, Builder, ModeFileType};

/// Writes an archive to `W`, entry by entry. A directory must come before what is in it.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    /// An empty archive.
    pub fn new(output: W) -> Self {
        Self { output, inode: 0 }
    }

    /// Adds a directory. `mode` has permissions only, here and below.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        let entry = self.entry(path, mode, ModeFileType::Directory).nlink(2);
        self.write(entry, 0, &mut io::empty())
    }

    /// Adds a file of `size` bytes, which `contents` must give exactly.
    pub fn file(&mut self, path: &str, mode: u32, size: u64, contents: &mut dyn Read) -> io::Result<()> {
        let entry = self.entry(path, mode, ModeFileType::Regular);
        self.write(entry, size, contents)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let entry = self.entry(path, 0o777, ModeFileType::Symlink);
        self.write(entry, target.len() as u64, &mut target.as_bytes())
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> io::Result<()> {
        let entry = self.entry(path, mode, ModeFileType::Char).rdev_major(major).rdev_minor(minor);
        self.write(entry, 0, &mut io::empty())
    }

    /// Ends the archive.
    pub fn finish(self) -> io::Result<W> {
        let mut output = newc::trailer(self.output)?;
        output.flush()?;
        Ok(output)
    }

    fn entry(&mut self, path: &str, mode: u32, kind: ModeFileType) -> Builder {
        self.inode += 1;
        // The kernel's unpacker takes paths relative to its root.
        Builder::new(path.trim_start_matches('/')).ino(self.inode).mode(mode).set_mode_file_type(kind)
    }

    fn write(&mut self, entry: Builder, size: u64, contents: &mut dyn Read) -> io::Result<()> {
        let size = u32::try_from(size)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 GiB"))?;
        let mut writer = entry.write(&mut self.output, size);
        let copied = io::copy(&mut Read::take(&mut *contents, size.into()), &mut writer)?;
        if copied != u64::from(size) || contents.read(&mut [0])? != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its size changed while it was read"));
        }
        writer.finish().map(drop)
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

    /// What is in an archive.
    fn parse(archive: &[u8]) -> Vec<Entry> {
        let (mut rest, mut entries) = (archive, Vec::new());
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                assert!(reader.finish().unwrap().is_empty());
                return entries;
            }
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            let device = (entry.rdev_major(), entry.rdev_minor());
            entries.push((entry.name().to_owned(), entry.mode(), entry.nlink(), device, data));
            rest = reader.finish().unwrap();
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
