//! What the programs take for granted of this kernel, proven against what it says of its own types (BTF).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use exitscope_abi::reason::Isa;
use exitscope_core::btf::{Kind, Place, Types};

use super::Error;

/// A part of KVM, each with types of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Kvm,
    Svm,
    Vmx,
}

/// A number in the programs that says where something is in one of KVM's structures.
struct Number {
    /// Its symbol in the programs' object.
    symbol: &'static str,
    part: Part,
    /// What it is the place of, as C has it; where `|` is in between, the first that there is.
    what: &'static str,
    /// The size that it must have, in bytes.
    size: u32,
}

const fn number(symbol: &'static str, part: Part, what: &'static str, size: u32) -> Number {
    Number { symbol, part, what, size }
}

/// All of them. What is of the other vendor's part is 0.
const NUMBERS: &[Number] = &[
    number("exitscope_kvm", Part::Kvm, "kvm_vcpu.kvm", 8),
    number(VCPU_ID, Part::Kvm, "kvm_vcpu.vcpu_id", 4),
    number("exitscope_poll_success", Part::Kvm, "kvm_vcpu.stat.generic.halt_poll_success_ns", 8),
    number("exitscope_poll_fail", Part::Kvm, "kvm_vcpu.stat.generic.halt_poll_fail_ns", 8),
    number("exitscope_halt_wait", Part::Kvm, "kvm_vcpu.stat.generic.halt_wait_ns", 8),
    number("exitscope_hflags", Part::Kvm, "kvm_vcpu.arch.hflags", 4),
    number("exitscope_vmcb", Part::Svm, "vcpu_svm.vmcb", 8),
    number("exitscope_vmcb01", Part::Svm, "vcpu_svm.vmcb01.ptr", 8),
    // Since 6.16 in a part that the vCPUs of TDX guests have at the same place.
    number("exitscope_exit_reason", Part::Vmx, "vcpu_vmx.vt.exit_reason|vcpu_vmx.exit_reason", 4),
];
const VCPU_ID: &str = "exitscope_vcpu_id";

/// What must be where the programs have it without asking.
struct Proof {
    part: Part,
    what: &'static str,
    offset: u32,
    /// Bytes; any where it is `None`.
    size: Option<u32>,
}

const PROOFS: &[Proof] = &[
    Proof { part: Part::Svm, what: "vcpu_svm.vcpu", offset: 0, size: None },
    // Of its 64 bits some kernels have the halves apart; the programs use the low one.
    Proof { part: Part::Svm, what: "vcpu_svm.vmcb->control.exit_code", offset: EXIT_CODE, size: None },
    Proof { part: Part::Vmx, what: "vcpu_vmx.vcpu", offset: 0, size: None },
];
/// Where a VMCB has the exit code: APM vol. 2 appendix B.
const EXIT_CODE: u32 = 0x70;

/// Parameters that are vCPUs: what they point to has a vCPU's number where a vCPU has it.
const VCPUS: &[&str] = &[
    "btf_trace_kvm_exit(1)",
    "btf_trace_kvm_entry(1)",
    "kvm_arch_vcpu_ioctl_run(0)",
    "kvm_sigset_deactivate(0)",
    "kvm_arch_vcpu_create(0)",
    "kvm_vcpu_block(0)",
    "kvm_arch_vcpu_destroy(0)",
];

/// The function that lets programs read memory without a helper, since 6.2.
pub const CAST: &str = "bpf_rdonly_cast";
/// A structure of the kernel that is like what the programs read by [`CAST`].
struct Like {
    name: &'static str,
    /// What stands for its number in the programs.
    symbol: &'static str,
    /// What must be in it: where, and of what size.
    places: &'static [(&'static str, u32, u32)],
}

const LIKE: [Like; 2] = [
    Like {
        name: "bpf_perf_event_data_kern",
        symbol: "exitscope_type_vmcb",
        places: &[
            ("bpf_perf_event_data_kern.regs", 0, 8),
            ("bpf_perf_event_data_kern.regs->di", EXIT_CODE, 8),
        ],
    },
    Like {
        name: "refcount_struct",
        symbol: "exitscope_type_word",
        places: &[("refcount_struct.refs", 0, 4)],
    },
];

