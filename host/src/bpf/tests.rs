//! Tests of the loader as a whole, on the kernel that runs, as far as that lets them.

use std::mem::offset_of;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use exitscope_abi::region::Header;
use exitscope_core::btf::{Kind, Types};

use super::facts::tests::{Oddity, machine};
use super::made::{CALL_0, EXIT, Made, load, op};
use super::*;

/// Why programs cannot be loaded here, if they cannot.
fn lacks() -> Option<String> {
    let map = sys::Map { name: "test", kind: sys::ARRAY, key: 4, value: 8, entries: 1, flags: 0 };
    map.create().err().map(|error| format!("no maps can be made here: {error}"))
}

/// A program that adds a number from read-only data to the header's `unaccounted`, with a function of its own; a
/// kernel's function that is not there it does not call.
fn counting(event: &str) -> Made {
    let body = [
        &load(6, offset_of!(Header, unaccounted) as u64)[..],
        &load(2, 0),
        &load(3, 0),
        // if r3 != 0, go on beyond the call of the kernel
        &[
            op(0x55, 3, 1, 0),
            CALL_0,
            op(0x79, 0x21, 0, 0),
            op(0xbf, 0x62, 0, 0),
            CALL_0,
            op(0xb7, 0, 0, 0),
            EXIT,
        ],
    ]
    .concat();
    let mut made = Made::new();
    let program = made.code(event, &body);
    made.function("program", program, 0, body.len() * 8);
    // lock *(u64 *)(r2 + 0) += r1; return
    let text = made.code(".text", &[op(0xdb, 0x12, 0, 0), op(0xb7, 0, 0, 0), EXIT]);
    made.function("adds", text, 0, 24);
    let constant = made.data(".rodata", &3_u64.to_le_bytes(), false);
    made.symbol("constant", 1, constant, 0, 8);
    made.relocate(program, 0, 1, CELLS);
    made.relocate(program, 16, 1, "constant");
    made.relocate(program, 32, 1, MAX_CELLS);
    made.relocate(program, 56, 10, CAST);
    made.relocate(program, 80, 10, "adds");
    made
}

fn counted(bpf: &Bpf) -> u64 {
    bpf.region().unwrap().snapshot().quality.unaccounted
}

fn pause() {
    thread::sleep(Duration::from_millis(5));
}

#[test]
fn programs_count_until_they_are_dropped() {
    if let Some(reason) = lacks() {
        return eprintln!("skipped: {reason}");
    }
    let root = machine("kvm_amd", Oddity::NoCast);
    let object = counting("raw_tp/sched_switch").bytes();
    let bpf = Bpf::load_object(&object, root.path(), FEWEST_CELLS).unwrap();
    let again = Bpf::load_object(&object, root.path(), FEWEST_CELLS).unwrap();
    pause();
    let region = bpf.region().unwrap();
    let first = counted(&bpf);
    assert!(first > 0 && first.is_multiple_of(3) && counted(&again) > 0);
    pause();
    assert!(counted(&bpf) > first);
    drop(bpf);
    // The kernel lets go of it when nobody can be in it any more.
    thread::sleep(Duration::from_millis(200));
    let last = region.snapshot().quality.unaccounted;
    pause();
    assert_eq!(region.snapshot().quality.unaccounted, last);
    assert!(counted(&again) > 0 && region.snapshot().max_cells == FEWEST_CELLS);
}

#[test]
fn the_verifiers_words_come_through() {
    if let Some(reason) = lacks() {
        return eprintln!("skipped: {reason}");
    }
    let root = machine("kvm_amd", Oddity::NoCast);
    let mut made = Made::new();
    let program = made.code("raw_tp/sched_switch", &[op(0x79, 0x31, 0, 0), EXIT]);
    made.function("program", program, 0, 16);
    let error = Bpf::load_object(&made.bytes(), root.path(), FEWEST_CELLS).unwrap_err().to_string();
    assert!(error.contains("sched_switch") && error.contains("R3 !read_ok"), "{error}");
}

