//! Tests of the facts, over machines that are made up: directories with the types of a small kernel and of a small KVM.

use super::*;

#[path = "../../../../core/src/btf/writer.rs"]
mod writer;

use writer::Writer;

/// Kinds of types.
const INT: u32 = 1;
const POINTER: u32 = 2;
const TYPEDEF: u32 = 8;
const FUNCTION: u32 = 12;
const PROTOTYPE: u32 = 13;

/// What is different about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    None,
    /// The kernel has no cast.
    NoCast,
    /// The structure for the cast is another.
    OtherRegs,
    /// A member is not where all others have it.
    ExitCode,
    /// A member has another size.
    VcpuId,
    /// A function takes something else.
    Parameter,
    /// There is no such function.
    NoFunction,
    /// There are no tracepoints.
    NoTracepoint,
    /// KVM has the reason of an exit where it was until 6.15.
    OldReason,
}

struct Kernel {
    writer: Writer,
    int: u32,
    long: u32,
    pointer: u32,
}

fn kernel(oddity: Oddity) -> Kernel {
    let mut writer = Writer::new();
    let long = writer.add("unsigned long", INT, 0, 8, &[64]);
    let int = writer.add("int", INT, 0, 4, &[32]);
    let pointer = writer.add("", POINTER, 0, long, &[]);
    let di = if oddity == Oddity::OtherRegs { 0x68 } else { 0x70 };
    let registers = writer.structure("pt_regs", 168, &[("ax", long, 0), ("di", long, di * 8)]);
    let registers = writer.add("", POINTER, 0, registers, &[]);
    writer.structure("bpf_perf_event_data_kern", 24, &[("regs", registers, 0), ("data", pointer, 64)]);
    let atomic = writer.structure("", 4, &[("counter", int, 0)]);
    writer.structure("refcount_struct", 4, &[("refs", atomic, 0)]);
    if oddity != Oddity::NoCast {
        let prototype = writer.add("", PROTOTYPE, 2, pointer, &[0, pointer, 0, int]);
        writer.add(CAST, FUNCTION, 1, prototype, &[]);
    }
    Kernel { writer, int, long, pointer }
}

impl Kernel {
    /// A structure of a vCPU, which every part of KVM has.
    fn vcpu(&self, module: &mut Writer, oddity: Oddity) -> u32 {
        let times = ["halt_poll_success_ns", "halt_poll_fail_ns", "halt_wait_ns"];
        let members: Vec<_> = (0..).zip(times).map(|(index, name)| (name, self.long, index * 64)).collect();
        let generic = module.structure("kvm_vcpu_stat_generic", 24, &members);
        let stat = module.structure("kvm_vcpu_stat", 24, &[("generic", generic, 0)]);
        let id = if oddity == Oddity::VcpuId { self.long } else { self.int };
        let arch = module.structure("kvm_vcpu_arch", 8, &[("hflags", self.int, 0)]);
        let members =
            [("kvm", self.pointer, 0), ("vcpu_id", id, 64), ("stat", stat, 128), ("arch", arch, 320)];
        module.structure("kvm_vcpu", 48, &members)
    }

    fn kvm(&self, oddity: Oddity) -> Vec<u8> {
        let mut module = Writer::on(&self.writer);
        let vcpu = self.vcpu(&mut module, oddity);
        let vcpu = module.add("", POINTER, 0, vcpu, &[]);
        let takes = module.add("", PROTOTYPE, 1, 0, &[0, vcpu]);
        let other = module.add("", PROTOTYPE, 1, 0, &[0, self.pointer]);
        for name in VCPUS.iter().filter_map(|parameter| parameter.strip_suffix("(0)")) {
            let is_odd = name == "kvm_vcpu_block";
            let prototype = if is_odd && oddity == Oddity::Parameter { other } else { takes };
            if !(is_odd && oddity == Oddity::NoFunction) {
                module.add(name, FUNCTION, 1, prototype, &[]);
            }
        }
        let event = module.add("", PROTOTYPE, 2, 0, &[0, self.pointer, 0, vcpu]);
        let event = module.add("", POINTER, 0, event, &[]);
        if oddity != Oddity::NoTracepoint {
            module.add("btf_trace_kvm_exit", TYPEDEF, 0, event, &[]);
            module.add("btf_trace_kvm_entry", TYPEDEF, 0, event, &[]);
        }
        module.bytes()
    }