/// The vendor's part of KVM that is in the kernel, which facts hold for and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vendor {
    /// `kvm_intel` or `kvm_amd`.
    pub module: &'static str,
    /// What tells one build of it from another; empty where nothing does, as when it is built into the kernel.
    pub build_id: Vec<u8>,
}

/// Where modules are.
const MODULES: &str = "sys/module";
/// Where types are.
pub(super) const TYPES: &str = "sys/kernel/btf";

impl Vendor {
    /// That of the machine whose root directory is `root`.
    pub fn find(root: &Path) -> Result<Self, Error> {
        let has = |path: &str| root.join(MODULES).join(path).exists();
        if !has("kvm") {
            return Err(Error::NoKvm);
        }
        // What is built into the kernel is there for whatever CPU.
        let cpuinfo = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let fits = |flag: &str| flags.split_whitespace().any(|word| word == flag);
        let there = [("kvm_amd", "svm"), ("kvm_intel", "vmx")]
            .into_iter()
            .find(|(module, flag)| has(&format!("{module}/initstate")) || (has(module) && fits(flag)));
        let (module, _) = there.ok_or(Error::NoVendor)?;
        Ok(Self { module, build_id: build_id(&root.join(MODULES).join(module)) })
    }

    /// Its instruction set.
    pub fn isa(&self) -> Isa {
        if self.module == "kvm_amd" { Isa::Svm } else { Isa::Vmx }
    }
}

/// The build id in a module's note: a note's header is three words, and its name `GNU` and a zero.
fn build_id(module: &Path) -> Vec<u8> {
    let note = fs::read(module.join("notes/.note.gnu.build-id")).unwrap_or_default();
    note.get(16..).unwrap_or_default().to_vec()
}

/// Types as the kernel shows them.
#[derive(Debug)]
pub struct Btf {
    vendor: Vendor,
    kernel: Vec<u8>,
    /// Empty for what is built into the kernel.
    kvm: Vec<u8>,
    vendors: Vec<u8>,
    /// Where they were.
    directory: PathBuf,
}

impl Btf {
    /// Reads those of the machine whose root directory is `root`.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let vendor = Vendor::find(root)?;
        let directory = root.join(TYPES);
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read(&path).map_err(|source| Error::NoTypes { path, source })
        };
        let kernel = read("vmlinux")?;
        // A part that is a module must have its types; one that is built into the kernel has them there.
        let part = |name: &str| match read(name) {
            Err(Error::NoTypes { source, .. })
                if source.kind() == io::ErrorKind::NotFound
                    && !root.join(MODULES).join(name).join("initstate").exists() =>
            {
                Ok(Vec::new())
            }
            result => result,
        };
        Ok(Self { kernel, kvm: part("kvm")?, vendors: part(vendor.module)?, vendor, directory })
    }

    /// The vendor's part of KVM.
    pub fn vendor(&self) -> &Vendor {
        &self.vendor
    }

    fn path(&self, part: Part) -> PathBuf {
        let (name, own) = match part {
            Part::Kvm => ("kvm", &self.kvm),
            Part::Svm | Part::Vmx => (self.vendor.module, &self.vendors),
        };
        self.directory.join(if own.is_empty() { "vmlinux" } else { name })
    }
}

/// What is known of this kernel for certain.
#[derive(Debug)]
pub struct Facts<'a> {
    kernel: Types<'a>,
    kvm: Types<'a>,
    numbers: BTreeMap<&'static str, u64>,
    cast: Option<u32>,
}

