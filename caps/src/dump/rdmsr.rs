//! Commands of msr-tools' `rdmsr`, by the rules of getopt, and what it says when it cannot read.

use super::token::{Token, is_numeric, short};
use crate::Address;
use crate::tables::by_name;

/// How the answers of a command are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which MSR; `None` if only the shell knew.
    pub address: Option<Address>,
    /// Which CPU, or the first of all; `None` if only the shell knew.
    pub cpu: Option<u32>,
    /// Whether an answer of each CPU follows.
    pub all: bool,
    /// The base of the answers.
    pub radix: u32,
}

/// What a command, or what looks like one, asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A reading; with what stands behind it on the line as its answer, if anything does.
    Read(Asked, Option<String>),
    /// No reading that gives an answer: it goes to a file, or is help.
    Silent,
    /// No command: the word in a sentence.
    Remark,
    /// What it answers is of no use, and why.
    Refused(String),
}

/// Long options, the letter that each stands for, and whether it has an argument.
const LONG: &[(&str, char)] = &[
    ("help", 'h'),
    ("version", 'V'),
    ("hexadecimal", 'x'),
    ("capital-hex", 'X'),
    ("decimal", 'd'),
    ("signed", 'd'),
    ("unsigned", 'u'),
    ("octal", 'o'),
    ("c-language", 'c'),
    ("zero-pad", '0'),
    ("zero-fill", '0'),
    ("raw", 'r'),
    ("all", 'a'),
    ("processor", 'p'),
    ("cpu", 'p'),
    ("bitfield", 'f'),
];

/// Whether a word is the program's name.
pub fn is_program(word: &str, name: &str) -> bool {
    let bare = word.rsplit(['/', '\\']).next().unwrap_or(word);
    let bare = bare.strip_suffix(".exe").unwrap_or(bare);
    bare.eq_ignore_ascii_case(name)
}

/// Every command of a line, in order.
pub fn commands(line: &str) -> Vec<Command> {
    let mut commands = Vec::new();
    let line = line.find(" #").filter(|&at| line[..at].contains("rdmsr")).map_or(line, |at| &line[..at]);
    let mut parts = line.split_inclusive([';', '|', '&', '`', '(', ')']).peekable();
    while let Some(part) = parts.next() {
        let piped = part.ends_with('|');
        let part = part.trim_end_matches([';', '|', '&', '`', '(', ')']);
        let mut words = part.split_whitespace();
        if words.by_ref().any(|word| is_program(trim(word), "rdmsr")) {
            let words: Vec<&str> = words.map(trim).filter(|word| !word.is_empty()).collect();
            let filter = parts.peek().filter(|_| piped).and_then(|part| part.split_whitespace().next());
            commands.push(filtered(command(&words), filter));
        }
    }
    commands
}

/// What becomes of the answers in a filter: `uniq` and its like make it unknown which CPU an answer is of.
fn filtered(command: Command, filter: Option<&str>) -> Command {
    let Some(filter) = filter.filter(|filter| !matches!(*filter, "|" | "tee" | "cat" | "less" | "more"))
    else {
        return command;
    };
    match command {
        Command::Read(asked, None) if asked.address.is_none_or(super::is_capability) => match filter {
            "uniq" | "sort" | "head" | "tail" if asked.all => {
                Command::Read(Asked { cpu: None, ..asked }, None)
            }
            "uniq" | "sort" | "head" | "tail" => Command::Read(asked, None),
            _ => Command::Refused(format!("what `{}` makes of its answer is not known", short(filter))),
        },
        other => other,
    }
}

fn trim(word: &str) -> &str {
    word.trim_matches(['"', '\'', '`', ','])
}

/// What getopt has made of the words after `rdmsr`.
struct Options {
    cpu: Option<u32>,
    all: bool,
    radix: u32,
    /// Why the answers are of no use.
    refused: Option<Command>,
    /// The words that are no options, and what follows a number on its line.
    operands: Vec<String>,
    answer: Option<String>,
}

