//! Lines with the results of CPUID: four of a leaf, or one of them.

use super::Reader;
use super::scan::Line;
use super::token::{Token, hex, is_numeric, number};
use crate::{Address, Gpr};

/// Words between `cpuid` and the leaf.
const BEFORE_LEAF: &[&str] = &["level", "leaf", "fn", "function", "in"];

/// What the lines above say of rows of results.
#[derive(Default)]
pub struct Table {
    /// Whether a header was there.
    is_open: bool,
    /// The leaf and sub-leaf of the guest's row, which the host's follows.
    guests: Option<(u32, u64)>,
}

/// What a line has of CPUID.
enum Found<'a> {
    /// A leaf, its sub-leaf, and its results in order, as they are written.
    Four(u32, u64, Vec<Token<'a>>),
    /// One register of a leaf.
    One(u32, Gpr, Token<'a>),
    /// Results of no leaf.
    Torn(Token<'a>),
    /// Results that are not of this machine, or a table's header.
    Nothing,
}

/// Reads a line if it has results of CPUID, or a part of them; otherwise leaves it to others.
///
/// `has_halves`: the line has the word `edx`.
pub fn read(
    line: &Line<'_, '_>,
    cpus: &[u32],
    has_halves: bool,
    table: &mut Table,
    reader: &mut Reader,
) -> bool {
    let Some(found) = find(line.tokens, has_halves, table) else { return false };
    match found {
        Found::Nothing => {}
        Found::Torn(token) => {
            reader.complain(line.place(token.start), "neither leaf nor sub-leaf before the results");
        }
        Found::Four(leaf, 0 | 0xFFFF_FFFF, results) => four(line, cpus, leaf, &results, reader),
        Found::Four(..) => {}
        Found::One(leaf, gpr, token) => one(line, cpus, Address::Cpuid(leaf, gpr), token, reader),
    }
    true
}

/// Keeps one result; whether it is one.
fn one(line: &Line<'_, '_>, cpus: &[u32], address: Address, token: Token<'_>, reader: &mut Reader) {
    if !super::is_capability(address) {
        return;
    }
    match hex(token.text, 8) {
        Ok(value) => line.keep(reader, token.start, cpus, address, Some(value)),
        Err(_) if super::value::is_unread(&token) => line.keep(reader, token.start, cpus, address, None),
        Err(what) => reader.complain(line.place(token.start), what),
    }
}

fn four(line: &Line<'_, '_>, cpus: &[u32], leaf: u32, results: &[Token<'_>], reader: &mut Reader) {
    let addresses = Gpr::ALL.map(|gpr| Address::Cpuid(leaf, gpr));
    if !addresses.iter().any(|address| super::is_capability(*address)) {
        return;
    }
    if results.len() != addresses.len() {
        let start = results.first().map_or(line.text.len(), |token| token.start);
        return reader.complain(line.place(start), format_args!("{} of CPUID's 4 results", results.len()));
    }
    for (address, token) in addresses.into_iter().zip(results) {
        one(line, cpus, address, *token, reader);
    }
}

fn find<'a>(tokens: &[Token<'a>], has_halves: bool, table: &mut Table) -> Option<Found<'a>> {
    if let Some(found) = has_halves.then(|| labelled(tokens, table)).flatten() {
        return Some(found);
    }
    let marked = tokens.iter().position(|token| token.is_lettered() && is_mark(token.text));
    match marked {
        Some(at) if tokens[at].is_word(&["guestcpuid"]) => Some(Found::Nothing),
        Some(at) => after_mark(tokens, at),
        None => row(tokens, table),
    }
}

fn is_mark(word: &str) -> bool {
    let starts = |mark: &str| word.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark));
    let cpuid = ["cpuid", "hostcpuid", "guestcpuid"].iter().any(|mark| word.eq_ignore_ascii_case(mark));
    cpuid || ["cpuid.", "ext_cpuid", "basic_cpuid", "fn8000", "fn0000"].iter().any(|mark| starts(mark))
}

