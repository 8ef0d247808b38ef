//! A thin pool's metadata: thin devices, their mappings, and who shares which data block.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use super::image::{HeldRoot, Mappings, PoolContents, PoolImage, ThinContents};
use crate::units::Sectors;

/// Metadata blocks that an empty pool uses: superblock, space maps and their indexes, tree roots. An
/// estimate, as is [`Metadata::used_metadata`].
const METADATA_OVERHEAD: u64 = 10;
/// Mappings that fit into a leaf of a real mapping tree, half full.
const MAPPINGS_PER_BLOCK: u64 = 126;

/// A change of the metadata. Changes are replayed on the committed copy at each commit.
#[derive(Debug, Clone)]
pub(super) enum Change {
    CreateThin(u32),
    CreateSnap {
        id: u32,
        origin: u32,
    },
    Delete(u32),
    SetTransaction {
        current: u64,
        new: u64,
    },
    Hold,
    Release,
    /// Maps a block to a free data block.
    Insert {
        id: u32,
        block: u64,
        data: u64,
    },
    Discard {
        id: u32,
        block: u64,
    },
    ResizeData(u64),
    ResizeMetadata(u64),
}

/// A metadata snapshot, and what it keeps.
#[derive(Debug)]
struct Held {
    root: HeldRoot,
    thins: BTreeMap<u32, ThinContents>,
}

#[derive(Debug, Clone)]
pub(super) struct Metadata {
    pub(super) contents: PoolContents,
    held: Option<Arc<Held>>,
    /// Data block -> how many mappings lead to it, those of the metadata snapshot included.
    references: BTreeMap<u64, u32>,
    /// No data block below this one is free.
    free_hint: u64,
    /// Made when it is first read, dropped when anything changes; none if the metadata device is too small.
    image: OnceCell<Option<Arc<PoolImage>>>,
}

impl Metadata {
    /// A freshly formatted pool; its data size becomes known when it is resumed.
    pub(super) fn format(block_sectors: u64, metadata_blocks: u64) -> Result<Self, Errno> {
        if metadata_blocks < METADATA_OVERHEAD {
            return Err(Errno::ENOSPC);
        }
        Ok(Self {
            contents: PoolContents::new(Sectors(block_sectors), 0, metadata_blocks),
            held: None,
            references: BTreeMap::new(),
            free_hint: 0,
            image: OnceCell::new(),
        })
    }

    pub(super) fn block_sectors(&self) -> u64 {
        self.contents.block_size.0
    }

    pub(super) fn used_data(&self) -> u64 {
        self.references.len() as u64
    }

    pub(super) fn free_data(&self) -> u64 {
        self.contents.data_blocks.saturating_sub(self.used_data())
    }

    /// One block for each thin device's mapping tree, and their leaves.
    pub(super) fn used_metadata(&self) -> u64 {
        METADATA_OVERHEAD
            + self.contents.thins.len() as u64
            + self.used_data() / MAPPINGS_PER_BLOCK
            + u64::from(self.held.is_some())
    }

    pub(super) fn free_metadata(&self) -> u64 {
        self.contents.metadata_blocks.saturating_sub(self.used_metadata())
    }