fn command(words: &[&str]) -> Command {
    let Options { cpu, all, radix, refused, operands, answer } = match options(words) {
        Err(command) => return command,
        Ok(options) => options,
    };
    let Some(address) = operands.first().and_then(|operand| number_of(operand)) else {
        return Command::Remark;
    };
    let ours = address.is_none_or(super::is_capability);
    let valued = |word: &String| is_numeric(word) && (word.len() > 4 || word.starts_with("0x"));
    match (refused, operands.get(1)) {
        (Some(refused), _) if ours => refused,
        (_, Some(second)) if ours && operands[1..].iter().any(valued) => {
            Command::Refused(format!("rdmsr reads one MSR; what `{}` is here is not clear", short(second)))
        }
        (_, Some(_)) => Command::Remark,
        _ => Command::Read(Asked { address, cpu, all, radix }, answer),
    }
}

fn options(words: &[&str]) -> Result<Options, Command> {
    let mut options =
        Options { cpu: Some(0), all: false, radix: 16, refused: None, operands: Vec::new(), answer: None };
    let mut words = words.iter().copied();
    let mut only_operands = false;
    while let Some(word) = words.next() {
        if word == "--" && !only_operands {
            only_operands = true;
        } else if let Some(redirection) = word.find('>').filter(|&at| at < 2) {
            // `2>/dev/null` leaves the answer where it was, `>FILE` does not; the name may be the next word.
            if word.ends_with('>') {
                words.next();
            }
            if !word.starts_with('2') && redirection == word.find('>').unwrap_or(0) && word != "->" {
                return Err(Command::Silent);
            }
        } else if word.starts_with("=") || word == ":" || word == "->" || word == "→" {
            options.answer = Some(words.by_ref().collect::<Vec<_>>().join(" "));
            if word.len() > 1 && word.starts_with('=') && word != "=>" && word != "==" {
                options.answer = Some(word[1..].to_owned());
            }
        } else if !only_operands && word.starts_with("--") {
            heed(long(word, &mut words, &mut options), &mut options)?;
        } else if !only_operands && word.len() > 1 && word.starts_with('-') {
            heed(short_options(&word[1..], &mut words, &mut options), &mut options)?;
        } else if let Some((number, answer)) =
            word.split_once([':', '=']).filter(|(number, _)| !number.is_empty())
        {
            options.operands.push(number.to_owned());
            let rest: Vec<&str> = std::iter::once(answer).chain(words.by_ref()).collect();
            let rest = rest.join(" ");
            options.answer = Some(rest).filter(|rest| !rest.trim().is_empty());
        } else {
            options.operands.push(word.to_owned());
        }
    }
    Ok(options)
}

/// A refusal counts only if the MSR is one of ours, which may be said later.
fn heed(result: Result<(), Command>, options: &mut Options) -> Result<(), Command> {
    match result {
        Err(refused @ Command::Refused(_)) => {
            options.refused.get_or_insert(refused);
            Ok(())
        }
        other => other,
    }
}

fn long<'a>(
    word: &'a str,
    words: &mut impl Iterator<Item = &'a str>,
    options: &mut Options,
) -> Result<(), Command> {
    let (name, argument) =
        word[2..].split_once('=').map_or((&word[2..], None), |(name, argument)| (name, Some(argument)));
    let exact = LONG.iter().filter(|(long, _)| *long == name);
    let mut letters: Vec<char> = exact.map(|(_, letter)| *letter).collect();
    if letters.is_empty() && !name.is_empty() {
        letters = LONG.iter().filter(|(long, _)| long.starts_with(name)).map(|(_, letter)| *letter).collect();
        letters.dedup();
    }
    match letters[..] {
        [letter] => option(letter, argument, words, options).map(drop),
        _ => Err(unknown(word)),
    }
}

/// `-xp1` is `-x -p 1`.
fn short_options<'a>(
    letters: &'a str,
    words: &mut impl Iterator<Item = &'a str>,
    options: &mut Options,
) -> Result<(), Command> {
    for (index, letter) in letters.char_indices() {
        let rest = &letters[index + letter.len_utf8()..];
        let takes_rest = option(letter, Some(rest).filter(|rest| !rest.is_empty()), words, options)?;
        if takes_rest {
            break;
        }
    }
    Ok(())
}

