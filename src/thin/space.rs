//! The kinds of space that a pool can run out of.

use std::fmt;

use serde::Serialize;

/// The kinds of space that a pool can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Space {
    /// Data blocks.
    Data,
    /// Metadata blocks.
    Metadata,
    /// What the device below the data can really get.
    Backing,
}

impl Space {
    /// The option that says how much must stay free.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Data | Self::Backing => "min_free_data",
            Self::Metadata => "min_free_metadata",
        }
    }

    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Data | Self::Metadata => "remove snapshots or grow the pool",
            Self::Backing => "free space there, or remove snapshots",
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data space",
            Self::Metadata => "metadata space",
            Self::Backing => "space below the data device",
        })
    }
}

pub(super) fn percent_of(amount: u64, percent: u8) -> u64 {
    #[allow(clippy::cast_possible_truncation)] // at most 2.55 times a u64, and then capped
    let part = (u128::from(amount) * u128::from(percent) / 100).min(u128::from(u64::MAX)) as u64;
    part
}
