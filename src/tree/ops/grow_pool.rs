//! A larger pool, while it is in use.

use std::sync::Arc;

use crate::loopdev::LoopControl;
use crate::thin::{AutoExtend, Backing, ExtendRule, Extended, Extension, LoopFile, METADATA_MAX};
use crate::thin::{LabelledDevice, SubDevice, SubDeviceBacking};
use crate::tree::pool::source;
use crate::tree::state::size::check_size;
use crate::tree::{Error, Result};
use crate::tree::{PoolSource, SnapshotTree};
use crate::units::Bytes;

impl SnapshotTree {
    /// Makes the data of a pool on loop files or on a labelled device `size` large, and the pool with it. Nothing is
    /// interrupted. Opening the tree with a larger [`Options::data_size`](crate::tree::Options::data_size) does the same.
    ///
    /// A pool on two devices grows with them: [`ThinPool::grow_data`](crate::thin::ThinPool::grow_data), through
    /// [`pool`](Self::pool).
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for not a possible device size, for more than a labelled device has left, and for a
    /// pool that is on neither; [`Error::OptionConflict`] for a size below what the pool has. Whatever fails, what has
    /// grown stays grown.
    pub fn grow_pool(&self, size: Bytes) -> Result<()> {
        check_size("data size", size)?;
        let _resizing = self.pool.resizing();
        self.check_open()?;
        let (recorded, block_size) =
            self.store.read_state(|state| (state.pool.data_size, state.pool.block_size));
        let below = self.below()?.ok_or_else(|| Error::InvalidOption {
            option: "data size",
            value: size.to_string(),
            reason: "the pool is not on loop files, it grows with its devices",
        })?;
        if size < recorded {
            let (recorded, asked) = (recorded.to_string(), size.to_string());
            return Err(Error::OptionConflict { option: "data size", recorded, asked });
        }
        self.backing(&below, SubDevice::Data)?.extend(size.sectors())?;
        self.pool.thin.grow_data(source::whole_blocks(size, block_size))?;
        self.record_data_size(size)?;
        // The low water mark of a rule is a part of the size.
        self.extend().map(drop)
    }

    /// Reads the pool's status once, and extends its files if
    /// [`Options::auto_extend`](crate::tree::Options::auto_extend) says so. Without such an option, neither needs it.
    ///
    /// [`open`](Self::open) does this, and [`watch`](Self::watch) at every event. A rule that is exhausted is worth
    /// another try when the file system below has got more room.
    ///
    /// # Errors
    /// As [`AutoExtend::apply`].
    pub fn extend_pool(&self) -> Result<Extended> {
        let _resizing = self.pool.resizing();
        self.check_open()?;
        self.extend()
    }

    /// For a caller that excludes other growth.
    fn extend(&self) -> Result<Extended> {
        let Some(rule) = self.options.auto_extend else {
            return Ok(Extended::default());
        };
        let Some(below) = self.below()? else {
            return Ok(Extended::default());
        };
        let (data, metadata) =
            (self.backing(&below, SubDevice::Data)?, self.backing(&below, SubDevice::Metadata)?);
        let metadata_rule = ExtendRule { maximum: METADATA_MAX.bytes(), ..rule };
        let policy = AutoExtend::new().data(rule, data)?.metadata(metadata_rule, metadata)?;
        let done = policy.apply(&self.pool.thin)?;
        if let Extension::To(size) = done.data {
            self.record_data_size(size.bytes())?;
        }
        Ok(done)
    }

    /// What the pool is on, where that can grow.
    fn below(&self) -> Result<Option<Below>> {
        let record = self.store.read_state(|state| state.pool.clone());
        Ok(match (&record.source, record.label) {
            (PoolSource::LoopFiles, _) => Some(Below::LoopFiles),
            (PoolSource::Device { .. }, Some(label)) => {
                let device = source::labelled(self.pool.thin.device_mapper(), &record, label)?;
                Some(Below::Device(Arc::new(device)))
            }
            _ => None,
        })
    }

    fn backing(&self, below: &Below, part: SubDevice) -> Result<Box<dyn Backing>> {
        let file = |name: &str| -> Result<_> {
            let control = LoopControl::with_kernel(self.options.kernel.clone())?;
            Ok(LoopFile::find(control, self.root.pool_path().join(name))?)
        };
        Ok(match (below, part) {
            (Below::LoopFiles, SubDevice::Data) => Box::new(file("data")?),
            (Below::LoopFiles, SubDevice::Metadata) => Box::new(file("metadata")?.allocate()),
            (Below::Device(device), part) => Box::new(SubDeviceBacking::new(device.clone(), part)?),
        })
    }

    /// Opening takes the file as large as it is; what is recorded is the least that it may be.
    fn record_data_size(&self, size: Bytes) -> Result<()> {
        self.store.set_data_size(size);
        self.checkpoint()
    }
}

/// What a pool is on that can grow.
enum Below {
    LoopFiles,
    /// Shared by both parts: what the one takes the other has no more.
    Device(Arc<LabelledDevice>),
}