/// Heeds one option; whether it took the argument.
fn option<'a>(
    letter: char,
    argument: Option<&'a str>,
    words: &mut impl Iterator<Item = &'a str>,
    options: &mut Options,
) -> Result<bool, Command> {
    let wants = matches!(letter, 'p' | 'f');
    let argument = if wants { argument.or_else(|| words.next()).map(trim) } else { None };
    match (letter, argument) {
        // Of -a and -p the last counts.
        ('p', Some(cpu)) if cpu.contains('$') => (options.cpu, options.all) = (None, false),
        ('p', Some(cpu)) => match c_number(cpu) {
            Some(cpu) => (options.cpu, options.all) = (Some(cpu), false),
            None => return Err(Command::Refused(format!("`{}` is no number of a CPU", short(cpu)))),
        },
        ('f', Some("63:0")) => {}
        ('f', _) => return Err(Command::Refused("a part of an MSR says too little: leave out -f".into())),
        ('r', _) => {
            return Err(Command::Refused("raw bytes cannot be read from a text: leave out -r".into()));
        }
        ('h' | 'V', _) => return Err(Command::Silent),
        ('a', _) => (options.cpu, options.all) = (Some(0), true),
        ('x' | 'X', _) => options.radix = 16,
        ('d' | 'u', _) => options.radix = 10,
        ('o', _) => options.radix = 8,
        ('c' | '0', _) => {}
        ('p', None) => return Err(Command::Refused("-p without the number of a CPU".into())),
        _ => return Err(unknown(&format!("-{letter}"))),
    }
    Ok(wants)
}

fn unknown(option: &str) -> Command {
    Command::Refused(format!("rdmsr has no option `{}`, so what it reads is not known", short(option)))
}

/// The MSR that an operand names: a number in C's way or a name; `Some(None)` if only the shell knew.
fn number_of(text: &str) -> Option<Option<Address>> {
    let text = text.trim_matches(['"', '\'']);
    if text.contains('$') || text.contains('{') {
        return Some(None);
    }
    let number = c_number(text).map(Address::Msr);
    number
        .or_else(|| text.contains('_').then(|| by_name(text)).flatten().map(|register| register.address))
        .map(Some)
}

fn c_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    digits
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then(|| u32::from_str_radix(digits, radix).ok())
        .flatten()
}

/// An answer in the base that the command asked for; one with 0x says itself what it is.
pub fn answer(text: &str, radix: u32) -> Option<u64> {
    let bare = text.trim_end_matches(['u', 'U', 'l', 'L']);
    if radix == 16 || bare.starts_with("0x") || bare.starts_with("0X") {
        return super::token::number(text).map(|number| number.value);
    }
    let signed = || if radix == 10 { bare.parse::<i64>().ok().map(i64::cast_unsigned) } else { None };
    u64::from_str_radix(bare, radix).ok().filter(|_| !bare.starts_with('+')).or_else(signed)
}

