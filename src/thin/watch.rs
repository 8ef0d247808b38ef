//! What happens to a pool, as it happens.
//!
//! ```text
//!        ┌─────────────────────────────────────────────────────────────────────┐
//!   arm ─┴→ status of the pool ──→ compare event numbers ──→ poll until ready ─┘
//! ```
//!
//! Any device's event makes the poll ready; two ioctls on the pool show whether it was this pool's.

use std::collections::VecDeque;
use std::fmt;
use std::mem::discriminant;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{PoolMode, PoolStatus, ThinPool};
use crate::dm::{DeviceMapper, DmUuid, EventNr, UdevPolicy};
use crate::kernel::DeviceNumber;
use crate::thin::{Error, Result};
use crate::units::Blocks;

/// Something that its owner should know of a pool. Each is reported when it begins, and again if it may have
/// ended and begun again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PoolEvent {
    /// No more data blocks are free than the low water mark: the next one raises the kernel's event, or has.
    LowWater {
        /// Those that are.
        free: Blocks,
    },
    /// No data block is free. Writes that need one wait, at most `no_space_timeout`, or fail.
    OutOfDataSpace,
    /// Fewer metadata blocks are free than the kernel's own mark: 4 MiB, or a quarter of the device.
    LowMetadata {
        /// Those that are.
        free: Blocks,
    },
    /// No metadata block is free: the pool is read-only until the metadata device grows.
    OutOfMetadata,
    /// The metadata cannot be changed any more, or is not meant to be.
    ReadOnly,
    /// The metadata must be checked before the pool will be writable again.
    NeedsCheck,
    /// No I/O is possible.
    Failed,
    /// All is well again: after any of the above, the pool can be written to and has space.
    Recovered,
    /// The pool's device is gone, or was made again. No further event will follow.
    Removed,
}

impl fmt::Display for PoolEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LowWater { free } => write!(f, "low on data: {free} free"),
            Self::OutOfDataSpace => f.write_str("out of data space"),
            Self::LowMetadata { free } => write!(f, "low on metadata: {free} free"),
            Self::OutOfMetadata => f.write_str("out of metadata"),
            Self::ReadOnly => f.write_str("read-only"),
            Self::NeedsCheck => f.write_str("the metadata needs a check"),
            Self::Failed => f.write_str("failed"),
            Self::Recovered => f.write_str("recovered"),
            Self::Removed => f.write_str("removed"),
        }
    }
}

/// The events of one pool. As an iterator it blocks until there is one and ends when the pool is gone;
/// an error does not end it.
///
/// Conditions that hold when the watch begins are reported first, so nothing is missed however late it begins.
///
/// `P` is a reference to the pool, or an [`Arc`] of it for a watcher that a thread or a task owns.
#[derive(Debug)]
pub struct PoolWatcher<P = Arc<ThinPool>> {
    pool: P,
    state: WatchState,
}

/// What a watcher knows of its pool.
#[derive(Debug)]
pub(crate) struct WatchState {
    /// A control file of its own: arming is per open file.
    dm: DeviceMapper,
    /// Who the pool is: its name and its number can be given to another device.
    uuid: Option<DmUuid>,
    /// Which disk of the machine, counted from its start: a pool that was removed and made again with name, uuid and
    /// number is another one. Since Linux 5.15.
    sequence: Option<Vec<u8>>,
    /// The event number that was last seen.
    seen: Option<EventNr>,
    /// The conditions that were reported.
    told: Vec<PoolEvent>,
    pending: VecDeque<PoolEvent>,
    /// Whether the file is armed and the status was read after that.
    armed: bool,
    gone: bool,
}

impl ThinPool {
    /// Watches the pool. Since device-mapper interface 4.37.
    ///
    /// The kernel raises the low water mark's event once; only a reload, such as growing, arms it again.
    ///
    /// The kernel wakes the watcher for every device of the machine. That costs two ioctls, however many devices
    /// there are.
    ///
    /// # Errors
    /// [`dm::Error::TooOld`](crate::dm::Error::TooOld) before that; ENXIO if the pool is gone.
    pub fn watch(&self) -> Result<PoolWatcher<&Self>> {
        Ok(PoolWatcher { state: WatchState::new(self)?, pool: self })
    }

    /// The same for a thread or a task that outlives the caller.
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub fn watch_owned(self: &Arc<Self>) -> Result<PoolWatcher> {
        Ok(PoolWatcher { state: WatchState::new(self)?, pool: Arc::clone(self) })
    }
}

impl<P: Deref<Target = ThinPool>> PoolWatcher<P> {
    /// The next event; `None` if there is none within `timeout`, or the pool is gone.
    ///
    /// A zero timeout looks once, which together with [`AsFd`] suits an event loop: call it until it
    /// says `None`, then wait for the file to become readable.
    pub fn next_within(&mut self, timeout: Duration) -> Result<Option<PoolEvent>> {
        self.state.next_until(&self.pool, Instant::now().checked_add(timeout))
    }
}

impl WatchState {
    pub(crate) fn new(pool: &ThinPool) -> Result<Self> {
        let dm = DeviceMapper::with_kernel(Arc::clone(pool.device_mapper().kernel()), UdevPolicy::None)?;
        // Refused now, not at the first look.
        dm.arm_poll()?;
        // Refused now if the pool is gone.
        pool.table()?;
        Ok(Self {
            uuid: pool.uuid().copied(),
            sequence: sequence(&dm, pool.number()),
            dm,
            seen: None,
            told: Vec::new(),
            pending: VecDeque::new(),
            armed: false,
            gone: false,
        })
    }

