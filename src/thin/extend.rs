//! A policy that extends a pool by itself, as LVM's autoextend does.

use serde::Serialize;

use super::space::percent_of;
use super::{Backing, METADATA_BLOCK_SIZE, METADATA_MAX, PoolStatus, ThinPool};
use crate::thin::{Error, Result};
use crate::units::{Blocks, Bytes, Sectors};

/// When, by how much and how far a device is extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExtendRule {
    /// When this much of it is used, in percent: 1 to 99.
    pub threshold: u8,
    /// By this much of its size, in percent, as often as it takes to be below the threshold: 1 or more.
    pub step: u8,
    /// Never beyond this size.
    pub maximum: Bytes,
}

/// Whether a device was extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Extension {
    /// It has no rule, or is below its threshold.
    #[default]
    NotNeeded,
    /// It was extended to this size.
    To(Sectors),
    /// It is above its threshold, and cannot grow: it is as large as its rule allows, or nothing is left
    /// below it.
    Exhausted,
}

/// Whether each of a pool's devices was extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Extended {
    /// The data device.
    pub data: Extension,
    /// The metadata device.
    pub metadata: Extension,
}

/// Extends a pool's devices as they fill. Call [`apply`](Self::apply) when a pool is opened, and on
/// every event of its [watcher](ThinPool::watch):
///
/// ```no_run
/// # use dm_thin::thin::{AutoExtend, ThinPool};
/// # fn run(pool: &ThinPool, policy: &AutoExtend) -> dm_thin::thin::Result<()> {
/// policy.apply(pool)?;
/// for event in pool.watch()? {
///     println!("{}: {}", pool.name(), event?);
///     policy.apply(pool)?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// The data device's threshold becomes the pool's low water mark, so the kernel raises the event. For the
/// metadata the kernel has a mark of its own, when 4 MiB or a quarter is left: a threshold below that is
/// seen only when something else happens.
#[derive(Debug, Default)]
pub struct AutoExtend {
    data: Option<(ExtendRule, Box<dyn Backing>)>,
    metadata: Option<(ExtendRule, Box<dyn Backing>)>,
}

impl AutoExtend {
    /// Nothing is extended.
    pub fn new() -> Self {
        Self::default()
    }

    /// The data device is extended.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for percentages out of range.
    pub fn data(mut self, rule: ExtendRule, backing: impl Backing + 'static) -> Result<Self> {
        rule.check()?;
        self.data = Some((rule, Box::new(backing)));
        Ok(self)
    }

    /// The metadata device is extended, never beyond [`METADATA_MAX`].
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for percentages out of range.
    pub fn metadata(mut self, rule: ExtendRule, backing: impl Backing + 'static) -> Result<Self> {
        rule.check()?;
        let maximum = rule.maximum.min(METADATA_MAX.bytes());
        self.metadata = Some((ExtendRule { maximum, ..rule }, Box::new(backing)));
        Ok(self)
    }

    /// Reads the status, and extends what is above its threshold: first the metadata, then the data.
    ///
    /// # Errors
    /// [`Error::PoolMode`] if the pool has failed, or does not take the new size;
    /// [`Error::Unchangeable`] if the backing is not the pool's device; whatever keeps the device from
    /// being extended.
    pub fn apply(&self, pool: &ThinPool) -> Result<Extended> {
        let (table, data_size) = pool.table()?;
        table.check()?;
        let usage = match pool.status()? {
            PoolStatus::Usage(usage) => usage,
            status => {
                let consequence = "it cannot be extended";
                return Err(Error::PoolMode {
                    pool: pool.name().to_string(),
                    mode: status.mode(),
                    consequence,
                });
            }
        };
        let block = METADATA_BLOCK_SIZE.sectors();
        let metadata = match &self.metadata {
            None => Extension::NotNeeded,
            Some((rule, backing)) => {
                is_under(pool, "metadata device", &**backing, table.metadata)?;
                let used = usage.used_metadata.sectors(block);
                let size = usage.total_metadata.sectors(block);
                let extension = rule.decide(&**backing, used, size, block)?;
                if let Extension::To(size) = extension {
                    backing.extend(size)?;
                    pool.grow_metadata()?;
                }
                extension
            }
        };
        let data = match &self.data {
            None => Extension::NotNeeded,
            Some((rule, backing)) => {
                is_under(pool, "data device", &**backing, table.data)?;
                let used = usage.used_data.sectors(table.block_size);
                let extension = rule.decide(&**backing, used, data_size, table.block_size)?;
                let size = if let Extension::To(size) = extension { size } else { data_size };
                if size > data_size {
                    backing.extend(size)?;
                }
                let low_water_mark = rule.low_water_mark(Blocks(size.0 / table.block_size.0));
                // The mark's event comes once for each reload.
                if size > data_size || low_water_mark != pool.table()?.0.low_water_mark {
                    pool.extend_data(size, low_water_mark)?;
                }
                extension
            }
        };
        Ok(Extended { data, metadata })
    }
}

impl ExtendRule {
    pub(crate) fn check(&self) -> Result<()> {
        let invalid =
            |option, value: u8, reason| Error::InvalidOption { option, value: value.to_string(), reason };
        match *self {
            Self { threshold: 0 | 100.., .. } => {
                Err(invalid("extension threshold", self.threshold, "not from 1 to 99 percent"))
            }
            Self { step: 0, .. } => Err(invalid("extension step", 0, "not 1 percent or more")),
            _ => Ok(()),
        }
    }

