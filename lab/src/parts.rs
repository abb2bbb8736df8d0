//! What an emulated machine is made of: a kernel and its modules, an initramfs, a disk, and how they are got.
//!
//! [`kernel`] finds the stock kernel of a [`series`], [`debug_kernel`] builds one that checks itself, [`modules`] picks what it loads,
//! [`vmlinux`] unpacks it for an emulator that has no boot loader, [`image`] packs an initramfs (a [`cpio`] archive)
//! and [`debian`] makes a disk. What takes long to make is kept in the [`cache`].

pub mod cache;
pub mod cpio;
pub mod debian;
pub mod debug_kernel;
pub mod image;
pub mod kernel;
pub mod modules;
pub mod series;
pub mod vmlinux;

mod apt;
mod shared_library;
pub(crate) mod tool;
