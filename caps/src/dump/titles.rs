//! Registers by the titles that logs give them in words, instead of the manual's name.

use super::token::Token;
use crate::Address;
use crate::Address::Msr;

/// Titles in small letters, word for word, and the original form of the register.
///
/// The course's module, VMware's log and QEMU's vmxcap have them.
pub const TITLES: &[(&[&str], Address)] = &[
    (&["pinbased", "controls", "msr"], Msr(0x481)),
    (&["procbased", "primary", "controls", "msr"], Msr(0x482)),
    (&["primary", "procbased", "controls", "msr"], Msr(0x482)),
    (&["procbased", "controls", "msr"], Msr(0x482)),
    (&["procbased", "secondary", "controls", "msr"], Msr(0x48B)),
    (&["secondary", "procbased", "controls", "msr"], Msr(0x48B)),
    (&["procbased", "tertiary", "controls", "msr"], Msr(0x492)),
    (&["tertiary", "procbased", "controls", "msr"], Msr(0x492)),
    (&["exit", "controls", "msr"], Msr(0x483)),
    (&["entry", "controls", "msr"], Msr(0x484)),
    (&["basic", "vmx", "information"], Msr(0x480)),
    (&["pin-based", "vm-execution", "controls"], Msr(0x481)),
    (&["pin-based", "controls"], Msr(0x481)),
    (&["primary", "processor-based", "vm-execution", "controls"], Msr(0x482)),
    (&["primary", "processor-based", "controls"], Msr(0x482)),
    (&["secondary", "processor-based", "vm-execution", "controls"], Msr(0x48B)),
    (&["secondary", "processor-based", "controls"], Msr(0x48B)),
    (&["tertiary", "processor-based", "vm-execution", "controls"], Msr(0x492)),
    (&["tertiary", "processor-based", "controls"], Msr(0x492)),
    (&["vm-exit", "controls"], Msr(0x483)),
    (&["vm-entry", "controls"], Msr(0x484)),
    (&["vpid", "and", "ept", "capabilities"], Msr(0x48C)),
    (&["ept", "and", "vpid", "capabilities"], Msr(0x48C)),
    (&["miscellaneous", "vmx", "data"], Msr(0x485)),
    (&["miscellaneous", "data"], Msr(0x485)),
    (&["vmcs", "enumeration"], Msr(0x48A)),
    (&["vm", "functions"], Msr(0x491)),
];

/// The words that a title can end with.
const ENDS: &[&str] = &["msr", "controls", "information", "capabilities", "data", "enumeration", "functions"];

/// A register by its title.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Titled {
    /// The register; of controls the original form.
    pub address: Address,
    /// The token after the title.
    pub next: usize,
    /// Whether the word before it is `True`.
    pub exact: bool,
}

/// Finds a title.
pub fn find(tokens: &[Token<'_>]) -> Option<Titled> {
    let may = |token: &Token<'_>| {
        let first = token.text.as_bytes().first().map(u8::to_ascii_lowercase);
        matches!(first, Some(b'm' | b'c' | b'i' | b'd' | b'e' | b'f')) && token.is_word(ENDS)
    };
    let last = tokens.iter().position(may).filter(|&last| last > 0)?;
    (0..=last).find_map(|at| {
        let title = |title: &&(&[&str], Address)| {
            title.0.iter().enumerate().all(|(index, word)| {
                tokens.get(at + index).is_some_and(|token| !token.separates && token.is_word(&[word]))
            })
        };
        let (words, address) = TITLES.iter().find(title)?;
        let exact = at > 0 && tokens[at - 1].is_word(&["true"]);
        let start = if exact { at - 1 } else { at };
        let next = at + words.len();
        // `Enable VM functions 13` and `VM functions; HLAT` only speak of it.
        let begins = start == 0 || tokens[start - 1].separates && !tokens[start - 1].is(';');
        let ends = tokens.get(next).is_none_or(|token| "(:=".chars().any(|c| token.is(c)));
        let alone = next < tokens.len() || start == 0;
        (begins && ends && alone).then_some(Titled { address: *address, next, exact })
    })
}

/// The register that a titled value is of: a value that lets a default1 control be 0 is of the TRUE form, and any other
/// says the same in both.
pub fn form(titled: Titled, value: Option<u64>) -> Address {
    let register = crate::tables::find(titled.address);
    let Some(better) = register.and_then(crate::tables::Register::better) else { return titled.address };
    let default1 = match register.map(|register| register.kind) {
        Some(crate::tables::Kind::Controls { default1 }) => u64::from(default1),
        _ => 0,
    };
    let lets = value.is_some_and(|value| default1 & !value != 0);
    if titled.exact || lets { better } else { titled.address }
}