    /// The free blocks with which a pool of `total` is at the threshold: one block more, and there is the event.
    fn low_water_mark(&self, total: Blocks) -> Blocks {
        Blocks(percent_of(total.0, 100 - self.threshold))
    }

    fn decide(
        &self,
        backing: &dyn Backing,
        used: Sectors,
        size: Sectors,
        block: Sectors,
    ) -> Result<Extension> {
        let wanted = self.wanted(used, size, block);
        if wanted == size {
            return Ok(Extension::NotNeeded);
        }
        // The file must not promise more than its file system has.
        let below = backing.below()?.map(|below| used + (below.free + below.unused(used.bytes())).sectors());
        let below = below.unwrap_or(Sectors(u64::MAX));
        let limit = backing.limit()?.min(below).min(self.maximum.sectors()).0;
        let possible = wanted.0.min(limit - limit % block.0);
        Ok(if possible > size.0 { Extension::To(Sectors(possible)) } else { Extension::Exhausted })
    }

    /// The size, in whole blocks, with which `used` is below the threshold.
    fn wanted(&self, used: Sectors, size: Sectors, block: Sectors) -> Sectors {
        let mut wanted = size;
        while wanted < self.maximum.sectors() && used.0 >= percent_of(wanted.0, self.threshold) {
            let step = percent_of(wanted.0, self.step).max(1).next_multiple_of(block.0);
            wanted = Sectors(wanted.0.saturating_add(step));
        }
        // At the maximum already, and above the threshold: more is wanted, and will not be had.
        if wanted == size && used.0 >= percent_of(size.0, self.threshold) {
            wanted = size + block;
        }
        wanted
    }
}

fn is_under(
    pool: &ThinPool,
    what: &'static str,
    backing: &dyn Backing,
    device: crate::kernel::DeviceNumber,
) -> Result<()> {
    if backing.number() == device {
        return Ok(());
    }
    let (is, asked) = (device.to_string(), backing.number().to_string());
    Err(Error::Unchangeable { device: pool.name().to_string(), what, is, asked })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::DeviceNumber;
    use crate::thin::BackingSpace;

    const BLOCK: Sectors = Sectors(128);
    const RULE: ExtendRule = ExtendRule { threshold: 80, step: 20, maximum: Bytes::mib(64) };

    #[test]
    fn it_grows_in_steps_until_below_the_threshold() {
        let wanted = |used: u64, size: u64| RULE.wanted(Sectors(used), Sectors(size), BLOCK).0;
        assert_eq!(wanted(79 * 128, 12_800), 12_800);
        assert_eq!(wanted(80 * 128, 12_800), 15_360);
        // Two steps, rounded up to blocks.
        assert_eq!(wanted(100 * 128, 12_800), 18_432);
        // Past the maximum, more is wanted all the same.
        assert_eq!(wanted(131_072, 131_072), 131_200);
        assert_eq!(RULE.low_water_mark(Blocks(1000)), Blocks(200));
    }

    #[derive(Debug)]
    struct Fake {
        limit: u64,
        below: Option<BackingSpace>,
    }

    impl Backing for Fake {
        fn number(&self) -> DeviceNumber {
            DeviceNumber { major: 7, minor: 0 }
        }
        fn size(&self) -> Result<Sectors> {
            Ok(Sectors(12_800))
        }
        fn limit(&self) -> Result<Sectors> {
            Ok(Sectors(self.limit))
        }
        fn below(&self) -> Result<Option<BackingSpace>> {
            Ok(self.below)
        }
        fn extend(&self, _: Sectors) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_more_is_promised_than_there_is() {
        let decide = |limit: u64, below: Option<u64>| {
            let below = below.map(|free| BackingSpace { free: Sectors(free).bytes(), allocated: Bytes(0) });
            RULE.decide(&Fake { limit, below }, Sectors(100 * 128), Sectors(12_800), BLOCK).unwrap()
        };
        let to = |sectors| Extension::To(Sectors(sectors));
        assert_eq!(decide(u64::MAX, None), to(18_432));
        // Cut to whole blocks.
        assert_eq!(decide(13_000, None), to(12_928));
        assert_eq!(decide(12_900, None), Extension::Exhausted);
        // 12,800 sectors are used, so that much and what is free below can be had.
        assert_eq!(decide(u64::MAX, Some(300)), to(13_056));
        assert_eq!(decide(u64::MAX, Some(100)), Extension::Exhausted);
        assert_eq!(decide(u64::MAX, Some(u64::MAX)), to(18_432));
        let small = Fake { limit: u64::MAX, below: None };
        let decision = RULE.decide(&small, Sectors(0), Sectors(12_800), BLOCK).unwrap();
        assert_eq!(decision, Extension::NotNeeded);
    }

    #[test]
    fn percentages_make_sense() {
        for (threshold, step) in [(0, 20), (100, 20), (80, 0)] {
            assert!(ExtendRule { threshold, step, ..RULE }.check().is_err());
        }
        assert!(ExtendRule { step: 200, ..RULE }.check().is_ok());
        assert_eq!(percent_of(u64::MAX, 255), u64::MAX);
    }
}
