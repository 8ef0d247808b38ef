//! The generation that ties the pool to the state: see [`identity`](crate::tree::state::identity).

use crate::thin::TransactionId;

/// What of the state the pool has been told. Before the store's lock, and held over the messages.
#[derive(Debug, Default)]
pub(in crate::tree) struct PoolGeneration {
    /// The pool's transaction id.
    pub(in crate::tree) transaction_id: TransactionId,
    /// The window of thin ids that the generation was last raised for, by the number of its record.
    pub(in crate::tree) window: u64,
}
