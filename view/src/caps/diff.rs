//! Where the capabilities of two machines differ, as text.

use std::fmt::{self, Write};

use exitscope_caps::diff::{Diff, Register, Side};

use super::{indented, name};
use crate::text::Table;

/// Shows it to a person; `a` and `b` name the machines.
pub fn render(diff: &Diff, a: &str, b: &str) -> String {
    let mut text = String::new();
    write(&mut text, diff, a, b).unwrap_or_default();
    text
}

fn write(out: &mut String, diff: &Diff, a: &str, b: &str) -> fmt::Result {
    if diff.same {
        writeln!(out, "{a} and {b} tell the same")?;
    }
    for (index, pair) in diff.pairs.iter().enumerate() {
        writeln!(out, "{}{}", if index > 0 { "\n" } else { "" }, name(&pair.cpus))?;
        for (machine, features) in [(a, &pair.only_a), (b, &pair.only_b)] {
            if !features.is_empty() {
                writeln!(out, "  only {machine} has: {}", features.join("; "))?;
            }
        }
        for register in &pair.registers {
            write_register(out, register, a, b)?;
        }
    }
    Ok(())
}

fn write_register(out: &mut String, register: &Register, a: &str, b: &str) -> fmt::Result {
    let Register { address, name, .. } = register;
    let title = if name.is_empty() { "A register without a name" } else { name };
    writeln!(out, "\n{title} ({address})")?;
    let mut table = Table::new(&["FIELD", "BITS", a, b]);
    table.row(["all".into(), String::new(), register.a.to_string(), register.b.to_string()]);
    for Side { bits, name, a, b } in &register.fields {
        table.row([name.clone(), bits.to_string(), a.clone(), b.clone()]);
    }
    write!(out, "{}", indented(&table))
}
