//! Devices into a tree, on a kernel in memory.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use dm_thin::dm::{DeviceMapper, UdevPolicy};
use dm_thin::kernel::DeviceNumber;
use dm_thin::model::ModelKernel;
use dm_thin::thin::{PoolFeatures, PoolTable, ThinId, ThinPool, TransactionId};
use dm_thin::tree::{Filesystem, Lineage, Options, Parent, PoolSource, RemoveOptions, SnapshotTree};
use dm_thin::units::{Blocks, Bytes};
use dm_thin_docker::{Adopted, DeviceName, Error, Store};
use proptest::prelude::*;
use support::{BLOCK, Fixture, SIZE, device_json, hash, image, thin};

fn tree(directory: &Path, block_size: Bytes, filesystem: Filesystem) -> SnapshotTree {
    let options = Options::new().data_size(Bytes::mib(64)).metadata_size(Bytes::mib(4));
    let options = options.base_size(Bytes::mib(16)).block_size(block_size).filesystem(filesystem);
    let options = options.kernel(Arc::new(ModelKernel::new())).udev(UdevPolicy::None);
    SnapshotTree::open(directory, options).unwrap()
}

fn content(tree: &SnapshotTree, id: &str) -> Vec<u8> {
    // The container is not sealed; a snapshot of it is as good.
    let copy = format!("copy of {id}");
    tree.add(&copy, Parent::Snapshot(id)).unwrap();
    tree.seal(&copy).unwrap();
    let reader = tree.open_snapshot(&copy).unwrap();
    let mut bytes = vec![0xee; usize::try_from(reader.size().0).unwrap()];
    reader.read_at(Bytes(0), &mut bytes).unwrap();
    drop(reader);
    // Deleted when this returns: while the tree's thread deletes it, `check` finds a removed snapshot that is active.
    let _ = tree.remove_with(&copy, &RemoveOptions::new().background(false)).unwrap();
    bytes
}

fn adopt(store: &Store, tree: &SnapshotTree) -> BTreeMap<DeviceName, Adopted> {
    let mut adopted = BTreeMap::new();
    store
        .adopt(tree, |device, it| assert_eq!(adopted.insert(device.name.clone(), it.clone()), None))
        .unwrap();
    adopted
}

#[test]
fn children_become_snapshots_of_their_parents() {
    let mut fixture = Fixture::new();
    fixture.contents.thins.insert(9, thin(&[(0, 9)]));
    fixture.write_pool("devicemapper/devicemapper");
    let (store, directory) = (fixture.store(), tempfile::tempdir().unwrap());
    let tree = tree(directory.path(), Bytes(BLOCK), Filesystem::None);
    let adopted = adopt(&store, &tree);
    let data = BLOCK - 8192;
    let copied = |blocks: u64| Adopted::Copied { written: Bytes(blocks * data) };
    let init = format!("{}-init", hash('c'));
    for (id, name, thin, parent, written) in [
        ("docker-base", "base", 1, None, copied(1)),
        (&hash('a'), &hash('a'), 2, Some("docker-base"), copied(1)),
        (&hash('b'), &hash('b'), 3, Some(hash('a').as_str()), copied(2)),
        (&init, &init, 4, Some(hash('b').as_str()), copied(0)),
        (&hash('c'), &hash('c'), 5, Some(init.as_str()), copied(1)),
    ] {
        assert!(content(&tree, id) == image(&fixture.contents.thins[&thin].mappings, SIZE), "{id}");
        let info = tree.get(id).unwrap();
        match (&info.parent, parent) {
            (Lineage::Snapshot(found), Some(parent)) => assert_eq!(found.as_str(), parent),
            (other, parent) => assert!(parent.is_none(), "{id}: {other:?}"),
        }
        assert_eq!(info.sealed.is_some(), id != hash('c'), "{id}");
        assert_eq!(info.labels.get("docker/device"), Some(name));
        assert_eq!(adopted[&name.parse().unwrap()], written, "{id}");
    }
    assert_eq!(adopted[&"thin-9".parse().unwrap()], Adopted::Skipped);
    let labels = |id: &str, key: &str| tree.get(id).unwrap().labels.get(key).map(str::to_owned);
    assert_eq!(labels(&hash('c'), "docker/name").as_deref(), Some("web"));
    assert_eq!(labels(&hash('b'), "docker/name").as_deref(), Some("debian:12"));
    assert_eq!(labels(&hash('c'), "docker/kind").as_deref(), Some("container"));
    assert_eq!(tree.check().unwrap(), []);

    // Again: all of it is there.
    let again = self::adopt(&store, &tree);
    assert_eq!(again.values().filter(|it| **it == Adopted::Present).count(), 5);
    tree.close().unwrap();
}

