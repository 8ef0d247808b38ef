//! Amounts, each in its own type, so that sectors are never taken for bytes.

use std::fmt;
use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

/// Bytes in a sector, whatever the device's own sector size: the kernel's unit.
pub const SECTOR_SIZE: u64 = 512;

macro_rules! amount {
    ($(#[$doc:meta])* $name:ident, $unit:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{} ", $unit), self.0)
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }

        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }
    };
}

amount! {
    /// An amount of bytes.
    Bytes, "bytes"
}
amount! {
    /// An amount of 512-byte sectors.
    Sectors, "sectors"
}
amount! {
    /// An amount of a pool's blocks: data blocks of the pool's block size, or metadata blocks of 4 KiB.
    Blocks, "blocks"
}

impl Bytes {
    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// Whole sectors in it; a rest is cut off.
    pub const fn sectors(self) -> Sectors {
        Sectors(self.0 / SECTOR_SIZE)
    }

    /// Whether it is a whole number of sectors.
    pub const fn is_whole_sectors(self) -> bool {
        self.0.is_multiple_of(SECTOR_SIZE)
    }
}

impl Sectors {
    /// The same in bytes.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(SECTOR_SIZE))
    }
}

impl Blocks {
    /// The same in bytes, with blocks of the given size.
    pub const fn bytes(self, block_size: Sectors) -> Bytes {
        Bytes(self.0.saturating_mul(block_size.bytes().0))
    }
}
