//! What is active and mounted.
//!
//! Every snapshot in use has a slot; a call that activates, mounts, or takes down holds its lock to the
//! end, so that unmount and deactivate are one step for all others. Who holds two slots (a rename) locked them in
//! the order of their ids. Readers use a copy of the last call's result, and never wait.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::kernel::{DeviceNumber, MountId};
use crate::thin::ThinVolume;
use crate::tree::live::mount::Mounted;
use crate::tree::{Error, Result};

/// The state of a snapshot in the kernel.
#[derive(Debug, Default)]
pub(in crate::tree) struct ActiveSnapshot {
    pub(in crate::tree) volume: Option<ThinVolume>,
    /// The kernel removes the volume's device as soon as it is closed, and may have done so.
    pub(in crate::tree) removal_deferred: bool,
    /// A caller asked for it to be active, mounted or not.
    pub(in crate::tree) pinned: bool,
    /// How many [readers](crate::tree::SnapshotReader) it has.
    pub(in crate::tree) readers: usize,
    pub(in crate::tree) mounted: Option<Mounted>,
}

/// What [`ActiveSnapshot`] holds, for those who only look.
#[derive(Debug, Clone, Default)]
pub(in crate::tree) struct ActiveView {
    pub(in crate::tree) device: Option<(PathBuf, DeviceNumber)>,
    pub(in crate::tree) removal_deferred: bool,
    pub(in crate::tree) mounted: Option<(PathBuf, MountId)>,
}

/// A slot and its view.
#[derive(Debug, Default)]
pub(in crate::tree) struct ActiveCell {
    slot: Mutex<ActiveSnapshot>,
    view: Mutex<ActiveView>,
}

impl ActiveCell {
    pub(in crate::tree) fn new(slot: ActiveSnapshot) -> Self {
        let view = Mutex::new(slot.view());
        Self { slot: Mutex::new(slot), view }
    }

    /// What the last call on the slot left.
    pub(in crate::tree) fn view(&self) -> ActiveView {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A locked slot. When it is dropped others see what became of it.
#[derive(Debug)]
pub(in crate::tree) struct ActiveGuard<'a> {
    slot: MutexGuard<'a, ActiveSnapshot>,
    view: &'a Mutex<ActiveView>,
}

impl Deref for ActiveGuard<'_> {
    type Target = ActiveSnapshot;
    fn deref(&self) -> &ActiveSnapshot {
        &self.slot
    }
}

impl DerefMut for ActiveGuard<'_> {
    fn deref_mut(&mut self) -> &mut ActiveSnapshot {
        &mut self.slot
    }
}

impl Drop for ActiveGuard<'_> {
    fn drop(&mut self) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = self.slot.view();
    }
}

impl ActiveSnapshot {
    fn view(&self) -> ActiveView {
        ActiveView {
            device: self.volume.as_ref().map(|volume| (volume.path(), volume.number())),
            removal_deferred: self.removal_deferred,
            mounted: self.mounted.as_ref().map(|mounted| (mounted.target.clone(), mounted.id())),
        }
    }
}

pub(in crate::tree) fn check_unmounted(slot: &ActiveSnapshot, id: &str) -> Result<()> {
    match &slot.mounted {
        Some(mounted) => Err(Error::Mounted { id: id.to_owned(), target: mounted.target.clone() }),
        None => Ok(()),
    }
}

pub(in crate::tree) fn lock(cell: &ActiveCell) -> ActiveGuard<'_> {
    ActiveGuard { slot: cell.slot.lock().unwrap_or_else(PoisonError::into_inner), view: &cell.view }
}
