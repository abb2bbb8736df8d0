//! Numbers as people read them: times, shares, rates.

pub use crate::text::{grouped, share};

/// A time of so many ns, in three digits: `850ns`, `1.25µs`, `12.5ms`, `3.10s`.
pub fn duration(ns: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")];
    let Some((unit, name)) = UNITS.into_iter().find(|&(unit, _)| ns >= unit) else {
        return if ns == 0 { "0".into() } else { format!("{ns}ns") };
    };
    let value = ns as f64 / unit as f64;
    match value {
        value if value < 9.995 => format!("{value:.2}{name}"),
        value if value < 99.95 => format!("{value:.1}{name}"),
        value => format!("{value:.0}{name}"),
    }
}

/// So many in so many ns, for a second; one digit after the point below ten.
pub fn rate(count: u64, ns: u64) -> String {
    if ns == 0 {
        return "-".into();
    }
    let rate = count as f64 * 1e9 / ns as f64;
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { grouped(rate.round() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        let text =
            [0, 1, 999, 1_000, 9_994, 12_345, 123_456, 999_999, 1_500_000, 60_000_000_000].map(duration);
        let expected =
            ["0", "1ns", "999ns", "1.00µs", "9.99µs", "12.3µs", "123µs", "1000µs", "1.50ms", "60.0s"];
        assert_eq!(text, expected);
    }

    #[test]
    fn rates_are_per_second() {
        assert_eq!([rate(3, 2_000_000_000), rate(5_000, 500_000_000), rate(1, 0)], ["1.5", "10,000", "-"]);
    }
}
