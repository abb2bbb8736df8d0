//! `exitscope caps`: what a CPU's virtualization can do.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use exitscope_host::caps::decode::decode;
use exitscope_host::caps::dump::{self, Dump};
use exitscope_host::caps::render::{self, Forms};

use crate::{print, print_json};

/// Options of `exitscope caps`.
#[derive(clap::Args)]
pub struct Args {
    /// Decode a dump: JSON of this command, `MSR 00000480: …` blocks, rdmsr's output, or a list of addresses and
    /// values; `-` for standard input
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Print one JSON document
    #[arg(long, conflicts_with = "style")]
    json: bool,
    /// How to print
    #[arg(long, default_value = "full")]
    style: Style,
    /// Show controls in both forms, the original and the TRUE one
    #[arg(long)]
    both: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Style {
    /// A summary in words, then every bit
    Full,
    /// As the course's module prints: can set, can clear
    Course,
}

/// Reads and prints; what is wrong with a dump is told after what could be read.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let dump = dump::parse(&read(&args.from)?);
    show(args, &dump)?;
    let errors: Vec<String> = dump.errors.iter().map(ToString::to_string).collect();
    if !errors.is_empty() {
        bail!("{}: {}", args.from.display(), errors.join("\n  "));
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path != Path::new("-") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    Ok(bytes)
}

fn show(args: &Args, dump: &Dump) -> anyhow::Result<()> {
    if args.json {
        return print_json(&decode(&dump.cpus));
    }
    let forms = if args.both { Forms::Both } else { Forms::Taken };
    match args.style {
        Style::Full => print(&render::full(&dump.cpus, forms)),
        Style::Course => print(&render::course(&dump.cpus, forms)),
    }
}
