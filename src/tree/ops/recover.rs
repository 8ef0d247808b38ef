//! State, pool, and what is active in the kernel, brought to agree after whatever happened.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use nix::errno::Errno;

use crate::dm::{DeviceStatus, DmFlags};
use crate::thin;
use crate::thin::{PoolMode, ThinId};
use crate::tree::SnapshotTree;
use crate::tree::live::active::ActiveSnapshot;
use crate::tree::live::mount::Mounted;
use crate::tree::ops::resize::grow_device;
use crate::tree::state::graph::Graph;
use crate::tree::state::identity::{self, Volumes};
use crate::tree::state::record::{FsState, Record};
use crate::tree::{Error, Recovered, Result};

impl SnapshotTree {
    /// Puts right what a crash or a restart left; `volumes` and `active` devices as they were recognised.
    pub(in crate::tree) fn reconcile(
        &self,
        volumes: Option<&Volumes>,
        active: &[(DeviceStatus, ThinId)],
        recovered: &mut Vec<Recovered>,
    ) -> Result<()> {
        // What this tree's last manager held of the pool is released.
        if self.pool.hold().release_left(&self.pool.thin)? {
            recovered.push(Recovered::MetadataSnapReleased);
        }
        let mode = self.pool.generation.read(&self.pool.thin)?;
        self.complete_additions(volumes, recovered)?;
        let awaits_base = self.store.awaits_base();
        // Without a commit the tree is for looking, reading and removing from the state.
        let committed = |result| match result {
            Err(Error::Thin(thin::Error::PoolMode { .. })) if !awaits_base => Ok(false),
            result => result.map(|()| true),
        };
        let mut commits = committed(self.bring_to_generation())?;
        if let Some(volumes) = volumes.filter(|_| commits) {
            // Before a device is resumed: a write to an origin would put in doubt what was made of it.
            let settled = self
                .record_deleted(&volumes.present, recovered)
                .and_then(|()| self.settle_unknown(volumes, recovered));
            commits = committed(settled)?;
        }
        let mounts = self.mounts.take_over(self.options.busy_timeout)?;
        self.take_over(active, mounts, mode, recovered)?;
        self.pool.sweep_nodes()?;
        if commits { committed(self.finish(volumes, recovered)).map(drop) } else { Ok(()) }
    }

    /// What comes last, in a pool that can commit.
    fn finish(&self, volumes: Option<&Volumes>, recovered: &mut Vec<Recovered>) -> Result<()> {
        if !self.options.background_threads {
            self.reap_closed(&self.work.exclusive(), None)?;
        }
        let present = volumes.map(|volumes| &volumes.present);
        let unmade = self.delete_abandoned()?;
        recovered.extend(unmade.into_iter().map(|thin_id| Recovered::VolumeDeleted { thin_id }));
        if !self.store.awaits_base() {
            self.check_base()?;
        } else if self.make_base(present)? {
            recovered.push(Recovered::BaseMadeAnew);
        }
        match self.store.read_state(|state| self.options.wanted_data_size(state)) {
            Some(size) => self.grow_pool(size)?,
            None => self.extend_pool().map(drop)?,
        }
        self.grow_base()?;
        match volumes {
            Some(_) => self.pool.generation.begin(&self.pool.thin, &self.store),
            // What may be in the window is still to be judged.
            None => self.pool.generation.raise(&self.pool.thin, &self.store),
        }
    }

    /// The pool's volumes as they are now.
    pub(in crate::tree) fn read_volumes(&self) -> Result<Volumes> {
        let active = self.pool.active_devices()?.into_iter().map(|(_, id)| id).collect();
        self.pool.read_metadata(|metadata| {
            Ok(self.store.read(|graph| Volumes::read(metadata, graph, &active, false))?)
        })
    }

