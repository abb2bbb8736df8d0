//! `exitscope guest`: what the leaves tell, seen from inside.

mod stat;

use std::process::ExitCode;

use anyhow::bail;
use exitscope_abi::leaf::{Figures, Question, Scope};
use exitscope_abi::reason::Isa;
use exitscope_guest::leaves::Leaves;
use exitscope_model::{self as model, GuestView, Reason, Total};
use exitscope_view::text::{grouped, reasons};

use crate::output::{Usage, print, print_json};

/// Options of `exitscope guest`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<stat::Command>,
    /// One exit reason: its number (SDM appendix C, APM appendix C) or its name, such as CPUID
    reason: Option<String>,
    /// Ask the course's leaves (32-bit counts) instead of exitscope's own
    #[arg(long)]
    course: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// Reads and prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(stat::Command::Stat(args)) = &args.command {
        return stat::run(args);
    }
    read(args)?;
    Ok(ExitCode::SUCCESS)
}

fn read(args: &Args) -> anyhow::Result<()> {
    let Some(text) = &args.reason else {
        return print_all(&Leaves::find()?, args);
    };
    // What neither ISA has is wrong on any machine.
    parse(text, &Isa::ALL)?;
    let leaves = Leaves::find()?;
    print_one(&leaves, parse(text, &[leaves.discovery().isa])?, args)
}

fn isa_name(isa: Isa) -> String {
    isa.name().to_uppercase()
}

/// The code that a number or a name of these ISAs stands for.
fn parse(text: &str, isas: &[Isa]) -> Result<u32, Usage> {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        return parsed.map_err(|_| Usage(format!("`{text}` is no exit reason: not a 32-bit number")));
    }
    let known = isas.iter().find_map(|isa| isa.by_name(text)).map(|reason| reason.code);
    known.ok_or_else(|| {
        let names: Vec<String> = isas.iter().copied().map(isa_name).collect();
        Usage(format!("{} has no exit reason named {text}", names.join(" or ")))
    })
}

fn print_one(leaves: &Leaves, code: u32, args: &Args) -> anyhow::Result<()> {
    let isa = leaves.discovery().isa;
    let Some(figures) = figures(leaves, code, args.course) else {
        bail!("{} defines no exit reason {code}", isa_name(isa));
    };
    let reason = account(isa, code, figures);
    if args.json {
        return print_json(&reason);
    }
    print(&format!(
        "{} ({code}): {} exits, {} cycles\n",
        reason.name,
        grouped(reason.exits),
        grouped(reason.cycles)
    ))
}

/// The figures of a reason, by one family of leaves or the other.
fn figures(leaves: &Leaves, code: u32, course: bool) -> Option<Figures> {
    if !course {
        // Parts first, as time goes on with every question: so they are never more than the whole.
        let parts = leaves.parts(Scope::Policy, code).unwrap_or_default();
        let Figures { exits, cycles, min, max, .. } = leaves.reason(code)?;
        return Some(Figures { exits, cycles, min, max, ..parts });
    }
    let exits = leaves.ask(Question::CourseReasonExits(code))?.exits;
    let cycles = leaves.ask(Question::CourseReasonCycles(code)).map_or(0, |figures| figures.cycles);
    Some(Figures { exits, cycles, ..Figures::default() })
}

fn total(leaves: &Leaves, course: bool) -> Total {
    let Figures { exits, cycles, .. } = if course {
        leaves.ask(Question::CourseBoth).unwrap_or_else(|| Figures {
            exits: leaves.ask(Question::CourseExits).unwrap_or_default().exits,
            ..leaves.ask(Question::CourseCycles).unwrap_or_default()
        })
    } else {
        leaves.total()
    };
    Total { exits, cycles }
}

fn account(isa: Isa, code: u32, figures: Figures) -> Reason {
    let Figures { exits, cycles, min, max, kernel, user, polled, halted } = figures;
    Reason {
        code: code.into(),
        name: model::name(isa, code.into()),
        exits,
        cycles,
        kernel,
        user,
        polled,
        halted,
        min,
        max,
        ..Reason::default()
    }
}

fn print_all(leaves: &Leaves, args: &Args) -> anyhow::Result<()> {
    let discovery = leaves.discovery();
    let isa = discovery.isa;
    let total = total(leaves, args.course);
    let known = isa
        .reasons()
        .iter()
        .filter_map(|known| Some((known.code, figures(leaves, known.code, args.course)?)));
    let mut accounts: Vec<Reason> = known
        .filter(|(_, figures)| figures.exits > 0)
        .map(|(code, figures)| account(isa, code, figures))
        .collect();
    let Figures { exits, cycles, .. } = leaves.undefined();
    if exits > 0 {
        accounts.push(Reason { name: "UNDEFINED".into(), exits, cycles, ..Reason::default() });
    }
    model::rank(&mut accounts);
    let view = GuestView {
        isa: isa.name().into(),
        layout: discovery.layout.name().into(),
        expose: discovery.expose.name().into(),
        total,
        reasons: accounts,
    };
    if args.json {
        return print_json(&view);
    }
    print(&format!(
        "Exits of {} as CPUID tells them ({}, layout {})\n\n{}",
        if view.expose == "host" { "every VM of the host" } else { "this VM" },
        isa_name(isa),
        view.layout,
        reasons(&view.reasons, view.total),
    ))
}
