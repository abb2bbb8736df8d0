//! One emulated machine, from its parts to the events that it sent.

use std::env;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::emulator::{self, Machine, Vendor};
use crate::error::Error;
use crate::job::{
    EXITSCOPE, Event, GUEST_INITRD, GUEST_KERNEL, GUEST_MODULES, Insert, JOB, Job, MODULES, Step,
};
use crate::parts::cache::Cache;
use crate::parts::debug_kernel;
use crate::parts::image::Image;
use crate::parts::kernel::{self, Kernel};
use crate::parts::modules::{self, Module};
use crate::parts::series::Series;
use crate::parts::tool::{self, MAKE};
use crate::parts::vmlinux;
use crate::progress::Progress;

/// Modules that a machine needs, besides those that they depend on and the vendor's part of KVM: its channel's, its
/// disk's, the reader of MSRs.
const MODULES_NEEDED: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_blk", "msr"];
/// Modules that a guest under QEMU needs: its port's and its disk's.
const GUEST_MODULES_NEEDED: [&str; 3] = ["virtio_pci", "virtio_console", "virtio_blk"];
/// How often a machine that hangs is booted again, each time with a note: `qemu::COMMAND_LINE` says why it may.
const MAX_HANGS: u32 = 2;
/// Modules that a machine needs only if it has a disk: under Bochs that lies in memory.
fn modules_of_disk(vendor: Vendor) -> &'static [&'static str] {
    match vendor {
        Vendor::Amd => &[],
        Vendor::Intel => &["nd_e820", "nd_pmem"],
    }
}

/// Whether KVM uses the CPU's second level of page tables for its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// Nested page tables (NPT).
    Nested,
    /// Shadow page tables.
    Shadow,
}

impl Paging {
    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Shadow => "shadow",
        }
    }

    /// The parameters of a module of KVM's.
    fn parameters(self, module: &str) -> &'static str {
        match (module, self) {
            ("kvm_amd", Self::Shadow) => "npt=0",
            ("kvm_intel", Self::Shadow) => "ept=0 vpid=0",
            _ => "",
        }
    }
}

/// Everything that emulated machines of one kernel and vendor are made of.
#[derive(Debug)]
pub struct Lab {
    vendor: Vendor,
    kernel: Kernel,
    boot_image: PathBuf,
    modules: Vec<Module>,
    disk_modules: Vec<Module>,
    guest_image: PathBuf,
    guest_modules: Vec<Module>,
    exitscope: PathBuf,
    program: PathBuf,
    out: PathBuf,
}

/// How a machine of the [`Lab`] shall be.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How KVM pages its guests.
    pub paging: Paging,
    /// How many CPUs it has: more than one on the Intel lane only.
    pub cpus: u32,
    /// Whether its clock counts instructions.
    pub icount: bool,
    /// Its memory in MiB, if not the emulator's usual.
    pub memory_mib: Option<u32>,
    /// How long it may run on a stock kernel.
    pub deadline: Duration,
    /// Names its console's log.
    pub name: String,
    /// Whether it has stock QEMU to run guests with.
    pub qemu: bool,
    /// Its disk's image, which is not written to.
    pub disk: Option<PathBuf>,
    /// More files: their paths there and here.
    pub files: Vec<(String, PathBuf)>,
}

impl Default for Setup {
    fn default() -> Self {
        // Far more than anything takes; it is there for a machine that hangs.
        let deadline = Duration::from_secs(600);
        Self {
            paging: Paging::Nested,
            cpus: 1,
            icount: false,
            memory_mib: None,
            deadline,
            name: "console".into(),
            qemu: false,
            disk: None,
            files: vec![],
        }
    }
}

