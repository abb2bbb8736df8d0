//! Whether a guest of one machine runs on another, as text.

use std::fmt::{self, Write};

use exitscope_caps::check::{Answer, Check, Finding, Pair};

use super::name;
use crate::text::Table;

/// Shows the answer to a person; `require` and `on` name the machines.
pub fn render(check: &Check, require: &str, on: &str) -> String {
    let mut text = String::new();
    write(&mut text, check, require, on).unwrap_or_default();
    text
}

fn write(out: &mut String, check: &Check, require: &str, on: &str) -> fmt::Result {
    let words = match check.answer {
        Answer::Yes => format!("yes: {on} has everything"),
        Answer::Unknown => format!("unknown: what was read does not tell whether {on} has everything"),
        Answer::No => format!("no: {on} lacks something"),
    };
    writeln!(out, "{words} that a guest may use on {require}")?;
    let found = check.pairs.iter().filter(|pair| !pair.findings.is_empty());
    for Pair { require: a, on: b, findings } in found {
        if check.pairs.len() > 1 {
            writeln!(out, "\n{} of {require} on {} of {on}", name(a), name(b))?;
        }
        let mut table = Table::new(&["", "REGISTER", "FIELD", "BITS", "REQUIRED", "THERE"]).left(1).left(2);
        for Finding { answer, register, field, bits, require, on, .. } in findings {
            let answer = if *answer == Answer::No { "missing" } else { "unknown" };
            let bits = bits.map(|bits| bits.to_string()).unwrap_or_default();
            table.row([answer, register, field, &bits, require, on].map(str::to_owned));
        }
        write!(out, "\n{table}")?;
    }
    Ok(())
}
