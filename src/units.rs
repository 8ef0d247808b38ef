//! Amounts, each in its own type, so that sectors are never taken for bytes.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// A sector, whatever the device's own sector size: the kernel's unit.
pub const SECTOR_SIZE: Bytes = Bytes(512);

macro_rules! amount {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        #[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(transparent))]
        pub struct $name(pub u64);

        impl Add for $name {
            type Output = Self;
            /// As the conversions, it stays at the largest amount there is.
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl Sub for $name {
            type Output = Self;
            /// As the sum, it stays in range: at the least there is zero.
            fn sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }
    };
}

amount! {
    /// An amount of bytes.
    Bytes
}
amount! {
    /// An amount of 512-byte sectors.
    Sectors
}
amount! {
    /// An amount of a pool's blocks: data blocks of the pool's block size, or metadata blocks of 4 KiB.
    Blocks
}

impl fmt::Display for Bytes {
    /// In the largest binary unit of which it is a whole number: `64 KiB`, `1000 bytes`. The alternate form (`{:#}`)
    /// rounds to a tenth of the unit that suits it: `1.5 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let (whole, largest) = (self.0.trailing_zeros() / 10, self.0.checked_ilog2().unwrap_or(0) / 10);
        let unit = if f.alternate() { largest.min(5) } else { whole.min(largest).min(5) };
        let tenths = (u128::from(self.0) * 10 + (1 << (unit * 10) >> 1)) >> (unit * 10);
        write!(f, "{}", tenths / 10)?;
        if tenths % 10 > 0 {
            write!(f, ".{}", tenths % 10)?;
        }
        write!(f, " {}", UNITS[unit as usize])
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors", self.0)
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks", self.0)
    }
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
        Sectors(self.0 / SECTOR_SIZE.0)
    }

    /// Whether it is a whole number of sectors.
    pub const fn is_whole_sectors(self) -> bool {
        self.0.is_multiple_of(SECTOR_SIZE.0)
    }
}

pub(crate) const NOT_A_SIZE: &str = "not a number with a unit of b, k, m, g, t or p, or too large";

/// A text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("size: {text}: {NOT_A_SIZE}")]
#[non_exhaustive]
pub struct ParseBytesError {
    /// The text.
    pub text: String,
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// A number of bytes, or of a binary unit: `20G`, `512m`, `1.5 GiB`, `64kB`, and as it is printed. A fraction is
    /// rounded down.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_bytes(text).map(Self).ok_or_else(|| ParseBytesError { text: text.to_owned() })
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "bytes" => 0,
        "" if unit != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = u128::from(whole.parse::<u64>().ok()?) << shift;
    let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 18)?;
    let fraction = (u128::from(fraction.parse::<u64>().ok()?) << shift) / 10u128.pow(digits);
    u64::try_from(whole + fraction).ok()
}

impl Sectors {
    /// The same in bytes.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(SECTOR_SIZE.0))
    }
}

impl Blocks {
    /// The same in sectors, with blocks of the given size.
    pub const fn sectors(self, block_size: Sectors) -> Sectors {
        Sectors(self.0.saturating_mul(block_size.0))
    }

    /// The same in bytes, with blocks of the given size.
    pub const fn bytes(self, block_size: Sectors) -> Bytes {
        Bytes(self.0.saturating_mul(block_size.bytes().0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sums_and_differences_saturate() {
        assert_eq!(Bytes(u64::MAX) + Bytes(1), Bytes(u64::MAX));
        assert_eq!(Bytes(1) - Bytes(2), Bytes(0));
        assert_eq!(Sectors(1) - Sectors(2), Sectors(0));
        assert_eq!(Blocks(3) - Blocks(2), Blocks(1));
    }

    #[test]
    fn sizes_as_docker_writes_them() {
        let gib = Bytes::gib(1).0;
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512b", 512),
            ("32kb", 32 << 10),
            ("32KiB", 32 << 10),
            ("512m", 512 << 20),
            ("20G", 20 * gib),
            ("1.5g", gib * 3 / 2),
            ("1.5 GB", gib * 3 / 2),
            ("2T", 2048 * gib),
            ("16383P", 16383 << 50),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for text in [
            "", "G", "-1", "1.g", ".5g", "1..5", "1.2.3g", "1e3", "20GG", "20Gib1", "10i", "10ib", "16384P",
            "1  g",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_written_for_people() {
        for (bytes, exact, rounded) in [
            (0, "0 bytes", "0 bytes"),
            (1000, "1000 bytes", "1000 bytes"),
            (1536, "1536 bytes", "1.5 KiB"),
            (64 << 10, "64 KiB", "64 KiB"),
            (6_684_672, "6528 KiB", "6.4 MiB"),
            ((10 << 30) - (64 << 10), "10485696 KiB", "10 GiB"),
            (1 << 60, "1024 PiB", "1024 PiB"),
        ] {
            assert_eq!((&*Bytes(bytes).to_string(), &*format!("{:#}", Bytes(bytes))), (exact, rounded));
        }
    }

    proptest! {
        #[test]
        fn a_written_size_is_read_back(number in 0u64..1 << 13, unit in 0usize..6) {
            let size = Bytes(number << (10 * unit));
            let suffix = ["", "k", "M", "g", "T", "p"][unit];
            prop_assert_eq!(format!("{number}{suffix}").parse::<Bytes>().unwrap(), size);
            prop_assert_eq!(size.0.to_string().parse::<Bytes>().unwrap(), size);
            prop_assert_eq!(size.to_string().parse::<Bytes>().unwrap(), size);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Bytes>();
        }
    }
}
