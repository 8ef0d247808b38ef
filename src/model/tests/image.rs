//! Images of metadata, decoded by a walker that knows nothing of the encoder.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::model::image::{Mappings, PoolContents, PoolImage, ThinContents};
use crate::thin::metadata::format::{Block, BlockKind};
use crate::units::Sectors;

fn u32_at(block: &Block, at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().unwrap())
}

fn u64_at(block: &Block, at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().unwrap())
}

/// Reads blocks, and counts how often each is referred to.
struct Walker<'a> {
    block: &'a dyn Fn(u64) -> Block,
    metadata: BTreeMap<u64, u32>,
    data: BTreeMap<u64, u32>,
    /// Mapping trees by their roots.
    mappings: BTreeMap<u64, Arc<Mappings>>,
}

impl Walker<'_> {
    /// A block, and whether it is seen for the first time.
    fn read(&mut self, number: u64, kind: BlockKind) -> (Block, bool) {
        let block = (self.block)(number);
        assert_eq!(u32_at(&block, 0), kind.checksum(&block), "block {number}");
        assert_eq!(u64_at(&block, 8), number);
        let count = self.metadata.entry(number).or_default();
        *count += 1;
        (block, *count == 1)
    }

    /// Entries of a tree: key, and the value's bytes. Each leaf's entries are shown to `leaf` once.
    fn tree(
        &mut self,
        root: u64,
        value_size: usize,
        leaf: &mut dyn FnMut(&mut Self, &[u8]),
    ) -> Vec<(u64, Vec<u8>)> {
        let mut depths = Vec::new();
        let entries = self.node(root, value_size, true, 0, &mut depths, leaf);
        assert!(depths.windows(2).all(|two| two[0] == two[1]), "all leaves at one depth");
        assert!(entries.windows(2).all(|two| two[0].0 < two[1].0), "keys ascend");
        entries
    }

    fn node(
        &mut self,
        number: u64,
        value_size: usize,
        is_root: bool,
        depth: usize,
        depths: &mut Vec<usize>,
        leaf: &mut dyn FnMut(&mut Self, &[u8]),
    ) -> Vec<(u64, Vec<u8>)> {
        let (block, first) = self.read(number, BlockKind::Node);
        let (flags, count, max) =
            (u32_at(&block, 4), u32_at(&block, 16) as usize, u32_at(&block, 20) as usize);
        let size = if flags == 1 { 8 } else { value_size };
        assert_eq!((u32_at(&block, 24) as usize, max), (size, 4064 / (8 + size) / 3 * 3));
        assert!(count <= max && (is_root || count >= max / 3), "{count} of {max}");
        let key = |at: usize| u64_at(&block, 32 + at * 8);
        let value = |at: usize| block[32 + max * 8 + at * size..][..size].to_vec();
        if flags == 2 {
            depths.push(depth);
            if first {
                (0..count).for_each(|at| leaf(self, &value(at)));
            }
            return (0..count).map(|at| (key(at), value(at))).collect();
        }
        let mut entries = Vec::new();
        for at in 0..count {
            let child = u64::from_le_bytes(value(at).try_into().unwrap());
            // What is below a shared node counts once.
            let counted = (!first).then(|| (self.metadata.clone(), self.data.clone()));
            let below = self.node(child, value_size, false, depth + 1, depths, leaf);
            assert!(below[0].0 >= key(at));
            entries.extend(below);
            if let Some((metadata, data)) = counted {
                (self.metadata, self.data) = (metadata, data);
            }
        }
        entries
    }

    fn contents(&mut self, location: u64) -> (PoolContents, Block) {
        let (block, _) = self.read(location, BlockKind::Superblock);
        assert_eq!((u64_at(&block, 32), u32_at(&block, 40)), (27_022_010, 2));
        let mut pool = PoolContents::new(Sectors(u64::from(u32_at(&block, 336))), 0, u64_at(&block, 344));
        pool.transaction_id = u64_at(&block, 48);
        pool.time = u32_at(&block, 44);
        pool.needs_check = u32_at(&block, 4) == 1;
        let long = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let short = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let mut seen = Vec::new();
        let roots = self.tree(u64_at(&block, 320), 8, &mut |_, root| seen.push(long(root)));
        for root in seen {
            let entries = self.tree(root, 8, &mut |walker, value| {
                *walker.data.entry(long(value) >> 24).or_default() += 1;
            });
            let mapping = |value: &[u8]| (long(value) >> 24, u32::try_from(long(value) & 0xff_ffff).unwrap());
            let mappings = entries.iter().map(|(at, value)| (*at, mapping(value))).collect();
            self.mappings.insert(root, Arc::new(mappings));
        }
        let details = self.tree(u64_at(&block, 328), 24, &mut |_, _| ());
        assert_eq!(details.len(), roots.len());
        for ((id, root), (same, details)) in roots.iter().zip(&details) {
            assert_eq!(id, same);
            let thin = ThinContents {
                mappings: Arc::clone(&self.mappings[&long(root)]),
                transaction_id: long(&details[8..]),
                creation_time: short(&details[16..]),
                snapshotted_time: short(&details[20..]),
            };
            assert_eq!(long(details), thin.mappings.len() as u64);
            pool.thins.insert(u32::try_from(*id).unwrap(), thin);
        }
        (pool, block)
    }

    /// A space map's counts, without zeroes.
    fn space_map(&mut self, block: &Block, at: usize) -> (u64, BTreeMap<u64, u32>) {
        let (nr_blocks, allocated) = (u64_at(block, at), u64_at(block, at + 8));
        let (bitmap_root, ref_count_root) = (u64_at(block, at + 16), u64_at(block, at + 24));
        let bitmaps = nr_blocks.div_ceil(16_320);
        let index: Vec<(u64, Vec<u8>)> = if at == 64 {
            self.tree(bitmap_root, 16, &mut |_, _| ())
        } else {
            let (index, _) = self.read(bitmap_root, BlockKind::Index);
            (0..bitmaps).zip(index[16..].chunks(16).map(<[u8]>::to_vec)).collect()
        };
        assert!(index.iter().map(|(at, _)| *at).eq(0..bitmaps));
        let large = self.tree(ref_count_root, 4, &mut |_, _| ());
        let mut large: BTreeMap<u64, Vec<u8>> = large.into_iter().collect();
        let mut counts = BTreeMap::new();
        for (number, entry) in index {
            let location = u64::from_le_bytes(entry[..8].try_into().unwrap());
            let (bitmap, _) = self.read(location, BlockKind::Bitmap);
            let (mut free, mut first_free) = (0, None);
            for at in 0..(nr_blocks - number * 16_320).min(16_320) {
                let bits = bitmap[16 + usize::try_from(at / 4).unwrap()] >> (at % 4 * 2);
                let block = number * 16_320 + at;
                match (bits & 1) << 1 | bits >> 1 & 1 {
                    0 => {
                        free += 1;
                        first_free = first_free.or(Some(at));
                        continue;
                    }
                    3 => {
                        let count = large.remove(&block).unwrap();
                        counts.insert(block, u32::from_le_bytes(count[..4].try_into().unwrap()));
                    }
                    count => drop(counts.insert(block, u32::from(count))),
                }
            }
            assert_eq!(u32::from_le_bytes(entry[8..12].try_into().unwrap()), free);
            let none_free_before = u64::from(u32::from_le_bytes(entry[12..].try_into().unwrap()));
            assert_eq!(none_free_before, first_free.unwrap_or((nr_blocks - number * 16_320).min(16_320)));
        }
        assert!(large.is_empty(), "counts in the tree only");
        assert_eq!(counts.len() as u64, allocated);
        (nr_blocks, counts)
    }
}

