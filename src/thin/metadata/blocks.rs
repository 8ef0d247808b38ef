//! Reading blocks: verified, sorted, coalesced, counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::{Damage, MetadataError};
use super::format::{BlockKind, DM_SM_METADATA_MAX_BLOCKS};
use super::node::Node;
use super::verify::verify;
use super::{BlockSource, Superblock};
use crate::kernel::AlignedBlock;

/// Blocks read at once: 1 MiB.
pub(super) const BATCH: usize = 256;
/// Nodes that are kept: 4 MiB.
const CACHED: usize = 1024;

/// Reads metadata blocks and verifies each one's checksum and number.
#[derive(Debug)]
pub(super) struct BlockReader {
    source: Arc<dyn BlockSource>,
    len: u64,
    read: AtomicU64,
    cached: Mutex<HashMap<u64, Arc<Node>>>,
}

impl BlockReader {
    pub(super) fn new(source: Arc<dyn BlockSource>) -> Result<Self, MetadataError> {
        let len = source.len().map_err(|source| MetadataError::Io { block: 0, source })?;
        let len = len.min(DM_SM_METADATA_MAX_BLOCKS);
        Ok(Self { source, len, read: AtomicU64::new(0), cached: Mutex::default() })
    }

    /// Blocks that there are; the kernel uses no more than [`DM_SM_METADATA_MAX_BLOCKS`].
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Blocks read so far.
    pub(super) fn blocks_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The superblock of a metadata snapshot.
    pub(super) fn superblock(&self, block: u64) -> Result<Option<Superblock>, MetadataError> {
        self.read.fetch_add(1, Ordering::Relaxed);
        Superblock::read_at(&*self.source, block)
    }

    /// One block.
    pub(super) fn block(&self, kind: BlockKind, block: u64) -> Result<Box<AlignedBlock>, MetadataError> {
        let mut buffer = Box::new(AlignedBlock([0; 4096]));
        self.fill(block, std::slice::from_mut(&mut *buffer))?;
        verify(kind, block, &buffer.0)?;
        Ok(buffer)
    }

    /// Up to [`BATCH`] blocks, in the order asked for: read in the order of the device, adjacent ones at once.
    pub(super) fn blocks(&self, kind: BlockKind, blocks: &[u64]) -> Result<Vec<AlignedBlock>, MetadataError> {
        let result = self.unverified(blocks)?;
        for (&block, bytes) in blocks.iter().zip(&result) {
            verify(kind, block, &bytes.0)?;
        }
        Ok(result)
    }

    /// The same, whatever the blocks contain.
    pub(super) fn unverified(&self, blocks: &[u64]) -> Result<Vec<AlignedBlock>, MetadataError> {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_unstable_by_key(|&index| blocks[index]);
        let mut sorted = AlignedBlock::zeroed(blocks.len());
        let mut at = 0;
        while at < order.len() {
            let first = blocks[order[at]];
            let adjacent = order[at..].iter().zip(first..);
            let run = adjacent.take_while(|&(&index, expected)| blocks[index] == expected).count().max(1);
            self.fill(first, &mut sorted[at..at + run])?;
            at += run;
        }
        if order.is_sorted() {
            return Ok(sorted);
        }
        let mut result = AlignedBlock::zeroed(blocks.len());
        for (&index, bytes) in order.iter().zip(&sorted) {
            result[index] = *bytes;
        }
        Ok(result)
    }

    /// A node on the way to a leaf, from the cache if it is there.
    pub(super) fn node(&self, block: u64) -> Result<Arc<Node>, MetadataError> {
        if let Some(node) = self.cache().get(&block) {
            return Ok(node.clone());
        }
        self.check_child(block, block)?;
        let node = Arc::new(Node::parse(block, self.block(BlockKind::Node, block)?)?);
        let mut cache = self.cache();
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(block, node.clone());
        Ok(node)
    }

    /// Nodes in the order asked for, at most [`BATCH`] in memory.
    pub(super) fn nodes(&self, blocks: &[u64]) -> Result<Vec<Node>, MetadataError> {
        let raw = self.blocks(BlockKind::Node, blocks)?;
        blocks.iter().zip(raw).map(|(&block, raw)| Node::parse(block, Box::new(raw))).collect()
    }

    /// Checks that `child`, named in `block`, can be a block of the metadata.
    pub(super) fn check_child(&self, block: u64, child: u64) -> Result<(), MetadataError> {
        if child == 0 || child >= self.len {
            return Err(MetadataError::Damaged { block, damage: Damage::Child { child } });
        }
        Ok(())
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Node>>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, first: u64, buffer: &mut [AlignedBlock]) -> Result<(), MetadataError> {
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.source.read(first, buffer).map_err(|source| MetadataError::Io { block: first, source })
    }
}
