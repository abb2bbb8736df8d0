//! The agent in a guest: runs commands and tells what they give, within a Debian system if there is one to start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Command};
use std::time::Duration;

use rustix::mount::mount_move;
use rustix::process::{chdir, chroot};

use super::command::output_of;
use super::kernel;
use super::wait::retry_for;
use crate::emulator::qemu::CHANNEL;
use crate::job::{
    GUEST_OUTPUT_PREFIX, GuestMessage, INITRAMFS, Insert, Output, PROGRAM_IN_DEBIAN, SHUTDOWN, System,
    USERSPACE,
};

/// What the service is called, as its first argument.
const SERVICE: &str = "exitscope-agent";
/// Where a system's root is mounted before it is one.
const NEW_ROOT: &str = "/root";
/// How long a port may take to appear.
const PORT_WAIT: Duration = Duration::from_secs(10);
/// Runs the commands here, or starts the system that will.
pub fn run(modules: &[Insert], port: bool, system: Option<&System>, commands: &[Vec<String>]) {
    let done = modules.iter().try_for_each(kernel::insert).and_then(|()| {
        let mut channel = if port { GuestChannel::port()? } else { GuestChannel::Console };
        channel.send_phase(INITRAMFS)?;
        match system {
            Some(system) => Err(start(system, commands, channel)),
            None => run_commands(commands, &mut channel),
        }
    });
    if let Err(error) = done {
        eprintln!("agent: {error}");
    }
    let _ = rustix::termios::tcdrain(io::stdout());
}

/// Whether this process is the service of a system that [`run`] has started.
pub fn is_service() -> bool {
    std::env::args_os().next().is_some_and(|name| name == SERVICE)
}

/// As that service: runs the commands.
pub fn serve() -> ! {
    let done = fs::read("/run/exitscope/commands.json").and_then(|text| {
        let commands: Vec<Vec<String>> = serde_json::from_slice(&text)?;
        run_commands(&commands, &mut GuestChannel::port()?)
    });
    let status = match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("agent: {error}");
            1
        }
    };
    process::exit(status)
}

fn run_commands(commands: &[Vec<String>], channel: &mut GuestChannel) -> io::Result<()> {
    commands.iter().try_for_each(|command| channel.send_output(output_of(command)))?;
    channel.send_phase(SHUTDOWN)
}

/// Starts the disk's system: its systemd becomes the first process. Comes back only when that fails.
fn start(system: &System, commands: &[Vec<String>], mut channel: GuestChannel) -> io::Error {
    match prepare(system, commands).and_then(|()| channel.send_phase(USERSPACE)) {
        Ok(()) => Command::new("/sbin/init").exec(),
        Err(error) => error,
    }
}

/// Makes the disk's file system the root, with our service added to what its systemd starts.
fn prepare(system: &System, commands: &[Vec<String>]) -> io::Result<()> {
    system.modules.iter().try_for_each(kernel::insert)?;
    kernel::mount_at(&system.disk, NEW_ROOT, "ext4")?;
    kernel::mount_at("tmpfs", "/root/run", "tmpfs")?;
    let files = Path::new("/root/run/exitscope");
    let units = Path::new("/root/run/systemd/system");
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(files)?;
    fs::create_dir_all(&wants)?;
    fs::copy("/init", files.join("exitscope"))?;
    fs::write(files.join("commands.json"), serde_json::to_vec(commands)?)?;
    fs::write(units.join("exitscope.service"), unit())?;
    symlink("../exitscope.service", wants.join("exitscope.service"))?;
    chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    Ok(chroot(".")?)
}

/// The service's unit. It is not on the system's disk: systemd reads units from `/run` too.
fn unit() -> String {
    format!(
        "[Unit]\n\
         Description=Tells what exitscope's leaves say\n\
         After=multi-user.target\n\
         SuccessAction=poweroff\n\
         FailureAction=poweroff\n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart=@{PROGRAM_IN_DEBIAN} {SERVICE}\n"
    )
}

/// How the guest sends its results.
enum GuestChannel {
    Port(File),
    Console,
}

impl GuestChannel {
    /// The port, which appears some time after its driver.
    fn port() -> io::Result<Self> {
        let open = || File::options().write(true).open(CHANNEL);
        let port = retry_for(PORT_WAIT, Duration::from_millis(1), open);
        port.map(Self::Port).map_err(|error| io::Error::new(error.kind(), format!("{CHANNEL}: {error}")))
    }

    fn send_output(&mut self, output: Output) -> io::Result<()> {
        match self {
            Self::Port(port) => send(port, &GuestMessage::Output(output)),
            Self::Console => {
                let line = serde_json::to_string(&output)?;
                // In one piece, so that no line of the kernel's comes between.
                io::stdout().write_all(format!("\n{GUEST_OUTPUT_PREFIX}{line}\n").as_bytes())
            }
        }
    }

    /// Tells that a phase begins; not on a console, where each letter is an exit.
    fn send_phase(&mut self, phase: &str) -> io::Result<()> {
        match self {
            Self::Port(port) => send(port, &GuestMessage::Phase(phase.into())),
            Self::Console => Ok(()),
        }
    }
}

fn send(port: &mut File, word: &GuestMessage) -> io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    port.write_all(&line)
}
