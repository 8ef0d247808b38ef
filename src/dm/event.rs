//! Events of all devices, as they come.
//!
//! ```text
//!        ┌────────────────────────────────────────┐
//!   arm ─┴→ list ──→ compare ──→ poll until ready ─┘
//! ```
//!
//! Whatever happens after the arming makes the poll ready, and whatever happened before it is in the
//! list: nothing falls between.

use std::collections::{BTreeMap, VecDeque};
use std::iter::FusedIterator;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DeviceMapper, ListedDevice, UdevPolicy};
use crate::abi::dm::DM_DEV_ARM_POLL;
use crate::dm::{Error, Result};
use crate::kernel::DeviceNumber;

/// A change of a device between two lists.
///
/// Complete: no variant will be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceEvent {
    /// It is there now.
    Added(ListedDevice),
    /// It has had events, or a uuid that says it is the same one and another name, or was given a uuid.
    Changed(ListedDevice),
    /// It is gone.
    Removed(ListedDevice),
}

/// The events of all devices. As an iterator it blocks until there is one, and never ends by itself;
/// an error does not end it either.
///
/// Several events of one device between two reads are reported as one, and a device that was made and removed
/// between them is not reported. The kernel's list has name, uuid, number and event number: a device that was
/// removed and made again with all of them is the same to it.
#[derive(Debug)]
pub struct DeviceEvents {
    /// A control file of its own: arming is per open file.
    dm: DeviceMapper,
    known: BTreeMap<DeviceNumber, ListedDevice>,
    pending: VecDeque<DeviceEvent>,
    /// Whether the file is armed and the list was read after that.
    armed: bool,
}

impl DeviceMapper {
    /// The events of all devices from now on. Since interface 4.37.
    ///
    /// # Errors
    /// [`Error::TooOld`] before that.
    pub fn events(&self) -> Result<DeviceEvents> {
        self.needs(DM_DEV_ARM_POLL, 37)?;
        let dm = Self::with_kernel(Arc::clone(self.kernel()), UdevPolicy::None)?;
        let mut events = DeviceEvents { dm, known: BTreeMap::new(), pending: VecDeque::new(), armed: false };
        events.look()?;
        // What is there already is no event.
        events.pending.clear();
        Ok(events)
    }

    /// Waits until something happened since this was [armed](Self::arm_poll); false if the time is up.
    pub(crate) fn ready(&self, end: Option<Instant>) -> Result<bool> {
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let ready = self.kernel().poll(&self.control, left);
            if ready.map_err(|errno| Error::io("poll", "/dev/mapper/control")(errno))? {
                return Ok(true);
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(false);
            }
        }
    }
}

impl DeviceEvents {
    /// The devices as they were at the last look.
    pub fn devices(&self) -> impl Iterator<Item = &ListedDevice> {
        self.known.values()
    }

    /// The next event; `None` if there is none within `timeout`.
    ///
    /// A zero timeout looks once, which together with [`AsFd`] suits an event loop: call it until it
    /// says `None`, then wait for the file to become readable.
    pub fn next_within(&mut self, timeout: Duration) -> Result<Option<DeviceEvent>> {
        // A timeout that no clock reaches is none.
        self.next_until(Instant::now().checked_add(timeout))
    }

    fn next_until(&mut self, end: Option<Instant>) -> Result<Option<DeviceEvent>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            // After a failure there is no telling what the poll would miss: look first.
            if self.armed && !self.dm.ready(end)? {
                return Ok(None);
            }
            self.look()?;
        }
    }

    /// Arms, lists, compares.
    fn look(&mut self) -> Result<()> {
        self.armed = false;
        self.dm.arm_poll()?;
        let list = self.dm.list()?;
        let now: BTreeMap<_, _> = list.into_iter().map(|device| (device.number, device)).collect();
        for (number, before) in &self.known {
            match now.get(number) {
                Some(now) if now == before => {}
                Some(now) if same(before, now) => {
                    self.pending.push_back(DeviceEvent::Changed(*now));
                }
                _ => self.pending.push_back(DeviceEvent::Removed(*before)),
            }
        }
        for (number, now) in &now {
            if !self.known.get(number).is_some_and(|before| same(before, now)) {
                self.pending.push_back(DeviceEvent::Added(*now));
            }
        }
        self.known = now;
        self.armed = true;
        Ok(())
    }
}

/// Whether two looks at one device number saw the same device: a number is soon given to another one.
fn same(before: &ListedDevice, now: &ListedDevice) -> bool {
    match (before.uuid, now.uuid) {
        (Some(before), Some(now)) => before == now,
        // It may have been given one.
        (None, _) => before.name == now.name,
        (Some(_), None) => false,
    }
}

impl Iterator for DeviceEvents {
    type Item = Result<DeviceEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_until(None).transpose()
    }
}

impl FusedIterator for DeviceEvents {}

impl AsFd for DeviceEvents {
    /// Readable when there may be something new.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dm.as_fd()
    }
}

impl AsRawFd for DeviceEvents {
    /// For event loops that register a number.
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
