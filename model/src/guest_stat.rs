//! What a guest's command caused, from what the leaves said before and after: JSON schema `exitscope-guest-stat/1`.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use exitscope_abi::leaf::Figures;
use exitscope_abi::reason::Isa;
use serde::Serialize;

use crate::document::Parts;
use crate::name;
use crate::snapshot::Clock;

/// The schema's name and version.
pub const SCHEMA: &str = "exitscope-guest-stat/1";

/// What the leaves said of every reason, CPUID's own first.
#[derive(Clone, Debug)]
pub struct Reading {
    isa: Isa,
    /// Questions after the one for CPUID's exits: each caused one.
    rest: u64,
    accounts: BTreeMap<u32, Account>,
    /// Of all codes that no manual defines; their parts are not known.
    undefined: Account,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    exits: u64,
    cycles: u64,
    parts: Parts,
}

impl Reading {
    /// Before the first question.
    pub fn new(isa: Isa) -> Self {
        // The first question counts itself, and is not one after it.
        Self { isa, rest: 0_u64.wrapping_sub(1), accounts: BTreeMap::new(), undefined: Account::default() }
    }

    /// So many questions have been asked.
    pub fn asked(&mut self, questions: u64) {
        self.rest = self.rest.wrapping_add(questions);
    }

    /// The figures of a reason and the parts of its cycles.
    pub fn add(&mut self, code: u32, figures: Figures, parts: Figures) {
        let Figures { exits, cycles, .. } = figures;
        let Figures { kernel, user, polled, halted, .. } = parts;
        self.accounts.insert(code, Account { exits, cycles, parts: Parts { kernel, user, polled, halted } });
    }

    /// The figures of all codes that no manual defines.
    pub fn add_undefined(&mut self, Figures { exits, cycles, .. }: Figures) {
        self.undefined = Account { exits, cycles, parts: Parts::default() };
    }

    /// Whether it is not what goes on from an earlier one: then some account has less.
    pub fn has_begun_anew(&self, earlier: &Self) -> bool {
        earlier.accounts.iter().any(|(code, before)| {
            self.accounts.get(code).is_none_or(|now| now.exits < before.exits || now.cycles < before.cycles)
        })
    }

    /// Ticks that one question costs, by a reading right before this one.
    pub fn cost_of_reading(&self, before: &Self) -> u64 {
        let code = self.isa.cpuid();
        let cycles = |reading: &Self| reading.accounts.get(&code).map_or(0, |account| account.cycles);
        cycles(self).saturating_sub(cycles(before)).checked_div(before.questions()).unwrap_or(0)
    }

    /// Questions from the one for CPUID's exits on, until that of the next reading, which counts itself.
    fn questions(&self) -> u64 {
        self.rest.saturating_add(1)
    }
}

/// What a command caused.
#[derive(Clone, Debug, Serialize)]
pub struct GuestStat {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// `vmx` or `svm`.
    pub isa: &'static str,
    /// How long it took.
    pub seconds: f64,
    /// The CPU that it was kept on; none where it could run on any.
    pub cpu: Option<u32>,
    /// Whether the numbers are of all VMs of the host, as the host's policy tells the guest of them.
    pub whole_host: bool,
    /// Ticks of the guest's clock in a ms, which the host's are taken to be.
    pub clock_khz: u32,
    /// Exits.
    pub exits: u64,
    /// Time of all exits in ns, by part.
    pub ns: Parts,
    /// Of that, time in the kernel and in the VMM in percent of the time that the command took, of one CPU.
    pub percent_of_time: f64,
    /// Per reason, dearest first.
    pub reasons: Vec<Reason>,
    /// CPUID exits that the reading itself caused; they are taken away.
    pub own_exits: u64,
    /// Interrupts that the guest's kernel took on this CPU meanwhile.
    pub interrupts: Option<u64>,
    /// Its context switches meanwhile, on all CPUs.
    pub context_switches: Option<u64>,
}

/// A reason's part in it.
#[derive(Clone, Debug, Serialize)]
pub struct Reason {
    /// Its code; none for all that no manual defines.
    pub code: Option<u32>,
    /// Its name.
    pub name: Cow<'static, str>,
    /// Exits.
    pub exits: u64,
    /// Their time in ns, by part, where the leaves tell it.
    pub ns: Option<Parts>,
    /// Mean time of an exit in ns.
    pub mean_ns: Option<u64>,
}

