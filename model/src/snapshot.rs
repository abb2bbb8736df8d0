//! Everything that a source has counted, at one moment.

use exitscope_abi::reason::Isa;
use serde::{Deserialize, Serialize};

use crate::accounts::{Accounts, RETIRED};
use crate::{OVERFLOW, Quality, Reason, Vcpu, Vm, name, rank, total};

/// A moment, by two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Nanoseconds of the monotonic clock, which never jumps.
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970, UTC.
    pub wall_ns: u64,
}

/// The clock that durations were measured with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Ticks in a millisecond; 0 when unknown.
    pub khz: u32,
}

impl Clock {
    /// Nanoseconds of so many ticks; `None` when the frequency is unknown.
    pub fn ns(self, ticks: u64) -> Option<u64> {
        let ns = (u128::from(ticks) * 1_000_000).checked_div(u128::from(self.khz))?;
        Some(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// What a source has counted since it began.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When it was read; `None` where that is unknown, as of a copy in a file.
    pub at: Option<Moment>,
    /// When the source began, in ns since 1970; 0 when unknown. Another beginning means that all counters began anew.
    pub began: u64,
    /// The instruction set; `None` before the first exit.
    pub isa: Option<Isa>,
    /// The source's clock.
    pub clock: Clock,
    /// Every VM, vCPU and reason.
    pub accounts: Accounts,
    /// What must be known to judge the numbers.
    pub quality: Quality,
    /// Cells of 512 bytes in use.
    pub used_cells: u32,
    /// The most that there can be.
    pub max_cells: u32,
}

impl Snapshot {
    /// Every VM with its vCPUs and reasons, as reports have them.
    pub fn vms(&self) -> Vec<Vm> {
        let Some(isa) = self.isa else { return Vec::new() };
        let accounts = &self.accounts;
        let vcpu = |entry: &crate::accounts::VcpuEntry| {
            let mut reasons: Vec<Reason> =
                accounts.reasons(entry).iter().map(|account| reason(accounts, account, isa)).collect();
            rank(&mut reasons);
            Vcpu {
                id: entry.id,
                thread: entry.thread,
                unannounced: entry.unannounced,
                backwards: entry.backwards,
                total: total(&reasons),
                reasons,
            }
        };
        let vm = |entry: &crate::accounts::VmEntry| Vm {
            id: if entry.id == RETIRED { "retired".into() } else { entry.id.to_string() },
            pid: entry.pid,
            finished: entry.finished,
            expose: entry.expose.map(|expose| expose.name().to_owned()),
            vcpus: accounts.vcpus(entry).iter().map(vcpu).collect(),
        };
        accounts.vms().iter().map(vm).collect()
    }
}

fn reason(accounts: &Accounts, account: &crate::accounts::Account, isa: Isa) -> Reason {
    Reason {
        code: account.code,
        name: name(isa, account.code),
        exits: account.exits,
        cycles: account.cycles,
        kernel: account.kernel(),
        user: account.user,
        polled: account.polled,
        halted: account.halted,
        min: if account.min == u64::MAX { 0 } else { account.min },
        max: account.max,
        untimed: account.exits.saturating_sub(accounts.timed(account)),
        histogram: accounts
            .histogram(account)
            .map(|(bucket, count)| (exitscope_abi::region::bucket_low(bucket), count))
            .collect(),
    }
}

/// The code under which the sum of retired VMs counts a code: what no manual defines has no place of its own there.
pub fn retired_code(isa: Option<Isa>, code: u64) -> u64 {
    let defined = u32::try_from(code).is_ok_and(|code| isa.is_some_and(|isa| isa.dense(code).is_some()));
    if defined { code } else { OVERFLOW }
}
