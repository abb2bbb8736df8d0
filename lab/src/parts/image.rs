//! Describes the first file system of an emulated machine and writes it as an initramfs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::parts::cpio::Writer;
use crate::parts::modules::Module;
use crate::parts::shared_library;
use crate::parts::tool::{CPUID, QEMU};

/// Where [`Image::qemu_tool`] puts the program.
pub const QEMU_PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
/// What QEMU reads when it boots a Linux kernel, a bzImage or one with a PVH entry, on a PC; and whose it is.
const QEMU_FILES: [(&str, &str); 4] = [
    ("seabios", "/usr/share/seabios/bios-256k.bin"),
    ("qemu-system-data", "/usr/share/qemu/kvmvapic.bin"),
    ("qemu-system-data", "/usr/share/qemu/linuxboot_dma.bin"),
    ("qemu-system-data", "/usr/share/qemu/pvh.bin"),
];

#[derive(Debug, Clone)]
enum Node {
    Directory { mode: u32 },
    Copy { source: PathBuf, mode: u32 },
    Bytes { contents: Vec<u8>, mode: u32 },
    Symlink { target: String },
    CharDevice { mode: u32, major: u32, minor: u32 },
}

/// What will be in an initramfs. Paths are absolute; parents are made as needed; what is added later under
/// the same path replaces what was there.
///
/// ```
/// # fn main() -> Result<(), exitscope_lab::Error> {
/// let mut image = exitscope_lab::parts::image::Image::new();
/// image.bytes("/job.json", "{}", 0o644)?.directory("/proc", 0o555)?;
/// let mut archive = Vec::new();
/// image.write(&mut archive)?;
/// assert_eq!(archive.len() % 4, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Image {
    nodes: BTreeMap<String, Node>,
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

impl Image {
    /// An image with nothing but `/dev/console`, which the kernel opens for `/init`.
    pub fn new() -> Self {
        let mode = 0o755;
        let console = Node::CharDevice { mode: 0o600, major: 5, minor: 1 };
        Self {
            nodes: [("/dev".to_owned(), Node::Directory { mode }), ("/dev/console".to_owned(), console)]
                .into(),
        }
    }

    /// Adds a copy of a file. It is read when the image is written.
    pub fn file(&mut self, path: &str, source: impl Into<PathBuf>, mode: u32) -> Result<&mut Self, Error> {
        self.add(path, Node::Copy { source: source.into(), mode })
    }

    /// Adds a file with these contents.
    pub fn bytes(&mut self, path: &str, contents: impl Into<Vec<u8>>, mode: u32) -> Result<&mut Self, Error> {
        self.add(path, Node::Bytes { contents: contents.into(), mode })
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<&mut Self, Error> {
        self.add(path, Node::Directory { mode })
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self, Error> {
        self.add(path, Node::Symlink { target: target.into() })
    }

    /// Adds kernel modules to a directory, each as `NAME.ko`.
    pub fn modules(&mut self, directory: &str, modules: &[Module]) -> Result<&mut Self, Error> {
        for module in modules {
            self.file(&format!("{directory}/{}.ko", module.name), &module.path, 0o644)?;
        }
        Ok(self)
    }

    /// Adds a dynamically linked program, with its interpreter and its libraries under their own paths.
    pub fn dynamic_tool(&mut self, path: &str, program: &Path) -> Result<&mut Self, Error> {
        for file in shared_library::needed_by(program)? {
            self.host_file(&file)?;
        }
        self.file(path, program, 0o755)
    }

    /// Adds Debian's `cpuid` as `/usr/bin/cpuid`.
    pub fn cpuid_tool(&mut self) -> Result<&mut Self, Error> {
        self.dynamic_tool("/usr/bin/cpuid", &CPUID.find()?)
    }

    /// Adds stock QEMU as [`QEMU_PROGRAM`], with the firmware of a PC and what boots a Linux kernel from that.
    pub fn qemu_tool(&mut self) -> Result<&mut Self, Error> {
        self.dynamic_tool(QEMU_PROGRAM, &QEMU.find()?)?;
        for (package, path) in QEMU_FILES {
            let file = Path::new(path);
            if !file.is_file() {
                return Err(Error::PackageIncomplete { package: package.into(), path: file.into() });
            }
            self.host_file(file)?;
        }
        Ok(self)
    }

    fn host_file(&mut self, file: &Path) -> Result<&mut Self, Error> {
        self.file(&file.to_string_lossy(), file, 0o755)
    }

    /// Writes the image as a cpio archive.
    pub fn write(&self, output: impl Write) -> Result<(), Error> {
        let mut archive = Writer::new(BufWriter::with_capacity(1 << 18, output));
        for (path, node) in &self.nodes {
            write_node(&mut archive, path, node)?;
        }
        archive.finish().map(drop).map_err(Error::io("write", Path::new("the initramfs")))
    }

    fn add(&mut self, path: &str, node: Node) -> Result<&mut Self, Error> {
        let proper = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(proper)) {
            return Err(Error::ImagePath { path: path.into() });
        }
        let parents = path.match_indices('/').skip(1).map(|(end, _)| &path[..end]);
        for parent in parents {
            self.nodes.entry(parent.to_owned()).or_insert(Node::Directory { mode: 0o755 });
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(self)
    }
}

/// Parents sort before what is in them, as an archive needs it.
fn write_node<W: Write>(archive: &mut Writer<W>, path: &str, node: &Node) -> Result<(), Error> {
    let written = match node {
        Node::Directory { mode } => archive.directory(path, *mode),
        Node::Bytes { contents, mode } => {
            archive.file(path, *mode, contents.len() as u64, &mut contents.as_slice())
        }
        Node::Symlink { target } => archive.symlink(path, target),
        Node::CharDevice { mode, major, minor } => archive.char_device(path, *mode, *major, *minor),
        Node::Copy { source, mode } => return copy(archive, path, source, *mode),
    };
    written.map_err(Error::io("write", Path::new(path)))
}

fn copy<W: Write>(archive: &mut Writer<W>, path: &str, source: &Path, mode: u32) -> Result<(), Error> {
    let mut file = File::open(source).map_err(Error::io("read", source))?;
    let data = file.metadata().map_err(Error::io("read", source))?;
    if !data.is_file() {
        return Err(Error::Archive { path: source.into(), reason: "it is no regular file" });
    }
    let mut reader = ReadErrors { file: &mut file, failed: false };
    let written = archive.file(path, mode, data.len(), &mut reader);
    let failed = reader.failed;
    written.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => {
            Error::Archive { path: source.into(), reason: "its size changed while it was read" }
        }
        io::ErrorKind::FileTooLarge => {
            Error::Archive { path: source.into(), reason: "it is larger than 4 GiB" }
        }
        _ if failed => Error::io("read", source)(error),
        _ => Error::io("write", Path::new(path))(error),
    })
}

