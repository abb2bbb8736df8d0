//! What a value of controls sets and whether a machine allows it, as text.

use std::fmt::{self, Write};

use exitscope_caps::check::Answer;
use exitscope_caps::setting::{Bit, Setting};

use super::also;
use crate::text::Table;

/// Shows it to a person; `on` names the machine.
pub fn render(setting: &Setting, on: &str) -> String {
    let mut text = String::new();
    write(&mut text, setting, on).unwrap_or_default();
    text
}

fn write(out: &mut String, setting: &Setting, on: &str) -> fmt::Result {
    let Setting { address, register, value, answer, bits, .. } = setting;
    let subject = format!("{value} by {register} ({address})");
    match answer {
        None => writeln!(out, "{subject}: no machine was asked whether it allows that (--on MACHINE)")?,
        Some(Answer::Yes) => writeln!(out, "yes: {on} allows {subject}")?,
        Some(Answer::No) => writeln!(out, "no: {on} refuses {subject}")?,
        Some(Answer::Unknown) => writeln!(out, "unknown: what was read of {on} does not tell of {subject}")?,
    }
    let refused = bits.iter().any(|bit| bit.answer.is_some_and(|answer| answer != Answer::Yes));
    if refused {
        let mut table =
            Table::new(&["", "CONTROL", "BIT", "VALUE", "ALLOWED", "QEMU, LINUX"]).left(1).left(5);
        for bit in bits {
            let Some(answer) = bit.answer.filter(|answer| *answer != Answer::Yes) else { continue };
            let answer = if answer == Answer::No { "refused" } else { "unknown" };
            let Bit { bits, name, value, allowed, qemu, linux, .. } = bit;
            let cells = [
                answer,
                name,
                &bits.to_string(),
                &value.to_string(),
                allowed.unwrap_or_default(),
                &also(qemu, linux),
            ];
            table.row(cells.map(str::to_owned));
        }
        write!(out, "\n{table}")?;
    }
    let mut table = Table::new(&["SET", "BIT", "WHEN 1", "QEMU, LINUX"]).left(2).left(3);
    for Bit { bits, name, meaning, qemu, linux, .. } in bits.iter().filter(|bit| bit.value == 1) {
        table.row([name, &bits.to_string(), *meaning, &also(qemu, linux)].map(str::to_owned));
    }
    write!(out, "\n{table}")
}
