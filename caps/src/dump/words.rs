//! The words of a line, with their columns, and what a word can be.

use super::Place;

/// A word of a line, and where it begins.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    pub text: &'a str,
    pub place: Place,
}

/// The lines of a text with their numbers.
pub fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.split('\n'))
}

/// The words of line number `line`, split at white space and at `separators`.
pub fn words<'a>(line: usize, text: &'a str, separators: &'a [char]) -> impl Iterator<Item = Word<'a>> {
    let split = move |c: char| c.is_whitespace() || separators.contains(&c);
    let texts = text.split(split).filter(|word| !word.is_empty());
    texts.map(move |word| Word { text: word, place: place(line, text, word) })
}

/// Where `part`, a slice of `text`, begins in line number `line`.
pub fn place(line: usize, text: &str, part: &str) -> Place {
    let offset = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
    let before = text.get(..offset).unwrap_or(text);
    Place { line, column: before.chars().count() + 1 }
}

/// Where a line ends.
pub fn end(line: usize, text: &str) -> Place {
    Place { line, column: text.trim_end().chars().count() + 1 }
}

/// A hexadecimal number of at most `digits` digits, with or without 0x.
pub fn hex(text: &str, digits: usize) -> Result<u64, String> {
    let bare = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    if bare.is_empty() || !bare.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("`{}` is no hexadecimal number", short(text)));
    }
    let wrong = || format!("`{}` has {} digits; {digits} is the most", short(text), bare.len());
    if bare.len() > digits {
        return Err(wrong());
    }
    u64::from_str_radix(bare, 16).map_err(|_| wrong())
}

/// The value of a register: hexadecimal, of 16 digits if they are grouped, or a word for "cannot be read".
pub fn value(text: &str) -> Result<Option<u64>, String> {
    if is_unread(text) {
        return Ok(None);
    }
    if !text.contains(['-', '_']) {
        return hex(text, 16).map(Some);
    }
    let digits = text.replace(['-', '_'], "");
    let bare = digits.strip_prefix("0x").unwrap_or(&digits);
    match bare.len() {
        16 => hex(bare, 16).map(Some),
        count => Err(format!("`{}` has {count} digits instead of 16", short(text))),
    }
}

fn is_unread(text: &str) -> bool {
    let word = text.trim_matches(['<', '>', '(', ')', '#', ' ']).to_ascii_lowercase();
    ["failed", "fail", "unreadable", "unknown", "null", "none", "n/a", "gp", "error", "-", "?"]
        .contains(&&*word)
}

/// The first characters of a word, for a message: none of them does anything to a terminal.
pub fn short(text: &str) -> String {
    let mut shown: String =
        text.chars().take(40).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(40).is_some() {
        shown.push('…');
    }
    shown
}

/// The number in `CPU 3`, `CPU #3`, `cpu3` or `CPUID Registers / Logical CPU #3`, wherever the line says it.
pub fn cpu_number(text: &str) -> Option<u32> {
    let lower = text.to_ascii_lowercase();
    lower.split("cpu").skip(1).find_map(|after| {
        let number = after.trim_start_matches([' ', '#', ':', '=']);
        number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}