impl Lab {
    /// Finds or makes all parts. `program` is the `exitscope` command itself, a static binary; logs go to `out`.
    pub fn prepare(
        vendor: Vendor,
        series: Series,
        program: &Path,
        out: &Path,
        progress: &mut Progress,
    ) -> Result<Self, Error> {
        // First of all, so that nothing is made in vain.
        emulator::probe(vendor)?;
        fs::create_dir_all(out).map_err(Error::io("make", out))?;
        let cache = Cache::open()?;
        progress.phase(match series {
            Series::Debug => "finds the debug kernel, or builds it (10 to 20 minutes, once)".to_owned(),
            series => format!("finds a stock Linux {series}"),
        });
        let kernel = kernel::resolve(series, &cache, progress)?;
        progress.phase(format!("prepares Linux {}", kernel.release));
        let boot_image = vmlinux::boot_image(&kernel, &cache)?;
        let needed: Vec<&str> = MODULES_NEEDED.into_iter().chain([vendor.kvm_module()]).collect();
        let modules = modules::collect(&kernel, &needed, &cache)?;
        let disk_modules = modules::collect(&kernel, modules_of_disk(vendor), &cache)?;
        let guest_kernel = match series {
            // What is under test is the host: checkers in guests would only take time.
            Series::Debug | Series::Rt => kernel::resolve(Series::default(), &cache, progress)?,
            _ => kernel.clone(),
        };
        let guest_image = vmlinux::boot_image(&guest_kernel, &cache)?;
        let guest_modules = modules::collect(&guest_kernel, &GUEST_MODULES_NEEDED, &cache)?;
        progress.phase("builds the kernel module");
        let exitscope = build_module(&kernel, None)?;
        Ok(Self {
            vendor,
            kernel,
            boot_image,
            modules,
            disk_modules,
            guest_image,
            guest_modules,
            exitscope,
            program: program.into(),
            out: out.into(),
        })
    }

    /// Vendor of the machines' CPU.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// What modules for the machines' kernel are built against.
    pub fn build_tree(&self) -> &Path {
        &self.kernel.build
    }

    /// Release of the machines' kernel.
    pub fn release(&self) -> &str {
        &self.kernel.release
    }

    /// What is booted: the kernel proper, or the bzImage.
    pub fn boot_image(&self) -> &Path {
        &self.boot_image
    }

    /// Builds a variant of our module for tests (`kernel/module/Makefile` has them); its file, which goes into a machine
    /// by [`Setup::files`].
    pub fn module_variant(&self, variant: &str) -> Result<PathBuf, Error> {
        build_module(&self.kernel, Some(variant))
    }

    /// The file of one of the kernel's modules that machines load.
    pub fn module(&self, name: &str) -> Option<&Path> {
        self.modules.iter().find(|module| module.name == name).map(|module| module.path.as_path())
    }

    /// Steps that load the vendor's part of KVM anew.
    pub fn reload_kvm(&self, paging: Paging) -> [Step; 2] {
        let name = self.vendor.kvm_module();
        [Step::Remove { name: name.into() }, Step::Insert(insert(MODULES, name, paging))]
    }

    /// Boots a machine, does the steps, and gives back its events. Our module is not loaded unless a step
    /// does it. A step that fails and a warning in the kernel's log are errors.
    pub fn run(&self, setup: &Setup, steps: Vec<Step>, progress: &mut Progress) -> Result<Vec<Event>, Error> {
        progress.phase("packs the emulated machine");
        // A file without a name, which the emulator opens as ours: nothing is left behind, whatever happens.
        let initrd = tempfile::tempfile_in(&self.out).map_err(Error::io("make a file in", &self.out))?;
        self.image(setup, steps)?.write(&initrd).map_err(|error| match error {
            Error::Io { source, .. } => {
                Error::Io { what: "write the initramfs to", path: self.out.clone(), source }
            }
            error => error,
        })?;
        let path = format!("/proc/{}/fd/{}", process::id(), initrd.as_raw_fd());
        let log = self.out.join(format!("{}.log", setup.name));
        let mut machine = Machine::new(self.vendor, &self.boot_image, path, &log);
        machine.deadline = setup.deadline * debug_kernel::timeout_factor(&self.kernel.release);
        machine.cpus = setup.cpus;
        machine.icount = setup.icount;
        machine.memory_mib = setup.memory_mib.unwrap_or(machine.memory_mib);
        machine.disk = setup.disk.clone();
        for _ in 0..MAX_HANGS {
            match self.boot(&machine, progress) {
                Err(error @ Error::Hung { .. }) => progress.note(&format!("{error}\nIt is booted anew.")),
                result => return result,
            }
        }
        self.boot(&machine, progress)
    }

