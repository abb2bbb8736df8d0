//! Whether every exit is counted, once: by the guests' own numbers, by the kernel's histogram, and as sums.

use exitscope_abi::reason::Isa;
use exitscope_guest::workload::Workload;
use exitscope_model::name;
use exitscope_model::selftest::{Check, Machine};
use exitscope_model::tally::Tally;
use exitscope_view::units::grouped;

use super::guest::{Counted, Work};
use super::witness::Exits;
use super::{Bench, Checks};

/// How often what the host may disturb is tried.
const ATTEMPTS: usize = 3;

/// What the source counted of a guest, and what to call the guest.
pub struct Count {
    /// The guest's workload.
    pub workload: Workload,
    /// What was counted.
    pub counted: Counted,
}

/// Runs each workload without and with so many iterations: the difference is exactly the iterations. Gives back all that
/// was counted.
pub fn check(bench: &Bench<'_>, iterations: u64, checks: &mut Checks) -> anyhow::Result<Vec<Count>> {
    let mut counts = Vec::new();
    for workload in Workload::on(bench.isa) {
        let name = format!("exact-{}", workload.name());
        if let Some(why) = left_out(workload, bench.machine) {
            checks.tell(Check::skip(name, why))?;
            continue;
        }
        // A page of the guest's that the host takes away meanwhile is a nested page fault more.
        let attempts = if workload == Workload::Mmio { ATTEMPTS } else { 1 };
        let mut found = Err(String::new());
        for _ in 0..attempts {
            let (_, frame) = bench.count(&Work::new(workload, 0))?;
            let (_, full) = bench.count(&Work::new(workload, iterations))?;
            found = judge(workload, bench.isa, &frame, &full, iterations);
            counts.extend([frame, full].map(|counted| Count { workload, counted }));
            if found.is_ok() {
                break;
            }
        }
        checks.tell(Check::of(name, found))?;
    }
    Ok(counts)
}

/// Why a workload cannot be counted here.
fn left_out(workload: Workload, machine: &Machine) -> Option<&'static str> {
    match workload {
        Workload::Mmio if machine.paging == "shadow" => Some(
            "with shadow paging MMIO is a page fault, as others are: only with nested paging it can be told",
        ),
        Workload::Nested if !super::machine::nested_guests() => {
            Some("KVM's nested virtualization is off (kvm_amd nested=0)")
        }
        _ => None,
    }
}

fn judge(
    workload: Workload,
    isa: Isa,
    frame: &Counted,
    full: &Counted,
    iterations: u64,
) -> Result<String, String> {
    let mut found = Vec::new();
    for &code in workload.exit_codes(isa) {
        let more = full.exits(code).wrapping_sub(frame.exits(code));
        let name = name(isa, code.into());
        if more != iterations {
            // Fewer than without any is a negative number.
            let counted = i64::try_from(more).map_or_else(|_| (more as i64).to_string(), |_| grouped(more));
            return Err(format!("{} iterations are {counted} exits {name}", grouped(iterations)));
        }
        found.push(format!("{} exits {name}", grouped(more)));
    }
    Ok(format!("{} iterations are {}", grouped(iterations), found.join(" and ")))
}

/// Compares every reason of every guest with the kernel's histogram.
pub fn witness(counts: &[Count], exits: &Exits, isa: Isa) -> Result<String, String> {
    let mut sum = 0;
    for Count { workload, counted } in counts {
        let thread = counted.thread;
        let seen: Vec<(u64, u64)> = exits
            .range((thread, 0)..=(thread, u64::MAX))
            .map(|(&(_, reason), &count)| (reason, count))
            .collect();
        let ours: Vec<(u64, u64)> =
            counted.reasons.iter().map(|(&code, tally)| (code, tally.exits)).collect();
        sum += ours.iter().map(|(_, exits)| exits).sum::<u64>();
        if ours == seen {
            continue;
        }
        let different = ours.iter().chain(&seen).find(|pair| !ours.contains(pair) || !seen.contains(pair));
        let code = different.map_or(0, |(code, _)| *code);
        let of = |all: &[(u64, u64)]| all.iter().find(|(other, _)| *other == code).map_or(0, |pair| pair.1);
        return Err(format!(
            "guest {}, {}: {} counted, {} in the kernel's histogram",
            workload.name(),
            name(isa, code),
            grouped(of(&ours)),
            grouped(of(&seen))
        ));
    }
    Ok(format!("the kernel's histogram has the same {} exits of {} guests", grouped(sum), counts.len()))
}

