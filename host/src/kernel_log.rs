//! Reads the kernel's log, record by record, from `/dev/kmsg`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use rustix::fs::{OFlags, makedev};

const DEVICE: &str = "/dev/kmsg";
/// Major and minor number of the log's device.
const NUMBER: (u32, u32) = (1, 11);

/// The log, at a place in it.
#[derive(Debug)]
pub struct KernelLog(File);

impl KernelLog {
    /// The log from its oldest record on.
    pub fn open() -> io::Result<Self> {
        let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(DEVICE)?;
        // Some containers have a console under its name, whose input is not ours to take.
        if file.metadata()?.rdev() != makedev(NUMBER.0, NUMBER.1) {
            return Err(io::Error::other(format!("{DEVICE} is not the kernel's log")));
        }
        Ok(Self(file))
    }

    /// The log from now on.
    pub fn from_now() -> io::Result<Self> {
        let mut log = Self::open()?;
        log.0.seek(SeekFrom::End(0))?;
        Ok(log)
    }

    /// What `pick` takes of the records up to the log's end.
    pub fn read(&mut self, pick: impl Fn(&str) -> Option<String>) -> io::Result<Vec<String>> {
        let mut picked = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => return Ok(picked),
                Ok(length) => picked.extend(pick(&String::from_utf8_lossy(&record[..length]))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(picked),
                // The log has overrun our place in it; the next read goes on at its oldest record.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The text of a record, without what the kernel says about it.
pub fn text_of(record: &str) -> Option<&str> {
    record.split_once(';')?.1.lines().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_record_is_its_first_line_after_the_semicolon() {
        assert_eq!(
            text_of("6,339,5140900,-;exitscope: this; that\n SUBSYSTEM=x\n"),
            Some("exitscope: this; that")
        );
        assert_eq!(text_of("6,339,5140900,-;"), None);
        assert_eq!(text_of("odd"), None);
    }
}
