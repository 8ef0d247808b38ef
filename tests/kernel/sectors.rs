//! Disks with sectors of 4096 bytes.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use dm_thin::kernel::{DeviceNumber, Kernel, RealKernel};
use dm_thin::loopdev::{AttachOptions, LoopControl, LoopDevice};
use dm_thin::tree::files::RealDir;
use dm_thin::tree::{AddOptions, Filesystem, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::Bytes;

use crate::bench::Bench;
use crate::dying::{Dying, End, Life};
use crate::rig::{drop_caches, holds, write};
use crate::spy::Spy;

const SECTOR: Bytes = Bytes::kib(4);

/// A file, and a loop device on it that ends with this.
struct Disk(File, LoopDevice);

impl Disk {
    fn new(bench: &Bench, what: &str, size: Bytes) -> Self {
        let path = bench.path().join(what);
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(size.0).unwrap();
        let options = AttachOptions::new().autoclear(true).block_size(SECTOR);
        let device = LoopControl::open().unwrap().attach(&file, &path, &options).unwrap();
        assert_eq!(sector(device.number()), SECTOR);
        Self(file, device)
    }

    fn grow(&self, size: Bytes) {
        self.0.set_len(size.0).unwrap();
        self.1.set_capacity().unwrap();
    }
}

/// The logical sector of a device.
fn sector(number: DeviceNumber) -> Bytes {
    let path = format!("/sys/dev/block/{}:{}/queue/logical_block_size", number.major, number.minor);
    Bytes(fs::read_to_string(path).unwrap().trim().parse().unwrap())
}

fn sector_of(device: &Path) -> Bytes {
    sector(RealKernel.block_device(device).unwrap())
}

fn two(data: &Disk, metadata: &Disk) -> Options {
    let source = PoolSource::Devices { data: data.1.path(), metadata: metadata.1.path() };
    Options::new().pool_source(source).background_threads(false)
}

fn total(tree: &SnapshotTree) -> Bytes {
    tree.status().unwrap().data.unwrap().total
}

/// All that a tree does. `grow` makes its disk larger while the tree is closed, and tells the size that the pool has then.
fn story(bench: &Bench, options: impl Fn() -> Options, grow: impl FnOnce() -> Option<Bytes>) {
    let root = bench.root();
    let target = bench.path().join("target");
    let tree = SnapshotTree::open(&root, options()).unwrap();
    tree.add("a", Parent::Base).unwrap();
    assert_eq!(sector_of(&tree.activate("a").unwrap()), SECTOR);
    tree.mount("a", &target).unwrap();
    fs::write(target.join("file"), "first").unwrap();
    // While it is mounted.
    tree.add("b", Parent::Snapshot("a")).unwrap();
    tree.unmount("a").unwrap();
    tree.deactivate("a").unwrap();
    let larger = tree.status().unwrap().base_size + Bytes::mib(32);
    tree.add_with("c", Parent::Snapshot("b"), &AddOptions::new().size(larger)).unwrap();
    tree.mount("c", &target).unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "first");
    fs::write(target.join("file"), "second").unwrap();
    tree.unmount("c").unwrap();
    // Less than a sector.
    let writer = tree.create("d", Some(Parent::Base), &AddOptions::new()).unwrap();
    writer.write_at(Bytes(1000), b"unaligned").unwrap();
    writer.commit_sealed().unwrap();
    let mut found = [0; 9];
    tree.open_snapshot("d").unwrap().read_at(Bytes(1000), &mut found).unwrap();
    assert_eq!(&found, b"unaligned");
    assert_eq!(tree.usage().unwrap().len(), 4);
    tree.remove("a").unwrap();
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
    drop(tree);
    let grown = grow();
    drop_caches();
    let tree = SnapshotTree::open(&root, options()).unwrap();
    if let Some(size) = grown {
        assert_eq!(total(&tree), size);
    }
    for (id, text) in [("b", "first"), ("c", "second")] {
        tree.mount(id, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), text);
        tree.unmount(id).unwrap();
    }
    assert_eq!(tree.check().unwrap(), []);
    for id in ["b", "c", "d"] {
        tree.remove(id).unwrap();
    }
    tree.close().unwrap();
}

#[test]
fn a_tree_on_two_devices() {
    for (filesystem, base) in [(Filesystem::Ext4, Bytes::mib(64)), (Filesystem::Xfs, Bytes::mib(320))] {
        let bench = Bench::new();
        let data = Disk::new(&bench, "data", Bytes::gib(1));
        let metadata = Disk::new(&bench, "metadata", Bytes::mib(16));
        let options = || two(&data, &metadata).base_size(base).filesystem(filesystem);
        story(&bench, options, || {
            data.grow(Bytes::gib(2));
            Some(Bytes::gib(2))
        });
    }
}

#[test]
fn a_tree_on_one_labelled_device() {
    let bench = Bench::new();
    let disk = Disk::new(&bench, "disk", Bytes::gib(1));
    let source = || PoolSource::Device { path: disk.1.path() };
    let options = || Options::new().base_size(Bytes::mib(64)).background_threads(false);
    story(&bench, || options().pool_source(source()), || None);
}

#[test]
fn a_crash_at_every_call() {
    let bench = Bench::new();
    let data = Disk::new(&bench, "data", Bytes::gib(1));
    let metadata = Disk::new(&bench, "metadata", Bytes::mib(16));
    let options = || two(&data, &metadata).base_size(Bytes::mib(64)).filesystem(Filesystem::None);
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    tree.add("image", Parent::Base).unwrap();
    write(&tree.activate("image").unwrap(), 0, 16, 7).unwrap();
    // Its manager is killed; then the machine ends.
    drop(tree);
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    assert!(tree.get("image").unwrap().device.is_some());
    bench.restart(tree);
    for calls in 0.. {
        let life = Life::new(End::Errors, calls % 2 == 0);
        let kernel = Spy { life: Some(life.clone()), ..Spy::default() };
        let dir = Dying(RealDir::open(bench.root()).unwrap(), life.clone());
        let dying = options().kernel(Arc::new(kernel)).state_dir(Arc::new(dir));
        let tree = SnapshotTree::open(bench.root(), dying).unwrap();
        tree.add("old", Parent::Snapshot("image")).unwrap();
        life.ends_in(calls);
        let done = tree.remove("old").and_then(|()| tree.add("new", Parent::Snapshot("image")));
        drop(tree);
        let tree = SnapshotTree::open(bench.root(), options()).unwrap();
        assert_eq!(tree.check().unwrap(), [], "call {calls}");
        assert!(holds(&tree.activate("image").unwrap(), 0, 16, 7), "call {calls}");
        tree.deactivate("image").unwrap();
        for id in ["old", "new"] {
            if tree.contains(id) {
                tree.remove(id).unwrap();
            }
        }
        match done {
            Ok(()) => {
                assert!(calls > 6, "{calls} calls");
                tree.close().unwrap();
                break;
            }
            Err(_) if calls % 3 == 0 => bench.restart(tree),
            Err(_) => drop(tree),
        }
    }
}
