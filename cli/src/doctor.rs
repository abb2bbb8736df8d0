//! `exitscope doctor`: what works on this machine and what does not, each with what to do.

use std::path::Path;
use std::process::ExitCode;

use exitscope_caps::live;
use exitscope_guest::hypervisor;
use exitscope_guest::leaves::Leaves;
use exitscope_host::doctor::{Cpu, Facts, examine};
use exitscope_view::doctor::text;

use crate::output::{print, print_json};

/// Options of `exitscope doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Examines and prints; status 1 when no source works. Changes nothing.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cpu = Cpu {
        isa: live::isa(),
        hypervisor: hypervisor::signature(),
        leaves: Leaves::find().ok().map(|leaves| leaves.discovery()),
    };
    let diagnosis = examine(Path::new("/"), &Facts::here(cpu));
    if args.json {
        print_json(&diagnosis)?
    } else {
        print(&text(&diagnosis))?
    }
    Ok(if diagnosis.works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
