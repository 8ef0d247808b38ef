//! Table lines of `thin-pool` and `thin`, both ways.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, ThinId};
use crate::kernel::{DeviceNumber, Kernel};
use crate::thin::{Error, Result};
use crate::units::{Blocks, Sectors};

/// What a pool does with discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Discards {
    /// Unmap the blocks, and discard them on the data device (`discard_passdown`).
    #[default]
    Passdown,
    /// Unmap the blocks only (`no_discard_passdown`).
    NoPassdown,
    /// Refuse discards (`ignore_discard`).
    Ignore,
}

/// What a pool does with writes that need a block when none is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NoSpace {
    /// Let them wait for the pool to grow, at most `no_space_timeout` (a parameter of the module
    /// dm_thin_pool, 60 seconds by default), then fail them.
    #[default]
    Queue,
    /// Fail them at once (`error_if_no_space`).
    Error,
}

/// The optional features of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct PoolFeatures {
    /// Leave new blocks as they are: readable with whatever their last owner wrote
    /// (`skip_block_zeroing`).
    pub skip_block_zeroing: bool,
    /// Discards.
    pub discards: Discards,
    /// Writes without space.
    pub no_space: NoSpace,
    /// The metadata is not changed (`read_only`).
    pub read_only: bool,
}

impl PoolFeatures {
    fn words(&self) -> impl Iterator<Item = &'static str> + use<> {
        let discards = match self.discards {
            Discards::Passdown => None,
            Discards::NoPassdown => Some("no_discard_passdown"),
            Discards::Ignore => Some("ignore_discard"),
        };
        [
            self.skip_block_zeroing.then_some("skip_block_zeroing"),
            discards,
            self.read_only.then_some("read_only"),
            (self.no_space == NoSpace::Error).then_some("error_if_no_space"),
        ]
        .into_iter()
        .flatten()
    }

    fn set(&mut self, word: &str) -> bool {
        match word {
            "skip_block_zeroing" => self.skip_block_zeroing = true,
            "ignore_discard" => self.discards = Discards::Ignore,
            "no_discard_passdown" => self.discards = Discards::NoPassdown,
            "read_only" => self.read_only = true,
            "error_if_no_space" => self.no_space = NoSpace::Error,
            _ => return false,
        }
        true
    }
}

/// The parameters of a `thin-pool` target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolTable {
    /// The metadata device.
    pub metadata: DeviceNumber,
    /// The data device.
    pub data: DeviceNumber,
    /// Size of a data block. It can never change for a given metadata device.
    pub block_size: Sectors,
    /// An event is raised when fewer blocks than this are free.
    pub low_water_mark: Blocks,
    /// The features.
    pub features: PoolFeatures,
}

impl PoolTable {
    /// A table over the devices behind two paths, with the default features and no low water mark.
    ///
    /// # Errors
    /// [`Error::Open`] with ENOENT or ENOTBLK if a path is no block device; as [`check`](Self::check),
    /// however the paths are spelled.
    pub fn on(kernel: &dyn Kernel, metadata: &Path, data: &Path, block_size: Sectors) -> Result<Self> {
        let number =
            |path: &Path| kernel.block_device(path).map_err(|errno| Error::Open { path: path.into(), errno });
        let (metadata, data) = (number(metadata)?, number(data)?);
        let (low_water_mark, features) = (Blocks(0), PoolFeatures::default());
        let table = Self { metadata, data, block_size, low_water_mark, features };
        table.check().map(|()| table)
    }

    /// Checks what the kernel would refuse with a bare EINVAL, or not check.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a block size out of range, and for data and metadata on the same
    /// device, which the kernel takes if it is spelled differently.
    pub fn check(&self) -> Result<()> {
        check_block_size(self.block_size)?;
        if self.metadata == self.data {
            return Err(Error::InvalidOption {
                option: "data device",
                value: self.data.to_string(),
                reason: "is the metadata device too",
            });
        }
        Ok(())
    }
}

impl PoolTable {
    /// [`check`](Self::check), and that a pool of `size` has a block: the kernel takes one without.
    pub(super) fn check_size(&self, size: Sectors) -> Result<()> {
        self.check()?;
        if size >= self.block_size {
            return Ok(());
        }
        let (option, value) = ("data size", size.bytes().to_string());
        Err(Error::InvalidOption { option, value, reason: "less than a block of the pool" })
    }
}

/// Checks that the kernel takes `size` as a pool's block size.
pub(crate) fn check_block_size(size: Sectors) -> Result<()> {
    let good = size >= BLOCK_SIZE_MIN && size <= BLOCK_SIZE_MAX && size.0.is_multiple_of(BLOCK_SIZE_MIN.0);
    if good {
        return Ok(());
    }
    let reason = "not a multiple of 64 KiB from 64 KiB to 1 GiB";
    Err(Error::InvalidOption { option: "block size", value: size.bytes().to_string(), reason })
}

impl fmt::Display for PoolTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { metadata, data, block_size, low_water_mark, features } = self;
        write!(f, "{metadata} {data} {} {}", block_size.0, low_water_mark.0)?;
        write!(f, " {}", features.words().count())?;
        features.words().try_for_each(|word| write!(f, " {word}"))
    }
}

