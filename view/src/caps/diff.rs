//! Where the capabilities of two machines differ, as text.

use std::fmt::{self, Write};

use exitscope_caps::diff::{Diff, Register, Side};

use super::{also, indented, name, table};

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
    let mut rows = vec![(
        vec!["all".into(), String::new(), register.a.to_string(), register.b.to_string()],
        String::new(),
    )];
    rows.extend(register.fields.iter().map(|side| {
        let Side { bits, name, a, b, qemu, linux } = side;
        (vec![name.clone(), bits.to_string(), a.clone(), b.clone()], also(qemu, linux))
    }));
    write!(out, "{}", indented(&table(&["FIELD", "BITS", a, b], &[], rows)))
}