/// Remembers whether it was the reading that failed, and not the writing.
struct ReadErrors<'a> {
    file: &'a mut File,
    failed: bool,
}

impl Read for ReadErrors<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer).inspect_err(|_| self.failed = true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(image: &Image) -> Vec<&str> {
        image.nodes.keys().map(String::as_str).collect()
    }

    #[test]
    fn parents_are_made_and_come_first() {
        let mut image = Image::new();
        image.bytes("/a/b/c", "x", 0o644).unwrap().symlink("/a/l", "b").unwrap();
        image.directory("/a/b", 0o700).unwrap();
        assert_eq!(paths(&image), ["/a", "/a/b", "/a/b/c", "/a/l", "/dev", "/dev/console"]);
        assert!(matches!(image.nodes["/a/b"], Node::Directory { mode: 0o700 }));
    }

    #[test]
    fn parents_come_first_even_beside_names_that_sort_before_a_slash() {
        let mut image = Image::new();
        image.bytes("/a/x", "", 0o644).unwrap().bytes("/a-b/y", "", 0o644).unwrap();
        let order = paths(&image);
        let at = |path| order.iter().position(|found| *found == path).unwrap();
        assert!(at("/a") < at("/a/x") && at("/a-b") < at("/a-b/y"));
    }

    #[test]
    fn paths_must_be_absolute_and_plain() {
        for path in ["", "/", "init", "/../x", "/a//b", "/a/", "/a/./b"] {
            let error = Image::new().bytes(path, "", 0o644).unwrap_err();
            assert!(matches!(error, Error::ImagePath { .. }), "{path}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let mut image = Image::new();
        image.file("/init", "/nowhere/exitscope", 0o755).unwrap();
        let error = image.write(io::sink()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /nowhere/exitscope"), "{error}");
    }

    #[test]
    fn a_full_disk_is_told_and_leaves_no_half_image() {
        let Ok(full) = File::options().write(true).open("/dev/full") else {
            println!("skipped: no /dev/full");
            return;
        };
        let mut image = Image::new();
        image.bytes("/big", vec![1; 1 << 20], 0o644).unwrap();
        assert!(image.write(full).unwrap_err().is_disk_full());
    }

    #[test]
    fn modules_go_into_one_directory() {
        let mut image = Image::new();
        let module = |name: &str| Module { name: name.into(), path: format!("/m/{name}.ko").into() };
        image.modules("/modules", &[module("kvm"), module("kvm_amd")]).unwrap();
        assert!(paths(&image).ends_with(&["/modules", "/modules/kvm.ko", "/modules/kvm_amd.ko"]));
    }

    #[test]
    fn a_dynamic_tool_brings_its_libraries() {
        let mut image = Image::new();
        image.dynamic_tool("/bin/ls", Path::new("/bin/ls")).unwrap();
        assert!(paths(&image).iter().any(|path| path.ends_with("/libc.so.6")));
        assert!(image.nodes.contains_key("/lib64/ld-linux-x86-64.so.2"));
    }
}
