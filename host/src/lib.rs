//! What reads on the host: the mapped counters ([`region`]) as a [`source`], and what may be asked of the module
//! ([`control`]); and of the operating system, what VMs are called ([`names`]) and the [`cpu`] time of their processes.

pub mod control;
pub mod cpu;
pub mod fuzz_device;
pub mod lockdown;
pub mod names;
pub mod region;
pub mod source;
