//! Snapshots as mounted file systems.

use std::path::Path;

use nix::errno::Errno;

use crate::abi::mount::MountFlags;
use crate::thin;
use crate::thin::{PoolMode, ThinVolume};
use crate::tree::live::active::ActiveSnapshot;
use crate::tree::live::mount::{Mounted, Where};
use crate::tree::live::mount_options::{MountCall, MountOptions};
use crate::tree::ops::activate::Needs;
use crate::tree::state::record::Snapshot;
use crate::tree::{Error, Result, trace};
use crate::tree::{SnapshotTree, holders, live::base_check};

impl SnapshotTree {
    /// Activates a snapshot and mounts it. Creates the target directory if it is missing; its parent must exist.
    /// Mounted on the same directory already, it is counted: it takes as many [`unmount`](Self::unmount)s. A sealed
    /// snapshot is mounted read-only, and gets no init layer.
    ///
    /// A symbolic link at the end of `target` is not followed; one before it only if it belongs to root or to this
    /// process's user.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::Mounted`] if it is mounted elsewhere, or another snapshot is mounted there;
    /// [`Error::InvalidOption`] if `target` is no directory; [`Error::Mount`] with the whole call. What was not active
    /// before is not active after an error.
    pub fn mount(&self, id: impl AsRef<str>, target: impl AsRef<Path>) -> Result<()> {
        self.mount_with(id, target, &MountOptions::new())
    }

