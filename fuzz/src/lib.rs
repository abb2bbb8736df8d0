//! What the fuzzers try: every function takes any bytes, and panics only where the project is wrong.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use exitscope_abi::leaf::{
    Discovery, Expose, Figures, Layout, Question, Reasons, Registers, Scope, may_be_ours,
};
use exitscope_abi::reason::Isa;
use exitscope_abi::region::{Counters, MAGIC, VERSION};
use exitscope_caps::check::{Answer, Finding, check};
use exitscope_caps::common::common;
use exitscope_caps::decode::decode;
use exitscope_caps::setting::setting;
use exitscope_caps::tables::{REGISTERS, Register, find};
use exitscope_caps::{dump, summary};
use exitscope_core::btf::{Types, split};
use exitscope_core::{Accounts, Setting, Sum, answer};
use exitscope_host::region::Region;
use exitscope_lab::frame;
use exitscope_model as model;
use exitscope_model::interval::Interval;
use exitscope_view::caps::{self as view, Forms};
use rustix::fs::{MemfdFlags, memfd_create};

/// A target: its name, which is that of its corpus, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 5] =
    [("leaf", leaf), ("caps", caps), ("frame", frame), ("region", region), ("btf", btf)];

/// Takes numbers off the front of bytes; zeroes follow where these end.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_at(self.0.len().min(N));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }
}

/// Counters that say the same for every scope.
struct Seen(Sum);

impl Accounts for Seen {
    fn sum(&self, _: Scope, _: Reasons) -> Sum {
        self.0
    }
}

/// The leaf protocol: a setting, a leaf, a sub-leaf, the figures to answer with, and an answer from elsewhere.
///
/// # Panics
/// When a question is not at its own address, an answer is not read as it was given, or a policy is not kept.
pub fn leaf(bytes: &[u8]) {
    let mut numbers = Numbers(bytes);
    let layout = numbers.one_of(Layout::ALL);
    let expose = numbers.one_of(Expose::ALL);
    let isa = numbers.one_of(&Isa::ALL);
    let (leaf, sub_leaf) = (numbers.word(), numbers.word());
    let counters = Counters::default();
    let Counters { exits, cycles, min, max, user, polled, halted, .. } = &counters;
    for counter in [exits, cycles, min, max, user, polled, halted] {
        counter.store(numbers.long(), std::sync::atomic::Ordering::Relaxed);
    }
    let mut sum = Sum::default();
    sum.add(&counters);

    let question = Question::parse(layout, leaf, sub_leaf);
    let told = answer(Setting { expose, layout, isa }, leaf, sub_leaf, &Seen(sum));
    assert_eq!(told.is_some(), question.is_some() && expose != Expose::Off);
    if let Some(question) = question {
        assert!(may_be_ours(leaf));
        let (same_leaf, same_sub_leaf) = question.address(layout).expect("a question of this layout");
        assert_eq!(Question::parse(layout, same_leaf, same_sub_leaf), Some(question));
        if let Some(told) = told {
            as_told(question, told, sum.figures(), isa);
        }
    }

    // Whatever else answers: it is not ours, or says what we would have said.
    let [eax, ebx, ecx, edx] = [numbers.word(), numbers.word(), numbers.word(), numbers.word()];
    let stranger = Registers { eax, ebx, ecx, edx };
    if let Some(discovery) = Discovery::decode(stranger) {
        assert_eq!(Discovery::decode(discovery.encode()), Some(discovery));
    }
    if let Some(figures) = question.and_then(|question| question.decode(stranger)) {
        let again = question.and_then(|question| question.decode(question.encode(figures)));
        assert!(again.is_none_or(|again| again == figures));
    }
}

/// An answer is read as it was given.
fn as_told(question: Question, told: Registers, figures: Figures, isa: Isa) {
    match question.reasons() {
        Reasons::None => assert!(Discovery::decode(told).is_some_and(|discovery| discovery.isa == isa)),
        Reasons::One(code) if isa.dense(code).is_none() => assert_eq!(question.decode(told), None),
        _ => {
            let read = question.decode(told);
            // Four full registers are both the largest figures and the mark of an undefined reason.
            assert!(read.is_some() || told == question.encode_undefined());
            if let Some(read) = read {
                assert_eq!(question.encode(read), question.encode(figures));
            }
        }
    }
}

