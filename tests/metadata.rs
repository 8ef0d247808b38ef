//! The metadata reader on images of pools: what it reads, which damage it names, and what a check finds.

#[path = "support/metadata/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use dm_thin::model::image::{Mappings, PoolContents, PoolImage, ThinContents};
use dm_thin::thin::ThinId;
use dm_thin::thin::metadata::{
    ChangeKind, Changes, Damage, Finding, Metadata, MetadataError, Report, SpaceMapKind, Tree, check,
};
use dm_thin::units::{Blocks, Sectors};
use proptest::prelude::*;
use support::Patched;
use support::pools::{Rng, random};

fn id(number: u32) -> ThinId {
    ThinId::new(number).unwrap()
}

fn live(pool: &PoolContents) -> Metadata {
    Metadata::open(Arc::new(PoolImage::new(pool, None).unwrap())).unwrap()
}

/// The same pool as its metadata snapshot, and as the superblock while that is held.
fn held(pool: &PoolContents) -> [Metadata; 2] {
    let held = PoolImage::new(pool, None).unwrap().hold().unwrap();
    let image = Arc::new(PoolImage::new(pool, Some(&held)).unwrap());
    [Metadata::open_snapshot(image.clone(), held.location()).unwrap(), Metadata::open(image).unwrap()]
}

fn mappings(metadata: &Metadata, id: ThinId, from: u64) -> Mappings {
    let mappings = metadata.mappings(id, from).unwrap().map(Result::unwrap);
    let each = mappings.flat_map(|run| {
        (0..run.length).map(move |at| (run.virtual_block + at, (run.data_block + at, run.time)))
    });
    each.collect()
}

/// Each changed block, and whether it is a hole.
fn blocks(changes: Changes<'_>) -> BTreeMap<u64, bool> {
    let changes = changes.map(Result::unwrap);
    changes
        .flat_map(|it| (it.begin..it.begin + it.length).map(move |at| (at, it.kind == ChangeKind::Hole)))
        .collect()
}