    fn svm(&self, oddity: Oddity) -> Vec<u8> {
        let mut module = Writer::on(&self.writer);
        let vcpu = self.vcpu(&mut module, oddity);
        let exit_code = if oddity == Oddity::ExitCode { 0x68 } else { 0x70 };
        let control = module.structure("vmcb_control_area", 1024, &[("exit_code", self.long, exit_code * 8)]);
        let vmcb = module.structure("vmcb", 4096, &[("control", control, 0)]);
        let vmcb = module.add("", POINTER, 0, vmcb, &[]);
        let own = module.structure("kvm_vmcb_info", 16, &[("ptr", vmcb, 0)]);
        module.structure("vcpu_svm", 80, &[("vcpu", vcpu, 0), ("vmcb", vmcb, 384), ("vmcb01", own, 448)]);
        module.bytes()
    }

    fn vmx(&self, oddity: Oddity) -> Vec<u8> {
        let mut module = Writer::on(&self.writer);
        let vcpu = self.vcpu(&mut module, oddity);
        if oddity == Oddity::OldReason {
            module.structure("vcpu_vmx", 64, &[("vcpu", vcpu, 0), ("exit_reason", self.int, 448)]);
        } else {
            let vt = module.structure("vcpu_vt", 16, &[("exit_reason", self.int, 64)]);
            module.structure("vcpu_vmx", 64, &[("vcpu", vcpu, 0), ("vt", vt, 384)]);
        }
        module.bytes()
    }
}

/// A machine whose vendor module is that; its root directory.
pub fn machine(vendor: &str, oddity: Oddity) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let kernel = kernel(oddity);
    let vendors = if vendor == "kvm_amd" { kernel.svm(oddity) } else { kernel.vmx(oddity) };
    write(root.path(), "sys/kernel/btf/vmlinux", &kernel.writer.bytes());
    write(root.path(), "sys/kernel/btf/kvm", &kernel.kvm(oddity));
    write(root.path(), &format!("sys/kernel/btf/{vendor}"), &vendors);
    for module in ["kvm", vendor] {
        write(root.path(), &format!("sys/module/{module}/initstate"), b"live\n");
    }
    let note = [&[4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0][..], b"GNU\0", &[0xab; 20]].concat();
    write(root.path(), &format!("sys/module/{vendor}/notes/.note.gnu.build-id"), &note);
    root
}

/// Facts about a kernel that is made up, but with the cast of one that is real; false if that has none.
pub fn take_cast(facts: &mut Facts<'_>, types: &Path) -> bool {
    let types = fs::read(types).unwrap_or_default();
    facts.cast = Types::read(&types, &[]).and_then(|types| cast(&types, &mut facts.numbers));
    facts.cast.is_some()
}

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The numbers of a machine, or why there are none.
fn numbers(vendor: &str, oddity: Oddity) -> Result<BTreeMap<&'static str, u64>, String> {
    let root = machine(vendor, oddity);
    let btf = Btf::read(root.path()).unwrap();
    let facts = Facts::prove(&btf).map_err(|error| error.to_string())?;
    assert_eq!(facts.cast().is_some(), facts.number("exitscope_has_cast") == Some(1));
    Ok(facts.numbers)
}

#[test]
fn numbers_are_what_the_types_say() {
    let svm = numbers("kvm_amd", Oddity::None).unwrap();
    let expected = [
        ("exitscope_exit_reason", 0),
        ("exitscope_halt_wait", 32),
        ("exitscope_has_cast", 1),
        ("exitscope_hflags", 40),
        ("exitscope_isa", 2),
        ("exitscope_kvm", 0),
        ("exitscope_poll_fail", 24),
        ("exitscope_poll_success", 16),
        ("exitscope_type_vmcb", 6),
        ("exitscope_type_word", 8),
        ("exitscope_vcpu_id", 8),
        ("exitscope_vmcb", 48),
        ("exitscope_vmcb01", 56),
    ];
    assert_eq!(svm, BTreeMap::from(expected));
    let vmx = numbers("kvm_intel", Oddity::None).unwrap();
    let of = |name: &str| vmx[name];
    assert_eq!((of("exitscope_isa"), of("exitscope_exit_reason"), of("exitscope_vmcb")), (1, 56, 0));
    assert_eq!(numbers("kvm_intel", Oddity::OldReason).unwrap()["exitscope_exit_reason"], 56);
}