/// What its children share with it they get, too.
#[test]
fn a_device_that_cannot_be_read_is_left_out() {
    let mut fixture = Fixture::new();
    fixture.contents.thins.insert(2, thin(&[(0, 0), (3, 1), (5, 60)]));
    fixture.write_pool("devicemapper/devicemapper");
    let data =
        std::fs::File::options().write(true).open(fixture.join("devicemapper/devicemapper/data")).unwrap();
    data.set_len(50 * BLOCK).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path(), Bytes(BLOCK), Filesystem::None);
    let adopted = adopt(&fixture.store(), &tree);
    assert!(matches!(adopted[&support::name('a')], Adopted::Unreadable { .. }), "{adopted:?}");
    let upper = tree.get(hash('b')).unwrap();
    assert!(matches!(&upper.parent, Lineage::Snapshot(id) if id.as_str() == "docker-base"), "{upper:?}");
    for (id, thin) in [(hash('b'), 3), (hash('c'), 5)] {
        assert!(content(&tree, &id) == image(&fixture.contents.thins[&thin].mappings, SIZE), "{id}");
    }
    tree.close().unwrap();
}

/// Writes a superblock of XFS to the base, which all devices have from it.
fn write_uuid(fixture: &Fixture, uuid: u8) {
    let path = fixture.join("devicemapper/devicemapper/data");
    let pool = fs::File::options().write(true).open(path).unwrap();
    pool.write_all_at(b"XFSB", 0).unwrap();
    pool.write_all_at(&[uuid; 16], 32).unwrap();
}

/// All directories have a base, and a pool alone has devices of the same names.
#[test]
fn two_directories_are_not_mixed_in_a_tree() {
    let (first, second) = (Fixture::new(), Fixture::new());
    write_uuid(&first, 1);
    write_uuid(&second, 2);
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path(), Bytes(BLOCK), Filesystem::None);
    adopt(&first.store(), &tree);
    assert_eq!(
        tree.get(hash('c')).unwrap().labels.get("docker/filesystem").map(|it| &it[..8]),
        Some("01010101")
    );
    let error = second.store().adopt(&tree, |_, _| panic!("nothing is adopted")).unwrap_err();
    assert!(matches!(&error, Error::OtherSnapshot { .. }), "{error}");
    // Nor is a snapshot overlooked that somebody else has made.
    tree.remove(hash('c')).unwrap();
    tree.add(hash('c'), Parent::Base).unwrap();
    let error = first.store().adopt(&tree, |_, _| panic!("nothing is adopted")).unwrap_err();
    assert!(matches!(&error, Error::OtherSnapshot { id, .. } if *id == hash('c')), "{error}");
    tree.close().unwrap();
}

/// A bad sector of one device is none of the others'.
#[test]
fn a_device_that_ends_in_an_error_is_left_out() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let path = fixture.join("devicemapper/devicemapper/data");
    // Data blocks 2 and 3 are the upper layer's, block 4 the container's.
    fs::File::options().write(true).open(path).unwrap().set_len(3 * BLOCK).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path(), Bytes(BLOCK), Filesystem::None);
    let adopted = adopt(&store, &tree);
    let is_unreadable = |digit| matches!(&adopted[&support::name(digit)], Adopted::Unreadable { reason } if reason.contains("read the data file"));
    assert!(is_unreadable('b') && is_unreadable('c') && !is_unreadable('a'), "{adopted:?}");
    assert!(content(&tree, &hash('a')) == image(&fixture.contents.thins[&2].mappings, SIZE));
    assert_eq!((tree.contains(hash('b')), tree.check().unwrap()), (false, vec![]));
    tree.close().unwrap();
}

#[test]
fn a_tree_of_another_file_system_is_refused() {
    let fixture = Fixture::new();
    let pool =
        std::fs::File::options().write(true).open(fixture.join("devicemapper/devicemapper/data")).unwrap();
    pool.write_all_at(b"XFSB", 0).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path(), Bytes(BLOCK), Filesystem::Ext4);
    let error = fixture.store().adopt(&tree, |_, _| panic!("nothing is adopted")).unwrap_err();
    assert!(matches!(error, Error::OtherFilesystem { found: "xfs", expected: "ext4", .. }), "{error}");
    tree.close().unwrap();
}

/// A pool of the model with the thin devices of the fixture, and a tree in it.
fn tree_in_place(directory: &Path, transaction: u64, thins: &[u32]) -> SnapshotTree {
    let kernel = Arc::new(ModelKernel::new());
    let number = |minor| DeviceNumber { major: 8, minor };
    let (metadata, data) = (number(16), number(32));
    kernel.set_disk(Path::new("/dev/sdb"), metadata, Bytes::mib(4).sectors()).unwrap();
    kernel.set_disk(Path::new("/dev/sdc"), data, Bytes::mib(64).sectors()).unwrap();
    let (block_size, features) = (Bytes(BLOCK).sectors(), PoolFeatures::default());
    let table = PoolTable { metadata, data, block_size, low_water_mark: Blocks(0), features };
    let dm = Arc::new(DeviceMapper::with_kernel(kernel.clone(), UdevPolicy::None).unwrap());
    let (name, uuid) = ("docker-thinpool".parse().unwrap(), "LVM-pool".parse().unwrap());
    let pool = ThinPool::create(dm, &name, &uuid, &table, Bytes::mib(64).sectors()).unwrap();
    thins.iter().for_each(|id| pool.create_thin(ThinId::new(*id).unwrap()).unwrap());
    pool.set_transaction_id(TransactionId(0), TransactionId(transaction)).unwrap();
    let source = PoolSource::Pool { name: "docker-thinpool".to_owned() };
    let options = Options::new().pool_source(source).filesystem(Filesystem::None);
    SnapshotTree::open(directory, options.kernel(kernel).udev(UdevPolicy::None)).unwrap()
}

