//! What a guest reads, in each layout of the course leaves: by our reader and by Debian's `cpuid`.

use exitscope_abi::leaf::Layout;
use exitscope_host::model::{GuestView, Reason, Vm};
use exitscope_lab::job::{Output, Step};
use exitscope_tests::{ISA, Told, guests, insert, linux, machine, set};

/// CPUID's exit code, one that is defined and never seen (task switch), and one that no manual defines.
const CPUID: u32 = 114;
const NEVER: u32 = 125;
const UNDEFINED: u32 = 169;

/// Everything that a guest asks, in this order; [`Answers`] names them.
const COMMANDS: &[&str] = &[
    "/init guest --json",
    "/init guest --course --json",
    "/init guest CPUID --json",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffc -s 114",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffd -s 114",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffe -s 114",
    "/usr/bin/cpuid -1 -r -l 0x4fffffff -s 114",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffc -s 169",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffd -s 169",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffe -s 169",
    "/usr/bin/cpuid -1 -r -l 0x4fffffff -s 169",
    "/usr/bin/cpuid -1 -r -l 0x4ffffffd -s 125",
    "/init guest 169",
    "/init guest NO_SUCH_REASON",
];

/// What a guest was answered, and what the host had counted for it in the end.
struct Answers<'a> {
    own: GuestView,
    course: GuestView,
    cpuid: Reason,
    /// The leaves 0x4FFFFFFC to 0x4FFFFFFF as Debian's `cpuid` printed them: EAX, EBX, ECX, EDX.
    leaves: [[u32; 4]; 4],
    undefined: [[u32; 4]; 4],
    never: [u32; 4],
    complaints: [&'a Output; 2],
    counted: &'a Vm,
}

/// The four registers in a line of Debian's `cpuid -r`.
fn registers(output: &Output) -> [u32; 4] {
    let line =
        output.stdout.lines().find(|line| line.contains("eax=")).unwrap_or_else(|| panic!("{output:?}"));
    ["eax=", "ebx=", "ecx=", "edx="].map(|name| {
        let (_, value) = line.split_once(name).unwrap();
        u32::from_str_radix(value.split_whitespace().next().unwrap().trim_start_matches("0x"), 16).unwrap()
    })
}

impl<'a> Answers<'a> {
    fn of(told: &'a Told, layout: Layout) -> Self {
        let outputs = told.guest(layout.name()).outputs;
        assert_eq!(outputs.len(), COMMANDS.len());
        let view = |index: usize| serde_json::from_str(&outputs[index].stdout).unwrap();
        Self {
            own: view(0),
            course: view(1),
            cpuid: serde_json::from_str(&outputs[2].stdout).unwrap(),
            leaves: [3, 4, 5, 6].map(|index| registers(&outputs[index])),
            undefined: [7, 8, 9, 10].map(|index| registers(&outputs[index])),
            never: registers(&outputs[11]),
            complaints: [&outputs[12], &outputs[13]],
            counted: told.vm("end", layout.name()),
        }
    }

    fn counted(&self, code: u64) -> &Reason {
        self.counted.vcpus[0].reasons.iter().find(|reason| reason.code == code).unwrap()
    }
}

#[test]
fn all_layouts_are_read_by_the_guest() {
    let mut steps = vec![insert("layout=reordered")];
    for layout in Layout::ALL {
        steps.push(set("layout", layout.name()));
        steps.push(guests(vec![linux(layout.name(), COMMANDS)]));
    }
    steps.push(Step::Snapshot { label: "end".into() });
    let told = machine("layouts", steps);
    for &layout in Layout::ALL {
        let answers = Answers::of(&told, layout);
        check_own_leaves(&answers, layout);
        check_course_leaves(&answers, layout);
        let [undefined, unknown] = answers.complaints;
        assert_eq!(undefined.status, Some(1), "{undefined:?}");
        assert!(undefined.stderr.contains("SVM defines no exit reason 169"), "{undefined:?}");
        assert_eq!(unknown.status, Some(2), "{unknown:?}");
    }
    assert!(ISA.reason(UNDEFINED).is_none() && ISA.reason(NEVER).is_some());
}

/// Every later reading is at least the earlier one, and at most what the host has in the end.
fn check_own_leaves(answers: &Answers<'_>, layout: Layout) {
    let Answers { own, course, cpuid, counted, .. } = answers;
    assert_eq!((own.isa.as_str(), own.layout.as_str(), own.expose.as_str()), ("svm", layout.name(), "vm"));
    for reason in &own.reasons {
        let host = answers.counted(reason.code);
        assert!(reason.exits <= host.exits && reason.cycles <= host.cycles, "{reason:?} {host:?}");
        assert!(host.min <= reason.min && reason.max <= host.max, "{reason:?} {host:?}");
    }
    let total = counted.total();
    let sum: u64 = own.reasons.iter().map(|reason| reason.exits).sum();
    assert!(own.total.exits <= sum && sum <= total.exits, "{own:?}");
    let own_cpuid = own.reasons.iter().find(|reason| reason.code == u64::from(CPUID)).unwrap();
    assert!(own_cpuid.exits < cpuid.exits && cpuid.exits <= answers.counted(CPUID.into()).exits);
    if layout != Layout::Combined {
        assert!(own.total.cycles < course.total.cycles && course.total.cycles <= total.cycles);
    }
    assert!(own.total.exits < course.total.exits && course.total.exits <= total.exits);
}

/// Debian's `cpuid`, register by register. Figures grow from one command to the next.
fn check_course_leaves(answers: &Answers<'_>, layout: Layout) {
    let Answers { course, cpuid, leaves: [c, d, e, f], undefined, .. } = answers;
    let total = answers.counted.total();
    let reason = answers.counted(CPUID.into());
    let between = |low: u64, value: u64, high: u64| {
        assert!(low < value && value <= high, "{layout:?}: {low} < {value} <= {high}");
    };
    let is_count = |&[eax, ebx, ecx, edx]: &[u32; 4], low, high| {
        assert_eq!([ebx, ecx, edx], [0; 3], "{layout:?}");
        between(low, eax.into(), high);
    };
    let is_cycles = |&[_, ebx, ecx, edx]: &[u32; 4], low, high| {
        assert_eq!(edx, 0, "{layout:?}");
        between(low, u64::from(ebx) << 32 | u64::from(ecx), high);
    };
    let mark = [0, 0, 0, u32::MAX];
    match layout {
        Layout::Classic => {
            is_count(f, course.total.exits, total.exits);
            is_cycles(e, course.total.cycles, total.cycles);
            is_count(d, cpuid.exits, reason.exits);
            is_cycles(c, cpuid.cycles, reason.cycles);
            assert_eq!([c[0], e[0]], [0; 2]);
            assert_eq!(undefined[..2], [mark; 2]);
            assert_eq!(answers.never, [0; 4]);
        }
        Layout::Reordered => {
            is_count(c, course.total.exits, total.exits);
            is_cycles(d, course.total.cycles, total.cycles);
            is_count(e, cpuid.exits, reason.exits);
            is_cycles(f, cpuid.cycles, reason.cycles);
            assert_eq!([d[0], f[0]], [0; 2]);
            assert_eq!(undefined[2..], [mark; 2]);
        }
        Layout::Combined => {
            between(course.total.exits, f[0].into(), total.exits);
            is_cycles(f, course.total.cycles, total.cycles);
            is_count(e, cpuid.exits, reason.exits);
            assert_eq!(undefined[2], mark);
        }
    }
}
