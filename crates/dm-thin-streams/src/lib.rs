//! Foreign formats for what [`dm_thin::tree::stream`] carries: a volume, or the difference between two.
//!
//! | format | reads | writes | checks |
//! |---|---|---|---|
//! | dm-thin's own | [`StreamReader`] | [`StreamWriter`] | checksum per record, digest |
//! | LINBIT thin-send-recv 1.1 | [`LinbitReader`] | [`LinbitWriter`] | counters; digest if dm-thin wrote it |
//! | `rbd export-diff` | [`RbdReader`] (v1, v2) | [`RbdWriter`] (v1) | none |
//! | JSON lines | [`JsonReader`] | [`JsonWriter`] | counter |
//!
//! Readers are [`DiffSource`]s and writers are [`DiffSink`]s, so that [`copy`] converts any format to any other. JSON
//! lines have ranges without data: [`JsonReader`] is an iterator of them.
//!
//! All readers treat their input as untrusted: ranges ascend within the volume, lengths are bounded before memory is
//! allocated, and data is returned in pieces of at most 1 MiB.

mod diff;
mod error;
mod input;
mod json;
mod linbit;
mod own;
mod rbd;
#[cfg(test)]
mod tests;

pub use diff::{DiffEvent, DiffHeader, DiffSink, DiffSource, copy, copy_as};
pub use error::{Error, Result};
pub use json::{JsonReader, JsonWriter};
pub use linbit::{LinbitReader, LinbitWriter};
pub use own::{StreamReader, StreamWriter};
pub use rbd::{RbdReader, RbdWriter};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
