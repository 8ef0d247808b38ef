//! Names and thin ids for what is being added.

use uuid::Uuid;

use super::{Inner, SnapshotId, Store};
use crate::thin::ThinId;
use crate::tree::state::record::{IdWindow, Making, Receiving, Record, Snapshot};
use crate::tree::{Error, Result};

/// Thin ids reserved at a time. Fewer where threads are run in many orders: each window is then met in few calls.
const WINDOW: u32 = if cfg!(all(test, shuttle)) { 4 } else { 64 };

/// A name and a thin id, reserved until this is dropped.
#[derive(Debug)]
pub(in crate::tree) struct Reservation<'a> {
    store: &'a Store,
    pub(in crate::tree) name: Option<SnapshotId>,
    pub(in crate::tree) thin_id: ThinId,
    /// The number of the record that reserved the window of the id.
    pub(in crate::tree) window: u64,
    /// The pool may have a volume of that id, and no record does: kept for a repair or the next open.
    pub(in crate::tree) unresolved: bool,
    /// Somebody else has the id when this is dropped.
    kept: bool,
    /// What is recorded before the volume is made.
    pub(in crate::tree) record_first: Option<First>,
    /// The number of that record.
    pub(in crate::tree) begun: Option<u64>,
}

/// What is recorded of a volume before it is made.
#[derive(Debug, Clone)]
pub(in crate::tree) enum First {
    /// A snapshot is being added.
    Adding,
    /// A volume that is not published is being made; for this receive, if it can be continued.
    Making(Option<Receiving>),
}

