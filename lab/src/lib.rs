//! Emulated machines that run all of exitscope anywhere: their kernels, their file systems, and the emulator itself.
//!
//! [`kernel`] finds a stock kernel, [`debug_kernel`] builds one that checks itself, [`modules`] its modules, [`image`] packs them with the job into an
//! initramfs, [`emulator`] boots that and hands over the lines that the machine sends; [`debian`] makes a disk
//! for its guests. What takes long to make is kept in the [`cache`]. Inside, the [`agent`] does the steps of a
//! [`job`]; a [`session`] is one such machine from its making to its end, and a [`run`] the session that makes
//! a report.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod bench;
pub mod cache;
pub mod course;
pub mod cpio;
pub mod debian;
pub mod debug_kernel;
pub mod emulator;
pub mod error;
pub mod frame;
pub mod image;
pub mod job;
pub mod kernel;
pub mod modules;
pub mod progress;
pub mod run;
pub mod session;
pub mod vmlinux;

mod apt;
mod shared_library;
mod tool;

pub use error::Error;
