//! Machines that tests share, as each takes its time to boot: one test's steps after the other's, each with a transcript of
//! its own.

use std::collections::BTreeMap;
use std::env;

use exitscope_lab::job::{Event, Step};
use exitscope_lab::runs::session::Setup;

use crate::{Lane, Transcript, try_machine};

/// A test that shares a machine: its name, as `cargo test` prints it, and its steps.
pub type Part = (&'static str, Vec<Step>);

/// What a machine that tests share has answered, by their names.
pub struct Shared(Result<BTreeMap<String, Transcript>, String>);

impl Shared {
    /// Runs a machine that does the steps of all those tests that this run of the tests is to run.
    pub fn run(lane: impl Into<Lane>, setup: Setup, parts: Vec<Part>) -> Self {
        let wanted = Wanted::new(env::args().skip(1));
        let steps: Vec<Step> = parts
            .into_iter()
            .filter(|(test, _)| wanted.has(test))
            .flat_map(|(test, steps)| [Step::Part { name: test.into() }].into_iter().chain(steps))
            .collect();
        Self(try_machine(lane, setup, steps).map(|events| split(events.0)))
    }

    /// What it answered to a test.
    ///
    /// # Panics
    /// When the machine failed, in the steps of whichever test: the text names that.
    pub fn transcript(&self, test: &str) -> &Transcript {
        let transcripts = self.0.as_ref().unwrap_or_else(|error| panic!("{error}"));
        transcripts.get(test).unwrap_or_else(|| panic!("this machine has no part of {test}"))
    }
}

/// The events of each part.
fn split(events: Vec<Event>) -> BTreeMap<String, Transcript> {
    let mut parts = BTreeMap::new();
    let mut current = None;
    for event in events {
        match (event, &mut current) {
            (Event::Part { name }, current) => {
                parts.entry(name.clone()).or_insert(Transcript(vec![]));
                *current = Some(name);
            }
            (event, Some(name)) => parts.entry(name.clone()).or_insert(Transcript(vec![])).0.push(event),
            (_, None) => {}
        }
    }
    parts
}

/// Which tests are to run, by the command line of their program.
#[derive(Debug, Default)]
struct Wanted {
    names: Vec<String>,
    skipped: Vec<String>,
    exactly: bool,
}

impl Wanted {
    fn new(arguments: impl IntoIterator<Item = String>) -> Self {
        /// Options of libtest whose value is an argument of its own, but for `--skip`.
        const VALUED: [&str; 6] =
            ["--test-threads", "--logfile", "--color", "--format", "--shuffle-seed", "-Z"];
        let mut wanted = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => wanted.exactly = true,
                "--skip" => wanted.skipped.extend(arguments.next()),
                option if VALUED.contains(&option) => drop(arguments.next()),
                option if option.starts_with('-') => {
                    wanted.skipped.extend(option.strip_prefix("--skip=").map(Into::into))
                }
                _ => wanted.names.push(argument),
            }
        }
        wanted
    }

    fn has(&self, test: &str) -> bool {
        let fits = |name: &String| if self.exactly { test == name } else { test.contains(name.as_str()) };
        (self.names.is_empty() || self.names.iter().any(fits)) && !self.skipped.iter().any(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(line: &str, test: &str) -> bool {
        Wanted::new(line.split_whitespace().map(str::to_owned)).has(test)
    }

    #[test]
    fn the_tests_that_run_are_those_of_the_command_line() {
        for line in [
            "",
            "life",
            "life stat::",
            "--nocapture life",
            "--test-threads 1",
            "--exact life::a",
            "--skip stat",
        ] {
            assert!(wants(line, "life::a"), "{line}");
        }
        for line in
            ["stat", "--skip life", "--skip=::a", "life --skip a", "--exact life", "--color life stat"]
        {
            assert!(!wants(line, "life::a"), "{line}");
        }
    }

    #[test]
    fn events_are_those_of_the_part_before_them() {
        let part = |name: &str| Event::Part { name: name.into() };
        let phase = |text: &str| Event::Phase { text: text.into() };
        let parts =
            split(vec![phase("none's"), part("a"), phase("1"), phase("2"), part("b"), part("c"), phase("3")]);
        let counts: Vec<_> = parts.iter().map(|(name, part)| (name.as_str(), part.0.len())).collect();
        assert_eq!(counts, [("a", 2), ("b", 0), ("c", 1)]);
    }
}
