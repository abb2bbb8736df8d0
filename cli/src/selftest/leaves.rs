//! Whether a guest reads its own exits through CPUID, in the layout and under the policy that are set.

use std::fs;

use anyhow::Context;
use exitscope_abi::leaf::{self, Discovery, Expose, Figures, LAST_OWN, Layout, Question, Registers};
use exitscope_abi::reason::Isa;
use exitscope_guest::workload::{LEAVES, Workload, leaf_answers};
use exitscope_model::selftest::Check;
use exitscope_view::units::grouped;

use super::guest::{Counted, Work};
use super::{Bench, Checks};

/// Exits of a question and of the report of its answer: a CPUID, and four words to a port.
const EXITS_PER_LEAF: u64 = 5;

/// What a guest was told, and what is known about it.
struct View {
    isa: Isa,
    layout: Layout,
    expose: Expose,
    answers: Vec<Registers>,
    counted: Counted,
    /// Exits of all VMs when the guest had ended.
    of_host: u64,
}

/// Has a guest read all leaves.
pub fn check(bench: &Bench<'_>, checks: &mut Checks) -> anyhow::Result<()> {
    let (ended, counted) = bench.count(&Work::new(Workload::Leaves, 0))?;
    let view = View {
        isa: bench.isa,
        layout: Layout::from_name(&parameter("layout")?).context("the module has an unknown layout")?,
        expose: Expose::from_name(&parameter("expose")?).context("the module has an unknown policy")?,
        answers: leaf_answers(&ended.reports),
        counted,
        of_host: bench.source.snapshot().accounts.exits(),
    };
    if view.answers.len() != LEAVES {
        let why = format!("{} answers of {LEAVES} were reported", view.answers.len());
        return checks.tell(Check::of("leaf-discovery", Err(why)));
    }
    if view.expose == Expose::Off {
        checks.tell(Check::of("leaf-off", view.not_answered()))?;
        for name in ["leaf-total", "leaf-vcpu", "leaf-course"] {
            checks
                .tell(Check::skip(name, "the policy is off (parameter expose): guests are told nothing"))?;
        }
        return Ok(());
    }
    checks.tell(Check::of("leaf-discovery", view.discovery()))?;
    checks.tell(Check::of("leaf-total", view.totals()))?;
    checks.tell(Check::of("leaf-vcpu", view.vcpu()))?;
    checks.tell(Check::of("leaf-course", view.course()))
}

impl View {
    /// The figures that an answer tells, and how many leaves were asked until then, that one included.
    fn ask(&self, question: Question) -> Result<(Figures, u64), String> {
        let (leaf, _) = question.address(self.layout).ok_or("the layout has no such leaf")?;
        let index = leaf.wrapping_sub(leaf::DISCOVERY) as usize;
        let answer = self.answers.get(index).ok_or("a leaf was not asked")?;
        let figures = question.decode(*answer).ok_or_else(|| format!("{leaf:#x} knows no CPUID"))?;
        Ok((figures, index as u64 + 1))
    }

    fn discovery(&self) -> Result<String, String> {
        let expected =
            Discovery { version: leaf::VERSION, layout: self.layout, isa: self.isa, expose: self.expose };
        match Discovery::decode(self.answers[0]) {
            Some(found) if found == expected => Ok(format!(
                "version {}, layout {}, policy {}",
                found.version,
                found.layout.name(),
                found.expose.name()
            )),
            Some(found) => Err(format!("the guest reads {found:?}, the module is set to {expected:?}")),
            None => Err(format!(
                "the guest is not answered, though the policy is {}: {:x?}",
                self.expose.name(),
                self.answers[0]
            )),
        }
    }

    /// Exits that came when they liked: of neither CPUID nor a port.
    fn others(&self) -> u64 {
        let known = self.counted.exits(self.isa.cpuid())
            + Workload::Pio.exit_codes(self.isa).iter().map(|&code| self.counted.exits(code)).sum::<u64>();
        self.counted.total().exits.saturating_sub(known)
    }

    /// Whether a total is what it must be after so many leaves, but for exits that came when they liked.
    fn is_total(&self, exits: u64, asked: u64, host: bool) -> Result<(), String> {
        let least = (asked - 1) * EXITS_PER_LEAF + 1;
        let most = if host { self.of_host } else { least + self.others() };
        match (least..=most).contains(&exits) {
            true => Ok(()),
            false => Err(format!("{} exits are told, {least} to {most} were counted", grouped(exits))),
        }
    }

    /// Whether a number of CPUIDs is that of the leaves asked.
    fn is_cpuids(&self, exits: u64, asked: u64, host: bool) -> Result<(), String> {
        let right = if host { (asked..=self.of_host).contains(&exits) } else { exits == asked };
        let wrong = || format!("{} exits CPUID are told, {asked} were made", grouped(exits));
        right.then_some(()).ok_or_else(wrong)
    }

