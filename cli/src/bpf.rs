//! `exitscope bpf`: eBPF programs that count also while no process of ours runs.

use anyhow::bail;
use clap::Subcommand;
use exitscope_abi::bpf::{DEFAULT_CELLS, MOST_CELLS};
use exitscope_abi::region::CELL_SIZE;
use exitscope_host::bpf::Bpf;
use exitscope_host::bpf::pin::{self, Pinned};
use exitscope_model::Quality;
use exitscope_view::text::{self, grouped};
use serde::Serialize;

use crate::output::{print, print_json};

/// The schema's name and version.
const SCHEMA: &str = "exitscope-bpf/1";

/// Cells in a MiB.
const PER_MIB: u32 = (1 << 20) / CELL_SIZE as u32;

/// Subcommands of `exitscope bpf`.
#[derive(Subcommand)]
pub enum Command {
    /// Let eBPF programs count from now on, until `unpin` or the next boot: `stat` and others find them
    Pin {
        /// Memory for the counters, in MiB: a power of two; it is taken at once
        #[arg(long, value_name = "MIB", default_value_t = DEFAULT_CELLS / PER_MIB, value_parser = memory)]
        memory: u32,
    },
    /// End the counting of pinned programs, and forget what they counted
    Unpin,
    /// Show whether programs are pinned, and how they fare
    Status {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
}

fn memory(text: &str) -> Result<u32, String> {
    let most = MOST_CELLS / PER_MIB;
    match text.parse() {
        Ok(mib) if u32::is_power_of_two(mib) && mib <= most => Ok(mib),
        _ => Err(format!("want a power of two from 1 to {most}")),
    }
}

/// Runs a subcommand.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Pin { memory } => {
            // Before anything is loaded.
            if Pinned::open()?.is_some() {
                bail!(pin::Error::Exists);
            }
            Ok(Bpf::load(memory * PER_MIB)?.pin()?)
        }
        Command::Unpin => match pin::unpin()? {
            true => Ok(()),
            false => print("No programs are pinned.\n"),
        },
        Command::Status { json } => {
            let status = Pinned::open()?.map(|pinned| Status::new(&pinned)).transpose()?;
            match (status, json) {
                (Some(status), true) => print_json(&status),
                (Some(status), false) => print(&status.to_text()),
                (None, true) => print_json(&Status { schema: SCHEMA, ..Status::default() }),
                (None, false) => print("No programs are pinned: `sudo exitscope bpf pin` has some count.\n"),
            }
        }
    }
}

#[derive(Default, Serialize)]
struct Status {
    schema: &'static str,
    pinned: bool,
    /// KVM's part for this CPU was replaced, so nothing is counted any more, or wrongly.
    stale: bool,
    isa: &'static str,
    memory: Memory,
    quality: Quality,
    vms: usize,
    exits: u64,
}

/// Memory of the counters, in bytes.
#[derive(Default, Serialize)]
struct Memory {
    used: u64,
    most: u64,
}

impl Status {
    fn new(pinned: &Pinned) -> anyhow::Result<Self> {
        let region = pinned.region()?;
        let snapshot = region.snapshot();
        let bytes = |cells: u32| u64::from(cells) * CELL_SIZE as u64;
        Ok(Self {
            schema: SCHEMA,
            pinned: true,
            stale: pinned.is_stale(),
            isa: snapshot.isa.map_or("", |isa| isa.name()),
            memory: Memory { used: bytes(snapshot.used_cells), most: bytes(snapshot.max_cells) },
            quality: snapshot.quality,
            vms: region.live_vms().len(),
            exits: region.exits(),
        })
    }

    fn to_text(&self) -> String {
        let Memory { used, most } = self.memory;
        let mut text = format!(
            "Programs are pinned: {} exits so far, {} VMs live; counters take {} of {} KiB.\n",
            grouped(self.exits),
            self.vms,
            grouped(used.div_ceil(1024)),
            grouped(most / 1024)
        );
        if self.stale {
            text +=
                "KVM's module for this CPU was replaced since: `exitscope bpf unpin`, then pin them again.\n";
        }
        if self.quality != Quality::default() {
            text += &text::memory_shortage(&self.quality);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_power_of_two() {
        assert_eq!(["1", "8", "32"].map(memory), [1, 8, 32].map(Ok));
        for text in ["0", "3", "64", "-1", "", "8M"] {
            assert!(memory(text).is_err(), "{text}");
        }
        assert_eq!(PER_MIB * 8, DEFAULT_CELLS);
    }
}
