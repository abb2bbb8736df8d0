//! What no file tells of a machine: the kernel's name, CPUID, whether devices can be opened, the kernel's log.

use std::fs::File;
use std::io;
use std::path::Path;

use exitscope_abi::leaf::Discovery;
use exitscope_abi::reason::Isa;

use crate::kernel_log::{KernelLog, text_of};

/// What is passed in beside a root directory.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release of the running kernel: `uname -r`.
    pub release: String,
    /// Its version: `uname -v`.
    pub version: String,
    /// What CPUID tells.
    pub cpu: Cpu,
    /// Opens a device for reading, and for writing too if asked to, and closes it again.
    pub open: fn(&Path, bool) -> io::Result<()>,
    /// What the kernel's log has of our module, oldest first; `None` if it cannot be read.
    pub log: Option<Vec<String>>,
}

/// What CPUID tells.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// The virtualization that this CPU has, or that its hypervisor offers.
    pub isa: Option<Isa>,
    /// The name of the hypervisor that runs this machine; `None` on hardware.
    pub hypervisor: Option<String>,
    /// What the host's exitscope answers; `None` if none does.
    pub leaves: Option<Discovery>,
}

impl Facts {
    /// Those of the machine that this program runs on.
    pub fn here(cpu: Cpu) -> Self {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Self {
            release: text(uname.release()),
            version: text(uname.version()),
            cpu,
            open,
            log: module_log().ok(),
        }
    }
}

fn open(device: &Path, writable: bool) -> io::Result<()> {
    File::options().read(true).write(writable).open(device).map(drop)
}

/// What the kernel's log has of our module.
fn module_log() -> io::Result<Vec<String>> {
    KernelLog::open()?.read(|record| Some(text_of(record)?.strip_prefix("exitscope: ")?.to_owned()))
}
