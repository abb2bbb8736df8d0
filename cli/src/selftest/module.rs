//! The kernel module from a file, loaded for the self-test only and unloaded again when that ends.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::system::{delete_module, finit_module};

use crate::output::tell;

/// Its name in the kernel.
const NAME: &str = "exitscope";

/// The module cannot be unloaded.
#[derive(Debug)]
pub struct InUse;

impl std::fmt::Display for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cannot unload the module: another program has /dev/exitscope open (end it, then `rmmod {NAME}`)"
        )
    }
}

impl std::error::Error for InUse {}

/// A module that is ours to load and unload.
pub struct Module {
    path: PathBuf,
    loaded: bool,
}

impl Module {
    /// The module in this file, loaded; `None` where one is loaded already, which is not ours.
    pub fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        if is_loaded() {
            return Ok(None);
        }
        let mut module = Self { path: path.into(), loaded: false };
        module.insert()?;
        Ok(Some(module))
    }

    /// Loads it, unless it is.
    pub fn insert(&mut self) -> anyhow::Result<()> {
        if self.loaded {
            return Ok(());
        }
        let path = self.path.display();
        let file = File::open(&self.path).with_context(|| format!("cannot open {path}"))?;
        finit_module(&file, &CString::default(), 0).map_err(|errno| match errno {
            Errno::PERM => anyhow!("cannot load {path}: only root may (use sudo)"),
            errno => anyhow!("cannot load {path}: {errno} (the kernel's log says why: dmesg)"),
        })?;
        self.loaded = true;
        Ok(())
    }

    /// Unloads it, unless it is not loaded. No program may have its device open.
    pub fn remove(&mut self) -> anyhow::Result<()> {
        // Someone who looks at all new devices lets go of this one soon.
        const ATTEMPTS: u32 = 20;
        if !self.loaded {
            return Ok(());
        }
        // Whatever comes of it, it is tried once.
        self.loaded = false;
        for _ in 0..ATTEMPTS {
            match delete_module(&CString::new(NAME)?, OFlags::NONBLOCK.bits() as i32) {
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN) => thread::sleep(Duration::from_millis(50)),
                Err(errno) => return Err(errno).context("cannot unload the module"),
            }
        }
        Err(InUse.into())
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tell(format_args!("{error:#}"));
        }
    }
}

/// Whether a module of this name is loaded.
fn is_loaded() -> bool {
    Path::new("/sys/module").join(NAME).exists()
}
