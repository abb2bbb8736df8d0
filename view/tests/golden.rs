//! What an interval looks like as text, JSON and separated values: files that `EXITSCOPE_UPDATE=1` writes anew.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use exitscope_abi::reason::Isa;
use exitscope_abi::region::bucket;
use exitscope_model::accounts::{Accounts, RETIRED};
use exitscope_model::document::{Context, CpuTime, CpuTimes, Document, Origin};
use exitscope_model::interval::Interval;
use exitscope_model::select::{Names, Selection, VmKey};
use exitscope_model::snapshot::{Clock, Moment};
use exitscope_model::stat::{By, Options};
use exitscope_model::tally::Tally;
use exitscope_view::stat;

/// So many exits of a code that took so many ticks each, parts of which were not the kernel's.
fn add(accounts: &mut Accounts, code: u64, exits: u64, ticks: u64, [user, polled, halted]: [u64; 3]) {
    let cycles = exits * ticks;
    let mut tally = Tally { exits, cycles, user, polled, halted, min: ticks, max: ticks, ..Tally::default() };
    tally.histogram[bucket(ticks)] = exits;
    accounts.add_tally(code, &tally);
}

fn interval() -> Interval {
    let mut accounts = Accounts::default();
    accounts.begin_vm(RETIRED, 0, true, None);
    accounts.begin_vcpu(0, 0, 0, 0);
    add(&mut accounts, 0x72, 7, 2_000, [0; 3]);
    accounts.begin_vm(1, 4711, false, None);
    accounts.begin_vcpu(0, 4713, 2, 0);
    add(&mut accounts, 0x72, 1_234_567, 2_400, [0; 3]);
    add(&mut accounts, 0x78, 400, 6_000_000, [0, 300_000_000, 2_000_000_000]);
    add(&mut accounts, 0x7b, 2_000, 60_000, [90_000_000, 0, 0]);
    accounts.begin_vcpu(1, 4714, 0, 1);
    add(&mut accounts, 0x7c, 20_000, 3_000, [0; 3]);
    add(&mut accounts, 0x2_0000, 1, 3_000, [0; 3]);
    accounts.begin_vm(12, 99, false, None);
    accounts.begin_vcpu(0, 100, 0, 0);
    Interval {
        from: Some(Moment { monotonic_ns: 0, wall_ns: 1_700_000_000_000_000_000 }),
        to: Some(Moment { monotonic_ns: 2_000_000_000, wall_ns: 1_700_000_002_000_000_000 }),
        isa: Some(Isa::Svm),
        clock: Clock { khz: 3_000_000 },
        accounts,
        ..Interval::default()
    }
}

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("EXITSCOPE_UPDATE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{}: EXITSCOPE_UPDATE=1 writes it anew", path.display());
}

