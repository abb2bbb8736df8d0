//! The kernels that the lab knows, by the names that a user gives them.

use std::fmt;
use std::str::FromStr;

/// A kernel that the lab runs on: the stock one of a series, or the one that it builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[non_exhaustive]
pub enum Series {
    /// Debian 12's own.
    V6_1,
    /// Debian 13's own, and in Debian 12's security archive.
    #[default]
    V6_12,
    /// Debian sid's.
    V7_2,
    /// That of 6.12 with PREEMPT_RT.
    Rt,
    /// Debian's source of 6.12, built with the kernel's own checkers: see [`crate::parts::debug_kernel`].
    Debug,
}

impl Series {
    /// All of them: the stock ones, oldest first, and the one that is built.
    pub const ALL: [Self; 5] = [Self::V6_1, Self::V6_12, Self::V7_2, Self::Rt, Self::Debug];
    /// The stock ones of Debian's flavour for clouds, oldest first.
    pub const STOCK: [Self; 3] = [Self::V6_1, Self::V6_12, Self::V7_2];

    /// As it is written: `6.12`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
            Self::Rt => "6.12-rt",
            Self::Debug => "debug",
        }
    }

    /// Its version as names of packages have it, and what names of its releases and packages end with.
    pub(super) fn version_and_flavour(self) -> (&'static str, &'static str) {
        match self {
            Self::Rt => (Self::V6_12.name(), "-rt-amd64"),
            stock => (stock.name(), "-cloud-amd64"),
        }
    }

    /// Whether a release such as `6.12.117+deb12-cloud-amd64` is of this series.
    pub(super) fn has(self, release: &str) -> bool {
        let (version, flavour) = self.version_and_flavour();
        release.strip_prefix(version).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(flavour))
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|series| series.name() == text).ok_or_else(|| {
            format!("no kernel series `{text}`: choose one of {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_read_as_it_is_written() {
        for series in Series::ALL {
            assert_eq!(series.to_string().parse(), Ok(series));
        }
        assert!("6.13".parse::<Series>().unwrap_err().contains("6.1, 6.12, 7.2, 6.12-rt, debug"));
        assert!(!Series::V6_1.has("6.12.1-cloud-amd64") && Series::V6_1.has("6.1.0-1-cloud-amd64"));
        assert!(!Series::V6_12.has("6.12.1-rt-amd64") && Series::Rt.has("6.12.1-rt-amd64"));
    }
}
