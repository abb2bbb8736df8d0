//! `exitscope module`: what the kernel module on this machine has counted, and what may be asked of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use clap::Subcommand;
use exitscope_abi::leaf::Expose;
use exitscope_host::control::Control;
use exitscope_host::region::{DEVICE, Region};
use exitscope_model::snapshot::Snapshot;
use exitscope_model::{self as model, Vm};
use exitscope_view::text::{self, Table, grouped};
use serde::Serialize;

use crate::output::{Usage, print, print_json};

/// The schema's name and version.
const SCHEMA: &str = "exitscope-module/1";

/// Subcommands of `exitscope module`.
#[derive(Subcommand)]
pub enum Command {
    /// Show every VM that the module knows, and all exits by reason
    Status {
        /// Count from the last `exitscope module reset` on
        #[arg(long)]
        since_reset: bool,
        /// Print one JSON document: every VM, vCPU and reason
        #[arg(long)]
        json: bool,
    },
    /// Show how the mapped counters describe themselves: every field of every kind of cell
    Layout {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Set whose exits the guest of one VM is told, or of all VMs of a process
    #[command(allow_missing_positional = true)]
    Policy {
        /// The process that runs VMs: those that it has, and those that it will have
        #[arg(long)]
        pid: Option<u32>,
        /// Number of the VM, as `exitscope module status` shows it
        #[arg(required_unless_present = "pid", conflicts_with = "pid")]
        vm: Option<u64>,
        /// `off`, `vm`, `host`, or `default` for the module's parameter `expose`
        policy: String,
    },
    /// Begin to count anew, for whoever asks so: nobody else's numbers change
    Reset,
}

/// Runs a subcommand.
pub fn run(command: &Command) -> anyhow::Result<()> {
    let device = Path::new(DEVICE);
    match command {
        Command::Status { since_reset, json } => {
            let region = Region::open(device)?;
            let snapshot = if *since_reset { region.since_reset() } else { region.snapshot() };
            let status = Status::new(snapshot)?;
            if *json { print_json(&status) } else { print(&status.to_text()) }
        }
        Command::Layout { json } => {
            let fields = Region::open(device)?.fields();
            if *json {
                return print_json(&fields);
            }
            let mut table = Table::new(&["FIELD", "KIND", "OFFSET", "WIDTH", "COUNT"]);
            for field in fields {
                let numbers =
                    [field.kind, field.offset, field.width, field.count].map(|number| number.to_string());
                table.row([field.name].into_iter().chain(numbers));
            }
            print(&table.to_string())
        }
        Command::Policy { pid, vm, policy } => {
            let expose = match policy.as_str() {
                "default" => None,
                name => match Expose::from_name(name) {
                    Some(expose) => Some(expose),
                    None => bail!(Usage(format!("unknown policy {name}: want off, vm, host or default"))),
                },
            };
            let control = Control::open(device)?;
            match (pid, vm) {
                (Some(pid), _) if !control.set_process_policy(*pid, expose)? => {
                    bail!("there is no process {pid}")
                }
                (None, Some(vm)) if !control.set_policy(*vm, expose)? => {
                    bail!("no live VM has the number {vm}: `exitscope module status` lists them")
                }
                _ => Ok(()),
            }
        }
        Command::Reset => Ok(Control::open(device)?.reset()?),
    }
}

#[derive(Serialize)]
struct Status {
    schema: &'static str,
    isa: &'static str,
    tsc_khz: u32,
    expose: String,
    layout: String,
    memory: Memory,
    quality: model::Quality,
    total: model::Total,
    reasons: Vec<model::Reason>,
    vms: Vec<Vm>,
}

/// Memory of the counters, in bytes.
#[derive(Serialize)]
struct Memory {
    used: u64,
    most: u64,
}

impl Status {
    fn new(snapshot: Snapshot) -> anyhow::Result<Self> {
        let vms = snapshot.vms();
        let Snapshot { isa, clock, quality, used_cells, max_cells, .. } = snapshot;
        let reasons = model::merge(vms.iter().flat_map(|vm| &vm.vcpus).flat_map(|vcpu| &vcpu.reasons));
        let bytes = |cells: u32| u64::from(cells) * exitscope_abi::region::CELL_SIZE as u64;
        Ok(Self {
            schema: SCHEMA,
            isa: isa.map_or("", |isa| isa.name()),
            tsc_khz: clock.khz,
            expose: parameter("expose")?,
            layout: parameter("layout")?,
            memory: Memory { used: bytes(used_cells), most: bytes(max_cells) },
            quality,
            total: model::total(&reasons),
            reasons,
            vms,
        })
    }

    fn to_text(&self) -> String {
        let Memory { used, most } = self.memory;
        let mut text = format!(
            "expose {}, layout {}; counters take {} KiB of at most {} KiB\n\n",
            self.expose,
            self.layout,
            grouped(used.div_ceil(1024)),
            grouped(most / 1024)
        );
        if self.vms.is_empty() {
            return text + "No VM has exited yet.\n";
        }
        let mut table =
            Table::new(&["VM", "PROCESS", "STATE", "POLICY", "VCPUS", "EXITS", "CYCLES"]).left(2).left(3);
        for vm in &self.vms {
            let (state, total) = (if vm.finished { "finished" } else { "live" }, vm.total());
            table.row([
                vm.id.clone(),
                vm.pid.to_string(),
                state.into(),
                vm.expose.clone().unwrap_or_else(|| "default".into()),
                vm.vcpus.len().to_string(),
                grouped(total.exits),
                grouped(total.cycles),
            ]);
        }
        text += &table.to_string();
        text.push('\n');
        text += &text::reasons(&self.reasons, self.total);
        if self.quality != model::Quality::default() {
            text += &text::memory_shortage(&self.quality);
        }
        text
    }
}

/// The value of one of the module's parameters.
fn parameter(name: &str) -> anyhow::Result<String> {
    let path = format!("/sys/module/exitscope/parameters/{name}");
    let value = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(value.trim_end().to_owned())
}
