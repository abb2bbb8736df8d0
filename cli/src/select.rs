//! What is selected and how it is shown: the options that all tools share.

use anyhow::{anyhow, bail};
use clap::ValueEnum;
use exitscope_abi::reason::Isa;
use exitscope_host::source::Choice;
use exitscope_model::accounts::{Accounts, RETIRED};
use exitscope_model::select::{Names, Selection, VmKey, codes};
use exitscope_model::stat::{By, Key, Options};

use crate::output::Usage;

/// Rows that a person is shown where `--top` says nothing.
const ROWS: usize = 20;

/// Options of every tool that shows exits.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// Only this VM: its number, its whole name or its process (`id:3`, `name:web`, `pid:4711` where that is unclear)
    ///
    /// Several are separated by commas; `name:a,b` is one name.
    #[arg(long, value_name = "ID|NAME|PID")]
    vm: Vec<String>,
    /// Only VMs of this process
    #[arg(short, long, value_name = "PID", value_delimiter = ',')]
    pid: Vec<u32>,
    /// All VMs, as without any selection
    #[arg(short, long, conflicts_with_all = ["vm", "pid"])]
    all: bool,
    /// Only this vCPU of each selected VM
    #[arg(long, value_name = "N", value_delimiter = ',')]
    vcpu: Vec<u32>,
    /// Only this exit reason: its name or its number
    #[arg(long, value_name = "NAME|CODE", value_delimiter = ',')]
    reason: Vec<String>,
    /// Tell rows apart by these: vm, vcpu, reason, detail
    #[arg(long, value_name = "KEYS", value_delimiter = ',', default_value = "reason")]
    by: Vec<Dimension>,
    /// Show so many rows, and the rest as `other`; 0 for all
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// What rows are ranked by
    #[arg(short, long, default_value = "cost")]
    key: Rank,
    /// Count polled and halted time as cost
    #[arg(long)]
    with_halt: bool,
    /// Show ticks of the clock instead of times
    #[arg(long)]
    cycles: bool,
    /// Where the numbers come from: auto, module, bpf, or a copy of the module's region in a file
    #[arg(long, value_name = "auto|module|bpf|FILE", default_value = "auto")]
    source: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dimension {
    Vm,
    Vcpu,
    Reason,
    Detail,
}

/// With perf's names for the same.
#[derive(Clone, Copy, ValueEnum)]
enum Rank {
    /// Time in the kernel and in the VMM
    #[value(aliases = ["time", "percent_time"])]
    Cost,
    /// Number of exits
    #[value(aliases = ["sample", "samples", "percent_sample"])]
    Exits,
    /// Mean time of an exit
    #[value(aliases = ["mean_t", "avg"])]
    Mean,
    /// The longest exit
    #[value(alias = "max_t")]
    Max,
}

impl Args {
    /// What is selected, on a machine of this instruction set if that is known.
    pub fn selection(&self, isa: Option<Isa>) -> anyhow::Result<Selection> {
        let mut selection = Selection { vcpus: self.vcpu.clone(), ..Selection::default() };
        let split = |text: &'_ String| -> Vec<String> {
            match text.starts_with("name:") {
                true => vec![text.clone()],
                false => text.split(',').map(str::to_owned).collect(),
            }
        };
        for text in &self.vm.iter().flat_map(split).collect::<Vec<_>>() {
            match VmKey::parse(text) {
                Some(key) => selection.vms.push(key),
                None => bail!(Usage(format!("`{text}` names no VM: id: and pid: want a number"))),
            }
        }
        selection.vms.extend(self.pid.iter().map(|&pid| VmKey::Pid(pid)));
        let isas = isa.map_or(Isa::ALL.to_vec(), |isa| vec![isa]);
        for text in &self.reason {
            let found = codes(text, &isas);
            if found.is_empty() {
                let names: Vec<String> = isas.iter().map(|isa| isa.name().to_uppercase()).collect();
                bail!(Usage(format!("{} has no exit reason `{text}`", names.join(" or "))));
            }
            selection.codes.extend(found);
        }
        Ok(selection)
    }

    /// How rows are told apart, ranked and cut; `all` shows every row unless `--top` says otherwise.
    pub fn options(&self, all: bool) -> anyhow::Result<Options> {
        if self.by.contains(&Dimension::Detail) {
            bail!(Usage("this version knows no details: --by vm, vcpu, reason".into()));
        }
        let by = |dimension| self.by.contains(&dimension);
        let key = match self.key {
            Rank::Cost => Key::Cost,
            Rank::Exits => Key::Exits,
            Rank::Mean => Key::Mean,
            Rank::Max => Key::Max,
        };
        Ok(Options {
            by: By { vm: by(Dimension::Vm), vcpu: by(Dimension::Vcpu), reason: by(Dimension::Reason) },
            key,
            top: self.top.unwrap_or(if all { 0 } else { ROWS }),
            with_halt: self.with_halt,
        })
    }

    /// Where the numbers are to come from.
    pub fn source(&self) -> Choice {
        Choice::parse(&self.source)
    }

    /// Whether ticks are shown instead of times.
    pub fn cycles(&self) -> bool {
        self.cycles
    }
}

/// What to say of a VM that was asked for and has never been there.
pub fn not_found(key: &VmKey, accounts: &Accounts, names: &Names) -> anyhow::Error {
    let mut known = String::new();
    for vm in accounts.vms().iter().filter(|vm| vm.id != RETIRED).take(ROWS) {
        let name = names.get(&vm.id).map(|name| format!(" {name},")).unwrap_or_default();
        let end = if vm.finished { ", finished" } else { "" };
        known += &format!("\n  {}{name} pid {}{end}", vm.id, vm.pid);
    }
    match known.is_empty() {
        true => anyhow!("there is no VM `{key}`: no VM has exited yet"),
        false => anyhow!("there is no VM `{key}`; known are:{known}"),
    }
}
