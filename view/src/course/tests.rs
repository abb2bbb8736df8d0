//! Checks on the whole document, made of synthetic measurements.

use std::collections::BTreeSet;

use roxmltree::{Document as Xml, Node};

use super::*;
use exitscope_model::{Phase, Reason, SCHEMA as REPORT, Tick, total};

fn machine(vendor: &str, paging: &str) -> Machine {
    Machine {
        emulated: true,
        emulator: if vendor == "amd" { "qemu-tcg" } else { "bochs" }.into(),
        vendor: vendor.into(),
        kernel: "6.12.1-test".into(),
        paging: paging.into(),
        ..Machine::default()
    }
}

fn run(vendor: &str, paging: &str, reasons: &[(u64, &str, u64)]) -> Report {
    let account = |&(code, name, exits): &(u64, &str, u64)| Reason {
        code,
        name: name.to_owned().into(),
        exits,
        cycles: 1_003 * exits,
        ..Reason::default()
    };
    let reasons: Vec<Reason> = reasons.iter().map(account).collect();
    let machine = machine(vendor, paging);
    Report {
        schema: REPORT.into(),
        isa: isa_of(&machine).name().into(),
        machine,
        total: total(&reasons),
        reasons,
        ..Report::default()
    }
}

fn register(address: u32, name: &str) -> CapsRegister {
    let control =
        |bit, name: &str, can_be_0, can_be_1| Control { bit, name: name.into(), can_be_0, can_be_1 };
    let controls = vec![
        control(0, "External-interrupt exiting", true, true),
        control(1, "default & fixed <1>", false, true),
        control(5, "Virtual \"NMIs\"", true, false),
    ];
    CapsRegister { address, name: name.into(), raw: 0x7F_0000_0016, controls }
}

fn reading(vendor: &str, layout: &str, rows: &[(u32, u32, [u32; 4], Counts)]) -> LayoutReading {
    let rows = rows.iter().map(|&(leaf, subleaf, registers, exitscope)| Reading {
        leaf,
        subleaf,
        registers,
        exitscope,
    });
    LayoutReading { machine: machine(vendor, "nested"), layout: layout.into(), rows: rows.collect() }
}

const fn told(exits: u64, cycles: u64) -> Counts {
    Counts { exits: Some(exits), cycles: Some(cycles) }
}

const NOT_DEFINED: Counts = Counts { exits: None, cycles: None };

fn readings() -> Vec<LayoutReading> {
    let undefined = [0, 0, 0, u32::MAX];
    vec![
        reading(
            "intel",
            "classic",
            &[
                (0x4FFF_FFFF, 0, [5_480, 0, 0, 0], told(5_502, 0)),
                (0x4FFF_FFFE, 0, [0, 1, 7, 0], told(0, (1 << 32) + 7)),
                (0x4FFF_FFFD, 10, [848, 0, 0, 0], told(853, 1)),
                (0x4FFF_FFFC, 10, [0, 0, 90_001, 0], told(853, 90_000)),
                (0x4FFF_FFFD, 11, [0; 4], told(0, 0)),
                (0x4FFF_FFFD, 35, undefined, NOT_DEFINED),
            ],
        ),
        reading("amd", "reordered", &[(0x4FFF_FFFC, 0, [77, 0, 0, 0], told(77, 0))]),
        reading("amd", "combined", &[(0x4FFF_FFFF, 0, [78, 2, 1, 0], told(79, (2 << 32) + 1))]),
    ]
}

fn boot() -> Boot {
    let reasons =
        [(30, "IO_INSTRUCTION", 600), (10, "CPUID", 90), (48, "EPT_VIOLATION", 9), (28, "CR_ACCESS", 1)];
    let ticks =
        (0..=40).map(|index: u64| Tick { t_ms: 50 * index, exits: (index * index * 700).div_ceil(1_600) });
    let timeline: Vec<Tick> = ticks.collect();
    let at = |ms: u64| timeline[(ms / 50) as usize].exits;
    let phase = |name: &str, start_ms, end_ms| Phase {
        name: name.into(),
        start_ms,
        end_ms,
        exits: at(end_ms) - at(start_ms),
    };
    let phases = vec![
        phase("firmware", 0, 100),
        phase("kernel <early>", 100, 1_200),
        phase("userspace", 1_200, 2_000),
    ];
    let report = Report { timeline, phases, ..run("intel", "nested", &reasons) };
    Boot {
        guest: "a Debian & its <systemd>".into(),
        command: "exitscope lab run --guest debian".into(),
        report,
    }
}