/// `rdmsr: CPU 1 cannot read MSR 0x00000491`: the MSR, and the CPU if it is told.
pub fn complaint(tokens: &[Token<'_>]) -> Option<Address> {
    let at = tokens.iter().position(|token| token.is_word(&["cannot"]))?;
    let words = [(1, "read"), (2, "msr")];
    let fits =
        words.iter().all(|(next, word)| tokens.get(at + next).is_some_and(|token| token.is_word(&[word])));
    let number = super::token::number(tokens.get(at + 3).filter(|_| fits)?.text)?;
    u32::try_from(number.value).ok().map(Address::Msr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (Option<u32>, Option<u32>, bool, u32) {
        match &commands(line)[..] {
            [Command::Read(Asked { address, cpu, all, radix }, None)] => {
                let number = address.map(|address| match address {
                    Address::Msr(number) => number,
                    Address::Cpuid(..) => panic!("{line}"),
                });
                (number, *cpu, *all, *radix)
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn options_have_getopts_forms() {
        for line in [
            "$ sudo rdmsr -p1 0x48b",
            "rdmsr -p 1 0x48b",
            "rdmsr -xp1 0x48b",
            "rdmsr -xp 1 0x48b",
            "rdmsr -0p1 0x48b",
            "rdmsr --processor=1 0x48b",
            "rdmsr --processor 1 0x48b",
            "rdmsr --proc=0x1 0x48B",
            "rdmsr --cpu=1 0x48b",
            "rdmsr 0x48b -p1",
            "rdmsr -p1 -- 0x48b",
            "rdmsr -p1 1163",
            "rdmsr -p1 02213",
            "rdmsr -p1 IA32_VMX_PROCBASED_CTLS2",
            "/usr/sbin/rdmsr -f 63:0 -p1 0x48b 2>/dev/null # mine",
            "root@host:~# ssh other 'rdmsr -c -p1 0x48b'",
            "rdmsr -u -x -p1 0x48b",
        ] {
            assert_eq!(read(line), (Some(0x48B), Some(1), false, 16), "{line}");
        }
        assert_eq!(read("rdmsr -a 0x3a | uniq"), (Some(0x3A), None, true, 16));
        assert_eq!(read("rdmsr -a 0x3a | tee log"), (Some(0x3A), Some(0), true, 16));
        assert_eq!(read("rdmsr 0x3a || echo failed"), (Some(0x3A), Some(0), false, 16));
        assert_eq!(read("rdmsr -f 29:24 -d 0x1a2"), (Some(0x1A2), Some(0), false, 10), "of no interest");
        assert_eq!(read("rdmsr -ax 0x3a"), (Some(0x3A), Some(0), true, 16));
        assert_eq!(read("rdmsr -p3 -a 0x3a"), (Some(0x3A), Some(0), true, 16));
        assert_eq!(read("rdmsr -ap3 0x3a"), (Some(0x3A), Some(3), false, 16));
        assert_eq!(read("rdmsr --all -u 0x3a"), (Some(0x3A), Some(0), true, 10));
        assert_eq!(read("rdmsr -oa 0x3a"), (Some(0x3A), Some(0), true, 8));
        assert_eq!(read("for i in 0 1; do rdmsr -p $i 0x3a; done"), (Some(0x3A), None, false, 16));
        assert_eq!(read("for i in 0x3a; do rdmsr $i; done"), (None, Some(0), false, 16));
        assert_eq!(commands("rdmsr 0x3a; rdmsr 0x480 && rdmsr -a 0x481").len(), 3);
    }

    #[test]
    fn what_says_nothing_of_an_msr_is_refused() {
        for line in [
            "rdmsr -f 31:0 0x48b",
            "rdmsr -f31:0 0x48b",
            "rdmsr -xf 31:0 0x48b",
            "rdmsr --bitfield=5:5 0x48b",
            "rdmsr --bit 5:5 0x48b",
            "rdmsr -r 0x48b",
            "rdmsr -q 0x48b",
            "rdmsr --nonsense 0x48b",
            "rdmsr -p x 0x48b",
            "rdmsr 0x48b 0x480",
            "rdmsr 0x48b | awk '{print $1}'",
            "I ran rdmsr 0x48b and got 7cff00000000",
        ] {
            assert!(matches!(commands(line)[..], [Command::Refused(_)]), "{line}: {:?}", commands(line));
        }
    }

    #[test]
    fn a_sentence_is_no_command() {
        for line in ["# collected with rdmsr", "use rdmsr to see", "rdmsr 0x48b and look", "the rdmsr output"]
        {
            assert_eq!(commands(line), [Command::Remark], "{line}");
        }
        assert_eq!(commands("rdmsr --help"), [Command::Silent]);
        assert_eq!(commands("rdmsr 0x48b > out"), [Command::Silent]);
        assert_eq!(commands("wrmsr 0x3a 5"), []);
    }

    #[test]
    fn answers_have_the_base_that_was_asked_for() {
        assert_eq!(answer("18", 16), Some(0x18));
        assert_eq!(answer("18", 10), Some(18));
        assert_eq!(answer("-1", 10), Some(u64::MAX));
        assert_eq!(answer("022", 8), Some(18));
        assert_eq!(answer("0x12", 10), Some(18));
        assert_eq!(answer("x", 10), None);
    }
}
