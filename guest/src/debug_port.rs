//! Text for the log of an emulator, through the debug port of the PC BIOSes of Bochs and QEMU.
//!
//! Unlike a serial port it takes a byte per instruction, however fast the emulated clock runs.

use std::io::{self, Write};

/// Where Bochs' BIOS writes its messages; Bochs logs each line, which must be shorter than 80 bytes.
const PORT: u16 = 0x402;

/// The port, opened for the thread that did it. Dropping it leaves the thread's right to use it as it is.
#[derive(Debug)]
pub struct DebugPort {
    /// A right of one thread must not move to another.
    _thread: core::marker::PhantomData<*const ()>,
}

impl DebugPort {
    /// Asks the kernel for the port.
    ///
    /// # Errors
    /// The kernel's, without CAP_SYS_RAWIO.
    pub fn open() -> io::Result<Self> {
        // SAFETY: the call changes nothing but this thread's right to use one port.
        match unsafe { libc::ioperm(PORT.into(), 1, 1) } {
            0 => Ok(Self { _thread: core::marker::PhantomData }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Write for DebugPort {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: reads `bytes` and writes to a port that this thread may use, on which no memory depends.
        unsafe {
            core::arch::asm!(
                "rep outsb",
                in("dx") PORT,
                inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _,
                options(readonly, nostack, preserves_flags),
            );
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
