//! State, pool, and what is active in the kernel, brought to agree after whatever happened.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;
use uuid::Uuid;

use crate::dm::{DeviceMapper, DeviceStatus, DmFlags, DmId, DmName, DmUuid};
use crate::thin;
use crate::thin::{PoolMode, PoolStatus, ThinId};
use crate::tree::live::active::{ActiveCell, ActiveSnapshot};
use crate::tree::live::mount::Mounted;
use crate::tree::state::graph::{FsState, Record};
use crate::tree::state::identity::{self, Volumes};
use crate::tree::{Error, Result};
use crate::tree::{SnapshotId, SnapshotTree, names::unpublished_name, names::volume_name};

impl SnapshotTree {
    /// Puts right what a crash or a restart left; `volumes` and `active` devices as they were recognised.
    pub(in crate::tree) fn reconcile(
        &self,
        volumes: Option<&Volumes>,
        active: &[(DeviceStatus, ThinId)],
    ) -> Result<()> {
        let mode = self.read_transaction_id()?;
        let base = self.store.read(|graph| graph.base.as_ref().map(|base| base.fs));
        let is_made = base.is_some_and(|fs| fs != FsState::Making);
        // Without a commit the tree is for looking, reading and removing from the state.
        let committed = |result| match result {
            Err(Error::Thin(thin::Error::PoolMode { .. })) if is_made => Ok(false),
            result => result.map(|()| true),
        };
        let mut commits = committed(self.bring_to_generation())?;
        if let Some(volumes) = volumes.filter(|_| commits) {
            // Before a device is resumed: a write to an origin would put in doubt what was made of it.
            let settled = self.record_deleted(&volumes.present).and_then(|()| self.settle_unknown(volumes));
            commits = committed(settled)?;
        }
        let mounts = self.take_over_mounts()?;
        self.take_over(active, mounts, mode)?;
        self.sweep_nodes()?;
        if commits { committed(self.finish(volumes)).map(drop) } else { Ok(()) }
    }

    /// What comes last, in a pool that can commit.
    fn finish(&self, volumes: Option<&Volumes>) -> Result<()> {
        self.reap_closed()?;
        let present = volumes.map(|volumes| &volumes.present);
        self.delete_abandoned()?;
        self.make_base(present)?;
        self.check_base()?;
        match self.store.read_state(|state| self.options.wanted_data_size(state)) {
            Some(size) => self.grow_pool(size)?,
            None => self.extend_pool().map(drop)?,
        }
        self.grow_base()?;
        match volumes {
            Some(_) => self.begin_generation(),
            // What may be in the window is still to be judged.
            None => self.raise_generation(),
        }
    }

    /// Reads what the pool says now that it is active, and its mode. What this tree's last manager held of it is
    /// released.
    fn read_transaction_id(&self) -> Result<PoolMode> {
        self.hold.release_left(&self.pool)?;
        let status = self.pool.status()?;
        if let PoolStatus::Usage(usage) = &status {
            self.generation().transaction_id = usage.transaction_id;
        }
        Ok(status.mode())
    }

    /// The pool's volumes as they are now.
    pub(in crate::tree) fn read_volumes(&self) -> Result<Volumes> {
        let active = self.active_devices()?.into_iter().map(|(_, id)| id).collect();
        self.read_metadata(|metadata| {
            Ok(self.store.read(|graph| Volumes::read(metadata, graph, &active, false))?)
        })
    }

    /// Brings the pool to the state's generation, and so learns whether it can commit: without space for that it is
    /// extended first, if it may be. A tree without a nonce gets one.
    fn bring_to_generation(&self) -> Result<()> {
        let (nonce, generation, shared) =
            self.store.read_state(|state| (state.nonce, state.generation, state.pool.source.is_shared()));
        if shared {
            return Ok(());
        }
        let found = identity::generation(self.generation().transaction_id);
        if found > generation {
            // An older state that is accepted: it goes on where the pool is.
            self.store.commit(&Record::Generation { generation: found })?;
        }
        if nonce == 0 {
            self.store.set_nonce(identity::new_nonce())?;
        }
        match self.sync_transaction_id() {
            Err(Error::Thin(thin::Error::PoolMode { .. })) => {
                self.extend_pool()?;
                self.sync_transaction_id()
            }
            result => result,
        }
    }

