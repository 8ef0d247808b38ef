//! Another id for a snapshot.

use super::active::{Slot, lock};
use super::graph::Record;
use super::{SnapshotId, SnapshotTree};
use crate::Result;

impl SnapshotTree {
    /// Give a snapshot another id. It may be active and mounted: its device is renamed, its mount stays. Its
    /// children follow. Durable when this returns.
    ///
    /// The device's uuid is bound to the thin id and does not change. So whichever of the two names a crash
    /// leaves on the device, the next open gives it the recorded one.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`](crate::Error::UnknownSnapshot),
    /// [`Error::InvalidName`](crate::Error::InvalidName),
    /// [`Error::SnapshotExists`](crate::Error::SnapshotExists). After an error it has the id that it had.
    pub fn rename(&self, id: &str, to: &str) -> Result<()> {
        self.check_open()?;
        let (from, to) = (SnapshotId::new(id)?, SnapshotId::new(to)?);
        if from == to {
            return self.get(id).map(drop);
        }
        self.finish_removal(&to)?;
        // For the name: nobody else gets it meanwhile.
        let reservation = self.store.reserve(Some(to.clone()))?;
        let slot = |id: &SnapshotId| self.slots().entry(id.clone()).or_default().clone();
        let (source, target) = (slot(&from), slot(&to));
        let renamed = {
            let (mut slot, mut renamed) = if from < to {
                let slot = lock(&source);
                (slot, lock(&target))
            } else {
                let renamed = lock(&target);
                (lock(&source), renamed)
            };
            self.check_open().and_then(|()| self.get(id)).and_then(|_| {
                self.rename_slot(&mut slot, &from, &to)?;
                *renamed = std::mem::take(&mut *slot);
                Ok(())
            })
        };
        self.tidy(&from, source);
        self.tidy(&to, target);
        renamed?;
        drop(reservation);
        self.compact();
        Ok(())
    }

    fn rename_slot(&self, slot: &mut Slot, from: &SnapshotId, to: &SnapshotId) -> Result<()> {
        if slot.leaving {
            // It may go at any moment, together with the name that it has.
            self.deactivate_slot(slot, from.as_str())?;
        }
        if let Some(volume) = &mut slot.volume {
            volume.rename(&self.volume_name(to.as_str())?)?;
        }
        let record = Record::Renamed { id: from.clone(), to: to.clone() };
        self.store.commit(&record).inspect_err(|_| {
            if let (Some(volume), Ok(old)) = (&mut slot.volume, self.volume_name(from.as_str())) {
                // The next open does it if this fails.
                let _ = volume.rename(&old);
            }
        })
    }
}