impl Store {
    /// Takes a name and a thin id for a new snapshot (without a name: for the base).
    ///
    /// # Errors
    /// [`Error::SnapshotExists`], [`Error::NoFreeDeviceId`].
    pub(in crate::tree) fn reserve(&self, name: Option<SnapshotId>) -> Result<Reservation<'_>> {
        {
            let mut inner = self.lock();
            inner.check_name(name.as_ref())?;
            inner.pending_names.extend(name.clone());
        }
        let (thin_id, window) = self.take_id().inspect_err(|_| {
            if let Some(name) = &name {
                self.lock().pending_names.remove(name);
            }
        })?;
        let mut reservation = Reservation::new(self, name, thin_id);
        reservation.window = window;
        self.reserve_ahead();
        // The window is durable before an id of it is used, so that a crash leaves no id unknown.
        self.sync(window)?;
        Ok(reservation)
    }

    /// Takes a name, and the volume of a receive that is to be continued.
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
        Ok(Reservation::new(self, name, thin_id))
    }

    /// Takes a name for a volume whose id was [kept](Reservation::keep).
    ///
    /// # Errors
    /// [`Error::SnapshotExists`].
    pub(in crate::tree) fn reserve_kept(
        &self,
        name: &SnapshotId,
        thin_id: ThinId,
    ) -> Result<Reservation<'_>> {
        let mut inner = self.lock();
        inner.check_name(Some(name))?;
        inner.pending_names.insert(name.clone());
        Ok(Reservation::new(self, Some(name.clone()), thin_id))
    }

    /// Takes back an id that was kept.
    pub(in crate::tree) fn release_kept(&self, thin_id: ThinId) -> Reservation<'_> {
        Reservation::new(self, None, thin_id)
    }

    /// Takes the volume of an addition of that name that failed and could not be taken back.
    pub(in crate::tree) fn reserve_left(&self, name: &SnapshotId) -> Option<Reservation<'_>> {
        let left = self.lock().state.graph.adding.get(name).map(|snapshot| snapshot.thin_id);
        left.and_then(|thin_id| self.reserve_abandoned(thin_id))
    }

    /// Takes a volume under construction that no call has.
    pub(in crate::tree) fn reserve_abandoned(&self, thin_id: ThinId) -> Option<Reservation<'_>> {
        let mut inner = self.lock();
        let is_left = inner.abandoned().any(|left| left == thin_id) && inner.pending_ids.insert(thin_id);
        is_left.then(|| Reservation::new(self, None, thin_id))
    }

    /// Takes this thin id, if no record and no other call has it. Unresolved ids are taken as well, and stay
    /// unresolved.
    ///
    /// None as long as it is unknown what is recorded ([`Error::StateUnknown`]).
    pub(in crate::tree) fn reserve_id(&self, thin_id: ThinId) -> Option<Reservation<'_>> {
        let mut inner = self.lock();
        if inner.failed || inner.state.graph.uses(thin_id) {
            return None;
        }
        let unresolved = inner.unresolved_ids.remove(&thin_id);
        let free = unresolved || inner.pending_ids.insert(thin_id);
        free.then(|| {
            let mut reservation = Reservation::new(self, None, thin_id);
            reservation.unresolved = unresolved;
            reservation
        })
    }

    /// Another id for a reservation whose id turned out to be taken.
    pub(in crate::tree) fn take_another(&self, reservation: &mut Reservation<'_>) -> Result<()> {
        let (id, window) = self.take_id()?;
        self.lock().pending_ids.remove(&std::mem::replace(&mut reservation.thin_id, id));
        reservation.window = window;
        self.sync(window)
    }

    /// An id, and the number of the record that reserved its window.
    fn take_id(&self) -> Result<(ThinId, u64)> {
        let mut end = None;
        // Ends: some id is free, and the windows come round.
        loop {
            if let Some(taken) = self.lock().take_id()? {
                return Ok(taken);
            }
            match &mut end {
                // Whoever had the journal may have reserved a window.
                None => end = Some(self.journal_end()),
                Some(end) => {
                    let window = self.lock().next_window();
                    self.append_at(end, &Record::Reserve(window))?;
                }
            }
        }
    }

    /// Reserves the next window when half of this one is used. It is durable with the next change, and the generation is
    /// raised for it by the [`SyncThread`](super::SyncThread): who takes its first id waits for neither.
    fn reserve_ahead(&self) {
        if self.lock().window_ahead().is_none() {
            return;
        }
        let mut end = self.journal_end();
        let Some(window) = self.lock().window_ahead() else { return };
        // Best effort: without it the window is reserved when this one is used up.
        if self.append_at(&mut end, &Record::Reserve(window)).is_ok() {
            self.lock().wants_raise = true;
            self.wanted.notify_one();
        }
    }

    /// The generation was raised for the window of that record.
    pub(in crate::tree) fn set_raised(&self, window: u64) {
        self.lock().raised = window;
    }

    /// Begins a window of thin ids, unless that was done since the tree was opened: an id that was free in an earlier
    /// life may have been another volume's then, and still be that in a backup. Durable with the next change.
    pub(in crate::tree) fn begin_new_window(&self) -> Result<u64> {
        let mut end = self.journal_end();
        let (window, is_new) = {
            let inner = self.lock();
            (inner.next_window(), inner.is_new_window)
        };
        if !is_new {
            self.append_at(&mut end, &Record::Reserve(window))?;
        }
        Ok(self.lock().window_seq)
    }
}

/// Thin ids that there are.
const IDS: u32 = ThinId::MAX.get() + 1;

