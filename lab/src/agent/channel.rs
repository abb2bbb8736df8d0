//! The way from the agent to the lab: a virtio port, or an emulator's debug port.

use std::fs::File;
use std::io::{self, Write};

use exitscope_guest::debug_port::DebugPort;

use crate::emulator::Link;
use crate::emulator::qemu::CHANNEL;
use crate::frame;
use crate::job::Event;

/// Where events go: to the lab, one line of JSON each.
pub struct Channel(Box<dyn Write>, Link);

impl Channel {
    /// Opens the machine's end of it.
    pub fn open(link: Link) -> io::Result<Self> {
        let out: Box<dyn Write> = match link {
            Link::Port => Box::new(File::options().write(true).open(CHANNEL)?),
            Link::Frames => Box::new(DebugPort::open()?),
        };
        Ok(Self(out, link))
    }

    /// Tells an event.
    pub fn send(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        match self.1 {
            Link::Port => line.push(b'\n'),
            Link::Frames => line = frame::encode(&line),
        }
        self.0.write_all(&line)
    }

    /// Tells what the machine is doing, for the person who waits.
    pub fn phase(&mut self, text: impl Into<String>) -> io::Result<()> {
        self.send(&Event::Phase { text: text.into() })
    }
}
