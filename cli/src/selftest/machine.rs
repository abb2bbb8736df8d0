//! What machine this is, without its name.

use std::fs;

use exitscope_abi::reason::Isa;
use exitscope_host::source::Source;
use exitscope_model::selftest::Machine;

/// The machine, as far as it tells before a guest has run.
pub fn describe(isa: Isa, source: &Source) -> Machine {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let emulator = source.origin().emulator.clone();
    let (vendor, parameter) = match isa {
        Isa::Svm => ("amd", "kvm_amd/parameters/npt"),
        Isa::Vmx => ("intel", "kvm_intel/parameters/ept"),
    };
    let paging = match switch(parameter) {
        Some(true) => "nested",
        Some(false) => "shadow",
        None => "",
    };
    Machine {
        vendor: vendor.into(),
        cpu: line(&info, "model name").unwrap_or("a CPU without a name").to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        // An emulator's CPU says the same as a hypervisor's.
        nested: emulator.is_empty()
            && line(&info, "flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        paging: paging.into(),
        tsc_khz: 0,
        emulated: !emulator.is_empty(),
        emulator,
    }
}

/// Whether KVM's guests may run guests themselves.
pub fn nested_guests() -> bool {
    ["kvm_amd/parameters/nested", "kvm_intel/parameters/nested"]
        .into_iter()
        .any(|parameter| switch(parameter) == Some(true))
}

/// What a module's parameter says, if there is one.
fn switch(parameter: &str) -> Option<bool> {
    let text = fs::read_to_string(format!("/sys/module/{parameter}")).ok()?;
    Some(matches!(text.trim(), "1" | "Y"))
}

/// What stands behind the first line of /proc/cpuinfo that begins with this.
fn line<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_tells_its_name() {
        let info = "processor\t: 0\nmodel name\t: EPYC: the second\nflags\t\t: fpu svm hypervisor\n";
        assert_eq!(line(info, "model name"), Some("EPYC: the second"));
        assert_eq!(line(info, "flags"), Some("fpu svm hypervisor"));
        assert_eq!(line(info, "bugs"), None);
    }
}
