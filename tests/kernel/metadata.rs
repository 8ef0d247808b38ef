//! The pool's metadata as this crate reads it, beside what the thin-provisioning-tools say of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use dm_thin::kernel::AlignedBlock;
use dm_thin::thin::Error;
use dm_thin::thin::metadata::format::{Block, BlockKind};
use dm_thin::thin::metadata::{BlockSource, ChangeKind, Metadata};
use dm_thin::thin::{PoolFeatures, ThinId, ThinUsage};
use dm_thin::units::{Blocks, Bytes};

use crate::bench::Bench;
use crate::rig::{Rig, id};

const SIZE: Bytes = Bytes::mib(64);
const BLOCKS: u64 = 1024;

/// splitmix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

pub fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

pub fn tool(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

pub fn text(program: &str, arguments: &[&str]) -> String {
    let output = tool(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An attribute of an XML element on a line of its own.
fn attribute(line: &str, name: &str) -> u64 {
    let (_, rest) = line.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("{name} in {line}"));
    rest.split('"').next().unwrap().parse().unwrap()
}

/// Virtual block → data block and time.
type Mappings = BTreeMap<u64, (u64, u64)>;

/// What thin_dump says: device → its details and mappings.
fn dumped(xml: &str) -> BTreeMap<u64, ([u64; 4], Mappings)> {
    let mut devices = BTreeMap::new();
    let mut current = None;
    for line in xml.lines().map(str::trim) {
        if line.starts_with("<device ") {
            let details = ["mapped_blocks", "transaction", "creation_time", "snap_time"];
            let id = attribute(line, "dev_id");
            devices.insert(id, (details.map(|name| attribute(line, name)), Mappings::new()));
            current = Some(id);
        } else if line.starts_with("<single_mapping ") {
            let [block, data, time] =
                ["origin_block", "data_block", "time"].map(|name| attribute(line, name));
            devices.get_mut(&current.unwrap()).unwrap().1.insert(block, (data, time));
        } else if line.starts_with("<range_mapping ") {
            let [block, data, length, time] =
                ["origin_begin", "data_begin", "length", "time"].map(|name| attribute(line, name));
            let mappings = &mut devices.get_mut(&current.unwrap()).unwrap().1;
            mappings.extend((0..length).map(|n| (block + n, (data + n, time))));
        }
    }
    devices
}

/// The same, read by this crate.
fn read(metadata: &Metadata) -> BTreeMap<u64, ([u64; 4], Mappings)> {
    let mut devices = BTreeMap::new();
    for device in metadata.devices().unwrap() {
        let details = [
            device.mapped.0,
            device.transaction_id.0,
            device.creation_time.into(),
            device.snapshotted_time.into(),
        ];
        let mut mappings = Mappings::new();
        for run in metadata.mappings(device.id, 0).unwrap() {
            let run = run.unwrap();
            let each = |n| (run.virtual_block + n, (run.data_block + n, run.time.into()));
            mappings.extend((0..run.length).map(each));
        }
        devices.insert(device.id.get().into(), (details, mappings));
    }
    devices
}

fn listed(text: &str) -> Vec<[u64; 4]> {
    let row = |line: &str| {
        let numbers: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(row).collect()
}

fn usage(usage: Vec<ThinUsage>) -> Vec<[u64; 4]> {
    let row = |used: ThinUsage| [used.id.get().into(), used.mapped.0, used.exclusive.0, used.shared.0];
    usage.into_iter().map(row).collect()
}

/// What thin_delta says: block → whether the right one has data there.
fn delta(xml: &str) -> BTreeMap<u64, bool> {
    let mut changes = BTreeMap::new();
    for line in xml.lines().map(str::trim) {
        let data = match line.split_whitespace().next() {
            Some("<different" | "<right_only") => true,
            Some("<left_only") => false,
            _ => continue,
        };
        let (begin, length) = (attribute(line, "begin"), attribute(line, "length"));
        changes.extend((begin..begin + length).map(|block| (block, data)));
    }
    changes
}

pub fn changed(metadata: &Metadata, base: Option<ThinId>, target: ThinId) -> BTreeMap<u64, bool> {
    let mut changes = BTreeMap::new();
    let mut end = 0;
    for change in metadata.changed(base, target, 0).unwrap() {
        let change = change.unwrap();
        assert!(change.begin >= end && change.length > 0, "ascending: {change:?} after {end}");
        end = change.begin + change.length;
        changes.extend((change.begin..end).map(|block| (block, change.kind == ChangeKind::Data)));
    }
    changes
}

/// A pool that is changed at random.
struct RandomPool {
    rig: Rig,
    rng: Rng,
    ids: Vec<u32>,
    next: u32,
}

impl RandomPool {
    fn new(bench: &Bench, seed: u64) -> Self {
        let rig =
            Rig::with(bench, crate::bench::dm(), Bytes::mib(256), Bytes::mib(16), PoolFeatures::default());
        let mut pool = Self { rig, rng: Rng(seed), ids: Vec::new(), next: 0 };
        pool.create();
        pool
    }

    fn any(&mut self) -> u32 {
        let index = self.rng.below(self.ids.len() as u64);
        self.ids[index as usize]
    }

    fn create(&mut self) {
        self.rig.pool().create_thin(id(self.next)).unwrap();
        self.ids.push(self.next);
        self.next += 1 + self.rng.below(3) as u32;
    }

    fn snapshot(&mut self) {
        let origin = self.any();
        let origin = dm_thin::thin::Origin::Inactive(id(origin));
        self.rig.pool().create_snap(id(self.next), &origin).unwrap();
        self.ids.push(self.next);
        self.next += 1;
    }

    fn delete(&mut self) {
        let index = self.rng.below(self.ids.len() as u64) as usize;
        let gone = self.ids.swap_remove(index);
        self.rig.pool().delete(id(gone)).unwrap();
    }

    /// Writes and discards on one volume.
    fn change(&mut self) {
        let number = self.any();
        let volume = self.rig.activated(number, SIZE);
        let path = volume.path();
        let file = File::options().write(true).open(&path).unwrap();
        for _ in 0..=self.rng.below(6) {
            let start = self.rng.below(BLOCKS);
            let length = (1 + self.rng.below(24)).min(BLOCKS - start);
            if self.rng.below(4) == 0 {
                let (offset, length) = (format!("{}", start << 16), format!("{}", length << 16));
                text("blkdiscard", &["-o", &offset, "-l", &length, path.to_str().unwrap()]);
            } else {
                (start..start + length).for_each(|block| file.write_all_at(&[7; 4096], block << 16).unwrap());
            }
        }
        file.sync_all().unwrap();
        drop(file);
        volume.deactivate().unwrap();
    }

    fn step(&mut self) {
        match self.rng.below(10) {
            0 => self.create(),
            1..=3 => self.snapshot(),
            4 if self.ids.len() > 3 => self.delete(),
            _ => self.change(),
        }
        let status = self.rig.usage();
        if status.free_data() < Blocks(512) {
            while self.ids.len() > 2 {
                let gone = self.ids.pop().unwrap();
                self.rig.pool().delete(id(gone)).unwrap();
            }
        }
    }

    /// All that the tools tell of the live pool.
    fn compare(&mut self) {
        let device = self.rig.metadata.node();
        let device = device.to_str().unwrap().to_owned();
        let (left, right) = (self.any(), self.any());
        let pool = self.rig.pool();
        pool.read_metadata(|metadata| {
            let dump = text("thin_dump", &["--metadata-snap", "--format", "xml", &device]);
            assert_eq!(read(metadata), dumped(&dump));
            let format = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS";
            let list = text("thin_ls", &["--metadata-snap", "--no-headers", "--format", format, &device]);
            assert_eq!(usage(metadata.usage()?), listed(&list));
            let (one, two) = (left.to_string(), right.to_string());
            let xml = text("thin_delta", &["--metadata-snap", "--snap1", &one, "--snap2", &two, &device]);
            assert_eq!(changed(metadata, Some(id(left)), id(right)), delta(&xml));
            let all = &dumped(&dump)[&u64::from(right)].1;
            let data = changed(metadata, None, id(right));
            assert!(data.values().all(|data| *data) && data.keys().eq(all.keys()));
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn random_pools_read_as_the_tools_read_them() {
    let bench = Bench::new();
    let seed = variable("DM_THIN_METADATA_SEED", 1);
    let mut pool = RandomPool::new(&bench, seed);
    for step in 1..=variable("DM_THIN_METADATA_STEPS", 120) {
        pool.step();
        if step % 15 == 0 {
            pool.compare();
        }
    }
    pool.rig.deactivate();
    compare_inactive(&pool.rig.metadata.path);
    // Once more with a metadata snapshot that was left behind.
    pool.rig.activate(PoolFeatures::default());
    pool.rig.pool().reserve_metadata_snap().unwrap();
    (0..5).for_each(|_| pool.step());
    pool.rig.deactivate();
    compare_inactive(&pool.rig.metadata.path);
    damage(&bench, &pool.rig.metadata.path, &mut pool.rng);
    if std::env::var_os("DM_THIN_METADATA_IMAGE").is_some() {
        print_image(&pool.rig.metadata.path);
    }
}

/// All that the tools tell of the pool when it is not active.
fn compare_inactive(path: &Path) {
    let metadata = Metadata::open(Arc::new(File::open(path).unwrap())).unwrap();
    let path = path.to_str().unwrap();
    text("thin_check", &[path]);
    let report = metadata.check().unwrap();
    assert!(report.is_sound() && report.counts_compared, "{report:?}");
    assert_eq!(read(&metadata), dumped(&text("thin_dump", &[path])));
    let format = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS";
    let list = listed(&text("thin_ls", &["--no-headers", "--format", format, path]));
    assert_eq!(usage(metadata.usage().unwrap()), list);
    for [number, _, exclusive, _] in list {
        assert_eq!(metadata.exclusive(id(number as u32)).unwrap(), Blocks(exclusive));
    }
}

/// The blocks that a check reads.
fn reachable(path: &Path) -> Vec<(u64, Block)> {
    #[derive(Debug)]
    struct Recording(File, Mutex<BTreeSet<u64>>);

    impl BlockSource for Recording {
        fn len(&self) -> std::io::Result<u64> {
            BlockSource::len(&self.0)
        }

        fn read(&self, first: u64, buffer: &mut [AlignedBlock]) -> std::io::Result<()> {
            self.1.lock().unwrap().extend(first..first + buffer.len() as u64);
            self.0.read(first, buffer)
        }
    }

    let source = Arc::new(Recording(File::open(path).unwrap(), Mutex::default()));
    Metadata::open(source.clone()).unwrap().check().unwrap();
    let blocks = source.1.lock().unwrap();
    let read = |&block: &u64| {
        let mut bytes = [0; 4096];
        source.0.read_exact_at(&mut bytes, block * 4096).unwrap();
        (block, bytes)
    };
    blocks.iter().map(read).collect()
}

/// The image of `tests/support/metadata/images.rs`: a line of hexadecimal digits for each run of bytes.
fn print_image(path: &Path) {
    for (block, bytes) in reachable(path) {
        // Eight bytes at a time.
        let words: Vec<(usize, &[u8])> = (0..).step_by(8).zip(bytes.chunks(8)).collect();
        for run in words.chunk_by(|one, next| (one.1 == [0; 8]) == (next.1 == [0; 8])) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, word)| *word).copied().collect();
            if bytes.iter().any(|&byte| byte != 0) {
                let header = [block as u16, run[0].0 as u16, bytes.len() as u16].map(u16::to_le_bytes);
                let all = header.iter().flatten().chain(&bytes);
                println!("image {}", all.map(|byte| format!("{byte:02x}")).collect::<String>());
            }
        }
    }
}

/// The kind of a block, by which checksum holds.
fn kind(block: &Block) -> BlockKind {
    let stored = u32::from_le_bytes(block[..4].try_into().unwrap());
    let kinds = [BlockKind::Superblock, BlockKind::Node, BlockKind::Index, BlockKind::Bitmap];
    kinds.into_iter().find(|kind| kind.checksum(block) == stored).unwrap()
}

/// Wherever thin_check finds a fault after one byte has changed, with the checksum made to fit or not, so does this
/// crate.
fn damage(bench: &Bench, sound: &Path, rng: &mut Rng) {
    let path = bench.path().join("damaged");
    std::fs::copy(sound, &path).unwrap();
    let copy = File::options().read(true).write(true).open(&path).unwrap();
    let blocks = reachable(sound);
    let (mut found, mut ours_found) = (0, 0);
    let flips = variable("DM_THIN_METADATA_FLIPS", 40);
    for flip in 0..flips {
        let (block, sound) = blocks[rng.below(blocks.len() as u64) as usize];
        let (at, mut bytes) = (rng.below(4096) as usize, sound);
        bytes[at] ^= 1 << rng.below(8);
        if flip % 2 == 0 {
            let checksum = kind(&sound).checksum(&bytes);
            bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        }
        copy.write_all_at(&bytes, block * 4096).unwrap();
        let theirs = tool("thin_check", &["-q", path.to_str().unwrap()]).status.success();
        let metadata = Metadata::open(Arc::new(File::open(&path).unwrap()));
        // thin_check 0.9 objects to the flag of a check that it was to do.
        let flagged = metadata.as_ref().is_ok_and(|metadata| metadata.superblock().needs_check);
        let ours = metadata.and_then(|metadata| metadata.check()).is_ok_and(|report| report.is_sound());
        (found, ours_found) = (found + u32::from(!theirs), ours_found + u32::from(!ours));
        assert!(
            theirs || flagged || !ours,
            "byte {at} of block {block}: thin_check finds a fault, and check() does not"
        );
        copy.write_all_at(&sound, block * 4096).unwrap();
    }
    println!("{flips} bytes changed: thin_check objects to {found}, check() to {ours_found}");
    assert!(u64::from(found) > flips / 3, "thin_check objects to {found} of {flips}");
}

#[test]
fn many_devices_read_as_the_tools_read_them() {
    let bench = Bench::new();
    let mut pool = RandomPool::new(&bench, 7);
    (0..4).for_each(|_| pool.change());
    let count = variable("DM_THIN_METADATA_DEVICES", 300);
    for made in 1.. {
        pool.snapshot();
        if made % 10 == 0 {
            pool.delete();
        }
        if made % (count / 30).max(1) == 0 {
            pool.change();
        }
        if pool.ids.len() as u64 == count {
            break;
        }
    }
    pool.compare();
    assert_eq!(pool.rig.pool().thin_ids().unwrap().len() as u64, count);
    pool.rig.deactivate();
    compare_inactive(&pool.rig.metadata.path);
}

#[test]
fn a_read_leaves_no_metadata_snapshot_behind() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    rig.volume(1, Bytes::mib(16)).deactivate().unwrap();
    let failed = rig.pool().read_metadata(|_| Err::<(), _>(Error::NoLabel { device: "none".into() }));
    assert!(matches!(failed, Err(Error::NoLabel { .. })));
    assert_eq!(rig.usage().held_metadata_root, None);
    rig.pool().reserve_metadata_snap().unwrap();
    let held = rig.pool().thin_ids().unwrap_err();
    assert!(matches!(held, Error::MetadataSnapHeld { .. }), "{held}");
    rig.pool().release_metadata_snap().unwrap();
    assert_eq!(rig.pool().thin_ids().unwrap(), [id(1)]);
}
