//! What the guest finds at its ports: a serial console, reset and power-off, and the mailbox.

use crate::error::Error;
use crate::mailbox::Mailbox;
use crate::vm::{Mode, Vm};
use crate::{error::GuestFailure, layout};
use exitscope_abi::flat::{PORT_IGNORED, PORT_READY};
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;
use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What a vCPU thread does after the guest wrote to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortAction {
    /// Go on.
    Continue,
    /// Wait for the other vCPUs, then go on.
    Wait,
    /// This vCPU (under Linux: the guest) has ended with this status.
    Done(u32),
    /// The guest has ended without a status.
    Failed(GuestFailure),
}

/// The serial port's interrupt line: an event descriptor that KVM turns into an edge at the I/O APIC.
struct IrqLine(EventFd);

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The devices of one VM, shared by its vCPU threads.
pub struct Devices {
    serial: Mutex<Serial<IrqLine, NoEvents, Box<dyn Write + Send>>>,
    /// One for each flat vCPU. Under Linux one for all: the process that writes may move between vCPUs.
    mailboxes: Vec<Mutex<Mailbox>>,
    /// How long a write to the ignored port takes.
    delay: Duration,
}

impl Devices {
    /// The devices of `vm`, with the serial port's output going to `console`, and a sleep of `delay` for each write to the
    /// ignored port.
    pub fn new(vm: &Vm, console: Box<dyn Write + Send>, delay: Duration) -> Result<Self, Error> {
        let irq = EventFd::new(EFD_NONBLOCK)
            .map_err(|source| Error::System { what: "create an event descriptor", source })?;
        let mailboxes = match vm.mode() {
            Mode::Linux => {
                vm.connect_irq(&irq, layout::SERIAL_IRQ)?;
                1
            }
            Mode::Flat => vm.vcpus() as usize,
        };
        Ok(Self {
            serial: Mutex::new(Serial::new(IrqLine(irq), console)),
            mailboxes: (0..mailboxes).map(|_| Mutex::default()).collect(),
            delay,
        })
    }

    /// vCPU `id` wrote `data` to `port`.
    pub fn write(&self, id: u32, port: u16, data: &[u8]) -> PortAction {
        match port {
            _ if Mailbox::has(port) => match self.mailbox(id).write(port, data) {
                Some(status) => PortAction::Done(status),
                None => PortAction::Continue,
            },
            PORT_READY => PortAction::Wait,
            PORT_IGNORED => {
                if !self.delay.is_zero() {
                    sleep(self.delay);
                }
                PortAction::Continue
            }
            _ if is_serial(port) => {
                self.write_serial((port - layout::SERIAL_PORT) as u8, data);
                PortAction::Continue
            }
            layout::KEYBOARD_PORT if data.contains(&layout::KEYBOARD_RESET) => {
                PortAction::Failed(GuestFailure::Reset)
            }
            layout::SLEEP_PORT if data.iter().any(|byte| byte & layout::SLEEP_ENABLE != 0) => {
                PortAction::Done(0)
            }
            _ => PortAction::Continue,
        }
    }

    /// A vCPU reads from `port`; where there is no device, all bits are set.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        if is_serial(port) {
            let mut serial = lock(&self.serial);
            data.fill_with(|| serial.read((port - layout::SERIAL_PORT) as u8));
        } else {
            // An idle keyboard controller has nothing to read and takes commands at once.
            data.fill(if port == layout::KEYBOARD_PORT { 0 } else { 0xff });
        }
    }

    /// The reports of vCPU `id`; under Linux, where nobody can tell, all are vCPU 0's.
    pub fn take_reports(&self, id: u32) -> Vec<u64> {
        self.mailboxes.get(id as usize).map(|mailbox| lock(mailbox).take_reports()).unwrap_or_default()
    }

    fn mailbox(&self, id: u32) -> MutexGuard<'_, Mailbox> {
        lock(&self.mailboxes[id as usize % self.mailboxes.len()])
    }

    fn write_serial(&self, offset: u8, data: &[u8]) {
        let mut serial = lock(&self.serial);
        for byte in data {
            // A console that nobody reads any more is no reason to end the guest.
            let _ = serial.write(offset, *byte);
        }
    }
}

fn is_serial(port: u16) -> bool {
    (layout::SERIAL_PORT..layout::SERIAL_PORT + 8).contains(&port)
}

/// Locks even if a thread panicked: the devices' states are valid between any two of their bytes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    #[derive(Clone, Default)]
    struct Console(Arc<Mutex<Vec<u8>>>);

    impl Write for Console {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn devices(mailboxes: usize, console: Console) -> Devices {
        let irq = EventFd::new(EFD_NONBLOCK).expect("an event descriptor");
        let serial = Serial::new(IrqLine(irq), Box::new(console) as Box<dyn Write + Send>);
        let mailboxes = (0..mailboxes).map(|_| Mutex::default()).collect();
        Devices { serial: Mutex::new(serial), mailboxes, delay: Duration::from_millis(2) }
    }

    #[test]
    fn ports_do_what_they_are_for() {
        let devices = devices(2, Console::default());
        let cases: [(u16, &[u8], PortAction); 8] = [
            (0x80, &[1], PortAction::Continue),
            (0x64, &[0xfe], PortAction::Failed(GuestFailure::Reset)),
            (0x64, &[0xd1], PortAction::Continue),
            (0x600, &[0x34], PortAction::Done(0)),
            (0x600, &[0x14], PortAction::Continue),
            (0x500, &[3, 0, 0, 0], PortAction::Done(3)),
            (0x504, &[3, 0, 0, 0], PortAction::Continue),
            (0x508, &[0, 0, 0, 0], PortAction::Wait),
        ];
        for (port, data, expected) in cases {
            assert_eq!(devices.write(0, port, data), expected, "{port:#x} {data:x?}");
        }
    }

    #[test]
    fn the_ignored_port_takes_its_time() {
        let (devices, started) = (devices(1, Console::default()), Instant::now());
        assert_eq!(devices.write(0, PORT_IGNORED, &[0]), PortAction::Continue);
        assert!(started.elapsed() >= devices.delay);
    }

    #[test]
    fn the_console_gets_the_bytes_and_is_always_ready() {
        let console = Console::default();
        let devices = devices(1, console.clone());
        devices.write(0, 0x3f8, b"hello");
        assert_eq!(lock(&console.0).as_slice(), b"hello");
        let mut status = [0];
        devices.read(0x3fd, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
    }

    #[test]
    fn reports_belong_to_their_vcpu() {
        let devices = devices(2, Console::default());
        devices.write(0, 0x504, &[1, 0, 0, 0]);
        devices.write(1, 0x504, &[2, 0, 0, 0]);
        devices.write(0, 0x504, &[0; 4]);
        devices.write(1, 0x504, &[0; 4]);
        assert_eq!((devices.take_reports(0), devices.take_reports(1)), (vec![1], vec![2]));
    }

    #[test]
    fn absent_ports_read_as_ones() {
        let (devices, mut data) = (devices(1, Console::default()), [0; 4]);
        devices.read(0xcfc, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
