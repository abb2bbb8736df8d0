//! What reads on the host: the mapped counters ([`region`]), and what may be asked of the module ([`control`]).

pub mod abuse;
pub mod control;
pub mod kernel_log;
pub mod lockdown;
pub mod region;