    /// Block of the metadata snapshot's superblock.
    pub(super) fn held_root(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.root.location())
    }

    /// The blocks on the metadata device; none if it is too small for them.
    pub(super) fn image(&self) -> Option<Arc<PoolImage>> {
        let held = self.held.as_ref().map(|held| &held.root);
        self.image.get_or_init(|| PoolImage::new(&self.contents, held).map(Arc::new).ok()).clone()
    }

    pub(super) fn set_needs_check(&mut self, needed: bool) {
        self.contents.needs_check = needed;
        self.image.take();
    }

    pub(super) fn exists(&self, id: u32) -> bool {
        self.contents.thins.contains_key(&id)
    }

    pub(super) fn mapped(&self, id: u32) -> u64 {
        self.contents.thins.get(&id).map_or(0, |thin| thin.mappings.len() as u64)
    }

    /// The last mapped block of a thin device.
    pub(super) fn highest(&self, id: u32) -> Option<u64> {
        self.contents.thins.get(&id)?.mappings.last_key_value().map(|(&block, _)| block)
    }

    /// The mapped blocks of a thin device in a range.
    pub(super) fn mapped_in(&self, id: u32, blocks: Range<u64>) -> Vec<u64> {
        let thin = self.contents.thins.get(&id).filter(|_| !blocks.is_empty());
        let mapped = thin.into_iter().flat_map(|thin| thin.mappings.range(blocks.clone()));
        mapped.map(|(&block, _)| block).collect()
    }

    /// Where a block of a thin device is, and whether a write to it needs a new data block. As in the kernel
    /// (`__snapshotted_since`) a block counts as shared when a snapshot was taken since it was mapped, even if that
    /// snapshot is deleted.
    pub(super) fn find(&self, id: u32, block: u64) -> Option<(u64, bool)> {
        let thin = self.contents.thins.get(&id)?;
        let &(data, time) = thin.mappings.get(&block)?;
        Some((data, thin.snapshotted_time > time))
    }

    /// A data block that is free, here and in `committed`: what was freed since is not used again before the commit.
    pub(super) fn find_free(&mut self, committed: &Self) -> Option<u64> {
        let is_used = |metadata: &Self, block: &u64| metadata.references.contains_key(block);
        let first = (self.free_hint..self.contents.data_blocks).find(|block| !is_used(self, block))?;
        self.free_hint = first;
        let mut blocks = first..self.contents.data_blocks;
        blocks.find(|block| !is_used(self, block) && !is_used(committed, block))
    }

    pub(super) fn apply(&mut self, change: &Change) -> Result<(), Errno> {
        // Before it changes, since a metadata snapshot is made of it.
        let image = if matches!(change, Change::Hold) { self.image() } else { None };
        self.image.take();
        let (transaction_id, time) = (self.contents.transaction_id, self.contents.time);
        match *change {
            Change::CreateThin(id) => {
                let times = (time, time);
                self.insert(id, Arc::default(), transaction_id, times)?;
            }
            Change::CreateSnap { id, origin } => {
                if self.exists(id) {
                    return Err(Errno::EEXIST);
                }
                let mappings = &self.contents.thins.get(&origin).ok_or(Errno::ENODATA)?.mappings;
                let (mappings, time) = (Arc::clone(mappings), time.wrapping_add(1));
                self.insert(id, mappings, transaction_id, (time, time))?;
                self.contents.time = time;
                if let Some(origin) = self.contents.thins.get_mut(&origin) {
                    origin.snapshotted_time = time;
                }
            }
            Change::Delete(id) => {
                let thin = self.contents.thins.remove(&id).ok_or(Errno::ENODATA)?;
                self.release_all(&thin.mappings);
            }
            Change::SetTransaction { current, new } => {
                if transaction_id != current {
                    return Err(Errno::EINVAL);
                }
                self.contents.transaction_id = new;
            }
            Change::Hold => {
                if self.held.is_some() {
                    return Err(Errno::EBUSY);
                }
                let root = image.and_then(|image| image.hold().ok()).ok_or(Errno::ENOSPC)?;
                let thins = self.contents.thins.clone();
                thins.values().for_each(|thin| self.refer(&thin.mappings));
                self.held = Some(Arc::new(Held { root, thins }));
            }
            Change::Release => {
                let held = self.held.take().ok_or(Errno::EINVAL)?;
                held.thins.values().for_each(|thin| self.release_all(&thin.mappings));
            }
            Change::Insert { id, block, data } => {
                let thin = self.contents.thins.get_mut(&id).ok_or(Errno::ENODATA)?;
                let before = Arc::make_mut(&mut thin.mappings).insert(block, (data, time));
                *self.references.entry(data).or_default() += 1;
                if let Some((before, _)) = before {
                    self.release(before);
                }
            }
            Change::Discard { id, block } => {
                let thin = self.contents.thins.get_mut(&id).ok_or(Errno::ENODATA)?;
                if let Some((data, _)) = Arc::make_mut(&mut thin.mappings).remove(&block) {
                    self.release(data);
                }
            }
            Change::ResizeData(blocks) => self.contents.data_blocks = blocks,
            Change::ResizeMetadata(blocks) => self.contents.metadata_blocks = blocks,
        }
        Ok(())
    }

    fn insert(
        &mut self,
        id: u32,
        mappings: Arc<Mappings>,
        transaction_id: u64,
        (creation_time, snapshotted_time): (u32, u32),
    ) -> Result<(), Errno> {
        if self.exists(id) {
            return Err(Errno::EEXIST);
        }
        if self.free_metadata() == 0 {
            return Err(Errno::ENOSPC);
        }
        self.refer(&mappings);
        let thin = ThinContents { mappings, transaction_id, creation_time, snapshotted_time };
        self.contents.thins.insert(id, thin);
        Ok(())
    }

    fn refer(&mut self, mappings: &Mappings) {
        for (data, _) in mappings.values() {
            *self.references.entry(*data).or_default() += 1;
        }
    }

    fn release_all(&mut self, mappings: &Mappings) {
        mappings.values().for_each(|(data, _)| self.release(*data));
    }

    fn release(&mut self, data: u64) {
        if let Some(count) = self.references.get_mut(&data) {
            *count -= 1;
            if *count == 0 {
                self.references.remove(&data);
                self.free_hint = self.free_hint.min(data);
            }
        }
    }

    pub(super) fn is_free(&self, data: u64) -> bool {
        !self.references.contains_key(&data)
    }

    /// What must hold between any two changes.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut references = BTreeMap::new();
        let held = self.held.iter().flat_map(|held| held.thins.values());
        for (data, time) in self.contents.thins.values().chain(held).flat_map(|thin| thin.mappings.values()) {
            *references.entry(*data).or_insert(0u32) += 1;
            assert!(*data < self.contents.data_blocks && *time <= self.contents.time);
        }
        assert_eq!(references, self.references);
        let first_free = (0..).find(|block| !references.contains_key(block));
        assert!(first_free >= Some(self.free_hint));
    }
}
