//! Healing what a check found, where that is safe.

use serde::Serialize;

use crate::tree::Result;
use crate::tree::live::active::ActiveSnapshot;
use crate::tree::ops::activate::Needs;
use crate::tree::state::record::Record;
use crate::tree::{DeviceProblem, Finding, SnapshotTree};

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Repair {
    /// Findings that are gone.
    pub healed: Vec<Finding>,
    /// What is found after.
    pub left: Vec<Finding>,
}

impl SnapshotTree {
    /// [`check`](Self::check), and heal what is safe to heal: nothing that holds data is touched.
    ///
    /// Remainders of snapshots that were never finished are deleted, suspended devices resumed, misnamed ones
    /// renamed, devices whose access mode or table does not fit the snapshot activated again, unknown ones and stale
    /// nodes removed, removals finished, and unmounts and deactivations by other programs are recorded. A volume
    /// that is missing, a broken pool, volumes of others, and mounts of others are left alone.
    ///
    /// # Errors
    /// As [`check`](Self::check). What cannot be healed is no error; it is left.
    pub fn repair(&self) -> Result<Repair> {
        let found = self.check()?;
        for finding in &found {
            // What did not work is found again.
            let _ = self.heal(finding);
        }
        let left = self.check()?;
        let healed = found.into_iter().filter(|finding| !left.contains(finding)).collect();
        Ok(Repair { healed, left })
    }

    fn heal(&self, finding: &Finding) -> Result<()> {
        let dm = self.pool.dm();
        match finding {
            Finding::UnknownVolume { thin_id, own: true } => {
                // The id is reserved meanwhile, and deleted only if no record has it now.
                let Some(mut reservation) = self.store.reserve_id(*thin_id) else { return Ok(()) };
                if self.read_volumes()?.leftovers.contains(thin_id) {
                    self.pool.thin.delete(*thin_id)?;
                } else {
                    self.store.commit(&Record::Orphan { thin_id: *thin_id })?;
                }
                reservation.unresolved = false;
                Ok(())
            }
            Finding::Orphan { thin_id } => {
                // Another thread may have deleted it meanwhile, and its id be another volume's.
                let _exclusive = self.work.exclusive();
                if !self.store.read(|graph| graph.orphans.contains(thin_id)) {
                    return Ok(());
                }
                self.pool.delete(*thin_id)?;
                self.store.commit(&Record::Unmade { thin_id: *thin_id })
            }
            Finding::Deferred { .. } | Finding::Unfinished { .. } => self.reap().map(drop),
            Finding::UnknownDevice { thin_id, .. } => match self.store.reserve_id(*thin_id) {
                Some(_reservation) => Ok(dm.remove(&self.pool.names.volume_uuid(*thin_id)?)?),
                None => Ok(()),
            },
            Finding::StaleNode { name } => Ok(dm.remove_node(name)?),
            // A call that suspends a device holds its lock: whoever gets the lock is alone with it.
            Finding::WrongDevice { id, problem: DeviceProblem::Suspended, .. } => self
                .with_snapshot(id.as_str(), |_, snapshot| {
                    Ok(dm.resume(&self.pool.names.volume_uuid(snapshot.thin_id)?)?)
                }),
            Finding::WrongDevice { id, problem: DeviceProblem::Name, .. } => {
                self.with_snapshot(id.as_str(), |active, _| match &mut active.volume {
                    Some(volume) => Ok(volume.rename(&self.pool.names.name(id.as_str())?)?),
                    None => Ok(()),
                })
            }
            Finding::WrongDevice {
                id,
                problem: DeviceProblem::Mode { .. } | DeviceProblem::Table { .. },
                ..
            } => {
                self.with_snapshot(id.as_str(), |active, snapshot| {
                    let held = active.pinned;
                    let needs = if active.read_only { Needs::ReadOnly } else { Needs::Any };
                    self.deactivate_locked(active, id.as_str())?;
                    let uuid = self.pool.names.volume_uuid(snapshot.thin_id)?;
                    // Left by an activation that failed, and could not be undone.
                    if dm.find(&uuid)?.is_some_and(|left| !left.has_live_table()) {
                        dm.remove(&uuid)?;
                    }
                    if held {
                        self.activate_as(active, id.as_str(), snapshot, needs)?;
                        active.pinned = true;
                    }
                    Ok(())
                })
            }
            Finding::DeviceGone { id } => self.with_snapshot(id.as_str(), |active, snapshot| {
                if dm.find(&self.pool.names.volume_uuid(snapshot.thin_id)?)?.is_none() {
                    dm.remove_node(&self.pool.names.name(id.as_str())?)?;
                    *active = ActiveSnapshot::default();
                }
                Ok(())
            }),
            Finding::NotMounted { id, .. } => self.with_snapshot(id.as_str(), |active, snapshot| {
                let was_mounted = active.mounted.is_some();
                self.drop_unmounted(active, snapshot)?;
                active.pinned |= was_mounted && active.mounted.is_none();
                Ok(())
            }),
            _ => Ok(()),
        }
    }
}
