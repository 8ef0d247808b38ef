//! State, pool, and what is active in the kernel, brought to agree after whatever happened.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;

use super::active::{Slot, SlotCell};
use super::graph::Record;
use super::mount::Mounted;
use super::{SnapshotId, SnapshotTree, source, unpublished_name, volume_name};
use crate::dm::{DeviceStatus, DmFlags, DmId, DmName, DmUuid};
use crate::thin::{PoolStatus, ThinId, TransactionId};
use crate::{Error, Result};

impl SnapshotTree {
    /// Puts right what a crash or a restart left. `activated` if the pool was not active before; `volumes` it had then.
    pub(super) fn agree(&self, activated: bool, volumes: Option<BTreeSet<ThinId>>) -> Result<()> {
        self.check_generation()?;
        let mounts = self.take_over_mounts()?;
        if !activated {
            self.take_over(mounts)?;
        }
        self.sweep_nodes()?;
        let volumes = match volumes.map_or_else(|| self.volumes_in_pool(), Ok) {
            Ok(volumes) => Some(volumes),
            // The next open, or a repair, deletes what is left.
            Err(Error::MetadataSnapHeld { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(volumes) = &volumes {
            self.record_deleted(volumes)?;
        }
        self.reap_closed()?;
        self.delete_abandoned()?;
        if let Some(volumes) = &volumes {
            self.sweep_ids(volumes)?;
        }
        self.make_base(volumes.as_ref())?;
        self.check_base()?;
        match self.store.read_state(|state| self.options.wanted_data_size(state)) {
            Some(size) => self.grow_pool(size)?,
            None => self.extend_pool().map(drop)?,
        }
        self.grow_base()
    }

    /// The pool's transaction id is the state's generation, or one less: then the power went between the
    /// checkpoint and the message.
    fn check_generation(&self) -> Result<()> {
        let usage = match self.pool.status()? {
            PoolStatus::Usage(usage) => usage,
            status => return Err(source::pool_mode(&self.pool, status.mode())),
        };
        if self.hold.is_held()? {
            if usage.held_metadata_root.is_some() {
                self.pool.release_metadata_snap()?;
            }
            self.hold.clear()?;
        }
        if !self.store.read_state(|state| state.pool.follows_generation()) {
            return Ok(());
        }
        let state = self.store.read_state(|state| state.generation);
        let pool = usage.transaction_id;
        if pool.0 != state && Some(pool.0) != state.checked_sub(1) {
            return Err(Error::GenerationMismatch { state: TransactionId(state), pool });
        }
        *self.transaction_id.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = pool;
        self.settle(state)
    }

    /// Devices of this tree that a manager before this one left active.
    fn take_over(&self, mut mounts: BTreeMap<ThinId, Mounted>) -> Result<()> {
        let dm = self.pool.device_mapper();
        let names: HashMap<ThinId, (SnapshotId, bool)> = self.store.read(|graph| {
            let visible = graph.snapshots.iter().filter(|(_, snapshot)| !snapshot.deleting);
            visible.map(|(id, s)| (s.thin_id, (id.clone(), s.sealed.is_some()))).collect()
        });
        let deleting: HashSet<ThinId> = self.store.read(|graph| {
            let deleting = graph.deleting().iter().filter_map(|id| graph.snapshots.get(id));
            deleting.map(|snapshot| snapshot.thin_id).collect()
        });
        for (status, thin_id) in self.active_devices()? {
            let known = names.get(&thin_id).filter(|_| status.has_live_table());
            let Some((id, sealed)) = known else {
                // Not recorded, or never finished: the same as never made. What is to be deleted may be open.
                match dm.remove(&status.name) {
                    Err(error) if error.is_busy() && deleting.contains(&thin_id) => {}
                    Err(error) if error.is_busy() => {
                        self.patiently(&status.name, || dm.remove(&status.name))?;
                    }
                    result => result?,
                }
                continue;
            };
            // A sealed snapshot's device is read-only, any other writable. One that is open or mounted stays as it is,
            // and check() reports it.
            let read_only = status.flags.contains(DmFlags::READONLY);
            if read_only != *sealed && dm.remove(&status.name).is_ok() {
                continue;
            }
            if status.is_suspended() {
                dm.resume(&status.name)?;
            }
            dm.ensure_node(&status.name, status.number)?;
            let mut volume = self.pool.active_volume(&status.name)?;
            let name = self.volume_name(id.as_str())?;
            if *volume.name() != name {
                // A rename was interrupted, or the root has moved. Under a foreign name it works as well.
                let _ = volume.rename(&name);
            }
            let mounted = mounts.remove(&thin_id);
            let slot = Slot {
                volume: Some(volume),
                leaving: status.flags.contains(DmFlags::DEFERRED_REMOVE),
                held: mounted.is_none(),
                mounted,
                readers: 0,
            };
            self.slots().insert(id.clone(), Arc::new(SlotCell::new(slot)));
        }
        Ok(())
    }

    /// Volumes of this tree that are active, told by their uuids.
    pub(super) fn active_devices(&self) -> Result<Vec<(DeviceStatus, ThinId)>> {
        let dm = self.pool.device_mapper();
        let prefix = format!("DMTHIN-{}-", self.tree.simple());
        let mut active = Vec::new();
        // The kernel sorts the others out since interface 4.45; before, the list has no uuids.
        let devices = match dm.version().minor {
            45.. => dm.list_matching(None, Some(&DmUuid::new(&prefix)?))?,
            _ => dm.list()?,
        };
        for device in devices {
            // It can go at any time.
            let Some(status) = dm.find(DmId::Number(device.number))? else { continue };
            let uuid = status.uuid;
            let id = uuid.as_ref().and_then(|uuid| uuid.to_str()?.strip_prefix(&prefix));
            if let Some(id) = id.and_then(|id| id.parse().ok()) {
                active.push((status, id));
            }
        }
        Ok(active)
    }

    /// Nodes of this tree's devices without the device: left by a process that died in between.
    pub(super) fn sweep_nodes(&self) -> Result<()> {
        self.stale_nodes()?.iter().try_for_each(|name| self.pool.device_mapper().remove_node(name))
    }

    pub(super) fn stale_nodes(&self) -> Result<Vec<DmName>> {
        let dm = self.pool.device_mapper();
        let published = volume_name(&self.options.name_prefix, &self.root, "")?;
        let unpublished = unpublished_name(&self.options.name_prefix, &self.root, "")?;
        let names = self.options.kernel.mapper_node_names().map_err(|errno| Error::Io {
            action: "list",
            path: "/dev/mapper".into(),
            source: errno.into(),
        })?;
        let mut stale = Vec::new();
        for name in names {
            // One that no device can have is nobody's.
            let Ok(name) = DmName::from_bytes(name.as_bytes()) else { continue };
            if ![published, unpublished].iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes())) {
                continue;
            }
            if dm.find((&name).into())?.is_none() {
                stale.push(name);
            }
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
        deleted.into_iter().try_for_each(|id| self.store.append(&Record::Deleted { id }).map(drop))
    }

    /// Deletes what the pool got without a record.
    fn sweep_ids(&self, volumes: &BTreeSet<ThinId>) -> Result<()> {
        if self.store.read_state(|state| state.pool.source.is_shared()) {
            return Ok(());
        }
        let unknown: Vec<_> = self.store.read(|graph| {
            let unknown = graph.ids.ids().filter(|id| volumes.contains(id) && !graph.uses(*id));
            unknown.collect()
        });
        unknown.into_iter().try_for_each(|id| self.delete_id(id))
    }

    /// Delete a thin device, or find that there is none.
    pub(super) fn delete_id(&self, id: ThinId) -> Result<()> {
        match self.pool.delete(id) {
            Err(error) if error.errno() != Some(Errno::ENODATA) => Err(error),
            _ => Ok(()),
        }
    }
}
