//! The base volume: made with its file system, and grown.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use nix::errno::Errno;
use uuid::Uuid;

use crate::thin::{ActivateOptions, ThinId, ThinVolume};
use crate::tree::live::base_check;
use crate::tree::names::BASE;
use crate::tree::state::record::{Base, FsState, Record};
use crate::tree::{Error, Result};
use crate::tree::{Filesystem, SnapshotTree};
use crate::units::Bytes;

/// The directory that mkfs.ext4 makes.
const LOST_FOUND: &str = "lost+found";

impl SnapshotTree {
    /// The base. A pool that others use, too, gets one when it is first needed: a tree that is opened writes nothing to
    /// such a pool.
    pub(in crate::tree) fn base(&self) -> Result<Base> {
        let made = || self.store.read(|graph| graph.made_base().cloned());
        if let Some(base) = made() {
            return Ok(base);
        }
        let _exclusive = self.work.exclusive();
        self.check_open()?;
        self.store.filesystem().check_maker(&*self.options.kernel)?;
        self.make_base(None)?;
        made().ok_or(Error::Closed)
    }

    /// Makes the base if there is none. `true` if it was only half made before.
    pub(in crate::tree) fn make_base(&self, volumes: Option<&BTreeSet<ThinId>>) -> Result<bool> {
        let shared = self.store.is_shared();
        let (is_made, left) = self.store.read(|graph| {
            (graph.made_base().is_some(), graph.base.as_ref().map(|half_made| half_made.thin_id))
        });
        if is_made {
            return Ok(false);
        }
        // In a shared pool the id may have been deleted and be another user's since.
        if let Some(thin_id) = left.filter(|_| !shared)
            && volumes.is_none_or(|volumes| volumes.contains(&thin_id))
        {
            self.pool.delete(thin_id)?;
        }
        let is_half_made = left.is_some();
        let mut reservation = self.reserve(None)?;
        loop {
            match self.pool.thin.create_thin(reservation.thin_id) {
                Err(error) if error.is_exists() => self.reserve_another(&mut reservation)?,
                result => break result?,
            }
        }
        let (size, filesystem) = (self.options.new_base_size(), self.store.filesystem());
        let base = Base {
            thin_id: reservation.thin_id,
            size,
            filesystem,
            filesystem_uuid: Uuid::new_v4(),
            fs: if filesystem == Filesystem::None { FsState::Ready } else { FsState::Making },
        };
        reservation.commit(&Record::Base(base.clone())).inspect_err(|_| {
            // Unsynced, the record may be on disk: then the volume has to stay.
            if !reservation.unresolved {
                // Best effort: return the original error.
                let _ = self.pool.delete(base.thin_id);
            }
        })?;
        drop(reservation);
        if base.fs == FsState::Ready {
            return Ok(is_half_made);
        }
        let made = self.with_base(&base, size, |volume| {
            let (kernel, uuid) = (&*self.options.kernel, base.filesystem_uuid);
            filesystem.make(kernel, &volume.path(), uuid, &self.options.mkfs_args)?;
            let removes = filesystem == Filesystem::Ext4 && !self.options.lost_found;
            if removes { self.remove_lost_found(volume) } else { Ok(()) }
        });
        made.inspect_err(|_| {
            // The state may go with this error, a shared pool stays.
            let _ = self.pool.delete(base.thin_id);
        })?;
        self.store.commit(&Record::BaseFs { size, fs: FsState::Ready }).map(|()| is_half_made)
    }

    fn remove_lost_found(&self, volume: &ThinVolume) -> Result<()> {
        let kernel = &*self.options.kernel;
        self.with_mount(volume, |mounted| {
            match kernel.files().remove_directory(&mounted.root(kernel)?, OsStr::new(LOST_FOUND)) {
                Err(Errno::ENOENT) => Ok(()),
                result => result.map_err(Error::io("remove", mounted.target.join(LOST_FOUND))),
            }
        })
    }

    pub(in crate::tree) fn grow_base(&self) -> Result<()> {
        let Some(base) = self.store.read(|graph| graph.base.clone()) else { return Ok(()) };
        let size = self.options.wanted_base_size().unwrap_or(base.size).max(base.size);
        if size == base.size && base.fs == FsState::Ready {
            return Ok(());
        }
        if self.store.filesystem() != Filesystem::None {
            self.store.commit(&Record::BaseFs { size, fs: FsState::Growing })?;
            self.with_base(&base, size, |volume| self.grow(volume))?;
        }
        self.store.commit(&Record::BaseFs { size, fs: FsState::Ready })
    }

    /// Runs `work` with the base active.
    pub(in crate::tree) fn with_base(
        &self,
        base: &Base,
        size: Bytes,
        work: impl FnOnce(&ThinVolume) -> Result<()>,
    ) -> Result<()> {
        let volume = self.pool.activate(BASE, base.thin_id, size, &ActivateOptions::new())?;
        let worked = work(&volume);
        let removed = self.pool.deactivate(&volume);
        worked.and(removed)
    }
}

impl SnapshotTree {
    /// Compares the base's file system with the state.
    pub(in crate::tree) fn check_base(&self) -> Result<()> {
        let base = self.store.read(|graph| graph.base.clone());
        let Some(base) = base.filter(|base| base.filesystem != Filesystem::None) else { return Ok(()) };
        self.with_base(&base, base.size, |volume| {
            let found = base_check::read(&*self.options.kernel, base.filesystem, &volume.path())?;
            if found == Some(base.filesystem_uuid) {
                return Ok(());
            }
            let filesystem = base.filesystem.kernel_name().unwrap_or_default();
            Err(Error::NoFilesystem { id: None, filesystem, found })
        })
    }
}