#[test]
fn programs_go_to_typed_tracepoints_and_functions() {
    if let Some(reason) = lacks() {
        return eprintln!("skipped: {reason}");
    }
    let Ok(types) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        return eprintln!("skipped: this kernel does not tell its types");
    };
    let types = Types::read(&types, &[]).unwrap();
    let code = |instructions: &[[u8; 8]]| {
        let mut made = Made::new();
        let program = made.code("raw_tp/x", instructions);
        made.function("program", program, 0, instructions.len() * 8);
        made.bytes()
    };
    let nothing = code(&[op(0xb7, 0, 0, 0), EXIT]);
    for (kind, of, name, event) in [
        (object::Kind::TypedTracepoint, Kind::Typedef, "btf_trace_sched_switch", "sched_switch"),
        (object::Kind::Function, Kind::Function, "vfs_read", "vfs_read"),
    ] {
        let Some(number) = types.number_of(of, name) else {
            eprintln!("skipped: this kernel has no {name}");
            continue;
        };
        let root = machine("kvm_amd", Oddity::None);
        let btf = Btf::read(root.path()).unwrap();
        let facts = Facts::prove(&btf).unwrap();
        let object = Object::parse(&nothing).unwrap();
        let loader = Loader::new(&object, &facts, FEWEST_CELLS, btf.vendor()).unwrap();
        let code = object.link(&object.programs()[0], &loader).unwrap();
        let target = sys::Target { kind, event, number, types: None };
        let attached = sys::load(target, &code)
            .map_err(|refusal| Error::of_refusal(event, refusal))
            .and_then(|program| {
                sys::attach(target, program.as_fd()).map_err(|source| Error::of_attach(event, source))
            });
        match attached {
            Ok(_) => {}
            // Kernels without ftrace, or where functions are not to be traced, refuse this.
            Err(error) if kind == object::Kind::Function => eprintln!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// What is made up here is where things are; the kernel that checks the programs is this one.
#[test]
fn this_kernel_takes_the_programs() {
    if let Some(reason) = lacks() {
        return eprintln!("skipped: {reason}");
    }
    let object = Object::parse(OBJECT).unwrap();
    for (vendor, cast) in [("kvm_amd", false), ("kvm_intel", false), ("kvm_amd", true), ("kvm_intel", true)] {
        let root = machine(vendor, Oddity::NoCast);
        let btf = Btf::read(root.path()).unwrap();
        let mut facts = Facts::prove(&btf).unwrap();
        if cast && !facts::tests::take_cast(&mut facts, Path::new("/sys/kernel/btf/vmlinux")) {
            eprintln!("skipped: this kernel has no {CAST}");
            continue;
        }
        let loader = Loader::new(&object, &facts, FEWEST_CELLS, btf.vendor()).unwrap();
        let programs = select(object.programs(), btf.vendor().isa(), cast, false).unwrap();
        assert!(programs.iter().any(|program| program.event == "kvm_exit"));
        for program in programs {
            let code = object.link(program, &loader).unwrap();
            // A function's arguments are to be had at functions only.
            if program.kind == object::Kind::RawTracepoint {
                let target = sys::Target { kind: program.kind, event: program.event, number: 0, types: None };
                sys::load(target, &code)
                    .map_err(|refusal| Error::of_refusal(program.event, refusal))
                    .unwrap();
            }
        }
    }
}

#[test]
fn what_is_not_there_is_told() {
    let root = machine("kvm_amd", Oddity::None);
    for cells in [0, 1, 1000, MOST_CELLS * 2] {
        let error = Bpf::load_object(&[], root.path(), cells).unwrap_err();
        assert!(matches!(error, Error::Size { .. }), "{error}");
    }
    if let Some(reason) = lacks() {
        return eprintln!("skipped: {reason}");
    }
    let of = |section: &str| {
        let mut made = Made::new();
        let program = made.code(section, &[op(0xb7, 0, 0, 0), EXIT]);
        made.function("program", program, 0, 16);
        Bpf::load_object(&made.bytes(), root.path(), FEWEST_CELLS).unwrap_err()
    };
    assert!(matches!(of("raw_tp/exitscope_nothing"), Error::NoEvent(event) if event == "exitscope_nothing"));
    assert!(matches!(of("fentry/kvm_nothing"), Error::NoEvent(_)));
    assert!(matches!(of("raw_tp/kvm_exit.strange"), Error::Object(_)));
    // This kernel's KVM is not the one that is made up here, if it has any at all.
    if !Path::new("/sys/kernel/btf/kvm").exists() {
        assert!(matches!(of("fentry/kvm_vcpu_block"), Error::NoTypes { .. } | Error::Rights { .. }));
    }
}

#[test]
fn the_program_for_this_kernel_is_taken() {
    let mut made = Made::new();
    for (index, section) in [
        "raw_tp/kvm_exit.svm",
        "raw_tp/kvm_exit.svm-probe",
        "raw_tp/kvm_exit.vmx",
        "raw_tp/kvm_entry",
        "fentry/kvm_arch_vcpu_destroy",
    ]
    .iter()
    .enumerate()
    {
        let number = made.code(section, &[EXIT]);
        made.function(&format!("f{index}"), number, 0, 8);
    }
    let bytes = made.bytes();
    let object = Object::parse(&bytes).unwrap();
    let selected = |isa, cast, typed| {
        let mut selected = select(object.programs(), isa, cast, typed).unwrap();
        selected.sort_by_key(|program| rank(program.event));
        selected.iter().map(|program| (program.event, program.variant)).collect::<Vec<_>>()
    };
    let [destroy, entry] = [("kvm_arch_vcpu_destroy", ""), ("kvm_entry", "")];
    assert_eq!(selected(Isa::Svm, true, true), [destroy, entry, ("kvm_exit", "svm")]);
    assert_eq!(selected(Isa::Svm, false, false), [destroy, entry, ("kvm_exit", "svm-probe")]);
    assert_eq!(selected(Isa::Vmx, true, false), [destroy, entry, ("kvm_exit", "vmx")]);
}

/// A directory with a bpffs, for as long as this lives.
struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn pinned_programs_count_without_a_process() {
    if let Some(reason) = lacks() {
        return eprintln!("skipped: {reason}");
    }
    let mounted = Mounted(tempfile::tempdir().unwrap());
    if let Err(error) = pin::mount_bpffs(mounted.0.path()) {
        return eprintln!("skipped: {error}");
    }
    pin::mount_bpffs(mounted.0.path()).unwrap();
    let directory = mounted.0.path().join("exitscope");
    assert!(pin::Pinned::open_in(&directory).unwrap().is_none());

    let root = machine("kvm_amd", Oddity::NoCast);
    let object = counting("raw_tp/sched_switch").bytes();
    let load = || Bpf::load_object(&object, root.path(), FEWEST_CELLS).unwrap();
    let bpf = load();
    bpf.pin_in(&directory).unwrap();
    assert!(matches!(load().pin_in(&directory), Err(pin::Error::Exists)));
    assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    drop(bpf);

    let pinned = pin::Pinned::open_in(&directory).unwrap().unwrap();
    assert!(!pinned.vendor.as_ref().unwrap().is_stale(root.path()) && pinned.is_stale());
    let region = pinned.region().unwrap();
    let unaccounted = || region.snapshot().quality.unaccounted;
    let first = unaccounted();
    pause();
    assert!(unaccounted() > first);
    assert!(pin::unpin_in(&directory).unwrap() && !pin::unpin_in(&directory).unwrap());
    thread::sleep(Duration::from_millis(200));
    let last = unaccounted();
    pause();
    assert_eq!(unaccounted(), last);
}

#[test]
fn of_a_pin_that_fails_nothing_is_left() {
    if let Some(reason) = lacks() {
        return eprintln!("skipped: {reason}");
    }
    let root = machine("kvm_amd", Oddity::NoCast);
    let object = counting("raw_tp/sched_switch").bytes();
    let bpf = Bpf::load_object(&object, root.path(), FEWEST_CELLS).unwrap();
    // This is no bpffs.
    let directory = root.path().join("exitscope");
    assert!(matches!(bpf.pin_in(&directory), Err(pin::Error::Access { .. })) && !directory.exists());
}

/// Something for every name.
struct Anything;

impl Symbols for Anything {
    fn data(&self, _section: usize) -> Option<RawFd> {
        Some(3)
    }

    fn value(&self, name: &str) -> Option<Value> {
        Some(if name == CELLS { Value::MapValue(3) } else { Value::Number(1) })
    }

    fn kernel_function(&self, _name: &str) -> Option<Option<u32>> {
        Some(Some(1))
    }
}

/// What every exit runs through, which is the program's own function: it asks for the time, reads, counts, and leaves all
/// else to functions that it calls.
#[test]
fn the_exit_path_has_no_lookup_and_no_locked_instruction() {
    const CALL: u8 = 0x85;
    const GET_TIME: i32 = 5;
    /// `bpf_probe_read_kernel`, where there is no cast.
    const READ: i32 = 113;
    let object = Object::parse(OBJECT).unwrap();
    let of_exits =
        object.programs().iter().filter(|program| ["kvm_exit", "kvm_entry"].contains(&program.event));
    let mut seen = 0;
    for program in of_exits {
        let code = object.link(program, &Anything).unwrap();
        let targets = code.iter().enumerate().filter(|(_, one)| one.code == CALL && one.registers >> 4 == 1);
        let end = targets.map(|(at, one)| (at as i64 + 1 + i64::from(one.imm)) as usize).min().unwrap();
        assert!((20..120).contains(&end), "{}: {end}", program.event);
        for one in &code[..end] {
            // BPF_STX | BPF_ATOMIC of 32 and of 64 bits.
            assert!(![0xc3, 0xdb].contains(&one.code), "{}: {one:?}", program.event);
            if one.code == CALL && one.registers >> 4 == 0 {
                let reads = program.variant.ends_with("-probe") || program.variant.ends_with("-typed");
                assert!(one.imm == GET_TIME || reads && one.imm == READ, "{}: {one:?}", program.event);
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 6, "five for exits and one for entries");
}