impl FromStr for PoolTable {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        parse_pool(text).ok_or_else(|| malformed("thin-pool table", text))
    }
}

fn parse_pool(text: &str) -> Option<PoolTable> {
    let mut words = text.split_ascii_whitespace();
    let metadata = device_number(words.next()?)?;
    let data = device_number(words.next()?)?;
    let block_size = Sectors(words.next()?.parse().ok()?);
    let low_water_mark = Blocks(words.next()?.parse().ok()?);
    let mut features = PoolFeatures::default();
    let count: usize = words.next().map_or(Some(0), |count| count.parse().ok())?;
    for _ in 0..count {
        features.set(words.next()?).then_some(())?;
    }
    words.next().is_none().then_some(PoolTable { metadata, data, block_size, low_water_mark, features })
}

/// The parameters of a `thin` target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThinTable {
    /// The pool's device.
    pub pool: DeviceNumber,
    /// Which of its thin devices.
    pub id: ThinId,
    /// A read-only device that shows through where nothing is mapped.
    pub external_origin: Option<DeviceNumber>,
}

impl ThinTable {
    /// Checks what the kernel would answer with a bare EINVAL.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the external origin is the pool.
    pub fn check(&self) -> Result<()> {
        match self.external_origin {
            Some(origin) if origin == self.pool => Err(Error::InvalidOption {
                option: "external origin",
                value: origin.to_string(),
                reason: "is the pool itself",
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ThinTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pool, self.id)?;
        self.external_origin.map_or(Ok(()), |origin| write!(f, " {origin}"))
    }
}

impl FromStr for ThinTable {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        parse_thin(text).ok_or_else(|| malformed("thin table", text))
    }
}

fn parse_thin(text: &str) -> Option<ThinTable> {
    let mut words = text.split_ascii_whitespace();
    let pool = device_number(words.next()?)?;
    let id = words.next()?.parse().ok()?;
    let external_origin = words.next().map(|word| device_number(word).ok_or(())).transpose().ok()?;
    words.next().is_none().then_some(ThinTable { pool, id, external_origin })
}

fn device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

pub(super) fn malformed(what: &'static str, text: &str) -> Error {
    Error::Malformed { what, raw: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = DeviceNumber> {
        (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| DeviceNumber { major, minor })
    }

    fn features() -> impl Strategy<Value = PoolFeatures> {
        let discards =
            prop_oneof![Just(Discards::Passdown), Just(Discards::NoPassdown), Just(Discards::Ignore)];
        let no_space = prop_oneof![Just(NoSpace::Queue), Just(NoSpace::Error)];
        (any::<bool>(), discards, no_space, any::<bool>()).prop_map(
            |(skip_block_zeroing, discards, no_space, read_only)| PoolFeatures {
                skip_block_zeroing,
                discards,
                no_space,
                read_only,
            },
        )
    }

    proptest! {
        #[test]
        fn pool_tables_round_trip(
            metadata in number(), data in number(), block in any::<u64>(), low in any::<u64>(),
            features in features(),
        ) {
            let (block_size, low_water_mark) = (Sectors(block), Blocks(low));
            let table = PoolTable { metadata, data, block_size, low_water_mark, features };
            prop_assert_eq!(table.to_string().parse::<PoolTable>().unwrap(), table);
        }

        #[test]
        fn thin_tables_round_trip(
            pool in number(), id in 0u32..1 << 24, external_origin in proptest::option::of(number()),
        ) {
            let table = ThinTable { pool, id: ThinId::new(id).unwrap(), external_origin };
            prop_assert_eq!(table.to_string().parse::<ThinTable>().unwrap(), table);
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<PoolTable>();
            let _ = text.parse::<ThinTable>();
        }
    }

    #[test]
    fn a_table_is_the_kernels() {
        let text = "7:1 7:0 128 32768 2 skip_block_zeroing error_if_no_space";
        assert_eq!(text.parse::<PoolTable>().unwrap().to_string(), text);
        // Seen on a 6.1 kernel, which leaves out nothing and ends with a blank.
        assert!("7:1 7:0 128 32768 0 ".parse::<PoolTable>().is_ok());
        assert!("7:1 7:0 128 32768 1 frobnicate".parse::<PoolTable>().is_err());
        assert!("253:0 16777216".parse::<ThinTable>().is_err());
    }

    #[test]
    fn what_the_kernel_would_refuse_is_named() {
        let table: ThinTable = "253:0 1 253:0".parse().unwrap();
        assert_eq!(table.check().unwrap_err().to_string(), "external origin: 253:0: is the pool itself");
        let table: PoolTable = "7:1 7:1 128 0 0".parse().unwrap();
        assert_eq!(table.check().unwrap_err().to_string(), "data device: 7:1: is the metadata device too");
        for bad in [0, 64, 129, 2_097_280] {
            assert!(check_block_size(Sectors(bad)).is_err());
        }
        for good in [128, 256, 2_097_152] {
            assert!(check_block_size(Sectors(good)).is_ok());
        }
    }
}