    fn totals(&self) -> Result<String, String> {
        let host = self.expose == Expose::Host;
        let (total, asked) = self.ask(Question::Total)?;
        self.is_total(total.exits, asked, host)?;
        let (cpuid, asked) = self.ask(Question::Reason(self.isa.cpuid()))?;
        self.is_cpuids(cpuid.exits, asked, host)?;
        Ok(format!("{} exits, {} of them CPUID, as counted", grouped(total.exits), grouped(cpuid.exits)))
    }

    fn vcpu(&self) -> Result<String, String> {
        let (total, asked) = self.ask(Question::VcpuTotal)?;
        self.is_total(total.exits, asked, false)?;
        let (cpuid, asked) = self.ask(Question::VcpuReason(self.isa.cpuid()))?;
        self.is_cpuids(cpuid.exits, asked, false)?;
        Ok(format!("{} exits, {} of them CPUID, as counted", grouped(total.exits), grouped(cpuid.exits)))
    }

    fn course(&self) -> Result<String, String> {
        let host = self.expose == Expose::Host;
        let (cpuid, asked) = self.ask(Question::CourseReasonExits(self.isa.cpuid()))?;
        let question =
            if self.layout == Layout::Combined { Question::CourseBoth } else { Question::CourseExits };
        let (total, asked_total) = self.ask(question)?;
        // A course leaf has 32 bits; of a host's totals they prove nothing.
        if !host {
            self.is_cpuids(cpuid.exits, asked, false)?;
            self.is_total(total.exits, asked_total, false)?;
        }
        Ok(format!(
            "{} exits, {} of them CPUID, in layout {}",
            grouped(total.exits),
            grouped(cpuid.exits),
            self.layout.name()
        ))
    }

    /// Under the policy `off` leaves answer as on a kernel without the module: all the same.
    fn not_answered(&self) -> Result<String, String> {
        let first = self.answers[0];
        match self.answers.iter().position(|answer| *answer != first) {
            None if Discovery::decode(first).is_none() => {
                Ok("the policy is off, and no leaf is answered".into())
            }
            None => Err(format!("the policy is off, but the discovery leaf is answered: {first:x?}")),
            Some(index) => Err(format!(
                "the policy is off, but leaf {:#x} is answered: {:x?}",
                leaf::DISCOVERY + index as u32,
                self.answers[index]
            )),
        }
    }
}

/// The value of one of the module's parameters.
fn parameter(name: &str) -> anyhow::Result<String> {
    let path = format!("/sys/module/exitscope/parameters/{name}");
    let value = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(value.trim_end().to_owned())
}

const _: () = assert!(LAST_OWN < leaf::DISCOVERY + LEAVES as u32);

#[cfg(test)]
mod tests {
    use exitscope_model::tally::Tally;

    use super::*;

    const CPUID: u32 = 0x72;

    /// What a guest reads when all is right.
    fn view(layout: Layout) -> View {
        let answer = |index: u32| {
            let Some(question) = Question::parse(layout, leaf::DISCOVERY + index, CPUID) else {
                return Registers::default();
            };
            if question == Question::Discovery {
                let version = leaf::VERSION;
                return Discovery { version, layout, isa: Isa::Svm, expose: Expose::Vm }.encode();
            }
            let asked = u64::from(index) + 1;
            let exits = match question.reasons() {
                leaf::Reasons::All => (asked - 1) * EXITS_PER_LEAF + 1,
                _ => asked,
            };
            question.encode(Figures { exits, ..Figures::default() })
        };
        let exits = |exits| Tally { exits, ..Tally::default() };
        let counted =
            Counted { thread: 1, reasons: [(0x72, exits(16)), (0x7b, exits(66)), (0x60, exits(2))].into() };
        let answers = (0..LEAVES as u32).map(answer).collect();
        View { isa: Isa::Svm, layout, expose: Expose::Vm, answers, counted, of_host: 1_000 }
    }

    #[test]
    fn right_answers_pass_in_every_layout() {
        for &layout in Layout::ALL {
            let view = view(layout);
            assert!(view.discovery().is_ok());
            assert_eq!(view.totals().unwrap(), "6 exits, 3 of them CPUID, as counted");
            assert_eq!(view.vcpu().unwrap(), "26 exits, 7 of them CPUID, as counted");
            assert!(view.course().unwrap().contains(layout.name()));
            assert!(view.not_answered().is_err());
        }
    }

    #[test]
    fn wrong_answers_fail() {
        let broken = |index: usize| {
            let mut view = view(Layout::Classic);
            view.answers[index].eax += 9;
            view
        };
        assert!(broken(0).discovery().is_err());
        assert!(broken(1).totals().is_err() && broken(2).totals().is_err());
        assert!(broken(5).vcpu().is_err() && broken(6).vcpu().is_err());
        assert!(broken(13).course().is_err() && broken(15).course().is_err());
    }

    #[test]
    fn nothing_is_answered_when_the_policy_is_off() {
        let mut view = view(Layout::Classic);
        view.answers = vec![Registers { eax: 7, ..Registers::default() }; LEAVES];
        assert!(view.not_answered().is_ok() && view.discovery().is_err());
        view.answers[3].ebx = 1;
        assert!(view.not_answered().unwrap_err().contains("0x4ffffff3"));
    }
}
