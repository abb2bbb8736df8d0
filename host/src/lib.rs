//! What reads on the host: the mapped counters ([`region`]) as a [`source`], and what may be asked of the module
//! ([`control`]); of the operating system, what VMs are called ([`names`]) and the [`cpu`] time of their processes; and
//! what works on this machine ([`doctor`]).

pub mod bpf;
pub mod compat_ioctl;
pub mod control;
pub mod cpu;
pub mod doctor;
pub mod fuzz_device;
pub mod generated;
pub mod kernel_log;
pub mod lockdown;
pub mod names;
pub mod region;
pub mod source;
