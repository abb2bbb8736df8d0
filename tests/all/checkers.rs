//! The debug kernel's checkers find what they are there for, or `make test-kernel-debug` would prove nothing.

use exitscope_lab::job::{Insert, Step};
use exitscope_tests::findings;

/// Loads and unloads the module with each of these faults, and looks for what its checker must say.
fn are_found(name: &str, faults: &[(&str, &str)]) {
    let steps = faults.iter().flat_map(|(kind, _)| {
        let insert = Insert { path: "/fault.ko".into(), parameters: format!("kind={kind}") };
        [Step::Insert(insert), Step::Remove { name: "fault".into() }]
    });
    let found = findings(name, steps.collect());
    for (kind, finding) in faults {
        assert!(found.iter().any(|line| line.contains(finding)), "{kind} was not found: {found:#?}");
    }
}

/// Lockdep gives up after its first finding, and after one of KASAN's: its own come first.
#[test]
#[ignore = "needs the debug kernel: `make test-kernel-debug` runs it"]
fn faults_are_found() {
    are_found(
        "faults",
        &[
            ("read_unprotected", "suspicious RCU usage"),
            ("lock_out_of_order", "possible circular locking dependency"),
            ("use_after_free", "KASAN: slab-use-after-free"),
            ("sleep_in_atomic", "sleeping function called from invalid context"),
            ("migratable", "using smp_processor_id() in preemptible"),
            ("free_active_timer", "ODEBUG: free active"),
            ("leak_page", "func:leak_page has 4096 allocated at module unload"),
            ("leak_object", "unreferenced object"),
            ("shift_too_far", "UBSAN: shift-out-of-bounds"),
            ("unlink_twice", "list_del corruption"),
        ],
    );
}

#[test]
#[ignore = "needs the debug kernel: `make test-kernel-debug` runs it"]
fn a_lock_that_sleeps_under_one_that_spins_is_found() {
    are_found("nesting", &[("lock_under_raw", "Invalid wait context")]);
}