/// Everything that the blocks say: the pool, and the metadata snapshot with its location.
pub(in crate::model) fn decode(block: &dyn Fn(u64) -> Block) -> (PoolContents, Option<(u64, PoolContents)>) {
    let mut walker =
        Walker { block, metadata: BTreeMap::new(), data: BTreeMap::new(), mappings: BTreeMap::new() };
    let (mut pool, superblock) = walker.contents(0);
    let held = u64_at(&superblock, 56);
    let held = (held != 0).then(|| {
        let (contents, copy) = walker.contents(held);
        assert!(copy[56..320].iter().all(|&byte| byte == 0), "no space maps, and no snapshot of its own");
        (held, contents)
    });
    let (data_blocks, data) = walker.space_map(&superblock, 64);
    assert_eq!(data, walker.data);
    let (metadata_blocks, metadata) = walker.space_map(&superblock, 192);
    assert_eq!((metadata_blocks, metadata), (pool.metadata_blocks, walker.metadata));
    pool.data_blocks = data_blocks;
    (pool, held)
}

fn decode_image(image: &PoolImage) -> (PoolContents, Option<(u64, PoolContents)>) {
    decode(&|number| *image.block(number).unwrap())
}

prop_compose! {
    fn thin()(
        from in 0..1000u64,
        step in 1..40u64,
        len in 0..900u64,
        data in 0..1000u64,
        time in 0..4u32,
        transaction_id: u64,
        creation_time: u32,
        snapshotted_time: u32,
        base in 0..4u32,
        holes in vec(0..2000u64, 0..4),
    ) -> (u32, Vec<u64>, ThinContents) {
        let mappings = (0..len).map(|at| (from + at * step, (data + at, time))).collect();
        let thin = ThinContents { mappings: Arc::new(mappings), transaction_id, creation_time, snapshotted_time };
        (base, holes, thin)
    }
}

