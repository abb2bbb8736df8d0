//! How a guest ended.

use std::time::Duration;

use crate::mailbox;

/// How a guest ended that wrote to the DONE port or switched itself off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the guest wrote to the DONE port, 0 for success and for a Linux that switched itself off; of several flat vCPUs the first that is not 0.
    pub status: u32,
    /// The vCPUs in the order of their ids.
    pub vcpus: Vec<VcpuOutcome>,
    /// From the first entry to the last vCPU's end.
    pub elapsed: Duration,
}

/// What one vCPU left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuOutcome {
    /// Index of the vCPU, which is its APIC id too.
    pub id: u32,
    /// The values that it wrote to the REPORT port, at most [`VcpuOutcome::MAX_REPORTS`] of them.
    pub reports: Vec<u64>,
    /// How often KVM_RUN returned to the VMM because of the guest (kicks by a signal are not counted).
    pub user_exits: u64,
}

impl VcpuOutcome {
    /// How many reports of a vCPU are kept; later ones are dropped.
    pub const MAX_REPORTS: usize = mailbox::MAX_REPORTS;
}