/// Whether sums are sums: no more exits are timed than came, and the parts of a time that are told apart are no more than
/// the whole (the kernel's is what they leave). A guest's last exit is untimed.
pub fn sums(counts: &[Count], isa: Isa) -> Result<String, String> {
    let (mut all, mut untimed) = (0, 0);
    for Count { workload, counted } in counts {
        for (&code, tally) in &counted.reasons {
            let wrong = |what: String| Err(format!("guest {}, {}: {what}", workload.name(), name(isa, code)));
            let Tally { exits, cycles, user, polled, halted, .. } = *tally;
            let timed = tally.timed();
            if timed > exits {
                return wrong(format!("{} exits, but {} are timed", grouped(exits), grouped(timed)));
            }
            let parts = [user, polled, halted];
            if parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(*part)).is_none_or(|sum| sum > cycles)
            {
                return wrong(format!(
                    "{} ticks, but {parts:?} in user space, polled and halted",
                    grouped(cycles)
                ));
            }
        }
        let total = counted.total();
        all += total.exits;
        untimed += total.exits - total.timed();
        // The last exit of a guest that has ended has no entry after it.
        if total.exits == total.timed() {
            return Err(format!("guest {}: its last exit has a duration", workload.name()));
        }
    }
    Ok(format!("{} exits, {} of them untimed; no parts exceed their whole", grouped(all), grouped(untimed)))
}

#[cfg(test)]
mod tests {
    use exitscope_abi::region::bucket;

    use super::*;

    /// A guest with so many exits of CPUID on SVM, one of them untimed.
    fn counted(exits: u64) -> Counted {
        let mut tally = Tally { exits, cycles: 1_000, user: 400, ..Tally::default() };
        tally.histogram[bucket(600)] = exits - 1;
        Counted { thread: 7, reasons: [(0x72, tally)].into() }
    }

    fn counts(exits: u64) -> [Count; 1] {
        [Count { workload: Workload::Cpuid, counted: counted(exits) }]
    }

    #[test]
    fn the_difference_is_the_iterations() {
        let judge = |full| judge(Workload::Cpuid, Isa::Svm, &counted(5), &counted(full), 10_000);
        assert_eq!(judge(10_005).unwrap(), "10,000 iterations are 10,000 exits CPUID");
        assert_eq!(judge(9_995).unwrap_err(), "10,000 iterations are 9,990 exits CPUID");
    }

    #[test]
    fn the_witness_is_compared_by_reason() {
        let exits = |count| Exits::from([((7, 0x72), count), ((8, 0x72), 99)]);
        assert!(witness(&counts(5), &exits(5), Isa::Svm).unwrap().contains("same 5 exits of 1 guests"));
        let wrong = witness(&counts(5), &exits(6), Isa::Svm).unwrap_err();
        assert_eq!(wrong, "guest cpuid, CPUID: 5 counted, 6 in the kernel's histogram");
        assert!(witness(&counts(5), &Exits::new(), Isa::Svm).is_err());
    }

    #[test]
    fn sums_that_are_none_are_found() {
        assert!(sums(&counts(5), Isa::Svm).is_ok());
        let broken = |change: fn(&mut Tally)| {
            let mut counts = counts(5);
            counts[0].counted.reasons.values_mut().for_each(change);
            sums(&counts, Isa::Svm).unwrap_err()
        };
        assert!(broken(|tally| tally.exits = 3).contains("4 are timed"));
        assert!(broken(|tally| tally.user = 1_001).contains("in user space"));
        assert!(broken(|tally| tally.exits = 4).contains("last exit"));
    }
}
