//! Which parts of a snapshot differ from another one's.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::thin::ThinId;
use crate::thin::metadata::{Change, ChangeKind};
use crate::tree::state::record::Record;
use crate::tree::{Error, Result};
use crate::tree::{Lineage, SnapshotId, SnapshotTree, error::unknown};
use crate::units::Bytes;

/// Ranges that one metadata snapshot is held for.
const BATCH: usize = 16_384;

/// What a snapshot is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Since<'a> {
    /// Nothing: all that the snapshot has is reported.
    Nothing,
    /// The tree's base.
    Base,
    /// Another snapshot.
    Snapshot(&'a str),
    /// A sealed snapshot that may be gone since: see [`Bookmark`].
    Bookmark(&'a Bookmark),
}

/// A sealed snapshot, remembered without its data: what was written to its descendants since can still be determined,
/// by the time that the pool gives each block.
///
/// The limits of that: only snapshots that descend from the remembered one, as it was sealed, can be compared with it;
/// once it is removed, what was discarded since is not reported; and after 2^24 snapshots in a pool it shows
/// nothing any more. [`SnapshotTree::unseal`] makes a bookmark worthless: what is written to the snapshot then has no
/// later time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Bookmark {
    /// The tree.
    pub tree: Uuid,
    /// The identity of the snapshot's content.
    pub volume: Uuid,
    /// The pool's time when it was sealed.
    pub time: u32,
}

impl Bookmark {
    fn invalid(&self, reason: &'static str) -> Error {
        Error::InvalidOption { option: "bookmark", value: self.volume.to_string(), reason }
    }
}

/// A part of a snapshot that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedRange {
    /// Where it begins.
    pub offset: Bytes,
    /// How long it is.
    pub length: Bytes,
    /// Whether there is data.
    pub kind: ChangeKind,
}

/// An iterator of [`ChangedRange`]s, ascending and coalesced: see [`SnapshotTree::changed`].
#[derive(Debug)]
pub struct Changed<'a> {
    tree: &'a SnapshotTree,
    base: Compared,
    target: Volume,
    size: u64,
    block_size: u64,
    /// The next block to look at; none at the end.
    next: Option<u64>,
    batch: std::vec::IntoIter<Change>,
}

#[derive(Debug)]
pub(in crate::tree) enum Compared {
    Nothing,
    Volume(Volume),
    /// The remembered snapshot is gone.
    Time(Bookmark),
}

/// A volume, and the snapshot that it must still be; none for a volume that cannot go meanwhile.
#[derive(Debug, Clone)]
pub(in crate::tree) struct Volume {
    pub(in crate::tree) id: Option<SnapshotId>,
    pub(in crate::tree) thin_id: ThinId,
}

impl SnapshotTree {
    /// Returns the parts of `target` that differ from what it is compared with: those that were written since, and
    /// those that were discarded ([`ChangeKind::Hole`]). They are determined from the pool's mappings, in whole blocks
    /// of the pool: data that was overwritten with the same bytes is reported. Blocks of the metadata that both share
    /// are not read, so the cost is that of what changed.
    ///
    /// The pool's metadata snapshot is held for a batch of ranges at a time. Both snapshots should be sealed: what is
    /// written between two batches is reported or not, and what is still in the page cache is not.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], also from the iterator, when one of the two was
    /// removed meanwhile; [`thin::Error::MetadataSnapHeld`](crate::thin::Error::MetadataSnapHeld);
    /// [`Error::InvalidOption`] for a bookmark of something else than an ancestor.
    pub fn changed(&self, since: Since<'_>, target: impl AsRef<str>) -> Result<Changed<'_>> {
        let target = target.as_ref();
        self.check_open()?;
        let (volume, size) = self.volume(target)?;
        let base = match since {
            Since::Nothing => Compared::Nothing,
            Since::Base => {
                let base = self.store.read(|graph| graph.base.as_ref().map(|base| base.thin_id));
                base.map_or(Compared::Nothing, |thin_id| Compared::Volume(Volume { id: None, thin_id }))
            }
            Since::Snapshot(id) => Compared::Volume(self.volume(id)?.0),
            Since::Bookmark(bookmark) => self.remembered(bookmark, target)?,
        };
        Ok(self.differences(base, volume, size))
    }

    pub(in crate::tree) fn differences(&self, base: Compared, target: Volume, size: Bytes) -> Changed<'_> {
        let block_size = self.store.read_state(|state| state.pool.block_size.0);
        let batch = Vec::new().into_iter();
        Changed { tree: self, base, target, size: size.0, block_size, next: Some(0), batch }
    }

