//! What a tree has done since it was opened, in numbers.

use std::collections::BTreeMap;

use crate::tree::{Result, SnapshotTree};
use crate::units::Bytes;

/// Counters of a tree, from its open on. Gauges, such as how full its pool is, are in its
/// [`status`](SnapshotTree::status).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// The ioctls, by the kernel's names of the requests, such as `DM_TARGET_MSG`.
    pub ioctls: BTreeMap<&'static str, u64>,
    /// The lines that were written to the journal.
    pub journal_lines: u64,
    /// How long they were.
    pub journal_bytes: Bytes,
    /// How often the journal was synced: several lines may share a sync.
    pub journal_syncs: u64,
    /// The checkpoints that were written.
    pub checkpoints: u64,
    /// How often a volume was not made because the pool has too little space:
    /// [`thin::Error::LowSpace`](crate::thin::Error::LowSpace).
    pub refusals: u64,
    /// The volumes of removed snapshots that are still to be deleted now.
    pub backlog: usize,
}

impl SnapshotTree {
    /// Returns the counters. Asks the kernel nothing.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// let metrics = tree.metrics()?;
    /// println!("{} syncs for {} changes", metrics.journal_syncs, metrics.journal_lines);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Closed`](crate::tree::Error::Closed).
    pub fn metrics(&self) -> Result<Metrics> {
        self.check_open()?;
        let journal = self.store.counters();
        Ok(Metrics {
            ioctls: self.counts.ioctls(),
            journal_lines: journal.lines,
            journal_bytes: journal.bytes,
            journal_syncs: journal.syncs,
            checkpoints: journal.checkpoints,
            refusals: self.pool.thin.refusals(),
            backlog: self.deferred(),
        })
    }
}
