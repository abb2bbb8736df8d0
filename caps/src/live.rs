//! Reads the capability registers of this machine: MSRs through the kernel's driver `msr`, CPUID by the instruction.

use std::arch::x86_64::{__cpuid_count, CpuidResult};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use exitscope_abi::reason::Isa;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::usage::Usage;
use super::{Address, Cpu, Gpr, ask, presence};

/// Where the kernel lists its CPUs.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// What this machine told.
#[derive(Debug)]
pub struct Live {
    /// Every CPU that is online.
    pub cpus: Vec<Cpu>,
    /// What KVM uses of them; `None` if it is not loaded.
    pub kvm: Option<Usage>,
    /// Why registers are unknown that could be read.
    pub complaint: Option<Error>,
}

/// Why this machine's registers cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are none.
    #[error(
        "this CPU has neither VMX nor SVM, or its hypervisor offers none: dumps of others can be decoded with \
         `exitscope caps --from FILE`"
    )]
    NoVirtualization,
    /// The list of CPUs is not there.
    #[error("cannot read {ONLINE}: {0}")]
    NoList(io::Error),
    /// The driver is not loaded.
    #[error("{} does not exist: load the kernel's driver with `sudo modprobe msr`", .0.display())]
    NoDriver(PathBuf),
    /// The driver is not for this user.
    #[error("{}: {source}: be root (the driver wants CAP_SYS_RAWIO)", .path.display())]
    Permission {
        /// The driver's file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A CPU that this process may not run on cannot be asked.
    #[error("cannot run on CPU {cpu} to ask for its CPUID: {source}: leave the cpuset or container")]
    OutOfReach {
        /// The CPU.
        cpu: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The driver does not work.
    #[error("cannot open {}: {source}", .path.display())]
    Open {
        /// The driver's file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The virtualization that CPUID tells of here; `None` if this CPU has none, or its hypervisor offers none.
pub fn isa() -> Option<Isa> {
    presence::isa(here)
}

/// A register that CPUID fills, on the CPU that this thread runs on.
fn here(address: Address) -> Option<u64> {
    match address {
        Address::Cpuid(leaf, gpr) => Some(result(cpuid(leaf), gpr)),
        Address::Msr(_) => None,
    }
}

/// Reads every CPU that is online. If nothing at all can be read, that is an error; if something cannot, a complaint.
pub fn read() -> Result<Live, Error> {
    let isa = isa().ok_or(Error::NoVirtualization)?;
    let online = fs::read_to_string(ONLINE).map_err(Error::NoList)?;
    let mut live = Live { cpus: Vec::new(), kvm: Usage::read(isa), complaint: None };
    for id in numbers(&online) {
        let mut complain = |error| live.complaint = Some(error);
        let driver = open(Path::new("/dev/cpu"), id).map_err(&mut complain).ok();
        let leaves = (isa == Isa::Svm).then(|| Leaves::of(id).map_err(complain).ok()).flatten();
        live.cpus.push(ask::read(id, isa, |address| match address {
            Address::Msr(number) => msr(driver.as_ref()?, number),
            // Every CPU of a machine says the same of VMX: no need to go there.
            Address::Cpuid(1, _) => here(address),
            Address::Cpuid(leaf, gpr) => leaves?.get(leaf, gpr),
        }));
    }
    // That there is VMX says nothing of what it can do.
    let readings = live.cpus.iter().flat_map(|cpu| &cpu.registers);
    let mut told = readings.filter(|(address, _)| *address != presence::flag(Isa::Vmx).0);
    match live.complaint {
        Some(error) if told.all(|(_, value)| value.is_none()) => Err(error),
        complaint => Ok(Live { complaint, ..live }),
    }
}

/// Opens the driver `msr` for a CPU.
fn open(drivers: &Path, id: u32) -> Result<File, Error> {
    let path = drivers.join(id.to_string()).join("msr");
    File::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoDriver(path),
        io::ErrorKind::PermissionDenied => Error::Permission { path, source },
        _ => Error::Open { path, source },
    })
}

fn msr(driver: &File, number: u32) -> Option<u64> {
    let mut value = [0; 8];
    driver.read_exact_at(&mut value, number.into()).ok()?;
    Some(u64::from_ne_bytes(value))
}

fn cpuid(leaf: u32) -> CpuidResult {
    // SAFETY: every x86-64 CPU has CPUID, and it changes nothing but the four registers.
    #[allow(unused_unsafe, reason = "safe from Rust 1.94 on")]
    unsafe {
        __cpuid_count(leaf, 0)
    }
}

/// One of the registers that CPUID fills.
fn result(result: CpuidResult, gpr: Gpr) -> u64 {
    u64::from(match gpr {
        Gpr::Eax => result.eax,
        Gpr::Ebx => result.ebx,
        Gpr::Ecx => result.ecx,
        Gpr::Edx => result.edx,
    })
}

/// The highest leaf of a range; less than its first one if there is no such range.
fn highest(first: u32) -> u32 {
    cpuid(first).eax
}

/// Lets the calling thread run on this CPU only.
fn move_to(cpu: u32) -> io::Result<()> {
    let cpu = cpu as usize;
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// SVM's leaves of one CPU.
#[derive(Clone, Copy)]
struct Leaves([(u32, CpuidResult); 4]);

impl Leaves {
    /// Asks a CPU.
    fn of(cpu: u32) -> Result<Self, Error> {
        let out_of_reach = |source| Error::OutOfReach { cpu, source };
        let ask = move || {
            move_to(cpu)?;
            let highest = highest(0x8000_0000);
            // A leaf that the CPU lacks is not asked for by those who know the highest.
            let none = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
            let leaf = |leaf| (leaf, if leaf <= highest { cpuid(leaf) } else { none });
            Ok(Self([0x8000_0000, 0x8000_0001, 0x8000_000A, 0x8000_001F].map(leaf)))
        };
        // In a thread of its own, so that the caller stays where it is.
        let asked = thread::spawn(ask).join();
        asked.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map_err(out_of_reach)
    }

    fn get(self, leaf: u32, gpr: Gpr) -> Option<u64> {
        let (_, found) = self.0.into_iter().find(|(known, _)| *known == leaf)?;
        Some(result(found, gpr))
    }
}

/// The numbers of a kernel's list such as `0-3,8`.
fn numbers(list: &str) -> impl Iterator<Item = u32> {
    list.trim().split(',').filter_map(range).flatten()
}

fn range(text: &str) -> Option<std::ops::RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        let check = |list, expected: &[u32]| assert!(numbers(list).eq(expected.iter().copied()), "{list}");
        check("0\n", &[0]);
        check("0-2,5,8-9\n", &[0, 1, 2, 5, 8, 9]);
        check("\n", &[]);
    }

    #[test]
    fn a_driver_that_is_missing_or_forbidden_says_what_to_do() {
        let drivers = tempfile::tempdir().unwrap();
        let told = |id| open(drivers.path(), id).unwrap_err().to_string();
        assert!(told(0).contains("0/msr does not exist: load the kernel's driver with `sudo modprobe msr`"));
        fs::create_dir(drivers.path().join("1")).unwrap();
        fs::write(drivers.path().join("1/msr"), "").unwrap();
        let unreadable = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = Error::Permission { path: "/dev/cpu/0/msr".into(), source: unreadable };
        assert_eq!(
            error.to_string(),
            "/dev/cpu/0/msr: permission denied: be root (the driver wants CAP_SYS_RAWIO)"
        );
        assert_eq!(
            msr(&open(drivers.path(), 1).unwrap(), 0x480),
            None,
            "an MSR that cannot be read is unknown"
        );
    }

    #[test]
    fn an_msr_is_eight_bytes_at_its_number() {
        let drivers = tempfile::tempdir().unwrap();
        fs::create_dir(drivers.path().join("0")).unwrap();
        let mut contents = vec![0; 0x480];
        contents.extend(0x03DA_0500_0000_0013_u64.to_ne_bytes());
        fs::write(drivers.path().join("0/msr"), contents).unwrap();
        assert_eq!(msr(&open(drivers.path(), 0).unwrap(), 0x480), Some(0x03DA_0500_0000_0013));
    }

    #[test]
    fn this_machine_is_read_or_says_why_not() {
        match read() {
            Ok(live) => assert!(!live.cpus.is_empty()),
            Err(error) => println!("skipped: {error}"),
        }
    }

    #[test]
    fn every_leaf_of_the_tables_is_asked_for() {
        let Ok(leaves) = Leaves::of(0) else { return println!("skipped: CPU 0 is out of reach") };
        for register in super::super::tables::REGISTERS {
            let Address::Cpuid(leaf @ 0x8000_0000.., gpr) = register.address else { continue };
            assert!(leaves.get(leaf, gpr).is_some(), "{leaf:#x}");
        }
        assert!(matches!(Leaves::of(u32::MAX), Err(Error::OutOfReach { cpu: u32::MAX, .. })));
    }
}
