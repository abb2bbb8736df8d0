//! What a guest reads, in each layout of the course leaves: by our reader and by Debian's `cpuid`.

use exitscope_abi::leaf::Layout;
use exitscope_abi::reason::Isa;
use exitscope_lab::emulator::Vendor;
use exitscope_lab::job::{Output, Step};
use exitscope_lab::runs::course;
use exitscope_model::{GuestView, Reason, Vm};
use exitscope_tests::Transcript;

use crate::asking::{self, GUEST, Phase};
use crate::shared;

/// Exit codes to ask for.
struct Codes {
    cpuid: u32,
    /// One that is defined and that KVM never lets happen.
    never: u32,
    /// One that no manual defines.
    undefined: u32,
    /// One whose time is the kernel's and the VMM's: an access to a port.
    io: u32,
}

impl Codes {
    fn of(vendor: Vendor) -> Self {
        match vendor {
            Vendor::Amd => Self { cpuid: 114, never: 125, undefined: 169, io: 0x7b },
            Vendor::Intel => Self { cpuid: 10, never: 11, undefined: 35, io: 30 },
        }
    }

    /// Everything that a guest asks, in this order; [`Answers`] names them.
    fn commands(&self, layout: Layout) -> Vec<String> {
        let ours =
            ["--json", "--course --json", "CPUID --json"].map(|question| format!("/init guest {question}"));
        let leaves = |code| (0x4fff_fffc..=0x4fff_ffff).map(move |number| leaf(number, code));
        let mut commands = ours.to_vec();
        commands.extend(leaves(self.cpuid).chain(leaves(self.undefined)));
        commands.push(leaf(0x4fff_fffd, self.never));
        commands.extend([format!("/init guest {}", self.undefined), "/init guest NO_SUCH_REASON".into()]);
        // The layout is of no consequence for them.
        if layout == Layout::Classic {
            commands.extend(self.own_leaves().map(|(number, code)| leaf(number, code)));
        }
        commands
    }

    /// Own leaves and their sub-leaves, in the order in which a guest asks them one by one; see [`check_vcpu_leaves`].
    fn own_leaves(&self) -> impl Iterator<Item = (u32, u32)> {
        let of_io = [0xF2, 0xF9, 0xFA, 0xF6, 0xF7, 0xF8, 0xF2].map(|low| (low, self.io));
        let of_all = [0xF1, 0xF5, 0xF1, 0xF4, 0xFB].map(|low| (low, 0));
        let of_none = [0xF6, 0xF7, 0xF8, 0xF9, 0xFA].map(|low| (low, self.undefined));
        of_io.into_iter().chain(of_all).chain(of_none).map(|(low, code)| (0x4fff_ff00 | low, code))
    }
}

/// The command by which Debian's `cpuid` asks a leaf with a sub-leaf.
pub fn leaf(number: u32, sub_leaf: u32) -> String {
    format!("/usr/bin/cpuid -1 -r -l {number:#x} -s {sub_leaf}")
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
    /// Those of [`Codes::own_leaves`], in the classic layout.
    own_leaves: Vec<[u32; 4]>,
    counted: &'a Vm,
    code: u32,
}

/// The four registers that Debian's `cpuid -r` printed.
pub fn registers(output: &Output) -> [u32; 4] {
    course::registers(&output.stdout).unwrap_or_else(|| panic!("{output:?}"))
}

impl<'a> Answers<'a> {
    fn of(transcript: &'a Transcript, codes: &Codes, layout: Layout) -> Self {
        let phase = Layout::ALL.iter().position(|&one| one == layout).unwrap();
        let outputs = asking::answers(transcript, phase);
        assert_eq!(outputs.len(), codes.commands(layout).len());
        let view = |index: usize| serde_json::from_str(&outputs[index].stdout).unwrap();
        Self {
            own: view(0),
            course: view(1),
            cpuid: serde_json::from_str(&outputs[2].stdout).unwrap(),
            leaves: [3, 4, 5, 6].map(|index| registers(&outputs[index])),
            undefined: [7, 8, 9, 10].map(|index| registers(&outputs[index])),
            never: registers(&outputs[11]),
            complaints: [&outputs[12], &outputs[13]],
            own_leaves: outputs[14..].iter().map(registers).collect(),
            counted: transcript.vm(layout.name(), GUEST),
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

/// All layouts.
pub fn phases(vendor: Vendor) -> Vec<Phase> {
    let phase = |layout: &Layout| Phase {
        change: vec![Step::set("layout", layout.name())],
        says: format!("{} vm", layout.name()),
        commands: Codes::of(vendor).commands(*layout),
        beside: None,
        snapshot: Some(layout.name()),
    };
    Layout::ALL.iter().map(phase).collect()
}

/// Checks what a machine answered to [`asking::steps`].
pub fn check(transcript: &Transcript, vendor: Vendor) {
    let (isa, codes) = (vendor.isa(), Codes::of(vendor));
    for &layout in Layout::ALL {
        let answers = Answers::of(transcript, &codes, layout);
        check_own_leaves(&answers, isa, layout);
        check_course_leaves(&answers, layout);
        if layout == Layout::Classic {
            check_vcpu_leaves(&answers, &codes);
        }
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

/// The only vCPU of a VM is told what its VM is told, but for what happens between two questions; and the parts of a
/// reason's cycles add up to them.
fn check_vcpu_leaves(answers: &Answers<'_>, codes: &Codes) {
    let pairs: Vec<[u64; 2]> = answers
        .own_leaves
        .iter()
        .map(|&[eax, ebx, ecx, edx]| {
            [(eax, ebx), (ecx, edx)].map(|(low, high)| u64::from(high) << 32 | u64::from(low))
        })
        .collect();
    let [
        first,
        [kernel, user],
        [polled, halted],
        vcpu,
        [vcpu_kernel, vcpu_user],
        [vcpu_polled, vcpu_halted],
        last,
        total,
        vcpu_total,
        total_after,
        undefined,
        vcpu_undefined,
        none @ ..,
    ] = pairs.as_slice()
    else {
        panic!("{pairs:?}")
    };
    let io = answers.counted(codes.io.into());
    let whole = [first[1], kernel + user + polled + halted, vcpu[1]];
    assert!(whole.is_sorted() && whole[2] <= io.cycles, "{pairs:?} {io:?}");
    let vcpus_whole = [vcpu[1], vcpu_kernel + vcpu_user + vcpu_polled + vcpu_halted, last[1], io.cycles];
    assert!(vcpus_whole.is_sorted(), "{pairs:?} {io:?}");
    // Each part is more the later it is asked for, and no more than the host has in the end.
    for part in [[*kernel, *vcpu_kernel, io.kernel], [*user, *vcpu_user, io.user]] {
        assert!(part[0] > 0 && part.is_sorted(), "{pairs:?} {io:?}");
    }
    assert_eq!([*polled, *vcpu_polled, *halted, *vcpu_halted], [0; 4]);
    assert!([first[0], vcpu[0], last[0], io.exits].is_sorted(), "{pairs:?} {io:?}");
    for figure in [0, 1] {
        let growing = [total[figure], vcpu_total[figure], total_after[figure]];
        assert!(growing[0] < growing[1] && growing[1] < growing[2], "{growing:?}");
    }
    assert_eq!([undefined, vcpu_undefined], [&[0; 2]; 2]);
    assert_eq!(none, [[u64::MAX; 2]; 5]);
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
