//! What a guest reads, in each layout of the course leaves: by our reader and by Debian's `cpuid`.

use exitscope_abi::leaf::Layout;
use exitscope_abi::reason::Isa;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Output, Step};
use exitscope_lab::runs::course;
use exitscope_model::{GuestView, Reason, Vm};
use exitscope_tests::{Transcript, guests, insert, linux, remove};

use crate::shared;

/// Exit codes to ask for.
struct Codes {
    cpuid: u32,
    /// One that is defined and that KVM never lets happen.
    never: u32,
    /// One that no manual defines.
    undefined: u32,
}

impl Codes {
    fn of(vendor: Vendor) -> Self {
        match vendor {
            Vendor::Amd => Self { cpuid: 114, never: 125, undefined: 169 },
            Vendor::Intel => Self { cpuid: 10, never: 11, undefined: 35 },
        }
    }

    /// Everything that a guest asks, in this order; [`Answers`] names them.
    fn commands(&self) -> Vec<String> {
        let ours =
            ["--json", "--course --json", "CPUID --json"].map(|question| format!("/init guest {question}"));
        let leaf = |leaf: u32, code: u32| format!("/usr/bin/cpuid -1 -r -l {leaf:#x} -s {code}");
        let leaves = |code| (0x4fff_fffc..=0x4fff_ffff).map(move |number| leaf(number, code));
        let mut commands = ours.to_vec();
        commands.extend(leaves(self.cpuid).chain(leaves(self.undefined)));
        commands.push(leaf(0x4fff_fffd, self.never));
        commands.extend([format!("/init guest {}", self.undefined), "/init guest NO_SUCH_REASON".into()]);
        commands
    }
}

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
    code: u32,
}

/// The four registers that Debian's `cpuid -r` printed.
fn registers(output: &Output) -> [u32; 4] {
    course::registers(&output.stdout).unwrap_or_else(|| panic!("{output:?}"))
}

impl<'a> Answers<'a> {
    fn of(transcript: &'a Transcript, codes: &Codes, layout: Layout) -> Self {
        let outputs = transcript.guest(layout.name()).outputs;
        assert_eq!(outputs.len(), codes.commands().len());
        let view = |index: usize| serde_json::from_str(&outputs[index].stdout).unwrap();
        Self {
            own: view(0),
            course: view(1),
            cpuid: serde_json::from_str(&outputs[2].stdout).unwrap(),
            leaves: [3, 4, 5, 6].map(|index| registers(&outputs[index])),
            undefined: [7, 8, 9, 10].map(|index| registers(&outputs[index])),
            never: registers(&outputs[11]),
            complaints: [&outputs[12], &outputs[13]],
            counted: transcript.vm("layouts", layout.name()),
            code: codes.cpuid,
        }
    }

    fn counted(&self, code: u64) -> &Reason {
        self.counted.vcpus[0].reasons.iter().find(|reason| reason.code == code).unwrap()
    }
}

#[test]
fn all_layouts_are_read_by_the_guest() {
    check(shared::transcript(Vendor::Amd), Vendor::Amd);
}

#[test]
fn all_layouts_are_read_by_the_guest_on_intel() {
    check(shared::transcript(Vendor::Intel), Vendor::Intel);
}

/// A guest in each layout.
pub fn steps(vendor: Vendor) -> Vec<Step> {
    let commands = Codes::of(vendor).commands();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let mut steps = vec![insert("layout=reordered")];
    for layout in Layout::ALL {
        steps.push(Step::set("layout", layout.name()));
        steps.push(guests(vec![linux(layout.name(), &commands)]));
    }
    steps.push(Step::Snapshot { label: "layouts".into() });
    steps.push(remove());
    steps
}

/// Checks what a machine answered to [`steps`].
pub fn check(transcript: &Transcript, vendor: Vendor) {
    let (isa, codes) = (vendor.isa(), Codes::of(vendor));
    for &layout in Layout::ALL {
        let answers = Answers::of(transcript, &codes, layout);
        check_own_leaves(&answers, isa, layout);
        check_course_leaves(&answers, layout);
        let [undefined, unknown] = answers.complaints;
        let undefined_reason =
            format!("{} defines no exit reason {}", isa.name().to_uppercase(), codes.undefined);
        assert_eq!(undefined.status, Some(1), "{undefined:?}");
        assert!(undefined.stderr.contains(&undefined_reason), "{undefined:?}");
        assert_eq!(unknown.status, Some(2), "{unknown:?}");
    }
    assert!(isa.reason(codes.undefined).is_none() && isa.reason(codes.never).is_some());
}

/// Every later reading is at least the earlier one, and at most what the host has in the end.
fn check_own_leaves(answers: &Answers<'_>, isa: Isa, layout: Layout) {
    let Answers { own, course, cpuid, counted, .. } = answers;
    assert_eq!(
        (own.isa.as_str(), own.layout.as_str(), own.expose.as_str()),
        (isa.name(), layout.name(), "vm")
    );
    for reason in &own.reasons {
        let host = answers.counted(reason.code);
        assert!(reason.exits <= host.exits && reason.cycles <= host.cycles, "{reason:?} {host:?}");
        assert!(host.min <= reason.min && reason.max <= host.max, "{reason:?} {host:?}");
    }
    let total = counted.total();
    let sum: u64 = own.reasons.iter().map(|reason| reason.exits).sum();
    assert!(own.total.exits <= sum && sum <= total.exits, "{own:?}");
    let own_cpuid = own.reasons.iter().find(|reason| reason.code == u64::from(answers.code)).unwrap();
    assert!(own_cpuid.exits < cpuid.exits && cpuid.exits <= answers.counted(answers.code.into()).exits);
    if layout != Layout::Combined {
        assert!(own.total.cycles < course.total.cycles && course.total.cycles <= total.cycles);
    }
    assert!(own.total.exits < course.total.exits && course.total.exits <= total.exits);
}

/// Debian's `cpuid`, register by register. Figures grow from one command to the next.
fn check_course_leaves(answers: &Answers<'_>, layout: Layout) {
    let Answers { course, cpuid, leaves: [c, d, e, f], undefined, .. } = answers;
    let total = answers.counted.total();
    let reason = answers.counted(answers.code.into());
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