fn course() -> Course {
    let nested =
        run("intel", "nested", &[(10, "CPUID", 552), (48, "EPT_VIOLATION", 115), (28, "CR_ACCESS", 9)]);
    let shadow = run(
        "intel",
        "shadow",
        &[(28, "CR_ACCESS", 19_564), (0, "EXCEPTION_NMI", 13_709), (10, "CPUID", 552)],
    );
    Course {
        capabilities: Some(Capabilities {
            cpu: "The emulated Skylake-X".into(),
            registers: vec![register(0x481, "IA32_VMX_PINBASED_CTLS"), register(0x483, "IA32_VMX_EXIT_CTLS")],
        }),
        readings: readings(),
        comparisons: vec![Comparison::new(&nested, &shadow).unwrap()],
        boots: vec![boot()],
        ..Course::default()
    }
}

/// The page's body as XML; its head has elements without an end.
fn xml(page: &str) -> Xml<'_> {
    let (_, body) = page.split_once("</head>").unwrap();
    Xml::parse(body.strip_suffix("</html>").unwrap()).unwrap()
}

fn all<'a>(page: &'a Xml, tag: &'static str) -> impl Iterator<Item = Node<'a, 'a>> {
    page.descendants().filter(move |node| node.has_tag_name(tag))
}

fn text(node: Node) -> String {
    node.descendants().filter(Node::is_text).filter_map(|piece| piece.text()).collect()
}

/// The answer of a section of both pages; HTML and Markdown must say the same.
fn answer(label: &str) -> String {
    let document = course().document();
    let section = document.sections.iter().find(|section| section.label == label).unwrap();
    section.answer.join("\n")
}

#[test]
fn the_page_is_well_formed_and_fetches_nothing() {
    for course in [course(), Course::default()] {
        let page = html(&course);
        let tree = xml(&page);
        assert_eq!(all(&tree, "h2").count(), 8);
        assert!(["http", "url(", "<script"].iter().all(|text| !page.contains(text)));
        for link in all(&tree, "a") {
            let target = link.attribute("href").and_then(|href| href.strip_prefix('#'));
            assert!(tree.descendants().any(|node| node.attribute("id") == target));
        }
    }
}

#[test]
fn the_order_is_that_of_the_assignments() {
    let document = course().document();
    let labels: Vec<&str> = document.sections.iter().map(|section| section.label).collect();
    assert_eq!(labels, ["A1", "A2", "A2′", "A2″", "A3", "A4", "Q3", "Q4"]);
}

#[test]
fn what_was_not_measured_says_so() {
    let document = Course::default().document();
    assert!(document.sections.iter().all(|section| section.answer == ["Not measured in this run."]));
}

#[test]
fn tables_and_drawings_have_names() {
    let page = html(&course());
    let tree = xml(&page);
    for table in all(&tree, "table") {
        assert!(table.children().any(|child| child.has_tag_name("caption")));
    }
    let drawings: Vec<Node> = all(&tree, "svg").filter(|svg| svg.has_attribute("role")).collect();
    assert_eq!(drawings.len(), 3);
    for drawing in drawings {
        assert!(["title", "desc"].iter().all(|&tag| drawing.children().any(|child| child.has_tag_name(tag))));
    }
}

#[test]
fn drawings_hold_finite_numbers_within_their_frame() {
    let page = html(&course());
    assert!(!page.contains("NaN") && !page.contains("inf%") && !page.contains("inf\""));
    let tree = xml(&page);
    for node in all(&tree, "rect").chain(all(&tree, "line")) {
        for percent in node.attributes().filter_map(|attribute| attribute.value().strip_suffix('%')) {
            assert!((0.0..=100.0).contains(&percent.parse::<f64>().unwrap()), "{percent}");
        }
    }
    let [area, line] = ["area", "line"].map(|class| {
        all(&tree, "path")
            .find(|path| path.attribute("class") == Some(class))
            .unwrap()
            .attribute("d")
            .unwrap()
    });
    let numbers = |path: &str| -> Vec<f64> {
        path.split(|c: char| !(c.is_ascii_digit() || c == '.'))
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    assert!(numbers(area).iter().chain(&numbers(line)).all(|number| (0.0..=1_000.0).contains(number)));
}

#[test]
fn a_zero_is_an_empty_bar() {
    let page = html(&course());
    let tree = xml(&page);
    let zeros =
        all(&tree, "text").filter(|value| value.attribute("class") == Some("value") && text(*value) == "0");
    let empty = all(&tree, "rect").filter(|bar| bar.attribute("width") == Some("0.00%"));
    assert_eq!([zeros.count(), empty.count()], [2, 2]);
}

/// Numbers of at least four digits in a text, without the commas between thousands.
fn numbers(text: &str) -> BTreeSet<u64> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || ",._".contains(c)));
    words.filter_map(|word| word.replace(',', "").parse().ok()).filter(|&number| number >= 1_000).collect()
}

