//! Drawings as inline SVG: positions across are percentages, so that a drawing fits any width with letters of one size.
//!
//! Colours come from the page's style sheet.

use std::fmt::Write;

use maud::{Markup, html};

use super::document::{Bars, Chart, Figure};
use super::rate::Rates;
use crate::text::grouped;
use exitscope_model::{Phase, Tick};

/// Draws a figure. `id` is unique in the page.
pub fn draw(figure: &Figure, id: &str) -> Markup {
    let (height, drawing) = match &figure.chart {
        Chart::Bars(chart) => bars(chart),
        Chart::Timeline(ticks, phases) => match Rates::of(ticks) {
            Some(rates) => timeline(ticks, &rates, phases),
            None => (0, Markup::default()),
        },
    };
    html! {
        svg role="img" width="100%" height=(height) aria-labelledby={ (id) "-t " (id) "-d" } {
            title id={ (id) "-t" } { (figure.title) }
            desc id={ (id) "-d" } { (figure.description) }
            (drawing)
        }
    }
}

/// A position or length across.
fn percent(value: f64) -> String {
    format!("{value:.2}%")
}

/// Percent of the width that the longest bar takes; its value stands beside it.
const LONGEST: f64 = 80.0;
/// Height of a bar, of the line of text above it, and of the space below, in pixels.
const BAR: usize = 13;
const NAME: usize = 20;
const GAP: usize = 12;
/// Space above the first bar for the scale's numbers.
const SCALE: usize = 22;

/// Horizontal bars, a group for each name. Returns height and drawing.
fn bars(chart: &Bars) -> (usize, Markup) {
    let group = NAME + chart.series.len() * (BAR + 2) + GAP;
    let height = SCALE + chart.rows.len() * group;
    let most = chart.rows.iter().flat_map(|(_, counts)| counts).copied().max().unwrap_or(0).max(1);
    let decades = (0..20).map(|power| 10_u64.pow(power)).take_while(|&decade| decade <= most);
    let drawing = html! {
        @for decade in decades {
            @let x = percent(along(decade, most));
            line.grid x1=(x) x2=(x) y1=(SCALE) y2=(height) {}
            text.scale x=(x) y="14" text-anchor="middle" { (short(decade as f64)) }
        }
        @for (index, (name, counts)) in chart.rows.iter().enumerate() {
            @let top = SCALE + index * group;
            text.name x="0" y=(top + 14) { (name) }
            @for (series, &count) in counts.iter().enumerate() {
                @let y = top + NAME + series * (BAR + 2);
                @let width = percent(along(count, most));
                rect class={ "bar s" (series) } x="0" y=(y) width=(width) height=(BAR) {}
                text.value x=(width) dx="6" y=(y + 11) { (grouped(count)) }
            }
            line.axis x1="0" x2="0" y1=(top + NAME - 2) y2=(top + group - GAP) {}
        }
    };
    (height, drawing)
}

/// Where a count ends on the log scale, in percent; the scale begins at one half, so that 1 is seen and 0 is not.
fn along(count: u64, most: u64) -> f64 {
    let length = |count: u64| (2.0 * count as f64).ln();
    if count == 0 { 0.0 } else { LONGEST * length(count) / length(most) }
}

/// The plot's sides in percent, its height, and the height of a line of text, in pixels.
const LEFT: f64 = 9.0;
const RIGHT: f64 = 91.0;
const PLOT: usize = 220;
const LINE: usize = 18;
/// Gridlines of either scale, less the lowest.
const PARTS: usize = 4;
/// Units of the plot's own coordinates in either direction.
const UNITS: f64 = 1000.0;

/// Exits per second as an area, exits so far as a line, phases as bands. Returns height and drawing.
fn timeline(ticks: &[Tick], rates: &Rates, phases: &[Phase]) -> (usize, Markup) {
    let top = phases.len() * LINE + 2 * LINE;
    let bottom = top + PLOT;
    let height = bottom + LINE + 6;
    let highest = round_up(rates.rates.iter().copied().fold(0.0, f64::max), ENDS);
    let most = round_up(ticks.iter().map(|tick| tick.exits).max().unwrap_or(0) as f64, ENDS);
    let drawing = html! {
        (bands(rates, phases, top))
        (grid((top, bottom), highest, most))
        (times(rates, bottom))
        svg x={ (LEFT) "%" } y=(top) width={ (RIGHT - LEFT) "%" } height=(PLOT)
            viewBox={ "0 0 " (UNITS) " " (UNITS) } preserveAspectRatio="none" {
            path.area d=(area(rates, highest)) {}
            path.line vector-effect="non-scaling-stroke" d=(line(ticks, rates, most)) {}
        }
    };
    (height, drawing)
}

/// Percent across of a time on the timeline's clock.
fn across(rates: &Rates, ms: u64) -> f64 {
    let passed = ms.saturating_sub(rates.start_ms).min(rates.length_ms);
    LEFT + (RIGHT - LEFT) * passed as f64 / rates.length_ms as f64
}

