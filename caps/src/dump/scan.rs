//! The one reader of every text: it looks for registers line by line, and leaves alone what has none.
//!
//! A line may give a register and its value, name the CPU of the lines below, ask a question whose answers follow, or be
//! an answer. Where it is not clear what a value is of, it is refused with its place.

use std::collections::VecDeque;

use super::cpus::{self, Mention};
use super::find::{
    Found, Register1, aliases, another, find_register, names_another, next_valued_cell, numbered,
};
use super::leaf::Table;
use super::rdmsr::{self, Asked, Command};
use super::token::{Token, hex, is_numeric, number, short, split};
use super::value::{self, Outcome};
use super::{Place, Reader, is_capability, leaf, titles};
use crate::Address;

/// A line, its number, and its words.
pub struct Line<'a, 't> {
    pub number: usize,
    pub text: &'a str,
    pub tokens: &'t [Token<'a>],
}

impl Line<'_, '_> {
    /// Where the byte at `start` is.
    pub fn place(&self, start: usize) -> Place {
        let before = self.text.get(..start).unwrap_or(self.text);
        Place { line: self.number, column: before.chars().count() + 1 }
    }

    /// Keeps a register of several CPUs.
    pub fn keep(
        &self,
        reader: &mut Reader,
        start: usize,
        cpus: &[u32],
        address: Address,
        value: Option<u64>,
    ) {
        for &cpu in cpus {
            reader.keep(self.number, cpu, address, value, || self.place(start));
        }
    }
}

/// A question whose answers are the next lines.
struct Pending {
    asked: Asked,
    place: Place,
    /// How many answers there were.
    given: usize,
    asker: Asker,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// A command.
    Command,
    /// A register's name over its values.
    Title,
    /// A title in words, under which there need not be a value.
    Section,
    /// Something whose answers are of no use, which was said if it had to be.
    Refused,
}

/// What is known at a line from those above it.
struct Scanner<'r> {
    reader: &'r mut Reader,
    /// The CPUs of the last heading.
    cpus: Vec<u32>,
    headed: bool,
    /// CPUs that the heading names beside the first, and that read as it does.
    alike: Vec<u32>,
    /// How many CPUs such headings may still name.
    left: usize,
    /// Windows counts 64 CPUs to a group.
    group: u32,
    /// The CPU that the last line with a register named, if it did.
    named: Option<u32>,
    pending: VecDeque<Pending>,
    /// What the lines above say of rows of CPUID's results.
    table: Table,
    /// Whether the table's halves begin with the low one.
    low_first: bool,
}

/// Reads a text of any form but JSON.
pub fn parse(text: &str, reader: &mut Reader) {
    let mut scanner = Scanner {
        reader,
        cpus: vec![0],
        headed: false,
        alike: Vec::new(),
        left: cpus::MOST,
        group: 0,
        named: None,
        pending: VecDeque::new(),
        table: Table::default(),
        low_first: false,
    };
    let mut tokens = Vec::new();
    for (number, line) in (1..).zip(text.split('\n')) {
        if !is_of_no_interest(line) {
            split(line, &mut tokens);
            scanner.line(number, line, &mut tokens);
        }
    }
    scanner.drop_pending();
    scanner.share();
}

/// Most lines of the dumps that people publish are registers that tell nothing of virtualization.
fn is_of_no_interest(line: &str) -> bool {
    let Some(rest) = line.trim_ascii_start().strip_prefix("MSR ") else { return false };
    let digits = rest.as_bytes().get(..8).filter(|_| rest.as_bytes().get(8) == Some(&b':'));
    let number = digits.and_then(|digits| {
        digits.iter().try_fold(0_u32, |number, &digit| Some(number << 4 | char::from(digit).to_digit(16)?))
    });
    number.is_some_and(|number| !is_capability(Address::Msr(number)))
}

