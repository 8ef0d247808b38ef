//! What a tree's user was told: the snapshots, what each was made from, and what is in it.

use std::collections::BTreeMap;
use std::fmt;

use dm_thin::tree::{Lineage, SnapshotTree};
use uuid::Uuid;

/// Where something is written: in different blocks of the pool, and twice in the first one.
pub const POSITIONS: [u64; 4] = [0, 20 << 10, 128 << 10, 1 << 20];
/// So much is written at each.
pub const LENGTH: usize = 4096;

/// One position of a volume. Values are written over and over, no value twice; 0 was never written.
#[derive(Clone, PartialEq, Eq)]
pub struct Cell {
    /// One of these is read: more than one after a write that failed.
    now: Vec<u64>,
    /// One of these is read after a power cut.
    durable: Vec<u64>,
    /// A sync failed: what was not durable may be gone, and a block that was new may have what was there before.
    lost: bool,
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.now, self.durable)
    }
}

impl Cell {
    pub fn empty() -> Self {
        Self { now: vec![0], durable: vec![0], lost: false }
    }

    pub fn written(&mut self, value: u64) {
        self.now = vec![value];
        self.durable.push(value);
    }

    /// The write failed, which may have had its effect.
    pub fn doubted(&mut self, value: u64) {
        self.now.push(value);
        self.durable.push(value);
    }

    pub fn synced(&mut self) {
        self.durable.clone_from(&self.now);
    }

    pub fn power_lost(&mut self) {
        self.now.clone_from(&self.durable);
    }

    pub fn lost(&mut self) {
        self.lost = true;
    }

    /// # Panics
    /// If that cannot be there.
    pub fn found(&mut self, value: u64, what: &dyn std::fmt::Display) {
        let expected = self.lost || self.now.contains(&value);
        assert!(expected, "{what}: {value} is there, one of {:?} should be", self.now);
        if std::mem::take(&mut self.lost) || self.durable == self.now {
            self.durable = vec![value];
        }
        self.now = vec![value];
    }
}

/// What is written for a value.
pub fn block(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(LENGTH / 8)
}

/// # Panics
/// If it is not all of one write.
pub fn value_of(block: &[u8], what: &dyn std::fmt::Display) -> u64 {
    let (words, _) = block.as_chunks::<8>();
    assert!(words.iter().all(|word| *word == words[0]), "{what}: parts of several writes");
    u64::from_le_bytes(words[0])
}

pub type Content = [Cell; POSITIONS.len()];

pub fn empty() -> Content {
    std::array::from_fn(|_| Cell::empty())
}

/// Of a snapshot that is made durably of what is there now.
pub fn copied(content: &Content) -> Content {
    let mut content = content.clone();
    content.iter_mut().for_each(Cell::synced);
    content
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Base,
    Snapshot(String),
    Removed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    No,
    As(Uuid),
    /// The call that sealed it failed, and had its effect.
    Somehow,
}

impl Sealed {
    fn matches(self, found: Option<Uuid>) -> bool {
        match self {
            Self::No => found.is_none(),
            Self::As(uuid) => found == Some(uuid),
            Self::Somehow => found.is_some(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub origin: Origin,
    pub sealed: Sealed,
    pub content: Content,
}

pub type Snapshots = BTreeMap<String, Snapshot>;

/// What a call changes.
#[derive(Debug, Clone)]
pub enum Change {
    Add(String, Box<Snapshot>),
    Remove(String),
    Rename(String, String),
    Seal(String),
    Unseal(String),
    Commit(String, String),
}

impl Change {
    pub fn add(id: &str, origin: &Origin, sealed: Sealed, content: Content) -> Self {
        Self::Add(id.to_owned(), Box::new(Snapshot { origin: origin.clone(), sealed, content }))
    }

    /// Whether it can be done.
    pub fn is_possible(&self, known: &Snapshots) -> bool {
        match self {
            Self::Add(id, snapshot) => {
                let parent_is_there = match &snapshot.origin {
                    Origin::Snapshot(parent) => known.contains_key(parent),
                    Origin::Base | Origin::Removed => true,
                };
                !known.contains_key(id) && parent_is_there
            }
            Self::Remove(id) | Self::Seal(id) => known.contains_key(id),
            Self::Rename(id, to) => known.contains_key(id) && (id == to || !known.contains_key(to)),
            Self::Commit(id, to) => {
                known.get(id).is_some_and(|it| it.sealed == Sealed::No) && !known.contains_key(to)
            }
            Self::Unseal(id) => known.get(id).is_some_and(|snapshot| {
                let is_child = |other: &Snapshot| other.origin == Origin::Snapshot(id.clone());
                snapshot.sealed == Sealed::No || !known.values().any(is_child)
            }),
        }
    }

    pub fn apply(&self, known: &mut Snapshots) {
        match self {
            Self::Add(id, snapshot) => {
                known.insert(id.clone(), (**snapshot).clone());
            }
            Self::Remove(id) => {
                known.remove(id);
                replace(known, id, &Origin::Removed);
            }
            Self::Rename(id, to) => {
                let snapshot = known.remove(id).unwrap();
                known.insert(to.clone(), snapshot);
                replace(known, id, &Origin::Snapshot(to.clone()));
            }
            Self::Seal(id) => {
                let snapshot = known.get_mut(id).unwrap();
                if snapshot.sealed == Sealed::No {
                    snapshot.sealed = Sealed::Somehow;
                    snapshot.content = copied(&snapshot.content);
                }
            }
            Self::Unseal(id) => known.get_mut(id).unwrap().sealed = Sealed::No,
            Self::Commit(id, to) => {
                Self::Seal(id.clone()).apply(known);
                Self::Rename(id.clone(), to.clone()).apply(known);
            }
        }
    }
}

/// What was made from `id` was made from `origin`.
fn replace(known: &mut Snapshots, id: &str, origin: &Origin) {
    let origins = known.values_mut().map(|snapshot| &mut snapshot.origin);
    origins
        .filter(|found| **found == Origin::Snapshot(id.to_owned()))
        .for_each(|found| *found = origin.clone());
}

/// What a tree lists.
pub type Listed = BTreeMap<String, (Origin, Option<Uuid>)>;

pub fn list(tree: &SnapshotTree) -> Listed {
    let origin = |parent| match parent {
        Lineage::Base => Origin::Base,
        Lineage::Snapshot(parent) => Origin::Snapshot(parent.to_string()),
        Lineage::Removed(_) => Origin::Removed,
    };
    tree.list().into_iter().map(|info| (info.id.to_string(), (origin(info.parent), info.sealed))).collect()
}

/// Whether the list is what is known.
pub fn matches(listed: &Listed, known: &Snapshots) -> bool {
    listed.len() == known.len()
        && listed.iter().all(|(id, (origin, sealed))| {
            known.get(id).is_some_and(|known| known.origin == *origin && known.sealed.matches(*sealed))
        })
}
