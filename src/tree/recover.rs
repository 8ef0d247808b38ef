//! State, pool, and what is active in the kernel, brought to agree after whatever happened.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;

use super::active::{Slot, SlotCell};
use super::graph::Record;
use super::identity::{self, Volumes};
use super::mount::Mounted;
use super::{SnapshotId, SnapshotTree, source, unpublished_name, volume_name};
use crate::dm::{DeviceStatus, DmFlags, DmId, DmName, DmUuid};
use crate::thin::{PoolMode, PoolStatus, ThinId};
use crate::{Error, Result, StateAge};

impl SnapshotTree {
    /// Puts right what a crash or a restart left. `activated` if the pool was not active before; `volumes` it had then.
    pub(super) fn agree(&self, activated: bool, volumes: Option<Volumes>) -> Result<()> {
        let mode = self.recognise_pool()?;
        let volumes = match volumes.map_or_else(|| self.read_volumes(), Ok) {
            Ok(volumes) => Some(volumes),
            // The next open, or a repair, deletes what is left.
            Err(Error::MetadataSnapHeld { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(volumes) = &volumes {
            self.refuse_older_state(volumes)?;
        }
        let mounts = self.take_over_mounts()?;
        if !activated {
            self.take_over(mounts)?;
        }
        self.sweep_nodes()?;
        match self.bring_to_generation(mode) {
            // For looking, reading and removing from the state.
            Err(Error::PoolMode { .. }) if !mode.is_sound() => return Ok(()),
            result => result?,
        }
        if !mode.is_sound() && !self.pool.status()?.mode().is_sound() {
            return Ok(());
        }
        if let Some(volumes) = &volumes {
            self.record_deleted(&volumes.present)?;
        }
        self.reap_closed()?;
        self.delete_abandoned(volumes.as_ref().map(|volumes| &volumes.present))?;
        if let Some(volumes) = &volumes {
            self.settle_unknown(volumes)?;
        }
        self.make_base(volumes.as_ref().map(|volumes| &volumes.present))?;
        self.check_base()?;
        match self.store.read_state(|state| self.options.wanted_data_size(state)) {
            Some(size) => self.grow_pool(size)?,
            None => self.extend_pool().map(drop)?,
        }
        self.grow_base()?;
        self.raise_generation()
    }

    /// The pool's mode. What this tree's last manager held of it is released.
    fn recognise_pool(&self) -> Result<PoolMode> {
        let usage = match self.pool.status()? {
            PoolStatus::Usage(usage) => usage,
            status => return Err(source::pool_mode(&self.pool, status.mode())),
        };
        // A pool that takes no messages keeps it, and the note stays for the open that can release it.
        if (usage.mode.is_sound() || usage.held_metadata_root.is_none()) && self.hold.is_held()? {
            if usage.held_metadata_root.is_some() {
                self.pool.release_metadata_snap()?;
            }
            self.hold.clear()?;
        }
        self.generation().transaction_id = usage.transaction_id;
        Ok(usage.mode)
    }

    /// The pool's volumes as they are now.
    pub(super) fn read_volumes(&self) -> Result<Volumes> {
        self.read_metadata(|metadata| self.store.read(|graph| Volumes::read(metadata, graph)))
    }

    /// A volume without a record that was written to was handed out once.
    fn refuse_older_state(&self, volumes: &Volumes) -> Result<()> {
        let shared = self.store.read_state(|state| state.pool.source.is_shared());
        match volumes.written.first() {
            Some(&thin_id) if !shared && !self.options.accept_older_state => {
                Err(Error::StateOlderThanPool { evidence: StateAge::UnknownVolume { thin_id } })
            }
            _ => Ok(()),
        }
    }

    /// Brings the pool to the state's generation; a tree without a nonce gets one. A pool without space for that is
    /// extended first, if it may be.
    fn bring_to_generation(&self, mode: PoolMode) -> Result<()> {
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
            Err(Error::PoolMode { .. }) => {
                self.extend_pool()?;
                self.sync_transaction_id()
            }
            // It was not told anything.
            Ok(()) if !mode.is_sound() => self.extend_pool().map(drop),
            result => result,
        }
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

    /// Deletes volumes that nobody was told of, and keeps those in doubt.
    fn settle_unknown(&self, volumes: &Volumes) -> Result<()> {
        if self.store.read_state(|state| state.pool.source.is_shared()) {
            return Ok(());
        }
        let accepted = self.options.accept_older_state;
        let (delete, keep) =
            if accepted { (&[][..], &volumes.leftovers[..]) } else { (&volumes.leftovers[..], &[][..]) };
        delete.iter().try_for_each(|id| self.delete_id(*id))?;
        let keep = keep.iter().chain(&volumes.orphans).chain(&volumes.written);
        keep.copied().try_for_each(|thin_id| self.store.commit(&Record::Orphan { thin_id }))
    }

    /// Delete a thin device, or find that there is none.
    pub(super) fn delete_id(&self, id: ThinId) -> Result<()> {
        match self.pool.delete(id) {
            Err(error) if error.errno() != Some(Errno::ENODATA) => Err(error),
            _ => Ok(()),
        }
    }
}
