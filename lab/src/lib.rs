//! Emulated machines that run all of exitscope anywhere: their kernels, their file systems, and the emulator itself.
//!
//! [`parts`] are what a machine is made of. An [`emulator`] boots them and hands over the lines that the machine
//! sends; inside, the [`agent`] does the steps of a [`job`]. [`runs`] are what all that is for.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod emulator;
pub mod error;
pub mod frame;
pub mod job;
pub mod parts;
pub mod progress;
pub mod runs;

pub use error::Error;
