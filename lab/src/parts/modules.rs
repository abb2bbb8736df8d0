//! Finds kernel modules with all that they depend on, in load order, and unpacks them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::parts::cache::{Cache, Key};
use crate::parts::kernel::Kernel;
use crate::parts::tool::{self, GZIP, Tool, XZ, ZSTD};

/// A kernel module, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, as `lsmod` prints it: `kvm_amd`.
    pub name: String,
    /// The file `NAME.ko`, uncompressed.
    pub path: PathBuf,
}

/// The modules of those names and their dependencies, each after what it depends on.
///
/// Names may be written with `-` or `_`. What is built into the kernel is left out.
pub fn collect(kernel: &Kernel, names: &[&str], cache: &Cache) -> Result<Vec<Module>, Error> {
    let list = kernel.modules.join("modules.dep");
    let (dependencies, builtin) = (read(&list)?, read(&kernel.modules.join("modules.builtin"))?);
    let index = Index::parse(&dependencies, &builtin);
    let files = index
        .load_order(names)
        .map_err(|module| Error::NoSuchModule { release: kernel.release.clone(), module })?;
    let mut key = Key::new("modules, unpacked, unsigned: 1").text(&kernel.release).file(&list)?;
    for file in &files {
        key = key.text(file);
    }
    let directory = cache.entry("modules", key, |directory| {
        files.iter().try_for_each(|file| {
            let to = directory.join(format!("{}.ko", name_of(file)));
            unpack(&kernel.modules.join(file), &to)?;
            strip_signature(&to)
        })
    })?;
    Ok(files
        .iter()
        .map(|file| name_of(file))
        .map(|name| Module { path: directory.join(format!("{name}.ko")), name })
        .collect())
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}

/// The name of the module in a file: `kernel/drivers/char/hw_random/virtio-rng.ko.xz` has `virtio_rng`.
fn name_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    normal(name.split(".ko").next().unwrap_or(name))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// What depmod knows of a kernel's modules.
#[derive(Debug, Default)]
struct Index<'a> {
    /// File and direct or indirect dependencies, by name.
    modules: BTreeMap<String, (&'a str, Vec<&'a str>)>,
    builtin: BTreeSet<String>,
}

impl<'a> Index<'a> {
    /// Reads `modules.dep` (`FILE: DEPENDENCY…` per line) and `modules.builtin` (a file per line).
    fn parse(dependencies: &'a str, builtin: &'a str) -> Self {
        let modules = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(file, needs)| (name_of(file), (file, needs.split_whitespace().collect())))
            .collect();
        Self { modules, builtin: builtin.lines().map(name_of).collect() }
    }

    /// The files of `names` and of what they need, in an order to load them in; or a name that is unknown.
    fn load_order(&self, names: &[&str]) -> Result<Vec<&'a str>, String> {
        let mut order = Vec::new();
        for name in names.iter().map(|name| normal(name)) {
            if !self.builtin.contains(&name) {
                self.add(&name, &mut order)?;
            }
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<&'a str>) -> Result<(), String> {
        let (file, needs) = self.modules.get(name).ok_or_else(|| name.to_owned())?;
        if order.contains(file) {
            return Ok(());
        }
        // The list is the transitive closure, and no cycle can be: the kernel could not load one.
        for needed in needs {
            self.add(&name_of(needed), order)?;
        }
        order.push(file);
        Ok(())
    }
}

fn unpack(from: &Path, to: &Path) -> Result<(), Error> {
    let format = || Error::ModuleFormat { path: from.into() };
    let decompress = |tool: Tool| {
        let source = File::open(from).map_err(Error::io("read", from))?;
        let target = File::create(to).map_err(Error::io("write", to))?;
        tool::filter(tool.command()?.arg("-dc"), source, target)
    };
    match from.extension().and_then(|extension| extension.to_str()).ok_or_else(format)? {
        "ko" => fs::copy(from, to).map(drop).map_err(Error::io("copy", from)),
        "xz" => decompress(XZ),
        "zst" => decompress(ZSTD),
        "gz" => decompress(GZIP),
        _ => Err(format()),
    }
}

/// Cuts a module's signature off. A stock kernel that does not enforce signatures loads both, but checks the hash of
/// all of a signed module first: half a billion instructions for KVM's, a third of an emulated boot.
fn strip_signature(module: &Path) -> Result<(), Error> {
    let read = || Error::io("read", module);
    let file = File::options().read(true).write(true).open(module).map_err(read())?;
    let length = file.metadata().map_err(read())?.len();
    let mut end = [0; SIGNATURE_END];
    let begin = length.saturating_sub(end.len() as u64);
    file.read_at(&mut end, begin).map_err(read())?;
    let signature = signature_length(&end).filter(|signature| *signature <= length);
    match signature {
        Some(signature) => file.set_len(length - signature).map_err(Error::io("shorten", module)),
        None => Ok(()),
    }
}