/// `0x8000000a 0x00: eax=0x00000001 ebx=…`, `eax in: 0x8000000a, eax = 00000001 ebx = …`.
fn labelled<'a>(tokens: &[Token<'a>], table: &mut Table) -> Option<Found<'a>> {
    let label = |gpr: Gpr| {
        let mut at = tokens.iter().enumerate().filter(move |(_, token)| token.is_word(&[gpr.name()]));
        at.next_back().map(|(at, _)| at)
    };
    let [eax, ebx, ecx, edx] = Gpr::ALL.map(label);
    let (eax, ebx, ecx, edx) = (eax?, ebx?, ecx?, edx?);
    let result = |at: usize| {
        let next = (at + 1..at + 3).find(|&next| tokens.get(next).is_some_and(|token| !token.separates))?;
        tokens.get(next).filter(|token| Gpr::ALL.iter().all(|gpr| !token.is_word(&[gpr.name()]))).copied()
    };
    let results: Vec<Token<'a>> = [eax, ebx, ecx, edx].into_iter().filter_map(result).collect();
    if results.is_empty() {
        table.is_open = true;
        return Some(Found::Nothing);
    }
    let numeric = |token: &&Token<'_>| !token.separates && is_numeric(token.text);
    let mut before = tokens[..eax].iter().filter(numeric).filter_map(|token| number(token.text));
    match (before.next().and_then(|leaf| u32::try_from(leaf.value).ok()), before.next()) {
        (Some(leaf), sub_leaf) => Some(Found::Four(leaf, sub_leaf.map_or(0, |sub| sub.value), results)),
        (None, _) => Some(Found::Torn(tokens[0])),
    }
}

/// What stands after a word such as `CPUID`.
fn after_mark<'a>(tokens: &[Token<'a>], at: usize) -> Option<Found<'a>> {
    let word = tokens[at].text.to_ascii_lowercase();
    if word.ends_with("_cpuid") {
        // libcpuid counts leaves in decimal.
        let index = tokens.get(at + 1..at + 3)?.iter().find(|token| !token.separates)?;
        let index: u32 = index.text.parse().ok()?;
        let leaf = if word.starts_with("ext") { 0x8000_0000_u32.checked_add(index)? } else { index };
        let results =
            tokens[at + 2..].iter().skip_while(|token| !token.is('=')).filter(|token| !token.separates);
        return Some(Found::Four(leaf, 0, results.skip(usize::from(false)).copied().collect()));
    }
    if let Some((leaf, gpr, next)) = single(tokens, at, &word) {
        let result = super::value::skip_between(tokens, next);
        return Some(
            tokens.get(result).map_or(Found::Torn(tokens[at]), |token| Found::One(leaf, gpr, *token)),
        );
    }
    let mut words = tokens[at + 1..].iter().filter(|token| !token.separates && !token.is_word(BEFORE_LEAF));
    let leaf = number(words.next()?.text).filter(|leaf| leaf.digits > 1 || leaf.marked)?;
    let leaf = u32::try_from(leaf.value).ok()?;
    let words: Vec<Token<'a>> = words.copied().collect();
    if let Some(first) = words.first().filter(|first| first.text.contains('-')) {
        return Some(dashed(leaf, *first, &words));
    }
    let results = words.iter().take_while(|token| number(token.text).is_some()).copied();
    let mut results: Vec<Token<'a>> = results.collect();
    let sub_leaf =
        if results.len() == 5 { number(results.remove(0).text).map_or(0, |sub| sub.value) } else { 0 };
    Some(Found::Four(leaf, sub_leaf, results))
}

