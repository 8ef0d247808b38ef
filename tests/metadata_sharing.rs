//! Devices that share nodes, of which one names a node where it cannot be: an error, never a wrong answer.
#![cfg(feature = "model")]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use dm_thin::kernel::AlignedBlock;
use dm_thin::model::image::{Mappings, PoolContents, PoolImage, ThinContents};
use dm_thin::thin::ThinId;
use dm_thin::thin::metadata::format::{BLOCK_SIZE, Block, BlockKind};
use dm_thin::thin::metadata::{BlockSource, ChangeKind, Damage, Metadata, MetadataError};
use dm_thin::units::Sectors;

const DATA_MAPPING_ROOT: usize = 320;
const BLOCKS: u64 = 256;

#[derive(Debug, Clone)]
struct Image(Vec<Block>);

impl BlockSource for Image {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, first: u64, buffer: &mut [AlignedBlock]) -> io::Result<()> {
        for (number, block) in (usize::try_from(first).unwrap()..).zip(buffer) {
            block.0 = *self.0.get(number).ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        Ok(())
    }
}

impl Image {
    fn u64(&self, block: usize, at: usize) -> u64 {
        u64::from_le_bytes(self.0[block][at..at + 8].try_into().unwrap())
    }

    /// Where a node of eight-byte values has the value of that index.
    fn value_at(&self, node: usize, index: usize) -> usize {
        let capacity = u32::from_le_bytes(self.0[node][20..24].try_into().unwrap());
        32 + 8 * (usize::try_from(capacity).unwrap() + index)
    }

    fn value(&self, node: usize, index: usize) -> usize {
        usize::try_from(self.u64(node, self.value_at(node, index))).unwrap()
    }

    fn set(&mut self, kind: BlockKind, block: usize, at: usize, value: u64) {
        self.0[block][at..at + 8].copy_from_slice(&value.to_le_bytes());
        let csum = kind.checksum(&self.0[block]).to_le_bytes();
        self.0[block][..4].copy_from_slice(&csum);
    }

    fn open(self) -> Metadata {
        Metadata::open(Arc::new(self)).unwrap()
    }
}

fn id(id: u32) -> ThinId {
    ThinId::new(id).unwrap()
}

/// Devices 1 and 2 share all leaves but the last one; with them the root of device 2.
fn image() -> (Image, usize) {
    let base: Mappings = (0..1000).map(|block| (block, (block, 0))).collect();
    let mut next = base.clone();
    next.insert(999, (5000, 1));
    let thin = |mappings| ThinContents { mappings: Arc::new(mappings), ..ThinContents::default() };
    let mut pool = PoolContents::new(Sectors(128), 10_000, BLOCKS);
    pool.thins = BTreeMap::from([(1, thin(base)), (2, thin(next))]);
    let encoded = PoolImage::new(&pool, None).unwrap();
    let mut image = Image(vec![[0; BLOCK_SIZE]; usize::try_from(BLOCKS).unwrap()]);
    for (number, block) in encoded.blocks() {
        image.0[usize::try_from(number).unwrap()] = *block;
    }
    let top = usize::try_from(image.u64(0, DATA_MAPPING_ROOT)).unwrap();
    let root = image.value(top, 1);
    (image, root)
}

fn is_key_damage<T>(result: Result<T, MetadataError>) -> bool {
    matches!(result, Err(MetadataError::Damaged { damage: Damage::Key { .. }, .. }))
}

fn changed(metadata: &Metadata) -> Result<Vec<(u64, u64, ChangeKind)>, MetadataError> {
    let changes = metadata.changed(Some(id(1)), id(2), 0)?;
    changes.map(|change| change.map(|it| (it.begin, it.length, it.kind))).collect()
}

#[test]
fn only_the_changed_block_differs() {
    let (image, _) = image();
    assert_eq!(changed(&image.open()).unwrap(), [(999, 1, ChangeKind::Data)]);
}

#[test]
fn a_leaf_named_twice_is_damage() {
    let (mut image, root) = image();
    let (first, second) = (image.value(root, 0), image.value_at(root, 1));
    image.set(BlockKind::Node, root, second, first as u64);
    let metadata = image.open();
    assert!(is_key_damage(changed(&metadata)), "{:?}", changed(&metadata));
    // What is exclusive is told without reading shared leaves; the check reads them all.
    assert!(!metadata.check().unwrap().is_sound());
}

#[test]
fn shared_leaves_in_each_others_place_are_damage() {
    let (mut image, root) = image();
    let (first, second) = (image.value(root, 0), image.value(root, 1));
    let [to_first, to_second] = [0, 1].map(|index| image.value_at(root, index));
    image.set(BlockKind::Node, root, to_first, second as u64);
    image.set(BlockKind::Node, root, to_second, first as u64);
    let metadata = image.open();
    assert!(is_key_damage(changed(&metadata)), "{:?}", changed(&metadata));
    // What is exclusive is told without reading shared leaves; the check reads them all.
    assert!(!metadata.check().unwrap().is_sound());
}

/// `metadata_nr_blocks` stays what it was when the pool was formatted.
#[test]
fn metadata_blocks_come_from_the_space_map() {
    let (mut image, _) = image();
    image.set(BlockKind::Superblock, 0, 344, BLOCKS / 2);
    assert_eq!(image.open().superblock().metadata_blocks.0, BLOCKS);
}

#[test]
fn the_superblock_is_no_metadata_snapshot() {
    let (image, _) = image();
    let result = Metadata::open_snapshot(Arc::new(image), 0);
    let damage = Damage::Child { child: 0 };
    assert!(
        matches!(&result, Err(MetadataError::Damaged { block: 0, damage: it }) if *it == damage),
        "{result:?}"
    );
}
