//! How fast dumps of capability registers are decoded: 1,000 files, each of 16 CPUs, in under half a second.

use std::fmt::Write;
use std::hint::black_box;
use std::time::Instant;

use exitscope_caps::decode::decode;
use exitscope_caps::dump::parse;

const FILES: usize = 1000;
const CPUS: usize = 16;

/// The capabilities of a laptop.
const LAPTOP: [(u32, u64); 18] = [
    (0x03A, 0x0000_0000_0000_0005),
    (0x480, 0x03DA_0500_0000_0013),
    (0x481, 0x0000_00FF_0000_0016),
    (0x482, 0xFFFB_FFFE_0401_E172),
    (0x483, 0xF77F_FFFF_0003_6DFF),
    (0x484, 0x0076_FFFF_0000_11FF),
    (0x485, 0x0000_0000_7004_C1E7),
    (0x486, 0x0000_0000_8000_0021),
    (0x487, 0x0000_0000_FFFF_FFFF),
    (0x488, 0x0000_0000_0000_2000),
    (0x489, 0x0000_0000_01FF_6FFF),
    (0x48A, 0x0000_0000_0000_002E),
    (0x48B, 0x0F5D_7FFF_0000_0000),
    (0x48C, 0x0001_0F01_06F3_4141),
    (0x48D, 0x0000_00FF_0000_0016),
    (0x48E, 0xFFFB_FFFE_0400_6172),
    (0x48F, 0xF77F_FFFF_0003_6DFB),
    (0x490, 0x0076_FFFF_0000_11FB),
];

/// A dump in the form in which people publish them: most registers in it tell nothing of capabilities.
fn dump() -> String {
    let others = (0x600..0x660).map(|number| (number, u64::from(number)));
    let registers: Vec<(u32, u64)> = LAPTOP.into_iter().chain(others).collect();
    let mut text = String::new();
    for cpu in 0..CPUS {
        let _ = writeln!(text, "------[ MSR Registers / Logical CPU #{cpu} ]------");
        for (number, value) in &registers {
            let [a, b, c, d] = [48, 32, 16, 0].map(|shift| value >> shift & 0xFFFF);
            let _ = writeln!(text, "MSR {number:08X}: {a:04X}-{b:04X}-{c:04X}-{d:04X}");
        }
    }
    text
}

fn main() {
    let text = dump();
    let start = Instant::now();
    let mut parsing = std::time::Duration::ZERO;
    for _ in 0..FILES {
        let begin = Instant::now();
        let dump = parse(black_box(&text).as_bytes());
        parsing += begin.elapsed();
        assert!(dump.errors.is_empty() && dump.cpus.len() == CPUS, "{:?}", dump.errors);
        black_box(decode(&dump.cpus));
    }
    let (took, megabytes) = (start.elapsed().as_millis(), FILES * text.len() / 1_000_000);
    let parsing = parsing.as_millis();
    println!("{FILES} dumps of {CPUS} CPUs, {megabytes} MB: {took} ms, of which {parsing} ms to read them");
}