#[test]
fn without_a_cast_that_fits_there_is_none() {
    for oddity in [Oddity::NoCast, Oddity::OtherRegs] {
        let found = numbers("kvm_amd", oddity).unwrap();
        let cast =
            ["exitscope_has_cast", "exitscope_type_vmcb", "exitscope_type_word"].map(|name| found[name]);
        assert_eq!(cast, [0; 3], "{oddity:?}");
    }
}

#[test]
fn a_fact_that_does_not_hold_is_named() {
    for (oddity, what) in [
        (Oddity::ExitCode, "kvm_amd has vcpu_svm.vmcb->control.exit_code at byte 104 (of 8 bytes)"),
        (Oddity::VcpuId, "kvm has kvm_vcpu.vcpu_id at byte 8 (of 8 bytes)"),
        (Oddity::Parameter, "does not say where kvm_vcpu_block(0) is"),
        (Oddity::NoFunction, "does not say where kvm_vcpu_block(0) is"),
        (Oddity::NoTracepoint, "no tracepoints kvm_exit and kvm_entry"),
    ] {
        let error = numbers("kvm_amd", oddity).unwrap_err();
        assert!(error.contains(what), "{oddity:?}: {error}");
    }
}

#[test]
fn programs_find_what_they_are_attached_to() {
    use crate::bpf::object::Kind;

    let root = machine("kvm_amd", Oddity::None);
    let btf = Btf::read(root.path()).unwrap();
    let facts = Facts::prove(&btf).unwrap();
    let function = facts.target(Kind::Function, "kvm_vcpu_block").unwrap();
    let typed = facts.target(Kind::TypedTracepoint, "kvm_exit").unwrap();
    assert!(function.1 && typed.1 && function.0 > 10 && typed.0 > function.0);
    assert_eq!(facts.target(Kind::RawTracepoint, "kvm_exit"), Some((0, false)));
    assert_eq!(facts.target(Kind::Function, "kvm_nothing"), None);
    assert_eq!((facts.kernel_function(CAST), facts.kernel_function("kvm_vcpu_block")), (facts.cast(), None));
}

#[test]
fn the_vendors_part_is_found() {
    let of = |root: &Path| Vendor::find(root).map(|vendor| vendor.module).map_err(|error| error.to_string());
    let root = machine("kvm_intel", Oddity::None);
    let vendor = Vendor::find(root.path()).unwrap();
    assert_eq!((vendor.module, vendor.isa()), ("kvm_intel", Isa::Vmx));
    assert_eq!(vendor.build_id, [0xab; 20]);
    fs::remove_dir_all(root.path().join("sys/module/kvm_intel")).unwrap();
    assert!(of(root.path()).unwrap_err().starts_with("KVM's part for this CPU is not loaded"));
    fs::remove_dir_all(root.path().join("sys/module/kvm")).unwrap();
    assert!(of(root.path()).unwrap_err().starts_with("KVM is not loaded"));

    // Both are built in; the CPU has one.
    let root = tempfile::tempdir().unwrap();
    for module in ["kvm", "kvm_amd", "kvm_intel"] {
        write(root.path(), &format!("sys/module/{module}/parameters/x"), b"1");
    }
    assert!(of(root.path()).is_err());
    write(root.path(), "proc/cpuinfo", b"processor\t: 0\nflags\t\t: fpu vmx sse\nvmx flags\t: svm\n");
    assert_eq!(of(root.path()), Ok("kvm_intel"));
}

#[test]
fn without_types_it_says_so() {
    for (path, what) in [("vmlinux", "vmlinux"), ("kvm", "kvm"), ("kvm_amd", "kvm_amd")] {
        let root = machine("kvm_amd", Oddity::None);
        fs::remove_file(root.path().join("sys/kernel/btf").join(path)).unwrap();
        let error = Btf::read(root.path()).unwrap_err().to_string();
        assert!(error.contains("CONFIG_DEBUG_INFO_BTF") && error.contains(what), "{error}");
    }
}
