//! A course's document as one HTML page: nothing to fetch, nothing to run, and a body that is well-formed as XML.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::document::{Block, Chart, Document, Figure, Grid, Kind, LEAD, Section, TITLE, foot};
use super::svg;

const STYLE: &str = include_str!("page.css");

/// The page.
pub fn page(document: &Document) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (TITLE) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (TITLE) }
                    p.lead { (inline(LEAD)) }
                    (contents(&document.sections))
                }
                main {
                    @for (index, part) in document.sections.iter().enumerate() { (section(part, index)) }
                }
                footer { (paragraphs(None, &foot(document))) }
            }
        }
    }
    .into_string()
}

/// A sentence as HTML: what stands between backticks is code.
fn inline(sentence: &str) -> Markup {
    html! {
        @for (index, piece) in sentence.split('`').enumerate() {
            @if index % 2 == 0 { (piece) } @else { code { (piece) } }
        }
    }
}

fn contents(sections: &[Section]) -> Markup {
    html! {
        nav aria-label="Contents" {
            ul {
                @for (index, section) in sections.iter().enumerate() {
                    li { a href={ "#s" (index) } { b { (section.label) } " " (section.title) } }
                }
            }
        }
    }
}

fn section(section: &Section, index: usize) -> Markup {
    html! {
        section id={ "s" (index) } aria-labelledby={ "h" (index) } {
            h2 id={ "h" (index) } { span.label { (section.label) } " " (section.title) }
            p.question { (inline(section.question)) }
            @if !section.commands.is_empty() {
                pre.commands { code { (section.commands.join("\n")) } }
            }
            (paragraphs(Some("answer"), &section.answer))
            @for (number, evidence) in section.evidence.iter().enumerate() {
                (block(evidence, &format!("f{index}-{number}")))
            }
        }
    }
}

fn paragraphs(class: Option<&str>, sentences: &[String]) -> Markup {
    html! { @for sentence in sentences { p class=[class] { (inline(sentence)) } } }
}

fn block(block: &Block, id: &str) -> Markup {
    match block {
        Block::Table(grid) => table(grid),
        Block::Tables(grids) => html! { div.tables { @for grid in grids { (table(grid)) } } },
        Block::Figure(drawing) => figure(drawing, id),
    }
}

fn figure(figure: &Figure, id: &str) -> Markup {
    let keys = match &figure.chart {
        Chart::Bars(bars) if bars.series.len() > 1 => bars.series.as_slice(),
        _ => &[],
    };
    html! {
        figure {
            figcaption {
                (inline(&figure.title))
                @for (index, name) in keys.iter().enumerate() {
                    " " span.key { i class={ "s" (index) } {} (name) }
                }
            }
            (svg::draw(figure, id))
        }
    }
}

fn class(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Text => None,
        Kind::Number => Some("n"),
        Kind::Hex => Some("x"),
    }
}

fn table(grid: &Grid) -> Markup {
    html! {
        div.scroll role="region" tabindex="0" aria-label=(grid.caption) {
            table {
                caption { span { (grid.caption) } }
                thead {
                    tr {
                        @for (heading, kind) in &grid.columns {
                            th scope="col" class=[class(*kind)] { (heading) }
                        }
                    }
                }
                tbody { @for row in &grid.rows { (cells(grid, row)) } }
                @if let Some(total) = &grid.total { tfoot { (cells(grid, total)) } }
            }
        }
    }
}

/// A row; its first cell is its heading.
fn cells(grid: &Grid, row: &[String]) -> Markup {
    html! {
        tr {
            @for (index, (cell, (_, kind))) in row.iter().zip(&grid.columns).enumerate() {
                @if index == 0 {
                    th scope="row" class=[class(*kind)] { (cell) }
                } @else {
                    td class=[class(*kind)] { (cell) }
                }
            }
        }
    }
}
