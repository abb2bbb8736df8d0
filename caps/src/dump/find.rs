//! Finds the registers of a line: by number, by name, or by title.

use super::scan::Line;
use super::token::{Token, is_numeric, number, short};
use super::{is_capability, titles, value};
use crate::Address;
use crate::tables::{self, Register};

/// What a line has of registers.
pub enum Found<'a> {
    /// One whose value may follow.
    Register(Register1),
    /// One that tells nothing of virtualization.
    Other,
    /// A number that may be a register's.
    Unclear(Token<'a>),
    /// A name that should be one of VMX.
    NoSuch(Token<'a>),
}

/// A register in a line.
#[derive(Clone, Copy)]
pub struct Register1 {
    pub address: Address,
    /// The token after it.
    pub next: usize,
    /// Its title, if that is how it is named.
    pub titled: Option<titles::Titled>,
    /// Whether nothing stands before it that says something.
    pub is_alone: bool,
}

/// The register of this name; only words with an underscore are names.
pub fn by_name(word: &str) -> Option<&'static Register> {
    word.contains('_').then(|| tables::by_name(word)).flatten()
}

fn msr(text: &str) -> Option<Address> {
    number(text.trim_end_matches('.'))
        .filter(|number| number.digits <= 8)
        .and_then(|number| Some(Address::Msr(u32::try_from(number.value).ok()?)))
}

/// The first register of a line.
pub fn find_register<'a>(line: &Line<'a, '_>) -> Option<Found<'a>> {
    let tokens = line.tokens;
    let first = tokens.iter().position(|token| !token.separates)?;
    if let Some(titled) = titles::find(tokens) {
        let is_alone = titled.next >= tokens.len();
        let register =
            Register1 { address: titled.address, next: titled.next, titled: Some(titled), is_alone };
        return Some(Found::Register(register));
    }
    let mut unknown = None;
    for (at, token) in tokens.iter().enumerate().filter(|(_, token)| !token.separates) {
        let marked =
            token.is_word(&["msr", "rdmsr", "msrs", "register", "reg"]) || token.text.ends_with(":msr");
        if marked {
            match number_after(tokens, at + 1) {
                Some((address, next)) if is_capability(address) => {
                    return Some(register(address, next, tokens));
                }
                Some(_) => return Some(Found::Other),
                None => {}
            }
        }
        match named(token) {
            Some(Named::Ours(address)) => return Some(register(address, at + 1, tokens)),
            Some(Named::Other) => return Some(Found::Other),
            Some(Named::NoSuch) => unknown = unknown.or(Some(*token)),
            None => {}
        }
        if let Some(found) = bare(tokens, at, first) {
            return Some(found);
        }
    }
    unknown.map(Found::NoSuch)
}

fn register<'a>(address: Address, next: usize, tokens: &[Token<'a>]) -> Found<'a> {
    let says = |token: &Token<'_>| {
        let word = token.text.bytes().any(|byte| byte.is_ascii_alphanumeric());
        word && named(token).is_none() && msr(token.text).is_none() && !token.is_word(&["msr"])
    };
    let is_alone = !tokens[..next].iter().any(says);
    Found::Register(Register1 { address, next, titled: None, is_alone })
}

/// A number that is a register by where it stands: the first word, or with 0x behind a separator.
fn bare<'a>(tokens: &[Token<'a>], at: usize, first: usize) -> Option<Found<'a>> {
    let token = tokens[at];
    let number = number(token.text).filter(|number| number.digits <= 8)?;
    let address = Address::Msr(u32::try_from(number.value).ok()?);
    let next = tokens.get(at + 1);
    let bracketed = at > 0 && (tokens[at - 1].is('[') || tokens[at - 1].is('('));
    if at != first {
        // `port 0x480: 5` and `table[0x480] = 5` are something else.
        let before = tokens[at - 1];
        let apart = before.separates && !bracketed || at == 1 && before.text.parse::<u16>().is_ok();
        let ours = number.marked && is_capability(address) && next.is_some();
        let seldom = address != Address::Msr(0x3A) && !bracketed;
        return match (ours, apart) {
            (true, true) => Some(register(address, at + 1, tokens)),
            (true, false) if seldom && tokens[at + 1..].iter().any(|next| is_numeric(next.text)) => {
                Some(Found::Unclear(token))
            }
            _ => None,
        };
    }
    let named_later =
        || tokens[at + 1..].iter().any(|token| named(token).is_some() || token.is_word(&["msr"]));
    let valued = next.is_some_and(|next| next.separates || is_numeric(next.text) || value::is_unread(next));
    match (is_capability(address), number.marked) {
        (true, true) => Some(register(address, at + 1, tokens)),
        (true, false) if !bracketed && valued && !named_later() => Some(register(address, at + 1, tokens)),
        (false, true) => Some(Found::Other).filter(|_| !named_later()),
        _ => None,
    }
}

/// What a word is as a name of a register.
enum Named {
    Ours(Address),
    Other,
    NoSuch,
}

fn named(token: &Token<'_>) -> Option<Named> {
    if token.separates || token.text.len() < 5 || !token.text.contains('_') {
        return None;
    }
    if let Some(number) = token
        .text
        .get(..4)
        .filter(|start| start.eq_ignore_ascii_case("msr_"))
        .and_then(|_| msr(&token.text[4..]))
    {
        return Some(if is_capability(number) { Named::Ours(number) } else { Named::Other });
    }
    if let Some(register) = by_name(token.text) {
        return Some(Named::Ours(register.address));
    }
    let upper = token.text.to_ascii_uppercase();
    let prefixed = ["MSR_", "IA32_", "A32_"].iter().any(|prefix| upper.starts_with(prefix));
    let vmx =
        upper.contains("_VMX_") && upper.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match (prefixed, vmx) {
        (true, true) => Some(Named::NoSuch),
        (true, false) => Some(Named::Other),
        _ => None,
    }
}

