//! What runs in user space on the host: the data model, where its numbers come from, and how they are shown.
//!
//! One direction: a source ([`region`]) gives a snapshot, a snapshot becomes a [`model::Report`], a report is
//! shown ([`render`]) or written as JSON. Two reports make a [`compare::Comparison`], and all that a
//! university course asks for is a [`course::Course`].

pub mod abuse;
pub mod caps;
pub mod compare;
pub mod control;
pub mod course;
pub mod lockdown;
pub mod model;
pub mod region;
pub mod render;