    /// Devices of this tree that a manager before this one left active.
    fn take_over(
        &self,
        active: &[(DeviceStatus, ThinId)],
        mut mounts: BTreeMap<ThinId, Mounted>,
        mode: PoolMode,
    ) -> Result<()> {
        let dm = self.pool.device_mapper();
        let names: HashMap<ThinId, (SnapshotId, bool)> = self.store.read(|graph| {
            let visible = graph.snapshots.iter().filter(|(_, snapshot)| !snapshot.deleting);
            visible.map(|(id, s)| (s.thin_id, (id.clone(), s.sealed.is_some()))).collect()
        });
        // To be deleted or kept; it may be open.
        let may_be_open: HashSet<ThinId> = self.store.read(|graph| {
            let deleting = graph.deleting().iter().filter_map(|id| graph.snapshots.get(id));
            deleting.map(|snapshot| snapshot.thin_id).chain(graph.orphans.iter().copied()).collect()
        });
        for (status, thin_id) in active {
            let uuid = self.volume_uuid(*thin_id)?;
            let known = names.get(thin_id).filter(|_| status.has_live_table());
            let Some((id, sealed)) = known else {
                // Not recorded, or never finished: the same as never made.
                match dm.remove(&uuid) {
                    Err(error) if error.is_busy() && may_be_open.contains(thin_id) => {}
                    Err(error) if error.is_busy() => {
                        self.retry_while_busy(&status.name, || Ok(dm.remove(&uuid)?))?
                    }
                    Err(error) if error.errno() == Some(Errno::ENXIO) => {}
                    result => result?,
                }
                continue;
            };
            // A sealed snapshot's device is read-only, any other writable. One that is open or mounted stays as it is,
            // and check() reports it.
            let read_only = status.flags.contains(DmFlags::READONLY);
            if read_only != *sealed && dm.remove(&uuid).is_ok() {
                continue;
            }
            if status.is_suspended() {
                dm.resume(&uuid)?;
            }
            let found = match mode {
                // Then the kernel does not tell the tables of its volumes.
                PoolMode::Fail => Some(self.pool.volume(status, *thin_id)),
                _ => self.find_volume(*thin_id)?,
            };
            // Gone since it was recognised, or renamed.
            let Some(mut volume) = found else { continue };
            dm.ensure_node(volume.name(), volume.number())?;
            let name = self.volume_name(id.as_str())?;
            if *volume.name() != name {
                // A rename was interrupted, or the root has moved. Under a foreign name it works as well.
                let _ = volume.rename(&name);
            }
            let mounted = mounts.remove(thin_id);
            let slot = ActiveSnapshot {
                volume: Some(volume),
                removal_deferred: status.flags.contains(DmFlags::DEFERRED_REMOVE),
                pinned: mounted.is_none(),
                mounted,
                readers: 0,
            };
            self.slots().insert(id.clone(), Arc::new(ActiveCell::new(slot)));
        }
        Ok(())
    }

    pub(in crate::tree) fn active_devices(&self) -> Result<Vec<(DeviceStatus, ThinId)>> {
        active_devices(self.pool.device_mapper(), self.tree)
    }

    /// Nodes of this tree's devices without the device: left by a process that died in between.
    pub(in crate::tree) fn sweep_nodes(&self) -> Result<()> {
        Ok(self.stale_nodes()?.iter().try_for_each(|name| self.pool.device_mapper().remove_node(name))?)
    }

