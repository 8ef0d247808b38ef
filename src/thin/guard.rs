//! Free space that must be left before the pool is asked to allocate.
//!
//! A message must not cost a status, so what the last status said serves until it may be wrong:
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

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::extend::percent_of;
use super::{Backing, METADATA_BLOCK_SIZE, NoSpace, PoolMode, PoolStatus, PoolTable, PoolUsage, ThinPool};
use crate::dm::EventNr;
use crate::thin::{Error, Result};
use crate::units::{Blocks, Bytes, Sectors};

/// How much must stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MinFree {
    /// So many percent of the device, and at least a block.
    Percent(u8),
    /// So much.
    Bytes(Bytes),
}

impl MinFree {
    fn blocks(self, total: Blocks, block_size: Sectors) -> Blocks {
        match self {
            Self::Percent(percent) => Blocks(percent_of(total.0, percent).max(1)),
            Self::Bytes(bytes) => Blocks(bytes.0.div_ceil(block_size.bytes().0)),
        }
    }
}

/// What must be free before a thin device is created or a snapshot taken; by default nothing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpaceGuard {
    data: Option<MinFree>,
    metadata: Option<MinFree>,
    backing: Option<Arc<dyn Backing>>,
    max_age: Duration,
    max_messages: u32,
}

impl Default for SpaceGuard {
    fn default() -> Self {
        let (max_age, max_messages) = (Duration::from_secs(1), 100);
        Self { data: None, metadata: None, backing: None, max_age, max_messages }
    }
}

impl SpaceGuard {
    /// Nothing has to be free.
    pub fn new() -> Self {
        Self::default()
    }

    /// This much data.
    #[must_use]
    pub fn data(mut self, free: MinFree) -> Self {
        self.data = Some(free);
        self
    }

    /// This much metadata.
    #[must_use]
    pub fn metadata(mut self, free: MinFree) -> Self {
        self.metadata = Some(free);
        self
    }

    /// Count as free data only what the device below can really get, such as the free space of the file
    /// system that a loop file is on.
    #[must_use]
    pub fn backing(mut self, data: Arc<dyn Backing>) -> Self {
        self.backing = Some(data);
        self
    }

    /// Maximum age of a cached status where no event would tell that it is wrong. Default: 1 s.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Maximum number of allocating messages for which a cached status serves where no event would tell that it is
    /// wrong. Default: 100.
    #[must_use]
    pub fn max_messages(mut self, messages: u32) -> Self {
        self.max_messages = messages;
        self
    }
}

/// What a pool can be short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Space {
    /// Data blocks.
    Data,
    /// Metadata blocks.
    Metadata,
    /// What the device below the data can really get.
    Backing,
}

impl Space {
    /// The option that says how much must stay free.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Data | Self::Backing => "min_free_data",
            Self::Metadata => "min_free_metadata",
        }
    }

    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::Data | Self::Metadata => "remove snapshots or grow the pool",
            Self::Backing => "free space there, or remove snapshots",
        }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data space",
            Self::Metadata => "metadata space",
            Self::Backing => "space below the data device",
        })
    }
}

/// A guard on duty.
#[derive(Debug)]
pub(super) struct Watch {
    guard: SpaceGuard,
    known: Mutex<Known>,
}

/// How often this process has reloaded a pool.
static RELOADS: AtomicU64 = AtomicU64::new(0);

/// Counts a reload of a pool in this process; how many there were before.
pub(super) fn count_reload() -> u64 {
    RELOADS.fetch_add(1, Ordering::AcqRel)
}

/// What was last seen.
#[derive(Debug)]
struct Known {
    table: PoolTable,
    usage: Option<PoolUsage>,
    /// What the file below had then, and did not use. What it has now would be held against what was used
    /// then.
    spare: Bytes,
    at: Instant,
    messages: u32,
    /// How often this process had reloaded a pool when the table was read.
    reloads: u64,
    /// The event number at which the kernel's low water mark was certainly armed.
    armed: Option<EventNr>,
    event: EventNr,
}

impl ThinPool {
    /// Check that there is space before every message that allocates.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for more than 100 percent.
    pub fn with_guard(mut self, guard: SpaceGuard) -> Result<Self> {
        for free in [guard.data, guard.metadata].into_iter().flatten() {
            if let MinFree::Percent(percent @ 101..) = free {
                let reason = "more than 100 percent";
                return Err(Error::InvalidOption {
                    option: "free space",
                    value: percent.to_string(),
                    reason,
                });
            }
        }
        let reloads = RELOADS.load(Ordering::Acquire);
        let (table, _) = self.table()?;
        let known = Known {
            table,
            usage: None,
            spare: Bytes(0),
            at: Instant::now(),
            messages: 0,
            reloads,
            // A device that has had no event at all has had none of the mark.
            armed: Some(EventNr(0)),
            event: EventNr(0),
        };
        self.guard = Some(Watch { guard, known: Mutex::new(known) });
        self.status()?;
        Ok(self)
    }

    /// See that there is space for a message that allocates.
    ///
    /// # Errors
    /// [`Error::LowSpace`] if there is less than the guard wants.
    pub(crate) fn check_space(&self) -> Result<()> {
        let Some(watch) = &self.guard else { return Ok(()) };
        if watch.serves() && watch.judge(self).is_ok() {
            return Ok(());
        }
        let reloads = RELOADS.load(Ordering::Acquire);
        if watch.known().reloads != reloads {
            watch.reloaded(&self.table()?.0, reloads);
        }
        // Too old, or too little when last seen: blocks may have been freed since.
        self.status()?;
        watch.judge(self)
    }

