//! What a person is shown, of the registers of a real laptop.

use super::*;
use exitscope_caps::diff::Extent;
use exitscope_caps::dump;

const LAPTOP: &str = "\
CPU 0
0x3a 5
0x480 03da050000000013
0x481 000000ff00000016
0x482 fffbfffe0401e172
0x484 0176ffff000011ff
0x48b 0f5d7fff00000000
0x48c 00010f0106f34141
0x48d 000000ff00000016
0x48e unreadable
0x490 0176ffff000011fb
";

fn cpus(text: &str) -> Vec<Cpu> {
    let dump = dump::parse(text.as_bytes());
    assert_eq!(dump.errors, []);
    dump.cpus
}

fn check(text: &str, has: &[&str], lacks: &[&str]) {
    for line in has {
        assert!(text.lines().any(|shown| shown == *line), "{line}\n{text}");
    }
    for word in lacks {
        assert!(!text.contains(word), "{word}\n{text}");
    }
}

#[test]
fn words_come_first_then_every_bit() {
    let text = full(&cpus(LAPTOP), Forms::Taken);
    assert!(
        text.starts_with("CPU 0\n  VMX, turned on by firmware\n    has: EPT with 1G pages, 2M pages,"),
        "{text}"
    );
    check(
        &text,
        &[
            "IA32_VMX_BASIC (0x480) 0x03da050000000013   SDM vol. 3, A.1",
            "  set and without a name: 57",
            "IA32_VMX_TRUE_PROCBASED_CTLS (0x48e) unknown: it could not be read   SDM vol. 3, A.3.2 and 26.6.2",
            "IA32_VMX_PROCBASED_CTLS (0x482) 0xfffbfffe0401e172   SDM vol. 3, A.3.2 and 26.6.2",
        ],
        &["IA32_VMX_PINBASED_CTLS", "IA32_VMX_ENTRY_CTLS"],
    );
    let both = full(&cpus(LAPTOP), Forms::Both);
    assert!(both.contains("IA32_VMX_PINBASED_CTLS") && both.contains("IA32_VMX_TRUE_PINBASED_CTLS"));
}

#[test]
fn of_unlike_cpus_the_difference_is_shown() {
    let second = LAPTOP.replace("CPU 0", "CPU 1");
    let third = LAPTOP.replace("CPU 0", "CPU 2").replace("0x480 03da", "0x480 01da");
    let text = full(&cpus(&format!("{LAPTOP}{second}{third}")), Forms::Taken);
    check(&text, &["CPUs 0-1", "CPU 2", "CPU 2, where unlike CPUs 0-1:"], &[]);
    assert_eq!(text.matches("IA32_VMX_BASIC").count(), 2);
    assert_eq!(text.matches("IA32_VMX_EPT_VPID_CAP").count(), 1);
    assert_eq!(full(&[], Forms::Taken), "");
}

#[test]
fn the_courses_style() {
    let laptop = &cpus(LAPTOP);
    let text = course(laptop, Forms::Taken);
    check(
        &text,
        &[
            "Pinbased Controls MSR: 0xff00000016",
            "  NMI exiting: Can set=Yes, Can clear=Yes",
            "  CR3-load exiting: Can set=Yes, Can clear=No",
            "  Enable EPT: Can set=Yes, Can clear=Yes",
            "  Load debug controls: Can set=Yes, Can clear=Yes",
            "  Bit 24 (no name): Can set=Yes, Can clear=Yes",
            "Procbased Controls MSR: unknown, it could not be read",
        ],
        &["VMCS revision", "Reserved", "Entry Controls MSR: 0x176ffff000011ff"],
    );
    check(&course(laptop, Forms::Both), &["  Load debug controls: Can set=Yes, Can clear=No"], &[]);
}

#[test]
fn fixed_bits_are_told_as_what_they_force() {
    let text = full(&cpus("0x486 80000021\n0x487 ffffffff\n0x488 2000\n0x489 1ff6fff"), Forms::Taken);
    let squeezed = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n");
    check(
        &squeezed.collect::<String>(),
        &[
            "PE 0 must be 1 Protected mode",
            "PE 0 may be 1 Protected mode",
            "LA57 12 must be 0 57-bit linear addresses",
        ],
        &[],
    );
}

fn one(id: u32, registers: &[(u32, Option<u64>)]) -> Cpu {
    Cpu { id, registers: registers.iter().map(|&(number, value)| (Address::Msr(number), value)).collect() }
}

