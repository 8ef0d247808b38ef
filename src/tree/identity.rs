//! Whose pool it is, and of what time: decided before anything is activated, written or deleted.
//!
//! The transaction id of a tree's own pool is `nonce << 32 | generation`. The nonce is the tree's, made with it. The
//! generation rises at each open and close and with each window of thin ids, in the state first and then in the pool.
//!
//! | transaction id of the pool | means | opening the tree |
//! |---|---|---|
//! | our nonce, the state's generation | pool and state belong together | goes on |
//! | our nonce, one generation less | the power went between state and pool | raises the pool's |
//! | our nonce, fewer by two or more | the pool was restored from a backup | [`Error::PoolOlderThanState`] |
//! | our nonce, more | the state was restored from a backup | [`Error::StateOlderThanPool`], unless [`accept_older_state`] |
//! | another nonce | it is another tree's pool, or a stranger's | [`Error::ForeignPool`] |
//! | no nonce, in a tree that has none | both are from before there were nonces | as above; the tree gets a nonce |
//!
//! An adopted pool's transaction id belongs to its owner: it is neither compared nor written.
//!
//! A volume in the window of reserved ids that no record knows:
//!
//! | the volume | means | opening the tree |
//! |---|---|---|
//! | maps nothing, or just what a recorded volume maps | an `add` that nobody was told of | deletes it |
//! | maps blocks that were written since it was made | it was handed out once: the state is old | [`Error::StateOlderThanPool`], unless [`accept_older_state`] |
//! | anything else | in doubt: its origin was written to, or is gone | records it as an orphan |
//!
//! An orphan is shown by [`check`](super::SnapshotTree::check) and deleted by [`repair`](super::SnapshotTree::repair) alone.
//!
//! [`accept_older_state`]: super::Options::accept_older_state

use std::collections::BTreeSet;

use super::graph::Graph;
use super::journal::State;
use crate::thin::metadata::{Metadata, ThinDevice};
use crate::thin::{ThinId, TransactionId};
use crate::units::Blocks;
use crate::{Error, Result};

/// The nonce of a new tree; never 0.
pub(super) fn new_nonce() -> u32 {
    let (bits, ..) = uuid::Uuid::new_v4().as_fields();
    bits.max(1)
}

/// What the transaction id of the pool is to be.
pub(super) fn transaction_id(state: &State) -> TransactionId {
    TransactionId(u64::from(state.nonce) << 32 | state.generation)
}

/// The generation in a transaction id.
pub(super) fn generation(id: TransactionId) -> u64 {
    id.0 & u64::from(u32::MAX)
}

/// How the pool that was found relates to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// Of the same time.
    Same,
    /// One generation behind, or of a tree that gets its nonce now.
    Behind,
    /// Ahead of the state.
    Ahead,
}

/// Compares a pool's transaction id with the state; `pool` is what errors call it.
pub(super) fn compare(state: &State, found: TransactionId, pool: &str) -> Result<Relation> {
    let (nonce, generation) = (found.0 >> 32, generation(found));
    // The first open of a format 1 state writes the nonce to the state before the pool.
    let gets_nonce = nonce == 0 && generation + 1 == state.generation;
    if nonce != u64::from(state.nonce) && !gets_nonce {
        return Err(Error::ForeignPool { pool: pool.to_owned(), expected: transaction_id(state), found });
    }
    match state.generation.checked_sub(generation) {
        Some(0) => Ok(Relation::Same),
        Some(1) => Ok(Relation::Behind),
        Some(_) => Err(Error::PoolOlderThanState { state: state.generation, pool: generation }),
        None => Ok(Relation::Ahead),
    }
}

/// The pool's volumes, as far as this tree has to know.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    /// All ids.
    pub(super) present: BTreeSet<ThinId>,
    /// Without a record, and without anything that a recorded volume has not.
    pub(super) leftovers: Vec<ThinId>,
    /// Without a record, and in doubt.
    pub(super) orphans: Vec<ThinId>,
    /// Without a record, but written to.
    pub(super) written: Vec<ThinId>,
}

impl Volumes {
    /// Judges each volume of the reserved window that no record knows. Nothing is changed.
    pub(super) fn read(metadata: &Metadata, graph: &Graph) -> Result<Self> {
        let present: BTreeSet<ThinId> = metadata.device_ids()?.into_iter().collect();
        let unknown: Vec<_> = graph.ids.ids().filter(|id| present.contains(id) && !graph.uses(*id)).collect();
        let mut volumes = Self { present, ..Self::default() };
        if unknown.is_empty() {
            return Ok(volumes);
        }
        let devices = metadata.devices()?;
        let recorded: Vec<_> = devices.iter().filter(|device| graph.uses(device.id)).collect();
        for device in devices.iter().filter(|device| unknown.contains(&device.id)) {
            // Taking a snapshot leaves its time in the origin.
            let mut origins = recorded.iter().filter(|it| it.snapshotted_time >= device.creation_time);
            let kind = if device.mapped == Blocks(0)
                || try_any(&mut origins, |origin| is_equal(metadata, origin.id, device.id))?
            {
                &mut volumes.leftovers
            } else if is_written(metadata, device)? {
                &mut volumes.written
            } else {
                &mut volumes.orphans
            };
            kind.push(device.id);
        }
        Ok(volumes)
    }
}

fn try_any<T>(items: &mut impl Iterator<Item = T>, test: impl Fn(T) -> Result<bool>) -> Result<bool> {
    for item in items {
        if test(item)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_equal(metadata: &Metadata, one: ThinId, other: ThinId) -> Result<bool> {
    Ok(metadata.changed(Some(one), other, 0)?.next().transpose()?.is_none())
}

/// Whether blocks were written since the volume was made. They carry its time or a later one.
fn is_written(metadata: &Metadata, device: &ThinDevice) -> Result<bool> {
    for mapping in metadata.mappings(device.id, 0)? {
        if mapping?.time >= device.creation_time {
            return Ok(true);
        }
    }
    Ok(false)
}
