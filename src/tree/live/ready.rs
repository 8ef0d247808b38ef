//! Snapshots that are made before somebody asks for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::thin::{ThinId, ThinVolume};
use crate::tree::state::record::Snapshot;
use crate::tree::sync::{Guard, Lock, Rank};
use crate::units::Bytes;

/// An active volume without a name, under a record that lets the next open delete it.
#[derive(Debug)]
pub(in crate::tree) struct ReadySnapshot {
    pub(in crate::tree) volume: ThinVolume,
    /// What is to be recorded of it, with the parent's name and the labels of the addition that takes it.
    pub(in crate::tree) snapshot: Snapshot,
    pub(in crate::tree) made: Instant,
}

/// Something that is not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::tree) enum Missing {
    /// The volume that is kept active.
    Keeper,
    /// A ready snapshot.
    Of(Origin),
}

/// An origin since ready snapshots of it were asked for: the same one, written meanwhile, is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::tree) struct Origin {
    pub(in crate::tree) thin_id: ThinId,
    serial: u64,
}

/// The ready snapshots of one origin.
#[derive(Debug)]
pub(in crate::tree) struct ReadyQueue {
    serial: u64,
    pub(in crate::tree) wanted: usize,
    pub(in crate::tree) ready: VecDeque<ReadySnapshot>,
    pub(in crate::tree) hits: usize,
    pub(in crate::tree) misses: usize,
}

/// All ready snapshots of a tree.
#[derive(Debug)]
pub(in crate::tree) struct ReadySnapshots(Lock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By the thin ids of the origins.
    queues: BTreeMap<ThinId, ReadyQueue>,
    /// To be deleted.
    unwanted: Vec<ReadySnapshot>,
    /// A volume is kept active, whether there are ready snapshots or not.
    wants_keeper: bool,
    keeper: Option<ReadySnapshot>,
    serial: u64,
}

impl ReadySnapshots {
    pub(in crate::tree) fn new(wants_keeper: bool) -> Self {
        Self(Lock::new(Rank::Leaf, Inner { wants_keeper, ..Inner::default() }))
    }

    fn lock(&self) -> Guard<'_, Inner> {
        self.0.lock()
    }

    /// From now on so many are wanted of this origin.
    pub(in crate::tree) fn keep(&self, origin: ThinId, wanted: usize) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if wanted == 0 {
            let gone = inner.queues.remove(&origin);
            inner.unwanted.extend(gone.into_iter().flat_map(|queue| queue.ready));
            return;
        }
        let serial = inner.serial + 1;
        let queue = inner.queues.entry(origin).or_insert_with(|| {
            inner.serial = serial;
            ReadyQueue { serial, wanted, ready: VecDeque::new(), hits: 0, misses: 0 }
        });
        queue.wanted = wanted;
        let excess = queue.ready.len().min(wanted)..;
        inner.unwanted.extend(queue.ready.drain(excess));
    }

    /// What is to be made next, but none of `failed`.
    pub(in crate::tree) fn missing(&self, failed: &BTreeSet<Missing>) -> Option<Missing> {
        let inner = self.lock();
        let keeper = (inner.wants_keeper && inner.keeper.is_none()).then_some(Missing::Keeper);
        let lacking = inner.queues.iter().filter(|(_, queue)| queue.ready.len() < queue.wanted);
        let origins = lacking.map(|(&thin_id, queue)| Missing::Of(Origin { thin_id, serial: queue.serial }));
        keeper.into_iter().chain(origins).find(|missing| !failed.contains(missing))
    }

    /// One is made.
    pub(in crate::tree) fn put(&self, what: Missing, made: ReadySnapshot) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        match what {
            Missing::Keeper => inner.unwanted.extend(inner.keeper.replace(made)),
            Missing::Of(origin) => match inner.queues.get_mut(&origin.thin_id) {
                Some(queue) if queue.serial == origin.serial && queue.ready.len() < queue.wanted => {
                    queue.ready.push_back(made);
                }
                // What it was made of has changed meanwhile, or is gone.
                _ => inner.unwanted.push(made),
            },
        }
    }

    /// Takes one, if there is one of that size.
    pub(in crate::tree) fn claim(
        &self,
        origin: ThinId,
        size: Option<Bytes>,
    ) -> Option<(Origin, ReadySnapshot)> {
        let mut inner = self.lock();
        let queue = inner.queues.get_mut(&origin)?;
        let serial = queue.serial;
        let fits = queue.ready.front().is_some_and(|it| size.is_none_or(|size| size == it.snapshot.size));
        if !fits {
            queue.misses += 1;
            return None;
        }
        queue.hits += 1;
        queue.ready.pop_front().map(|found| (Origin { thin_id: origin, serial }, found))
    }

    /// Undoes a claim.
    pub(in crate::tree) fn put_back(&self, origin: Origin, unclaimed: ReadySnapshot) {
        if let Some(queue) = self.lock().queues.get_mut(&origin.thin_id) {
            queue.hits -= usize::from(queue.serial == origin.serial);
        }
        self.put(Missing::Of(origin), unclaimed);
    }

    /// One that is to be deleted.
    pub(in crate::tree) fn take_unwanted(&self) -> Option<ReadySnapshot> {
        self.lock().unwanted.pop()
    }

    /// All that are there.
    pub(in crate::tree) fn take_all(&self) -> Vec<ReadySnapshot> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let ready = inner.queues.values_mut().flat_map(|queue| queue.ready.drain(..));
        ready.chain(inner.keeper.take()).chain(inner.unwanted.drain(..)).collect()
    }

    /// Looks at those of each origin, and at the volume that is kept active.
    pub(in crate::tree) fn look<T>(
        &self,
        look: impl FnOnce(&BTreeMap<ThinId, ReadyQueue>, Option<&ReadySnapshot>) -> T,
    ) -> T {
        let inner = self.lock();
        look(&inner.queues, inner.keeper.as_ref())
    }
}