    /// Returns the snapshot that a bookmark remembers, if `target` is it or descends from it; else the time, if it
    /// may be the removed one that `target` descends from.
    fn remembered(&self, bookmark: &Bookmark, target: &str) -> Result<Compared> {
        let (found, oldest) = self.store.read(|graph| {
            let ancestors = graph.ancestors(target);
            let line = || std::iter::once(target).chain(ancestors.iter().map(SnapshotId::as_str));
            let is_it = |id: &&str| graph.get(id).is_some_and(|it| it.sealed == Some(bookmark.volume));
            (line().find(is_it).map(str::to_owned), line().last().and_then(|id| graph.parent(id)))
        });
        match (found, oldest) {
            _ if bookmark.tree != self.store.tree() => Err(bookmark.invalid("of another tree")),
            (Some(id), _) => Ok(Compared::Volume(self.volume(&id)?.0)),
            (None, Some(Lineage::Removed(_))) => Ok(Compared::Time(bookmark.clone())),
            _ => Err(bookmark.invalid("the snapshot does not descend from the bookmark's snapshot")),
        }
    }

    /// Returns what is needed to determine later what was written to the descendants of a sealed snapshot, even if the
    /// snapshot is removed.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`]; [`Error::NotSealed`].
    pub fn bookmark(&self, id: impl AsRef<str>) -> Result<Bookmark> {
        let id = id.as_ref();
        self.check_open()?;
        let found = self.store.read(|graph| graph.get(id).map(|found| (found.sealed, found.seal_time)));
        match found.ok_or_else(|| unknown(id))? {
            (Some(volume), Some(time)) => Ok(Bookmark { tree: self.store.tree(), volume, time }),
            _ => Err(Error::NotSealed { id: id.to_owned() }),
        }
    }

    /// Returns how much data a snapshot has that what it was made from has not. Of a sealed snapshot of a sealed
    /// parent, or of the base, it is determined once and recorded; of others that are not active it is kept in memory
    /// until a snapshot is activated.
    ///
    /// # Errors
    /// As [`changed`](Self::changed); [`Error::ParentGone`] if what it was made from was removed.
    pub fn own_data(&self, id: impl AsRef<str>) -> Result<Bytes> {
        let id = id.as_ref();
        self.check_open()?;
        let found = self.store.read(|graph| {
            let snapshot = graph.get(id)?;
            let parent = snapshot.lineage();
            let constant = snapshot.sealed.is_some()
                && match &parent {
                    Lineage::Base => true,
                    Lineage::Snapshot(parent) => {
                        graph.get(parent.as_str()).is_some_and(|it| it.sealed.is_some())
                    }
                    Lineage::Removed(_) => false,
                };
            let parent_id = match &parent {
                Lineage::Snapshot(parent) => graph.get(parent.as_str()).map(|parent| parent.thin_id),
                _ => graph.base.as_ref().map(|base| base.thin_id),
            };
            Some((parent, constant, snapshot.own, [parent_id.unwrap_or(snapshot.thin_id), snapshot.thin_id]))
        });
        let (parent, constant, own, volumes) = found.ok_or_else(|| unknown(id))?;
        if let Some(own) = own {
            return Ok(own);
        }
        let since = match &parent {
            Lineage::Base => Since::Base,
            Lineage::Snapshot(parent) => Since::Snapshot(parent.as_str()),
            Lineage::Removed(parent) => {
                return Err(Error::ParentGone { id: id.to_owned(), parent: parent.to_string() });
            }
        };
        let activations = self.pool.activations();
        if !constant && let Some(own) = self.live.own_data().get(volumes, activations) {
            return Ok(own);
        }
        let mut own = Bytes(0);
        for range in self.changed(since, id)? {
            let range = range?;
            if range.kind == ChangeKind::Data {
                own = own + range.length;
            }
        }
        if constant {
            self.with_snapshot(id, |_, snapshot| match snapshot.sealed {
                Some(_) => {
                    // Best effort, and durable with the next change: it can be determined again.
                    let _ = self.store.append(&Record::Own { id: SnapshotId::new(id)?, own });
                    Ok(())
                }
                None => Ok(()),
            })?;
        } else if self.pool.find(volumes[0])?.or(self.pool.find(volumes[1])?).is_none() {
            self.live.own_data().insert(volumes, own, activations);
        }
        Ok(own)
    }