fn adopt_in_place(store: &Store, tree: &SnapshotTree) -> Result<Vec<Adopted>, Error> {
    let mut adopted = Vec::new();
    store.adopt_in_place(tree, |_, it| adopted.push(it.clone())).map(|()| adopted)
}

#[test]
fn in_place_devices_keep_their_thin_ids() {
    let fixture = Fixture::new();
    let with_pool = fixture.store();
    fs::remove_dir_all(fixture.join("devicemapper/devicemapper")).unwrap();
    // As with LVM, whose pool is not in the directory.
    for store in [with_pool, fixture.store()] {
        let directory = tempfile::tempdir().unwrap();
        let tree = tree_in_place(directory.path(), 5, &[1, 2, 3, 4, 5]);
        assert_eq!(adopt_in_place(&store, &tree).unwrap(), [const { Adopted::InPlace }; 5]);
        let init = format!("{}-init", hash('c'));
        for (id, thin, parent) in [
            ("docker-base", 1, None),
            (&hash('a'), 2, Some("docker-base".to_owned())),
            (&hash('b'), 3, Some(hash('a'))),
            (&init, 4, Some(hash('b'))),
            (&hash('c'), 5, Some(init.clone())),
        ] {
            let info = tree.get(id).unwrap();
            let found = match &info.parent {
                Lineage::Snapshot(parent) => Some(parent.to_string()),
                _ => None,
            };
            assert_eq!((info.thin_id.get(), info.size, found), (thin, Bytes(SIZE), parent), "{id}");
        }
        assert_eq!(tree.get(hash('c')).unwrap().labels.get("docker/name"), Some("web"));
        assert_eq!(tree.check().unwrap(), []);
        assert_eq!(adopt_in_place(&store, &tree).unwrap(), [const { Adopted::Present }; 5]);
        tree.close().unwrap();
    }
}

#[test]
fn another_pool_is_not_adopted() {
    let fixture = Fixture::new();
    let with_pool = fixture.store();
    fs::remove_dir_all(fixture.join("devicemapper/devicemapper")).unwrap();
    let alone = fixture.store();
    let all = [1, 2, 3, 4, 5];
    for (store, transaction, thins, words) in [
        (&with_pool, 9, &all[..], "its transaction id is 9, Docker's is 5"),
        (&alone, 3, &all, "its transaction id is 3, Docker's is 5"),
        (&alone, u64::MAX, &all, "Docker's is 5"),
        (&with_pool, 5, &all[1..], "it does not have thin device 1"),
        (&alone, 5, &all[1..], "thin device: 1: is not in the pool"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let tree = tree_in_place(directory.path(), transaction, thins);
        let error = adopt_in_place(store, &tree).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(tree.list().len(), 0);
        tree.close().unwrap();
    }
    // One that the tree has made for itself.
    let directory = tempfile::tempdir().unwrap();
    let tree = tree(directory.path(), Bytes(BLOCK), Filesystem::None);
    assert!(matches!(adopt_in_place(&with_pool, &tree), Err(Error::OtherPool { .. })));
    tree.close().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_adopted_is_what_was_there(
        lines in prop::collection::vec(prop::collection::btree_map(0u64..16, 0u64..64, 0..16), 5),
        large: bool,
        cut in 0u64..16,
    ) {
        let mut fixture = Fixture::new();
        for (id, blocks) in (1..).zip(lines) {
            fixture.contents.thins.insert(id, thin(&blocks.into_iter().collect::<Vec<_>>()));
        }
        fixture.write_pool("devicemapper/devicemapper");
        let size = SIZE - cut * 512;
        for (name, id) in [("base", 1), (&hash('a'), 2), (&hash('b'), 3), (&format!("{}-init", hash('c')), 4), (&hash('c'), 5)] {
            let json = device_json(id).replace(&SIZE.to_string(), &size.to_string());
            fixture.write(&format!("devicemapper/metadata/{name}"), json);
        }
        let directory = tempfile::tempdir().unwrap();
        let block_size = if large { Bytes(4 * BLOCK) } else { Bytes(BLOCK) };
        let tree = tree(directory.path(), block_size, Filesystem::None);
        adopt(&fixture.store(), &tree);
        let init = format!("{}-init", hash('c'));
        for (id, thin) in [("docker-base", 1), (&hash('a'), 2), (&hash('b'), 3), (&init, 4), (&hash('c'), 5)] {
            let mut expected = image(&fixture.contents.thins[&thin].mappings, size);
            expected.resize(expected.len().next_multiple_of(4096), 0);
            prop_assert!(content(&tree, id) == expected, "{}", id);
        }
        tree.close().unwrap();
    }
}
