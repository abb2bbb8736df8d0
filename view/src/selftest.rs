//! A self-test for a person: a line per check, then what watching costs.

use exitscope_model::selftest::{Check, Cost, Machine, Selftest, Verdict};

use crate::text::Table;
use crate::units::grouped;

/// The line above all checks: where they are made.
pub fn heading(machine: &Machine) -> String {
    let Machine { cpu, kernel, nested, paging, tsc_khz, emulator, .. } = machine;
    let mut line = format!("{cpu}, Linux {kernel}");
    if !paging.is_empty() {
        line += &format!(", {paging} paging");
    }
    if *nested {
        line += ", itself a guest";
    }
    if *tsc_khz > 0 {
        line += &format!(", clock {}.{:03} MHz", grouped(u64::from(tsc_khz / 1000)), tsc_khz % 1000);
    }
    if !emulator.is_empty() {
        line += &format!("; *emulated* ({emulator}): times compare with each other only");
    }
    line + "\n"
}

/// The line of a check.
pub fn check(check: &Check) -> String {
    format!("{}  {:<16}  {}\n", check.result.name(), check.name, check.why)
}

/// What comes below all checks: the cost, and the sum of it all.
pub fn ending(selftest: &Selftest) -> String {
    let mut text = String::new();
    if !selftest.cost.is_empty() {
        text += &format!("\n{}", costs(&selftest.cost));
    }
    let count = |result| selftest.count(result);
    let (pass, fail, skip) = (count(Verdict::Pass), count(Verdict::Fail), count(Verdict::Skip));
    let word = if selftest.passed { "passed" } else { "FAILED" };
    text += &format!("\n{word}: {pass} passed, {fail} failed, {skip} skipped\n");
    if fail > 0 {
        text += "Numbers of this machine are not to be trusted: please report it with `exitscope selftest --json`.\n";
    }
    text
}

fn costs(costs: &[Cost]) -> String {
    let mut table =
        Table::new(&["WATCHED BY", "WORKLOAD", "NS/EXIT", "ADDED", "ADDED%", "SPREAD", "PAIRS"]).left(1);
    for cost in costs {
        let watched = cost.source != "none";
        let added = |text: String| if watched { text } else { "-".into() };
        table.row([
            cost.source.clone(),
            cost.workload.clone(),
            format!("{:.1}", cost.ns_per_exit),
            added(format!("{:.1}", cost.added_ns)),
            added(format!("{:.2}%", cost.added_percent)),
            format!("{:.1}", cost.spread_ns),
            cost.pairs.to_string(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_checks_cost_and_sum() {
        let machine = Machine {
            cpu: "EPYC".into(),
            kernel: "6.12.1".into(),
            paging: "nested".into(),
            tsc_khz: 2_000_250,
            ..Machine::default()
        };
        assert_eq!(heading(&machine), "EPYC, Linux 6.12.1, nested paging, clock 2,000.250 MHz\n");
        let checks =
            vec![Check::of("exact-cpuid", Ok("10 of 10".into())), Check::skip("time-halt", "no reason")];
        let lines: String = checks.iter().map(check).collect();
        assert_eq!(lines, "pass  exact-cpuid       10 of 10\nskip  time-halt         no reason\n");
        let cost = Cost::of_pairs("module", "cpuid", &[(1000.0, 1020.0)]);
        let text = ending(&Selftest::new(machine, checks, cost));
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[2], ["none", "cpuid", "1000.0", "-", "-", "0.0", "1"]);
        assert_eq!(rows[3], ["module", "cpuid", "1020.0", "20.0", "2.00%", "0.0", "1"]);
        assert!(text.ends_with("\npassed: 1 passed, 0 failed, 1 skipped\n"));
    }

    #[test]
    fn a_failure_says_what_to_do() {
        let failed = Check::of("sums", Err("2 + 2 = 5".into()));
        let text = ending(&Selftest::new(Machine::default(), vec![failed], vec![]));
        assert!(text.contains("FAILED: 0 passed, 1 failed, 0 skipped") && text.contains("--json"), "{text}");
    }
}
