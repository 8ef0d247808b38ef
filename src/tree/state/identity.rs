//! A tree's identity in its pool's transaction id, and the volumes that no record knows: see [`recognise`].
//!
//! [`recognise`]: crate::tree::ops::recognise

use std::collections::BTreeSet;

use crate::thin;
use crate::thin::metadata::{Metadata, ThinDevice};
use crate::thin::{ThinId, TransactionId};
use crate::tree::state::graph::Graph;
use crate::tree::state::journal::State;
use crate::tree::{Error, Result};
use crate::units::Blocks;

/// The nonce of a new tree; never 0.
pub(in crate::tree) fn new_nonce() -> u32 {
    let (bits, ..) = uuid::Uuid::new_v4().as_fields();
    bits.max(1)
}

/// What the transaction id of the pool is to be.
pub(in crate::tree) fn transaction_id(state: &State) -> TransactionId {
    TransactionId(u64::from(state.nonce) << 32 | state.generation)
}

/// The generation in a transaction id.
pub(in crate::tree) fn generation(id: TransactionId) -> u64 {
    id.0 & u64::from(u32::MAX)
}

/// How the pool that was found relates to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tree) enum Relation {
    /// Of the same time.
    Same,
    /// One generation behind, or of a tree that gets its nonce now.
    Behind,
    /// Ahead of the state.
    Ahead,
    /// Behind by more than one generation.
    Older,
}

/// Compares a pool's transaction id with the state; `pool` is what errors call it.
pub(in crate::tree) fn compare(state: &State, found: TransactionId, pool: &str) -> Result<Relation> {
    let (nonce, generation) = (found.0 >> 32, generation(found));
    // A nonce is in the state before it is in the pool.
    let gets_nonce = state.new_nonce && nonce == 0 && generation + 1 == state.generation;
    if nonce != u64::from(state.nonce) && !gets_nonce {
        return Err(Error::ForeignPool { pool: pool.to_owned(), expected: transaction_id(state), found });
    }
    match state.generation.checked_sub(generation) {
        Some(0) => Ok(Relation::Same),
        Some(1) => Ok(Relation::Behind),
        Some(_) => Ok(Relation::Older),
        None => Ok(Relation::Ahead),
    }
}

/// The pool's volumes, as far as this tree has to know.
#[derive(Debug, Default)]
pub(in crate::tree) struct Volumes {
    /// All ids.
    pub(in crate::tree) present: BTreeSet<ThinId>,
    /// Without a record, and without anything that a recorded volume has not.
    pub(in crate::tree) leftovers: Vec<ThinId>,
    /// Without a record, and in doubt.
    pub(in crate::tree) orphans: Vec<ThinId>,
    /// Without a record, but handed out: active, or written to.
    pub(in crate::tree) used: Vec<ThinId>,
}

impl Volumes {
    /// Judges the volumes that no record knows: those of the reserved window, or `everything`. `active` are those that
    /// have a device. Nothing is changed.
    pub(in crate::tree) fn read(
        metadata: &Metadata,
        graph: &Graph,
        active: &BTreeSet<ThinId>,
        everything: bool,
    ) -> thin::Result<Self> {
        let present: BTreeSet<ThinId> = metadata.device_ids()?.into_iter().collect();
        let window: BTreeSet<_> = graph.ids.ids().collect();
        let in_question = present.iter().filter(|id| everything || window.contains(id));
        let unknown: BTreeSet<_> = in_question.copied().filter(|id| !graph.uses(*id)).collect();
        let mut volumes = Self { present, ..Self::default() };
        if unknown.is_empty() {
            return Ok(volumes);
        }
        let devices = metadata.devices()?;
        // What this open may delete itself keeps nothing.
        let kept: BTreeSet<_> = graph.kept().collect();
        let kept: Vec<_> = devices.iter().filter(|device| kept.contains(&device.id)).collect();
        for device in devices.iter().filter(|device| unknown.contains(&device.id)) {
            // Taking a snapshot leaves its time in the origin.
            let mut origins = kept.iter().filter(|it| it.snapshotted_time >= device.creation_time);
            let kind = if active.contains(&device.id) {
                &mut volumes.used
            } else if device.mapped == Blocks(0)
                || try_any(&mut origins, |origin| is_equal(metadata, origin.id, device.id))?
            {
                &mut volumes.leftovers
            } else if is_written(metadata, device)? {
                &mut volumes.used
            } else {
                &mut volumes.orphans
            };
            kind.push(device.id);
        }
        Ok(volumes)
    }
}

fn try_any<T>(
    items: &mut impl Iterator<Item = T>,
    test: impl Fn(T) -> thin::Result<bool>,
) -> thin::Result<bool> {
    for item in items {
        if test(item)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_equal(metadata: &Metadata, one: ThinId, other: ThinId) -> thin::Result<bool> {
    Ok(metadata.changed(Some(one), other, 0)?.next().transpose()?.is_none())
}

/// Whether blocks were written since the volume was made. They carry its time or a later one.
fn is_written(metadata: &Metadata, device: &ThinDevice) -> thin::Result<bool> {
    for mapping in metadata.mappings(device.id, 0)? {
        if mapping?.time >= device.creation_time {
            return Ok(true);
        }
    }
    Ok(false)
}
