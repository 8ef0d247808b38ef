//! A larger pool, while it is in use.

use crate::loopdev::LoopControl;
use crate::thin::{AutoExtend, Backing, ExtendRule, Extended, Extension, LoopFile, METADATA_MAX};
use crate::tree::state::size::check_size;
use crate::tree::{Error, Result};
use crate::tree::{PoolSource, SnapshotTree, pool::source};
use crate::units::Bytes;

impl SnapshotTree {
    /// Makes the data file of a pool on loop files `size` large, and the pool with it. Nothing is interrupted.
    /// Opening the tree with a larger [`Options::data_size`](crate::tree::Options::data_size) does the same.
    ///
    /// A pool on devices grows with them: [`ThinPool::grow_data`](crate::thin::ThinPool::grow_data), through
    /// [`pool`](Self::pool).
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for not a possible device size, and for a pool that is not on loop files;
    /// [`Error::OptionConflict`] for a size below what the pool has. Whatever fails, what has grown stays grown.
    pub fn grow_pool(&self, size: Bytes) -> Result<()> {
        check_size("data size", size)?;
        let _resizing = self.pool.resizing();
        self.check_open()?;
        let (on, recorded, block_size) = self
            .store
            .read_state(|state| (state.pool.source.clone(), state.pool.data_size, state.pool.block_size));
        if on != PoolSource::LoopFiles {
            let reason = "the pool is not on loop files, it grows with its devices";
            return Err(Error::InvalidOption { option: "data size", value: size.to_string(), reason });
        }
        if size < recorded {
            let (recorded, asked) = (recorded.to_string(), size.to_string());
            return Err(Error::OptionConflict { option: "data size", recorded, asked });
        }
        let file = self.pool_file("data")?;
        file.extend(size.sectors())?;
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
        let metadata = ExtendRule { maximum: METADATA_MAX.bytes(), ..rule };
        let policy = AutoExtend::new()
            .data(rule, self.pool_file("data")?)?
            .metadata(metadata, self.pool_file("metadata")?.allocate())?;
        let done = policy.apply(&self.pool.thin)?;
        if let Extension::To(size) = done.data {
            self.record_data_size(size.bytes())?;
        }
        Ok(done)
    }

    fn pool_file(&self, name: &str) -> Result<LoopFile> {
        let control = LoopControl::with_kernel(self.options.kernel.clone())?;
        Ok(LoopFile::find(control, self.root.pool_path().join(name))?)
    }

    /// Opening takes the file as large as it is; what is recorded is the least that it may be.
    fn record_data_size(&self, size: Bytes) -> Result<()> {
        self.store.set_data_size(size);
        self.checkpoint()
    }
}
