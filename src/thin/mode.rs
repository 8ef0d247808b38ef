//! The mode of a pool.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The mode that a pool is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PoolMode {
    /// Data and metadata can be changed (`rw`).
    ReadWrite,
    /// No data block is left; the metadata still works (`out_of_data_space`).
    OutOfDataSpace,
    /// The metadata cannot be changed (`ro`).
    ReadOnly,
    /// No I/O is possible (`Fail`).
    Fail,
}

impl PoolMode {
    /// Whether the metadata can be changed, and a commit reaches the disk.
    pub fn is_sound(self) -> bool {
        matches!(self, Self::ReadWrite | Self::OutOfDataSpace)
    }
}

impl fmt::Display for PoolMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadWrite => "rw",
            Self::OutOfDataSpace => "out_of_data_space",
            Self::ReadOnly => "ro",
            Self::Fail => "Fail",
        })
    }
}