impl Inner {
    /// Volumes under construction that no call has.
    pub(super) fn abandoned(&self) -> impl Iterator<Item = ThinId> + '_ {
        let making = self.state.graph.making.iter().filter(|making| making.receive.is_none());
        let making = making.map(|making| making.thin_id);
        let adding = self.state.graph.adding.values().map(|snapshot| snapshot.thin_id);
        making.chain(adding).filter(|id| !self.pending_ids.contains(id))
    }

    /// An id of the window, if there is one left.
    fn take_id(&mut self) -> Result<Option<(ThinId, u64)>> {
        if self.state.graph.used_ids() + self.pending_ids.len() >= IDS as usize {
            return Err(Error::NoFreeDeviceId);
        }
        while self.next_id < self.state.graph.ids.to {
            let id = ThinId::new(self.next_id)?;
            self.next_id += 1;
            if !self.state.graph.uses(id) && self.pending_ids.insert(id) {
                // What was reserved before needs neither sync nor generation.
                let window = if id.get() < self.window_from { 0 } else { self.window_seq };
                return Ok(Some((id, window)));
            }
        }
        Ok(None)
    }

    fn next_window(&self) -> IdWindow {
        let from = self.state.graph.ids.to % IDS;
        let in_flight = self.pending_ids.iter().copied().collect();
        IdWindow { from, to: IDS.min(from + WINDOW), in_flight }
    }

    /// The window that goes on with this one, of which less than half is left. None where the ids end, and before this
    /// one is durable and the generation raised for it: its ids are then free to be used.
    fn window_ahead(&self) -> Option<IdWindow> {
        let ids = &self.state.graph.ids;
        let is_ready = self.synced >= self.window_seq && self.raised >= self.window_seq;
        let is_due = is_ready && self.next_id < ids.to && ids.to - self.next_id <= WINDOW / 2;
        let to = ids.to + WINDOW;
        let in_flight = || self.pending_ids.iter().copied().collect();
        (is_due && to <= IDS).then(|| IdWindow { from: self.next_id, to, in_flight: in_flight() })
    }

    fn check_name(&self, name: Option<&SnapshotId>) -> Result<()> {
        let graph = &self.state.graph;
        let taken = |name: &&SnapshotId| {
            graph.snapshots.contains_key(*name)
                || graph.adding.contains_key(*name)
                || self.pending_names.contains(*name)
        };
        match name.filter(taken) {
            Some(name) => Err(Error::SnapshotExists { id: name.to_string() }),
            None => Ok(()),
        }
    }
}

impl<'a> Reservation<'a> {
    fn new(store: &'a Store, name: Option<SnapshotId>, thin_id: ThinId) -> Self {
        Self {
            store,
            name,
            thin_id,
            window: 0,
            unresolved: false,
            kept: false,
            record_first: None,
            begun: None,
        }
    }

    /// Records what comes before the volume. The record is synced while the volume is made; which of both is durable first
    /// does not matter: without the volume the next open drops the record, without the record it deletes the volume.
    pub(in crate::tree) fn begin(&mut self, snapshot: &Snapshot) -> Result<()> {
        let Snapshot { thin_id, size, .. } = *snapshot;
        let record = match (self.record_first.clone(), self.name.clone()) {
            (Some(First::Adding), Some(id)) => Record::Adding { id, snapshot: snapshot.clone() },
            (Some(First::Making(receive)), _) => Record::Making(Making { thin_id, size, receive }),
            _ => return Ok(()),
        };
        let seq = self.store.append(&record)?;
        self.begun = Some(seq);
        self.store.begin_sync(seq);
        Ok(())
    }

    /// Takes that record back; `durably` if the pool has, or may have, a volume of that id.
    pub(in crate::tree) fn take_back(&mut self, durably: bool) -> Result<()> {
        if self.begun.take().is_none() {
            return Ok(());
        }
        let taken = self.store.append(&Record::Unmade { thin_id: self.thin_id });
        let taken = taken.and_then(|seq| if durably { self.store.sync(seq) } else { Ok(()) });
        taken.inspect_err(|_| {
            if durably {
                self.store.lock().failed = true;
            }
        })
    }

    /// Gives up the name, and keeps the id from others as long as this process lives.
    pub(in crate::tree) fn keep(mut self) {
        self.kept = true;
    }

    /// Records what became of it, durably: it exists now.
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
        if self.kept {
            // Somebody else has it now.
        } else if self.unresolved {
            inner.unresolved_ids.insert(self.thin_id);
        } else {
            inner.pending_ids.remove(&self.thin_id);
        }
        if let Some(name) = &self.name {
            inner.pending_names.remove(name);
        }
    }
}
