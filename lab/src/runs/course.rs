//! The course's experiments, as `exitscope lab course` repeats them: one machine of each vendor does them all.

use exitscope_abi::leaf::{Expose, Layout, Question};
use exitscope_abi::reason::{Isa, Reason};
use exitscope_caps::{Address, decode};
use exitscope_model::compare::Comparison;
use exitscope_model::{self as model, GuestView, Machine};
use exitscope_view::course::{
    Boot, Capabilities, CapsRegister, Control, Counts, Course, LayoutReading, Reading,
};

use crate::error::Error;
use crate::job::{Event, Guest, Output, Payload, Step};
use crate::progress::Progress;
use crate::runs::report::{self, GuestKind, Options, Source, Vmm, events_per_guest, run_and_snapshot};
use crate::runs::session::{Lab, Paging, Setup};

/// The leaves that the course's layouts use.
const LEAVES: std::ops::RangeInclusive<u32> = 0x4fff_fffc..=0x4fff_ffff;

/// Runs all experiments on the lab's machine and adds what they gave: a boot with nested paging, a guest for each layout
/// that reads all of its leaves, and the boot with shadow paging.
pub fn measure(lab: &Lab, course: &mut Course, progress: &mut Progress) -> Result<(), Error> {
    let setup = Setup { name: format!("course-{}", lab.vendor().name()), ..Setup::default() };
    let isa = lab.vendor().isa();
    let classic = options(&setup, Layout::Classic);
    let mut steps = vec![classic.start(), Step::Capabilities];
    steps.extend(run_and_snapshot(lab.vendor(), classic.guest(Paging::Nested)));
    for &layout in Layout::ALL {
        steps.push(Step::set("layout", layout.name()));
        steps.extend(run_and_snapshot(lab.vendor(), reader(isa, layout)));
    }
    steps.push(Step::set("layout", classic.layout.name()));
    steps.extend(lab.reload_kvm(Paging::Shadow));
    steps.extend(run_and_snapshot(lab.vendor(), classic.guest(Paging::Shadow)));
    let events = lab.run(&setup, steps, progress)?;

    if isa == Isa::Vmx {
        course.capabilities = events.iter().find_map(capabilities);
    }
    let mut guests = events_per_guest(&events);
    let mut next = || guests.next().ok_or(Error::NotReported { what: "one of its guests" });
    let nested = report::report(lab, &classic, Paging::Nested, next()?)?;
    for &layout in Layout::ALL {
        course.readings.push(reading(isa, layout, &nested.machine, next()?)?);
    }
    let shadow = report::report(lab, &classic, Paging::Shadow, next()?)?;
    let comparison = Comparison::new(&nested, &shadow).map_err(|_| Error::NotReported { what: "one CPU" })?;
    course.comparisons.push(comparison);
    course.boots.push(Boot {
        guest: "Linux with a small initramfs".into(),
        command: format!("exitscope lab run --vendor {}", lab.vendor().name()),
        report: nested,
    });
    Ok(())
}

/// Boots a whole distribution on the lab's machine and adds how its exits came.
pub fn measure_full_boot(lab: &Lab, course: &mut Course, progress: &mut Progress) -> Result<(), Error> {
    let setup = Setup { name: "course-debian".into(), ..Setup::default() };
    let options = Options { guest: GuestKind::Debian, vmm: Vmm::Qemu, ..options(&setup, Layout::Classic) };
    course.boots.push(Boot {
        guest: "a full Debian system".into(),
        command: "exitscope lab run --guest debian".into(),
        report: report::run(lab, &options, progress)?,
    });
    Ok(())
}

fn options(setup: &Setup, layout: Layout) -> Options {
    Options {
        setup: setup.clone(),
        source: Source::Module,
        guest: GuestKind::Linux,
        vmm: Vmm::Exitscope,
        vcpus: 1,
        layout,
        expose: Expose::Vm,
    }
}

/// A guest that reads everything that a layout has.
fn reader(isa: Isa, layout: Layout) -> Guest {
    let commands = rows(isa, layout).into_iter().flat_map(|row| [row.cpuid(), row.ours()]).collect();
    Guest {
        name: layout.name().into(),
        vcpus: 1,
        payload: Payload::Linux { commands },
        lingers: false,
        endless: false,
    }
}

/// A leaf to read.
struct Row {
    leaf: u32,
    subleaf: u32,
    question: Question,
}

/// All leaves of a layout; those that ask for a reason with one that is frequent, one that never happens and one that
/// the manual does not define.
fn rows(isa: Isa, layout: Layout) -> Vec<Row> {
    let mut rows = Vec::new();
    for leaf in LEAVES.rev() {
        let subleaves = match Question::parse(layout, leaf, 0) {
            Some(Question::CourseReasonExits(_) | Question::CourseReasonCycles(_)) => reasons(isa).to_vec(),
            _ => vec![0],
        };
        rows.extend(subleaves.into_iter().filter_map(|subleaf| {
            Some(Row { leaf, subleaf, question: Question::parse(layout, leaf, subleaf)? })
        }));
    }
    rows
}

/// A frequent reason, one that KVM never lets happen (GETSEC, task switch), and the first number between others that
/// is none.
fn reasons(isa: Isa) -> [u32; 3] {
    let never = match isa {
        Isa::Vmx => "GETSEC",
        Isa::Svm => "TASK_SWITCH",
    };
    let code = |name| isa.by_name(name).map_or(0, |reason: &Reason| reason.code);
    let undefined = (0..).find(|&code| isa.reason(code).is_none()).unwrap_or(u32::MAX);
    [code("CPUID"), code(never), undefined]
}

