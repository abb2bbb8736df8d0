//! What the CPU's virtualization can do (A1).

use super::Capabilities;
use super::document::{Block, Grid, Kind, Section, UNMEASURED};

/// The section A1.
pub fn section(capabilities: Option<&Capabilities>) -> Section {
    let registers = capabilities.map_or(&[][..], |caps| &caps.registers);
    let grids = registers.iter().filter(|register| !register.controls.is_empty()).map(|register| {
        let caption = format!("{}, MSR {:#x}", register.name, register.address);
        let columns = [
            ("Bit", Kind::Number),
            ("Control", Kind::Text),
            ("Can set", Kind::Text),
            ("Can clear", Kind::Text),
        ];
        let mut grid = Grid::new(caption, &columns);
        for control in &register.controls {
            let [set, clear] = [control.can_be_1, control.can_be_0].map(yes);
            grid.row([control.bit.to_string(), control.name.clone(), set, clear]);
        }
        grid
    });
    Section {
        label: "A1",
        title: "What the CPU's virtualization can do",
        question: "Which controls do the VMX capability MSRs tell of, and can each be set, can each be cleared?",
        commands: vec!["exitscope caps".into()],
        answer: vec![capabilities.map_or(UNMEASURED.into(), count_controls)],
        evidence: match capabilities {
            Some(caps) => vec![Block::Table(registers_table(caps)), Block::Tables(grids.collect())],
            None => vec![],
        },
    }
}

fn yes(can: bool) -> String {
    if can { "yes" } else { "no" }.into()
}

fn count_controls(caps: &Capabilities) -> String {
    let controls = || caps.registers.iter().flat_map(|register| &register.controls);
    let count = |set, clear| {
        controls().filter(|control| (control.can_be_1, control.can_be_0) == (set, clear)).count()
    };
    format!(
        "{} has {} capability MSRs, which tell of {} controls: {} can be set and cleared, {} are always 1, {} are always 0.",
        caps.cpu,
        caps.registers.len(),
        controls().count(),
        count(true, true),
        count(true, false),
        count(false, true),
    )
}

fn registers_table(caps: &Capabilities) -> Grid {
    let columns =
        [("Register", Kind::Text), ("MSR", Kind::Hex), ("Value", Kind::Hex), ("Controls", Kind::Number)];
    let mut grid = Grid::new("The capability MSRs", &columns);
    for register in &caps.registers {
        grid.row([
            register.name.clone(),
            format!("{:#x}", register.address),
            format!("{:#018x}", register.raw),
            register.controls.len().to_string(),
        ]);
    }
    grid
}