impl<'a> Facts<'a> {
    /// Proves what the programs take for granted.
    pub fn prove(btf: &'a Btf) -> Result<Self, Error> {
        let read = |own: &'a [u8], part| {
            let unknown = || Error::NotUnderstood { path: btf.path(part) };
            Types::read(&btf.kernel, own).ok_or_else(unknown)
        };
        let (kernel, kvm) = (read(&[], Part::Kvm)?, read(&btf.kvm, Part::Kvm)?);
        for event in ["btf_trace_kvm_exit", "btf_trace_kvm_entry"] {
            if kvm.number_of(Kind::Typedef, event).is_none() {
                return Err(Error::NoTracepoint);
            }
        }
        let vendors_part = if btf.vendor.isa() == Isa::Svm { Part::Svm } else { Part::Vmx };
        let vendors = read(&btf.vendors, vendors_part)?;
        let place = |part, what: &'static str| {
            let types = if part == Part::Kvm { &kvm } else { &vendors };
            what.split('|').find_map(|what| types.place(what))
        };
        let fact = |part, what, found| Error::Fact { path: btf.path(part), what, found };
        let ours = |part| part == Part::Kvm || part == vendors_part;

        let mut numbers = BTreeMap::from([("exitscope_isa", btf.vendor.isa() as u64)]);
        for &Number { symbol, part, what, size } in NUMBERS {
            let found = if ours(part) { place(part, what) } else { Some(Place { offset: 0, size }) };
            let Some(Place { offset, .. }) = found.filter(|place| place.size == size) else {
                return Err(fact(part, what, found));
            };
            numbers.insert(symbol, offset.into());
        }
        for &Proof { part, what, offset, size } in PROOFS.iter().filter(|proof| ours(proof.part)) {
            let found = place(part, what);
            if !found
                .is_some_and(|place| place.offset == offset && size.is_none_or(|size| place.size == size))
            {
                return Err(fact(part, what, found));
            }
        }
        let vcpu_id = place(Part::Kvm, "kvm_vcpu.vcpu_id");
        for &parameter in VCPUS {
            let found = kvm.place(&format!("{parameter}->vcpu_id"));
            if found.is_none() || found != vcpu_id {
                return Err(fact(Part::Kvm, parameter, found));
            }
        }
        let cast = cast(&kernel, &mut numbers);
        Ok(Self { kernel, kvm, numbers, cast })
    }

    /// A number by its symbol.
    pub fn number(&self, symbol: &str) -> Option<u64> {
        self.numbers.get(symbol).copied()
    }

    /// The number of [`CAST`], if the kernel has it and structures to cast to.
    pub fn cast(&self) -> Option<u32> {
        self.cast
    }

    /// The number of a function or a typed tracepoint of KVM's, and whether it is in a module's types.
    pub fn target(&self, kind: super::object::Kind, event: &str) -> Option<(u32, bool)> {
        let number = match kind {
            super::object::Kind::RawTracepoint => return Some((0, false)),
            super::object::Kind::TypedTracepoint => {
                self.kvm.number_of(Kind::Typedef, &format!("btf_trace_{event}"))
            }
            super::object::Kind::Function => self.kvm.number_of(Kind::Function, event),
        }?;
        Some((number, self.kvm.is_of_module(number)))
    }

    /// The number of a function of the kernel itself.
    pub fn kernel_function(&self, name: &str) -> Option<u32> {
        self.kernel.number_of(Kind::Function, name)
    }
}

/// The number of [`CAST`], and what the programs must know to use it: all 0 where they cannot.
fn cast(kernel: &Types<'_>, numbers: &mut BTreeMap<&'static str, u64>) -> Option<u32> {
    let number = |like: &Like| {
        let fits = |&(what, offset, size): &_| kernel.place(what) == Some(Place { offset, size });
        kernel.number_of(Kind::Structure, like.name).filter(|_| like.places.iter().all(fits))
    };
    let found: Option<Vec<u32>> = LIKE.iter().map(number).collect();
    let cast = found.is_some().then(|| kernel.number_of(Kind::Function, CAST)).flatten();
    let known = found.filter(|_| cast.is_some()).unwrap_or_else(|| vec![0; LIKE.len()]);
    numbers.extend(LIKE.iter().zip(known).map(|(like, number)| (like.symbol, number.into())));
    numbers.insert("exitscope_has_cast", cast.is_some().into());
    cast
}

#[cfg(test)]
pub(super) mod tests;
