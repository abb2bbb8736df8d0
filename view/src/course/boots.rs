//! Questions about a whole boot: how exits come over time, which are frequent and which are rare (Q3, Q4).

use super::Boot;
use super::document::{Bars, Block, Chart, Figure, Grid, Kind, Section, list, measured};
use super::rate::Rates;
use super::{isa_of, manual};
use crate::text::{grouped, share};
use exitscope_model::{Phase, Reason};

/// Reasons named in an answer, at either end of the ranking.
const NAMED: usize = 3;

/// The sections Q3 and Q4.
pub fn sections(boots: &[Boot]) -> Vec<Section> {
    let commands: Vec<String> = boots.iter().map(|boot| boot.command.clone()).collect();
    vec![
        Section {
            label: "Q3",
            title: "Exits over a boot",
            question: "Does the number of exits grow at a stable rate, and how many does a full boot take?",
            commands: commands.clone(),
            answer: measured(boots.iter().map(growth)),
            evidence: boots.iter().flat_map(over_time).collect(),
        },
        Section {
            label: "Q4",
            title: "Most and least frequent exits",
            question: "Of the exit reasons, which are the most frequent, which the least?",
            commands,
            answer: measured(boots.iter().map(most_and_least)),
            evidence: boots.iter().flat_map(|boot| [ranking(boot), ranking_table(boot)]).collect(),
        },
    ]
}

/// `a full Debian system on AMD`.
fn boot_name(boot: &Boot) -> String {
    format!("{} on {}", boot.guest, boot.report.machine.vendor_name())
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

fn per_second(rate: f64) -> String {
    grouped(rate.round() as u64)
}

fn growth(boot: &Boot) -> String {
    let exits = grouped(boot.report.total.exits);
    let Some(rates) = Rates::of(&boot.report.timeline) else {
        return format!("Booting {} took {exits} exits; their times are not known.", boot_name(boot));
    };
    let spread = rates.spread();
    let mut text = format!(
        "{}. Booting {} took {exits} exits in {}. In stretches of {} ms the rate was between {} and {} exits/s with a median of {}; its coefficient of variation is {:.2}.",
        spread.verdict(),
        boot_name(boot),
        seconds(rates.length_ms),
        grouped(rates.step_ms),
        per_second(spread.min),
        per_second(spread.max),
        per_second(spread.median),
        spread.variation,
    );
    let timed = boot.report.phases.iter().filter_map(|phase| Some((phase.rate()?, phase)));
    if let (Some((most, busiest)), Some((least, calmest))) =
        (timed.clone().max_by_key(|(rate, _)| *rate), timed.min_by_key(|(rate, _)| *rate))
        && most > least
    {
        text += &format!(
            " It was highest in the phase {} ({} exits/s) and lowest in {} ({} exits/s).",
            busiest.name,
            grouped(most),
            calmest.name,
            grouped(least)
        );
    }
    text
}

fn over_time(boot: &Boot) -> Vec<Block> {
    let report = &boot.report;
    let mut blocks = Vec::new();
    if Rates::of(&report.timeline).is_some() {
        blocks.push(Block::Figure(Figure {
            title: format!("Booting {}: exits per second (area) and exits so far (line)", boot_name(boot)),
            description: growth(boot),
            chart: Chart::Timeline(report.timeline.clone(), report.phases.clone()),
        }));
    }
    if !report.phases.is_empty() {
        blocks.push(Block::Table(phases(boot, &report.phases)));
    }
    blocks
}

fn phases(boot: &Boot, phases: &[Phase]) -> Grid {
    let columns = [
        ("Phase", Kind::Text),
        ("From (ms)", Kind::Number),
        ("To (ms)", Kind::Number),
        ("Exits", Kind::Number),
        ("Exits/s", Kind::Number),
    ];
    let mut grid = Grid::new(format!("Phases of booting {}", boot_name(boot)), &columns);
    for phase in phases {
        let rate = phase.rate().map_or("-".into(), grouped);
        let [from, to, exits] = [phase.start_ms, phase.end_ms, phase.exits].map(grouped);
        grid.row([phase.name.clone(), from, to, exits, rate]);
    }
    grid
}

/// The reasons that occurred, most frequent first.
fn seen(boot: &Boot) -> Vec<&Reason> {
    boot.report.reasons.iter().filter(|reason| reason.exits > 0).collect()
}

fn most_and_least(boot: &Boot) -> String {
    let seen = seen(boot);
    let total = boot.report.total.exits;
    let isa = isa_of(&boot.report.machine);
    let said = |reason: &&Reason| {
        format!("{} ({}, {})", reason.name, grouped(reason.exits), share(reason.exits, total))
    };
    let most: Vec<String> = seen.iter().take(NAMED).map(said).collect();
    let rest = &seen[most.len()..];
    let least: Vec<String> = rest.iter().rev().take(NAMED).map(said).collect();
    let mut text = format!("Booting {}: most frequent are {}", boot_name(boot), list(&most));
    if !least.is_empty() {
        text += &format!("; least frequent of those that occur are {}", list(&least));
    }
    let defined = isa.reasons();
    let never =
        defined.iter().filter(|known| seen.iter().all(|reason| reason.code != u64::from(known.code))).count();
    text + &format!(
        ". {never} of the {} reasons that the {} defines did not occur.",
        defined.len(),
        manual(isa)
    )
}

fn ranking(boot: &Boot) -> Block {
    let rows = seen(boot).into_iter().map(|reason| (reason.name.to_string(), vec![reason.exits])).collect();
    Block::Figure(Figure {
        title: format!("Exits of {} by reason, log scale", boot_name(boot)),
        description: most_and_least(boot),
        chart: Chart::Bars(Bars { series: vec!["exits".into()], rows }),
    })
}

fn ranking_table(boot: &Boot) -> Block {
    let mean = if boot.report.machine.emulated { "Mean emulated cycles" } else { "Mean cycles" };
    let columns = [
        ("Exit", Kind::Text),
        ("Code", Kind::Number),
        ("Exits", Kind::Number),
        ("Share", Kind::Number),
        (mean, Kind::Number),
    ];
    let total = boot.report.total.exits;
    let mut grid = Grid::new(format!("Exits of {}, most frequent first", boot_name(boot)), &columns);
    for reason in seen(boot) {
        grid.row([
            reason.name.to_string(),
            reason.code.to_string(),
            grouped(reason.exits),
            share(reason.exits, total),
            reason.mean().map_or("-".into(), grouped),
        ]);
    }
    grid.total = Some(vec!["total".into(), String::new(), grouped(total), String::new(), String::new()]);
    Block::Table(grid)
}
