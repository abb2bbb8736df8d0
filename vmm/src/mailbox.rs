//! The DONE and REPORT ports as a pure state machine: bytes in, a status and reports out.

use exitscope_abi::flat::{PORT_DONE, PORT_REPORT};

/// Reports that are kept; a guest that writes more shall not fill the host's memory.
pub const MAX_REPORTS: usize = 4096;

/// A 32-bit register that may be written at once or byte by byte in ascending order.
#[derive(Debug, Default)]
struct Latch([u8; 4]);

impl Latch {
    /// Takes a byte; gives the whole once its last byte has come.
    fn write(&mut self, offset: usize, byte: u8) -> Option<u32> {
        self.0[offset] = byte;
        (offset == 3).then(|| u32::from_le_bytes(std::mem::take(&mut self.0)))
    }
}

/// What a guest has written to its two 32-bit ports.
#[derive(Debug, Default)]
pub struct Mailbox {
    done: Latch,
    report: Latch,
    low_half: Option<u32>,
    reports: Vec<u64>,
}

impl Mailbox {
    /// Whether `port` is a byte of one of the two ports.
    pub fn has(port: u16) -> bool {
        (PORT_DONE..PORT_REPORT + 4).contains(&port)
    }

    /// Takes a write of any width (or a string of them) to `port`; gives the status if that completes DONE.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<u32> {
        let (base, is_done) = if port < PORT_REPORT { (PORT_DONE, true) } else { (PORT_REPORT, false) };
        let first = usize::from(port - base);
        for (index, byte) in data.iter().enumerate() {
            let offset = (first + index) % 4;
            if is_done {
                if let Some(status) = self.done.write(offset, *byte) {
                    return Some(status);
                }
            } else if let Some(half) = self.report.write(offset, *byte) {
                self.take_half(half);
            }
        }
        None
    }

    /// The reports so far, which are gone from here afterwards.
    pub fn take_reports(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.reports)
    }

    /// Joins two halves to a report, low half first.
    fn take_half(&mut self, half: u32) {
        match self.low_half.take() {
            None => self.low_half = Some(half),
            Some(low) if self.reports.len() < MAX_REPORTS => {
                self.reports.push(u64::from(low) | u64::from(half) << 32);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds writes to a mailbox; gives the status, if one came, and the reports.
    fn check(writes: &[(u16, &[u8])], status: Option<u32>, reports: &[u64]) {
        let mut mailbox = Mailbox::default();
        let mut seen = None;
        for (port, data) in writes {
            assert!(Mailbox::has(*port));
            seen = seen.or(mailbox.write(*port, data));
        }
        assert_eq!((seen, mailbox.take_reports().as_slice()), (status, reports), "{writes:x?}");
    }

    #[test]
    fn done_takes_words_and_bytes() {
        check(&[(0x500, &[0, 0, 0, 0])], Some(0), &[]);
        check(&[(0x500, &[7, 1, 0, 0])], Some(0x107), &[]);
        check(&[(0x500, &[1]), (0x501, &[2]), (0x502, &[3]), (0x503, &[4])], Some(0x0403_0201), &[]);
        check(&[(0x500, &[1, 0]), (0x502, &[2, 0])], Some(0x2_0001), &[]);
        check(&[(0x500, &[1]), (0x501, &[2])], None, &[]);
    }

    #[test]
    fn two_words_make_a_report() {
        check(&[(0x504, &[1, 0, 0, 0]), (0x504, &[2, 0, 0, 0])], None, &[0x2_0000_0001]);
        check(&[(0x504, &[1, 0, 0, 0])], None, &[]);
        // REP OUTSD hands over both words at once.
        check(&[(0x504, &[1, 0, 0, 0, 2, 0, 0, 0])], None, &[0x2_0000_0001]);
    }

    #[test]
    fn reports_are_bounded() {
        let mut mailbox = Mailbox::default();
        for _ in 0..MAX_REPORTS + 10 {
            mailbox.write(0x504, &[0; 8]);
        }
        assert_eq!(mailbox.take_reports().len(), MAX_REPORTS);
    }

    #[test]
    fn other_ports_are_not_ours() {
        assert!(!Mailbox::has(0x4ff) && !Mailbox::has(0x508));
    }
}
