//! What a machine to emulate is, and what an emulator needs to be started with it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use exitscope_abi::reason::Isa;
use serde::{Deserialize, Serialize};

/// The vendor of an emulated CPU, which decides what emulates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// SVM with nested paging, emulated by QEMU TCG.
    Amd,
    /// VMX with EPT and VPID, emulated by Bochs.
    Intel,
}

impl Vendor {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Amd, Self::Intel];

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd => "amd",
            Self::Intel => "intel",
        }
    }

    /// Its virtualization's instruction set.
    pub fn isa(self) -> Isa {
        match self {
            Self::Amd => Isa::Svm,
            Self::Intel => Isa::Vmx,
        }
    }

    /// The emulator's name in reports.
    pub fn emulator(self) -> &'static str {
        match self {
            Self::Amd => "qemu-tcg",
            Self::Intel => "bochs",
        }
    }

    /// The vendor's part of KVM.
    pub fn kvm_module(self) -> &'static str {
        match self {
            Self::Amd => "kvm_amd",
            Self::Intel => "kvm_intel",
        }
    }

    /// How lines come out of the machine.
    pub fn link(self) -> Link {
        match self {
            Self::Amd => Link::Port,
            Self::Intel => Link::Frames,
        }
    }
}

/// How lines come out of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Through the virtio-serial port [`super::qemu::CHANNEL`].
    Port,
    /// Through the debug port, as [`crate::frame`] packs them.
    Frames,
}

/// An emulator on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulator {
    /// The program.
    pub path: PathBuf,
    /// Its version: major, minor, patch.
    pub version: (u32, u32, u32),
}

/// The numbers of a version such as `7.2.22`, whatever follows them.
pub fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split('.').map(|number| {
        let digits = number.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().ok()
    });
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

/// A machine to emulate.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Vendor of its CPU.
    pub vendor: Vendor,
    /// The kernel: a bzImage, or an ELF file with a PVH entry point.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub command_line: String,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// How many CPUs it has. More than one only under Bochs, whose CPUs take turns and repeat.
    pub cpus: u32,
    /// Whether the clock counts instructions, so that costs are exact and repeatable. QEMU only; Bochs' always does.
    pub icount: bool,
    /// Where the serial console goes.
    pub console_log: PathBuf,
    /// How long the machine may run in all.
    pub deadline: Duration,
    /// The image of its disk; what the machine writes to it is gone when it ends.
    pub disk: Option<PathBuf>,
}

/// What an emulator is started with.
pub struct Prepared {
    /// Its command line.
    pub arguments: Vec<OsString>,
    /// The other end of the channel.
    pub stdin: Stdio,
    /// Our end of what the machine's lines come through.
    pub channel: OwnedFd,
    /// Files that the emulator opens by their numbers in this process.
    pub files: Vec<OwnedFd>,
}