    pub(in crate::tree) fn stale_nodes(&self) -> Result<Vec<DmName>> {
        let dm = self.pool.device_mapper();
        let published = volume_name(&self.options.name_prefix, &self.root, "")?;
        let unpublished = unpublished_name(&self.options.name_prefix, &self.root, "")?;
        let names = || {
            self.options.kernel.mapper_node_names().map_err(|errno| Error::Io {
                action: "list",
                path: "/dev/mapper".into(),
                source: errno.into(),
            })
        };
        let mut stale = Vec::new();
        for name in names()? {
            // Not a valid DM name, so not ours: skip.
            let Ok(name) = DmName::from_bytes(name.as_bytes()) else { continue };
            if ![published, unpublished].iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes())) {
                continue;
            }
            if dm.find(&name)?.is_none() {
                stale.push(name);
            }
        }
        if !stale.is_empty() {
            // A device that was deactivated since the nodes were listed has taken its node with it.
            let left = names()?;
            stale.retain(|name| left.iter().any(|left| left.as_bytes() == name.as_bytes()));
        }
        Ok(stale)
    }

    /// Records removals that the pool has carried out: deleting once more would be an error in the kernel's log.
    fn record_deleted(&self, volumes: &BTreeSet<ThinId>) -> Result<()> {
        let deleted: Vec<_> = self.store.read(|graph| {
            let deleting = graph.deleting().iter();
            let gone =
                |id: &&SnapshotId| graph.snapshots.get(*id).is_some_and(|s| !volumes.contains(&s.thin_id));
            deleting.filter(gone).cloned().collect()
        });
        deleted.into_iter().try_for_each(|id| self.store.append(&Record::Deleted { id }).map(drop))?;
        // A volume that was never published, or a receive that was discarded.
        let unmade: Vec<_> = self.store.read(|graph| {
            let gone = graph.making.iter().map(|making| making.thin_id).filter(|id| !volumes.contains(id));
            gone.collect()
        });
        unmade.into_iter().try_for_each(|thin_id| self.store.append(&Record::Unmade { thin_id }).map(drop))
    }

    /// Deletes volumes that were never acknowledged, and keeps those in doubt.
    fn settle_unknown(&self, volumes: &Volumes) -> Result<()> {
        if self.store.read_state(|state| state.pool.source.is_shared()) {
            return Ok(());
        }
        let keep: Vec<_> = match self.options.keeps_all() {
            true => volumes.leftovers.iter().copied().chain(self.store.abandoned()).collect(),
            false => {
                volumes.leftovers.iter().try_for_each(|id| self.delete_id(*id))?;
                Vec::new()
            }
        };
        let mut keep = keep.iter().chain(&volumes.orphans).chain(&volumes.used);
        keep.try_for_each(|&thin_id| self.store.commit(&Record::Orphan { thin_id }))
    }

    /// Deletes a volume that is not active and under a record, and records that.
    ///
    /// In a shared pool the id may be another user's as soon as the volume is deleted, and that cannot be detected:
    /// so it is deleted once, after it is recorded. What a crash or a failure leaves is reported as any volume that
    /// the tree does not know.
    pub(in crate::tree) fn delete_recorded(&self, thin_id: ThinId, done: &Record) -> Result<()> {
        if self.store.read_state(|state| state.pool.source.is_shared()) {
            let mode = self.pool.status()?.mode();
            if !mode.is_sound() {
                let (pool, consequence) = (self.pool.name().to_string(), "nothing can be deleted");
                return Err(Error::Thin(thin::Error::PoolMode { pool, mode, consequence }));
            }
            self.store.commit(done)?;
            return self.delete_id(thin_id);
        }
        self.delete_id(thin_id)?;
        // Durable with the next change: until then an open records once more what is not there.
        self.store.append(done).map(drop)
    }

    /// Deletes a thin device; none of that id is fine.
    pub(in crate::tree) fn delete_id(&self, id: ThinId) -> Result<()> {
        match self.pool.delete(id) {
            Err(error) if error.errno() != Some(Errno::ENODATA) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Volumes of a tree that are active, told by their uuids.
pub(in crate::tree) fn active_devices(dm: &DeviceMapper, tree: Uuid) -> Result<Vec<(DeviceStatus, ThinId)>> {
    let prefix = format!("DMTHIN-{}-", tree.simple());
    let mut active = Vec::new();
    // The kernel sorts the others out since interface 4.45; before, the list has no uuids.
    let devices = match dm.version().minor {
        45.. => dm.list_matching(None, Some(&DmUuid::new(&prefix)?))?,
        _ => dm.list()?,
    };
    for device in devices {
        // It can go at any time.
        let Some(status) = dm.find(DmId::Number(device.number))? else { continue };
        let id = status.uuid.as_ref().and_then(|uuid| uuid.to_str()?.strip_prefix(&prefix)?.parse().ok());
        active.extend(id.map(|id| (status, id)));
    }
    Ok(active)
}