impl Row {
    /// Debian's `cpuid`, which reads it.
    fn cpuid(&self) -> Vec<String> {
        let (leaf, subleaf) = (format!("{:#x}", self.leaf), self.subleaf.to_string());
        ["/usr/bin/cpuid", "-1", "-r", "-l", &leaf, "-s", &subleaf].map(str::to_owned).to_vec()
    }

    /// Our own reader, which asks the same.
    fn ours(&self) -> Vec<String> {
        let mut command = vec!["/init".to_owned(), "guest".into(), "--course".into(), "--json".into()];
        if self.asks_reason() {
            command.push(self.subleaf.to_string());
        }
        command
    }

    fn asks_reason(&self) -> bool {
        matches!(self.question, Question::CourseReasonExits(_) | Question::CourseReasonCycles(_))
    }

    /// What both said.
    fn reading(&self, cpuid: &Output, ours: &Output) -> Option<Reading> {
        let told = if ours.status != Some(0) {
            Counts::default()
        } else if self.asks_reason() {
            let reason: model::Reason = serde_json::from_str(&ours.stdout).ok()?;
            Counts { exits: Some(reason.exits), cycles: Some(reason.cycles) }
        } else {
            let view: GuestView = serde_json::from_str(&ours.stdout).ok()?;
            Counts { exits: Some(view.total.exits), cycles: Some(view.total.cycles) }
        };
        let registers = registers(&cpuid.stdout)?;
        Some(Reading { leaf: self.leaf, subleaf: self.subleaf, registers, exitscope: told })
    }
}

/// EAX, EBX, ECX, EDX in what `cpuid -r` prints: `0x4fffffff 0x00: eax=0x… ebx=0x… ecx=0x… edx=0x…`.
pub fn registers(text: &str) -> Option<[u32; 4]> {
    let line = text.lines().find(|line| line.contains("eax=0x"))?;
    let mut registers = [0; 4];
    for (register, name) in registers.iter_mut().zip(["eax=0x", "ebx=0x", "ecx=0x", "edx=0x"]) {
        let (_, value) = line.split_once(name)?;
        *register = u32::from_str_radix(value.split_whitespace().next()?, 16).ok()?;
    }
    Some(registers)
}

fn reading(isa: Isa, layout: Layout, machine: &Machine, account: &[Event]) -> Result<LayoutReading, Error> {
    let outputs = account.iter().find_map(|event| match event {
        Event::Guest { outputs, .. } => Some(outputs.as_slice()),
        _ => None,
    });
    let pairs = outputs.unwrap_or_default().chunks_exact(2);
    let rows = rows(isa, layout);
    let read: Option<Vec<Reading>> = (rows.len() == pairs.len())
        .then(|| rows.iter().zip(pairs).map(|(row, pair)| row.reading(&pair[0], &pair[1])).collect())
        .flatten();
    let rows = read.ok_or(Error::NotReported { what: "what the guest read from the course's leaves" })?;
    Ok(LayoutReading { machine: machine.clone(), layout: layout.name().into(), rows })
}

/// The capability MSRs with their controls.
fn capabilities(event: &Event) -> Option<Capabilities> {
    let Event::Capabilities { name, cpus, .. } = event else { return None };
    let decoded = decode::decode_cpu(cpus.first()?);
    let registers = decoded.registers.iter().filter_map(register).collect();
    Some(Capabilities { cpu: format!("{name}, emulated by Bochs"), registers })
}

fn register(reading: &decode::Reading) -> Option<CapsRegister> {
    let (Address::Msr(address), Some(raw)) = (reading.address, reading.raw) else { return None };
    // What has a more exact form is shown in that form; bits without a meaning are not shown.
    let shown = reading.superseded_by.is_none();
    let named = reading.fields.iter().filter(|field| shown && field.name != decode::RESERVED);
    let controls = named.filter_map(|field| {
        let decode::Setting { can_be_0, can_be_1, .. } = field.setting?;
        Some(Control { bit: field.bits.low.into(), name: field.name.into(), can_be_0, can_be_1 })
    });
    Some(CapsRegister { address, name: reading.name.into(), raw: raw.value, controls: controls.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_is_read_in_full() {
        let leaves = |layout| rows(Isa::Vmx, layout).iter().map(|row| row.leaf & 0xf).collect::<Vec<_>>();
        assert_eq!(leaves(Layout::Classic), [0xf, 0xe, 0xd, 0xd, 0xd, 0xc, 0xc, 0xc]);
        assert_eq!(leaves(Layout::Reordered), [0xf, 0xf, 0xf, 0xe, 0xe, 0xe, 0xd, 0xc]);
        assert_eq!(leaves(Layout::Combined), [0xf, 0xe, 0xe, 0xe]);
        assert_eq!(reasons(Isa::Vmx), [10, 11, 35]);
        assert!(reasons(Isa::Svm).iter().all(|code| *code != 0));
    }

    #[test]
    fn registers_are_read() {
        let text = "CPU:\n   0x4fffffff 0x00: eax=0x0000022a ebx=0x00000001 ecx=0xffffffff edx=0x00000000\n";
        assert_eq!(registers(text), Some([0x22a, 1, u32::MAX, 0]));
        assert_eq!(registers("eax=0x12 ebx=0x"), None);
        assert_eq!(registers(""), None);
    }
}