    fn volume(&self, id: &str) -> Result<(Volume, Bytes)> {
        let name = SnapshotId::new(id)?;
        let found = self.store.read(|graph| graph.get(id).map(|found| (found.thin_id, found.size)));
        let (thin_id, size) = found.ok_or_else(|| unknown(id))?;
        Ok((Volume { id: Some(name), thin_id }, size))
    }

    /// Checks that the snapshot is still the same one.
    fn check_volume(&self, volume: &Volume) -> Result<()> {
        let Some(id) = &volume.id else { return Ok(()) };
        let now = self.store.read(|graph| graph.get(id.as_str()).map(|found| found.thin_id));
        if now == Some(volume.thin_id) { Ok(()) } else { Err(unknown(id.as_str())) }
    }
}

impl Changed<'_> {
    /// Leaves out what is before `offset`: a comparison that was interrupted goes on there. The first range may
    /// begin before it, at the block that contains it.
    #[must_use]
    pub fn from_offset(mut self, offset: Bytes) -> Self {
        self.next = Some(offset.0 / self.block_size);
        self.batch = Vec::new().into_iter();
        self
    }

    fn fetch(&mut self, from: u64) -> Result<()> {
        self.tree.check_open()?;
        let target = self.target.thin_id;
        let batch = self.tree.pool.read_metadata(|metadata| {
            // Under the snapshot: what is removed from now on stays readable.
            self.tree.check_volume(&self.target)?;
            let changes = match &self.base {
                Compared::Nothing => metadata.changed(None, target, from)?,
                Compared::Volume(base) => {
                    self.tree.check_volume(base)?;
                    metadata.changed(Some(base.thin_id), target, from)?
                }
                Compared::Time(bookmark) => {
                    let created = metadata.device(target)?.map_or(0, |device| device.creation_time);
                    if created <= bookmark.time {
                        let reason = "the snapshot was made before the bookmark's snapshot was sealed";
                        return Err(bookmark.invalid(reason));
                    }
                    metadata.changed_since(target, bookmark.time, from)?
                }
            };
            Ok(changes.take(BATCH).collect::<Result<Vec<_>, _>>()?)
        })?;
        let last = batch.last().filter(|_| batch.len() == BATCH);
        self.next = last.and_then(|last| last.begin.checked_add(last.length));
        self.batch = batch.into_iter();
        Ok(())
    }

    fn range(&self, change: Change) -> Option<ChangedRange> {
        let offset = change.begin.saturating_mul(self.block_size);
        let end = change.begin.saturating_add(change.length).saturating_mul(self.block_size).min(self.size);
        let length = Bytes(end.checked_sub(offset).filter(|length| *length > 0)?);
        Some(ChangedRange { offset: Bytes(offset), length, kind: change.kind })
    }
}

impl Iterator for Changed<'_> {
    type Item = Result<ChangedRange>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while let Some(change) = self.batch.next() {
                // What is mapped beyond the end of the snapshot cannot be read there.
                if let Some(range) = self.range(change) {
                    return Some(Ok(range));
                }
            }
            let from = self.next.take()?;
            if let Err(error) = self.fetch(from) {
                return Some(Err(error));
            }
        }
    }
}
