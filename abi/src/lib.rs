//! What the parts of exitscope agree on: exit reasons, the CPUID leaf protocol and the layout of shared counters.
//!
//! The same source is compiled into the kernel module, the guest's reader and the host's tools, so none of them
//! can disagree about a number. No dependencies, no allocation, no unsafe code.
#![no_std]
#![forbid(unsafe_code)]

pub mod bpf;
pub mod control;
pub mod flat;
pub mod leaf;
pub mod reason;
pub mod region;