#[test]
fn differences_begin_with_features() {
    let secondary = (0x482, Some(0x8401_E172_0401_E172));
    let a = [one(0, &[secondary, (0x48B, Some(0x22 << 32)), (0x48C, Some(1 << 17 | 1 << 6))])];
    let b = [one(0, &[secondary, (0x48B, Some(0x2020 << 32)), (0x491, None)])];
    let differ = |a: &[Cpu], b: &[Cpu], extent| exitscope_caps::diff::diff(a, b, extent);
    let text = diff(&differ(&a, &b, Extent::Differences), "old.txt", "live");
    let start = "CPU 0\n  only old.txt has: EPT; EPT: 1G pages\n  only live has: VM functions\n\n\
                 IA32_VMX_PROCBASED_CTLS2 (0x48b)\n";
    assert!(text.starts_with(start), "{text}");
    assert_eq!(diff(&differ(&a, &a, Extent::Differences), "A", "B"), "A and B tell the same\n");
    let all = diff(&differ(&a, &a, Extent::All), "A", "B");
    assert!(all.contains("1-GByte EPT pages"), "{all}");
}

#[test]
fn an_answer_says_which_cpu_lacks_it() {
    let mut hybrid = cpus(LAPTOP);
    hybrid.push(one(1, &[(0x48C, Some(0))]));
    let text = super::check(&exitscope_caps::check::check(&hybrid[..1], &hybrid), "A", "B");
    assert!(text.starts_with("no: B lacks something that a guest may use on A\n"), "{text}");
    assert!(text.contains("\nCPU 0 of A on CPU 1 of B\n"), "{text}");
}

#[test]
fn names_of_others_stand_beside_the_manuals() {
    let text = full(&cpus(LAPTOP), Forms::Taken);
    for names in ["vmx-apicv-vid, vid", "vmx-rdrand-exit", "vmx-preemption-timer, preemption_timer"] {
        assert!(text.lines().any(|line| line.ends_with(names)), "{names}\n{text}");
    }
}

#[test]
fn what_means_nothing_says_so() {
    let zeros = full(&cpus("0x480 0x005a04000000000d\n0x481 0x3f00000016\n0x48d 0\n"), Forms::Taken);
    assert!(zeros.contains("IA32_VMX_PINBASED_CTLS (0x481)"), "the original form counts\n{zeros}");
    assert!(zeros.contains("means nothing: the CPU has no such register"), "{zeros}");
    let torn = full(&dump::parse(b"0x48b 0x153cfe000000").cpus, Forms::Taken);
    assert!(torn.contains("cannot be so: controls 25-31 could be neither 0 nor 1"), "{torn}");
    check(
        &full(&cpus("0x3a 3\n0x480 0x005a04000000000d"), Forms::Taken),
        &["  VMX, turned on inside SMX only"],
        &["off"],
    );
    let off = full(&cpus("CPUID 80000001: 0 0 1 0\nCPUID 8000000A: 1 8 0 0"), Forms::Taken);
    check(&off, &["  no SVM: CPUID 0x80000001 ECX bit 2 is 0"], &["lacks"]);
}

#[test]
fn a_list_is_a_dump() {
    let laptop = cpus(LAPTOP);
    assert_eq!(cpus(&list(&laptop[0], "a\nlaptop")), laptop);
}

/// What differs of CPUs that are unlike the first is of them; the rest is not told again.
#[test]
fn the_full_text_is_a_dump() {
    let laptop = cpus(LAPTOP);
    assert_eq!(cpus(&full(&laptop, Forms::Both)), laptop);
    let second = LAPTOP.replace("CPU 0", "CPU 1").replace("0x480 03da", "0x480 01da");
    let unlike = cpus(&full(&cpus(&format!("{LAPTOP}{second}")), Forms::Both));
    assert_eq!(unlike[0], laptop[0]);
    assert_eq!(unlike[1], one(1, &[(0x480, Some(0x01DA_0500_0000_0013))]));
    let alike = LAPTOP.replace("CPU 0", "CPU 1");
    let both = cpus(&format!("{LAPTOP}{alike}"));
    assert_eq!(cpus(&full(&both, Forms::Both)), both);
}

#[test]
fn a_value_says_what_is_refused() {
    let laptop = cpus(LAPTOP);
    let told = |value| {
        let setting = exitscope_caps::setting::setting(Address::Msr(0x48B), value, Some(&laptop[0]));
        setting.map(|setting| super::setting(&setting, "B")).unwrap_or_default()
    };
    assert!(
        told(2).starts_with("yes: B allows 0x00000002 by IA32_VMX_PROCBASED_CTLS2 (0x48b)\n"),
        "{}",
        told(2)
    );
    let refused = told(0x8000_0002);
    assert!(refused.starts_with("no: B refuses"), "{refused}");
    assert!(refused.contains("\nrefused  Instruction timeout"), "{refused}");
}

#[test]
fn registers_that_are_unknown_as_a_whole_take_one_line() {
    let laptop = cpus(LAPTOP);
    let little = cpus("0x480 03da050000000013\n");
    let text = super::check(&exitscope_caps::check::check(&laptop, &little), "A", "B");
    assert!(text.contains("\nunknown: IA32_VMX_EPT_VPID_CAP (0x48c)"), "{text}");
    assert_eq!(text.matches("unknown").count(), 2, "{text}");
}
