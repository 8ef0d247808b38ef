//! Pools that are not on loop files.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use dm_thin::thin;
use dm_thin::thin::tools::CheckPolicy;
use dm_thin::thin::{PoolFeatures, ThinId, TransactionId};
use dm_thin::tree::Error;
use dm_thin::tree::{Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::Bytes;

use crate::bench::{Bench, dm};
use crate::rig::Rig;

const DATA: &str = "/dev/vdb";
const METADATA: &str = "/dev/vdc";

fn devices() -> Options {
    let source = PoolSource::Devices { data: DATA.into(), metadata: METADATA.into() };
    Options::new().base_size(Bytes::mib(64)).pool_source(source)
}

fn wipe() {
    for path in [DATA, METADATA] {
        crate::bench::wipe(Path::new(path));
    }
}

/// Damaged metadata, at `start` of the device, is found before the pool is active, and left as it is, as is metadata
/// without its superblock.
fn refuses_damage(bench: &Bench, device: &str, start: u64) {
    let file = OpenOptions::new().read(true).write(true).open(device).unwrap();
    let mut good = vec![0; 2 << 20];
    file.read_exact_at(&mut good, start).unwrap();
    let mut bad = good.clone();
    // All but the superblock.
    bad.chunks_mut(4096).skip(1).for_each(|block| block[1000] ^= 1);
    let put = |bytes: &[u8]| file.write_all_at(bytes, start).and_then(|()| file.sync_all()).unwrap();
    put(&bad);
    let checked = || SnapshotTree::open(bench.root(), Options::new().check_metadata(CheckPolicy::Required));
    let error = checked().unwrap_err();
    assert!(matches!(error, Error::Thin(thin::Error::Tool { program: "thin_check", .. })), "{error}");
    bench.audit();
    let mut found = vec![0; 2 << 20];
    file.read_exact_at(&mut found, start).unwrap();
    assert!(found == bad, "not touched");
    // Without its superblock the kernel would take it for new.
    bad = [&[0; 4096], &good[4096..]].concat();
    put(&bad);
    let error = SnapshotTree::open(bench.root(), Options::new()).unwrap_err();
    assert!(matches!(error, Error::BackingFile { .. }), "{error}");
    bench.audit();
    file.read_exact_at(&mut found, start).unwrap();
    assert!(found == bad, "not touched");
    put(&good);
    checked().unwrap().close().unwrap();
}

#[test]
fn two_devices_hold_a_pool() {
    let bench = Bench::new();
    wipe();
    let tree = SnapshotTree::open(bench.root(), devices()).unwrap();
    assert!(matches!(tree.grow_pool(Bytes::gib(4)), Err(Error::InvalidOption { option: "data size", .. })));
    tree.add("image", Parent::Base).unwrap();
    tree.mount("image", bench.path().join("target")).unwrap();
    fs::write(bench.path().join("target/file"), "kept").unwrap();
    tree.unmount("image").unwrap();
    tree.close().unwrap();
    drop(tree);
    bench.audit();
    assert!(!bench.root().join("pool").exists());
    refuses_damage(&bench, METADATA, 0);
    // The devices need not be named again.
    let tree = SnapshotTree::open(bench.root(), Options::new()).unwrap();
    tree.mount("image", bench.path().join("target")).unwrap();
    assert_eq!(fs::read_to_string(bench.path().join("target/file")).unwrap(), "kept");
    tree.unmount("image").unwrap();
    tree.close().unwrap();
    drop(tree);
    wipe();
}

#[test]
fn devices_with_data_are_refused() {
    let bench = Bench::new();
    let refused = |options: Options| {
        let error = SnapshotTree::open(bench.root(), options).unwrap_err();
        println!("{error}");
        assert!(!bench.root().exists());
        error
    };
    for (path, offset) in [(DATA, 65_600), (DATA, 3 << 20), (METADATA, 1080)] {
        wipe();
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"x", offset).unwrap();
        assert!(
            matches!(refused(devices()), Error::Thin(thin::Error::DeviceInUse { device, .. }) if device == Path::new(path))
        );
    }
    wipe();
    let same = PoolSource::Devices { data: DATA.into(), metadata: DATA.into() };
    assert!(matches!(refused(devices().pool_source(same)), Error::InvalidOption { .. }));
    let file = PoolSource::Devices { data: "/etc/passwd".into(), metadata: METADATA.into() };
    assert!(matches!(refused(devices().pool_source(file)), Error::BackingFile { .. }));
    let absent = PoolSource::Devices { data: "/dev/none".into(), metadata: METADATA.into() };
    assert!(refused(devices().pool_source(absent)).is_not_found());
}

