//! What is selected and how it is shown: the options that all tools share.

use anyhow::{anyhow, bail};
use clap::ValueEnum;
use exitscope_abi::reason::Isa;
use exitscope_host::source::Choice;
use exitscope_model::accounts::{Accounts, RETIRED, VmEntry};
use exitscope_model::select::{Names, Selection, VmKey, codes};
use exitscope_model::stat::{By, Key, Options};

use crate::output::{Usage, tell};

/// Rows that a person is shown where `--top` says nothing.
const ROWS: usize = 20;

/// Options of every tool that shows exits.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// Only this VM: its number, its whole name or its process (`id:3`, `name:web`, `pid:4711` where that is unclear)
    ///
    /// Several are separated by commas; a doubled comma stands for one in a name.
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
        for text in &self.vm.iter().flat_map(|text| split(text)).collect::<Vec<_>>() {
            match VmKey::parse(text) {
                _ if text.is_empty() => bail!(Usage("--vm wants a VM between commas".into())),
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

/// What is selected, and which of the VMs that were asked for have been there.
#[derive(Default)]
pub struct Wanted {
    /// What is selected.
    pub selection: Selection,
    /// For each key whether a VM has fitted it; none before the first look.
    seen: Vec<bool>,
}

impl Wanted {
    /// What the options select, on a machine of this instruction set if that is known: names of reasons depend on it.
    pub fn update(&mut self, args: &Args, isa: Option<Isa>) -> anyhow::Result<()> {
        let selection = args.selection(isa)?;
        let bound = std::mem::take(&mut self.selection.vms);
        self.selection = if self.seen.is_empty() { selection } else { Selection { vms: bound, ..selection } };
        Ok(())
    }

    /// Notes which VMs there are. At the first look a key that may mean several is an error; later it means what it meant
    /// when it fitted one first, whatever VMs have come.
    pub fn look(&mut self, vms: &[VmEntry], names: &Names) -> anyhow::Result<()> {
        if self.seen.is_empty() {
            self.selection.check(vms, names)?;
            self.seen = vec![false; self.selection.vms.len()];
        }
        self.selection.bind(vms, names);
        for (key, seen) in self.selection.vms.iter().zip(&mut self.seen) {
            *seen |= key.fits_any(vms, names);
        }
        Ok(())
    }

    /// The keys that fit none of these VMs: those that once fitted one, or those that never did.
    fn missing(&self, seen: bool, vms: &[VmEntry], names: &Names) -> Vec<&VmKey> {
        let keys = self.selection.vms.iter().zip(&self.seen).filter(|(_, known)| **known == seen);
        keys.map(|(key, _)| key).filter(|key| !key.fits_any(vms, names)).collect()
    }

    /// Checks that each VM that was asked for has been there, and tells which have been retired.
    pub fn all_found(&self, accounts: &Accounts, names: &Names) -> anyhow::Result<()> {
        for key in self.missing(true, accounts.vms(), names) {
            tell(format_args!(
                "VM `{key}` was retired meanwhile: what it did after the last reading before is in `--vm retired`"
            ));
        }
        match self.missing(false, accounts.vms(), names).first() {
            Some(key) => Err(not_found(key, accounts, names)),
            None => Ok(()),
        }
    }
}

/// The parts of a list; a doubled comma stands for one in a part, as QEMU has it.
fn split(text: &str) -> Vec<String> {
    const COMMA: &str = "\u{1}";
    text.replace(",,", COMMA).split(',').map(|part| part.replace(COMMA, ",")).collect()
}

/// What to say of a VM that was asked for and has never been there.
fn not_found(key: &VmKey, accounts: &Accounts, names: &Names) -> anyhow::Error {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_was_there_is_not_missing() {
        let keys = ["1", "22"].map(|key| VmKey::parse(key).unwrap()).to_vec();
        let mut wanted = Wanted { selection: Selection { vms: keys, ..Selection::default() }, seen: vec![] };
        let names = Names::new();
        let mut accounts = Accounts::default();
        accounts.begin_vm(1, 11, false, None);
        wanted.look(accounts.vms(), &names).unwrap();
        assert!(wanted.all_found(&accounts, &names).unwrap_err().to_string().contains("no VM `22`"));
        let mut later = Accounts::default();
        later.begin_vm(2, 22, false, None);
        wanted.look(later.vms(), &names).unwrap();
        assert!(wanted.all_found(&later, &names).is_ok());
        assert_eq!(wanted.missing(true, later.vms(), &names), [&VmKey::Id(1)]);
        // Its process's number is now another VM's, too: this neither ends the watching nor is it shown.
        later.begin_vm(22, 33, false, None);
        wanted.look(later.vms(), &names).unwrap();
        assert!(!wanted.selection.has_vm(&later.vms()[1], &names));
    }
}
