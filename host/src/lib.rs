//! What reads on the host: the mapped counters ([`region`]), and what may be asked of the module ([`control`]).
pub mod control;
pub mod fuzz_device;
pub mod lockdown;
pub mod region;
