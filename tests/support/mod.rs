//! What the property tests, the fuzz targets (`fuzz/`) and the replay of their corpus share: each
//! checks one input, and panics if something is wrong.
//!
//! A new fuzz target is a file here with `pub fn fuzz(bytes: &[u8])`, a line in [`TARGETS`], the six lines
//! of `fuzz/fuzz_targets/*.rs`, an entry in `fuzz/Cargo.toml`, and some inputs in `fuzz/corpus/<target>/`.

#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod decode;
pub mod encode;
#[cfg(feature = "model")]
pub mod metadata;
pub mod names;
pub mod reader;
#[cfg(feature = "model")]
pub mod sequences;
#[cfg(feature = "model")]
pub mod state;
pub mod stream;
pub mod tables;

/// Checks one input.
pub type Check = fn(&[u8]);

/// Every fuzz target by name.
pub const TARGETS: &[(&str, Check)] = &[
    ("encode", encode::fuzz),
    ("decode", decode::fuzz),
    ("names", names::fuzz),
    ("tables", tables::fuzz),
    ("stream", stream::fuzz),
    #[cfg(feature = "model")]
    ("metadata", metadata::fuzz),
    #[cfg(feature = "model")]
    ("state", state::fuzz),
    #[cfg(feature = "model")]
    ("sequences", sequences::fuzz),
];
