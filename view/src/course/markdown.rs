//! A course's document as Markdown; of its drawings, the timeline becomes text, bars are in the table below them.

use std::fmt::Write;

use super::document::{Block, Chart, Document, Figure, Grid, Kind, LEAD, Section, TITLE, foot};
use crate::text;

/// The page.
pub fn page(document: &Document) -> String {
    let mut out = format!("# {TITLE}\n\n{LEAD}\n");
    for part in &document.sections {
        section(&mut out, part);
    }
    out.push_str("\n---\n");
    for sentence in foot(document) {
        let _ = write!(out, "\n{}\n", escape(&sentence));
    }
    out
}

/// Text that Markdown does not take for its own marks; backticks stay.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('|', "\\|").replace('*', "\\*")
}

fn section(out: &mut String, section: &Section) {
    let _ = write!(out, "\n## {} {}\n\n*{}*\n", section.label, section.title, section.question);
    if !section.commands.is_empty() {
        let _ = write!(out, "\n```sh\n{}\n```\n", section.commands.join("\n"));
    }
    for paragraph in &section.answer {
        let _ = write!(out, "\n{}\n", escape(paragraph));
    }
    for block in &section.evidence {
        match block {
            Block::Table(grid) => table(out, grid),
            Block::Tables(grids) => grids.iter().for_each(|grid| table(out, grid)),
            Block::Figure(drawing) => figure(out, drawing),
        }
    }
}

fn figure(out: &mut String, figure: &Figure) {
    if let Chart::Timeline(ticks, phases) = &figure.chart {
        let _ = write!(out, "\n```text\n{}```\n", text::timeline(ticks, phases));
    }
}

fn table(out: &mut String, grid: &Grid) {
    let _ = write!(out, "\n**{}**\n\n", escape(&grid.caption));
    line(out, grid.columns.iter().map(|(heading, _)| escape(heading)));
    line(out, grid.columns.iter().map(|(_, kind)| if *kind == Kind::Number { "---:" } else { "---" }.into()));
    for row in grid.rows.iter().chain(&grid.total) {
        line(out, row.iter().map(|cell| escape(cell)));
    }
}

fn line(out: &mut String, cells: impl Iterator<Item = String>) {
    let cells: Vec<String> = cells.collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}
