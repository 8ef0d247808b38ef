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
        // The only place that holds two slots. It cannot deadlock: nobody who has the slot of an id that is
        // not there yet waits for another one.
        let target = self.slots().entry(to.clone()).or_default().clone();
        let renamed = {
            let mut target = lock(&target);
            self.with_slot(id, |slot, _| {
                self.rename_slot(slot, &from, &to)?;
                *target = std::mem::take(slot);
                Ok(())
            })
        };
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
