//! Texts that people paste, each with what it says: the corpus of the fuzz target `caps`, where more can be put.

use std::fs;
use std::path::Path;

use exitscope_abi::reason::Isa;
use exitscope_caps::check::{Answer, Check, check};
use exitscope_caps::decode::{Value, decode};
use exitscope_caps::dump::{Dump, parse};
use exitscope_caps::summary::summary;
use exitscope_caps::{Address, Cpu, Gpr};

/// The dump whose file begins so.
fn case(name: &str) -> Dump {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/caps");
    let files = fs::read_dir(corpus).expect("the corpus").flatten().map(|entry| entry.path());
    let begins = |path: &Path| path.file_name()?.to_str()?.split('-').next().map(|start| start == name);
    let mut found = files.filter(|path| begins(path) == Some(true));
    parse(&found.next().and_then(|path| fs::read(path).ok()).expect("a file of this name"))
}

/// Expects these MSRs, each with its CPU, in this order, and no complaint.
fn msrs(name: &str, expected: &[(u32, u32, u64)]) {
    let dump = case(name);
    assert_eq!(dump.errors, [], "{name}");
    let told = dump
        .cpus
        .iter()
        .flat_map(|cpu| cpu.registers.iter().map(|(address, value)| (cpu.id, *address, *value)));
    let expected = expected.iter().map(|(cpu, msr, value)| (*cpu, Address::Msr(*msr), Some(*value)));
    assert_eq!(told.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{name}");
}

/// Expects the four results of leaf 0x8000000a on a CPU.
fn leaf(name: &str, id: u32, expected: [u64; 4]) {
    let dump = case(name);
    assert_eq!(dump.errors, [], "{name}");
    let cpu = dump.cpus.iter().find(|cpu| cpu.id == id).expect("a CPU of this number");
    let told = Gpr::ALL.map(|gpr| cpu.read(Address::Cpuid(0x8000_000A, gpr)));
    assert_eq!(told, expected.map(Some), "{name}");
}

/// The answer, and the fields that are missing.
fn answer(require: &str, on: &str) -> (Answer, Vec<String>) {
    let Check { answer, pairs, .. } = check(&case(require).cpus, &case(on).cpus);
    let findings = pairs.into_iter().flat_map(|pair| pair.findings);
    (answer, findings.filter(|finding| finding.answer == Answer::No).map(|finding| finding.field).collect())
}

#[test]
fn rdmsr_is_read_by_the_rules_of_getopt() {
    msrs("01", &[(0, 0x48B, 0x7CFF_0000_0000), (0, 0x3A, 5), (1, 0x48B, 0x3CFF_0000_0000), (1, 0x3A, 1)]);
    msrs("02", &[(1, 0x48D, 0x7F_0000_0016), (3, 0x48B, 0x3CFF_0000_0000)]);
    msrs("03", &[(0, 0x48B, 0x7CFF_0000_0000), (1, 0x48B, 0x7CFF_0000_0000)]);
    msrs("04", &[(0, 0x480, 0x00DA_0400_0000_0012), (0, 0x48B, 0x7CFF_0000_0000)]);
}

#[test]
fn registers_have_many_names_and_values_many_forms() {
    let (proc, proc2) = ((0, 0x482, 0xFFF9_FFFE_0401_E172), (0, 0x48B, 0x7CFF_0000_0000));
    let basic = (0, 0x480, 0x00DA_0400_0000_0012);
    msrs("05", &[proc, proc2]);
    msrs("06", &[(0, 0x48F, 0x00FF_FFFF_0003_6DFB)]);
    msrs("07", &[(0, 0x3A, 5), basic, proc, proc2]);
    msrs("08", &[(0, 0x3A, 5), basic, (0, 0x48D, 0x7F_0000_0016), (0, 0x485, 0x3004_81E5), (0, 0x491, 1)]);
    msrs("19", &[(0, 0x3A, 5), proc2, basic]);
    msrs("22", &[(0, 0x3A, 0xFF07), (1, 0x3A, 5)]);
    msrs("23", &[(6, 0x3A, 0x40005)]);
    msrs("26", &[basic, proc2]);
}

#[test]
fn the_courses_log_says_what_its_values_say() {
    msrs(
        "09",
        &[
            (0, 0x481, 0x3F_0000_0016),
            (0, 0x483, 0x003F_EFFF_0003_6DFF),
            (0, 0x484, 0xD3FF_0000_11FF),
            (0, 0x482, 0xF7B9_FFFE_0401_E172),
            (0, 0x48B, 0x51FF_0000_0000),
        ],
    );
    let document = decode(&case("09").cpus);
    let external: &Value = &document.cpus[0].registers[0].fields[0];
    let setting = external.setting.unwrap();
    assert_eq!(external.name, "External-interrupt exiting");
    assert!(setting.can_be_1 && setting.can_be_0);
}

#[test]
fn leaves_have_many_forms() {
    leaf("10", 0, [1, 0x8000, 0, 0x0001_BCFF]);
    leaf("11", 0, [1, 0x8000, 0, 0x0001_BCFF]);
    leaf("11", 1, [1, 0x8000, 0, 0x0001_BCFE]);
    leaf("18", 0, [1, 0x8000, 0, 0x0001_BCFF]);
    leaf("20", 0, [0; 4]);
    leaf("21", 0, [1, 0x8000, 0, 0x0013_BCFF]);
    assert_eq!(case("18").cpus[0].read(Address::Msr(0xC001_0114)), Some(8));
    assert_eq!(case("21").cpus[0].read(Address::Msr(0x3A)), Some(5));
}

#[test]
fn a_register_that_does_not_exist_is_not_believed() {
    let missing = ["Virtual NMIs", "NMI-window exiting", "Use I/O bitmaps", "PAUSE exiting"];
    assert_eq!(answer("12a", "12b"), (Answer::No, missing.map(str::to_owned).into()));
    let has = summary(&case("12a").cpus[0], Isa::Vmx).unwrap().has;
    assert_eq!(has, ["TPR shadow", "virtual NMIs", "MSR bitmaps"]);
}

#[test]
fn firmware_that_did_not_answer_is_unknown() {
    assert_eq!(answer("13a", "13b"), (Answer::Unknown, vec![]));
    assert_eq!(answer("13a", "13a"), (Answer::Yes, vec![]));
}

#[test]
fn a_dump_says_as_a_live_machine_does_whether_there_is_svm() {
    for (name, there) in [("14", false), ("15", true), ("20", false), ("25", false)] {
        assert_eq!(case(name).cpus[0].offers(Isa::Svm), Some(there), "{name}");
        assert_eq!(summary(&case(name).cpus[0], Isa::Svm).is_some(), there, "{name}");
        assert_eq!(decode(&case(name).cpus).cpus[0].lacks.is_empty(), there, "{name}");
    }
    assert_eq!(answer("14", "14").0, Answer::No);
    assert_eq!(answer("15", "14").0, Answer::No);
    assert_eq!(answer("15", "15"), (Answer::Yes, vec![]));
}

#[test]
fn a_hybrid_has_what_all_its_cpus_have() {
    assert_eq!(answer("16", "16"), (Answer::Yes, vec![]));
}

#[test]
fn plain_registers_can_be_compared() {
    let missing = ["Use I/O bitmaps", "Monitor trap flag"];
    assert_eq!(answer("17a", "17b"), (Answer::No, missing.map(str::to_owned).into()));
    assert_eq!(answer("06", "13a"), (Answer::No, vec!["Clear IA32_BNDCFGS".into()]));
}

#[test]
fn a_value_that_cannot_be_is_told() {
    let dump = case("24");
    assert_eq!(dump.errors.len(), 1);
    let told = dump.errors[0].to_string();
    assert!(told.starts_with("line 2, column 1: 0x48b of CPU 0 cannot be 0x153cfe000000"), "{told}");
    assert_eq!(answer("24", "24").0, Answer::Unknown);
}

/// No line alone takes long, however long it is; nor do many.
#[test]
fn time_is_in_proportion_to_length() {
    const LENGTH: usize = 1 << 18;
    for piece in [
        "0x480 ",
        "0x480=1, 0x480=2, ",
        "(",
        "[0x480",
        "CPU 1 ",
        "eax ",
        "rdmsr 0x480;",
        "IA32_VMX_BASIC ",
        "msr[",
        "1:",
        "-",
        "`1",
    ] {
        let text = piece.repeat(LENGTH / piece.len());
        let _: Vec<Cpu> = parse(text.as_bytes()).cpus;
        let _: Vec<Cpu> = parse(text.replace(' ', "\n").as_bytes()).cpus;
    }
}

#[test]
fn other_tools_are_read_too() {
    let dump = case("vmware");
    assert_eq!(dump.errors, []);
    let read = |number| dump.cpus[0].read(Address::Msr(number));
    assert_eq!(read(0x3A), Some(5));
    assert_eq!(read(0x480), Some(0x00DA_0400_0000_0004));
    assert_eq!((read(0x48D), read(0x481)), (Some(0x7F_0000_0016), None), "the log says True");
    assert_eq!((read(0x48E), read(0x48B)), (Some(0xFFF9_FFFE_0400_6172), Some(0x7CFF_0000_0000)));
    leaf("vmware", 0, [1, 0x8000, 0, 0x1FF]);
    msrs(
        "vmxcap",
        &[(0, 0x480, 0x00DA_0400_0000_0012), (0, 0x485, 0x3004_81E5), (0, 0x48C, 0x0F01_0633_4141)],
    );
    leaf("x86info", 0, [1, 0x40, 0, 0xF]);
    leaf("xen", 0, [1, 0x8000, 0, 0x0001_BCFF]);
    leaf("cpuz", 0, [1, 0x8000, 0, 0x0001_BCFF]);
    assert_eq!(case("cpuz").cpus[0].read(Address::Msr(0x3A)), Some(5));
    leaf("vbox", 0, [1, 0x8000, 0, 0x0001_BCFF]);
    msrs("utf16", &[(0, 0x48B, 0x7CFF_0000_0000), (0, 0x3A, 5)]);
}

#[test]
fn no_value_is_kept_of_a_line_that_is_not_clear() {
    let dump = case("refused");
    let kept: Vec<(u32, Address)> = dump
        .cpus
        .iter()
        .flat_map(|cpu| cpu.registers.iter().map(|(address, _)| (cpu.id, *address)))
        .collect();
    assert_eq!(kept, [(1, Address::Msr(0x48B)), (0, Address::Msr(0x3A))], "{:#?}", dump.errors);
    let lines: Vec<usize> = dump.errors.iter().map(|error| error.line).collect();
    assert_eq!(lines, [2, 3, 6, 7, 8, 9, 11, 12, 13, 14, 18], "{:#?}", dump.errors);
}
