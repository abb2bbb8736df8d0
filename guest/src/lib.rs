//! What runs in a guest: reading the leaves, named workloads that cause exits of one kind, an emulator's debug port.
//!
//! ```no_run
//! let leaves = exitscope_guest::leaves::Leaves::find()?;
//! println!("{} exits so far", leaves.total().exits);
//! # Ok::<(), exitscope_guest::leaves::Absent>(())
//! ```

pub mod debug_port;
pub mod hypervisor;
pub mod leaves;
pub mod vcpu;
pub mod workload;
