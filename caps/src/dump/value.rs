//! The value that stands after a register, in whatever way it is written down.

use super::token::{Number, Token, digits, hex, is_binary, is_numeric, number, short};
use crate::Address;

/// What stands where a value is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A value, or a word that says that it could not be read; and the token after it.
    Value(Option<u64>, usize),
    /// The line is over.
    End,
    /// Words that are no value.
    Prose,
    /// Something that may be a value, and then it is not clear which; with the token that is wrong.
    Bad(usize, String),
}

/// Words between a register and its value.
const BETWEEN: &[&str] = &[
    "is", "to", "value", "val", "reads", "read", "contains", "has", "returned", "returns", "hex", "raw",
    "msr", "->", "=>", "→", "==", "-->", ":=",
];

/// Words for "could not be read".
const UNREAD: &[&str] = &[
    "failed",
    "fail",
    "unreadable",
    "unknown",
    "null",
    "none",
    "n/a",
    "na",
    "gp",
    "#gp",
    "#gp(0)",
    "error",
    "?",
    "-",
    "--",
    "cannot",
    "can't",
    "couldn't",
    "not",
    "unsupported",
    "denied",
    "eio",
    "inaccessible",
    "unavailable",
    "faulted",
];

/// Names of the halves of a register: the high one, the low one.
const HALVES: [&[&str]; 2] = [
    &["edx", "high", "hi", "upper", "hi32", "high32", "rdx"],
    &["eax", "low", "lo", "lower", "lo32", "low32", "rax"],
];

/// Whether a word says that something could not be read.
pub fn is_unread(word: &Token<'_>) -> bool {
    let questions = !word.separates && word.text.bytes().all(|byte| byte == b'?');
    questions || word.is_word(UNREAD)
}

/// Skips what may stand between a register and its value: separators, a few words, a remark in brackets.
pub fn skip_between(tokens: &[Token<'_>], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        let leads = |token: &Token<'_>| token.is('>') || is_value_like(token);
        let dash = token.is_word(&["-", "--"]) && tokens.get(at + 1).is_some_and(leads);
        if token.is('(') || token.is('[') {
            match closing(tokens, at) {
                Some(close) if !tokens[at + 1..close].iter().any(is_value_like) => at = close + 1,
                _ => at += 1,
            }
        } else if token.separates || token.is_word(BETWEEN) || dash {
            at += 1;
        } else {
            break;
        }
    }
    at
}

fn is_value_like(token: &Token<'_>) -> bool {
    !token.separates && (is_numeric(token.text) || is_unread(token) && token.text.len() > 1)
}