/// What a signed module ends with: `struct module_signature`, whose last field is the length of what precedes it, and
/// a mark.
const SIGNATURE_END: usize = 12 + SIGNATURE_MARK.len();
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";

/// Length of all that belongs to the signature.
fn signature_length(end: &[u8; SIGNATURE_END]) -> Option<u64> {
    let description = end.strip_suffix(SIGNATURE_MARK)?;
    let data = u32::from_be_bytes(description.last_chunk().copied()?);
    Some(u64::from(data) + SIGNATURE_END as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::series::Series;
    use std::process::Command;

    #[test]
    fn signatures_are_cut_off() {
        let cut = |contents: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), contents).unwrap();
            strip_signature(file.path()).unwrap();
            fs::read(file.path()).unwrap()
        };
        let description = |length: u32| [&[0; 8], &length.to_be_bytes()[..], SIGNATURE_MARK].concat();
        assert_eq!(cut(&[b"module, signature".as_slice(), &description(11)].concat()), b"module");
        let beyond = [b"module".as_slice(), &description(7)].concat();
        assert_eq!(cut(&beyond), beyond);
        for unsigned in [b"".as_slice(), b"module", SIGNATURE_MARK] {
            assert_eq!(cut(unsigned), unsigned);
        }
    }

    const DEP: &str = "\
kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/drivers/crypto/ccp/ccp.ko.xz kernel/arch/x86/kvm/kvm.ko.xz kernel/virt/lib/irqbypass.ko.xz
kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz
kernel/virt/lib/irqbypass.ko.xz:
kernel/drivers/crypto/ccp/ccp.ko.xz:
kernel/drivers/block/virtio_blk.ko.xz:
";
    const BUILTIN: &str = "kernel/drivers/char/virtio_console.ko\nkernel/fs/ext4/ext4.ko\n";

    #[test]
    fn dependencies_come_first_and_builtin_modules_not_at_all() {
        let index = Index::parse(DEP, BUILTIN);
        let names = |asked: &[&str]| {
            index.load_order(asked).map(|files| files.into_iter().map(name_of).collect::<Vec<_>>())
        };
        let expected = ["ccp", "irqbypass", "kvm", "kvm_amd"].map(str::to_owned);
        assert_eq!(names(&["kvm_amd", "ext4"]).unwrap(), expected);
        assert_eq!(names(&["virtio-console", "kvm", "kvm-amd"]).unwrap()[..2], ["irqbypass", "kvm"]);
        assert_eq!(names(&["kvm-intel"]), Err("kvm_intel".to_owned()));
    }

    #[test]
    fn every_compression_is_unpacked_once() {
        let directory = tempfile::tempdir().unwrap();
        let modules = directory.path().join("modules");
        fs::create_dir(&modules).unwrap();
        for (file, tool) in [("a-b.ko.xz", "xz"), ("c.ko.zst", "zstd"), ("d.ko.gz", "gzip"), ("e.ko", "")] {
            let plain = modules.join(file.split(".ko").next().unwrap());
            fs::write(&plain, file).unwrap();
            if tool.is_empty() {
                fs::rename(&plain, modules.join(file)).unwrap();
                continue;
            }
            let output = File::create(modules.join(file)).unwrap();
            let input = File::open(&plain).unwrap();
            let Ok(status) = Command::new(tool).arg("-c").stdin(input).stdout(output).status() else {
                println!("skipped: {tool} is not installed");
                return;
            };
            assert!(status.success());
        }
        fs::write(modules.join("modules.dep"), "a-b.ko.xz: c.ko.zst\nc.ko.zst:\nd.ko.gz:\ne.ko:\n").unwrap();
        fs::write(modules.join("modules.builtin"), "").unwrap();
        let kernel = Kernel {
            series: Series::V6_12,
            release: "6.12.0-test".into(),
            image: "/i".into(),
            build: "/b".into(),
            tools: None,
            modules,
        };
        let cache = Cache::at(directory.path().join("cache")).unwrap();
        let found = collect(&kernel, &["a_b", "d", "e"], &cache).unwrap();
        let contents: Vec<(String, String)> = found
            .iter()
            .map(|module| (module.name.clone(), fs::read_to_string(&module.path).unwrap()))
            .collect();
        let expected = [("c", "c.ko.zst"), ("a_b", "a-b.ko.xz"), ("d", "d.ko.gz"), ("e", "e.ko")];
        assert_eq!(contents, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(collect(&kernel, &["a_b", "d", "e"], &cache).unwrap(), found);
        let error = collect(&kernel, &["zz"], &cache).unwrap_err().to_string();
        assert!(error.contains("6.12.0-test has no module `zz`"), "{error}");
    }
}
