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

/// `flakey`: a device that is reliable for some seconds, then misbehaves for some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flakey {
    /// The device below.
    pub device: DeviceNumber,
    /// Where it begins on that.
    pub start: Sectors,
    /// Seconds for which it behaves.
    pub up: u32,
    /// Seconds for which it does not.
    pub down: u32,
    /// What it does then; with none of these, it fails every read and write.
    pub features: FlakeyFeatures,
}

/// How a [`Flakey`] device misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlakeyFeatures {
    /// Reads fail (`error_reads`, on its own since Linux 6.5).
    pub error_reads: bool,
    /// Writes are lost.
    pub writes: Option<LostWrites>,
    /// A byte is changed.
    pub corrupt: Option<CorruptByte>,
    /// One of how many 10⁹ reads has a random byte changed (`random_read_corrupt`, since Linux 6.5).
    pub random_read_corrupt: u32,
    /// The same for writes.
    pub random_write_corrupt: u32,
}

/// What becomes of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostWrites {
    /// They are dropped, and reported as done (`drop_writes`).
    Drop,
    /// They fail (`error_writes`).
    Error,
}

/// `corrupt_bio_byte`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CorruptByte {
    /// Which byte of each read or write, counted from 1.
    pub nth: u32,
    /// Of writes, rather than of reads.
    pub writes: bool,
    /// What it becomes.
    pub value: u8,
    /// Only if all of these bits of `bi_opf` are set.
    pub flags: u32,
}

impl Flakey {
    /// Check what the kernel would answer with a bare EINVAL.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for intervals that are both 0, features that exclude each other, a
    /// byte number of 0, and a probability of more than 10⁹.
    pub fn check(&self) -> Result<()> {
        let FlakeyFeatures { error_reads, writes, corrupt, .. } = self.features;
        let random = self.features.random_read_corrupt.max(self.features.random_write_corrupt);
        let reason = match corrupt {
            _ if self.up.checked_add(self.down).is_none_or(|sum| sum == 0) => "bad intervals",
            Some(CorruptByte { nth: 0, .. }) => "bytes are counted from 1",
            Some(CorruptByte { writes: true, .. }) if writes.is_some() => "a lost write cannot be corrupted",
            Some(CorruptByte { writes: false, .. }) if error_reads => "a failed read cannot be corrupted",
            _ if random > 1_000_000_000 => "the probability is above 1000000000",
            _ => return Ok(()),
        };
        Err(Error::InvalidOption { option: "flakey", value: self.to_string(), reason })
    }
}

target!(Flakey, FLAKEY, "flakey table", parse_flakey);

impl fmt::Display for Flakey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, start, up, down, features } = self;
        let FlakeyFeatures { error_reads, writes, corrupt, random_read_corrupt, random_write_corrupt } =
            *features;
        let words = u32::from(error_reads)
            + u32::from(writes.is_some())
            + 5 * u32::from(corrupt.is_some())
            + 2 * u32::from(random_read_corrupt > 0)
            + 2 * u32::from(random_write_corrupt > 0);
        write!(f, "{device} {} {up} {down} {words}", start.0)?;
        if error_reads {
            f.write_str(" error_reads")?;
        }
        match writes {
            None => {}
            Some(LostWrites::Drop) => f.write_str(" drop_writes")?,
            Some(LostWrites::Error) => f.write_str(" error_writes")?,
        }
        if let Some(CorruptByte { nth, writes, value, flags }) = corrupt {
            write!(f, " corrupt_bio_byte {nth} {} {value} {flags}", if writes { 'w' } else { 'r' })?;
        }
        for (word, value) in
            [("random_read_corrupt", random_read_corrupt), ("random_write_corrupt", random_write_corrupt)]
        {
            if value > 0 {
                write!(f, " {word} {value}")?;
            }
        }
        Ok(())
    }
}

fn parse_flakey<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Flakey> {
    let (device, start) = (next(words)?, Sectors(next(words)?));
    let (up, down) = (next(words)?, next(words)?);
    let count = words.next().map_or(Some(0), |count| count.parse::<usize>().ok())?;
    let mut features = FlakeyFeatures::default();
    let words: Vec<_> = words.take(count).collect();
    (words.len() == count).then_some(())?;
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word {
            "error_reads" => features.error_reads = true,
            "drop_writes" => features.writes = Some(LostWrites::Drop),
            "error_writes" => features.writes = Some(LostWrites::Error),
            "corrupt_bio_byte" => {
                let nth = next(&mut words)?;
                let writes = match words.next()? {
                    "r" => false,
                    "w" => true,
                    _ => return None,
                };
                let (value, flags) = (next(&mut words)?, next(&mut words)?);
                features.corrupt = Some(CorruptByte { nth, writes, value, flags });
            }
            "random_read_corrupt" => features.random_read_corrupt = next(&mut words)?,
            "random_write_corrupt" => features.random_write_corrupt = next(&mut words)?,
            _ => return None,
        }
    }
    Some(Flakey { device, start, up, down, features })
}

fn next<'a, T: FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<T> {
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests;
