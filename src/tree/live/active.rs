//! What is active and mounted.
//!
//! Every snapshot in use has a cell; a call that activates, mounts, or takes down holds its lock to the end, so that
//! unmount and deactivate are one step for all others. Who holds two (a rename) locked them in the order of their ids.
//! Readers use a copy of the last call's result, and never wait.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use crate::dm::Removal;
use crate::kernel::{DeviceNumber, MountId};
use crate::retry::Retry;
use crate::thin::ThinVolume;
use crate::tree::live::mount::Mounted;
use crate::tree::pool::tree_pool::TreePool;
use crate::tree::sync::{Guard, Lock, Rank};
use crate::tree::{Error, Result};
use crate::{dm, thin};

/// The state of a snapshot in the kernel.
#[derive(Debug, Default)]
pub(in crate::tree) struct ActiveSnapshot {
    pub(in crate::tree) volume: Option<ThinVolume>,
    /// Whoever activated it asked for a read-only device, sealed or not.
    pub(in crate::tree) read_only: bool,
    /// The kernel removes the volume's device as soon as it is closed, and may have done so.
    pub(in crate::tree) removal_deferred: bool,
    /// A caller asked for it to be active, mounted or not.
    pub(in crate::tree) pinned: bool,
    /// How many [readers](crate::tree::SnapshotReader) it has.
    pub(in crate::tree) readers: usize,
    pub(in crate::tree) mounted: Option<Mounted>,
}

/// What [`ActiveSnapshot`] holds, for callers that only read it.
#[derive(Debug, Clone, Default)]
pub(in crate::tree) struct ActiveView {
    pub(in crate::tree) device: Option<(PathBuf, DeviceNumber)>,
    pub(in crate::tree) read_only: bool,
    pub(in crate::tree) removal_deferred: bool,
    pub(in crate::tree) mounted: Option<(PathBuf, MountId)>,
}

/// A snapshot in use, and its view.
#[derive(Debug)]
pub(in crate::tree) struct ActiveCell {
    active: Lock<ActiveSnapshot>,
    view: Lock<ActiveView>,
}

impl Default for ActiveCell {
    fn default() -> Self {
        Self::new(ActiveSnapshot::default())
    }
}

impl ActiveCell {
    pub(in crate::tree) fn new(active: ActiveSnapshot) -> Self {
        let view = Lock::new(Rank::Leaf, active.view());
        Self { active: Lock::new(Rank::Snapshot, active), view }
    }

    /// The snapshot, and no other call on it meanwhile.
    pub(in crate::tree) fn lock(&self) -> ActiveGuard<'_> {
        ActiveGuard { active: self.active.lock(), view: &self.view }
    }

    /// Whether it is of no further use, now that no call has it.
    pub(super) fn is_idle(&mut self) -> bool {
        self.active.get_mut().volume.is_none()
    }

    /// What the last call on the snapshot left.
    pub(in crate::tree) fn view(&self) -> ActiveView {
        self.view.lock().clone()
    }
}

/// A locked cell. When it is dropped others see what became of the snapshot.
#[derive(Debug)]
pub(in crate::tree) struct ActiveGuard<'a> {
    active: Guard<'a, ActiveSnapshot>,
    view: &'a Lock<ActiveView>,
}

impl Deref for ActiveGuard<'_> {
    type Target = ActiveSnapshot;
    fn deref(&self) -> &ActiveSnapshot {
        &self.active
    }
}

impl DerefMut for ActiveGuard<'_> {
    fn deref_mut(&mut self) -> &mut ActiveSnapshot {
        &mut self.active
    }
}

impl Drop for ActiveGuard<'_> {
    fn drop(&mut self) {
        *self.view.lock() = self.active.view();
    }
}

impl ActiveSnapshot {
    fn view(&self) -> ActiveView {
        ActiveView {
            device: self.volume.as_ref().map(|volume| (volume.path(), volume.number())),
            read_only: self.read_only,
            removal_deferred: self.removal_deferred,
            mounted: self.mounted.as_ref().map(|mounted| (mounted.target.clone(), mounted.id())),
        }
    }

    /// Whether its device is to stay active.
    pub(in crate::tree) fn is_needed(&self) -> bool {
        self.pinned || self.readers > 0 || self.mounted.is_some()
    }

    /// # Errors
    /// [`Error::Mounted`].
    pub(in crate::tree) fn check_unmounted(&self, id: &str) -> Result<()> {
        match &self.mounted {
            Some(mounted) => Err(Error::Mounted { id: id.to_owned(), target: mounted.target.clone() }),
            None => Ok(()),
        }
    }

    /// Removes the device of a snapshot that is not mounted.
    ///
    /// # Errors
    /// [`Error::Mounted`]; [`Error::Busy`] if it is open longer than `timeout`.
    pub(in crate::tree) fn deactivate(&mut self, pool: &TreePool, id: &str, timeout: Duration) -> Result<()> {
        self.check_unmounted(id)?;
        if let Some(volume) = &self.volume {
            pool.retry_while_busy_within(volume.name(), timeout, || pool.remove_device(volume))?;
            if self.removal_deferred {
                // The kernel may have been faster, and cannot remove the node.
                pool.dm().remove_node(volume.name())?;
            }
        }
        *self = Self::default();
        Ok(())
    }

    /// Removes the device now, or when it is closed.
    ///
    /// # Errors
    /// [`Error::Mounted`]; before device-mapper interface 4.27 as [`deactivate`](Self::deactivate).
    pub(in crate::tree) fn deactivate_deferred(
        &mut self,
        pool: &TreePool,
        id: &str,
        timeout: Duration,
    ) -> Result<Removal> {
        self.check_unmounted(id)?;
        let Some(volume) = self.volume.clone().filter(|_| !self.removal_deferred) else {
            return Ok(if self.removal_deferred { Removal::Deferred } else { Removal::Removed });
        };
        let removal = match volume.deactivate_deferred() {
            // Another program renamed or removed it.
            Err(error) if error.errno() == Some(Errno::ENXIO) => match pool.find(volume.id())? {
                Some(found) => found.deactivate_deferred()?,
                None => Removal::Removed,
            },
            Err(thin::Error::Dm(dm::Error::TooOld { .. })) => {
                return self.deactivate(pool, id, timeout).map(|()| Removal::Removed);
            }
            removal => removal?,
        };
        *self = Self::default();
        if removal == Removal::Deferred {
            (self.volume, self.removal_deferred) = (Some(volume), true);
        }
        Ok(removal)
    }

    /// Cancels a deferred removal. If the kernel has removed the device already, the snapshot is inactive after this.
    pub(in crate::tree) fn cancel_removal(&mut self, pool: &TreePool, timeout: Duration) -> Result<()> {
        let Some(volume) = self.volume.as_ref().filter(|_| self.removal_deferred) else { return Ok(()) };
        let mut retry = Retry::within(timeout);
        loop {
            match volume.cancel_deactivate() {
                Ok(()) => self.removal_deferred = false,
                // Going right now.
                Err(error) if error.is_busy() && retry.pause() => continue,
                Err(error) if error.errno() == Some(Errno::ENXIO) => self.forget_device(pool)?,
                Err(error) => return Err(error.into()),
            }
            return Ok(());
        }
    }

    /// The device is gone, and its node with it.
    pub(in crate::tree) fn forget_device(&mut self, pool: &TreePool) -> Result<()> {
        if let Some(volume) = std::mem::take(self).volume {
            pool.dm().remove_node(volume.name())?;
        }
        Ok(())
    }
}
