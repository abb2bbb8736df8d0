//! What the module adds to an exit: instructions, exact under icount, so that a limit can be asserted.

use exitscope_tests::bench;

#[test]
fn the_module_adds_few_instructions_to_an_exit() {
    let bench = bench();
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
