//! Which CPU a line speaks of: its own words, or a heading over it.

use super::token::Token;

/// The most CPUs that headings of several may name.
pub const MOST: usize = 4096;

/// Words before a CPU's number.
const CPU: &[&str] = &["cpu", "lcpu", "processor", "thread"];

/// Words that a heading may have beside the CPU's number.
const HARMLESS: &[&str] = &[
    "cpu",
    "logical",
    "processor",
    "thread",
    "id",
    "registers",
    "msr",
    "msrs",
    "cpuid",
    "dump",
    "values",
    "for",
    "on",
    "of",
    "the",
    "online",
];

/// What a line says of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mention {
    /// Nothing.
    None,
    /// One CPU.
    One(u32),
    /// Several, which contradict each other.
    Several,
}

/// Finds the CPU that a line names, and takes the words that name it out of the tokens.
pub fn take(tokens: &mut Vec<Token<'_>>) -> Mention {
    // Few lines have any, and most lines are of no interest.
    if !tokens.iter().any(|token| !token.separates && may_name(token.text)) {
        return Mention::None;
    }
    let mut mention = Mention::None;
    let mut named = vec![false; tokens.len()];
    let mut at = 0;
    // `CPU 8, where unlike CPU 0:` is of CPU 8.
    while at < tokens.len() && !tokens[at].is_word(&["unlike"]) {
        let Some((number, next)) = named_at(tokens, at) else {
            at += 1;
            continue;
        };
        mention = match mention {
            Mention::None => Mention::One(number),
            Mention::One(known) if known == number => mention,
            _ => Mention::Several,
        };
        named[at..next].fill(true);
        at = next;
    }
    let mut named = named.into_iter();
    tokens.retain(|_| !named.next().unwrap_or_default());
    mention
}

fn may_name(word: &str) -> bool {
    let starts = |name: &str| word.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    CPU.iter().any(|name| starts(name)) || starts("/dev/cpu")
}

/// The number of the CPU that the words at `at` name, and where they end.
fn named_at(tokens: &[Token<'_>], at: usize) -> Option<(u32, usize)> {
    let token = tokens[at];
    if token.separates || !may_name(token.text) {
        return None;
    }
    if let Some(path) = token.text.strip_prefix("/dev/cpu") {
        let number = path.trim_start_matches(['c', 't', 'l', '/']).split('/').next()?;
        return Some((number.parse().ok()?, at + 1));
    }
    let name = CPU.iter().find(|name| may_be(token.text, name))?;
    let rest = token.text[name.len()..].trim_start_matches(['#', '-', '_']);
    if !rest.is_empty() {
        return decimal(rest).map(|number| (number, at + 1));
    }
    let mut next = at + 1;
    while tokens
        .get(next)
        .is_some_and(|token| token.is(':') || token.is('=') || token.is_word(&["#", "no", "no."]))
    {
        next += 1;
    }
    let number = tokens.get(next).filter(|token| !token.separates)?;
    // `cpu: 0x480 …` and `CPU: 480 5` begin with a register.
    let apart = next == at + 1 || tokens[at].is_word(&["thread", "processor"]) || tokens.len() == next + 1;
    decimal(number.text.trim_start_matches('#')).filter(|_| apart).map(|number| (number, next + 1))
}

fn may_be(word: &str, name: &str) -> bool {
    word.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
}

fn decimal(text: &str) -> Option<u32> {
    (text.len() <= 6 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// Whether a line that names a CPU, and whose other tokens these are, is a heading over lines of that CPU.
pub fn is_heading(line: &str, rest: &[Token<'_>]) -> bool {
    let ruled = ["--", "__", "==", "##", "**", "~~", "++"].iter().any(|ruler| line.starts_with(ruler));
    let mut words = rest.iter().filter(|token| !token.separates);
    let harmless = |token: &Token<'_>| {
        token.is_word(HARMLESS) || token.text.bytes().all(|byte| byte.is_ascii_punctuation())
    };
    ruled
        || is_titled(line)
        || words.clone().all(harmless)
        || line.ends_with(':')
            && words.all(|token| !token.text.starts_with("0x") && super::find::by_name(token.text).is_none())
}

/// Whether a line is a heading whatever it says of CPUs, and then of the first: `------[ Versions ]------`.
pub fn is_titled(line: &str) -> bool {
    let ruled = line.starts_with("--") && line.contains('[');
    ruled || ["MSR Registers", "CPUID Registers"].iter().any(|heading| line.starts_with(heading))
}

/// `CPUs 0-3, 8:`, and nothing else; an error if they are too many.
///
/// `most` may be named.
pub fn several(tokens: &[Token<'_>], most: usize) -> Option<Result<Vec<u32>, String>> {
    let mut words = tokens.iter().filter(|token| !token.separates);
    if !words.next()?.is_word(&["cpus"]) {
        return None;
    }
    let mut cpus = Vec::new();
    for word in words {
        let (first, last) = word.text.split_once('-').unwrap_or((word.text, word.text));
        let (first, last) = (decimal(first)?, decimal(last)?);
        if first > last || cpus.len() + (last - first) as usize >= most {
            let what =
                format!("`{}` names too many CPUs: {MOST} are the most", super::token::short(word.text));
            return Some(Err(what));
        }
        cpus.extend(first..=last);
    }
    (!cpus.is_empty()).then_some(Ok(cpus))
}

#[cfg(test)]
mod tests {
    use super::super::token::split;
    use super::*;

    fn check(line: &str, expected: Mention, heading: bool) {
        let mut tokens = Vec::new();
        split(line, &mut tokens);
        let mention = take(&mut tokens);
        assert_eq!(mention, expected, "{line}");
        assert_eq!(mention != Mention::None && is_heading(line, &tokens), heading, "{line}");
    }

    #[test]
    fn a_line_names_its_cpu() {
        for (line, number) in [
            ("CPU 3:", 3),
            ("[cpu3]", 3),
            ("CPU #3", 3),
            ("processor\t: 3", 3),
            ("=== Logical CPU 3 ===", 3),
            ("_____ Logical CPU #3 _____", 3),
            ("------[ MSR Registers / Logical CPU #3 Multiplier,36.0x ]------", 3),
            ("MSR Registers (CPU #3 Virtual):", 3),
            (" CPU Thread: 3", 3),
            ("CPU 3, where unlike CPUs 0-1:", 3),
            ("CPU 3, where unlike CPU 0:", 3),
            ("**CPU 3**", 3),
        ] {
            check(line, Mention::One(number), true);
        }
        check("cpu6: MSR_IA32_FEATURE_CONTROL: 0x5", Mention::One(6), false);
        check("0x48b 0x7cff00000000 (CPU 2)", Mention::One(2), false);
        check("cpucontrol -m 0x480 /dev/cpuctl1", Mention::One(1), false);
        check("CPU 1: 0x480 of CPU 2", Mention::Several, false);
        for line in ["CPUID 8000000A: 1", "vcpu0: 5", "CPU: 0x480 5", "Xeon CPU E5-2670", "CPUs 0-3", "x"] {
            check(line, Mention::None, false);
        }
        check("smpboot: CPU 1 is now offline", Mention::One(1), false);
    }

    #[test]
    fn several_cpus_share_a_heading() {
        let read = |line: &'static str| {
            let mut tokens = Vec::new();
            split(line, &mut tokens);
            several(&tokens, MOST)
        };
        assert_eq!(read("CPUs 0-2, 8:"), Some(Ok(vec![0, 1, 2, 8])));
        assert_eq!(read("CPUs 0-2 are fine"), None);
        assert!(matches!(read("CPUs 0-999999"), Some(Err(_))));
    }
}
