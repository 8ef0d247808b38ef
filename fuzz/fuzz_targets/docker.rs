#![no_main]

#[path = "../../crates/dm-thin-docker/tests/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| support::fuzz(bytes));
