//! The parameters of simple targets, both ways. For any other target, a [`TargetSpec`] takes its
//! parameters as text.
//!
//! ```
//! use dm_thin::dm::targets::{Linear, Target, Zero};
//! use dm_thin::kernel::DeviceNumber;
//! use dm_thin::units::Sectors;
//!
//! let linear = Linear { device: DeviceNumber { major: 7, minor: 0 }, start: Sectors(2048) };
//! let table = [linear.over(Sectors(0), Sectors(8)), Zero.over(Sectors(8), Sectors(8))];
//! assert_eq!(table[0].to_string(), "0 8 linear 7:0 2048");
//! ```

use std::fmt;
use std::str::FromStr;

use super::{TargetSpec, TargetType};
use crate::dm::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::units::Sectors;

/// The parameters of a target, which its `Display` writes as the kernel reads them.
pub trait Target: fmt::Display + Sync + Sized {
    /// The target's type.
    const TARGET_TYPE: TargetType;

    /// The line that puts this target over `length` sectors from `start`.
    fn over(&self, start: Sectors, length: Sectors) -> TargetSpec<'_> {
        TargetSpec { start, length, target_type: Self::TARGET_TYPE, parameters: self }
    }
}

macro_rules! target {
    ($name:ident, $target_type:ident, $what:literal, $parse:ident) => {
        impl Target for $name {
            const TARGET_TYPE: TargetType = TargetType::$target_type;
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                let mut words = text.split_ascii_whitespace();
                let parsed = $parse(&mut words).filter(|_| words.next().is_none());
                parsed.ok_or_else(|| Error::Malformed { what: $what, raw: text.to_owned() })
            }
        }
    };
}

/// `linear`: a piece of another device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Linear {
    /// The device below.
    pub device: DeviceNumber,
    /// Where the piece begins on it.
    pub start: Sectors,
}

target!(Linear, LINEAR, "linear table", parse_linear);

impl fmt::Display for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.device, self.start.0)
    }
}

fn parse_linear<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Linear> {
    Some(Linear { device: next(words)?, start: Sectors(next(words)?) })
}

/// `zero`: reads as zeroes, and takes writes without keeping them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Zero;

target!(Zero, ZERO, "zero table", parse_zero);

impl fmt::Display for Zero {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

fn parse_zero<'a>(_: &mut impl Iterator<Item = &'a str>) -> Option<Zero> {
    Some(Zero)
}

/// `error`: fails every read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[doc(alias = "dm-error")]
pub struct ErrorTarget;

target!(ErrorTarget, ERROR, "error table", parse_error);

impl fmt::Display for ErrorTarget {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

fn parse_error<'a>(_: &mut impl Iterator<Item = &'a str>) -> Option<ErrorTarget> {
    Some(ErrorTarget)
}

fn next<'a, T: FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<T> {
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests;
