//! A course's document as one HTML page: well-formed as XML, nothing to fetch, nothing to run.

use std::fmt::Write;

use super::document::{Block, Chart, Document, Figure, Grid, Kind, LEAD, Section, TITLE, foot};
use super::svg;

const STYLE: &str = include_str!("page.css");

/// The page.
pub fn page(document: &Document) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>{title}</h1>\n<p class=\"lead\">{}</p>\n",
        inline(LEAD),
        title = escape(TITLE),
    );
    contents(&mut out, &document.sections);
    out.push_str("</header>\n<main>\n");
    for (index, part) in document.sections.iter().enumerate() {
        section(&mut out, part, index);
    }
    out.push_str("</main>\n<footer>\n");
    paragraphs(&mut out, "", &foot(document));
    out.push_str("</footer>\n</body>\n</html>\n");
    out
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A sentence as HTML: what stands between backticks is code.
fn inline(sentence: &str) -> String {
    let pieces = sentence.split('`').enumerate();
    pieces
        .map(|(index, piece)| match index % 2 {
            0 => escape(piece),
            _ => format!("<code>{}</code>", escape(piece)),
        })
        .collect()
}

fn contents(out: &mut String, sections: &[Section]) {
    out.push_str("<nav aria-label=\"Contents\">\n<ul>\n");
    for (index, section) in sections.iter().enumerate() {
        let _ = writeln!(
            out,
            "<li><a href=\"#s{index}\"><b>{}</b> {}</a></li>",
            escape(section.label),
            escape(section.title)
        );
    }
    out.push_str("</ul>\n</nav>\n");
}

fn section(out: &mut String, section: &Section, index: usize) {
    let _ = writeln!(
        out,
        "<section id=\"s{index}\" aria-labelledby=\"h{index}\">\n\
         <h2 id=\"h{index}\"><span class=\"label\">{}</span> {}</h2>\n<p class=\"question\">{}</p>",
        escape(section.label),
        escape(section.title),
        inline(section.question)
    );
    if !section.commands.is_empty() {
        let commands: Vec<String> = section.commands.iter().map(|command| escape(command)).collect();
        let _ = writeln!(out, "<pre class=\"commands\"><code>{}</code></pre>", commands.join("\n"));
    }
    paragraphs(out, " class=\"answer\"", &section.answer);
    for (number, evidence) in section.evidence.iter().enumerate() {
        block(out, evidence, &format!("f{index}-{number}"));
    }
    out.push_str("</section>\n");
}

fn paragraphs(out: &mut String, class: &str, sentences: &[String]) {
    for sentence in sentences {
        let _ = writeln!(out, "<p{class}>{}</p>", inline(sentence));
    }
}

fn block(out: &mut String, block: &Block, id: &str) {
    match block {
        Block::Table(grid) => table(out, grid),
        Block::Tables(grids) => {
            out.push_str("<div class=\"tables\">\n");
            grids.iter().for_each(|grid| table(out, grid));
            out.push_str("</div>\n");
        }
        Block::Figure(drawing) => figure(out, drawing, id),
    }
}

fn figure(out: &mut String, figure: &Figure, id: &str) {
    let _ = write!(out, "<figure>\n<figcaption>{}", inline(&figure.title));
    if let Chart::Bars(bars) = &figure.chart
        && bars.series.len() > 1
    {
        for (index, name) in bars.series.iter().enumerate() {
            let _ = write!(out, " <span class=\"key\"><i class=\"s{index}\"></i>{}</span>", escape(name));
        }
    }
    let _ = writeln!(out, "</figcaption>\n{}\n</figure>", svg::draw(figure, id));
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "",
        Kind::Number => " class=\"n\"",
        Kind::Hex => " class=\"x\"",
    }
}

fn table(out: &mut String, grid: &Grid) {
    let caption = escape(&grid.caption);
    let _ = write!(
        out,
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\">\n<table>\n\
         <caption><span>{caption}</span></caption>\n<thead><tr>"
    );
    for (heading, kind) in &grid.columns {
        let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(*kind), escape(heading));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    grid.rows.iter().for_each(|row| cells(out, grid, row));
    out.push_str("</tbody>\n");
    if let Some(total) = &grid.total {
        out.push_str("<tfoot>\n");
        cells(out, grid, total);
        out.push_str("</tfoot>\n");
    }
    out.push_str("</table>\n</div>\n");
}

/// A row; its first cell is its heading.
fn cells(out: &mut String, grid: &Grid, row: &[String]) {
    out.push_str("<tr>");
    for (index, (cell, (_, kind))) in row.iter().zip(&grid.columns).enumerate() {
        let (tag, scope) = if index == 0 { ("th", " scope=\"row\"") } else { ("td", "") };
        let _ = write!(out, "<{tag}{scope}{}>{}</{tag}>", class(*kind), escape(cell));
    }
    out.push_str("</tr>\n");
}
