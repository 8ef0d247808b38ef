//! Refuses to allocate when the pool is low on space.
//!
//! Reading the status costs an ioctl. One status serves for further messages until
//!
//! - an answer carries another event number: the kernel raises an event when free data falls below the low water mark,
//!   and when free metadata falls below a mark of its own. If the new status says that there is too little, the message
//!   that learnt of it is taken back: what it created is deleted;
//! - this process reloads a pool: the low water mark may be another one;
//! - it is older than [`SpaceGuard::max_age`], or [`SpaceGuard::max_messages`] allocating messages were sent since.
//!
//! The file system below a loop file is asked each time: that is no ioctl.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{METADATA_BLOCK_SIZE, NoSpace, PoolMode, PoolStatus, PoolUsage, Space, SpaceGuard};
use crate::dm::DmName;
use crate::thin::{Error, Result};
use crate::units::{Bytes, Sectors};

/// Runtime state of a [`SpaceGuard`].
#[derive(Debug)]
pub(super) struct GuardState {
    config: SpaceGuard,
    block_size: Sectors,
    last: Mutex<LastStatus>,
    refusals: AtomicU64,
}

/// How often this process has reloaded a pool.
static RELOADS: AtomicU64 = AtomicU64::new(0);

/// Counts a reload of a pool in this process.
pub(super) fn count_reload() {
    RELOADS.fetch_add(1, Ordering::AcqRel);
}

/// How many reloads of pools there were in this process.
pub(super) fn reload_count() -> u64 {
    RELOADS.load(Ordering::Acquire)
}

/// The last status that was read.
#[derive(Debug)]
struct LastStatus {
    usage: Option<PoolUsage>,
    /// What the file below had then, and did not use. What it has now would be held against what was used
    /// then.
    unused_backing: Bytes,
    at: Instant,
    messages: u32,
    /// How often this process had reloaded a pool before it was read.
    reloads: u64,
}

impl GuardState {
    /// Of a pool with such blocks, whose status is read next.
    pub(super) fn new(config: SpaceGuard, block_size: Sectors) -> Self {
        let (at, messages, reloads) = (Instant::now(), 0, reload_count());
        let last = LastStatus { usage: None, unused_backing: Bytes(0), at, messages, reloads };
        Self { config, block_size, last: Mutex::new(last), refusals: AtomicU64::new(0) }
    }

    fn last(&self) -> MutexGuard<'_, LastStatus> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A status was read, after so many reloads in this process.
    pub(super) fn record(&self, status: &PoolStatus, reloads: u64) {
        let mut last = self.last();
        last.usage = match status {
            PoolStatus::Usage(usage) => Some(usage.clone()),
            PoolStatus::Fail | PoolStatus::Error => None,
        };
        let used = last.usage.as_ref().map(|usage| usage.used_data.bytes(self.block_size));
        // Without an answer nothing is unused.
        let below = self.config.backing.as_ref().and_then(|backing| backing.below().ok().flatten());
        last.unused_backing = below.zip(used).map_or(Bytes(0), |(below, used)| below.unused(used));
        (last.at, last.messages, last.reloads) = (Instant::now(), 0, reloads);
    }

    /// Whether the last status is neither too old nor too many messages ago.
    pub(super) fn is_recent(&self) -> bool {
        self.is_current(&self.last())
    }

    fn is_current(&self, last: &LastStatus) -> bool {
        last.messages <= self.config.max_messages && last.at.elapsed() <= self.config.max_age
    }

    /// Whether the pool was out of data space when last seen, and does not fail writes for that.
    pub(super) fn queues_writes(&self) -> bool {
        let is_full = |usage: &PoolUsage| {
            usage.mode == PoolMode::OutOfDataSpace && usage.no_space != Some(NoSpace::Error)
        };
        self.last().usage.as_ref().is_some_and(is_full)
    }

    /// Whether the last status serves for one more message.
    pub(super) fn is_fresh(&self) -> bool {
        let mut last = self.last();
        last.messages += 1;
        last.usage.is_some() && last.reloads == reload_count() && self.is_current(&last)
    }

    /// How often there was too little space.
    pub(super) fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    pub(super) fn check(&self, pool: &DmName) -> Result<()> {
        let last = self.last();
        // A pool that has failed says so when it gets the message.
        let Some(usage) = &last.usage else { return Ok(()) };
        let low = |space, free: Bytes, needed: Bytes| {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            Err(Error::LowSpace { pool: pool.to_string(), space, free, needed })
        };
        if let Some(free) = self.config.metadata {
            let block = METADATA_BLOCK_SIZE.sectors();
            let needed = free.blocks(usage.total_metadata, block);
            if usage.free_metadata() < needed {
                return low(Space::Metadata, usage.free_metadata().bytes(block), needed.bytes(block));
            }
        }
        if let Some(free) = self.config.data {
            let block = self.block_size;
            let needed = free.blocks(usage.total_data, block);
            if usage.free_data() < needed {
                return low(Space::Data, usage.free_data().bytes(block), needed.bytes(block));
            }
            let below = self.config.backing.as_ref().map(|backing| backing.below()).transpose()?;
            if let Some(below) = below.flatten()
                && let available = below.free + last.unused_backing
                && available < needed.bytes(block)
            {
                return low(Space::Backing, available, needed.bytes(block));
            }
        }
        Ok(())
    }
}
