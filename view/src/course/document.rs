//! A course's document: questions, answers and evidence, before anyone writes them as HTML or Markdown.
//!
//! In sentences, what stands between backticks is code.

use exitscope_model::{Phase, Tick};

/// The document's title.
pub const TITLE: &str = "The VM exits of KVM, measured";
/// What it is, under the title.
pub const LEAD: &str = "Each question of the assignments with the command that answers it, the answer as it was measured, and the evidence.";
/// The answer to a question without data.
pub const UNMEASURED: &str = "Not measured in this run.";

/// The whole document.
#[derive(Debug)]
pub struct Document {
    /// Question by question.
    pub sections: Vec<Section>,
    /// What it ran on.
    pub machines: Vec<String>,
}

/// A question and its answer.
#[derive(Debug, Default)]
pub struct Section {
    /// The assignment: `A2′`.
    pub label: &'static str,
    /// A few words for headings.
    pub title: &'static str,
    /// The question, in a sentence.
    pub question: &'static str,
    /// What to type for an answer.
    pub commands: Vec<String>,
    /// The answer, a paragraph each.
    pub answer: Vec<String>,
    /// What the answer rests on.
    pub evidence: Vec<Block>,
}

/// A piece of evidence.
#[derive(Debug)]
pub enum Block {
    /// A table of the page's width.
    Table(Grid),
    /// Small tables, side by side where there is room.
    Tables(Vec<Grid>),
    /// A drawing.
    Figure(Figure),
}

/// A table.
#[derive(Debug)]
pub struct Grid {
    /// What it shows.
    pub caption: String,
    /// Headings, and what stands below them.
    pub columns: Vec<(String, Kind)>,
    /// Cells of each row, as many as columns.
    pub rows: Vec<Vec<String>>,
    /// The row below all others.
    pub total: Option<Vec<String>>,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Words.
    Text,
    /// Numbers, aligned right.
    Number,
    /// Hexadecimal numbers.
    Hex,
}

/// A drawing with its words.
#[derive(Debug)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// What can be seen in it, for who cannot see it.
    pub description: String,
    /// The drawing.
    pub chart: Chart,
}

/// What is drawn.
#[derive(Debug)]
pub enum Chart {
    /// Horizontal bars on a log scale.
    Bars(Bars),
    /// Exits over time.
    Timeline(Vec<Tick>, Vec<Phase>),
}

/// Bars: one or two series of counts over the same names.
#[derive(Debug)]
pub struct Bars {
    /// What each series is; a single one is not named.
    pub series: Vec<String>,
    /// Names, each with one count per series.
    pub rows: Vec<(String, Vec<u64>)>,
}

impl Grid {
    /// An empty table.
    pub fn new(caption: impl Into<String>, columns: &[(&str, Kind)]) -> Self {
        let columns = columns.iter().map(|&(heading, kind)| (heading.to_owned(), kind)).collect();
        Self { caption: caption.into(), columns, rows: Vec::new(), total: None }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

/// What is said below the last section: where it ran, what cycles mean, how to repeat it.
pub fn foot(document: &Document) -> Vec<String> {
    let on = match document.machines.as_slice() {
        [] => "Nothing was run.".into(),
        machines => {
            format!("Measured by exitscope {} on {}.", env!("CARGO_PKG_VERSION"), machines.join("; "))
        }
    };
    vec![
        on,
        "Cycles run from an exit to the vCPU's next entry. Those of an emulated CPU are emulated: they compare with \
         each other, not with a real CPU's."
            .into(),
        "To repeat all of it: `exitscope lab course`.".into(),
    ]
}

/// The answers, a paragraph each; without any, that nothing was measured.
pub fn measured(answers: impl Iterator<Item = String>) -> Vec<String> {
    let answers: Vec<String> = answers.collect();
    if answers.is_empty() { vec![UNMEASURED.into()] } else { answers }
}

/// Names in a sentence: `a, b and c`.
pub fn list(items: &[String]) -> String {
    match items {
        [] => "none".into(),
        [one] => one.clone(),
        [some @ .., last] => format!("{} and {last}", some.join(", ")),
    }
}
