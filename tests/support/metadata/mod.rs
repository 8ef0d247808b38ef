//! The metadata of a pool with some bytes changed: whatever it says, everything that reads it answers, in bounded time.
//!
//! An input begins with a byte that chooses a sound pool. Patches follow: the block (one byte, of those in use), the place in it
//! (two bytes, the highest bit of which leaves the checksum as it is), and eight bytes that are written there.

pub mod images;
pub mod pools;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};

use dm_thin::kernel::AlignedBlock;
use dm_thin::model::image::{Mappings, PoolContents, PoolImage, ThinContents};
use dm_thin::thin::ThinId;
use dm_thin::thin::metadata::format::{Block, BlockKind, thin_disk_superblock};
use dm_thin::thin::metadata::{BlockSource, Metadata, MetadataError, check};
use dm_thin::units::Sectors;
use zerocopy::FromBytes;

const PATCH: usize = 11;

/// A sound image: its blocks, which of them are in use, and of which kind.
#[derive(Debug)]
struct Image {
    blocks: Vec<AlignedBlock>,
    used: Vec<(usize, BlockKind)>,
    held: Option<u64>,
}

impl Image {
    fn new(pool: &PoolContents, held: bool) -> Self {
        let image = PoolImage::new(pool, None).unwrap();
        let held = held.then(|| image.hold().unwrap());
        let image = match &held {
            Some(held) => {
                let mut later = pool.clone();
                later.thins.retain(|id, _| id % 2 == 0);
                PoolImage::new(&later, Some(held)).unwrap()
            }
            None => image,
        };
        Self::of(Patched::new(&image))
    }

    fn of(Patched(blocks): Patched) -> Self {
        let kind_of = |(at, block): (usize, &AlignedBlock)| kind(&block.0).map(|kind| (at, kind));
        let used = blocks.iter().enumerate().filter_map(kind_of).collect();
        let superblock = thin_disk_superblock::ref_from_prefix(&blocks[0].0).unwrap().0;
        let held = Some(superblock.held_root.get()).filter(|&root| root != 0);
        Self { blocks, used, held }
    }

    fn patched(&'static self, patches: &[u8]) -> Overlay {
        let mut blocks = BTreeMap::new();
        for patch in patches.chunks_exact(PATCH).take(64) {
            let (at, kind) = self.used[usize::from(patch[0]) % self.used.len()];
            let place = usize::from(patch[1]) << 8 | usize::from(patch[2]);
            let block: &mut AlignedBlock = blocks.entry(at).or_insert(self.blocks[at]);
            let start = (place & 0xfff).min(4096 - 8);
            block.0[start..start + 8].copy_from_slice(&patch[3..]);
            if place & 0x8000 == 0 {
                let csum = kind.checksum(&block.0).to_le_bytes();
                block.0[..4].copy_from_slice(&csum);
            }
        }
        Overlay { below: &self.blocks, blocks }
    }
}

/// Blocks with some of them changed.
#[derive(Debug)]
struct Overlay {
    below: &'static [AlignedBlock],
    blocks: BTreeMap<usize, AlignedBlock>,
}

impl BlockSource for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.below.len() as u64)
    }

    fn read(&self, first: u64, buffer: &mut [AlignedBlock]) -> io::Result<()> {
        let first = usize::try_from(first).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        for (at, block) in (first..).zip(buffer) {
            let below = self.below.get(at).ok_or(io::ErrorKind::UnexpectedEof)?;
            *block = *self.blocks.get(&at).unwrap_or(below);
        }
        Ok(())
    }
}

/// The kind of a block, by which checksum holds.
pub fn kind(block: &Block) -> Option<BlockKind> {
    let stored = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let kinds = [BlockKind::Superblock, BlockKind::Node, BlockKind::Index, BlockKind::Bitmap];
    kinds.into_iter().find(|kind| kind.checksum(block) == stored)
}

/// The blocks of a metadata device.
#[derive(Debug, Clone)]
pub struct Patched(pub Vec<AlignedBlock>);

impl Patched {
    /// The blocks of a sound image.
    pub fn new(image: &PoolImage) -> Self {
        let mut blocks = AlignedBlock::zeroed(usize::try_from(BlockSource::len(image).unwrap()).unwrap());
        image.read(0, &mut blocks).unwrap();
        Self(blocks)
    }

    /// Writes bytes into a block and restores its checksum.
    pub fn write(&mut self, block: u64, at: usize, bytes: &[u8]) {
        let block = &mut self.0[usize::try_from(block).unwrap()].0;
        let kind = kind(block).expect("a sound block");
        block[at..at + bytes.len()].copy_from_slice(bytes);
        let csum = kind.checksum(block).to_le_bytes();
        block[..4].copy_from_slice(&csum);
    }
}

