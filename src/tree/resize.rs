//! A larger pool, while it is in use.

use super::options::check_size;
use super::{PoolSource, SnapshotTree};
use crate::loopdev::LoopControl;
use crate::thin::{Backing, LoopFile};
use crate::units::Bytes;
use crate::{Error, Result};

impl SnapshotTree {
    /// Make the data file of a pool on loop files `size` large, and the pool with it. Nothing is interrupted.
    ///
    /// A pool on devices grows with them: [`ThinPool::grow_data`](crate::thin::ThinPool::grow_data), through
    /// [`pool`](Self::pool).
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a size that no device has; [`Error::OptionConflict`] for one below what the
    /// pool has, and for a pool that is not on loop files. Whatever fails, what has grown stays grown.
    pub fn grow_pool(&self, size: Bytes) -> Result<()> {
        self.check_open()?;
        check_size("data size", size)?;
        let (source, recorded, block_size) = self
            .store
            .read_state(|state| (state.pool.source.clone(), state.pool.data_size, state.pool.block_size));
        let conflict =
            |option, recorded: String, asked: String| Error::OptionConflict { option, recorded, asked };
        if source != PoolSource::LoopFiles {
            let asked = format!("{:?}", PoolSource::LoopFiles);
            return Err(conflict("pool source", format!("{source:?}"), asked));
        }
        if size < recorded {
            return Err(conflict("data size", recorded.to_string(), size.to_string()));
        }
        let control = LoopControl::with_kernel(self.options.kernel.clone())?;
        let file = LoopFile::find(control, self.root.pool_dir().join("data"))?;
        file.extend(size.sectors())?;
        self.pool.grow_data(Bytes(size.0 / block_size.0 * block_size.0).sectors())?;
        // Opening takes the file as large as it is; what is recorded is the least that it may be.
        self.store.set_data_size(size);
        self.checkpoint()
    }
}