/// Shows the interval under these options.
fn show(
    by: By,
    options: Options,
    selection: Selection,
    shown: impl FnOnce(&Interval, Context<'_>) -> String,
) -> String {
    let names = Names::from([(1, "web, \"1\"".into())]);
    let cpu = CpuTimes::from([
        (1, CpuTime { total: 1_500_000_000, guest: 900_000_000, elsewhere: Some(20_000_000), vms: 1 }),
        (12, CpuTime { total: 400_000_000, guest: 0, elsewhere: None, vms: 1 }),
    ]);
    let origin = Origin {
        source: "module".into(),
        why: "it is loaded".into(),
        emulator: "qemu-tcg".into(),
        copy: false,
    };
    let (options, cycles) = (Options { by, ..options }, false);
    let context =
        Context { selection: &selection, names: &names, cpu: &cpu, origin: &origin, options, cycles };
    shown(&interval(), context)
}

const REASON: By = By { vm: false, vcpu: false, reason: true };
const ALL: By = By { vm: true, vcpu: true, reason: true };

fn text(width: Option<usize>) -> impl FnOnce(&Interval, Context<'_>) -> String {
    move |interval, context| stat::text(interval, context, None, width)
}

#[test]
fn text_by_reason() {
    golden("reason.txt", &show(REASON, Options::default(), Selection::default(), text(None)));
}

#[test]
fn text_by_all_of_one_vm_with_halts() {
    let selection = Selection { vms: vec![VmKey::Id(1)], ..Selection::default() };
    let options = Options { with_halt: true, top: 3, ..Options::default() };
    golden("vm.txt", &show(ALL, options, selection, text(None)));
}

#[test]
fn narrow_terminals() {
    for width in [80, 40, 10] {
        let shown = show(REASON, Options::default(), Selection::default(), text(Some(width)));
        golden(&format!("width-{width}.txt"), &shown);
    }
}

#[test]
fn separated_values() {
    let csv = show(ALL, Options::default(), Selection::default(), |interval, context| {
        stat::csv_header(",", context) + &stat::csv(interval, context, ",")
    });
    golden("all.csv", &csv);
    let rows: Vec<&str> = csv.lines().collect();
    assert!(
        rows.iter()
            .all(|row| row.replace("web, ", "web ").matches(',').count() == rows[0].matches(',').count())
    );
}

#[test]
fn json() {
    let text = show(REASON, Options::default(), Selection::default(), |interval, context| {
        serde_json::to_string_pretty(&Document::new(interval, context)).unwrap() + "\n"
    });
    golden("all.json", &text);
}

#[test]
fn several_runs() {
    let shown = |form: &dyn Fn(&[Interval], Context<'_>) -> String| {
        let options = Options { top: 3, ..Options::default() };
        show(REASON, options, Selection::default(), |interval, context| {
            let mut other = interval.clone();
            other.to = other.to.map(|to| Moment { monotonic_ns: 2_200_000_000, ..to });
            other.accounts = Accounts::default();
            other.accounts.begin_vm(2, 4799, true, None);
            other.accounts.begin_vcpu(0, 4800, 5, 0);
            add(&mut other.accounts, 0x72, 1_200_000, 2_400, [0; 3]);
            form(&[interval.clone(), other], context)
        })
    };
    golden("runs.txt", &shown(&|runs, context| stat::repeated(runs, context, None)));
    let json = shown(&|runs, context| {
        let document = Document::of_runs(runs, Context { cpu: &CpuTimes::new(), ..context });
        serde_json::to_string_pretty(&document).unwrap() + "\n"
    });
    golden("runs.json", &json);
}

/// Half a minute's sleep ends in an interval of two seconds.
#[test]
fn times_that_began_before() {
    let line = |ticks: u64| {
        show(REASON, Options::default(), Selection::default(), |interval, context| {
            let mut interval = interval.clone();
            interval.accounts = Accounts::default();
            interval.accounts.begin_vm(1, 4711, false, None);
            for vcpu in 0..2 {
                interval.accounts.begin_vcpu(vcpu, 4713, 0, 0);
            }
            add(&mut interval.accounts, 0x78, 1, ticks, [0, 0, ticks]);
            stat::quality_of_runs(std::slice::from_ref(&interval), context)
        })
    };
    let told = |ticks: u64| line(ticks).contains("exits began before this interval");
    // Two vCPUs of 2 s have 4 s, 12 billion ticks.
    assert_eq!([told(12_000_000_000), told(90_000_000_000)], [false, true]);
}

#[test]
fn a_copy_knows_no_time() {
    let origin = Origin { source: "copy".into(), copy: true, ..Origin::default() };
    let timeless = |interval: &Interval| Interval { from: None, to: None, ..interval.clone() };
    let text = show(REASON, Options::default(), Selection::default(), |interval, context| {
        stat::text(&timeless(interval), Context { origin: &origin, ..context }, None, Some(120))
    });
    golden("copy.txt", &text);
    let document = show(REASON, Options::default(), Selection::default(), |interval, context| {
        serde_json::to_string(&Document::new(&timeless(interval), Context { origin: &origin, ..context }))
            .unwrap()
    });
    assert!(document.contains(r#""emulated":null,"time":null,"seconds":null"#), "{document}");
    let csv = show(REASON, Options::default(), Selection::default(), |interval, context| {
        stat::csv(&timeless(interval), Context { origin: &origin, ..context }, ",")
    });
    assert!(csv.starts_with(",,CPUID,"), "{csv}");
}

#[test]
fn nothing_happened() {
    let selection = Selection { codes: vec![0x40], ..Selection::default() };
    let shown = show(REASON, Options::default(), selection, text(None));
    assert!(shown.contains("no exits of what is selected"), "{shown}");
}
