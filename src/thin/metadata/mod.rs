//! The metadata of a thin pool, read without the kernel: which blocks each thin device maps, which of them are
//! shared, and what changed between two of them.

pub mod format;
mod source;

pub use source::{BlockSource, DeviceBlocks};
