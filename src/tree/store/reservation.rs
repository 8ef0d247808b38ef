//! Names and thin ids for what is being added.

use uuid::Uuid;

use super::{Inner, SnapshotId, Store};
use crate::thin::ThinId;
use crate::tree::graph::{IdWindow, Record};
use crate::{Error, Result};

/// Thin ids reserved at a time.
const WINDOW: u32 = 64;

/// A name and a thin id that nobody else gets, until this is dropped.
#[derive(Debug)]
pub(in crate::tree) struct Reservation<'a> {
    store: &'a Store,
    pub(in crate::tree) name: Option<SnapshotId>,
    pub(in crate::tree) thin_id: ThinId,
    /// The number of the record that reserved the window of the id.
    pub(in crate::tree) window: u64,
    /// The kernel may know the id, and no record does: only the next open can settle that.
    pub(in crate::tree) unresolved: bool,
}

impl Store {
    /// Take a name and a thin id for a new snapshot (without a name: for the base).
    ///
    /// # Errors
    /// [`Error::SnapshotExists`], [`Error::NoFreeDeviceId`].
    pub(in crate::tree) fn reserve(&self, name: Option<SnapshotId>) -> Result<Reservation<'_>> {
        let mut inner = self.lock();
        inner.check_name(name.as_ref())?;
        let thin_id = self.take_id(&mut inner)?;
        if let Some(name) = &name {
            inner.pending_names.insert(name.clone());
        }
        let window_seq = inner.window_seq;
        drop(inner);
        let reservation = Reservation { store: self, name, thin_id, window: window_seq, unresolved: false };
        // The window is durable before an id of it is used, so that a crash leaves no id unknown.
        self.sync(window_seq)?;
        Ok(reservation)
    }

    /// Take a name, and the volume of a receive that is to be continued.
    ///
    /// # Errors
    /// [`Error::SnapshotExists`]; [`Error::Receiving`] if another call has the volume.
    pub(in crate::tree) fn reserve_making(
        &self,
        name: Option<SnapshotId>,
        thin_id: ThinId,
        volume: Uuid,
    ) -> Result<Reservation<'_>> {
        let mut inner = self.lock();
        inner.check_name(name.as_ref())?;
        if inner.state.graph.making(thin_id).is_none() || !inner.pending_ids.insert(thin_id) {
            return Err(Error::Receiving { volume });
        }
        inner.pending_names.extend(name.clone());
        Ok(Reservation { store: self, name, thin_id, window: 0, unresolved: false })
    }

    /// Take this thin id, if no record and no other call has it.
    pub(in crate::tree) fn reserve_id(&self, thin_id: ThinId) -> Option<Reservation<'_>> {
        let mut inner = self.lock();
        let free = !inner.state.graph.uses(thin_id) && inner.pending_ids.insert(thin_id);
        free.then(|| Reservation { store: self, name: None, thin_id, window: 0, unresolved: false })
    }

    /// Another id for a reservation whose id turned out to be taken by somebody else.
    pub(in crate::tree) fn take_another(&self, reservation: &mut Reservation<'_>) -> Result<()> {
        let mut inner = self.lock();
        let id = self.take_id(&mut inner)?;
        inner.pending_ids.remove(&std::mem::replace(&mut reservation.thin_id, id));
        let window_seq = inner.window_seq;
        reservation.window = window_seq;
        drop(inner);
        self.sync(window_seq)
    }

    fn take_id(&self, inner: &mut Inner) -> Result<ThinId> {
        let end = ThinId::MAX.get() + 1;
        if inner.state.graph.used_ids() + inner.pending_ids.len() >= end as usize {
            return Err(Error::NoFreeDeviceId);
        }
        // Ends: some id is free, and the windows come round.
        loop {
            while inner.next_id < inner.state.graph.ids.to {
                let id = ThinId::new(inner.next_id)?;
                inner.next_id += 1;
                if !inner.state.graph.uses(id) && !inner.pending_ids.contains(&id) {
                    inner.pending_ids.insert(id);
                    return Ok(id);
                }
            }
            self.begin_window(inner)?;
        }
    }

    /// Begins a window of thin ids, unless that was done since the tree was opened: an id that was free in an earlier
    /// life may have been another volume's then, and still be that in a backup. Durable with the next change.
    pub(in crate::tree) fn begin_new_window(&self) -> Result<u64> {
        let mut inner = self.lock();
        if !inner.is_new_window {
            self.begin_window(&mut inner)?;
        }
        Ok(inner.window_seq)
    }

    fn begin_window(&self, inner: &mut Inner) -> Result<()> {
        let end = ThinId::MAX.get() + 1;
        let from = inner.state.graph.ids.to % end;
        let to = end.min(from + WINDOW);
        let stragglers = inner.pending_ids.iter().copied().collect();
        let window = Record::Reserve(IdWindow { from, to, stragglers });
        inner.window_seq = self.append_locked(inner, &window)?;
        (inner.next_id, inner.is_new_window) = (from, true);
        Ok(())
    }
}

impl Inner {
    fn check_name(&self, name: Option<&SnapshotId>) -> Result<()> {
        let taken = |name: &&SnapshotId| {
            self.state.graph.snapshots.contains_key(*name) || self.pending_names.contains(*name)
        };
        match name.filter(taken) {
            Some(name) => Err(Error::SnapshotExists { id: name.to_string() }),
            None => Ok(()),
        }
    }
}

impl Reservation<'_> {
    /// Record what became of it, durably: it exists now.
    ///
    /// [`Error::StateUnknown`] leaves it unresolved. After any other error there is no record.
    pub(in crate::tree) fn commit(&mut self, record: &Record) -> Result<()> {
        let seq = self.store.append(record)?;
        self.store.sync(seq).inspect_err(|_| self.unresolved = true)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        if !self.unresolved {
            inner.pending_ids.remove(&self.thin_id);
        }
        if let Some(name) = &self.name {
            inner.pending_names.remove(name);
        }
    }
}