    /// See that a volume can be suspended, and a snapshot of it made. In a pool that is out of data space and queues
    /// writes, the suspend waits for them: until there is space, or for `no_space_timeout`. No answer would tell of the
    /// event in time, so what the last status said serves only until it is too old.
    ///
    /// # Errors
    /// [`Error::PoolMode`] in such a pool; [`Error::LowSpace`] if there is less than the guard wants.
    pub(crate) fn check_suspend(&self) -> Result<()> {
        let Some(watch) = &self.guard else { return Ok(()) };
        if !watch.is_recent() || watch.queues_writes() {
            self.status()?;
        }
        if watch.queues_writes() {
            let consequence = "a suspend would wait for the writes that it queues";
            return Err(self.mode_error(PoolMode::OutOfDataSpace, consequence));
        }
        self.check_space()
    }
}

impl Watch {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A status was read.
    pub(super) fn saw(&self, status: &PoolStatus, event: EventNr) {
        let mut known = self.known();
        known.usage = match status {
            PoolStatus::Usage(usage) => Some(usage.clone()),
            PoolStatus::Fail | PoolStatus::Error => None,
        };
        let used = known.usage.as_ref().map(|usage| usage.used_data.bytes(known.table.block_size));
        // Without an answer nothing is spare.
        let below = self.guard.backing.as_ref().and_then(|backing| backing.below().ok().flatten());
        known.spare = below.zip(used).map_or(Bytes(0), |(below, used)| below.spare(used));
        (known.at, known.messages, known.event) = (Instant::now(), 0, event);
    }

    /// Some pool was reloaded; this is the table of this one now. With another table it is not known whether the
    /// mark's event has come since.
    fn reloaded(&self, table: &PoolTable, reloads: u64) {
        let mut known = self.known();
        if known.table != *table {
            (known.table, known.armed) = (*table, None);
        }
        known.reloads = reloads;
    }

    /// The event number of the last status.
    pub(super) fn event(&self) -> EventNr {
        self.known().event
    }

    /// The pool was resumed with a table, which armed the low water mark; `event` was the number before, `reloads` how
    /// many there had been.
    pub(super) fn resumed(&self, table: &PoolTable, event: EventNr, reloads: u64) {
        let mut known = self.known();
        (known.table, known.armed) = (*table, Some(event));
        if known.reloads == reloads {
            known.reloads += 1;
        }
    }

    /// Whether the last status is neither too old nor too many messages ago.
    fn is_recent(&self) -> bool {
        self.is_current(&self.known())
    }

    fn is_current(&self, known: &Known) -> bool {
        known.messages <= self.guard.max_messages && known.at.elapsed() <= self.guard.max_age
    }

    /// Whether the pool was out of data space when last seen, and does not fail writes for that.
    fn queues_writes(&self) -> bool {
        let is_full = |usage: &PoolUsage| {
            usage.mode == PoolMode::OutOfDataSpace && usage.no_space != Some(NoSpace::Error)
        };
        self.known().usage.as_ref().is_some_and(is_full)
    }

    /// Whether what was last seen serves for one more message.
    fn serves(&self) -> bool {
        let mut known = self.known();
        known.messages += 1;
        if known.reloads != RELOADS.load(Ordering::Acquire) {
            return false;
        }
        let Some(usage) = &known.usage else { return false };
        let data = self.guard.data.is_none_or(|free| {
            let mark = known.table.low_water_mark;
            let needed = free.blocks(usage.total_data, known.table.block_size);
            known.armed == Some(known.event) && needed <= mark && usage.free_data() >= mark
        });
        let metadata = self.guard.metadata.is_none_or(|free| {
            let needed = free.blocks(usage.total_metadata, METADATA_BLOCK_SIZE.sectors());
            usage.metadata_low_water.is_some_and(|mark| needed <= mark && usage.free_metadata() >= mark)
        });
        (data && metadata) || self.is_current(&known)
    }

    pub(super) fn judge(&self, pool: &ThinPool) -> Result<()> {
        let known = self.known();
        // A pool that has failed says so when it gets the message.
        let Some(usage) = &known.usage else { return Ok(()) };
        let low = |space, free: Bytes, needed: Bytes| {
            Err(Error::LowSpace { pool: pool.name().to_string(), space, free, needed })
        };
        if let Some(free) = self.guard.metadata {
            let block = METADATA_BLOCK_SIZE.sectors();
            let needed = free.blocks(usage.total_metadata, block);
            if usage.free_metadata() < needed {
                return low(Space::Metadata, usage.free_metadata().bytes(block), needed.bytes(block));
            }
        }
        if let Some(free) = self.guard.data {
            let block = known.table.block_size;
            let needed = free.blocks(usage.total_data, block);
            if usage.free_data() < needed {
                return low(Space::Data, usage.free_data().bytes(block), needed.bytes(block));
            }
            let below = self.guard.backing.as_ref().map(|backing| backing.below()).transpose()?;
            if let Some(below) = below.flatten()
                && let available = below.free + known.spare
                && available < needed.bytes(block)
            {
                return low(Space::Backing, available, needed.bytes(block));
            }
        }
        Ok(())
    }
}
