//! What a kernel says of its structures: see the function of this name in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| exitscope_fuzz::btf(bytes));
