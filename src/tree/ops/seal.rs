//! Sealed snapshots: their content does not change any more, and has an identity.

use uuid::Uuid;

use crate::kernel::Access;
use crate::retry::Retry;
use crate::thin::ThinVolume;
use crate::tree::error::busy;
use crate::tree::live::active::ActiveSnapshot;
use crate::tree::live::base_check;
use crate::tree::live::volume_file::VolumeFile;
use crate::tree::ops::activate::Needs;
use crate::tree::ops::family::check_childless;
use crate::tree::state::record::{FsState, Record, Snapshot};
use crate::tree::{Error, Result, trace};
use crate::tree::{Filesystem, Labels, SnapshotId, SnapshotTree};

impl SnapshotTree {
    /// Seals a snapshot: its content is final, and the returned UUID identifies it, in this tree and in each tree that
    /// receives it. Durable when this returns. A snapshot that is sealed already keeps its UUID.
    ///
    /// What was written to it is flushed, and it is deactivated. From then on its device is read-only and it is mounted
    /// read-only. If the log of its file system may not be clean, because the snapshot was made of a mounted one, the file
    /// system is mounted and unmounted once before: on a read-only device its log could not be replayed.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// let uuid = tree.seal("image")?;
    /// assert_eq!(tree.get("image")?.sealed, Some(uuid));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`]; [`Error::Mounted`]; [`Error::Busy`] if its device is open; [`Error::DirtyLog`] if the
    /// log of its file system cannot be replayed.
    pub fn seal(&self, id: impl AsRef<str>) -> Result<Uuid> {
        let id = id.as_ref();
        let seal = |active: &mut ActiveSnapshot, snapshot: &Snapshot| {
            if let Some(uuid) = snapshot.sealed {
                return Ok(uuid);
            }
            let time = Some(self.finish_content(active, id, snapshot)?);
            let uuid = Uuid::new_v4();
            self.store.commit(&Record::Sealed { id: SnapshotId::new(id)?, sealed: Some(uuid), time })?;
            Ok(uuid)
        };
        let sealed = trace::call("seal", id, || self.with_snapshot(id, seal))?;
        self.compact();
        Ok(sealed)
    }

    /// Seals a snapshot under another id and with these labels, in one step: a crash leaves all of it or nothing. The UUID
    /// that identifies its content is returned. What was made from it, and what is mounted, is as after
    /// [`rename`](Self::rename) and [`seal`](Self::seal).
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// use dm_thin::tree::{Labels, Parent};
    ///
    /// tree.add("extract-7", Parent::Base)?;
    /// tree.mount("extract-7", "/mnt")?;
    /// // … unpack a layer …
    /// tree.unmount("extract-7")?;
    /// let mut labels = Labels::new();
    /// labels.set("example.com/layer", "sha256:2c26b46b")?;
    /// tree.commit("extract-7", "layer-1", labels)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::InvalidName`], [`Error::SnapshotExists`] for `to`, [`Error::Sealed`];
    /// [`Error::Mounted`]; [`Error::Busy`] if its device is open; [`Error::DirtyLog`]. Nothing has changed then.
    pub fn commit(&self, from: impl AsRef<str>, to: impl AsRef<str>, labels: Labels) -> Result<Uuid> {
        let (from, to) = (SnapshotId::new(from.as_ref())?, SnapshotId::new(to.as_ref())?);
        if from == to {
            self.get(from.as_str())?;
            return Err(Error::SnapshotExists { id: to.to_string() });
        }
        let commit = |active: &mut ActiveSnapshot, snapshot: &Snapshot| {
            if snapshot.sealed.is_some() {
                return Err(Error::Sealed { id: from.to_string() });
            }
            let time = self.finish_content(active, from.as_str(), snapshot)?;
            let sealed = Uuid::new_v4();
            let record = Record::Committed { id: from.clone(), to: to.clone(), labels, sealed, time };
            self.rename_locked(active, &record, &from, &to)?;
            Ok(sealed)
        };
        trace::call("commit", from.as_str(), || self.with_new_id(&from, &to, commit))
    }

    /// Makes durable what was written to a snapshot, and deactivates it, so that nobody writes to it. Returns the pool's
    /// time.
    fn finish_content(&self, active: &mut ActiveSnapshot, id: &str, snapshot: &Snapshot) -> Result<u32> {
        active.check_unmounted(id)?;
        let was_active = active.volume.is_some();
        self.activate_as(active, id, snapshot, Needs::Write)?;
        let grows = || self.store.read(|graph| graph.get(id).is_some_and(|it| it.fs == FsState::Growing));
        let mut retry = Retry::within(self.options.busy_timeout);
        while grows() {
            // It was open, so that its file system could not be grown. It is when the device is closed.
            let pinned = active.pinned;
            self.deactivate_locked(active, id)?;
            self.activate_as(active, id, snapshot, Needs::Write)?;
            active.pinned = pinned;
            if let Some(volume) = active.volume.as_ref().filter(|_| grows() && !retry.pause()) {
                return Err(busy(volume.name(), 1));
            }
        }
        let flushed = active.volume.as_ref().map_or(Ok(()), |volume| {
            self.clean_log(volume, id)?;
            // The pool may not have committed what was written last, through a descriptor that is closed now.
            VolumeFile::open(self.options.kernel.clone(), volume, Access::READ_WRITE)?.sync()
        });
        if flushed.is_ok() || !was_active {
            self.deactivate_locked(active, id)?;
        }
        flushed?;
        Ok(self.pool.thin.time()?)
    }

    /// Makes a sealed snapshot writable again. It is deactivated, and forgets the identity of its content, so that it
    /// is no base of a stream any more. Nothing happens to a snapshot that is not sealed.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`]; [`Error::HasChildren`], after which it may be inactive; [`Error::Mounted`]; [`Error::Busy`]
    /// if its device is open.
    pub fn unseal(&self, id: impl AsRef<str>) -> Result<()> {
        let id = id.as_ref();
        self.with_snapshot(id, |active, snapshot| {
            if snapshot.sealed.is_none() {
                return Ok(());
            }
            self.store.recorded(|recorded| check_childless(recorded, id))?;
            self.deactivate_locked(active, id)?;
            let unsealed = Record::Sealed { id: SnapshotId::new(id)?, sealed: None, time: None };
            // A ready snapshot may have become a child meanwhile.
            self.store.commit_with(|recorded| check_childless(recorded, id).map(|()| unsealed))?;
            self.forget_ready(snapshot.thin_id);
            Ok(())
        })?;
        self.compact();
        Ok(())
    }

    /// Replays the log of a file system that may need it.
    fn clean_log(&self, volume: &ThinVolume, id: &str) -> Result<()> {
        let (kernel, filesystem) = (&*self.options.kernel, self.store.filesystem());
        if filesystem == Filesystem::None || !base_check::may_need_replay(kernel, filesystem, &volume.path())?
        {
            return Ok(());
        }
        let status = volume.device_status()?;
        if status.open_count > 0 {
            // Whoever has it open may use the file system.
            return Err(busy(&status.name, status.open_count));
        }
        let replayed = self.with_mount(volume, |_| Ok(()));
        replayed.map_err(|source| Error::DirtyLog { id: id.to_owned(), source: Box::new(source) })
    }
}
