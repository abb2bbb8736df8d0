//! Tests of the whole: the real KVM of a stock kernel, our module and our guests, in an emulated machine.
#![allow(clippy::unwrap_used, missing_docs)]

mod asking;
mod btf;
mod capabilities;
mod caps;
mod checkers;
mod cli;
mod cost;
mod debian;
mod doctor;
mod exactness;
mod holds;
mod install;
mod interface;
mod kernels;
mod leaves;
mod life;
mod nested;
mod package;
mod paging;
mod policy;
mod registers;
mod selftest;
mod shared;
mod smp;
mod stat;