    /// Boots a machine, and gives back its events.
    fn boot(&self, machine: &Machine, progress: &mut Progress) -> Result<Vec<Event>, Error> {
        progress.phase(format!("boots Linux {} in an emulated machine", self.kernel.release));
        let mut running = machine.start()?;
        let log = &machine.console_log;
        let mut events = Vec::new();
        while let Some(line) = running.next_line()? {
            let unreadable =
                |_| Error::StepFailed { message: format!("cannot read `{line}`"), log: log.clone() };
            match serde_json::from_str(&line).map_err(unreadable)? {
                Event::Phase { text } => {
                    running.phase(text.as_str());
                    progress.phase(text);
                }
                Event::Failed { message } => return Err(Error::StepFailed { message, log: log.clone() }),
                Event::Done { warnings, .. } if !warnings.is_empty() => {
                    return Err(Error::KernelWarnings { lines: warnings, log: log.clone() });
                }
                Event::Done { .. } => {
                    // All is told; what the machine does to power off is of no interest.
                    return Ok(events);
                }
                Event::Inserted { path, .. } => {
                    events.push(Event::Inserted { path, instructions: running.instructions() });
                }
                event => events.push(event),
            }
        }
        Err(running.unfinished())
    }

    fn image(&self, setup: &Setup, steps: Vec<Step>) -> Result<Image, Error> {
        let mut guest = Image::new();
        guest.file("/init", &self.program, 0o755)?.cpuid_tool()?;
        let mut guest_initrd = Vec::new();
        guest.write(&mut guest_initrd)?;

        let mut modules = self.modules.clone();
        if setup.disk.is_some() {
            modules.extend_from_slice(&self.disk_modules);
        }
        let inserts = |directory, modules: &[Module]| {
            modules.iter().map(|module| insert(directory, &module.name, setup.paging)).collect()
        };
        let job = Job::Host {
            link: self.vendor.link(),
            modules: inserts(MODULES, &modules),
            guest_modules: inserts(GUEST_MODULES, &self.guest_modules),
            steps,
        };
        let job = serde_json::to_vec(&job).map_err(|error| Error::StepFailed {
            message: format!("cannot write the job: {error}"),
            log: PathBuf::new(),
        })?;
        let mut image = Image::new();
        image
            .file("/init", &self.program, 0o755)?
            .modules(MODULES, &modules)?
            .modules(GUEST_MODULES, &self.guest_modules)?
            .file(EXITSCOPE, &self.exitscope, 0o644)?
            .file(GUEST_KERNEL, &self.guest_image, 0o644)?
            .bytes(GUEST_INITRD, guest_initrd, 0o644)?
            .bytes(JOB, job, 0o644)?;
        if setup.qemu {
            image.qemu_tool()?;
        }
        for (path, source) in &setup.files {
            image.file(path, source, 0o644)?;
        }
        Ok(image)
    }
}

/// Loads a module of the machine's or of its guests'.
fn insert(directory: &str, module: &str, paging: Paging) -> Insert {
    Insert { path: format!("{directory}/{module}.ko"), parameters: paging.parameters(module).into() }
}

/// Builds the kernel module, or a variant of it, if its sources are newer, and gives back its file.
fn build_module(kernel: &Kernel, variant: Option<&str>) -> Result<PathBuf, Error> {
    /// Builds share what they have in common: they come one after the other.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let sources = sources()?;
    let mut out = sources.join("target/module").join(&kernel.release);
    let mut command = Command::new(MAKE.find()?);
    command.arg("-C").arg(sources.join("kernel/module"));
    command.arg(format!("KDIR={}", kernel.build.display())).arg(format!("OUT={}", out.display()));
    if let Some(tools) = &kernel.tools {
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([tools.clone()].into_iter().chain(env::split_paths(&path)));
        command.env("PATH", path.unwrap_or_default());
    }
    // A make above us would hand down its flags and variables.
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("MFLAGS");
    if let Some(variant) = variant {
        command.arg(format!("VARIANT={variant}"));
        out = sources.join("target/module").join(format!("{}-{variant}", kernel.release));
    }
    tool::output(&mut command)?;
    Ok(out.join("exitscope.ko"))
}

/// The directory of this project's sources: here or above, or where this program was built.
fn sources() -> Result<PathBuf, Error> {
    let here = env::current_dir().map_err(Error::io("find", Path::new("the current directory")))?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned);
    let mut candidates = here.ancestors().map(Path::to_owned).chain(built);
    let found = candidates.find(|directory| directory.join("kernel/module/Kbuild").is_file());
    found.ok_or(Error::NoSources { path: here })
}
