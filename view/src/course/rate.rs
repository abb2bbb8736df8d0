//! How steadily exits come: the rate of a timeline per equal stretch of time.

use exitscope_model::Tick;

/// Stretches at most.
const STRETCHES: u64 = 40;
/// Stretches are multiples of this, in ms: the timeline is sampled no finer.
const SAMPLE_MS: u64 = 50;

/// Exits per second of every stretch of a timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// When the timeline began, in ms.
    pub start_ms: u64,
    /// Length of a stretch in ms.
    pub step_ms: u64,
    /// Length of the timeline in ms; the last stretch may end before its time.
    pub length_ms: u64,
    /// Exits per second, a stretch each.
    pub rates: Vec<f64>,
}

/// What the rates have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Lowest rate, in exits/s.
    pub min: f64,
    /// The rate that half of the stretches stay below, in exits/s.
    pub median: f64,
    /// Highest rate, in exits/s.
    pub max: f64,
    /// Coefficient of variation: standard deviation over mean.
    pub variation: f64,
}

impl Rates {
    /// The rates of a timeline; `None` for one that takes no time.
    pub fn of(ticks: &[Tick]) -> Option<Self> {
        let (first, last) = (ticks.first()?, ticks.last()?);
        let length_ms = last.t_ms.checked_sub(first.t_ms).filter(|&length| length > 0)?;
        let step_ms = length_ms.div_ceil(STRETCHES).next_multiple_of(SAMPLE_MS);
        let at = |time: u64| ticks.iter().rev().find(|tick| tick.t_ms <= time).map_or(0, |tick| tick.exits);
        let stretch = |index: u64| {
            let from = first.t_ms + index * step_ms;
            let to = (from + step_ms).min(last.t_ms);
            at(to).saturating_sub(at(from)) as f64 * 1000.0 / (to - from) as f64
        };
        let rates = (0..length_ms.div_ceil(step_ms)).map(stretch).collect();
        Some(Self { start_ms: first.t_ms, step_ms, length_ms, rates })
    }

    /// The spread over all whole stretches.
    pub fn spread(&self) -> Spread {
        let whole = (self.length_ms / self.step_ms).max(1) as usize;
        let mut sorted = self.rates[..whole.min(self.rates.len())].to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / count;
        let variance = sorted.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
        let middle = sorted.len() / 2;
        let median = (sorted[middle] + sorted[(sorted.len() - 1) / 2]) / 2.0;
        Spread {
            min: sorted[0],
            median,
            max: sorted[sorted.len() - 1],
            variation: if mean > 0.0 { variance.sqrt() / mean } else { 0.0 },
        }
    }
}

impl Spread {
    /// Whether the count grows at a stable rate, in words.
    pub fn verdict(&self) -> &'static str {
        match self.variation {
            v if v < 0.1 => "Yes: the count grows at a stable rate",
            v if v < 0.5 => "Roughly: the rate varies, but stays near its mean",
            v if v < 1.0 => "No: the rate is uneven",
            _ => "No: exits come in bursts",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(exits: impl Fn(u64) -> u64, count: u64) -> Vec<Tick> {
        (0..=count).map(|index| Tick { t_ms: 100 + index * 50, exits: exits(index) }).collect()
    }

    #[test]
    fn a_line_is_stable() {
        let rates = Rates::of(&ticks(|index| 5 * index, 20)).unwrap();
        assert_eq!((rates.step_ms, rates.rates.len()), (50, 20));
        assert_eq!(rates.spread(), Spread { min: 100.0, median: 100.0, max: 100.0, variation: 0.0 });
        assert!(rates.spread().verdict().starts_with("Yes"));
    }

    #[test]
    fn bursts_are_told() {
        let rates = Rates::of(&ticks(|index| if index < 3 { 0 } else { 1000 }, 20)).unwrap();
        assert!(rates.spread().variation > 1.0);
        assert!(rates.spread().verdict().contains("bursts"));
    }

    #[test]
    fn a_long_timeline_has_few_stretches_and_the_last_may_be_short() {
        let rates = Rates::of(&ticks(|index| index, 81)).unwrap();
        assert_eq!((rates.step_ms, rates.rates.len(), rates.length_ms), (150, 27, 4050));
        let rates = Rates::of(&ticks(|index| index, 82)).unwrap();
        assert_eq!((rates.rates.len(), rates.rates[27]), (28, 20.0));
    }

    #[test]
    fn no_time_no_rate() {
        assert_eq!(Rates::of(&[]), None);
        assert_eq!(Rates::of(&ticks(|_| 5, 0)), None);
        assert_eq!(Rates::of(&ticks(|_| 0, 2)).unwrap().spread().variation, 0.0);
    }
}