#[test]
fn every_count_in_a_table_is_in_the_data_or_follows_from_it() {
    let course = course();
    let data = serde_json::to_string(&course).unwrap();
    let mut known = numbers(&data.replace(',', " "));
    let pair = &course.comparisons[0];
    known.extend(pair.reasons.iter().map(|row| row.difference.unsigned_abs()));
    known.insert(pair.b.total.exits - pair.a.total.exits);
    known.insert((1 << 32) + 7);
    known.insert((2 << 32) + 1);
    known.extend(course.boots[0].report.phases.iter().filter_map(Phase::rate));
    known.insert(1_003);
    let page = html(&course);
    let tree = xml(&page);
    for cell in all(&tree, "td").filter(|cell| cell.attribute("class") == Some("n")) {
        let unknown: Vec<u64> = numbers(&text(cell)).difference(&known).copied().collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

#[test]
fn names_from_outside_are_escaped() {
    let [page, text] = [html(&course()), markdown(&course())];
    for name in ["<systemd>", "<early>", "<1>"] {
        assert!(!page.contains(name) && !text.replace("```text", "").contains(&format!("| {name}")));
    }
    assert!(page.contains("a Debian &amp; its &lt;systemd&gt;") && page.contains("Virtual &quot;NMIs&quot;"));
}

#[test]
fn capabilities_are_counted() {
    assert!(answer("A1").contains("2 capability MSRs, which tell of 6 controls: 2 can be set and cleared, 2 are always 1, 2 are always 0"));
}

#[test]
fn leaves_are_read_by_their_layout() {
    assert!(answer("A2").contains("5,480 exits and 4,294,967,303 cycles"));
    assert!(answer("A2").contains("the same in 1 and more (exits had gone on) in 1"));
    assert!(answer("A2′").contains("77 exits"));
    assert!(answer("A2″").contains("78 exits and 8,589,934,593 cycles"));
}

#[test]
fn reasons_that_are_undefined_or_never_seen_are_told() {
    let told = answer("A3");
    assert!(told.contains("CPUID (10) with 848 exits"), "{told}");
    assert!(told.contains("never seen: GETSEC (11) answered four zeros"), "{told}");
    assert!(told.contains("Not defined by the SDM: reason 35 answered zeros and EDX = 0xFFFFFFFF"), "{told}");
    assert!(told.contains("the same in 2, more (exits had gone on) in 1 and something else in 1"), "{told}");
}

#[test]
fn a_wrong_answer_is_called_wrong() {
    let rows = [(0x4FFF_FFFD, 35, [0; 4], NOT_DEFINED), (0x4FFF_FFFD, 10, [0, 0, 0, u32::MAX], NOT_DEFINED)];
    let course = Course { readings: vec![reading("intel", "classic", &rows)], ..Course::default() };
    let text = markdown(&course);
    assert!(text.contains("Wrong by the SDM: CPUID (10) and reason 35 answered otherwise."), "{text}");
}

#[test]
fn what_paging_changes_is_told() {
    let told = answer("A4");
    assert!(
        told.contains("676 exits with nested and 33,825 with shadow paging: 50.0 times as many"),
        "{told}"
    );
    assert!(
        told.contains("Only with shadow: EXCEPTION_NMI (13,709). Only with nested: EPT_VIOLATION (115).")
    );
    assert!(told.contains("At least doubled: CR_ACCESS (9 to 19,564)."));
}

#[test]
fn a_boot_is_judged() {
    let told = answer("Q3");
    assert!(told.starts_with("No: the rate is uneven. "), "{told}");
    assert!(told.contains("700 exits in 2.0 s") && told.contains("highest in the phase userspace"), "{told}");
    let told = answer("Q4");
    assert!(told.contains("most frequent are IO_INSTRUCTION (600, 85.71%)"), "{told}");
    assert!(told.contains("least frequent of those that occur are CR_ACCESS (1, 0.14%)"), "{told}");
}

#[test]
fn markdown_says_what_html_says() {
    let [page, text] = [html(&course()), markdown(&course())];
    for section in course().document().sections {
        for paragraph in &section.answer {
            let plain = paragraph.split(['`', '&', '<', '>']).max_by_key(|piece| piece.len()).unwrap();
            assert!(page.contains(plain) && text.contains(plain), "{plain}");
        }
    }
    assert!(text.contains("| CR_ACCESS | 28 | 9 | 19,564 | +19,555 | x2173.78 |"));
}

#[test]
fn json_goes_and_comes_back() {
    let text = serde_json::to_string(&course()).unwrap();
    assert!(text.starts_with(r#"{"schema":"exitscope-course/1""#));
    assert_eq!(serde_json::from_str::<Course>(&text).unwrap(), course());
}
