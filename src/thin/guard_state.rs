//! Refuses to allocate when the pool is low on space.
//!
//! Reading the status costs an ioctl, so the guard reuses the last one until an event or its age makes it stale:
//!
//! - Every answer carries the event number. When it moved, the status is read anyway; if that says that there is too
//!   little, the message that learnt of it is taken back: what it created is deleted.
//! - For metadata the kernel raises an event each time that less than its own mark (4 MiB or a quarter) is
//!   left. For data it raises one, once after each resume of the pool, when less than the low water mark is
//!   left. So while none has come, at least the mark is left, and a guard at or below the mark costs
//!   nothing at all.
//! - The mark can be lowered. This process counts its reloads; after one, table and status are read. That another
//!   process reloaded the pool is noticed with the next status.
//! - A guard above the mark, or a data guard after such an event, has no one to tell it: then the status is
//!   read again when it is older than [`SpaceGuard::max_age`] or [`SpaceGuard::max_messages`] allocating
//!   messages were sent since. Messages themselves take no data block, and few of metadata.
//! - The file system below a loop file is asked each time: that is no ioctl.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{METADATA_BLOCK_SIZE, NoSpace, PoolMode, PoolStatus, PoolTable, PoolUsage, Space, SpaceGuard};
use crate::dm::{DmName, EventNr};
use crate::thin::{Error, Result};
use crate::units::Bytes;

/// Runtime state of a [`SpaceGuard`].
#[derive(Debug)]
pub(super) struct GuardState {
    config: SpaceGuard,
    last: Mutex<LastStatus>,
}

/// How often this process has reloaded a pool.
static RELOADS: AtomicU64 = AtomicU64::new(0);

/// Counts a reload of a pool in this process; how many there were before.
pub(super) fn count_reload() -> u64 {
    RELOADS.fetch_add(1, Ordering::AcqRel)
}

/// How many reloads of pools there were in this process.
pub(super) fn reload_count() -> u64 {
    RELOADS.load(Ordering::Acquire)
}

/// The last status that was read.
#[derive(Debug)]
struct LastStatus {
    table: PoolTable,
    usage: Option<PoolUsage>,
    /// What the file below had then, and did not use. What it has now would be held against what was used
    /// then.
    unused_backing: Bytes,
    at: Instant,
    messages: u32,
    /// How often this process had reloaded a pool when the table was read.
    reloads: u64,
    /// The event number at which the kernel's low water mark was certainly armed.
    armed: Option<EventNr>,
    event: EventNr,
}

impl GuardState {
    /// Of a pool with that table, which is read with the next status.
    pub(super) fn new(config: SpaceGuard, table: PoolTable, reloads: u64) -> Self {
        let last = LastStatus {
            table,
            usage: None,
            unused_backing: Bytes(0),
            at: Instant::now(),
            messages: 0,
            reloads,
            // A device that has had no event at all has had none of the mark.
            armed: Some(EventNr(0)),
            event: EventNr(0),
        };
        Self { config, last: Mutex::new(last) }
    }

    /// Whether some pool was reloaded since the table was read.
    pub(super) fn is_reloaded(&self, reloads: u64) -> bool {
        self.last().reloads != reloads
    }

    fn last(&self) -> MutexGuard<'_, LastStatus> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A status was read.
    pub(super) fn record(&self, status: &PoolStatus, event: EventNr) {
        let mut last = self.last();
        last.usage = match status {
            PoolStatus::Usage(usage) => Some(usage.clone()),
            PoolStatus::Fail | PoolStatus::Error => None,
        };
        let used = last.usage.as_ref().map(|usage| usage.used_data.bytes(last.table.block_size));
        // Without an answer nothing is unused_backing.
        let below = self.config.backing.as_ref().and_then(|backing| backing.below().ok().flatten());
        last.unused_backing = below.zip(used).map_or(Bytes(0), |(below, used)| below.unused(used));
        (last.at, last.messages, last.event) = (Instant::now(), 0, event);
    }

    /// Some pool was reloaded; this is the table of this one now. With another table it is not last whether the
    /// mark's event has come since.
    pub(super) fn reloaded(&self, table: &PoolTable, reloads: u64) {
        let mut last = self.last();
        if last.table != *table {
            (last.table, last.armed) = (*table, None);
        }
        last.reloads = reloads;
    }

    /// The event number of the last status.
    pub(super) fn event(&self) -> EventNr {
        self.last().event
    }

    /// The pool was resumed with a table, which armed the low water mark; `event` was the number before, `reloads` how
    /// many there had been.
    pub(super) fn resumed(&self, table: &PoolTable, event: EventNr, reloads: u64) {
        let mut last = self.last();
        (last.table, last.armed) = (*table, Some(event));
        if last.reloads == reloads {
            last.reloads += 1;
        }
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

    /// Whether what was last seen serves for one more message.
    pub(super) fn is_fresh(&self) -> bool {
        let mut last = self.last();
        last.messages += 1;
        if last.reloads != reload_count() {
            return false;
        }
        let Some(usage) = &last.usage else { return false };
        let data = self.config.data.is_none_or(|free| {
            let mark = last.table.low_water_mark;
            let needed = free.blocks(usage.total_data, last.table.block_size);
            last.armed == Some(last.event) && needed <= mark && usage.free_data() >= mark
        });
        let metadata = self.config.metadata.is_none_or(|free| {
            let needed = free.blocks(usage.total_metadata, METADATA_BLOCK_SIZE.sectors());
            usage.metadata_low_water.is_some_and(|mark| needed <= mark && usage.free_metadata() >= mark)
        });
        (data && metadata) || self.is_current(&last)
    }

    pub(super) fn check(&self, pool: &DmName) -> Result<()> {
        let last = self.last();
        // A pool that has failed says so when it gets the message.
        let Some(usage) = &last.usage else { return Ok(()) };
        let low = |space, free: Bytes, needed: Bytes| {
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
            let block = last.table.block_size;
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
