//! What people look at: text, HTML, SVG and Markdown. Pure functions of the model; nothing here reads or writes.
#![forbid(unsafe_code)]

pub mod caps;
pub mod compare;
pub mod course;
pub mod doctor;
pub mod guest_stat;
pub mod selftest;
pub mod stat;
pub mod text;
pub mod units;
