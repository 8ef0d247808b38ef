//! Reloading a pool: larger, or with other features.

use super::guard_state::count_reload;
use super::reload::reload;
use super::{Discards, NoSpace, PoolFeatures, PoolMode, PoolStatus, PoolTable, ThinPool};
use crate::dm::{DmFlags, TargetSpec, TargetType};
use crate::thin::{Error, Result};
use crate::units::{Blocks, Sectors};

impl ThinPool {
    /// Takes over the data device's new size, while volumes are in use. The caller has made the device
    /// larger. Writes that wait for space go on.
    ///
    /// Grow early. If a pool that lets writes wait runs full in the very moment in which it is suspended for
    /// this, the kernel (seen on 6.12) waits for those writes, until `no_space_timeout` fails them. A pool
    /// that is full already is grown without delay.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a size below the one it has; EINVAL if the data device is smaller
    /// than that. [`Error::PoolMode`] if the kernel took the table but did not grow the pool, as it does
    /// silently while the metadata needs a check.
    pub fn grow_data(&self, size: Sectors) -> Result<()> {
        let grown = self.change(|table, _| Ok((*table, size)))?;
        self.demand_data(&grown, size)
    }

    /// Grows the data to `size`, unless it is larger, with another low water mark, and checks that it did.
    pub(super) fn extend_data(&self, size: Sectors, low_water_mark: Blocks) -> Result<()> {
        let extend =
            |now: &PoolTable, now_size| Ok((PoolTable { low_water_mark, ..*now }, size.max(now_size)));
        let table = self.change(extend)?;
        self.demand_data(&table, size)
    }

    fn demand_data(&self, table: &PoolTable, size: Sectors) -> Result<()> {
        let blocks = Blocks(size.0 / table.block_size.0);
        self.demand_growth(|total_data, _| total_data >= blocks)
    }

    /// Takes over the metadata device's new size, while volumes are in use.
    ///
    /// # Errors
    /// [`Error::PoolMode`] if the pool has not more than before: the device did not grow, is above
    /// [`METADATA_MAX`](super::METADATA_MAX), or the metadata needs a check.
    pub fn grow_metadata(&self) -> Result<()> {
        let before = match self.status()? {
            PoolStatus::Usage(usage) => usage.total_metadata,
            PoolStatus::Fail | PoolStatus::Error => return Err(self.did_not_grow(PoolMode::Fail)),
        };
        self.change(|table, size| Ok((*table, size)))?;
        self.demand_growth(|_, total_metadata| total_metadata > before)
    }

    /// Lets writes without space wait, or fail.
    pub fn set_no_space(&self, no_space: NoSpace) -> Result<()> {
        self.change(|table, size| {
            let features = PoolFeatures { no_space, ..table.features };
            Ok((PoolTable { features, ..*table }, size))
        })
        .map(drop)
    }

    /// Sets the low water mark: the kernel raises an event when fewer blocks than this are free.
    pub fn set_low_water_mark(&self, blocks: Blocks) -> Result<()> {
        self.change(|table, size| Ok((PoolTable { low_water_mark: blocks, ..*table }, size))).map(drop)
    }

    /// Reloads the pool with another table and size. Volumes in use are suspended for a moment.
    ///
    /// The low water mark and all features can change, except that discards cannot begin or cease to
    /// be ignored.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a table that the kernel would not take or a size below the one it
    /// has, [`Error::Unchangeable`] for another block size or other devices, or for discards. The pool
    /// then goes on as it was.
    pub fn reload(&self, table: &PoolTable, size: Sectors) -> Result<()> {
        self.change(|_, _| Ok((*table, size))).map(drop)
    }

    /// Reloads the pool with a table and size that are derived from the current ones. Changes of one pool are one at a
    /// time in this process, so that none is lost. The new table is returned.
    fn change(
        &self,
        to: impl FnOnce(&PoolTable, Sectors) -> Result<(PoolTable, Sectors)>,
    ) -> Result<PoolTable> {
        let held = self.identity.exclusive(&self.dm);
        let (now, now_size) = self.table()?;
        let (table, size) = to(&now, now_size)?;
        table.check_size(size)?;
        self.check_change(&now, &table)?;
        if size < now_size {
            let reason = "smaller than the pool is";
            return Err(Error::InvalidOption { option: "data size", value: size.to_string(), reason });
        }
        let target_type = TargetType::THIN_POOL;
        let line = TargetSpec { start: Sectors(0), length: size, target_type, parameters: &table };
        let reloaded = reload(&self.dm, &held, self.identity.id(&self.dm)?, &[line], DmFlags::empty());
        count_reload();
        reloaded.map_err(|error| self.identity.named(error))?;
        // The mode may have changed without an event.
        self.status().map(|_| table)
    }

    fn check_change(&self, is: &PoolTable, asked: &PoolTable) -> Result<()> {
        let ignores = |table: &PoolTable| table.features.discards == Discards::Ignore;
        let (what, is, asked) = if is.block_size != asked.block_size {
            ("block size", is.block_size.bytes().to_string(), asked.block_size.bytes().to_string())
        } else if is.metadata != asked.metadata {
            ("metadata device", is.metadata.to_string(), asked.metadata.to_string())
        } else if is.data != asked.data {
            ("data device", is.data.to_string(), asked.data.to_string())
        } else if ignores(is) != ignores(asked) {
            let text = |table: &PoolTable| format!("{:?}", table.features.discards);
            ("discards", text(is), text(asked))
        } else {
            return Ok(());
        };
        Err(Error::Unchangeable { device: self.name().to_string(), what, is, asked })
    }

    fn demand_growth(&self, grown: impl FnOnce(Blocks, Blocks) -> bool) -> Result<()> {
        match self.status()? {
            PoolStatus::Usage(usage) if grown(usage.total_data, usage.total_metadata) => Ok(()),
            status => Err(self.did_not_grow(status.mode())),
        }
    }

    fn did_not_grow(&self, mode: PoolMode) -> Error {
        let consequence = "it did not grow; is the device larger, and the metadata free of needs_check?";
        Error::PoolMode { pool: self.name().to_string(), mode, consequence }
    }
}
