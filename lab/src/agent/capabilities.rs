//! What the CPU of the emulated machine can do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use exitscope_abi::reason::Isa;
use exitscope_host::caps::{Address, ask};

use crate::job::Event;

/// The MSRs of the first CPU, as the driver `msr` reads them.
const MSRS: &str = "/dev/cpu/0/msr";

/// Reads the capability MSRs.
pub fn read() -> io::Result<Event> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let isa = if word(&info, "flags", "vmx") { Isa::Vmx } else { Isa::Svm };
    let file = File::open(MSRS).map_err(|error| io::Error::new(error.kind(), format!("{MSRS}: {error}")))?;
    let cpu = ask::read_msrs(0, isa, |number| {
        let mut value = [0; 8];
        file.read_exact_at(&mut value, number.into()).ok().map(|()| u64::from_ne_bytes(value))
    });
    let msrs = cpu.registers.iter().filter_map(|&(address, value)| match address {
        Address::Msr(number) => Some((number, value)),
        Address::Cpuid(..) => None,
    });
    Ok(Event::Capabilities {
        cpu: field(&info, "model name").unwrap_or("an unnamed CPU").into(),
        msrs: msrs.collect(),
    })
}

/// The value of a field of `/proc/cpuinfo`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = info.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

fn word(info: &str, name: &str, word: &str) -> bool {
    field(info, name).is_some_and(|value| value.split(' ').any(|found| found == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read() {
        let info = "processor\t: 0\nmodel name\t: A CPU @ 1GHz\nflags\t\t: fpu vmx\n";
        assert_eq!(field(info, "model name"), Some("A CPU @ 1GHz"));
        assert!(word(info, "flags", "vmx") && !word(info, "flags", "svm"));
        assert_eq!(field(info, "stepping"), None);
    }
}