/// `00000001-00008000-00000000-1FBFBCFF`, and perhaps the sub-leaf as `[SL 01]`.
fn dashed<'a>(leaf: u32, results: Token<'a>, words: &[Token<'a>]) -> Found<'a> {
    let sub_leaf =
        words.windows(2).find(|pair| pair[0].is_word(&["sl"])).and_then(|pair| number(pair[1].text));
    let mut start = results.start;
    let parts = results.text.split('-').map(|text| {
        let token = Token { text, start, separates: false };
        start += text.len() + 1;
        token
    });
    Found::Four(leaf, sub_leaf.map_or(0, |sub| sub.value), parts.collect())
}

/// `cpuid.0x8000000a.edx`, `CPUID.8000000AH:EDX`, `Fn8000_000A_EDX`, `CPUID Fn8000_000A_EDX[31:0]`: the leaf, the register,
/// and the token after them.
fn single(tokens: &[Token<'_>], at: usize, word: &str) -> Option<(u32, Gpr, usize)> {
    let gpr = |text: &str| Gpr::ALL.into_iter().find(|gpr| gpr.name().eq_ignore_ascii_case(text));
    let word = match word {
        "cpuid" => tokens.get(at + 1)?.text.to_ascii_lowercase(),
        word => word.to_owned(),
    };
    let next = if tokens[at].is_word(&["cpuid"]) { at + 2 } else { at + 1 };
    let leaf = |text: &str| number(&text.replace('_', "")).and_then(|leaf| u32::try_from(leaf.value).ok());
    let bare = word.strip_prefix("cpuid.").or_else(|| word.strip_prefix("fn"))?;
    if let Some((number, register)) =
        bare.rsplit_once(['.', '_']).filter(|(_, register)| gpr(register).is_some())
    {
        return Some((leaf(number.trim_start_matches("fn"))?, gpr(register)?, next));
    }
    let register = tokens.get(next + 1).filter(|_| tokens[next].is(':') || tokens[next].is('.'))?;
    Some((leaf(bare)?, gpr(register.text)?, next + 2))
}

/// A row of a table of CPUID: the leaf, perhaps the sub-leaf, and four results of 8 digits.
fn row<'a>(tokens: &[Token<'a>], table: &mut Table) -> Option<Found<'a>> {
    if let Some(found) = hosts(tokens, table) {
        return Some(found);
    }
    let words = tokens.iter().filter(|token| !token.separates && !token.is_word(&["-", "->"]));
    let words: Vec<Token<'a>> = words.copied().take(7).collect();
    let wide = |token: &Token<'_>| number(token.text).is_some_and(|number| number.digits == 8);
    let leaf = number(words.first()?.text).filter(|leaf| leaf.digits == 8)?;
    let extended = (0x8000_0000..=0x8FFF_FFFF).contains(&leaf.value);
    let four = |from: usize| {
        words.get(from..from + 4).filter(|_| words.len() == from + 4 && (table.is_open || extended))
    };
    let leaf = u32::try_from(leaf.value).ok()?;
    if let Some(results) = four(1).filter(|results| results.iter().all(wide)) {
        return Some(Found::Four(leaf, 0, results.to_vec()));
    }
    let results = four(2).filter(|results| results.iter().all(wide))?;
    Some(Found::Four(leaf, number(words[1].text)?.value, results.to_vec()))
}

/// VirtualBox' rows `Gst: 8000000a/0000  00000001 …` and, for the same leaf, `Hst:  00000001 …`: the host's count.
fn hosts<'a>(tokens: &[Token<'a>], table: &mut Table) -> Option<Found<'a>> {
    let at = tokens.iter().position(|token| token.is_word(&["gst", "hst"]))?;
    let mut words = tokens[at + 1..].iter().filter(|token| !token.separates).copied().peekable();
    if let Some((leaf, sub_leaf)) = words.peek().and_then(|word| word.text.split_once('/')) {
        words.next();
        table.guests = u32::from_str_radix(leaf, 16).ok().zip(u64::from_str_radix(sub_leaf, 16).ok());
    }
    match table.guests {
        Some((leaf, sub_leaf)) if tokens[at].is_word(&["hst"]) => {
            Some(Found::Four(leaf, sub_leaf, words.collect()))
        }
        _ => Some(Found::Nothing),
    }
}
