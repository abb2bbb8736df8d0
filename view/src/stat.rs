//! An interval as a table, or as separated values.

mod csv;
mod repeat;
mod table;
mod usage;

pub use csv::{csv, csv_header};
pub use repeat::repeated;
pub use table::text;

use std::borrow::Cow;

use exitscope_model::accounts::RETIRED;
use exitscope_model::document::{Context, Figures, Parts, Quality};
use exitscope_model::interval::Interval;
use exitscope_model::stat::{By, Rows, Subject};

use crate::text::Table;
use crate::units::{duration, grouped};

/// What tells rows apart, as headings.
fn headings(by: By) -> Vec<&'static str> {
    let all = [(by.vm, "VM"), (by.vm, "NAME"), (by.vcpu, "VCPU"), (by.reason, "EXIT")];
    all.into_iter().filter(|(shown, _)| *shown).map(|(_, heading)| heading).collect()
}

/// A table of rows that are told apart so; names are aligned left.
fn table_of(by: By, columns: &[&str]) -> Table {
    let mut keys = headings(by);
    if keys.is_empty() {
        keys.push("");
    }
    let table = Table::new(&[&keys[..], columns].concat());
    let names = keys.iter().enumerate().filter(|(_, key)| ["NAME", "EXIT"].contains(key));
    names.fold(table, |table, (column, _)| table.left(column))
}

/// What a row is of, under these headings.
fn subject(subject: &Subject, interval: &Interval, context: Context<'_>) -> Vec<String> {
    let mut cells = Vec::new();
    if let Some(vm) = subject.vm {
        cells.push(vm_id(vm).into_owned());
        cells.push(vm_name(vm, interval, context));
    }
    if context.options.by.vcpu {
        cells.push(subject.vcpu.map_or("-".into(), |vcpu| vcpu.to_string()));
    }
    cells.extend(subject.reason(interval).map(Cow::into_owned));
    if cells.is_empty() {
        cells.push("all".into());
    }
    cells
}

/// A row that is no subject's, under these headings.
fn only(name: &str, by: By) -> Vec<String> {
    let mut cells = vec![String::new(); headings(by).len().max(1)];
    cells[0] = name.into();
    cells
}

fn vm_id(vm: u64) -> Cow<'static, str> {
    if vm == RETIRED { "retired".into() } else { vm.to_string().into() }
}

/// A VM's name, or its process where it has none.
fn vm_name(id: u64, interval: &Interval, context: Context<'_>) -> String {
    let pid = || interval.accounts.vms().iter().find(|vm| vm.id == id).map_or(0, |vm| vm.pid);
    match context.names.get(&id) {
        Some(name) => name.clone(),
        None if id == RETIRED => String::new(),
        None => format!("pid {}", pid()),
    }
}

/// The parts of a time in the unit that is shown: ns as text, or ticks.
fn parts(figures: &Figures, cycles: bool) -> [String; 4] {
    let all = |Parts { kernel, user, polled, halted }: Parts| [kernel, user, polled, halted];
    match (cycles, figures.cycles, figures.ns) {
        (true, Some(cycles), _) => all(cycles).map(grouped),
        (_, _, Some(ns)) => all(ns).map(duration),
        (_, Some(cycles), None) => all(cycles).map(grouped),
        _ => ["-"; 4].map(str::to_owned),
    }
}

/// What must be known to judge several runs, as one line.
pub fn quality_of_runs(runs: &[Interval], context: Context<'_>) -> String {
    let Context { selection, names, options, .. } = context;
    let untimed = runs.iter().map(|run| Rows::of(run, selection, names, options).total.untimed()).sum();
    quality(&Quality::of_runs(runs, context, untimed))
}

/// What must be known to judge the numbers, as one line.
pub fn quality(quality: &Quality) -> String {
    let Quality {
        origin,
        untimed,
        unannounced,
        backwards,
        lost,
        unaccounted,
        overflowed,
        restarted,
        began_before,
        ..
    } = quality;
    let mut line = format!("source {}", origin.source);
    if !origin.why.is_empty() {
        line += &format!(" ({})", origin.why);
    }
    line += &match origin.emulator.as_str() {
        _ if origin.copy => "; a copy, of unknown time and machine".to_owned(),
        "" => "; real clock".to_owned(),
        emulator => format!("; *emulated* CPU and clock ({emulator}): times compare with each other only"),
    };
    if quality.clock_khz == 0 {
        line += "; the clock's frequency is unknown";
    }
    line += &format!("; {lost} lost, {untimed} untimed, {unannounced} unannounced");
    if *backwards > 0 {
        line += &format!(", {backwards} over which the clock went backwards");
    }
    if *overflowed || *unaccounted > 0 {
        line +=
            &format!("; memory was short: OVERFLOW lacks its reasons, {unaccounted} exits are in no account");
    }
    if *began_before {
        line += "; exits began before this interval, and all their time is in it, where they ended";
    }
    if *restarted {
        line += "; the source began anew: what came before that is missing";
    }
    line += "; P50, P99 and MAX are upper bounds; `exitscope selftest` measures what watching costs";
    line
}