    /// The same with options. Mounted already, it stays mounted as it is.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub fn mount_with(
        &self,
        id: impl AsRef<str>,
        target: impl AsRef<Path>,
        options: &MountOptions,
    ) -> Result<()> {
        let (id, target) = (id.as_ref(), target.as_ref());
        trace::call("mount", id, || self.mount_now(id, target, options))
    }

    fn mount_now(&self, id: &str, target: &Path, options: &MountOptions) -> Result<()> {
        self.with_snapshot(id, |active, snapshot| {
            self.drop_unmounted(active, snapshot)?;
            if let Some(mounted) = &mut active.mounted {
                if !self.mounts.is_on(mounted, target)? {
                    return Err(Error::Mounted { id: id.to_owned(), target: mounted.target.clone() });
                }
                // The manager that mounted it may have been killed before it was prepared.
                if let Some(volume) = &active.volume
                    && self.mounts.where_is(mounted)? == Where::OnTop
                {
                    let root = mounted.root(&*self.options.kernel)?;
                    match self.prepare(id, snapshot, volume.number(), &root) {
                        // Mounted read-only.
                        Err(error) if error.errno() == Some(Errno::EROFS) => {}
                        result => result?,
                    }
                }
                mounted.count += 1;
                return Ok(());
            }
            let options = view(snapshot, options);
            let is_read_only = options.flags.contains(MountFlags::RDONLY);
            let needs = if is_read_only { Needs::Any } else { Needs::Write };
            self.activate_as(active, id, snapshot, needs)?;
            let Some(volume) = &active.volume else { return Err(Error::Closed) };
            let mounted = self.mount_volume(volume, target, false, &options);
            let mounted = mounted.map_err(|error| self.why_not_mounted(id, volume, error));
            let mounted = mounted.and_then(|mounted| {
                let root = mounted.root(&*self.options.kernel);
                let prepare = |root| match is_read_only {
                    true => Ok(()),
                    false => self.prepare(id, snapshot, volume.number(), &root),
                };
                match root.and_then(prepare) {
                    Ok(()) => Ok(mounted),
                    Err(error) => {
                        // The error of the preparation is returned; a mount that stays is taken over by the next open.
                        let _ = self.mounts.unmount(snapshot.thin_id, &mounted);
                        Err(error)
                    }
                }
            });
            match mounted {
                Ok(mounted) => {
                    active.mounted = Some(mounted);
                    Ok(())
                }
                Err(error) => {
                    if !active.is_needed() {
                        // Left active it does no harm; the first error counts.
                        let _ = self.deactivate_locked(active, id);
                    }
                    Err(error)
                }
            }
        })
    }

    /// Activates a snapshot, and returns how it is to be mounted: for a program that mounts it in a mount namespace of its
    /// own. The tree does not know of that mount; [`deactivate`](Self::deactivate) fails as long as it is there. An init
    /// layer is not applied.
    ///
    /// # Errors
    /// As [`activate`](Self::activate); [`Error::InvalidOption`] in a tree without file systems.
    pub fn mount_call(&self, id: impl AsRef<str>, options: &MountOptions) -> Result<MountCall> {
        let id = id.as_ref();
        self.with_snapshot(id, |active, snapshot| {
            let options = view(snapshot, options);
            let needs = if options.flags.contains(MountFlags::RDONLY) { Needs::Any } else { Needs::Write };
            let path = self.activate_as(active, id, snapshot, needs)?;
            let call = self.mounts.describe(&path, &options)?;
            active.pinned = true;
            Ok(call)
        })
    }

    /// Undoes one [`mount`](Self::mount). The last one unmounts the file system, removes the directory
    /// if mount made it, and deactivates the snapshot unless [`activate`](Self::activate) was called: one
    /// step for every other caller.
    ///
    /// # Errors
    /// [`Error::NotMounted`]; [`Error::MountInUse`] if files on it are open, [`Error::Covered`] if another file system
    /// is mounted over it: it stays mounted.
    /// [`Error::Busy`] if it is unmounted, but a copy of the mount in another namespace still
    /// has it open: [`deactivate`](Self::deactivate) can be tried again.
    pub fn unmount(&self, id: impl AsRef<str>) -> Result<()> {
        let id = id.as_ref();
        trace::call("unmount", id, || self.unmount_now(id))
    }

    fn unmount_now(&self, id: &str) -> Result<()> {
        self.with_snapshot(id, |active, snapshot| {
            let mounted = active.mounted.as_mut().ok_or_else(|| Error::NotMounted { id: id.to_owned() })?;
            if mounted.count > 1 {
                mounted.count -= 1;
                return Ok(());
            }
            self.mounts.unmount(snapshot.thin_id, mounted).map_err(|error| match error {
                Error::Mount(refused) if refused.errno == Errno::EBUSY => {
                    let (id, target) = (id.to_owned(), mounted.target.clone());
                    let holders = holders::of_mount(&*self.options.kernel, mounted.id().device, &target);
                    Error::MountInUse { id, target, holders }
                }
                error => error,
            })?;
            active.mounted = None;
            if active.is_needed() {
                Ok(())
            } else if self.options.deferred_removal {
                active.deactivate_deferred(&self.pool, id, self.options.busy_timeout).map(drop)
            } else {
                self.deactivate_locked(active, id)
            }
        })
    }

    /// The error of a failed mount, more precise where the state of the pool or of the volume explains it.
    pub(in crate::tree) fn why_not_mounted(&self, id: &str, volume: &ThinVolume, error: Error) -> Error {
        let Error::Mount(refused) = &error else { return error };
        match refused.errno {
            // What a full pool answers to a file system that replays its journal.
            Errno::EIO | Errno::ENOSPC => match self.pool.thin.status() {
                Ok(status) if status.mode() == PoolMode::OutOfDataSpace => {
                    let (pool, mode) = (self.pool.thin.name().to_string(), status.mode());
                    let consequence =
                        "a file system on it cannot be mounted; remove snapshots or grow the pool";
                    thin::Error::PoolMode { pool, mode, consequence }.into()
                }
                _ => error,
            },
            Errno::EINVAL | Errno::EUCLEAN => {
                match base_check::read(&*self.options.kernel, self.store.filesystem(), &volume.path()) {
                    Ok(None) => {
                        let filesystem = self.store.filesystem().kernel_name().unwrap_or_default();
                        Error::NoFilesystem { id: Some(id.to_owned()), filesystem, found: None }
                    }
                    _ => error,
                }
            }
            _ => error,
        }
    }

    /// Grows the file system of an active volume to the volume's size, through a mount of its own.
    pub(in crate::tree) fn grow(&self, volume: &ThinVolume) -> Result<()> {
        self.with_mount(volume, |mounted| {
            self.store.filesystem().grow(&*self.options.kernel, &volume.path(), &mounted.target)
        })
    }

    /// Runs `work` with an active volume mounted where no caller looks. A mount that a killed manager leaves is taken down
    /// by the next one.
    pub(in crate::tree) fn with_mount<T>(
        &self,
        volume: &ThinVolume,
        work: impl FnOnce(&Mounted) -> Result<T>,
    ) -> Result<T> {
        let target = self.root.current_path().join(format!("grow-{}", volume.id()));
        let mounted = self.mount_volume(volume, &target, true, &MountOptions::new())?;
        let worked = work(&mounted);
        let unmounted = self.mounts.unmount_temporary(volume.id(), &mounted, self.options.busy_timeout);
        worked.and_then(|worked| unmounted.map(|()| worked))
    }

    fn mount_volume(
        &self,
        volume: &ThinVolume,
        target: &Path,
        temporary: bool,
        options: &MountOptions,
    ) -> Result<Mounted> {
        self.mounts.mount(volume, target, temporary, options, |other| {
            let name = self.store.read(|graph| {
                let found = graph.snapshots.iter().find(|(_, snapshot)| snapshot.thin_id == other);
                found.map(|(id, _)| id.to_string())
            });
            name.unwrap_or_else(|| format!("(volume {other})"))
        })
    }

    /// Forgets a mount that another program unmounted.
    pub(in crate::tree) fn drop_unmounted(
        &self,
        active: &mut ActiveSnapshot,
        snapshot: &Snapshot,
    ) -> Result<()> {
        if let Some(mounted) = &active.mounted
            && self.mounts.where_is(mounted)? == Where::Gone
        {
            self.mounts.forget(snapshot.thin_id, &mounted.place);
            active.mounted = None;
        }
        Ok(())
    }
}

/// A sealed snapshot is mounted read-only.
fn view(snapshot: &Snapshot, options: &MountOptions) -> MountOptions {
    let sealed = if snapshot.sealed.is_some() { MountFlags::RDONLY } else { MountFlags::empty() };
    options.clone().flags(sealed)
}