prop_compose! {
    fn pool()(thins in btree_map(0..8u32, thin(), 0..8), transaction_id: u64, time: u32, needs_check: bool) -> PoolContents {
        let mut pool = PoolContents::new(Sectors(128), 2000, 17_000);
        (pool.transaction_id, pool.time, pool.needs_check) = (transaction_id, time, needs_check);
        for (id, (base, holes, mut thin)) in thins {
            // Some begin as another one.
            if let Some(ThinContents { mappings, .. }) = pool.thins.get(&base) {
                let mappings = mappings.iter().chain(thin.mappings.iter().take(5));
                let mut mappings: Mappings = mappings.map(|(&at, &to)| (at, to)).collect();
                mappings.retain(|block, _| !holes.contains(block));
                thin.mappings = Arc::new(mappings);
            }
            pool.thins.insert(id, thin);
        }
        pool
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn images_say_what_they_were_made_from(pool in pool(), other in pool()) {
        let image = PoolImage::new(&pool, None).unwrap();
        prop_assert_eq!(decode_image(&image), (pool.clone(), None));
        let held = image.hold().unwrap();
        let copy = PoolContents { data_blocks: 0, ..pool };
        for live in [&copy, &other] {
            let live = PoolContents { data_blocks: 2000, ..live.clone() };
            let image = PoolImage::new(&live, Some(&held)).unwrap();
            prop_assert_eq!(decode_image(&image), (live, Some((held.location(), copy.clone()))));
        }
    }
}

#[test]
fn a_snapshot_shares_all_but_the_leaf_that_was_written() {
    let mappings: Arc<Mappings> = Arc::new((0..20_000).map(|block| (block, (block, 0))).collect());
    let mut pool = PoolContents::new(Sectors(128), 100_000, 4096);
    pool.thins.insert(1, ThinContents { mappings: Arc::clone(&mappings), ..ThinContents::default() });
    let count = |pool: &PoolContents| PoolImage::new(pool, None).unwrap().blocks().count();
    let alone = count(&pool);
    pool.thins.insert(2, ThinContents { mappings: Arc::clone(&mappings), ..ThinContents::default() });
    assert_eq!(count(&pool), alone);
    for written in [3, 7000, 30_000] {
        let mut own = Mappings::clone(&mappings);
        own.insert(written, (50_000, 1));
        pool.thins.insert(2, ThinContents { mappings: Arc::new(own), ..ThinContents::default() });
        assert_eq!(count(&pool), alone + 2, "its leaf and its root");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    use crate::model::image::ImageError;
    let mut pool = PoolContents::new(Sectors(128), 10, 9);
    assert_eq!(
        PoolImage::new(&pool, None).unwrap().hold().unwrap_err(),
        ImageError::OutOfSpace { available: 9 }
    );
    pool.metadata_blocks = 8;
    assert_eq!(PoolImage::new(&pool, None).unwrap_err(), ImageError::OutOfSpace { available: 8 });
    pool.metadata_blocks = 100;
    let mappings = Arc::new(BTreeMap::from([(0, (10, 0))]));
    pool.thins.insert(1, ThinContents { mappings, ..ThinContents::default() });
    assert_eq!(PoolImage::new(&pool, None).unwrap_err(), ImageError::DataBlock { block: 10, available: 10 });
    pool.metadata_blocks = 255 * 16_320 + 1;
    assert!(matches!(PoolImage::new(&pool, None), Err(ImageError::TooLarge { .. })));
}
