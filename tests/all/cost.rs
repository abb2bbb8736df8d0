//! What the module adds to an exit: instructions, exact under icount, so that a limit can be asserted.

use std::process::Command;

use exitscope_lab::emulator::Vendor;
use exitscope_tests::{bench, module};

#[test]
fn the_module_adds_few_instructions_to_an_exit() {
    adds_few_instructions(Vendor::Amd);
}

#[test]
fn the_module_adds_few_instructions_to_an_exit_on_intel() {
    adds_few_instructions(Vendor::Intel);
}

fn adds_few_instructions(vendor: Vendor) {
    let bench = bench(vendor);
    let cost = |watch: &str, workload: &str| {
        let mut found = bench.bench.iter().filter(|cost| cost.watch == watch && cost.workload == workload);
        found.next().unwrap_or_else(|| panic!("{watch} on {workload} was not measured"))
    };
    for (workload, limit) in [("rdmsr", 80.0), ("cpuid", 200.0)] {
        let module = cost("module", workload);
        eprintln!(
            "{workload}: {:.2} instructions, {:+.2} with the module",
            module.instructions_per_exit, module.added
        );
        assert!(module.added > 0.0 && module.added <= limit, "{module:?}");
        assert!(module.added < cost("ftrace", workload).added);
    }
}

/// What every exit runs through has no locked instruction, no division and no call: so nothing there can panic.
#[test]
fn the_exit_path_is_straight() {
    for function in ["exitscope_on_svm_exit", "exitscope_on_vmx_exit", "exitscope_on_entry"] {
        let mut objdump = Command::new("objdump");
        objdump
            .args(["-d", "--no-show-raw-insn", &format!("--disassemble={function}")])
            .arg(module(Vendor::Amd));
        let output = objdump.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (_, body) =
            text.split_once(&format!("<{function}>:\n")).unwrap_or_else(|| panic!("no {function}"));
        let body = body.split("\n\n").next().unwrap();
        let instructions: Vec<&str> = body.lines().filter_map(|line| line.split('\t').nth(1)).collect();
        assert!((15..80).contains(&instructions.len()), "{function} has {} instructions", instructions.len());
        for instruction in instructions {
            let word = instruction.split_whitespace().next().unwrap_or_default();
            let slow = ["lock", "xchg", "div", "idiv", "call", "push"];
            assert!(!slow.iter().any(|slow| word.starts_with(slow)), "{function}: {instruction}");
        }
    }
}
