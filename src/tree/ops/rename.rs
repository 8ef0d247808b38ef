//! Another id for a snapshot.

use crate::tree::live::active::ActiveSnapshot;
use crate::tree::state::record::{Record, Snapshot};
use crate::tree::{Result, trace};
use crate::tree::{SnapshotId, SnapshotTree};

impl SnapshotTree {
    /// Renames a snapshot. It may be active and mounted: its device is renamed, its mount stays. Its
    /// children follow. Durable when this returns.
    ///
    /// The device's uuid is bound to the thin id and does not change. So whichever of the two names a crash
    /// leaves on the device, the next open gives it the recorded one.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`](crate::tree::Error::UnknownSnapshot),
    /// [`Error::InvalidName`](crate::tree::Error::InvalidName),
    /// [`Error::SnapshotExists`](crate::tree::Error::SnapshotExists). After an error it has the id that it had.
    pub fn rename(&self, id: impl AsRef<str>, to: impl AsRef<str>) -> Result<()> {
        let (from, to) = (SnapshotId::new(id.as_ref())?, SnapshotId::new(to.as_ref())?);
        if from == to {
            return self.get(from.as_str()).map(drop);
        }
        let rename = |active: &mut ActiveSnapshot, _: &Snapshot| {
            let record = Record::Renamed { id: from.clone(), to: to.clone() };
            self.rename_locked(active, &record, &from, &to)
        };
        trace::call("rename", from.as_str(), || self.with_new_id(&from, &to, rename))
    }

    /// Runs `work` on a snapshot that gets another id by it, with the locks of both.
    pub(in crate::tree) fn with_new_id<T>(
        &self,
        from: &SnapshotId,
        to: &SnapshotId,
        work: impl FnOnce(&mut ActiveSnapshot, &Snapshot) -> Result<T>,
    ) -> Result<T> {
        self.check_open()?;
        self.free_id(to)?;
        // Reserves the name.
        let reservation = self.store.reserve(Some(to.clone()))?;
        let (source, target) = (self.live.cell(from), self.live.cell(to));
        let renamed = {
            let (mut active, mut renamed) = if from < to {
                let active = source.lock();
                (active, target.lock())
            } else {
                let renamed = target.lock();
                (source.lock(), renamed)
            };
            self.snapshot_now(from.as_str()).and_then(|snapshot| {
                let result = work(&mut active, &snapshot)?;
                *renamed = std::mem::take(&mut *active);
                Ok(result)
            })
        };
        self.live.release(from, source);
        self.live.release(to, target);
        let result =
            renamed.map_err(|error| self.pool.with_holders(Some(from.as_str()), self.closed_or(error)))?;
        drop(reservation);
        self.compact();
        Ok(result)
    }

    /// Renames the device, and records that.
    pub(in crate::tree) fn rename_locked(
        &self,
        active: &mut ActiveSnapshot,
        record: &Record,
        from: &SnapshotId,
        to: &SnapshotId,
    ) -> Result<()> {
        if active.removal_deferred {
            // It may go at any moment, together with the name that it has.
            self.deactivate_locked(active, from.as_str())?;
        }
        if let Some(volume) = &mut active.volume {
            volume.rename(&self.pool.names.name(to.as_str())?)?;
        }
        self.store.commit(record).inspect_err(|_| {
            if let (Some(volume), Ok(old)) = (&mut active.volume, self.pool.names.name(from.as_str())) {
                // The next open does it if this fails.
                let _ = volume.rename(&old);
            }
        })
    }
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::dm::UdevPolicy;
    use crate::model::ModelKernel;
    use crate::tree::Error;
    use crate::tree::{Filesystem, Options};

    #[test]
    fn renames_there_and_back_lock_in_one_order() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None);
        let options = options.kernel(Arc::new(ModelKernel::new()));
        let tree = SnapshotTree::open(directory.path().join("root"), options).unwrap();
        let a = SnapshotId::new("a").unwrap();
        for _ in 0..50 {
            let cell = tree.live.cell(&a);
            let busy = cell.lock();
            thread::scope(|scope| {
                let rename = |users: usize, from: &'static str, to: &'static str| {
                    let tree = &tree;
                    let renaming = scope.spawn(move || tree.rename(from, to));
                    while Arc::strong_count(&cell) < users {
                        thread::yield_now();
                    }
                    // Time to come as far as it can: it waits for the cell of `a`, and should hold no other.
                    thread::sleep(Duration::from_millis(1));
                    renaming
                };
                // None of the names is there, so none keeps another call back.
                let renames = [rename(3, "a", "b"), rename(4, "b", "a")];
                // Who waits longest gets it.
                drop(busy);
                for renaming in renames {
                    assert!(matches!(renaming.join().unwrap(), Err(Error::UnknownSnapshot { .. })));
                }
            });
            tree.live.release(&a, cell);
            assert!(tree.live.all().is_empty());
        }
        tree.close().unwrap();
    }
}
