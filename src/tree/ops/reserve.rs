//! Taking a name and a thin id for a new volume.

use crate::tree::pool::tree_pool::TreePool;
use crate::tree::state::store::Reservation;
use crate::tree::{Result, SnapshotId, SnapshotTree};

impl SnapshotTree {
    /// Takes a name and a thin id for a new volume. The generation was raised since the window of the id was reserved.
    ///
    /// # Errors
    /// [`Error::SnapshotExists`](crate::tree::Error::SnapshotExists),
    /// [`Error::NoFreeDeviceId`](crate::tree::Error::NoFreeDeviceId).
    pub(in crate::tree) fn reserve(&self, name: Option<SnapshotId>) -> Result<Reservation<'_>> {
        let reservation = self.store.reserve(name)?;
        self.raise_for(&reservation)?;
        Ok(reservation)
    }

    /// Another id for a reservation whose id turned out to be taken.
    pub(in crate::tree) fn reserve_another(&self, reservation: &mut Reservation<'_>) -> Result<()> {
        self.store.take_another(reservation)?;
        self.raise_for(reservation)
    }

    fn raise_for(&self, reservation: &Reservation<'_>) -> Result<()> {
        let TreePool { thin, generation, .. } = &*self.pool;
        generation
            .raise_for_window(thin, &self.store, reservation.window)
            .map_err(|error| self.closed_or(error))
    }
}
