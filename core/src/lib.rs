//! The accounting of VM exits: exit and entry events become counts, cycles, extremes and histograms.
//!
//! And what the module must know of the kernel that it runs in before it does so ([`btf`]).
//!
//! Pure code: no I/O, no allocation, no unsafe, no clock (every call takes the time as an argument), and nothing
//! in it can panic. The same source runs in the kernel module and under this crate's tests.
//!
//! ```
//! use exitscope_abi::region::Counters;
//! use exitscope_core::{Sum, Timer};
//!
//! let cpuid = Counters::default();
//! let mut timer = Timer::new(&cpuid);
//! timer.exit(&cpuid, || 1_000); // the vCPU left the guest at tick 1,000
//! timer.entry(1_400); // and went back at tick 1,400
//!
//! let mut sum = Sum::default();
//! sum.add(&cpuid);
//! let figures = sum.figures();
//! assert_eq!((figures.exits, figures.cycles), (1, 400));
//! ```
#![no_std]
#![forbid(unsafe_code)]

mod account;
mod answer;
pub mod btf;
mod halt;
mod sum;

pub use account::{Account, EXTRA_CODES, EntryKind, Place, SLOTS, Table, Timer, absorb, copy, locate};
pub use answer::{Accounts, Setting, answer};
pub use halt::{Halt, HaltStats};
pub use sum::Sum;
