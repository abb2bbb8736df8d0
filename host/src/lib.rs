//! What reads on the host: the mapped counters ([`region`]), what may be asked of the module ([`control`]), what works
//! on this machine ([`doctor`]).

pub mod abuse;
pub mod control;
pub mod doctor;
pub mod kernel_log;
pub mod lockdown;
pub mod region;
