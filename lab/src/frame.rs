//! Lines of any length through Bochs' log, which cuts its BIOS' messages off after 79 bytes.
//!
//! A line travels as several messages: `+` and a piece for all but the last, `.` and a piece for that. In the log
//! each follows the number of instructions emulated so far: `00012345678i[BIOS  ] .{"event":"phase"}`.

/// What a message may hold besides its mark, the end of its line and the zero that Bochs keeps behind it.
const PIECE: usize = 76;
/// What precedes a message in the log, behind the number of instructions.
const SENDER: &[u8] = b"i[BIOS  ] ";
/// Digits that the number of instructions has at least.
const MIN_DIGITS: usize = 11;

/// A line without its end, as messages.
pub fn encode(line: &[u8]) -> Vec<u8> {
    let mut messages = Vec::with_capacity(line.len() + line.len() / 32 + 4);
    let mut pieces = line.chunks(PIECE).peekable();
    while let Some(piece) = pieces.next() {
        messages.push(if pieces.peek().is_some() { b'+' } else { b'.' });
        messages.extend_from_slice(piece);
        messages.push(b'\n');
    }
    messages
}

/// Puts lines together again.
#[derive(Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
    /// Instructions emulated when the log's last line was written.
    pub instructions: u64,
    panic: String,
}

impl Decoder {
    /// Takes a line of the log; gives back a line that is complete by it.
    pub fn push(&mut self, logged: &[u8]) -> Option<Vec<u8>> {
        let digits = logged.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits >= MIN_DIGITS {
            let number = str::from_utf8(&logged[..digits]).ok().and_then(|digits| digits.parse().ok());
            self.instructions = number.unwrap_or(self.instructions);
        }
        if let Some(panic) = logged[digits..].strip_prefix(b"p[") {
            self.panic = String::from_utf8_lossy(panic).into_owned();
        }
        let (mark, piece) = logged[digits..].strip_prefix(SENDER)?.split_first()?;
        match mark {
            b'+' => self.line.extend_from_slice(piece),
            b'.' => {
                self.line.extend_from_slice(piece);
                return Some(std::mem::take(&mut self.line));
            }
            _ => {}
        }
        None
    }

    /// What the emulator said when it gave up; empty if it did not.
    pub fn panic(&self) -> &str {
        &self.panic
    }

    /// Whether it gave up because the machine asked for it.
    pub fn has_shut_down(&self) -> bool {
        self.panic.contains("shutdown requested")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Bochs makes of messages.
    fn log(messages: &[u8]) -> Vec<Vec<u8>> {
        let lines = messages.strip_suffix(b"\n").into_iter().flat_map(|all| all.split(|byte| *byte == b'\n'));
        lines.map(|line| [b"02033004038i[BIOS  ] ", line].concat()).collect()
    }

    #[test]
    fn lines_of_any_length_come_through() {
        let mut decoder = Decoder::default();
        for length in [1, 2, PIECE - 1, PIECE, PIECE + 1, 10 * PIECE, 1000] {
            let line: Vec<u8> = (0..length).map(|at| b'!' + (at % 90) as u8).collect();
            let messages = encode(&line);
            assert!(messages.split(|byte| *byte == b'\n').all(|message| message.len() <= 78));
            let lines: Vec<_> = log(&messages).iter().filter_map(|logged| decoder.push(logged)).collect();
            assert_eq!(lines, [line]);
        }
        assert_eq!(decoder.instructions, 2_033_004_038);
    }

    #[test]
    fn other_lines_of_the_log_only_tell_the_time() {
        let mut decoder = Decoder::default();
        let other: [&[u8]; 4] =
            [b"00000000042e[CPU0  ] RDMSR: Unknown register 0x179", b"", b"====", b"7i[BIOS  ]"];
        assert!(other.iter().all(|line| decoder.push(line).is_none()));
        assert_eq!(decoder.instructions, 42);
        assert_eq!(decoder.push(b"00000000050i[BIOS  ] $Revision$"), None);
    }
}
