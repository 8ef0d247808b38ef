//! Raising the generation that ties the pool to the state.

use std::sync::{MutexGuard, PoisonError};

use crate::thin::{PoolStatus, TransactionId};
use crate::tree::Result;
use crate::tree::pool::generation::PoolGeneration;
use crate::tree::state::store::Reservation;
use crate::tree::{SnapshotId, SnapshotTree, state::identity};

impl SnapshotTree {
    pub(in crate::tree) fn generation(&self) -> MutexGuard<'_, PoolGeneration> {
        self.generation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the pool's transaction id the one of the durable state. The message is sent in any case: whether the pool
    /// can commit only a commit tells.
    pub(in crate::tree) fn sync_transaction_id(&self) -> Result<()> {
        self.tell(&mut self.generation(), true)
    }

    fn sync_locked(&self, generation: &mut PoolGeneration) -> Result<()> {
        self.tell(generation, false)
    }

    fn tell(&self, generation: &mut PoolGeneration, again: bool) -> Result<()> {
        // After a sync that failed the generation that was raised may not be on the disk.
        self.store.check_known()?;
        let Some(wanted) = self.store.read_state(|state| state.transaction_id()) else { return Ok(()) };
        if generation.transaction_id == wanted && !again {
            return Ok(());
        }
        let told = self.pool.set_transaction_id(generation.transaction_id, wanted);
        generation.transaction_id = match &told {
            Ok(()) => wanted,
            // It may have been obeyed all the same.
            Err(_) => match self.pool.status() {
                Ok(PoolStatus::Usage(usage)) => usage.transaction_id,
                _ => generation.transaction_id,
            },
        };
        Ok(told?)
    }

    /// Raises the generation: durably in the state, then in the pool. From then on an older copy of either is told from
    /// the other one.
    pub(in crate::tree) fn raise_generation(&self) -> Result<()> {
        self.raise_locked(&mut self.generation())
    }

    /// The same at the end of an open, together with a new window of thin ids.
    pub(in crate::tree) fn begin_generation(&self) -> Result<()> {
        let mut generation = self.generation();
        let window = self.store.begin_new_window()?;
        self.raise_locked(&mut generation)?;
        generation.window = window;
        Ok(())
    }

    fn raise_locked(&self, generation: &mut PoolGeneration) -> Result<()> {
        if self.store.read_state(|state| state.pool.source.is_shared()) {
            return Ok(());
        }
        // The pool is one generation behind at most.
        self.sync_locked(generation)?;
        self.store.raise_generation()?;
        self.sync_locked(generation)
    }

    /// Takes a name and a thin id for a new volume. The generation was raised since the window of the id was reserved.
    ///
    /// # Errors
    /// [`Error::SnapshotExists`](crate::tree::Error::SnapshotExists),
    /// [`Error::NoFreeDeviceId`](crate::tree::Error::NoFreeDeviceId).
    pub(in crate::tree) fn reserve(&self, name: Option<SnapshotId>) -> Result<Reservation<'_>> {
        let reservation = self.store.reserve(name)?;
        self.raise_for_window(&reservation)?;
        Ok(reservation)
    }

    /// Another id for a reservation whose id turned out to be taken.
    pub(in crate::tree) fn reserve_another(&self, reservation: &mut Reservation<'_>) -> Result<()> {
        self.store.take_another(reservation)?;
        self.raise_for_window(reservation)
    }

    fn raise_for_window(&self, reservation: &Reservation<'_>) -> Result<()> {
        let mut generation = self.generation();
        if generation.window < reservation.window {
            self.raise_locked(&mut generation).map_err(|error| self.closed_or(error))?;
            generation.window = reservation.window;
        }
        Ok(())
    }
}

impl crate::tree::state::journal::State {
    /// What the pool's transaction id is to be; none if it belongs to another program.
    fn transaction_id(&self) -> Option<TransactionId> {
        (!self.pool.source.is_shared()).then(|| identity::transaction_id(self))
    }
}
