//! Says on stderr what is being done and how long each part took: live on a terminal, in plain lines elsewhere.

use std::fmt::Write;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// How often a live line is drawn anew.
const TICK: Duration = Duration::from_millis(100);

/// Shows the phases of a run. Writes to stderr only, since stdout is for results.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    started: Instant,
    current: Option<Phase>,
    /// Lines that wait for the end.
    lines: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// One line that is drawn over and over, until its phase ends.
    Live,
    /// A line at the end of each phase.
    Plain,
    /// These lines, all at once in the end.
    Collected,
}

#[derive(Debug)]
struct Phase {
    name: String,
    started: Instant,
    live: Option<ProgressBar>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Live when stderr is a terminal and neither `NO_COLOR` is set nor `TERM` is `dumb`; else plain.
    pub fn new() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let live = io::stderr().is_terminal() && !set("NO_COLOR") && !dumb;
        Self::with(if live { Style::Live } else { Style::Plain })
    }

    /// Writes nothing before its end, so that what is done side by side is told one after the other.
    pub fn collected() -> Self {
        Self::with(Style::Collected)
    }

    fn with(style: Style) -> Self {
        Self { style, started: Instant::now(), current: None, lines: String::new() }
    }

    /// Ends the phase before, and begins this one: `boots Linux 6.12.117 under QEMU`.
    pub fn phase(&mut self, name: impl Into<String>) {
        self.end_phase(None);
        let name = name.into();
        let started = Instant::now();
        let live = (self.style == Style::Live).then(|| live_line(&name, started));
        self.current = Some(Phase { name, started, live });
    }

    /// Says something by the way.
    pub fn note(&mut self, text: &str) {
        let live = self.current.as_ref().and_then(|phase| phase.live.clone());
        let mut print = || self.print(&format!("          {text}"));
        match live {
            Some(live) => live.suspend(print),
            None => print(),
        }
    }

    /// Ends the last phase, and says how long all took.
    pub fn done(mut self) {
        self.end_phase(None);
        self.print(&line(self.started.elapsed(), "in all"));
    }

    fn end_phase(&mut self, remark: Option<&str>) {
        if let Some(Phase { name, started, live }) = self.current.take() {
            let elapsed = started.elapsed();
            if let Some(live) = live {
                live.finish_and_clear();
            }
            let remark = remark.map(|remark| format!(" ({remark})")).unwrap_or_default();
            self.print(&line(elapsed, &format!("{name}{remark}")));
        }
    }

    fn print(&mut self, line: &str) {
        self.lines += line;
        self.lines.push('\n');
        if self.style != Style::Collected {
            self.flush();
        }
    }

    fn flush(&mut self) {
        // Whoever closed stderr does not want to know.
        let _ = io::stderr().write_all(self.lines.as_bytes());
        self.lines.clear();
    }
}

impl Drop for Progress {
    /// A phase that is under way here has failed.
    fn drop(&mut self) {
        self.end_phase(Some("not finished"));
        self.flush();
    }
}

fn line(elapsed: Duration, text: &str) -> String {
    format!("{} {text}", seconds(elapsed))
}

fn seconds(elapsed: Duration) -> String {
    format!("{:7.1} s", elapsed.as_secs_f64())
}

/// A line that is drawn anew all the time, cut off at the terminal's width.
fn live_line(name: &str, started: Instant) -> ProgressBar {
    let time = move |_: &ProgressState, out: &mut dyn Write| {
        let _ = out.write_str(&seconds(started.elapsed()));
    };
    let style = ProgressStyle::with_template("{time} {wide_msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner()).with_key("time", time);
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_message(format!("{name} …"));
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_time_first() {
        assert_eq!(line(Duration::from_millis(12_345), "boots"), "   12.3 s boots");
    }

    #[test]
    fn tests_have_no_terminal_so_lines_are_plain() {
        let mut progress = Progress::new();
        if io::stderr().is_terminal() {
            println!("skipped: stderr is a terminal");
            return;
        }
        assert_eq!(progress.style, Style::Plain);
        progress.phase("one");
        progress.note("by the way");
        progress.phase("two");
        progress.done();
    }

    #[test]
    fn what_is_collected_waits_for_the_end() {
        let mut progress = Progress::collected();
        progress.note("by the way");
        progress.phase("one");
        progress.phase("two");
        assert!(progress.lines.starts_with("          by the way\n"));
        assert!(progress.lines.ends_with(" s one\n"));
    }

    #[test]
    fn a_live_line_ends_when_its_phase_does() {
        let mut progress = Progress::with(Style::Plain);
        progress.current = Some(Phase { name: "one".into(), started: Instant::now(), live: None });
        progress.phase("two");
        assert_eq!(progress.current.as_ref().map(|phase| phase.name.as_str()), Some("two"));
    }
}
