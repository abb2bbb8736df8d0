//! `include/exitscope.h` says the same as the Rust source: a C compiler checks every number of it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use exitscope_abi::control::{Policy, RESET, SET_POLICY};
use exitscope_abi::leaf::Expose;
use exitscope_abi::region::{
    BUCKETS, CELL_SIZE, Counters, EXPOSE_AS_MODULE, FIELDS, FIELDS_PER_CELL, Field, Head, Header, MAGIC,
    Schema, VERSION, VcpuCell, VmCell, kind, state,
};

fn structure(kind: u16) -> &'static str {
    match kind {
        kind::FREE => "exitscope_head",
        kind::HEADER => "exitscope_header",
        kind::VM => "exitscope_vm",
        kind::VCPU => "exitscope_vcpu",
        kind::COUNTERS => "exitscope_counters",
        kind::SCHEMA => "exitscope_schema",
        other => panic!("no structure of kind {other}"),
    }
}

/// A C program that compiles only if these hold.
fn program(claims: &[String]) -> String {
    let mut text = String::from("#include <stddef.h>\n#include \"exitscope.h\"\n");
    for claim in claims {
        writeln!(text, "_Static_assert({claim}, \"\");").unwrap();
    }
    text
}

fn claims() -> Vec<String> {
    let mut claims = Vec::new();
    for &Field { kind, offset, width, count, name } in FIELDS {
        let structure = structure(kind);
        claims.push(format!("offsetof(struct {structure}, {name}) == {offset}"));
        let size = usize::from(width) * usize::from(count);
        claims.push(format!("sizeof(((struct {structure} *)0)->{name}) == {size}"));
    }
    let sizes = [
        ("head", size_of::<Head>()),
        ("header", size_of::<Header>()),
        ("vm", size_of::<VmCell>()),
        ("vcpu", size_of::<VcpuCell>()),
        ("counters", size_of::<Counters>()),
        ("schema", size_of::<Schema>()),
        ("policy", size_of::<Policy>()),
    ];
    claims.extend(sizes.map(|(name, size)| format!("sizeof(struct exitscope_{name}) == {size}")));
    let numbers: [(&str, u64); 22] = [
        ("CELL_SIZE", CELL_SIZE as u64),
        ("MAGIC", MAGIC),
        ("VERSION", VERSION.into()),
        ("BUCKETS", BUCKETS as u64),
        ("FIELDS_PER_CELL", FIELDS_PER_CELL as u64),
        ("FREE", kind::FREE.into()),
        ("HEADER", kind::HEADER.into()),
        ("VM", kind::VM.into()),
        ("VCPU", kind::VCPU.into()),
        ("COUNTERS", kind::COUNTERS.into()),
        ("OVERFLOW", kind::OVERFLOW.into()),
        ("BASELINE", kind::BASELINE.into()),
        ("SCHEMA", kind::SCHEMA.into()),
        ("LIVE", state::LIVE.into()),
        ("FINISHED", state::FINISHED.into()),
        ("RETIRED", state::RETIRED.into()),
        ("EXPOSE_OFF", Expose::Off as u64),
        ("EXPOSE_VM", Expose::Vm as u64),
        ("EXPOSE_HOST", Expose::Host as u64),
        ("EXPOSE_AS_MODULE", EXPOSE_AS_MODULE.into()),
        ("SET_POLICY", SET_POLICY.into()),
        ("RESET", RESET.into()),
    ];
    claims.extend(numbers.map(|(name, number)| format!("EXITSCOPE_{name} == {number}ULL")));
    claims
}

fn compiles(text: &str) -> bool {
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
    let mut compiler = Command::new("gcc")
        .args(["-std=gnu11", "-Wall", "-Werror", "-fsyntax-only", "-I", include, "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    compiler.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = compiler.wait_with_output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

#[test]
fn the_header_says_the_same_as_the_source() {
    let mut claims = claims();
    assert!(compiles(&program(&claims)));
    // The proof can fail.
    claims.push("sizeof(struct exitscope_counters) == 511".into());
    assert!(!compiles(&program(&claims)));
}
