//! The course's last experiment: what the same boot costs with nested and with shadow paging, on both vendors.

use exitscope_lab::emulator::Vendor;
use exitscope_lab::parts::series::Series;
use exitscope_model::Report;
use exitscope_model::compare::{Change, Comparison};
use exitscope_tests::{both_pagings, default_series, exits, sums_are_totals};

/// Runs both, and checks what holds for either vendor.
fn compared(vendor: Vendor) -> ([Report; 2], Comparison) {
    let reports = both_pagings(vendor);
    for report in &reports {
        sums_are_totals(&report.vms);
        assert_eq!((report.vms.len(), report.machine.vendor.as_str()), (1, vendor.name()));
        let seen = report.timeline.last().map_or(0, |tick| tick.exits);
        assert!(seen > 0 && seen <= report.total.exits, "{seen} of {:?}", report.total);
    }
    let comparison = Comparison::new(&reports[0], &reports[1]).unwrap();
    (reports, comparison)
}

/// Checks that these codes' exits appear, or rise by orders of magnitude.
fn rise([nested, shadow]: &[Report; 2], codes: &[u32]) {
    for &code in codes {
        let (before, after) = (exits(&nested.reasons, code), exits(&shadow.reasons, code));
        assert!(after > 100 && after > 50 * before, "{code}: {before}, then {after}");
    }
}

/// Checks that these codes' exits are there, and then none.
fn vanish(comparison: &Comparison, codes: &[u64]) {
    for &code in codes {
        let row = comparison.reasons.iter().find(|row| row.code == code).unwrap();
        assert_eq!(row.change, Change::Vanished, "{row:?}");
    }
}

/// Checks that there are so many times the exits that the guest causes: not the host's interrupts, whose number is a
/// matter of time.
fn multiply(reports: &[Report; 2], interrupt: u32, factor: f64) {
    let [nested, shadow] =
        reports.each_ref().map(|report| report.total.exits - exits(&report.reasons, interrupt));
    assert!(shadow as f64 > factor * nested as f64, "{nested}, then {shadow}");
}

#[test]
fn shadow_paging_on_intel_trades_ept_violations_for_page_faults_and_cr3_writes() {
    let (reports, comparison) = compared(Vendor::Intel);
    rise(&reports, &[0, 14, 28]);
    vanish(&comparison, &[48, 49]);
    // The debug kernel, which is the guest's, too, has no huge pages: each small one is an exit with either paging.
    multiply(&reports, 1, if default_series() == Series::Debug { 2.0 } else { 5.0 });
    // What keeps this lane fast: no BIOS, no disk, nothing decompressed.
    let most = if default_series() == Series::Debug { 8_000_000_000 } else { 4_000_000_000 };
    let instructions = reports[0].machine.instructions_to_module.unwrap();
    assert!(instructions < most, "{instructions} instructions until the module was loaded");
    // Emulated time makes sense: the timer's interrupts are few among the guest's exits.
    assert!(exits(&reports[0].reasons, 1) * 5 < reports[0].total.exits);
}

#[test]
fn shadow_paging_on_amd_trades_nested_page_faults_for_page_faults_and_cr3_writes() {
    let (reports, comparison) = compared(Vendor::Amd);
    rise(&reports, &[19, 78, 121]);
    vanish(&comparison, &[1024]);
    // As above.
    multiply(&reports, 0x60, if default_series() == Series::Debug { 1.8 } else { 2.0 });
}
