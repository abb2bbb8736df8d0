//! What runs in the guest: reading the leaves, and named workloads that cause exits of one kind.
//!
//! ```no_run
//! let leaves = exitscope_guest::leaves::Leaves::find()?;
//! println!("{} exits so far", leaves.total().exits);
//! # Ok::<(), exitscope_guest::leaves::Absent>(())
//! ```

pub mod leaves;
pub mod workload;