    /// Brings the pool to the state's generation, and so learns whether it can commit: without space for that it is
    /// extended first, if it may be. A tree without a nonce gets one.
    fn bring_to_generation(&self) -> Result<()> {
        let (nonce, generation) = self.store.read_state(|state| (state.nonce, state.generation));
        if self.store.is_shared() {
            return Ok(());
        }
        let found = identity::generation(self.pool.generation.transaction_id());
        if found > generation {
            // An older state that is accepted: it goes on where the pool is.
            self.store.commit(&Record::Generation { generation: found })?;
        }
        if nonce == 0 {
            self.store.set_nonce(identity::new_nonce())?;
        }
        match self.pool.generation.sync(&self.pool.thin, &self.store) {
            Err(Error::Thin(thin::Error::PoolMode { .. })) => {
                self.extend_pool()?;
                self.pool.generation.sync(&self.pool.thin, &self.store)
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
        recovered: &mut Vec<Recovered>,
    ) -> Result<()> {
        let dm = self.pool.dm();
        let snapshots = self.store.read(Graph::by_thin_id);
        // To be deleted or kept; it may be open.
        let may_be_open: HashSet<ThinId> =
            self.store.read(|graph| graph.removed.keys().chain(&graph.orphans).copied().collect());
        for (status, thin_id) in active {
            let uuid = self.pool.names.volume_uuid(*thin_id)?;
            let known = snapshots.get(thin_id).filter(|_| status.has_live_table());
            let Some((id, snapshot)) = known else {
                // Not recorded, or never finished: the same as never made.
                match dm.remove(&uuid) {
                    Err(error) if error.is_busy() && may_be_open.contains(thin_id) => continue,
                    Err(error) if error.is_busy() => {
                        self.pool.retry_while_busy(&status.name, || Ok(dm.remove(&uuid)?))?
                    }
                    Err(error) if error.errno() == Some(Errno::ENXIO) => {}
                    result => result?,
                }
                recovered.push(Recovered::DeviceRemoved { device: status.name, thin_id: *thin_id });
                continue;
            };
            // A sealed snapshot's device is read-only. One that is open or mounted stays as it is, and check() reports it.
            let read_only = status.is_read_only();
            if !read_only && snapshot.sealed.is_some() && dm.remove(&uuid).is_ok() {
                recovered.push(Recovered::DeviceRemoved { device: status.name, thin_id: *thin_id });
                continue;
            }
            if status.is_suspended() {
                dm.resume(&uuid)?;
                recovered.push(Recovered::DeviceResumed { id: id.clone() });
            }
            let found = match mode {
                // Then the kernel does not report the tables of its volumes.
                PoolMode::Fail => Some(self.pool.thin.volume(status, *thin_id)),
                _ => self.pool.find(*thin_id)?,
            };
            // Gone since it was recognised, or renamed.
            let Some(mut volume) = found else { continue };
            dm.ensure_node(volume.name(), volume.number())?;
            let name = self.pool.names.name(id.as_str())?;
            if *volume.name() != name {
                // A rename was interrupted, or the root has moved. Under a foreign name it works as well.
                let _ = volume.rename(&name);
            }
            if snapshot.fs == FsState::Growing && mode != PoolMode::Fail {
                // A resize was interrupted. If this fails the next activation does it, and check() reports it.
                let _ = grow_device(&volume, snapshot.size);
            }
            let mounted = mounts.remove(thin_id);
            let target = mounted.as_ref().map(|mounted| mounted.target.clone());
            recovered.push(Recovered::TakenOver { id: id.clone(), mounted: target });
            let active = ActiveSnapshot {
                volume: Some(volume),
                read_only,
                removal_deferred: status.flags.contains(DmFlags::DEFERRED_REMOVE),
                pinned: mounted.is_none(),
                mounted,
                readers: 0,
            };
            self.live.insert(id.clone(), active);
        }
        Ok(())
    }

    /// Publishes the snapshots that were being added and have a volume, and drops the others: they were not acknowledged.
    /// In a failed pool, which does not tell, they are published.
    fn complete_additions(&self, volumes: Option<&Volumes>, recovered: &mut Vec<Recovered>) -> Result<()> {
        let adding: Vec<_> = self
            .store
            .read(|graph| graph.adding.iter().map(|(id, snapshot)| (id.clone(), snapshot.clone())).collect());
        adding.into_iter().try_for_each(|(id, snapshot)| {
            let thin_id = snapshot.thin_id;
            let is_there = match volumes {
                Some(volumes) => volumes.present.contains(&thin_id),
                None => self.pool.may_have(thin_id, snapshot.size)?,
            };
            let (record, told) = match is_there {
                true => (Record::Added { thin_id }, Recovered::AdditionCompleted { id }),
                false => (Record::Unmade { thin_id }, Recovered::AdditionDropped { thin_id }),
            };
            self.store.append(&record)?;
            recovered.push(told);
            Ok(())
        })
    }

    /// Records removals that the pool has carried out: deleting again would put an error into the kernel's log.
    fn record_deleted(&self, volumes: &BTreeSet<ThinId>, recovered: &mut Vec<Recovered>) -> Result<()> {
        let deleted: Vec<_> = self.store.read(|graph| {
            // Never published, or a receive that was discarded.
            let making = graph.making.iter().map(|making| making.thin_id);
            making.chain(graph.removed.keys().copied()).filter(|id| !volumes.contains(id)).collect()
        });
        deleted.into_iter().try_for_each(|thin_id| {
            self.store.append(&Record::Unmade { thin_id })?;
            recovered.push(Recovered::RemovalCompleted { thin_id });
            Ok(())
        })
    }

    /// Deletes volumes that were never acknowledged, and keeps those in doubt.
    fn settle_unknown(&self, volumes: &Volumes, recovered: &mut Vec<Recovered>) -> Result<()> {
        if self.store.is_shared() {
            return Ok(());
        }
        let keep: Vec<_> = match self.options.keeps_all() {
            true => volumes.leftovers.iter().copied().chain(self.store.abandoned()).collect(),
            false => {
                volumes.leftovers.iter().try_for_each(|&thin_id| {
                    self.pool.delete(thin_id)?;
                    recovered.push(Recovered::VolumeDeleted { thin_id });
                    Ok::<_, Error>(())
                })?;
                Vec::new()
            }
        };
        let mut keep = keep.iter().chain(&volumes.orphans).chain(&volumes.used);
        keep.try_for_each(|&thin_id| {
            self.store.commit(&Record::Orphan { thin_id })?;
            recovered.push(Recovered::OrphanKept { thin_id });
            Ok(())
        })
    }
}