#[test]
fn a_labelled_device_holds_a_pool() {
    let bench = Bench::new();
    wipe();
    let options = || {
        let source = PoolSource::Device { path: DATA.into() };
        Options::new().base_size(Bytes::mib(64)).pool_source(source)
    };
    // What fails leaves it as it was.
    SnapshotTree::open(bench.root(), options().mkfs_args(vec!["--no-such-argument".into()])).unwrap_err();
    bench.audit();
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    tree.add("a", Parent::Base).unwrap();
    assert_eq!(tree.check().unwrap(), []);
    tree.activate("a").unwrap();
    let tree = {
        drop(tree);
        SnapshotTree::open(bench.root(), Options::new()).unwrap()
    };
    assert!(tree.get("a").unwrap().device.is_some());
    bench.restart(tree);
    // The parts are left, which carry the label's uuid: taken as they are.
    let tree = SnapshotTree::open(bench.root(), Options::new()).unwrap();
    assert!(tree.contains("a"));
    tree.close().unwrap();
    drop(tree);
    bench.audit();
    refuses_damage(&bench, DATA, 1 << 20);
    // Another tree does not get it, unless it says so.
    let other = bench.path().join("other");
    let error = SnapshotTree::open(&other, options()).unwrap_err();
    assert!(matches!(error, Error::Thin(thin::Error::DeviceInUse { .. })), "{error}");
    let tree = SnapshotTree::open(&other, options().force_device(true)).unwrap();
    tree.close().unwrap();
    assert!(matches!(
        SnapshotTree::open(bench.root(), Options::new()),
        Err(Error::Thin(thin::Error::NoLabel { .. }))
    ));
    wipe();
}

#[test]
fn close_waits_for_metadata_readers() {
    let bench = Bench::new();
    wipe();
    let source = PoolSource::Device { path: DATA.into() };
    let timeout = Duration::from_millis(500);
    let options = Options::new().base_size(Bytes::mib(64)).pool_source(source).busy_timeout(timeout);
    let tree = SnapshotTree::open(bench.root(), options).unwrap();
    let metadata = format!("/dev/mapper/{}-tmeta", tree.pool().name());
    let reader = File::open(&metadata).unwrap();
    let error = tree.close().unwrap_err();
    assert!(
        matches!(&error, Error::Busy { device, open_count: 1, .. } if metadata.ends_with(device)),
        "{error}"
    );
    // The pool is gone already; the rest can still be closed.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(timeout / 5);
            drop(reader);
        });
        tree.close().unwrap();
    });
    drop(tree);
    bench.audit();
    SnapshotTree::open(bench.root(), Options::new()).unwrap().close().unwrap();
    wipe();
}

#[test]
fn an_adopted_pool_is_shared() {
    let bench = Bench::new();
    // A pool with devices that the tree knows nothing of.
    let mut rig = Rig::with(&bench, dm(), Bytes::gib(1), Bytes::mib(8), PoolFeatures::default());
    let name = rig.pool().name().to_string();
    let theirs = [0, 1, 2].map(|id| ThinId::new(id).unwrap());
    theirs.iter().for_each(|id| rig.pool().create_thin(*id).unwrap());
    rig.pool().set_transaction_id(TransactionId(0), TransactionId(7)).unwrap();
    let options = || {
        let source = PoolSource::Pool { name: name.clone() };
        Options::new().base_size(Bytes::mib(64)).pool_source(source)
    };
    let root = bench.path().join("guest");
    let tree = SnapshotTree::open(&root, options()).unwrap();
    for id in ["a", "b", "c"] {
        tree.add(id, Parent::Base).unwrap();
    }
    let ids: Vec<_> = tree.list().iter().map(|snapshot| snapshot.thin_id.get()).collect();
    assert!(!ids.contains(&0) && !ids.contains(&1) && !ids.contains(&2), "{ids:?}");
    drop(tree);
    let tree = SnapshotTree::open(&root, options()).unwrap();
    assert_eq!(tree.list().len(), 3);
    tree.close().unwrap();
    drop(tree);
    // Closing and opening took nothing away.
    assert!(theirs.iter().all(|id| rig.pool().create_thin(*id).unwrap_err().is_exists()));
    assert_eq!(rig.usage().transaction_id, TransactionId(7));
    let tree = SnapshotTree::open(&root, Options::new()).unwrap();
    tree.activate("a").unwrap();
    tree.remove("a").unwrap();
    tree.close().unwrap();
    drop(tree);
    rig.deactivate();
    let error = SnapshotTree::open(&root, Options::new()).unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[test]
fn another_trees_pool_is_not_adopted() {
    let bench = Bench::new();
    let owner = bench.tree();
    owner.add("theirs", Parent::Base).unwrap();
    let source = PoolSource::Pool { name: owner.pool().name().to_string() };
    let root = bench.path().join("guest");
    let error = SnapshotTree::open(&root, Options::new().pool_source(source)).unwrap_err();
    assert!(matches!(error, Error::PrivatePool { .. }), "{error}");
    assert!(!root.exists());
    assert_eq!(owner.check().unwrap(), []);
    owner.close().unwrap();
}

#[test]
fn another_base_than_the_recorded_one_is_refused() {
    let bench = Bench::new();
    let tree = bench.tree();
    let base = ThinId::new(0).unwrap();
    tree.pool().delete(base).unwrap();
    tree.pool().create_thin(base).unwrap();
    tree.close().unwrap();
    drop(tree);
    let error = SnapshotTree::open(bench.root(), Options::new()).unwrap_err();
    assert!(matches!(error, Error::NoFilesystem { id: None, found: None, .. }), "{error}");
}
