//! Every form of dump, whole and broken.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::Gpr;
use crate::decode::decode;

const BASIC: Address = Address::Msr(0x480);
const PIN: Address = Address::Msr(0x481);
const MISC: Address = Address::Msr(0x485);
const VALUE: u64 = 0x03DA_0500_0000_0013;

type Registers<'a> = &'a [(Address, Option<u64>)];

/// Parses `text` and expects these CPUs, and errors that begin so.
fn check(text: &str, cpus: &[(u32, Registers<'_>)], errors: &[&str]) {
    let dump = parse(text.as_bytes());
    let expected: Vec<Cpu> =
        cpus.iter().map(|&(id, registers)| Cpu { id, registers: registers.into() }).collect();
    assert_eq!(dump.cpus, expected, "{text}");
    let told: Vec<String> = dump.errors.iter().map(ToString::to_string).collect();
    let as_expected =
        told.len() == errors.len() && told.iter().zip(errors).all(|(told, error)| told.starts_with(error));
    assert!(as_expected, "{text}\n{told:#?}");
}

/// Two CPUs with one readable and one unreadable register.
const TWO: [(u32, Registers<'_>); 2] =
    [(0, &[(BASIC, Some(VALUE)), (PIN, None)]), (1, &[(BASIC, Some(VALUE)), (PIN, None)])];

#[test]
fn blocks() {
    let text = "\
------[ Versions ]------
Program Version: v6

------[ CPUID Registers / Logical CPU #0 ]------
allcpu: Package 0 / Core 0 / Thread 0: Valid
CPUID 00000007: 000D0651-00800800-7FFAFBFF-BFEBFBFF
------[ MSR Registers / Logical CPU #0 ]------
MSR 0000001B: 0000-0000-FEE0-0900
MSR 00000480: 03DA-0500-0000-0013
MSR 00000481: < FAILED >
------[ MSR Registers / Logical CPU #1 Multiplier,36.0x ]------
MSR 00000480: 03DA-0500-0000-0013 [S200]
MSR 00000481: < FAILED >
";
    check(text, &TWO, &[]);
    let others = "   CPUID CPU Name: Core i7\nCPUID Registers (CPU #0):\nMSR Registers (CPU #1 Virtual):\n";
    check(&text.replacen("------[ Versions ]------\n", others, 1), &TWO, &[]);
    check(&text.replace('\n', "\r\n"), &TWO, &[]);
    check(&text.replace('\n', "\r"), &TWO, &[]);
    let mixed: String =
        text.lines().zip(["\n", "\r\n", "\r"].iter().cycle()).flat_map(|(l, end)| [l, end]).collect();
    check(&mixed, &TWO, &[]);
}

#[test]
fn blocks_of_amd() {
    let leaf = |eax, ebx, ecx, edx| {
        let values = Gpr::ALL.into_iter().zip([eax, ebx, ecx, edx]);
        values.map(|(gpr, value)| (Address::Cpuid(0x8000_000A, gpr), Some(value))).collect::<Vec<_>>()
    };
    let text = "------[ Logical CPU #7 ]------\nCPUID 8000000A: 00000001-00008000-00000040-FFBFBDFF\n";
    check(text, &[(7, &leaf(1, 0x8000, 0x40, 0xFFBF_BDFF))], &[]);
    check(&text.replace("0A:", "0A"), &[(7, &leaf(1, 0x8000, 0x40, 0xFFBF_BDFF))], &[]);
    check("CPUID 8000000A: 00000001-00008000", &[], &["line 1, column 17: 2 of CPUID's 4 results"]);
    let rest = [Gpr::Ebx, Gpr::Ecx, Gpr::Edx].map(|gpr| (Address::Cpuid(0x8000_000A, gpr), Some(9)));
    let wide = ["line 1, column 17: `0000000100` has 10 digits"];
    check("CPUID 8000000A: 0000000100-9-9-9", &[(0, &rest)], &wide);
    check("CPUID 8000000A: 0-0-0-0 [SL 01]\nCPUID 0000000B: 0-0-0-0", &[], &["line 1, column 1: no cap"]);
}

#[test]
fn broken_blocks_tell_where_and_keep_the_rest() {
    let rest = "\nMSR 00000481: < FAILED >\n";
    let one: &[(u32, Registers<'_>)] = &[(0, &[(PIN, None)])];
    let check = |line: &str, error: &str| check(&format!("{line}{rest}"), one, &[error]);
    check("MSR 00000480: 03DA-0500-0000-001", "line 1, column 15: `03DA-0500-0000-001` has 15 digits");
    check("MSR 00000480: 03DA-0500-0000-00133", "line 1, column 15: `03DA-0500-0000-00133` has 17 digits");
    check("MSR 00000480: 03DA-0500-0000-001X", "line 1, column 15: `03DA05000000001X` is no hex");
    check("MSR 00000480:", "line 1, column 14: the line ends");
    check("MSR 00000480", "line 1, column 13: the line ends");
}

#[test]
fn lists() {
    check("0x480 0x03da050000000013\n0x481 unreadable", &TWO[..1], &[]);
    check("# mine\n\n480: 3DA050000000013 // basic\n00000481 = #GP\n", &TWO[..1], &[]);
    check("CPU 0:\n0x480 3da050000000013\n0x481 -\n[cpu1]\n0x480,3da050000000013\n0x481,?\n", &TWO, &[]);
    let edx = Address::Cpuid(0x8000_000A, Gpr::Edx);
    check("cpuid.0x8000000a.edx 0x1fbfbcff", &[(0, &[(edx, Some(0x1FBF_BCFF))])], &[]);
    check("cpuid.0x8000000a.edx 0x11fbfbcff", &[], &["line 1, column 22: `0x11fbfbcff` has 9 digits"]);
    check("0x485 1\n0x485 1\nCPU 0\n0x485 1", &[(0, &[(MISC, Some(1))])], &[]);
}

#[test]
fn leaves_as_cpuid_prints_them() {
    let cpu = |edx| {
        let values = Gpr::ALL.into_iter().zip([1, 0x8000, 0, edx]);
        values.map(|(gpr, value)| (Address::Cpuid(0x8000_000A, gpr), Some(value))).collect::<Vec<_>>()
    };
    let text = "CPU 0:
   0x00000000 0x00: eax=0x0000001c ebx=0x68747541 ecx=0x444d4163 edx=0x69746e65
   0x8000000a 0x00: eax=0x00000001 ebx=0x00008000 ecx=0x00000000 edx=0x1fbfbcff
   0x8000000a 0x01: eax=0x00000009 ebx=0x00000009 ecx=0x00000009 edx=0x00000009
CPU 1:
   0x8000000a 0x00: eax=0x00000001 ebx=0x00008000 ecx=0x00000000 edx=0x00000001
";
    check(text, &[(0, &cpu(0x1FBF_BCFF)), (1, &cpu(1))], &[]);
    let one = &text[..text.find("CPU 1").unwrap()].replace("CPU 0:", "CPU:");
    check(one, &[(0, &cpu(0x1FBF_BCFF))], &[]);
    let wide = one.replace("0x1fbfbcff", "0x11fbfbcff");
    check(&wide, &[(0, &cpu(0)[..3])], &["line 3, column 70: `0x11fbfbcff` has 9 digits"]);
    let torn = one.replace("0x8000000a 0x00:", "of a leaf:");
    check(&torn, &[], &["line 3, column 4: neither leaf nor sub-leaf"]);
}

#[test]
fn broken_lists_tell_where_and_keep_the_rest() {
    let check = |text, errors| check(text, &[(0, &[(MISC, Some(1))])], errors);
    check("0x485 1\n  Zebra 3", &[]);
    check("0x485 1\n0x481", &["line 2, column 6: the line ends"]);
    check("0x485 1\n0x481\nzebra", &["line 2, column 6: the line ends"]);
    check("0x485 1\n0x481 0x11112222333344445", &["line 2, column 7: `0x11112222333344445` has 17 digits"]);
    check("0x485 1\n0x485 2", &["line 2, column 7: 0x485 of CPU 0 was given before"]);
    check("0x485 1\n0x481 1 2", &["line 2, column 9: `2` after the value"]);
    check("0x485 1\n0x481 \u{1b}2J", &["line 2, column 7: `\u{fffd}2J` is no hex"]);
    check("0x485 \u{fffd}\n0x485 1", &["line 1, column 7: `\u{fffd}` is no hex"]);
    check("0x485 1\nIA32_VMX_NONSENSE = 5", &["line 2, column 1: `IA32_VMX_NONSENSE` is no register"]);
    check("0x485 1\nIA32_VMX_BASIC (0x481) = 5", &["line 2, column 17: `0x481` (0x481) is another register"]);
    check("0x485 1\nCPU 1: 0x481 of CPU 2 = 5", &["line 2, column 6: it names two CPUs"]);
    check("0x485 1\n03da050000000013", &["line 2, column 1: `03da050000000013` is the value of no"]);
}

#[test]
fn a_register_may_have_several_names() {
    let both: &[(Address, Option<u64>)] = &[(BASIC, Some(VALUE)), (PIN, None)];
    for text in [
        "IA32_VMX_BASIC\t0x480\t03da0500`00000013\nIA32_VMX_PINBASED_CTLS 0x481 ??",
        "IA32_VMX_BASIC [0x480]: 0x03da050000000013\n0x481 (IA32_VMX_PINBASED_CTLS) unknown",
        "| 0x480 | IA32_VMX_BASIC | basic | 0x03da050000000013 |\n| 481 | - |",
        "0x480=0x03da050000000013 0x481=?",
        "0x480: 0x03da050000000013, 0x481: ?",
        "MSR: IA32_VMX_BASIC [0x480]\n0x03da050000000013\nIA32_MISC_ENABLE [0x1a0]\n0x850089\nreading MSR 0x481... failed",
    ] {
        check(text, &[(0, both)], &[]);
    }
    let noise = "table[0x480] = 5\n480 Broadway\nirq 0x3a: 5\n0x1b 0x480\nEFER 0x3a";
    check(noise, &[], &["line 1, column 1: no capability register"]);
    let bits = ["line 1, column 22: a part of a register says too little"];
    check("IA32_FEATURE_CONTROL[0] = 1", &[], &bits);
    check("## MSR 0x480\n```\n0x03da050000000013\n```\n", &[(0, &both[..1])], &[]);
    let others = ["line 1, column 17: `0x481` (0x481) is another register than 0x480"];
    check("IA32_VMX_BASIC (0x481): 0x03da050000000013", &[], &others);
    check("host 0x480 0x03da050000000013", &[], &["line 1, column 6: `0x480` may be something else"]);
    check("1 0x480 0x03da050000000013", &[], &["line 1, column 1: `1` may be a CPU's number"]);
}

#[test]
fn a_cpu_of_one_line_is_not_that_of_the_next() {
    let text = "CPU 1: 0x480 0x03da050000000013\n0x481 ?";
    check(text, &[(1, &[(BASIC, Some(VALUE))])], &["line 2, column 1: of which CPU?"]);
    let headed = "CPU 1:\n0x480 0x03da050000000013\n0x481 ?\n";
    check(&format!("{}{headed}", headed.replace("CPU 1", "CPU 0")), &TWO, &[]);
    check("CPUs 0-1:\n0x480 0x03da050000000013\n0x481 ?\n", &TWO, &[]);
}

#[test]
fn what_cannot_be_so_is_told_and_kept() {
    let torn = [(Address::Msr(0x48B), Some(0x153C_FE00_0000))];
    check(
        "\n0x48b 0x153cfe000000",
        &[(0, &torn)],
        &["line 2, column 1: 0x48b of CPU 0 cannot be 0x153cfe000000"],
    );
    let zeros = "0x480 0x005a04000000000d\n0x48d 0\n";
    let registers = [(BASIC, Some(0x005A_0400_0000_000D)), (Address::Msr(0x48D), Some(0))];
    check(zeros, &[(0, &registers)], &[]);
}

#[test]
fn rdmsr() {
    check(
        "# rdmsr 0x480\n3da050000000013\n# rdmsr 0x481\nrdmsr: CPU 0 cannot read MSR 0x00000481\n",
        &TWO[..1],
        &[],
    );
    let all = "$ sudo rdmsr -a 0x480\n3da050000000013\n3da050000000013\n$ sudo rdmsr -a 0x481\n";
    let failed = "rdmsr: CPU 0 cannot read MSR 0x00000481\nrdmsr: CPU 1 cannot read MSR 0x00000481\n";
    check(&format!("{all}{failed}"), &TWO, &[]);
    let misc: &[(Address, Option<u64>)] = &[(MISC, Some(18))];
    check("rdmsr -p 5 -u 1157\n18\n", &[(5, misc)], &[]);
    check("rdmsr(0x485) = 0x12", &[(0, misc)], &[]);
    check("rdmsr -d 0x485 = 18", &[(0, misc)], &[]);
    check("rdmsr 0x485: 12", &[(0, misc)], &[]);
    check("rdmsr 0x485; rdmsr 0x481\n12\n?\n", &[(0, &[(MISC, Some(18)), (PIN, None)])], &[]);
    check(
        "rdmsr -a 0x485\n12\nrdmsr: CPU 1 cannot read MSR 0x00000485\n12",
        &[(0, misc), (1, &[(MISC, None)]), (2, misc)],
        &[],
    );
    check("12\nrdmsr 0x485\n12\n13\n$ nproc\n8\n", &[(0, misc)], &[]);
}

#[test]
fn a_question_without_an_answer_leaves_the_register_unknown() {
    let unread: &[(Address, Option<u64>)] = &[(PIN, None)];
    check("rdmsr 0x481\nrdmsr: open: No such file or directory\n8\n", &[(0, unread)], &[]);
    check("$ rdmsr 0x481\n$ nproc\n8\n", &[(0, unread)], &[]);
    check("rdmsr -p3 0x481", &[(3, unread)], &[]);
    check("rdmsr 0x481\n[sudo] password for me:\n?\n", &[(0, unread)], &[]);
}

#[test]
fn what_only_the_shell_knew_is_refused() {
    let told = ["line 2, column 1: which MSR it is of only the shell knew", "line 3"];
    check("for i in 0x480 0x481; do rdmsr $i; done\n12\n13\n", &[], &told);
    check("for i in 0 1; do rdmsr -p $i 0x480; done\n12\n", &[], &["line 2, column 1: which CPU"]);
    check("rdmsr -f 31:0 0x480\n12\n", &[], &["line 1, column 1: a part of an MSR says too little"]);
    check("wrmsr 0x480 0x12\nignored rdmsr: 0x480 data 0x0", &[], &["line 1, column 1: no cap"]);
}

#[test]
fn broken_json_tells_where_and_keeps_the_rest() {
    let cpus: Vec<Cpu> = TWO.iter().map(|&(id, registers)| Cpu { id, registers: registers.into() }).collect();
    let json = serde_json::to_string_pretty(&decode(&cpus)).unwrap();
    assert_eq!(parse(json.as_bytes()), Dump { cpus: cpus.clone(), errors: Vec::new() });
    for cut in (0..json.len()).filter(|&cut| json.is_char_boundary(cut)) {
        let dump = parse(&json.as_bytes()[..cut]);
        assert_eq!(dump.errors.len(), 1, "{cut}");
        for (read, whole) in dump.cpus.iter().zip(&cpus) {
            assert!(whole.registers.starts_with(&read.registers), "{cut}: {read:?}");
        }
    }
    let end = json.find("\"unnamed\": [\n    {").unwrap();
    assert_eq!(parse(&json.as_bytes()[..end]).cpus, cpus);
    let other = json.replace("caps/1", "caps/9");
    assert_eq!(parse(other.as_bytes()).cpus, cpus);
    assert!(parse(other.as_bytes()).errors[0].what.contains("exitscope-caps/9"));
    let wide = parse(json.replacen("0x03da", "0x103da", 1).as_bytes());
    assert_eq!(wide.cpus[1], cpus[1]);
    assert!(
        wide.errors[0].to_string().contains(": `0x103da050000000013` has 17 digits"),
        "{:?}",
        wide.errors
    );
}

#[test]
fn nothing_is_found_in_nothing() {
    check("", &[], &["line 1, column 1: no capability register"]);
    check("0x10 1", &[], &["line 1, column 1: no capability register"]);
    let noise = "lorem ipsum\n".repeat(100_000);
    assert_eq!(parse(noise.as_bytes()).errors.len(), 1, "the forms are told once");
    let zebras = "0x480 zebra\n".repeat(100_000);
    assert_eq!(parse(zebras.as_bytes()).errors.len(), MOST_ERRORS);
}

/// [`TWO`] in every form.
fn forms() -> [String; 4] {
    let cpus: Vec<Cpu> = TWO.iter().map(|&(id, registers)| Cpu { id, registers: registers.into() }).collect();
    let block = |cpu| {
        format!(
            "------[ Logical CPU #{cpu} ]------\nMSR 00000480: 03DA-0500-0000-0013\nMSR 00000481: < FAILED >\n"
        )
    };
    let list = |cpu| format!("CPU {cpu}:\n0x480 0x03da050000000013\n0x481 ?\n");
    let rdmsr = |cpu| {
        let failed = format!("rdmsr: CPU {cpu} cannot read MSR 0x00000481");
        format!("# rdmsr -p {cpu} 0x480\n3da050000000013\n# rdmsr -p {cpu} 0x481\n{failed}\n")
    };
    let each = |form: &dyn Fn(u32) -> String| form(0) + &form(1);
    [serde_json::to_string_pretty(&decode(&cpus)).unwrap() + "\n", each(&block), each(&list), each(&rdmsr)]
}

#[test]
fn every_form_says_the_same_with_any_line_ends() {
    for form in forms() {
        check(&form, &TWO, &[]);
        let ends = ["\n", "\r\n", "\r", "\n\n"].iter().cycle();
        let mixed: String = form.lines().zip(ends).flat_map(|(line, end)| [line, end]).collect();
        check(&mixed, &TWO, &[]);
    }
}

#[test]
fn a_cpu_that_comes_twice_is_one() {
    let [_, texts @ ..] = forms();
    for form in texts {
        check(&form.repeat(3), &TWO, &[]);
        let other = form.replace("13\n", "12\n");
        let dump = parse(format!("{form}{other}").as_bytes());
        assert_eq!(dump.cpus, parse(form.as_bytes()).cpus);
        assert_eq!(dump.errors.len(), 2, "{:?}", dump.errors);
        assert!(dump.errors[0].what.contains("0x480 of CPU 0 was given before"), "{:?}", dump.errors);
    }
    let twice = forms()[0].replace("\"id\": 1", "\"id\": 0");
    check(&twice, &TWO[..1], &[]);
}

#[test]
fn a_value_of_the_wrong_width_is_told_and_left_out() {
    for form in forms() {
        let line = form.lines().position(|line| line.to_ascii_lowercase().contains("3da")).unwrap() + 1;
        let wide = if form.contains("03da05") { "3da0511" } else { "3da051122" };
        let dump = parse(form.replacen("3da05", wide, 1).replacen("03DA-", "03DA11-", 1).as_bytes());
        assert_eq!(dump.cpus.last(), parse(form.as_bytes()).cpus.last());
        assert_eq!(dump.errors.len(), 1, "{:?}", dump.errors);
        let error = &dump.errors[0];
        assert!((error.line == line || form.starts_with('{')) && error.what.contains("digits"), "{error}");
    }
}

#[test]
fn a_truncated_text_keeps_its_whole_lines() {
    let [_, texts @ ..] = forms();
    for form in texts {
        for cut in 0..form.len() {
            let registers = |text: &str| {
                let cpus = parse(text.as_bytes()).cpus;
                cpus.into_iter().flat_map(|cpu| cpu.registers).collect::<Vec<_>>()
            };
            let whole = form[..cut].rfind('\n').map_or("", |end| &form[..=end]);
            let (kept, read) = (registers(whole), registers(&form[..cut]));
            assert!(read.len() <= kept.len() + 1, "{cut}");
            // A command whose value is missing may leave its register unknown.
            assert!(kept.iter().all(|(address, _)| read.iter().any(|(found, _)| found == address)), "{cut}");
        }
    }
}

#[test]
fn a_megabyte_of_anything_is_read() {
    const MEGABYTE: usize = 1 << 20;
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let bytes: Vec<u8> = (0..MEGABYTE).map(|_| random() as u8).collect();
    let pieces = |random: &mut dyn FnMut() -> usize| {
        let mut text = String::new();
        while text.len() < MEGABYTE {
            text.push_str(PIECES[random() % PIECES.len()]);
        }
        text.into_bytes()
    };
    let cpus: String = (0..50_000).map(|id| format!("CPU {id}:\n0x485 {:#x}\n", id + 1)).collect();
    let one_line = "0x480 ".repeat(MEGABYTE / 6);
    for noise in [bytes, pieces(&mut random), pieces(&mut random), one_line.into_bytes()] {
        let dump = parse(&noise);
        assert!((1..=MOST_ERRORS).contains(&dump.errors.len()));
    }
    assert_eq!(parse(cpus.as_bytes()).cpus.len(), 50_000);
    for form in forms() {
        let mut noise = form.clone();
        noise.extend((0..MEGABYTE / 8).map(|_| char::from(random() as u8 & 0x7F)));
        parse(noise.as_bytes());
        parse(form.repeat(MEGABYTE / form.len()).as_bytes());
    }
}

/// Pieces of all forms, so that noise comes near to each of them.
const PIECES: [&str; 48] = [
    "MSR ",
    "00000480",
    ": ",
    "03DA-0500-0000-0013",
    "< FAILED >",
    "CPUID ",
    "8000000A",
    "00000001-00008000",
    "-",
    "------[ Logical CPU #",
    "1 ]------",
    "\n",
    "\r\n",
    "\r",
    "rdmsr ",
    "-a ",
    "-p ",
    "0x480",
    " ",
    "=",
    "CPU 1:",
    "cannot read MSR",
    "{",
    "\"cpus\": [",
    "\"id\": 0",
    "\"address\": \"0x480\"",
    "\"raw\": \"0x1\"",
    ",",
    "]",
    "}",
    "é",
    "\u{feff}",
    "IA32_VMX_BASIC",
    "msr[480] = 03da0500`00000013",
    "(0x480)",
    "eax=",
    "edx=",
    "0x8000000a 0x00:",
    "cpu6: ",
    "CPUs 0-3:",
    "-xp1 ",
    "--processor=",
    "| ",
    "ext_cpuid[10]=",
    "Basic VMX Information",
    "Hst: ",
    "?",
    "$ ",
];

proptest! {
    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..2000)) {
        parse(&bytes);
    }

    #[test]
    fn near_misses_never_panic(pieces in vec(0..PIECES.len(), 0..60)) {
        let text: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        for error in parse(text.as_bytes()).errors {
            prop_assert!(error.line > 0 && error.column > 0);
        }
    }

    /// What a list tells does not depend on where it is cut, but for the line that is cut.
    #[test]
    fn a_truncated_list_keeps_its_whole_lines(cut in 0_usize..400) {
        let text: String = (0x494..0x49F).map(|number| format!("{number:#x} {VALUE:#x}\n")).collect();
        let cut = cut.min(text.len());
        let whole = text[..cut].matches('\n').count();
        let read: usize = parse(&text.as_bytes()[..cut]).cpus.iter().map(|cpu| cpu.registers.len()).sum();
        prop_assert!(read == whole || read == whole + 1);
    }
}