    /// The next event, or `None` when the pool is gone.
    pub(crate) fn next(&mut self, pool: &ThinPool) -> Option<Result<PoolEvent>> {
        loop {
            match self.next_until(pool, None) {
                Ok(None) if self.gone => return None,
                // A wait without an end does not end; it can only have been cut short.
                Ok(None) => {}
                result => return result.transpose(),
            }
        }
    }

    pub(crate) fn next_until(&mut self, pool: &ThinPool, end: Option<Instant>) -> Result<Option<PoolEvent>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            if self.gone {
                return Ok(None);
            }
            // After a failure there is no telling what the poll would miss: look first.
            if self.armed && !self.dm.ready(end)? {
                return Ok(None);
            }
            self.look(pool)?;
        }
    }

    fn leave(&mut self) {
        self.gone = true;
        self.pending.push_back(PoolEvent::Removed);
    }

    /// Arms, reads the status, compares: whatever happens after the arming makes the poll ready, whatever happened
    /// before it is in the status.
    fn look(&mut self, pool: &ThinPool) -> Result<()> {
        self.armed = false;
        self.dm.arm_poll()?;
        let looked = pool.look().and_then(|(status, device)| {
            let uuid = self.uuid.is_none_or(|uuid| device.uuid == Some(uuid));
            // A sequence number that cannot be read proves nothing.
            let sequence = self.sequence.as_ref().zip(sequence(&self.dm, pool.number()));
            let sequence = sequence.is_none_or(|(known, now)| *known == now);
            let same = uuid && device.number == pool.number() && sequence;
            if same && self.seen != Some(device.event_nr) {
                self.compare(pool, &status)?;
                self.seen = Some(device.event_nr);
            }
            Ok(same)
        });
        match looked {
            Ok(true) => {}
            // Gone, or its name is another device's.
            Ok(false) | Err(Error::WrongTarget { .. }) => self.leave(),
            Err(error) if error.is_not_found() => self.leave(),
            Err(error) => return Err(error),
        }
        self.armed = true;
        Ok(())
    }

    /// After an event: reports the conditions that hold now and did not before.
    fn compare(&mut self, pool: &ThinPool, status: &PoolStatus) -> Result<()> {
        let holds = conditions(status, pool.table()?.0.low_water_mark);
        let is_old = |event: &PoolEvent| self.told.iter().any(|old| discriminant(old) == discriminant(event));
        let mut news: Vec<_> = holds.iter().filter(|event| !is_old(event)).copied().collect();
        if news.is_empty() {
            // There was an event all the same: something ended and began again since the last look.
            news.clone_from(&holds);
        }
        self.pending.extend(news);
        if holds.is_empty() && !self.told.is_empty() {
            self.pending.push_back(PoolEvent::Recovered);
        }
        self.told = holds;
        Ok(())
    }
}

fn sequence(dm: &DeviceMapper, number: DeviceNumber) -> Option<Vec<u8>> {
    dm.kernel().block_attribute(&format!("dm-{}", number.minor), "diskseq").ok()
}

/// What a status says, the least grave first.
fn conditions(status: &PoolStatus, low_water_mark: Blocks) -> Vec<PoolEvent> {
    let PoolStatus::Usage(usage) = status else { return vec![PoolEvent::Failed] };
    let (data, metadata) = (usage.free_data(), usage.free_metadata());
    let out_of_metadata = usage.mode == PoolMode::ReadOnly && metadata == Blocks(0);
    [
        // The kernel raises the event before it takes the block.
        (data <= low_water_mark, PoolEvent::LowWater { free: data }),
        (
            usage.metadata_low_water.is_some_and(|mark| metadata < mark),
            PoolEvent::LowMetadata { free: metadata },
        ),
        (usage.mode == PoolMode::OutOfDataSpace, PoolEvent::OutOfDataSpace),
        (out_of_metadata, PoolEvent::OutOfMetadata),
        (usage.mode == PoolMode::ReadOnly && !out_of_metadata, PoolEvent::ReadOnly),
        (usage.needs_check, PoolEvent::NeedsCheck),
        (usage.mode == PoolMode::Fail, PoolEvent::Failed),
    ]
    .into_iter()
    .filter_map(|(holds, event)| holds.then_some(event))
    .collect()
}

impl AsFd for WatchState {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dm.as_fd()
    }
}

impl<P: Deref<Target = ThinPool>> Iterator for PoolWatcher<P> {
    type Item = Result<PoolEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        self.state.next(&self.pool)
    }
}

impl<P> AsFd for PoolWatcher<P> {
    /// Readable when there may be something new.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }
}

impl<P> AsRawFd for PoolWatcher<P> {
    /// For event loops that register a number.
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_says() {
        let says = |text: &str| {
            let events = conditions(&text.parse().unwrap(), Blocks(17));
            events.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let tail = "discard_passdown queue_if_no_space";
        assert_eq!(says(&format!("0 10/1024 0/512 - rw {tail} - 256")), "");
        assert_eq!(says(&format!("0 10/1024 494/512 - rw {tail} - 256")), "");
        assert_eq!(says(&format!("0 10/1024 495/512 - rw {tail} - 256")), "low on data: 17 blocks free");
        assert_eq!(says(&format!("0 10/1024 496/512 - rw {tail} - 256")), "low on data: 16 blocks free");
        assert_eq!(
            says(&format!("0 10/1024 512/512 - out_of_data_space {tail} - 256")),
            "low on data: 0 blocks free; out of data space"
        );
        assert_eq!(
            says(&format!("0 1024/1024 0/512 - ro {tail} - 256")),
            "low on metadata: 0 blocks free; out of metadata"
        );
        assert_eq!(
            says(&format!("0 10/1024 0/512 - ro {tail} needs_check 256")),
            "read-only; the metadata needs a check"
        );
        assert_eq!(says("Fail"), "failed");
    }
}