/// A dump of capability registers, of whatever form: what is read of it is shown, and is the same when it is read from
/// our own JSON; what its CPUs have in common is there on each of them, and is the same when it is read as a list.
///
/// # Panics
/// When it is not.
pub fn caps(bytes: &[u8]) {
    let read = dump::parse(bytes);
    for form in [Forms::Taken, Forms::Both] {
        let _ = (view::full(&read.cpus, form), view::course(&read.cpus, form));
    }
    for cpu in &read.cpus {
        let _ = (Isa::ALL.map(|isa| summary::summary(cpu, isa)), summary::features(cpu).count());
    }
    let json = serde_json::to_vec(&decode(&read.cpus)).expect("a document");
    let again = dump::parse(&json);
    let sorted = |mut cpus: Vec<exitscope_caps::Cpu>| {
        cpus.iter_mut().for_each(|cpu| cpu.registers.sort());
        cpus
    };
    assert_eq!(sorted(again.cpus), sorted(read.cpus.clone()));

    let shared = common(read.cpus.iter().take(8)).cpu;
    let list = dump::parse(view::list(&shared, "all").as_bytes());
    assert_eq!(list.cpus, if shared.registers.is_empty() { vec![] } else { vec![shared.clone()] });
    for cpu in read.cpus.iter().take(8) {
        let answer = check(std::slice::from_ref(&shared), std::slice::from_ref(cpu));
        let findings = answer.pairs.iter().flat_map(|pair| &pair.findings);
        let mut bits = findings.filter(|finding| finding.answer == Answer::No && finding.bits.is_some());
        let firmware = |finding: &&Finding| find(finding.address).is_some_and(Register::is_switch);
        assert_eq!(bits.find(|finding| !firmware(finding)), None);
        let _ = view::check(&answer, "all", "one");
        for register in REGISTERS {
            let _ = setting(register.address, 0x8401_E172, Some(cpu)).map(|told| view::setting(&told, "one"));
        }
    }
}

/// Lines of Bochs' log; and the same bytes as a line that is sent through it.
///
/// # Panics
/// When that line does not come through.
pub fn frame(bytes: &[u8]) {
    let mut decoder = frame::Decoder::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        let _ = decoder.push(line);
    }
    let _ = (decoder.panic(), decoder.has_shut_down());

    let line: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'\n').collect();
    let mut decoder = frame::Decoder::default();
    let messages = frame::encode(&line);
    let logged = messages.split(|byte| *byte == b'\n').filter(|message| !message.is_empty());
    let lines: Vec<_> =
        logged.filter_map(|message| decoder.push(&[b"00000000001i[BIOS  ] ", message].concat())).collect();
    assert_eq!(lines, if line.is_empty() { vec![] } else { vec![line] });
}

/// A region of counters with anything in it, behind a header that says that it is one.
///
/// # Panics
/// When a snapshot contradicts itself.
pub fn region(bytes: &[u8]) {
    let copy = File::from(memfd_create("region", MemfdFlags::CLOEXEC).expect("a file in memory"));
    let header = [&MAGIC.to_le_bytes()[..], &VERSION.to_le_bytes()].concat();
    (&copy).write_all(&header).and_then(|()| (&copy).write_all(bytes)).expect("room in memory");
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    let Ok(region) = Region::open(Path::new(&path)) else {
        assert!(header.len() + bytes.len() < exitscope_abi::region::CELL_SIZE);
        return;
    };
    let _ = (region.exits(), region.fields());
    for snapshot in [region.snapshot(), region.since_reset()] {
        let vms = snapshot.vms();
        for vcpu in vms.iter().flat_map(|vm| &vm.vcpus) {
            assert_eq!(vcpu.total, model::total(&vcpu.reasons));
            assert!(vcpu.reasons.iter().all(|reason| reason.exits > 0 && reason.untimed <= reason.exits));
        }
        let _ = model::merge(vms.iter().flat_map(|vm| &vm.vcpus).flat_map(|vcpu| &vcpu.reasons));
        serde_json::to_vec(&vms).expect("a document");
        assert_eq!(Interval::between(&snapshot, &snapshot).accounts.exits(), 0);
        let _ = Interval::between(&region.since_reset(), &snapshot);
    }
}

/// What a kernel and its module say of their structures, and a question about that: the lengths of the first and of the
/// question in 16 bits each, then the three.
///
/// # Panics
/// When the same question has two answers.
pub fn btf(bytes: &[u8]) {
    let mut numbers = Numbers(bytes);
    let [kernel, question] = [(); 2].map(|()| usize::from(u16::from_le_bytes(numbers.take())));
    let (kernel, rest) = numbers.0.split_at(kernel.min(numbers.0.len()));
    let (question, module) = rest.split_at(question.min(rest.len()));
    let Some(types) = Types::read(kernel, module) else { return };
    let Ok(question) = std::str::from_utf8(question) else { return };
    let place = types.place(question);
    if let Some((name, steps)) = split(question) {
        assert_eq!(types.place_in(&types.root(name), steps), place);
    }
}
