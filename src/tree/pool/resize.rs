//! A larger pool, while it is in use.

use std::iter;
use std::sync::{MutexGuard, PoisonError};

use serde::Serialize;

use crate::loopdev::LoopControl;
use crate::thin::{AutoExtend, Backing, ExtendRule, Extended, Extension, LoopFile, METADATA_MAX, PoolEvent};
use crate::tree::state::size::check_size;
use crate::tree::{Error, Result};
use crate::tree::{PoolSource, SnapshotTree, pool::source};
use crate::units::Bytes;

/// Something that happened to a tree's pool, and what was done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolNews {
    /// What happened.
    pub event: PoolEvent,
    /// What became of the files; `None` if the pool is gone, the tree is closed, or it failed: then the error was told
    /// before.
    pub extended: Option<Extended>,
}

impl SnapshotTree {
    /// Make the data file of a pool on loop files `size` large, and the pool with it. Nothing is interrupted.
    /// Opening the tree with a larger [`Options::data_size`](crate::tree::Options::data_size) does the same.
    ///
    /// A pool on devices grows with them: [`ThinPool::grow_data`](crate::thin::ThinPool::grow_data), through
    /// [`pool`](Self::pool).
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a size that no device has, and for a pool that is not on loop files;
    /// [`Error::OptionConflict`] for a size below what the pool has. Whatever fails, what has grown stays grown.
    pub fn grow_pool(&self, size: Bytes) -> Result<()> {
        check_size("data size", size)?;
        let _growing = self.growing();
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
        self.pool.grow_data(source::whole_blocks(size, block_size))?;
        self.record_data_size(size)?;
        // The low water mark of a rule is a part of the size.
        self.extend().map(drop)
    }

    /// Look once, and make the files of the pool larger if [`Options::auto_extend`](crate::tree::Options::auto_extend) says
    /// so. Without such an option, neither needs it.
    ///
    /// [`open`](Self::open) does this, and [`watch`](Self::watch) at every event. An exhausted one is worth another
    /// try when the file system below has got more room.
    ///
    /// # Errors
    /// As [`AutoExtend::apply`].
    pub fn extend_pool(&self) -> Result<Extended> {
        let _growing = self.growing();
        self.check_open()?;
        self.extend()
    }

    /// The events of the pool: as an iterator, that blocks until there is one, and ends with the pool: with the
    /// [`close`](Self::close) of the tree, unless the pool was adopted. Each is answered before it is told: the pool is
    /// [extended](Self::extend_pool), as far as the options say so. That happens only while this is iterated, so give
    /// it a thread:
    ///
    /// ```no_run
    /// # fn run(tree: &dm_thin::tree::SnapshotTree) -> dm_thin::tree::Result<()> {
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| -> dm_thin::tree::Result<()> {
    ///         for news in tree.watch()? {
    ///             println!("{news:?}");
    ///         }
    ///         Ok(())
    ///     });
    ///     // … work with the tree …
    ///     tree.close()
    /// })
    /// # }
    /// ```
    ///
    /// An error does not end it. What keeps the pool from being extended is told first, the event after it.
    ///
    /// # Errors
    /// [`dm::Error::TooOld`](crate::dm::Error::TooOld) before device-mapper interface 4.37.
    pub fn watch(&self) -> Result<impl Iterator<Item = Result<PoolNews>> + '_> {
        self.check_open()?;
        let (mut events, mut unanswered) = (self.pool.watch()?, None);
        Ok(iter::from_fn(move || {
            if let Some(event) = unanswered.take() {
                return Some(Ok(PoolNews { event, extended: None }));
            }
            let event = match events.next()? {
                Ok(event) => event,
                Err(error) => return Some(Err(error.into())),
            };
            let extended = if event == PoolEvent::Removed { Err(Error::Closed) } else { self.extend_pool() };
            Some(match extended {
                Ok(extended) => Ok(PoolNews { event, extended: Some(extended) }),
                Err(Error::Closed) => Ok(PoolNews { event, extended: None }),
                Err(error) => {
                    unanswered = Some(event);
                    Err(error)
                }
            })
        }))
    }

    /// Nobody else makes the pool larger, or takes it down, as long as this is held.
    pub(in crate::tree) fn growing(&self) -> MutexGuard<'_, ()> {
        self.growing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For who holds that.
    fn extend(&self) -> Result<Extended> {
        let Some(rule) = self.options.auto_extend else {
            return Ok(Extended::default());
        };
        let metadata = ExtendRule { maximum: METADATA_MAX.bytes(), ..rule };
        let policy = AutoExtend::new()
            .data(rule, self.pool_file("data")?)?
            .metadata(metadata, self.pool_file("metadata")?.allocate())?;
        let done = policy.apply(&self.pool)?;
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