impl Scanner<'_> {
    fn line<'a>(&mut self, number: usize, text: &'a str, tokens: &mut Vec<Token<'a>>) {
        if tokens.is_empty() {
            return;
        }
        if let Some(program) = tokens.iter().find(|token| !token.separates && is_access(token.text)) {
            let at = program.start;
            if self.command(number, text, tokens, at) {
                return;
            }
        }
        if let Some(cpus) = cpus::several(tokens, self.left) {
            return self.head(cpus, Place { line: number, column: 1 });
        }
        let trimmed = text.trim();
        let mention = cpus::take(tokens);
        if let Mention::One(cpu) = mention
            && cpus::is_heading(trimmed, tokens)
        {
            let cpu = self.group.saturating_mul(64).saturating_add(cpu);
            return self.head(Ok(vec![cpu]), Place { line: number, column: 1 });
        }
        if mention == Mention::None && self.other_heading(trimmed, tokens) {
            return;
        }
        if trimmed.starts_with(['#', ';']) && !trimmed.starts_with("##") || trimmed.starts_with("//") {
            return;
        }
        if is_command(trimmed) {
            return self.drop_pending();
        }
        let line = Line { number, text, tokens };
        let cpus = match mention {
            Mention::One(cpu) => vec![cpu],
            _ => std::mem::take(&mut self.cpus),
        };
        self.content(&line, mention, &cpus);
        if !matches!(mention, Mention::One(_)) {
            self.cpus = cpus;
        }
    }

    /// What is neither command nor heading: a leaf, registers, an answer, or of no interest.
    fn content(&mut self, line: &Line<'_, '_>, mention: Mention, cpus: &[u32]) {
        let has_halves = line.tokens.iter().any(|token| token.is_lettered() && token.is_word(&["edx"]));
        if has_halves {
            let at = |name| line.tokens.iter().position(|token| token.is_word(&[name]));
            let is_header = !line.tokens.iter().any(|token| !token.separates && is_numeric(token.text));
            if is_header {
                self.low_first = at("ebx").is_none() && at("eax") < at("edx");
            }
        }
        if leaf::read(line, cpus, has_halves, &mut self.table, self.reader) {
            self.remember(mention);
            return self.drop_pending();
        }
        match find_register(line) {
            Some(Found::Register(found)) => {
                self.drop_pending();
                if self.is_clear(line, mention, cpus) {
                    self.registers(line, cpus, found);
                }
            }
            Some(Found::Other) => {
                self.drop_pending();
                self.ignore(line);
            }
            Some(Found::Unclear(token)) => {
                let what = format!(
                    "`{0}` may be something else than a register: write `MSR {0}` if it is one",
                    short(token.text)
                );
                self.reader.complain(line.place(token.start), what);
            }
            Some(Found::NoSuch(token)) => {
                let what = format!("`{}` is no register that is known", short(token.text));
                self.reader.complain(line.place(token.start), what);
            }
            None => self.answer(line, mention),
        }
    }

    fn head(&mut self, cpus: Result<Vec<u32>, String>, place: Place) {
        self.drop_pending();
        self.share();
        self.table = Table::default();
        self.named = None;
        match cpus {
            Ok(cpus) => {
                self.cpus = cpus.first().copied().into_iter().collect();
                self.alike = cpus.get(1..).unwrap_or_default().to_vec();
                self.headed = true;
            }
            Err(what) => self.reader.complain(place, what),
        }
    }

    /// What the first CPU of a heading has is that of the others, too.
    fn share(&mut self) {
        let alike = std::mem::take(&mut self.alike);
        self.left = self.left.saturating_sub(alike.len());
        if let (Some(&first), false) = (self.cpus.first(), alike.is_empty()) {
            self.reader.share(first, &alike);
        }
    }

    /// Headings that name no CPU: the first one's, or a group of them.
    fn other_heading(&mut self, line: &str, tokens: &[Token<'_>]) -> bool {
        if cpus::is_titled(line) {
            self.head(Ok(vec![0]), Place { line: 1, column: 1 });
            return true;
        }
        let mut words = tokens.iter().filter(|token| !token.separates);
        let (first, second, third) = (words.next(), words.next(), words.next());
        if !first.is_some_and(|first| first.is_word(&["cpu"])) {
            return false;
        }
        match (second, third) {
            (None, _) => self.head(Ok(vec![0]), Place { line: 1, column: 1 }),
            (Some(second), Some(number)) if second.is_word(&["group"]) => {
                self.group = number.text.parse().unwrap_or(0);
            }
            _ => return false,
        }
        true
    }

    /// Whether it is clear which CPU the line is of.
    fn is_clear(&mut self, line: &Line<'_, '_>, mention: Mention, cpus: &[u32]) -> bool {
        let what = match (mention, self.named) {
            (Mention::Several, _) => "it names two CPUs".to_owned(),
            (Mention::None, Some(cpu)) if *cpus != [cpu] => {
                format!("of which CPU? the line before names CPU {cpu}, this one none")
            }
            _ => {
                self.remember(mention);
                return true;
            }
        };
        self.reader.complain(line.place(line.tokens.first().map_or(0, |token| token.start)), what);
        false
    }

    fn remember(&mut self, mention: Mention) {
        self.named = match mention {
            Mention::One(cpu) => Some(cpu),
            _ => None,
        };
    }

    /// A line with a program that reads or writes MSRs; whether nothing else is to be looked for in it.
    fn command(&mut self, number: usize, text: &str, tokens: &[Token<'_>], start: usize) -> bool {
        let line = Line { number, text, tokens };
        let word = tokens.iter().position(|token| token.start == start).unwrap_or_default();
        let next = tokens.get(word + 1);
        let program = tokens[word].text;
        if rdmsr::is_program(program, "cpucontrol") {
            let mut rest = tokens.to_vec();
            if let Mention::One(cpu) = cpus::take(&mut rest) {
                self.head(Ok(vec![cpu]), line.place(start));
            }
            return true;
        }
        if next.is_some_and(|next| next.is('(')) && rdmsr::is_program(program, "rdmsr") {
            return false;
        }
        if next.is_some_and(|next| next.is(':')) {
            // What a program or the kernel says of an access.
            self.complaint(&line);
            return true;
        }
        self.drop_pending();
        for command in rdmsr::commands(text) {
            let mut ask = |asked, asker| {
                let place = line.place(start);
                self.pending.push_back(Pending { asked, place, given: 0, asker });
            };
            match command {
                Command::Read(asked, None) => ask(asked, Asker::Command),
                Command::Read(asked, Some(answer)) => self.answered(&line, asked, &answer),
                Command::Silent | Command::Remark => {}
                Command::Refused(what) => {
                    ask(Asked { address: None, cpu: None, all: true, radix: 16 }, Asker::Refused);
                    self.reader.complain(line.place(start), what);
                }
            }
        }
        true
    }

    /// An answer on the command's own line.
    fn answered(&mut self, line: &Line<'_, '_>, asked: Asked, answer: &str) {
        let Some((address, cpu)) = asked.address.zip(asked.cpu) else { return };
        let mut tokens = Vec::new();
        split(answer, &mut tokens);
        let start = line.text.len().saturating_sub(answer.len());
        let at = value::skip_between(&tokens, 0);
        let decimal = tokens.get(at).and_then(|token| rdmsr::answer(token.text, asked.radix));
        match value::read(&tokens, at, address, false) {
            _ if asked.radix != 16 && decimal.is_some() => {
                line.keep(self.reader, start, &[cpu], address, decimal)
            }
            Outcome::Value(value, _) => line.keep(self.reader, start, &[cpu], address, value),
            Outcome::Bad(_, what) => self.reader.complain(line.place(start), what),
            Outcome::End | Outcome::Prose => {}
        }
    }

    /// `rdmsr: CPU 1 cannot read MSR 0x00000491`, `rdmsr: open: Permission denied`.
    fn complaint(&mut self, line: &Line<'_, '_>) {
        let mut tokens = line.tokens.to_vec();
        let mention = cpus::take(&mut tokens);
        let told = rdmsr::complaint(&tokens);
        let asked = self.pending.front().map(|pending| pending.asked);
        let cpu = match mention {
            Mention::One(cpu) => Some(cpu),
            _ => asked.and_then(|asked| asked.cpu),
        };
        for address in [told, asked.and_then(|asked| asked.address)].into_iter().flatten() {
            line.keep(self.reader, 0, cpu.as_slice(), address, None);
        }
        match self.pending.front_mut() {
            Some(pending) if pending.asked.all && pending.asker != Asker::Refused => {
                pending.given += 1;
                pending.asked.cpu = cpu.map(|cpu| cpu.saturating_add(1));
            }
            Some(_) => drop(self.pending.pop_front()),
            None => {}
        }
    }

    /// A value that answers the question before it.
    fn answer(&mut self, line: &Line<'_, '_>, mention: Mention) {
        let mut words = line.tokens.iter().filter(|token| !token.separates);
        let first = words.next();
        let labelled =
            first.filter(|first| first.is_word(&["hex", "raw", "value"])).and_then(|_| words.next());
        let Some(token) = labelled.or(first) else { return };
        let remark = line.tokens.iter().find(|token| token.is('(') || token.text.starts_with('#'));
        let alone = words.next().is_none_or(|next| remark.is_some_and(|remark| remark.start <= next.start));
        let radix = self.pending.front().map_or(16, |pending| pending.asked.radix);
        let unread = value::is_unread(token) && !self.pending.is_empty() && line.tokens.len() < 4;
        let whole = match value::read(line.tokens, position(line.tokens, token), Address::Msr(0), false) {
            Outcome::Value(Some(value), _) if radix == 16 && is_numeric(token.text) => Some(value),
            _ => rdmsr::answer(token.text, radix).filter(|_| alone),
        };
        let shaped =
            alone || token.text.contains('`') || line.tokens.get(1).is_some_and(|token| token.is(':'));
        match whole.filter(|_| shaped) {
            Some(value) => self.answer_is(line, mention, token, Some(value)),
            None if unread => self.answer_is(line, mention, token, None),
            None if alone && !self.pending.is_empty() && is_numeric(token.text) => {
                let wrong = format!("`{}` is no number of base {radix}", short(token.text));
                self.reader.complain(line.place(token.start), hex(token.text, 16).err().unwrap_or(wrong));
                self.answer_is(line, mention, token, None);
            }
            // A password is asked for before the first answer, and more may be said; then the answers are over.
            None if self
                .pending
                .front()
                .is_some_and(|pending| pending.given > 0 || pending.asker != Asker::Command) =>
            {
                self.drop_pending();
            }
            None => {}
        }
    }

    fn answer_is(&mut self, line: &Line<'_, '_>, mention: Mention, token: &Token<'_>, value: Option<u64>) {
        let place = line.place(token.start);
        let Some(pending) = self.pending.front_mut() else {
            let long = number(token.text).is_some_and(|number| number.digits > 8);
            if long {
                let what =
                    format!("`{}` is the value of no register that is named before it", short(token.text));
                self.reader.complain(place, what);
            }
            return;
        };
        pending.given += 1;
        let asked = pending.asked;
        let refused = pending.asker == Asker::Refused;
        let named = if let Mention::One(cpu) = mention { Some(cpu) } else { None };
        let cpu = named.or(asked.cpu);
        if asked.all {
            pending.asked.cpu = cpu.map(|cpu| cpu.saturating_add(1));
        } else if asked.address.is_some() && asked.cpu.is_some() && !refused {
            self.pending.pop_front();
        }
        match (asked.address, cpu) {
            _ if refused => {}
            (Some(address), Some(cpu)) if mention != Mention::Several => {
                line.keep(self.reader, token.start, &[cpu], address, value);
            }
            (None, _) => self
                .reader
                .complain(place, "which MSR it is of only the shell knew: print it beside the value"),
            _ => self.reader.complain(place, "which CPU it is of is not told: print it beside the value"),
        }
    }

    /// The questions that were not answered leave their registers unknown.
    fn drop_pending(&mut self) {
        while let Some(Pending { asked, place, given, asker }) = self.pending.pop_front() {
            match asked.address.zip(asked.cpu) {
                _ if given > 0 || matches!(asker, Asker::Refused | Asker::Section) => {}
                _ if asker == Asker::Title => self.reader.complain(place, "the line ends before its value"),
                Some((address, cpu)) => self.reader.keep(place.line, cpu, address, None, || place),
                None => {}
            }
        }
    }

    /// Every register of a line with its value.
    fn registers(&mut self, line: &Line<'_, '_>, cpus: &[u32], mut found: Register1) {
        if let Some(number) = numbered(line.tokens, found) {
            let what =
                format!("`{0}` may be a CPU's number: write `CPU {0}` or leave it out", short(number.text));
            return self.reader.complain(line.place(number.start), what);
        }
        loop {
            let at = match aliases(line.tokens, found) {
                Ok(at) => at,
                Err((token, what)) => return self.reader.complain(line.place(token), what),
            };
            if let Some(bits) = part(line.tokens, at) {
                let what = "a part of a register says too little: give all of it";
                return self.reader.complain(line.place(bits.start), what);
            }
            let mut at = value::skip_between(line.tokens, at);
            if line.tokens.first().is_some_and(|token| token.is('|')) {
                at = next_valued_cell(line.tokens, at);
            }
            let address = found.address;
            let next = match value::read(line.tokens, at, address, self.low_first) {
                Outcome::Value(value, next) => {
                    let conflict = names_another(line.tokens, next, address);
                    if let Some(token) = conflict {
                        let what = format!("`{}` is another register than {address}", short(token.text));
                        return self.reader.complain(line.place(token.start), what);
                    }
                    let address = found.titled.map_or(address, |titled| titles::form(titled, value));
                    line.keep(self.reader, line.tokens[at].start, cpus, address, value);
                    next
                }
                Outcome::End if found.is_alone => return self.title(line, cpus, found),
                Outcome::End | Outcome::Prose => return,
                Outcome::Bad(at, what) => {
                    let start = line.tokens.get(at).map_or(line.text.len(), |token| token.start);
                    return self.reader.complain(line.place(start), what);
                }
            };
            match another(line.tokens, next) {
                Some(another) => found = another,
                None => return,
            }
        }
    }

    /// A register alone on its line stands over its values: one for each CPU, or the one of the heading's CPU.
    fn title(&mut self, line: &Line<'_, '_>, cpus: &[u32], found: Register1) {
        let place = Place { line: line.number, column: line.text.trim_end().chars().count() + 1 };
        let all = !self.headed;
        let cpu = if all { Some(0) } else { cpus.first().copied() };
        let asked = Asked { address: Some(found.address), cpu, all, radix: 16 };
        let asker = if found.titled.is_some() { Asker::Section } else { Asker::Title };
        self.pending.push_back(Pending { asked, place, given: 0, asker });
    }

    /// The values under the name of a register that is of no interest are none of the register before it.
    fn ignore(&mut self, line: &Line<'_, '_>) {
        let asked = Asked { address: None, cpu: None, all: true, radix: 16 };
        self.pending.push_back(Pending { asked, place: line.place(0), given: 0, asker: Asker::Refused });
    }
}

/// Whether a word is a program that reads or writes MSRs.
fn is_access(word: &str) -> bool {
    let last = word.as_bytes().last().map(u8::to_ascii_lowercase);
    word.len() >= 5
        && matches!(last, Some(b'r' | b'l' | b'e'))
        && ["rdmsr", "wrmsr", "cpucontrol"].iter().any(|program| rdmsr::is_program(word, program))
}

/// Whether a line is typed at a prompt, or is a part of a script.
fn is_command(line: &str) -> bool {
    let first = line.split_whitespace().next().unwrap_or_default();
    let prompt = first.contains('@') && line.contains(['$', '#', '%']) || first == "$" || first == "%";
    let script = ["for", "while", "do", "done", "sudo", "echo", "modprobe", "cat", "ssh"].contains(&first);
    prompt || script || first == "PS" && line.contains('>')
}

fn position(tokens: &[Token<'_>], wanted: &Token<'_>) -> usize {
    tokens.iter().position(|token| token.start == wanted.start).unwrap_or_default()
}

/// Bits in brackets behind a register, as in `IA32_FEATURE_CONTROL[0] = 1`.
fn part<'a>(tokens: &[Token<'a>], at: usize) -> Option<Token<'a>> {
    let first = tokens.get(at + 1).filter(|_| tokens[at].is('['))?;
    is_numeric(first.text).then_some(*first)
}
