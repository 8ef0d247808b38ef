#![no_main]

#[path = "../../crates/dm-thin-streams/tests/support/mod.rs"]
mod foreign;
#[path = "../../tests/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    support::stream::fuzz(bytes);
    foreign::fuzz(bytes);
});
