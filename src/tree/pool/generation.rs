//! The generation that ties the pool to the state: see [`identity`](crate::tree::state::identity).

use crate::thin::{PoolMode, PoolStatus, ThinPool, TransactionId};
use crate::tree::Result;
use crate::tree::state::identity;
use crate::tree::state::journal::State;
use crate::tree::state::store::Store;
use crate::tree::sync::{Lock, Rank};

/// The generation of the state that the pool has. Its lock is held over the messages.
#[derive(Debug)]
pub(in crate::tree) struct PoolGeneration {
    told: Lock<Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// The pool's transaction id.
    transaction_id: TransactionId,
    /// The window of thin ids that the generation was last raised for, by the number of its record.
    window: u64,
}

impl Default for PoolGeneration {
    fn default() -> Self {
        Self { told: Lock::new(Rank::Generation, Told::default()) }
    }
}

impl PoolGeneration {
    /// The pool's transaction id, as it was read or set last.
    pub(in crate::tree) fn transaction_id(&self) -> TransactionId {
        self.told.lock().transaction_id
    }

    /// Reads what the pool says now that it is active, and its mode.
    pub(in crate::tree) fn read(&self, pool: &ThinPool) -> Result<PoolMode> {
        let status = pool.status()?;
        if let PoolStatus::Usage(usage) = &status {
            self.told.lock().transaction_id = usage.transaction_id;
        }
        Ok(status.mode())
    }

    /// Makes the pool's transaction id the one of the durable state. The message is sent in any case, except to a pool whose
    /// base is still to be made: whether the pool can commit is known only from a commit.
    pub(in crate::tree) fn sync(&self, pool: &ThinPool, store: &Store) -> Result<()> {
        let again = store.read(|graph| graph.base.is_some());
        self.told.lock().tell(pool, store, again)
    }

    /// Raises the generation: durably in the state, then in the pool. From then on an older copy of either is told from
    /// the other one.
    pub(in crate::tree) fn raise(&self, pool: &ThinPool, store: &Store) -> Result<()> {
        self.told.lock().raise(pool, store)
    }

    /// The same at the end of an open, with a new window of thin ids. An open that made the base has done both.
    pub(in crate::tree) fn begin(&self, pool: &ThinPool, store: &Store) -> Result<()> {
        self.raise_for_window(pool, store, store.begin_new_window()?)
    }

    /// The same, unless it was done since the record `window` reserved a window of thin ids.
    pub(in crate::tree) fn raise_for_window(
        &self,
        pool: &ThinPool,
        store: &Store,
        window: u64,
    ) -> Result<()> {
        let mut told = self.told.lock();
        if told.window < window {
            told.raise(pool, store)?;
            told.window = window;
            store.set_raised(window);
        }
        Ok(())
    }
}

impl Told {
    /// Makes the pool's transaction id the one of the state, and does so `again` if it is.
    fn tell(&mut self, pool: &ThinPool, store: &Store, again: bool) -> Result<()> {
        // After a sync that failed the generation that was raised may not be on the disk.
        store.check_known()?;
        let Some(wanted) = store.read_state(transaction_id) else { return Ok(()) };
        if self.transaction_id == wanted && !again {
            return Ok(());
        }
        let told = pool.set_transaction_id(self.transaction_id, wanted);
        self.transaction_id = match &told {
            Ok(()) => wanted,
            // It may have been obeyed all the same.
            Err(_) => match pool.status() {
                Ok(PoolStatus::Usage(usage)) => usage.transaction_id,
                _ => self.transaction_id,
            },
        };
        Ok(told?)
    }

    fn raise(&mut self, pool: &ThinPool, store: &Store) -> Result<()> {
        if store.is_shared() {
            return Ok(());
        }
        // The pool is one generation behind at most.
        self.tell(pool, store, false)?;
        store.raise_generation()?;
        self.tell(pool, store, false)
    }
}

/// What the pool's transaction id is to be; none if it belongs to another program.
fn transaction_id(state: &State) -> Option<TransactionId> {
    (!state.pool.source.is_shared()).then(|| identity::transaction_id(state))
}
