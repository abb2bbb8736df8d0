//! The words of a line and the separators between them, and what a word can be as a number.

/// A word, or one separator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a str,
    /// Where it begins in its line, in bytes.
    pub start: usize,
    /// Whether it is a separator, a single character.
    pub separates: bool,
}

impl Token<'_> {
    /// Whether it is this separator.
    pub fn is(&self, separator: char) -> bool {
        self.separates && self.text.starts_with(separator)
    }

    /// Whether it is one of these words, whatever their case.
    #[inline]
    pub fn is_word(&self, words: &[&str]) -> bool {
        !self.separates && words.iter().any(|word| self.text.eq_ignore_ascii_case(word))
    }

    /// Whether it begins as a word does that is no number.
    #[inline]
    pub fn is_lettered(&self) -> bool {
        self.text.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
    }
}

/// Splits a line, which costs time in proportion to its length.
pub fn split<'a>(line: &'a str, tokens: &mut Vec<Token<'a>>) {
    tokens.clear();
    let bytes = line.as_bytes();
    let mut start = None;
    for (index, &byte) in bytes.iter().enumerate() {
        let separates = is_separator(bytes, index);
        if separates || byte.is_ascii_whitespace() {
            if let Some(start) = start.take() {
                tokens.push(Token { text: &line[start..index], start, separates: false });
            }
            if separates {
                tokens.push(Token { text: &line[index..=index], start: index, separates: true });
            }
        } else {
            start.get_or_insert(index);
        }
    }
    if let Some(start) = start {
        tokens.push(Token { text: &line[start..], start, separates: false });
    }
}

/// A backquote between hexadecimal digits is WinDbg's and belongs to the number.
fn is_separator(bytes: &[u8], index: usize) -> bool {
    match bytes[index] {
        b'`' => {
            let digit =
                |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_hexdigit);
            !(digit(index.checked_sub(1)) && digit(index.checked_add(1)))
        }
        byte => b"=:|,;()[]{}<>\"'*".contains(&byte),
    }
}

/// A hexadecimal number as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    pub value: u64,
    /// How many digits it has.
    pub digits: usize,
    /// Whether 0x or h says that it is a number.
    pub marked: bool,
}

/// Reads `0x480`, `480h`, `480`, `0x7cff00000000ULL`; none of more than 16 digits.
pub fn number(text: &str) -> Option<Number> {
    let (digits, marked) = digits(text);
    let hex = !digits.is_empty() && digits.len() <= 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let value = hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()?;
    Some(Number { value, digits: digits.len(), marked })
}

/// The digits of what may be a number, and whether 0x or h marks them.
pub fn digits(text: &str) -> (&str, bool) {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return (digits.trim_end_matches(['u', 'U', 'l', 'L']), true);
    }
    match text.strip_suffix(['h', 'H']) {
        Some(digits) if digits.len() >= 8 || digits.starts_with(|c: char| c.is_ascii_digit()) => {
            (digits, true)
        }
        _ => (text, false),
    }
}

/// Whether a word is a number in someone's eyes: it has a decimal digit, and nothing that no number has.
pub fn is_numeric(text: &str) -> bool {
    let (digits, marked) = digits(text);
    let decimal = digits.bytes().any(|byte| byte.is_ascii_digit());
    let hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex && (decimal || marked)
}

/// A number that is written in two bases alike: `0b101` is 5 to one and 0xb101 to another.
pub fn is_binary(text: &str) -> bool {
    let bits = text.strip_prefix("0b").or_else(|| text.strip_prefix("0B"));
    bits.is_some_and(|bits| {
        !bits.is_empty() && text.len() != 16 && bits.bytes().all(|bit| b"01".contains(&bit))
    })
}

/// A hexadecimal number of at most `most` digits, with or without 0x.
pub fn hex(text: &str, most: usize) -> Result<u64, String> {
    let (bare, _) = digits(text);
    if bare.is_empty() || !bare.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("`{}` is no hexadecimal number", short(text)));
    }
    let wrong = || format!("`{}` has {} digits; {most} is the most", short(text), bare.len());
    if bare.len() > most {
        return Err(wrong());
    }
    u64::from_str_radix(bare, 16).map_err(|_| wrong())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<&str> {
        let mut tokens = Vec::new();
        split(line, &mut tokens);
        tokens.iter().map(|token| token.text).collect()
    }

    #[test]
    fn lines_fall_into_words_and_separators() {
        assert_eq!(words("msr[482] = fff9fffe`0401e172"), ["msr", "[", "482", "]", "=", "fff9fffe`0401e172"]);
        assert_eq!(words("`0x480`: **5**"), ["`", "0x480", "`", ":", "*", "*", "5", "*", "*"]);
        assert_eq!(words("  \t"), [""; 0]);
        assert_eq!(words("é→x"), ["é→x"]);
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        let read = |text| number(text).map(|number| (number.value, number.digits, number.marked));
        assert_eq!(read("0x480"), Some((0x480, 3, true)));
        assert_eq!(read("48Bh"), Some((0x48B, 3, true)));
        assert_eq!(read("7cff00000000"), Some((0x7CFF_0000_0000, 12, false)));
        assert_eq!(read("0x7cff00000000ULL"), Some((0x7CFF_0000_0000, 12, true)));
        for text in ["", "0x", "h", "0x11112222333344445", "zebra", "-1", "each"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert!(is_numeric("12") && is_numeric("0xff") && !is_numeric("add") && !is_numeric("2.67GHz"));
        assert!(is_binary("0b101") && !is_binary("0b12") && !is_binary("0b00000000000001"));
    }
}
