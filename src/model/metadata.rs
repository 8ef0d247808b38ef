//! A thin pool's metadata: thin devices, their mappings, and who shares which data block.

use std::collections::BTreeMap;
use std::ops::Range;

use nix::errno::Errno;

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
    /// A write to one block: maps it, or breaks sharing.
    Write {
        id: u32,
        block: u64,
    },
    Discard {
        id: u32,
        block: u64,
    },
    ResizeData(u64),
    ResizeMetadata(u64),
}

#[derive(Debug, Clone)]
pub(super) struct Metadata {
    pub(super) block_sectors: u64,
    pub(super) transaction: u64,
    pub(super) data_blocks: u64,
    pub(super) metadata_blocks: u64,
    pub(super) held_root: Option<u64>,
    pub(super) needs_check: bool,
    /// Thin device id -> virtual block -> data block.
    pub(super) thins: BTreeMap<u32, BTreeMap<u64, u64>>,
    /// Data block -> how many mappings lead to it.
    references: BTreeMap<u64, u32>,
    /// No data block below this one is free.
    free_hint: u64,
}

impl Metadata {
    /// A freshly formatted pool; its data size becomes known when it is resumed.
    pub(super) fn format(block_sectors: u64, metadata_blocks: u64) -> Result<Self, Errno> {
        if metadata_blocks < METADATA_OVERHEAD {
            return Err(Errno::ENOSPC);
        }
        Ok(Self {
            block_sectors,
            transaction: 0,
            data_blocks: 0,
            metadata_blocks,
            held_root: None,
            needs_check: false,
            thins: BTreeMap::new(),
            references: BTreeMap::new(),
            free_hint: 0,
        })
    }

    pub(super) fn used_data(&self) -> u64 {
        self.references.len() as u64
    }

    pub(super) fn free_data(&self) -> u64 {
        self.data_blocks.saturating_sub(self.used_data())
    }

    /// One block for each thin device's mapping tree, and their leaves.
    pub(super) fn used_metadata(&self) -> u64 {
        METADATA_OVERHEAD
            + self.thins.len() as u64
            + self.used_data() / MAPPINGS_PER_BLOCK
            + u64::from(self.held_root.is_some())
    }

    pub(super) fn free_metadata(&self) -> u64 {
        self.metadata_blocks.saturating_sub(self.used_metadata())
    }

    pub(super) fn mapped(&self, id: u32) -> u64 {
        self.thins.get(&id).map_or(0, |map| map.len() as u64)
    }

    /// The mapped blocks of a thin device in a range.
    pub(super) fn mapped_in(&self, id: u32, blocks: Range<u64>) -> Vec<u64> {
        let map = self.thins.get(&id).filter(|_| !blocks.is_empty());
        map.into_iter().flat_map(|map| map.range(blocks.clone())).map(|(&block, _)| block).collect()
    }

    /// Whether a write to the block needs a new data block.
    pub(super) fn needs_allocation(&self, id: u32, block: u64) -> bool {
        match self.thins.get(&id).and_then(|map| map.get(&block)) {
            Some(data) => self.references.get(data).is_some_and(|&count| count > 1),
            None => true,
        }
    }

    pub(super) fn apply(&mut self, change: &Change) -> Result<(), Errno> {
        match *change {
            Change::CreateThin(id) => self.insert(id, BTreeMap::new())?,
            Change::CreateSnap { id, origin } => {
                if self.thins.contains_key(&id) {
                    return Err(Errno::EEXIST);
                }
                let map = self.thins.get(&origin).ok_or(Errno::ENODATA)?.clone();
                self.insert(id, map)?;
            }
            Change::Delete(id) => {
                for data in self.thins.remove(&id).ok_or(Errno::ENODATA)?.into_values() {
                    self.release(data);
                }
            }
            Change::SetTransaction { current, new } => {
                if self.transaction != current {
                    return Err(Errno::EINVAL);
                }
                self.transaction = new;
            }
            Change::Hold => {
                if self.held_root.is_some() {
                    return Err(Errno::EBUSY);
                }
                self.held_root = Some(self.used_metadata());
            }
            Change::Release => {
                self.held_root.take().ok_or(Errno::EINVAL)?;
            }
            Change::Write { id, block } => self.write(id, block)?,
            Change::Discard { id, block } => {
                let map = self.thins.get_mut(&id).ok_or(Errno::ENODATA)?;
                if let Some(data) = map.remove(&block) {
                    self.release(data);
                }
            }
            Change::ResizeData(blocks) => self.data_blocks = blocks,
            Change::ResizeMetadata(blocks) => self.metadata_blocks = blocks,
        }
        Ok(())
    }

    fn insert(&mut self, id: u32, map: BTreeMap<u64, u64>) -> Result<(), Errno> {
        if self.thins.contains_key(&id) {
            return Err(Errno::EEXIST);
        }
        if self.free_metadata() == 0 {
            return Err(Errno::ENOSPC);
        }
        for data in map.values() {
            *self.references.entry(*data).or_default() += 1;
        }
        self.thins.insert(id, map);
        Ok(())
    }

    fn write(&mut self, id: u32, block: u64) -> Result<(), Errno> {
        if !self.thins.contains_key(&id) {
            return Err(Errno::ENODATA);
        }
        if !self.needs_allocation(id, block) {
            return Ok(());
        }
        let mut free = self.free_hint;
        for used in self.references.range(free..).map(|(&used, _)| used) {
            if used != free {
                break;
            }
            free += 1;
        }
        if free >= self.data_blocks {
            return Err(Errno::ENOSPC);
        }
        self.free_hint = free + 1;
        self.references.insert(free, 1);
        let shared = self.thins.get_mut(&id).and_then(|map| map.insert(block, free));
        if let Some(shared) = shared {
            self.release(shared);
        }
        Ok(())
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

    /// What must hold between any two changes.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut references = BTreeMap::new();
        for data in self.thins.values().flat_map(BTreeMap::values) {
            *references.entry(*data).or_insert(0u32) += 1;
            assert!(*data < self.data_blocks);
        }
        assert_eq!(references, self.references);
        let first_free = (0..).find(|block| !references.contains_key(block));
        assert!(first_free >= Some(self.free_hint));
    }
}
