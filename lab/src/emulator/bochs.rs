//! Bochs: CPUs with VMX, EPT and VPID.
//!
//! The machine has no BIOS and no disk: its memory is filled before it starts, and its ROM goes straight to the
//! kernel (`exitscope_vmm::firmware`). What it sends, Bochs writes to its log (see [`crate::frame`]), which is a pipe
//! that stands in the place of its stdin.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{self, Command, Stdio};

use exitscope_vmm::firmware;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};

use super::machine::{Emulator, Machine, Prepared, parse_version};
use crate::error::Error;
use crate::parts::tool::BOCHS;

/// A kernel command line that boots a stock kernel in few instructions. The serial console is slow in emulated time,
/// so only what is wrong goes there. XSAVE is wrong in Bochs 2.7 (sizes of AVX-512 state); nobody reads the names of
/// trace events' values, which cost emulated time.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=k cryptomgr.notests noxsave mitigations=off clearcpuid=ht,erms,fsrm,tsc_adjust intel_pstate=disable initcall_blacklist=jent_mod_init,trace_eval_init 8250.nr_uarts=1 random.trust_cpu=on lab.emulator=bochs";
/// Memory of a machine, in MiB.
pub const MEMORY_MIB: u32 = 768;

/// To what the kernel wants persistent memory aligned.
const DISK_ALIGNMENT_MIB: u64 = 128;
/// Room for the initramfs, with a whole QEMU in it, and for that QEMU.
const MEMORY_BEHIND_DISK_MIB: u64 = 768;

/// The newest of Bochs 2.7's models that Linux runs on without a warning: EPT, VPID, unrestricted guest, PML.
const CPU: &str = "corei7_icelake_u";
/// Instructions per second of emulated time. The CPU says through CPUID that its time stamp counter, which advances
/// by one with each instruction, runs at this rate; so all clocks of the machine agree.
const INSTRUCTIONS_PER_SECOND: u32 = 1_497_600_000;
/// The same of a machine with several CPUs, whose kernel is told this rate. Their idle time passes an instruction at a
/// time, as slowly as if they worked, so there shall be few in a second.
const INSTRUCTIONS_PER_SECOND_SMP: u32 = 50_000_000;

/// Finds Bochs and asks for its version, its features and its CPUs.
pub fn probe() -> Result<Emulator, Error> {
    let path = BOCHS.find()?;
    // It tells all this as part of its log, for which it chooses either stream.
    let output = Command::new(&path).args(["--help", "cpu"]).stdin(Stdio::null()).output();
    let output = output.map_err(Error::io("start", &path))?;
    let help = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let unfit = |reason: String| BOCHS.unfit(path.display().to_string(), reason);
    let version = help.split("Bochs x86 Emulator ").nth(1).and_then(parse_version);
    let version = version.ok_or_else(|| unfit("`--help cpu` tells no version".into()))?;
    if !help.lines().any(|line| line.trim() == CPU) {
        return Err(unfit(format!("it has no CPU model {CPU}, so no VMX that can run KVM")));
    }
    Ok(Emulator { path, version })
}

/// Fills the machine's memory and writes the emulator's configuration.
pub(super) fn prepare(machine: &Machine, emulator: &Emulator) -> Result<Prepared, Error> {
    let io = |what| Error::io(what, &emulator.path);
    let mut memory_mib = machine.memory_mib.into();
    let mut command_line = machine.command_line.clone();
    let mut disk = None;
    if machine.cpus > 1 {
        command_line += &format!(" tsc_early_khz={}", INSTRUCTIONS_PER_SECOND_SMP / 1000);
    }
    if let Some(path) = &machine.disk {
        let image = File::open(path).map_err(Error::io("read", path))?;
        let size = image.metadata().map_err(Error::io("read", path))?.len();
        let size_mib = size.div_ceil(1 << 20).next_multiple_of(DISK_ALIGNMENT_MIB);
        // Persistent memory, as the kernel sees it, and the disk's driver too (nd_pmem).
        command_line += &format!(" memmap={size_mib}M!{memory_mib}M");
        disk = Some(firmware::Disk { image, size, address: memory_mib << 20 });
        // The initramfs lies behind it, at the end of memory.
        memory_mib += size_mib + MEMORY_BEHIND_DISK_MIB;
    }
    let filled = firmware::load(
        file(emulator, &[])?,
        memory_mib,
        &machine.kernel,
        &machine.initrd,
        &command_line,
        machine.cpus,
        disk,
    )?;
    let console = File::options().write(true).open(&machine.console_log);
    let mut files = vec![
        filled.memory.into(),
        file(emulator, &filled.rom)?.into(),
        file(emulator, &[0; 512])?.into(),
        console.map_err(Error::io("write", &machine.console_log))?.into(),
    ];
    let [memory, rom, video_rom, console] = [&files[0], &files[1], &files[2], &files[3]].map(path);
    let configuration = configuration(machine, memory_mib, &memory, &rom, &video_rom, &console);
    files.push(file(emulator, configuration.as_bytes())?.into());
    let mut arguments: Vec<OsString> = vec!["-q".into(), "-f".into(), path(&files[4]).into()];
    // Debian's Bochs has its debugger built in, which wants to be told to go on.
    files.push(file(emulator, b"c\nq\n")?.into());
    arguments.extend(["-rc".into(), path(&files[5]).into()]);
    let (channel, theirs) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| io("make a channel for")(errno.into()))?;
    Ok(Prepared { arguments, stdin: theirs.into(), channel, files })
}

fn configuration(
    machine: &Machine,
    memory_mib: u64,
    memory: &str,
    rom: &str,
    video_rom: &str,
    console: &str,
) -> String {
    let size = firmware::ROM_SIZE;
    let ips = if machine.cpus > 1 { INSTRUCTIONS_PER_SECOND_SMP } else { INSTRUCTIONS_PER_SECOND };
    let (pci, cpus) = (u8::from(machine.disk.is_some()), machine.cpus);
    let rom_address = (1_u64 << 32) - size as u64;
    format!(
        "config_interface: textconfig
display_library: term
romimage: file={rom}, address={rom_address:#x}
vgaromimage: file={video_rom}
optramimage1: file={memory}, address=0x0
megs: {memory_mib}
cpu: model={CPU}, count={cpus}, ips={ips}, ignore_bad_msrs=1
pci: enabled={pci}, chipset=i440fx
clock: sync=none, time0=utc
com1: enabled=1, mode=file, dev={console}
plugin_ctrl: biosdev=1, speaker=0, parallel=0, gameport=0, iodebug=0
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
panic: action=fatal
error: action=report
info: action=report
debug: action=ignore
log: /dev/stdin
"
    )
}

/// A file without a name.
fn file(emulator: &Emulator, contents: &[u8]) -> Result<File, Error> {
    let made = memfd_create("exitscope", MemfdFlags::CLOEXEC).map_err(std::io::Error::from);
    let filled = made.map(File::from).and_then(|mut file| file.write_all(contents).map(|()| file));
    filled.map_err(Error::io("make a file for", &emulator.path))
}

/// Where another process opens it.
fn path(file: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd())
}
