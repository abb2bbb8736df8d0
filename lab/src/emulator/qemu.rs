//! QEMU TCG: CPUs with SVM and nested paging.
//!
//! The machine's channel is a virtio-serial port named `exitscope` (inside, [`CHANNEL`]); outside it is the
//! emulator's stdin, one end of a socket pair, so that it needs no file and ends when either side does.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use super::machine::{Emulator, Machine, Prepared, parse_version};
use crate::error::Error;
use crate::parts::tool::{self, QEMU};

/// A kernel command line that boots a stock kernel fast and ends the emulator when the kernel panics.
/// The self-tests of its ciphers, which nothing here uses, take a tenth of an emulated boot. Programs are where they were
/// the last time: QEMU keeps what it has translated by addresses, so it would translate a program anew for each process,
/// which then takes seven times as long.
///
/// The clock ticks all the time, so that a lost interrupt is made good by the next: QEMU's emulation of VMRUN and #VMEXIT
/// changes the CPU's pending interrupts without a lock, which other threads change too. With a timer that is set anew
/// after each interrupt, a machine then stood still for good once in some fifty boots of guests. That the timer ticks is
/// not put to the test, which a host with much else to do makes fail.
pub const COMMAND_LINE: &str = "console=ttyS0 panic=-1 norandmaps cryptomgr.notests nohz=off highres=off no_timer_check lab.emulator=qemu-tcg";
/// Memory of a machine, in MiB.
pub const MEMORY_MIB: u32 = 1024;
/// The machine's end of its channel.
pub const CHANNEL: &str = "/dev/vport0p1";

/// The board. QEMU's `microvm` boots in three quarters of the time, but has nothing that a stock kernel can
/// calibrate its time stamp counter by: the kernel then gives that up as a clock, and at times hangs.
const BOARD: &str = "q35";
/// One: kernels patch code that other CPUs run (static keys, tracepoints), and QEMU 7.2 with a thread per CPU now and
/// then runs the stale INT3 of such a patch; with CPUs that take turns, KVM's guests hang now and then. With one CPU
/// neither was ever seen.
const CPUS: &str = "1";
/// The oldest emulator whose SVM is known to run KVM: that of Debian 12.
const MIN_VERSION: (u32, u32) = (7, 2);

/// Finds QEMU and asks for its version.
pub fn probe() -> Result<Emulator, Error> {
    let path = QEMU.find()?;
    let text = tool::output(Command::new(&path).arg("--version").stdin(Stdio::null()))?;
    let first = text.lines().next().unwrap_or_default().to_owned();
    match first.strip_prefix("QEMU emulator version ").and_then(parse_version) {
        Some(version) if (version.0, version.1) >= MIN_VERSION => Ok(Emulator { path, version }),
        Some(_) => {
            Err(QEMU
                .unfit(first, format!("its SVM cannot run KVM (before {}.{})", MIN_VERSION.0, MIN_VERSION.1)))
        }
        None => Err(QEMU.unfit(path.display().to_string(), format!("`--version` said `{first}`"))),
    }
}

/// Makes what the emulator is started with.
pub(super) fn prepare(machine: &Machine, emulator: &Emulator) -> Result<Prepared, Error> {
    let (channel, theirs) = UnixStream::pair().map_err(Error::io("make a channel for", &emulator.path))?;
    Ok(Prepared {
        arguments: arguments(machine),
        stdin: OwnedFd::from(theirs).into(),
        channel: channel.into(),
        files: vec![],
    })
}

fn arguments(machine: &Machine) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    add("-accel", "tcg".into());
    if machine.icount {
        add("-icount", "shift=0,sleep=off".into());
    }
    add("-machine", BOARD.into());
    add("-cpu", "max".into());
    add("-smp", CPUS.into());
    add("-m", machine.memory_mib.to_string().into());
    add("-display", "none".into());
    add("-kernel", machine.kernel.clone().into());
    add("-initrd", machine.initrd.clone().into());
    add("-append", machine.command_line.clone().into());
    let mut console = OsString::from("file,id=console,path=");
    console.push(quoted(&machine.console_log));
    add("-chardev", console);
    add("-serial", "chardev:console".into());
    add("-device", "virtio-serial-pci".into());
    add("-chardev", "socket,id=channel,fd=0".into());
    add("-device", "virtserialport,chardev=channel,name=exitscope".into());
    if let Some(disk) = &machine.disk {
        let mut drive = OsString::from("if=virtio,format=raw,snapshot=on,file=");
        drive.push(quoted(disk));
        add("-drive", drive);
    }
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
    arguments
}

/// A path as a value in one of QEMU's lists, where a comma is written twice.
fn quoted(path: &Path) -> OsString {
    let mut quoted = OsString::new();
    let text = path.to_string_lossy();
    for (index, part) in text.split(',').enumerate() {
        if index > 0 {
            quoted.push(",,");
        }
        quoted.push(part);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::machine::Vendor;

    #[test]
    fn arguments_follow_the_machine() {
        let mut machine = Machine::new(Vendor::Amd, "/k", "/i", "/tmp/a,b/console");
        let line = |machine: &Machine| {
            let arguments: Vec<_> =
                arguments(machine).into_iter().map(|a| a.into_string().unwrap()).collect();
            arguments.join(" ")
        };
        let usual = line(&machine);
        assert!(usual.contains("-accel tcg -machine q35"), "{usual}");
        assert!(usual.contains("-cpu max -smp 1 -m 1024"), "{usual}");
        assert!(usual.contains("path=/tmp/a,,b/console"), "{usual}");
        machine.icount = true;
        assert!(line(&machine).contains("-accel tcg -icount shift=0,sleep=off"));
    }
}
