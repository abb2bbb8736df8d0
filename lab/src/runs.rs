//! What is done with emulated machines: a [`session`] is one machine from its making to its end; the others run some.
//!
//! [`report`] is the main job, [`mod@bench`] measures what watching costs, [`course`] repeats a course's experiments.

pub mod bench;
pub mod course;
pub mod report;
pub mod session;