/// Shades every other phase and names each at its beginning, on a line of its own; names lie above all shades.
fn bands(rates: &Rates, phases: &[Phase], top: usize) -> Markup {
    let places = phases.iter().map(|phase| [phase.start_ms, phase.end_ms].map(|ms| across(rates, ms)));
    html! {
        @for (index, [from, to]) in places.clone().enumerate() {
            rect class={ "band b" (index % 2) } x=(percent(from)) y=(top) width=(percent((to - from).max(0.0)))
                height=(PLOT) {}
            line.phase x1=(percent(from)) x2=(percent(from)) y1=(index * LINE + 3) y2=(top + PLOT) {}
        }
        @for (index, ([from, _], phase)) in places.zip(phases).enumerate() {
            @let (anchor, dx) = if from > 60.0 { ("end", "-5") } else { ("start", "5") };
            text.name x=(percent(from)) dx=(dx) y=(index * LINE + 13) text-anchor=(anchor) { (phase.name) }
        }
    }
}

/// Both scales: rate at the left, count at the right.
fn grid((top, bottom): (usize, usize), highest: f64, most: f64) -> Markup {
    let (left, right) = (format!("{LEFT}%"), format!("{RIGHT}%"));
    html! {
        text.scale x="0" y=(top - 10) { "exits/s" }
        text.scale x="100%" y=(top - 10) text-anchor="end" { "exits so far" }
        @for part in 0..=PARTS {
            @let y = bottom - PLOT * part / PARTS;
            @let fraction = part as f64 / PARTS as f64;
            line.grid x1=(left) x2=(right) y1=(y) y2=(y) {}
            text.scale x=(left) dx="-6" y=(y + 4) text-anchor="end" { (short(highest * fraction)) }
            text.scale x=(right) dx="6" y=(y + 4) { (short(most * fraction)) }
        }
    }
}

/// Seconds along the bottom.
fn times(rates: &Rates, bottom: usize) -> Markup {
    let step = round_up(rates.length_ms as f64 / 6.0, DISTANCES).max(1.0);
    let marks = (0..).map(|index| index as f64 * step).take_while(|&ms| ms <= rates.length_ms as f64);
    html! {
        @for ms in marks {
            text.scale x=(percent(across(rates, rates.start_ms + ms as u64))) y=(bottom + LINE) text-anchor="middle" {
                (short(ms / 1000.0)) " s"
            }
        }
    }
}

fn area(rates: &Rates, highest: f64) -> String {
    let mut path = format!("M0 {UNITS}");
    for (index, rate) in rates.rates.iter().enumerate() {
        let edge =
            |index: usize| UNITS * (index as f64 * rates.step_ms as f64 / rates.length_ms as f64).min(1.0);
        let y = UNITS * (1.0 - rate / highest);
        let _ = write!(path, " L{:.1} {y:.1} L{:.1} {y:.1}", edge(index), edge(index + 1));
    }
    path + &format!(" L{UNITS} {UNITS} Z")
}

fn line(ticks: &[Tick], rates: &Rates, most: f64) -> String {
    let point = |tick: &Tick| {
        let x = UNITS * tick.t_ms.saturating_sub(rates.start_ms) as f64 / rates.length_ms as f64;
        format!("{x:.1} {:.1}", UNITS * (1.0 - tick.exits as f64 / most))
    };
    let points: Vec<String> = ticks.iter().map(point).collect();
    format!("M{}", points.join(" L"))
}

/// Ends of scales that divide well into [`PARTS`], and distances that read well, in the unit of their first digit.
const ENDS: &[f64] = &[1.0, 1.2, 1.6, 2.0, 2.4, 3.0, 4.0, 5.0, 6.0, 8.0];
const DISTANCES: &[f64] = &[1.0, 2.0, 5.0];

/// The next number that begins like one of these.
fn round_up(number: f64, like: &[f64]) -> f64 {
    if number <= 0.0 {
        return 1.0;
    }
    let unit = 10_f64.powf(number.log10().floor());
    like.iter().map(|step| step * unit).find(|&step| step >= number).unwrap_or(10.0 * unit)
}

/// A number in few letters: `12.5k`.
fn short(number: f64) -> String {
    let (divided, unit) = match number {
        n if n >= 1e9 => (n / 1e9, "G"),
        n if n >= 1e6 => (n / 1e6, "M"),
        n if n >= 1e3 => (n / 1e3, "k"),
        n => (n, ""),
    };
    format!("{}{unit}", (divided * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_has_no_length_and_a_one_has_some() {
        assert_eq!(along(0, 100), 0.0);
        assert!(along(1, 100) > 5.0);
        assert_eq!([along(100, 100), along(1, 1)], [LONGEST, LONGEST]);
    }

    #[test]
    fn scales_end_in_round_numbers() {
        let ends = [0.0, 11.0, 2_001.0, 9_500.0].map(|number| round_up(number, ENDS));
        assert_eq!(ends, [1.0, 12.0, 2_400.0, 10_000.0]);
        assert_eq!(round_up(2_100.0, DISTANCES), 5_000.0);
        assert_eq!([0.0, 0.25, 999.0, 12_500.0, 3e6].map(short), ["0", "0.25", "999", "12.5k", "3M"]);
    }
}
