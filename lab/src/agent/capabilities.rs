//! What the CPU of the emulated machine can do.

use std::{fs, io};

use exitscope_caps::live::{self, Live};

use crate::job::Event;

/// Reads the capability registers of every CPU, and what the kernel says of the first.
pub fn read() -> io::Result<Event> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let Live { cpus, complaint, .. } = live::read().map_err(io::Error::other)?;
    match complaint {
        Some(complaint) => Err(io::Error::other(complaint)),
        None => Ok(Event::Capabilities {
            name: field(&info, "model name").unwrap_or("an unnamed CPU").into(),
            flags: words(&info, "flags"),
            vmx_flags: words(&info, "vmx flags"),
            cpus,
        }),
    }
}

/// The value of a field of `/proc/cpuinfo`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = info.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

fn words(info: &str, name: &str) -> Vec<String> {
    field(info, name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read() {
        let info = "processor\t: 0\nmodel name\t: A CPU @ 1GHz\nflags\t\t: fpu vmx\n";
        assert_eq!(field(info, "model name"), Some("A CPU @ 1GHz"));
        assert_eq!(words(info, "flags"), ["fpu", "vmx"]);
        assert!(words(info, "vmx flags").is_empty());
        assert_eq!(field(info, "stepping"), None);
    }
}