impl GuestStat {
    /// What came between two readings, `wall_ns` apart on a clock of `khz`, of which a question costs `cost` ticks.
    pub fn between(earlier: &Reading, later: &Reading, wall_ns: u64, khz: u32, cost: u64) -> Self {
        let clock = Clock { khz };
        let own = earlier.questions();
        let mut reasons: Vec<Reason> = later
            .accounts
            .iter()
            .filter_map(|(&code, now)| {
                let before = earlier.accounts.get(&code).copied().unwrap_or_default();
                let mut account = now.since(&before);
                if code == later.isa.cpuid() {
                    account.take_away(own, own.saturating_mul(cost));
                }
                // Time may have ended of an exit that came before. What is left of CPUID's is the reading's own, whose
                // cost is an estimate.
                let some = account.exits > 0 || account.cycles > 0 && code != later.isa.cpuid();
                some.then(|| account.reason(later.isa, code, clock))
            })
            .collect();
        let undefined = later.undefined.since(&earlier.undefined);
        if undefined.exits > 0 {
            reasons.push(Reason {
                code: None,
                name: "UNDEFINED".into(),
                ns: None,
                ..undefined.reason(later.isa, later.isa.cpuid(), clock)
            });
        }
        reasons.sort_by_key(|reason| {
            let ns = reason.ns.unwrap_or_default();
            (Reverse(ns.kernel + ns.user), Reverse(reason.exits), reason.code)
        });
        let sum = |part: fn(&Parts) -> u64| {
            reasons.iter().filter_map(|reason| reason.ns.as_ref().map(part)).sum::<u64>()
        };
        let ns = Parts {
            kernel: sum(|ns| ns.kernel),
            user: sum(|ns| ns.user),
            polled: sum(|ns| ns.polled),
            halted: sum(|ns| ns.halted),
        };
        let cost = ns.kernel + ns.user;
        Self {
            schema: SCHEMA,
            isa: later.isa.name(),
            seconds: wall_ns as f64 / 1e9,
            cpu: None,
            whole_host: false,
            clock_khz: khz,
            exits: reasons.iter().map(|reason| reason.exits).sum(),
            ns,
            percent_of_time: if wall_ns == 0 { 0.0 } else { 100.0 * cost as f64 / wall_ns as f64 },
            reasons,
            own_exits: own,
            interrupts: None,
            context_switches: None,
        }
    }
}

impl Account {
    fn since(&self, before: &Self) -> Self {
        let less = |of: fn(&Self) -> u64| of(self).saturating_sub(of(before));
        Self {
            exits: less(|account| account.exits),
            cycles: less(|account| account.cycles),
            parts: Parts {
                kernel: less(|account| account.parts.kernel),
                user: less(|account| account.parts.user),
                polled: less(|account| account.parts.polled),
                halted: less(|account| account.parts.halted),
            },
        }
    }

    /// Takes away exits that were the reading's own, which are all kernel time.
    fn take_away(&mut self, exits: u64, cycles: u64) {
        self.exits = self.exits.saturating_sub(exits);
        self.cycles = self.cycles.saturating_sub(cycles);
        self.parts.kernel = self.parts.kernel.saturating_sub(cycles);
    }

    fn reason(&self, isa: Isa, code: u32, clock: Clock) -> Reason {
        Reason {
            code: Some(code),
            name: name(isa, code.into()),
            exits: self.exits,
            ns: Some(self.parts.ns(clock).unwrap_or_default()),
            mean_ns: self.cycles.checked_div(self.exits).and_then(|ticks| clock.ns(ticks)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading that asks for CPUID and for one other reason, with the parts of both: six questions.
    fn reading(cpuid: u64, hlt: u64) -> Reading {
        let mut reading = Reading::new(Isa::Svm);
        for (code, exits, halted) in [(0x72, cpuid, 0), (0x78, hlt, 1_000 * hlt)] {
            let figures = Figures { exits, cycles: 100 * exits + halted, ..Figures::default() };
            reading.asked(1);
            reading.add(code, figures, Figures { kernel: 100 * exits, halted, ..Figures::default() });
            reading.asked(2);
        }
        reading
    }

    #[test]
    fn the_readings_own_exits_are_taken_away() {
        // After the first question five more follow; the next reading's first counts itself.
        let (first, second) = (reading(1, 0), reading(7, 0));
        assert_eq!(second.cost_of_reading(&first), 100);
        let stat = GuestStat::between(&first, &second, 1_000, 1_000_000, 100);
        assert_eq!((stat.exits, stat.own_exits), (0, 6));
        // Nor is there a row of what the estimate of their cost has left over.
        let cheaper = GuestStat::between(&first, &second, 1_000, 1_000_000, 90);
        assert!(cheaper.reasons.is_empty(), "{:?}", cheaper.reasons);
    }

    #[test]
    fn what_the_command_caused_stays() {
        let stat = GuestStat::between(&reading(7, 1), &reading(7 + 6 + 50, 3), 20_000, 1_000_000, 100);
        let exits: Vec<(&str, u64)> =
            stat.reasons.iter().map(|reason| (&*reason.name, reason.exits)).collect();
        assert_eq!(exits, [("CPUID", 50), ("HLT", 2)]);
        assert_eq!((stat.ns.kernel, stat.ns.halted, stat.percent_of_time), (5_200, 2_000, 26.0));
        assert_eq!(stat.reasons[1].mean_ns, Some(1_100));
    }

    #[test]
    fn nothing_that_came_is_left_out() {
        let (before, mut after) = (reading(7, 1), reading(7 + 6, 1));
        let figures = Figures { exits: 1, cycles: 1_500, ..Figures::default() };
        after.add(0x78, figures, Figures { kernel: 100, halted: 1_400, ..Figures::default() });
        after.add_undefined(Figures { exits: 2, cycles: 300, ..Figures::default() });
        let stat = GuestStat::between(&before, &after, 20_000, 1_000_000, 100);
        let told: Vec<_> =
            stat.reasons.iter().map(|reason| (&*reason.name, reason.exits, reason.ns.is_some())).collect();
        assert_eq!(told, [("UNDEFINED", 2, false), ("HLT", 0, true)]);
        assert!(before.has_begun_anew(&after) && !after.has_begun_anew(&before));
    }
}
