//! What a terminal shows of `rdmsr` from msr-tools: commands, values, complaints.

use super::Reader;
use super::words::{Word, cpu_number, hex, lines, short, value, words};
use crate::Address;

/// Whether a line is a command or a complaint of rdmsr.
pub fn is_one(line: &str) -> bool {
    let mut words = line.split(|c: char| c.is_whitespace() || "(:".contains(c)).take(6);
    words.any(|word| word == "rdmsr" || word.ends_with("/rdmsr"))
}

/// A command whose values follow.
#[derive(Clone, Copy)]
struct Command {
    address: Address,
    /// The CPU that the next value is of.
    cpu: u32,
    /// Whether a value for each CPU follows.
    all: bool,
    radix: u32,
}

/// Reads commands and their values.
pub fn parse(text: &str, reader: &mut Reader) {
    let mut pending: Option<Command> = None;
    for (number, line) in lines(text) {
        let trimmed = line.trim();
        if trimmed.is_empty() || (trimmed.starts_with('#') && !is_one(line)) {
            continue;
        }
        if line.contains("cannot read MSR") {
            complaint(reader, number, line);
        } else if is_one(line) {
            pending = command(reader, number, line);
        } else if let Some(word) = words(number, line, &[]).next() {
            answer(reader, &mut pending, word);
        }
    }
}

/// `rdmsr: CPU 0 cannot read MSR 0x00000491`
fn complaint(reader: &mut Reader, number: usize, line: &str) {
    let Some(last) = words(number, line, &[]).last() else { return };
    match (cpu_number(line), hex(last.text, 8)) {
        (Some(cpu), Ok(address)) => {
            reader.keep(last.place, cpu, Address::Msr(u32::try_from(address).unwrap_or(u32::MAX)), None);
        }
        _ => reader.complain(last.place, "which MSR cannot be read is not told"),
    }
}

/// `$ sudo rdmsr -p 1 0x480`, perhaps with the value on the same line.
fn command(reader: &mut Reader, number: usize, line: &str) -> Option<Command> {
    let separators = [':', '=', '(', ')'];
    let mut rest = words(number, line, &separators).skip_while(|word| !word.text.ends_with("rdmsr")).skip(1);
    let (mut cpu, mut all, mut radix) = (0, false, 16);
    let address = loop {
        let Some(word) = rest.next() else {
            reader.complain(super::words::end(number, line), "rdmsr without the MSR's number");
            return None;
        };
        match word.text {
            "-p" | "--processor" => cpu = rest.next().and_then(|word| word.text.parse().ok()).unwrap_or(0),
            "-a" | "--all" => all = true,
            "-f" | "--bitfield" => {
                reader.complain(word.place, "a part of an MSR says too little: leave out -f");
                return None;
            }
            option if option.starts_with('-') => radix = radix_of(option).unwrap_or(radix),
            _ => break word,
        }
    };
    let number = match number_of(address.text) {
        Ok(number) => number,
        Err(what) => {
            reader.complain(address.place, what);
            return None;
        }
    };
    let mut command = Some(Command { address: Address::Msr(number), cpu, all, radix });
    if let Some(word) = rest.next() {
        answer(reader, &mut command, word);
    }
    command
}

/// As the command line takes it: C's way.
fn number_of(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("`{}` is no number of an MSR", short(text)))
}

fn radix_of(option: &str) -> Option<u32> {
    match option {
        "-u" | "-d" | "--unsigned" | "--decimal" => Some(10),
        "-o" | "--octal" => Some(8),
        _ => None,
    }
}

/// A value of the command before it.
fn answer(reader: &mut Reader, pending: &mut Option<Command>, word: Word<'_>) {
    let Some(command) = *pending else {
        return reader.complain(word.place, format_args!("`{}` follows no rdmsr command", short(word.text)));
    };
    match number(word.text, command.radix) {
        Err(what) => reader.complain(word.place, what),
        Ok(value) => {
            reader.keep(word.place, command.cpu, command.address, value);
            *pending = command.all.then_some(Command { cpu: command.cpu.saturating_add(1), ..command });
        }
    }
}

fn number(text: &str, radix: u32) -> Result<Option<u64>, String> {
    if radix == 16 || text.starts_with("0x") {
        return value(text);
    }
    let signed = || if radix == 10 { text.parse::<i64>().ok().map(i64::cast_unsigned) } else { None };
    let parsed = u64::from_str_radix(text, radix).ok().or_else(signed);
    parsed.map(Some).ok_or_else(|| format!("`{}` is no number of base {radix}", short(text)))
}
