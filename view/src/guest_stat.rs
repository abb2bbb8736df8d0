//! What a guest's command caused, as a table.

use std::fmt::Write;

use exitscope_model::document::Parts;
use exitscope_model::guest_stat::GuestStat;

use crate::text::{Table, grouped, share};
use crate::units::duration;

/// The table, and what must be known to judge it.
pub fn text(stat: &GuestStat, width: Option<usize>) -> String {
    let Parts { kernel, user, polled, halted } = stat.ns;
    let mut out = format!(
        "{} exits in {:.3} s; they cost {} of it ({:.1}%), {} polled and {} halted aside\n\n",
        grouped(stat.exits),
        stat.seconds,
        duration(kernel + user),
        stat.percent_of_time,
        duration(polled),
        duration(halted)
    );
    let mut table =
        Table::new(&["EXIT", "EXITS", "EXITS%", "COST%", "KERNEL", "USER", "POLLED", "HALTED", "MEAN"]);
    for reason in &stat.reasons {
        let part = |of: fn(&Parts) -> u64| reason.ns.as_ref().map_or("-".into(), |ns| duration(of(ns)));
        table.row([
            reason.name.to_string(),
            grouped(reason.exits),
            share(reason.exits, stat.exits),
            reason.ns.map_or("-".into(), |ns| share(ns.kernel + ns.user, kernel + user)),
            part(|ns| ns.kernel),
            part(|ns| ns.user),
            part(|ns| ns.polled),
            part(|ns| ns.halted),
            reason.mean_ns.map_or("-".into(), duration),
        ]);
    }
    let dispensable = ["MEAN", "EXITS%", "POLLED", "HALTED", "USER", "KERNEL", "COST%"];
    let _ = writeln!(out, "{}\n{}", table.fitting(width, &dispensable), quality(stat));
    out
}

fn quality(stat: &GuestStat) -> String {
    let mut line = match (stat.cpu, stat.whole_host) {
        (Some(cpu), _) => format!("kept on CPU {cpu}: everything that ran there meanwhile is in the numbers"),
        (None, false) => "every vCPU of this VM, and everything that ran on them".to_owned(),
        (None, true) => "*every VM of the host*, as its policy tells this guest of them".to_owned(),
    };
    let count = |number: Option<u64>| number.map_or("unknown".into(), grouped);
    let _ = write!(
        line,
        "; interrupts {}, context switches (all CPUs) {}; {} CPUID exits of the reading itself are taken away; ns by \
         the guest's time stamp counter ({} kHz)",
        count(stat.interrupts),
        count(stat.context_switches),
        grouped(stat.own_exits),
        grouped(stat.clock_khz.into())
    );
    line
}
