//! A sum of accounts: exits, the parts of their time, their distribution.

use exitscope_abi::region::{BUCKETS, bucket_end, bucket_low};

use crate::accounts::{Account, Accounts, kernel};

/// A running sum of accounts. Times are ticks; counts wrap around as the source's do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Exits.
    pub exits: u64,
    /// Ticks of all timed exits.
    pub cycles: u64,
    /// Of these, those in the VMM's user space.
    pub user: u64,
    /// Those in which the kernel polled for the end of a halt.
    pub polled: u64,
    /// Those halted or blocked, without polling.
    pub halted: u64,
    /// A lower bound of a timed exit's ticks; `u64::MAX` when none was timed.
    pub min: u64,
    /// An upper bound.
    pub max: u64,
    /// Timed exits by bucket.
    pub histogram: [u64; BUCKETS],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            exits: 0,
            cycles: 0,
            user: 0,
            polled: 0,
            halted: 0,
            min: u64::MAX,
            max: 0,
            histogram: [0; BUCKETS],
        }
    }
}

impl Tally {
    /// The sum of one account with this histogram.
    pub fn of(account: &Account, histogram: impl Iterator<Item = (usize, u64)>) -> Self {
        let Account { exits, cycles, user, polled, halted, min, max, .. } = *account;
        let mut tally = Self { exits, cycles, user, polled, halted, min, max, histogram: [0; BUCKETS] };
        for (bucket, count) in histogram {
            if let Some(place) = tally.histogram.get_mut(bucket) {
                *place = count;
            }
        }
        tally
    }

    /// Adds an account.
    pub fn add(&mut self, accounts: &Accounts, account: &Account) {
        self.merge(&Self::of(account, accounts.histogram(account)));
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Self) {
        self.exits = self.exits.wrapping_add(other.exits);
        self.cycles = self.cycles.wrapping_add(other.cycles);
        self.user = self.user.wrapping_add(other.user);
        self.polled = self.polled.wrapping_add(other.polled);
        self.halted = self.halted.wrapping_add(other.halted);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        for (mine, theirs) in self.histogram.iter_mut().zip(&other.histogram) {
            *mine = mine.wrapping_add(*theirs);
        }
    }

    /// Takes another sum away, of exits before those that stay; extremes become the tightest bounds that are known.
    pub fn subtract(&mut self, before: &Self) {
        self.exits = self.exits.wrapping_sub(before.exits);
        self.cycles = self.cycles.wrapping_sub(before.cycles);
        self.user = self.user.wrapping_sub(before.user);
        self.polled = self.polled.wrapping_sub(before.polled);
        self.halted = self.halted.wrapping_sub(before.halted);
        for (mine, theirs) in self.histogram.iter_mut().zip(&before.histogram) {
            *mine = mine.wrapping_sub(*theirs);
        }
        let shown = |count: &u64| *count != 0;
        let (first, last) = (self.histogram.iter().position(shown), self.histogram.iter().rposition(shown));
        self.min = first.map_or(u64::MAX, |bucket| bucket_low(bucket).max(self.min));
        self.max = last.map_or(0, |bucket| bucket_end(bucket_low(bucket)).min(self.max));
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        let Self { exits, cycles, user, polled, halted, min: _, max: _, histogram } = self;
        [exits, cycles, user, polled, halted].into_iter().chain(histogram).all(|count| *count == 0)
    }

    /// Ticks in the host's kernel, time that a vCPU's thread waited for a CPU included.
    pub fn kernel(&self) -> u64 {
        kernel(self.cycles, self.user, self.polled, self.halted)
    }

    /// Exits whose duration is known.
    pub fn timed(&self) -> u64 {
        self.histogram.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Exits whose duration is not known, or not yet. An interval may have fewer exits than timed ones: the first may
    /// have begun before it.
    pub fn untimed(&self) -> i64 {
        self.exits.wrapping_sub(self.timed()) as i64
    }

    /// Mean ticks of a timed exit.
    pub fn mean(&self) -> Option<u64> {
        self.cycles.checked_div(self.timed())
    }

    /// The most ticks that so many thousandths of the timed exits took: an upper bound, the end of a bucket.
    pub fn quantile(&self, thousandths: u64) -> Option<u64> {
        let timed = u128::from(self.timed());
        let rank = (timed * u128::from(thousandths)).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = self.histogram.iter().position(|&count| {
            seen += u128::from(count);
            seen >= rank
        })?;
        Some(bucket_end(bucket_low(bucket)).min(self.max))
    }
}

#[cfg(test)]
mod tests {
    use exitscope_abi::region::bucket;

    use super::*;

    #[test]
    fn quantiles_are_bounds_from_the_histogram() {
        let mut tally = Tally { exits: 100, min: 600, max: 9_000, ..Tally::default() };
        assert_eq!(tally.quantile(500), None);
        tally.histogram[1] = 98;
        tally.histogram[bucket(9_000)] = 2;
        assert_eq!(tally.quantile(500), Some(bucket_end(bucket_low(1))));
        assert_eq!(tally.quantile(980), Some(bucket_end(bucket_low(1))));
        assert_eq!(tally.quantile(990), Some(9_000));
    }

    #[test]
    fn what_came_before_is_taken_away() {
        let mut before = Tally { exits: 4, cycles: 40, min: 600, max: 1_500, ..Tally::default() };
        before.histogram[1] = 3;
        let mut since = Tally { exits: 9, cycles: 90, min: 600, max: 50_000, ..Tally::default() };
        since.histogram[1] = 3;
        since.histogram[4] = 4;
        since.subtract(&before);
        assert_eq!((since.exits, since.cycles, since.timed(), since.untimed()), (5, 50, 4, 1));
        assert_eq!((since.min, since.max), (bucket_low(4), bucket_end(bucket_low(4))));
        assert_eq!(since.mean(), Some(12));
    }

    #[test]
    fn parts_never_exceed_the_whole_or_go_below_nothing() {
        let tally = Tally { cycles: 100, user: 30, polled: 20, halted: 10, ..Tally::default() };
        assert_eq!(tally.kernel(), 40);
        assert_eq!(Tally { cycles: 10, user: 30, ..Tally::default() }.kernel(), 0);
    }
}
