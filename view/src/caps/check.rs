//! Whether a guest of one machine runs on another, as text.

use std::fmt::{self, Write};

use exitscope_caps::Address;
use exitscope_caps::check::{Answer, Check, Finding, Pair};
use exitscope_caps::tables::find;

use super::{also, name};
use crate::text::Table;

/// Shows the answer to a person; `require` and `on` name the machines.
pub fn render(check: &Check, require: &str, on: &str) -> String {
    let mut text = String::new();
    write(&mut text, check, require, on).unwrap_or_default();
    text
}

fn write(out: &mut String, check: &Check, require: &str, on: &str) -> fmt::Result {
    let asked = match check.only.map(|only| (only, find(only))) {
        Some((only, Some(register))) => format!("{require} asks of {} ({only})", register.name),
        _ if check.pairs.iter().any(|pair| pair.require.is_empty()) => format!("is required: {require}"),
        _ => format!("a guest may use on {require}"),
    };
    let words = match check.answer {
        Answer::Yes => format!("yes: {on} has everything that {asked}"),
        Answer::Unknown => {
            format!("unknown: what was read does not tell whether {on} has everything that {asked}")
        }
        Answer::No => format!("no: {on} lacks something that {asked}"),
    };
    writeln!(out, "{words}")?;
    let found = check.pairs.iter().filter(|pair| !pair.findings.is_empty());
    for Pair { require: a, on: b, findings } in found {
        if check.pairs.len() > 1 {
            let first = if a.is_empty() { String::new() } else { format!("{} of {require} on ", name(a)) };
            writeln!(out, "\n{first}{} of {on}", name(b))?;
        }
        write_findings(out, findings)?;
    }
    if !check.untold.is_empty() {
        writeln!(out, "\nnot told by {require}: {}", list(check.untold.iter().copied()))?;
    }
    Ok(())
}

/// A row for each field; the registers that are unknown as a whole in one line.
fn write_findings(out: &mut String, findings: &[Finding]) -> fmt::Result {
    let whole = |finding: &&Finding| {
        let plain = [&finding.require, &finding.on].iter().all(|side| !side.contains("cannot be"));
        finding.answer == Answer::Unknown
            && finding.bits.is_none()
            && plain
            && find(finding.address).is_some_and(|register| !register.is_switch())
    };
    let mut rows = findings.iter().filter(|finding| !whole(finding)).peekable();
    if rows.peek().is_some() {
        let columns = ["", "REGISTER", "FIELD", "BITS", "REQUIRED", "THERE", "QEMU, LINUX"];
        let mut table = Table::new(&columns).left(1).left(2).left(6);
        for Finding { answer, register, field, bits, require, on, qemu, linux, .. } in rows {
            let answer = if *answer == Answer::No { "missing" } else { "unknown" };
            let bits = bits.map(|bits| bits.to_string()).unwrap_or_default();
            let cells = [answer, register, field, &bits, require, on, &also(qemu, linux)];
            table.row(cells.map(str::to_owned));
        }
        write!(out, "\n{table}")?;
    }
    let mut unknown: Vec<Address> = findings.iter().filter(whole).map(|finding| finding.address).collect();
    unknown.dedup();
    if !unknown.is_empty() {
        writeln!(out, "\nunknown: {}", list(unknown.into_iter()))?;
    }
    Ok(())
}

/// Registers by name and address.
fn list(addresses: impl Iterator<Item = Address>) -> String {
    let named = addresses.map(|address| match find(address) {
        Some(register) => format!("{} ({address})", register.name),
        None => address.to_string(),
    });
    named.collect::<Vec<_>>().join(", ")
}