fn difference(base: &Mappings, target: &Mappings) -> BTreeMap<u64, bool> {
    let changed = target.iter().filter(|(at, (data, _))| base.get(at).is_none_or(|(other, _)| other != data));
    let holes = base.keys().filter(|at| !target.contains_key(at));
    changed.map(|(at, _)| (*at, false)).chain(holes.map(|at| (*at, true))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn devices_and_changes_are_what_the_pool_was_made_of(seed: u64, from in 0..20_000u64) {
        let pool = random(seed);
        let metadata = live(&pool);
        let devices = metadata.devices().unwrap();
        prop_assert!(devices.iter().map(|device| device.id.get()).eq(pool.thins.keys().copied()));
        for (device, thin) in devices.iter().zip(pool.thins.values()) {
            prop_assert_eq!(device.mapped.0, thin.mappings.len() as u64);
            prop_assert_eq!(device.transaction_id.0, thin.transaction_id);
            let times = (device.creation_time, device.snapshotted_time);
            prop_assert_eq!(times, (thin.creation_time, thin.snapshotted_time));
            prop_assert_eq!(metadata.device(device.id).unwrap(), Some(*device));
            prop_assert_eq!(&mappings(&metadata, device.id, 0), &*thin.mappings);
            let tail: Mappings = thin.mappings.range(from..).map(|(at, to)| (*at, *to)).collect();
            prop_assert_eq!(mappings(&metadata, device.id, from), tail);
        }
        for (base, left) in &pool.thins {
            for (target, right) in &pool.thins {
                let mut expected = difference(&left.mappings, &right.mappings);
                let changed = metadata.changed(Some(id(*base)), id(*target), 0).unwrap();
                prop_assert_eq!(blocks(changed), expected.clone());
                let tail = metadata.changed(Some(id(*base)), id(*target), from).unwrap();
                prop_assert_eq!(blocks(tail), expected.split_off(&from));
            }
        }
    }

    #[test]
    fn usage_is_what_the_mappings_say(seed: u64) {
        let pool = random(seed);
        let mut users: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (id, thin) in &pool.thins {
            thin.mappings.values().for_each(|(data, _)| users.entry(*data).or_default().push(*id));
        }
        let [snapshot, while_held] = held(&pool);
        let mut rng = Rng(seed | 1);
        for metadata in [&live(&pool), &snapshot, &while_held] {
            let usage = metadata.usage().unwrap();
            for (usage, (number, thin)) in usage.iter().zip(&pool.thins) {
                let own = users.values().filter(|users| **users == [*number]).count() as u64;
                let mapped = thin.mappings.len() as u64;
                prop_assert_eq!((usage.id, usage.mapped), (id(*number), Blocks(mapped)));
                prop_assert_eq!((usage.exclusive, usage.shared), (Blocks(own), Blocks(mapped - own)));
                prop_assert_eq!(metadata.exclusive(usage.id).unwrap(), usage.exclusive);
                for (block, (data, _)) in thin.mappings.iter().skip(rng.index(100)).step_by(500) {
                    let sharers = metadata.sharers(usage.id, *block).unwrap();
                    prop_assert!(sharers.iter().map(|id| id.get()).eq(users[data].iter().copied()));
                }
                prop_assert_eq!(metadata.sharers(usage.id, u64::MAX).unwrap(), []);
            }
            prop_assert_eq!(metadata.check().unwrap().findings, []);
        }
    }
}

#[test]
fn a_snapshot_costs_what_was_written() {
    let first: Mappings = (0..100_000).map(|block| (block, (block, 0))).collect();
    let mut second = first.clone();
    second.insert(50_000, (100_000, 1));
    let mut pool = PoolContents::new(Sectors(128), 110_000, 2000);
    for (id, mappings) in [(1, first), (2, second)] {
        pool.thins.insert(id, ThinContents { mappings: Arc::new(mappings), ..ThinContents::default() });
    }
    let metadata = live(&pool);
    let cost = |work: &dyn Fn(&Metadata)| {
        let before = metadata.blocks_read();
        work(&metadata);
        metadata.blocks_read() - before
    };
    assert!(cost(&|metadata| assert_eq!(metadata.changed(Some(id(1)), id(2), 0).unwrap().count(), 1)) < 20);
    assert!(cost(&|metadata| assert_eq!(metadata.exclusive(id(2)).unwrap(), Blocks(1))) < 15);
    assert!(cost(&|metadata| assert_eq!(metadata.sharers(id(2), 50_000).unwrap(), [id(2)])) < 10);
    let [snapshot, _] = held(&pool);
    let before = snapshot.blocks_read();
    assert_eq!(snapshot.usage().unwrap()[1].exclusive, Blocks(1));
    assert!(snapshot.blocks_read() - before < 30, "{}", snapshot.blocks_read());
}

#[test]
fn pools_of_more_data_blocks_than_are_counted_at_once() {
    let last = 133_700_000;
    let mut pool = PoolContents::new(Sectors(128), last + 1, 9000);
    let thin = |mappings: &[(u64, (u64, u32))]| {
        let mappings = Arc::new(mappings.iter().copied().collect());
        ThinContents { mappings, ..ThinContents::default() }
    };
    pool.thins.insert(1, thin(&[(0, (0, 0)), (1, (last, 0)), (2, (last - 1, 0))]));
    pool.thins.insert(2, thin(&[(0, (0, 0)), (1, (last, 0)), (2, (70_000_000, 0))]));
    let [snapshot, _] = held(&pool);
    for metadata in [&live(&pool), &snapshot] {
        assert!(metadata.usage().unwrap().iter().all(|usage| usage.exclusive == Blocks(1)));
        assert_eq!(metadata.check().unwrap().findings, []);
    }
}

/// A pool with trees of two levels, and where its nodes are.
struct Pool {
    source: Patched,
    /// The root and the first leaf of device 1.
    root: u64,
    leaf: u64,
    /// Roots of the other trees.
    devices: u64,
    details: u64,
}

fn u64_at(source: &Patched, block: u64, at: usize) -> u64 {
    let bytes = &source.0[usize::try_from(block).unwrap()].0[at..at + 8];
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// The place of a value of a node with 64-bit values.
fn value(index: usize) -> usize {
    32 + 8 * 252 + 8 * index
}

impl Pool {
    fn new() -> Self {
        let mappings = (0..700).map(|block| (block * 2, (block, 0))).collect();
        let long = ThinContents { mappings: Arc::new(mappings), ..ThinContents::default() };
        let short = ThinContents {
            mappings: Arc::new([(0, (800, 0))].into_iter().collect()),
            ..ThinContents::default()
        };
        let mut pool = PoolContents::new(Sectors(128), 1000, 100);
        pool.thins.insert(1, long.clone());
        pool.thins.insert(2, long);
        pool.thins.insert(3, short);
        let source = Patched::new(&PoolImage::new(&pool, None).unwrap());
        let devices = u64_at(&source, 0, 320);
        let root = u64_at(&source, devices, value(0));
        let leaf = u64_at(&source, root, value(0));
        let details = u64_at(&source, 0, 328);
        Self { source, root, leaf, devices, details }
    }

    fn with(&self, block: u64, at: usize, bytes: &[u8]) -> Arc<Patched> {
        let mut source = self.source.clone();
        source.write(block, at, bytes);
        Arc::new(source)
    }

    fn read(source: Arc<Patched>) -> Result<usize, MetadataError> {
        let metadata = Metadata::open(source)?;
        metadata.usage()?;
        Ok(metadata.mappings(id(1), 0)?.collect::<Result<Vec<_>, _>>()?.len())
    }
}

fn damage(result: Result<usize, MetadataError>) -> (u64, Damage) {
    match result {
        Err(MetadataError::Damaged { block, damage }) => (block, damage),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_kind_of_damage_is_named() {
    let pool = Pool::new();
    assert_eq!(Pool::read(Arc::new(pool.source.clone())).unwrap(), 700);
    let (root, leaf, devices) = (pool.root, pool.leaf, pool.devices);
    let second = u64_at(&pool.source, root, value(1));
    let second_key = u64_at(&pool.source, root, 40);
    let first_keys = u64_at(&pool.source, leaf, 32 + 16);
    let entries = u32::try_from(u64_at(&pool.source, leaf, 16) & 0xffff_ffff).unwrap();
    let long = |value: u64| value.to_le_bytes().to_vec();
    let short = |value: u32| value.to_le_bytes().to_vec();
    let cases = [
        (0, 32, long(7), Damage::Magic { found: 7 }),
        (0, 40, short(3), Damage::Version { found: 3 }),
        (0, 360, short(4), Damage::Features { flags: 4 }),
        (0, 336, short(100), Damage::BlockSize { sectors: 100 }),
        (0, 340, short(16), Damage::MetadataBlockSize { sectors: 16 }),
        (0, 64, long(1 << 40), Damage::SpaceMapSize { blocks: 1 << 40, available: 100 * 16_320 }),
        (0, 192, long(101), Damage::SpaceMapSize { blocks: 101, available: 100 }),
        (leaf, 8, long(77), Damage::Misplaced { found: 77 }),
        (leaf, 4, short(9), Damage::Kind { flags: 9, expected: "internal node or leaf" }),
        (second, 4, short(1), Damage::Kind { flags: 1, expected: "leaf" }),
        (leaf, 16, short(253), Damage::Entries { entries: 253, capacity: 252 }),
        (leaf, 20, short(255), Damage::Entries { entries, capacity: 255 }),
        (leaf, 20, long(u64::MAX), Damage::Entries { entries, capacity: u32::MAX }),
        (leaf, 24, short(4), Damage::ValueSize { found: 4, expected: 8 }),
        (root, 24, short(4), Damage::ValueSize { found: 4, expected: 8 }),
        (leaf, 40, long(0), Damage::Key { key: 0 }),
        (leaf, 40, long(first_keys), Damage::Key { key: first_keys }),
        (second, 32, long(second_key - 1), Damage::Key { key: second_key - 1 }),
        (leaf, 16, short(0), Damage::Entries { entries: 0, capacity: 252 }),
        (root, value(1), long(0), Damage::Child { child: 0 }),
        (root, value(1), long(100), Damage::Child { child: 100 }),
        (root, value(0), long(root), Damage::Cycle),
        (devices, value(0), long(100), Damage::Child { child: 100 }),
        (pool.details, 48, long(1 << 24), Damage::DeviceId { id: 1 << 24 }),
        (leaf, value(0), long(1000 << 24), Damage::DataBlock { data: 1000, blocks: 1000 }),
    ];
    for (block, at, bytes, expected) in cases {
        let (found_in, found) = damage(Pool::read(pool.with(block, at, &bytes)));
        assert_eq!(found, expected, "block {block} at {at}");
        let named = if block == 0 { found_in } else { block };
        assert_eq!(found_in, named, "{found:?}");
        let Report { findings, .. } = check(pool.with(block, at, &bytes)).unwrap();
        let named =
            |finding: &Finding| matches!(finding, Finding::Damaged { damage, .. } if *damage == expected);
        assert!(findings.iter().any(named), "{expected:?}: {findings:?}");
    }
    // What reads as before is not sound, either.
    let checked = [
        (leaf, 20, short(251), Damage::Capacity { capacity: 251 }),
        (leaf, 16, short(83), Damage::Underfull { entries: 83, capacity: 252 }),
        (0, 192 + 16, long(0), Damage::Child { child: 0 }),
        (0, 64 + 24, long(0), Damage::Child { child: 0 }),
    ];
    for (block, at, bytes, expected) in checked {
        let Report { findings, counts_compared, .. } = check(pool.with(block, at, &bytes)).unwrap();
        let named =
            |finding: &Finding| matches!(finding, Finding::Damaged { damage, .. } if *damage == expected);
        assert!(findings.iter().any(named) && !counts_compared, "{expected:?}: {findings:?}");
    }
    // A path of 16 internal nodes; the last blocks are free.
    let mut deep = pool.source.clone();
    for block in 80..96u64 {
        deep.0[usize::try_from(block).unwrap()] = deep.0[usize::try_from(root).unwrap()];
        deep.write(block, 8, &long(block));
        deep.write(block, value(0), &long(block + 1));
    }
    deep.write(root, value(0), &long(80));
    assert_eq!(damage(Pool::read(Arc::new(deep))), (root, Damage::Depth));
    let mut torn = pool.source.clone();
    torn.0[usize::try_from(leaf).unwrap()].0[100] ^= 1;
    assert!(matches!(damage(Pool::read(Arc::new(torn))), (block, Damage::Checksum { .. }) if block == leaf));
    let zeroes = Arc::new(Patched(vec![dm_thin::kernel::AlignedBlock([0; 4096]); 10]));
    assert!(matches!(Metadata::open(zeroes), Err(MetadataError::NotFormatted)));
    let metadata = Metadata::open(Arc::new(pool.source.clone())).unwrap();
    assert!(
        matches!(metadata.exclusive(id(7)), Err(MetadataError::NoDevice { id: missing }) if missing == id(7))
    );
}

#[test]
fn a_check_names_what_disagrees() {
    let pool = Pool::new();
    let (root, devices, details) = (pool.root, pool.devices, pool.details);
    let findings = |block, at, bytes: &[u8]| check(pool.with(block, at, bytes)).unwrap().findings;
    let details_value = 32 + 8 * 126;
    let mapped = Finding::MappedBlocks { id: id(1), recorded: Blocks(9), found: Blocks(700) };
    assert_eq!(findings(details, details_value, &9u64.to_le_bytes()), [mapped]);
    assert_eq!(
        findings(details, 32 + 16, &4u64.to_le_bytes()),
        [Finding::NoDetails { id: id(3) }, Finding::NoMappings { id: id(4) }]
    );
    // The data space map: its bitmap is what the first leaf of its index names.
    let data = SpaceMapKind::Data;
    let index = u64_at(&pool.source, 0, 64 + 16);
    let bitmap = u64_at(&pool.source, index, 32 + 8 * 168);
    let leaked = Finding::RefCount { map: data, block: 900, recorded: 1, found: 0 };
    let in_use = Finding::Allocated { map: data, recorded: Blocks(701), found: Blocks(702) };
    assert!(leaked.is_leak() && !in_use.is_leak());
    assert_eq!(findings(bitmap, 16 + 225, &[0b10]), [leaked, in_use]);
    // The kernel adds what is beyond the end of the device, up to the bitmap's 16,320 entries.
    let (nr_free, beyond) = (32 + 8 * 168 + 8, 16_320 - 1000);
    let free = Finding::FreeBlocks { map: data, bitmap: 0, recorded: 299 + beyond + 1, found: 299 };
    assert_eq!(findings(index, nr_free, &(299 + beyond + 1).to_le_bytes()), [free]);
    assert_eq!(findings(index, nr_free, &(299 + beyond).to_le_bytes()), []);
    let lost = |found| Finding::RefCount { map: data, block: 800, recorded: 0, found };
    assert_eq!(findings(bitmap, 16 + 200, &[0]), [lost(1)]);
    // 3 says that the count is in the tree, which has none.
    let root_of_counts = u64_at(&pool.source, 0, 64 + 24);
    let missing = Finding::Damaged {
        tree: Tree::RefCounts(data),
        block: root_of_counts,
        damage: Damage::NoCount { block: 800 },
    };
    assert_eq!(findings(bitmap, 16 + 200, &[0b11]), [missing, lost(1)]);
    // Device 3 leads where devices 1 and 2 do.
    let found = findings(devices, value(2), &root.to_le_bytes());
    let map = SpaceMapKind::Metadata;
    let twice = Finding::RefCount { map, block: root, recorded: 2, found: 3 };
    assert!(found.contains(&twice), "{found:?}");
    let found = findings(devices, value(2), &details.to_le_bytes());
    assert!(
        found.contains(&Finding::DoublyUsed { tree: Tree::Mappings(id(3)), block: details }),
        "{found:?}"
    );
    // The metadata space map has fewer blocks than are in use.
    let short = Finding::Damaged {
        tree: Tree::Bitmaps(map),
        block: u64_at(&pool.source, 0, 192 + 16),
        damage: Damage::SpaceMap { block: 1, blocks: 1 },
    };
    assert_eq!(findings(0, 192, &1u64.to_le_bytes()), [short]);
    // A count above 2 that the bitmap does not refer to.
    let stale = Finding::StaleCount { map: data, block: 5 };
    let mut source = pool.source.clone();
    source.write(root_of_counts, 16, &1u32.to_le_bytes());
    source.write(root_of_counts, 32, &5u64.to_le_bytes());
    assert_eq!(check(Arc::new(source)).unwrap().findings, [stale]);
}

#[test]
fn a_report_is_bounded() {
    let pool = Pool::new();
    let bitmap = u64_at(&pool.source, u64_at(&pool.source, 0, 64 + 16), 32 + 8 * 168);
    let mut small = PoolContents::new(Sectors(128), 8000, 100);
    small.thins.insert(1, ThinContents::default());
    let mut source = Patched::new(&PoolImage::new(&small, None).unwrap());
    let bitmap_of = u64_at(&source, u64_at(&source, 0, 64 + 16), 32 + 8 * 168);
    source.write(bitmap_of, 16, &[0b1010_1010; 2000]);
    let report = check(Arc::new(source)).unwrap();
    // 8,000 leaked blocks, and the number of allocated ones.
    assert_eq!((report.findings.len(), report.omitted, report.omitted_leaks), (1000, 7001, 7000));
    assert!(!report.is_sound() && !report.is_usable());
    assert!(check(pool.with(bitmap, 16, &[0b1010_1010])).unwrap().is_sound(), "nothing changes");
}