impl BlockSource for Patched {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, first: u64, buffer: &mut [AlignedBlock]) -> io::Result<()> {
        let first = usize::try_from(first).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let blocks = first.checked_add(buffer.len()).and_then(|end| self.0.get(first..end));
        buffer.copy_from_slice(blocks.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let mut pool = PoolContents::new(Sectors(128), 4000, 100);
        pool.time = 3;
        let thin =
            |mappings: Mappings| ThinContents { mappings: Arc::new(mappings), ..ThinContents::default() };
        // Trees of one level and of two; shared roots, shared leaves, shared data blocks.
        let long: Mappings = (0..700).map(|block| (block * 2, (block, 0))).collect();
        let mut changed = long.clone();
        changed.extend((100..110).map(|block| (block * 2, (900 + block, 1))));
        changed.retain(|block, _| *block != 600);
        let short: Mappings = (0..20).map(|block| (block, (2000 + block, 2))).collect();
        pool.thins.insert(0, thin(long.clone()));
        pool.thins.insert(1, ThinContents { creation_time: 1, ..pool.thins[&0].clone() });
        pool.thins.insert(2, thin(changed.clone()));
        changed.retain(|block, _| block % 3 > 0);
        pool.thins.insert(5, thin(changed));
        pool.thins.insert(9, thin(short));
        pool.thins.insert(1000, thin(Mappings::new()));
        let small = PoolContents::new(Sectors(2048), 10, 20);
        let mut images = vec![Image::new(&pool, false), Image::new(&pool, true), Image::new(&small, false)];
        images.extend(images::IMAGES.map(|(_, image)| Image::of(images::blocks(image))));
        images
    })
}

/// Takes the bytes for a pool and patches of it.
pub fn fuzz(bytes: &[u8]) {
    let (choice, patches) = bytes.split_first().unwrap_or((&0, &[]));
    let image = &images()[usize::from(*choice) % images().len()];
    let source: Arc<dyn BlockSource> = Arc::new(image.patched(patches));
    if let Ok(report) = check(source.clone()) {
        // Unless a patch changes nothing, damage that every reader meets is found.
        let all: String = report.findings.iter().map(ToString::to_string).collect();
        assert!(report.is_sound() == all.is_empty());
        assert!(patches.len() >= PATCH || report.is_sound(), "{all}");
    }
    let mut readable = Vec::new();
    readable.extend(Metadata::open(source.clone()));
    if let Some(held) = image.held {
        readable.extend(Metadata::open_snapshot(source, held));
    }
    for metadata in readable {
        let sound = metadata.check().unwrap().is_sound();
        let read = read_all(&metadata);
        assert!(read || !sound, "check() finds nothing in what cannot be read");
        let (blocks, size) = (metadata.blocks_read(), image.blocks.len() as u64);
        assert!(blocks < 200 * size, "{blocks} blocks read of {size}");
    }
}

/// Everything that there is to be read. Returns whether all of it can be.
fn read_all(metadata: &Metadata) -> bool {
    let mut sound = metadata.usage().is_ok();
    let devices = metadata.devices();
    sound &= devices.is_ok() && metadata.device_ids().is_ok();
    let mut ids: Vec<ThinId> = devices.into_iter().flatten().map(|device| device.id).collect();
    ids.truncate(5);
    for &id in &ids {
        sound &= metadata.device(id).is_ok_and(|device| device.is_some_and(|device| device.id == id));
        sound &= metadata.exclusive(id).is_ok() && metadata.sharers(id, 200).is_ok();
        sound &= ends(metadata.mappings(id, 0)) && ends(metadata.mappings(id, 300));
        sound &= ends(metadata.changed(None, id, 0));
        // Sound metadata can be too old for that.
        let since = metadata.changed_since(id, 1, 0);
        sound &= matches!(since, Err(MetadataError::TimeWrapped { .. })) || ends(since);
        for &base in &ids[..ids.len().min(3)] {
            sound &= ends(metadata.changed(Some(base), id, 0)) && ends(metadata.changed(Some(base), id, 300));
        }
    }
    sound
}

/// Takes an iterator to its end. Returns whether there was no error.
fn ends<T, E>(items: Result<impl Iterator<Item = Result<T, E>>, E>) -> bool {
    // Of a tree with so few nodes.
    items.is_ok_and(|mut items| {
        items.by_ref().take(100_000).all(|item| item.is_ok()) && items.next().is_none()
    })
}