/// The bracket that closes the one at `open`, if it comes soon.
fn closing(tokens: &[Token<'_>], open: usize) -> Option<usize> {
    let end = if tokens[open].is('(') { ')' } else { ']' };
    (open + 1..tokens.len().min(open + 12)).find(|&at| tokens[at].is(end))
}

/// Reads the value at `at`, after [`skip_between`]. `low_first`: two words are halves of which the low one comes first.
pub fn read(tokens: &[Token<'_>], at: usize, address: Address, low_first: bool) -> Outcome {
    let Some(token) = tokens.get(at) else { return Outcome::End };
    if is_unread(token) {
        return Outcome::Value(None, at + 1);
    }
    if half(token).is_some() {
        return labelled(tokens, at);
    }
    if token.text.contains(['-', '_', '`']) && token.text.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return grouped(tokens, at);
    }
    if !is_numeric(token.text) && !lone_letters(tokens, at) {
        return words(tokens, at);
    }
    if is_binary(token.text) {
        return Outcome::Bad(at, format!("`{}` may be binary or hexadecimal: write 0x", short(token.text)));
    }
    if let Some(outcome) = parts(tokens, at, low_first) {
        return outcome;
    }
    let most = address.width() as usize / 4;
    let value = match hex(token.text, most) {
        Ok(value) => value,
        Err(what) => return Outcome::Bad(at, what),
    };
    match after(tokens, at + 1) {
        Some(more) => {
            Outcome::Bad(more, format!("`{}` after the value: which is it?", short(tokens[more].text)))
        }
        None => Outcome::Value(Some(value), at + 1),
    }
}

/// `add` and `face` are words, unless nothing else stands there.
fn lone_letters(tokens: &[Token<'_>], at: usize) -> bool {
    number(tokens[at].text).is_some() && tokens[at + 1..].iter().all(|token| token.separates)
}

/// No value: told if it looks as if it should have been one.
fn words(tokens: &[Token<'_>], at: usize) -> Outcome {
    let text = tokens[at].text;
    let alone = tokens[at + 1..].iter().all(|token| token.separates)
        && at.checked_sub(1).is_none_or(|before| !tokens[before].is(')'));
    let digit = text.starts_with(|c: char| c.is_ascii_digit());
    match digit || alone {
        true => Outcome::Bad(at, format!("`{}` is no hexadecimal number", short(text))),
        false => Outcome::Prose,
    }
}

/// `03DA-0500-0000-0013`, `00007cff_00000000`, ``fff9fffe`0401e172``: 16 digits, or groups of the same length after a
/// shorter first one.
fn grouped(tokens: &[Token<'_>], at: usize) -> Outcome {
    let text = tokens[at].text;
    let (bare, _) = digits(text);
    let groups: Vec<&str> = bare.split(['-', '_', '`']).collect();
    let whole = groups.concat();
    let even = groups[1..].iter().all(|group| group.len() == groups[1].len() && matches!(group.len(), 4 | 8));
    let shorter = (1..=groups[1].len()).contains(&groups[0].len());
    let loose = !text.contains('-') && even && shorter && whole.len() <= 16;
    if !whole.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Outcome::Bad(at, format!("`{}` is no hexadecimal number", short(&whole)));
    }
    match u64::from_str_radix(&whole, 16) {
        Ok(value) if whole.len() == 16 || loose => Outcome::Value(Some(value), at + 1),
        _ => Outcome::Bad(at, format!("`{}` has {} digits instead of 16", short(text), whole.len())),
    }
}

/// A value in parts: `HIGH:LOW`, `HIGH LOW` of 8 digits each, 4 words of 4 digits, or 8 bytes.
fn parts(tokens: &[Token<'_>], at: usize, low_first: bool) -> Option<Outcome> {
    let word =
        |at: usize| tokens.get(at).filter(|token| !token.separates).and_then(|token| number(token.text));
    let first = number(tokens[at].text)?;
    let colon = tokens.get(at + 1).is_some_and(|token| token.is(':'));
    let second = |at| word(at).filter(|_| is_numeric(tokens[at].text));
    let halves = |low: Number, high: Number, next| {
        let fit = [low, high].iter().all(|half| half.digits == 8 || half.marked && half.digits <= 8 && colon);
        let more = after(tokens, next).is_some();
        (fit && !more && low.marked == high.marked)
            .then_some(Outcome::Value(Some(high.value << 32 | low.value), next))
    };
    if colon {
        let second = second(at + 2)?;
        let bad = || Outcome::Bad(at + 2, "which half is it? 8 digits before the colon and 8 after".into());
        return Some(halves(second, first, at + 3).unwrap_or_else(bad));
    }
    if first.digits == 8 {
        let second = second(at + 1)?;
        return if low_first { halves(first, second, at + 2) } else { halves(second, first, at + 2) };
    }
    let (count, width) = match first.digits {
        2 => (8, 2),
        4 => (4, 4),
        _ => return None,
    };
    let pieces: Option<Vec<Number>> = (at..at + count).map(word).collect();
    let pieces = pieces.filter(|pieces| pieces.iter().all(|piece| piece.digits == width && !piece.marked))?;
    if after(tokens, at + count).is_some() {
        return None;
    }
    let value = pieces.iter().fold(0, |value, piece| value << (4 * width) | piece.value);
    Some(Outcome::Value(Some(value), at + count))
}

/// The number that stands right after a value, so that it is not clear which of them is the value.
fn after(tokens: &[Token<'_>], next: usize) -> Option<usize> {
    let mut at = next;
    let skipped = |token: &Token<'_>| {
        "|,;:`\"'*=>".chars().any(|c| token.is(c))
            || token.is_word(&["-", "->", "=>", "→", "to", "vs", "/", "or"])
    };
    while tokens.get(at).is_some_and(skipped) {
        at += 1;
    }
    let token = tokens.get(at).filter(|token| !token.separates)?;
    // `FF` right behind a value is a number, too.
    let letters = at == next && token.text.len() > 1 && number(token.text).is_some();
    // `0x480=1, 0x481=2` goes on with another register.
    let assigned = tokens.get(at + 1).is_some_and(|token| token.is('=') || at > next && token.is(':'));
    ((is_numeric(token.text) || letters) && !assigned).then_some(at)
}

fn half(token: &Token<'_>) -> Option<usize> {
    HALVES.iter().position(|names| token.is_word(names))
}

/// `edx=0x7cff eax=0x0`, `EDX:EAX = 00007cff:00000000`.
fn labelled(tokens: &[Token<'_>], at: usize) -> Outcome {
    let (mut labels, mut numbers) = (Vec::new(), Vec::new());
    let mut next = at;
    for (index, token) in tokens.iter().enumerate().skip(at).take(16) {
        if let Some(which) = half(token) {
            labels.push(which);
        } else if let Some(number) = number(token.text).filter(|_| !token.separates) {
            numbers.push(number);
        } else if !token.separates || token.is('(') {
            break;
        }
        next = index + 1;
    }
    let fit = numbers.iter().all(|number| number.digits <= 8);
    match (labels.as_slice(), numbers.as_slice()) {
        ([0, 1], [high, low]) | ([1, 0], [low, high]) if fit => {
            Outcome::Value(Some(high.value << 32 | low.value), next)
        }
        ([0, 1], [whole]) if whole.digits == 16 => Outcome::Value(Some(whole.value), next),
        _ => Outcome::Bad(at, "both halves are needed, each with its name".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::token::split;
    use super::*;

    fn told(line: &str) -> Outcome {
        let mut tokens = Vec::new();
        split(line, &mut tokens);
        read(&tokens, skip_between(&tokens, 1), Address::Msr(0x48B), false)
    }

    fn value(line: &str, expected: u64) {
        assert!(
            matches!(told(line), Outcome::Value(Some(value), _) if value == expected),
            "{line}: {:?}",
            told(line)
        );
    }

    fn bad(line: &str) {
        assert!(matches!(told(line), Outcome::Bad(..)), "{line}: {:?}", told(line));
    }

    #[test]
    fn values_come_in_many_ways() {
        for text in [
            "x 0x00007cff00000000",
            "x = 7cff00000000",
            "x: 7CFF00000000h",
            "x -> 0x7cff00000000ULL",
            "x] = 00007cff`00000000",
            "x 0000-7CFF-0000-0000 [S200]",
            "x = 0x7cff_0000_0000",
            "x = 0x00007CFF:0x00000000 (IA32_VMX)",
            "x = 0x7cff:0x0",
            "x 00007cff:00000000",
            "x: 0x00007cff 0x00000000",
            "x=00 00 7c ff 00 00 00 00",
            "x 0000 7cff 0000 0000",
            "x EDX:EAX = 00007cff:00000000",
            "x eax=0x0 edx=0x7cff",
            "x hi: 7cff lo: 0",
            "x | 0x7cff00000000 |",
            "x (secondary controls) 0x7cff00000000 # 5",
            "x 0x7cff00000000, the rest",
        ] {
            value(text, 0x7CFF_0000_0000);
        }
        assert_eq!(told("x < FAILED >"), Outcome::Value(None, 3));
        assert_eq!(told("x -"), Outcome::Value(None, 2));
        assert_eq!(told("x ="), Outcome::End);
        assert_eq!(told("x .vmx-rdrand-exit [bit 11]"), Outcome::Prose);
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for text in [
            "x 1 2",
            "x 0x1 | 0x2",
            "x 0b101",
            "x 7cff:0",
            "x 0x11112222333344445",
            "x 03DA-0500",
            "x eax=5",
            "x 00 01",
            "x 0000000z",
            "x zebra",
            "x 00000001 00000002 00000003",
            "x 7C FF 00 00 00 00",
            "x 0x7cff00000000 -> 0x3cff00000000",
        ] {
            bad(text);
        }
    }
}