/// The number right behind `MSR`: `MSR 0x480`, `msr[480]`, `MSR(48Bh)`.
fn number_after(tokens: &[Token<'_>], from: usize) -> Option<(Address, usize)> {
    let mut at = from;
    while tokens.get(at).is_some_and(|token| "([:#=".chars().any(|c| token.is(c)) || token.is_word(&["#"])) {
        at += 1;
    }
    let token = tokens.get(at).filter(|token| !token.separates)?;
    let text = token.text.trim_start_matches('#').trim_end_matches('.');
    let numeric = is_numeric(text) || at > from;
    let address = msr(text).filter(|_| numeric)?;
    let closed = tokens.get(at + 1).is_some_and(|token| token.is(']') || token.is(')'));
    Some((address, at + 1 + usize::from(closed)))
}

/// Skips other names and numbers of the same register; one of another is an error.
pub fn aliases(tokens: &[Token<'_>], found: Register1) -> Result<usize, (usize, String)> {
    let mut at = found.next;
    let near = tokens.len().min(found.next + 8);
    for index in found.next..near {
        let token = tokens[index];
        if token.is('=') {
            break;
        }
        let closes = tokens.get(index + 1).is_some_and(|next| next.is(')') || next.is(']'));
        match alias(tokens, index, found) {
            Some(address) if address == found.address => at = index + 1 + usize::from(closes),
            Some(address) => {
                let what =
                    format!("`{}` ({address}) is another register than {}", short(token.text), found.address);
                return Err((token.start, what));
            }
            None if !token.separates && !token.is_word(&["msr"]) => break,
            None => {}
        }
    }
    Ok(at)
}

/// The register that a word behind another is a name of: any name; a number in brackets with more behind it; or the
/// register's own number with a value behind it.
fn alias(tokens: &[Token<'_>], index: usize, found: Register1) -> Option<Address> {
    let token = tokens[index];
    if let Some(Named::Ours(address)) = named(&token) {
        return Some(address);
    }
    let address = msr(token.text).filter(|address| found.titled.is_none() && is_capability(*address))?;
    let bracketed = tokens[index - 1].is('(') || tokens[index - 1].is('[');
    let closes = tokens.get(index + 1).is_some_and(|next| next.is(')') || next.is(']'));
    let more = tokens.len() > index + 2 || address == found.address;
    let assigned = tokens[found.next..index].iter().any(|token| token.is(':'));
    let valued = tokens[index + 1..]
        .iter()
        .find(|token| !token.separates)
        .is_some_and(|token| is_numeric(token.text) || value::is_unread(token) || token.text.contains('`'));
    let own = address == found.address && valued && !assigned && named(&tokens[found.next - 1]).is_some();
    (bracketed && closes && more || own).then_some(address)
}

/// In a row of a table, the first cell from `at` on that is a value; the others are remarks.
pub fn next_valued_cell(tokens: &[Token<'_>], at: usize) -> usize {
    let valued = |token: &Token<'_>| {
        !token.separates
            && (is_numeric(token.text)
                || value::is_unread(token)
                || token.text.contains(['-', '_', '`'])
                    && token.text.starts_with(|c: char| c.is_ascii_digit()))
    };
    let starts = |index: usize| index == 0 || tokens[index - 1].separates;
    (at..tokens.len()).find(|&index| starts(index) && valued(&tokens[index])).unwrap_or(at)
}

/// A name in brackets behind the value that is not its register's.
pub fn names_another<'a>(tokens: &[Token<'a>], next: usize, address: Address) -> Option<Token<'a>> {
    let open = tokens.get(next).filter(|token| token.is('(') || token.is('['))?;
    let token = tokens.get(next + 1)?;
    let closed = tokens.get(next + 2).is_some_and(|token| token.is(')') || token.is(']'));
    let other = matches!(named(token), Some(Named::Ours(other)) if other != address);
    (open.separates && closed && other).then_some(*token)
}

/// The next register of a line with several: `0x480=1, 0x481=2`.
pub fn another(tokens: &[Token<'_>], from: usize) -> Option<Register1> {
    (from..tokens.len().saturating_sub(1)).find_map(|at| {
        let token = tokens[at];
        let assigned = tokens[at + 1].is('=') || tokens[at + 1].is(':');
        if token.separates || !assigned {
            return None;
        }
        let named = match named(&token) {
            Some(Named::Ours(address)) => Some(address),
            _ => msr(token.text).filter(|address| is_capability(*address) && is_numeric(token.text)),
        };
        Some(Register1 { address: named?, next: at + 1, titled: None, is_alone: false })
    })
}

/// A number right before a register, which may be a CPU's or a line's.
pub fn numbered<'a>(tokens: &[Token<'a>], found: Register1) -> Option<Token<'a>> {
    let first = tokens.first().filter(|first| first.text.len() < 4 && first.text.parse::<u16>().is_ok())?;
    let between = tokens.get(1).is_some_and(|token| token.is(',') || token.is('|') || token.is(';'));
    let register = tokens.get(1 + usize::from(between))?;
    let starts = named(register).is_some() || register.text.starts_with("0x") && msr(register.text).is_some();
    (starts && found.next > 1 && found.next <= 3).then_some(*first)
}
