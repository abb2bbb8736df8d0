//! `exitscope guest`: what the leaves tell, seen from inside.

use anyhow::bail;
use exitscope_abi::leaf::{Figures, Question};
use exitscope_abi::reason::{Isa, Reason as Known};
use exitscope_guest::leaves::Leaves;
use exitscope_host::model::{self, GuestView, Reason, Total};
use exitscope_host::render::{grouped, reasons};

use crate::{Usage, print, print_json};

/// Options of `exitscope guest`.
#[derive(clap::Args)]
pub struct Args {
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
pub fn run(args: &Args) -> anyhow::Result<()> {
    let isas = args.reason.as_deref().map(|text| parse(text, &Isa::ALL)).transpose()?;
    let leaves = Leaves::find()?;
    let isa = leaves.discovery().isa;
    match &args.reason {
        None => print_all(&leaves, args),
        Some(text) if isas == Some(None) => bail!(Usage(format!("{} knows no exit reason {text}", isa_name(isa)))),
        Some(text) => print_one(&leaves, parse(text, &[isa])?, text, args),
    }
}

fn isa_name(isa: Isa) -> String {
    isa.name().to_uppercase()
}

/// The code that a number or a name stands for; `None` when none of these ISAs has the name.
fn parse(text: &str, isas: &[Isa]) -> Result<Option<u32>, Usage> {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        return parsed.map(Some).map_err(|_| Usage(format!("`{text}` is no exit reason: not a 32-bit number")));
    }
    Ok(isas.iter().find_map(|isa| isa.by_name(text)).map(|known: &Known| known.code))
}

fn print_one(leaves: &Leaves, code: Option<u32>, text: &str, args: &Args) -> anyhow::Result<()> {
    let isa = leaves.discovery().isa;
    let Some(code) = code else {
        bail!(Usage(format!("{} has no exit reason named {text}", isa_name(isa))));
    };
    let Some(figures) = figures(leaves, code, args.course) else {
        bail!("{} defines no exit reason {code}", isa_name(isa));
    };
    let reason = account(isa, code, figures);
    if args.json {
        return print_json(&reason);
    }
    print(&format!("{} ({code}): {} exits, {} cycles\n", reason.name, grouped(reason.exits), grouped(reason.cycles)))
}

/// The figures of a reason, by one family of leaves or the other.
fn figures(leaves: &Leaves, code: u32, course: bool) -> Option<Figures> {
    if !course {
        return leaves.reason(code);
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
    let Figures { exits, cycles, min, max } = figures;
    Reason { code: code.into(), name: model::name(isa, code.into()), exits, cycles, min, max, ..Reason::default() }
}

fn print_all(leaves: &Leaves, args: &Args) -> anyhow::Result<()> {
    let discovery = leaves.discovery();
    let isa = discovery.isa;
    let total = total(leaves, args.course);
    let known = isa.reasons().iter().filter_map(|known| Some((known.code, figures(leaves, known.code, args.course)?)));
    let mut accounts: Vec<Reason> =
        known.filter(|(_, figures)| figures.exits > 0).map(|(code, figures)| account(isa, code, figures)).collect();
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
