//! Where the CPU time of each VM's process went: in the guest, for exits, or for work that no exit caused.

use exitscope_model::document::{Context, CpuTime};
use exitscope_model::interval::Interval;
use exitscope_model::tally::Tally;

use super::{vm_id, vm_name};
use crate::text::Table;

/// A line for each selected VM of whose process the CPU time is known, dearest first.
pub fn text(interval: &Interval, context: Context<'_>, width: Option<usize>) -> String {
    let accounts = &interval.accounts;
    let mut vms: Vec<_> = accounts
        .vms()
        .iter()
        .filter(|vm| context.selection.has_vm(vm, context.names))
        .filter_map(|vm| Some((vm, *context.cpu.get(&vm.id)?)))
        .collect();
    let Some(ns) = interval.ns().filter(|&ns| ns > 0 && !vms.is_empty()) else { return String::new() };
    vms.sort_by_key(|(vm, cpu)| (std::cmp::Reverse(cpu.total), vm.id));
    let more =
        vms.len().saturating_sub(if context.options.top == 0 { vms.len() } else { context.options.top });
    vms.truncate(vms.len() - more);
    let mut table =
        Table::new(&["VM", "NAME", "CPU%", "GUEST", "KERNEL", "USER", "POLLED", "ELSEWHERE"]).left(1);
    for (vm, cpu) in &vms {
        let mut sum = Tally::default();
        for vcpu in accounts.vcpus(vm) {
            accounts.reasons(vcpu).iter().for_each(|account| sum.add(accounts, account));
        }
        let CpuTime { total, guest, elsewhere, vms } = *cpu;
        let part = |part: u64| format!("{:.1}", 100.0 * part as f64 / ns as f64);
        let ticks = |ticks| interval.clock.ns(ticks).map_or("-".into(), part);
        let shared = if vms > 1 { format!(" (one process with {} more)", vms - 1) } else { String::new() };
        table.row([
            vm_id(vm.id).into_owned(),
            vm_name(vm.id, interval, context) + &shared,
            part(total),
            part(guest),
            ticks(sum.kernel()),
            ticks(sum.user),
            ticks(sum.polled),
            elsewhere.map_or("-".into(), part),
        ]);
    }
    let rest = if more > 0 { format!("and {more} more\n") } else { String::new() };
    format!(
        "Host CPU time in percent of one CPU: of the VM's process; in its guest; for exits in the kernel, in the VMM and\n\
         polling (waiting included); and elsewhere in the process, which no exit caused:\n{}{rest}",
        table.fitting(width, &["NAME", "POLLED", "USER", "KERNEL", "GUEST", "CPU%"])
    )
}
