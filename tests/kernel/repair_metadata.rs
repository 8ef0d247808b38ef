//! A pool's metadata, damaged and repaired.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use dm_thin::thin;
use dm_thin::thin::ThinId;
use dm_thin::thin::metadata::{self, Metadata};
use dm_thin::tree::{Error, Finding, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::Bytes;

use crate::bench::{Bench, small};

const BLOCK: usize = 4096;

/// Mounted, written to, and unmounted again.
fn write(tree: &SnapshotTree, bench: &Bench, id: &str, text: &str) {
    let target = bench.path().join("mounted");
    tree.mount(id, &target).unwrap();
    fs::write(target.join("file"), text).unwrap();
    tree.unmount(id).unwrap();
}

fn read(tree: &SnapshotTree, bench: &Bench, id: &str) -> String {
    let target = bench.path().join("mounted");
    tree.mount(id, &target).unwrap();
    let text = fs::read_to_string(target.join("file")).unwrap();
    tree.unmount(id).unwrap();
    text
}

/// Three snapshots with a file each, closed.
fn make(bench: &Bench, options: Options) {
    let tree = SnapshotTree::open(bench.root(), options).unwrap();
    for id in ["a", "b", "c"] {
        tree.add(id, Parent::Base).unwrap();
        write(&tree, bench, id, id);
    }
    tree.close().unwrap();
}

fn ids(bench: &Bench, options: &Options) -> Vec<(String, ThinId)> {
    let seen = SnapshotTree::open_read_only(bench.root(), options).unwrap();
    seen.list().into_iter().map(|info| (info.id.to_string(), info.thin_id)).collect()
}

/// Damages a block of the metadata, at `start` of a file, that one snapshot alone needs; returns that snapshot's id.
fn damage_one(path: &Path, start: u64, snapshots: &[(String, ThinId)]) -> String {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut whole = vec![0; 8 << 20];
    file.read_exact_at(&mut whole, start).unwrap();
    let image = Arc::new(tempfile::tempfile().unwrap());
    image.write_all_at(&whole, 0).unwrap();
    let is_bad = |metadata: &Metadata, id| {
        metadata.mappings(id, 0).map_or(true, |mut mappings| mappings.any(|it| it.is_err()))
    };
    for at in (BLOCK..whole.len()).step_by(BLOCK).filter(|at| whole[*at..at + BLOCK] != [0; BLOCK]) {
        image.write_all_at(&[whole[at + 100] ^ 1], at as u64 + 100).unwrap();
        let metadata = Metadata::open(image.clone()).unwrap();
        let is_whole = metadata.device_ids().is_ok_and(|all| all.len() == snapshots.len() + 1);
        let bad: Vec<_> = snapshots.iter().filter(|(_, id)| is_bad(&metadata, *id)).collect();
        image.write_all_at(&whole[at + 100..=at + 100], at as u64 + 100).unwrap();
        if let ([(id, _)], true) = (&bad[..], is_whole) {
            let (byte, at) = ([whole[at + 100] ^ 1], start + at as u64 + 100);
            file.write_all_at(&byte, at).unwrap();
            file.sync_all().unwrap();
            return id.clone();
        }
    }
    panic!("no block is one snapshot's alone");
}

#[test]
fn what_was_lost_is_named_and_the_rest_comes_back() {
    let bench = Bench::new();
    make(&bench, small());
    let path = bench.root().join("pool/metadata");
    let victim = damage_one(&path, 0, &ids(&bench, &small()));
    let damaged = fs::read(&path).unwrap();

    let repair = SnapshotTree::repair_metadata(bench.root(), &small()).unwrap();
    let named = |repair: &dm_thin::tree::MetadataRepair| {
        let reduced = repair.reduced.iter().map(|it| it.id.to_string());
        repair.lost.iter().map(ToString::to_string).chain(reduced).collect::<Vec<_>>()
    };
    assert_eq!((named(&repair), repair.base_is_lost, repair.unknown.len()), (vec![victim.clone()], false, 0));
    let refused = SnapshotTree::open(bench.root(), small()).unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }), "{refused}");
    // Nothing has happened yet.
    drop(repair);
    assert!(fs::read(&path).unwrap() == damaged);

    SnapshotTree::repair_metadata(bench.root(), &small()).unwrap().apply().unwrap();
    let repaired = fs::read(&path).unwrap();
    assert!(metadata::check(Arc::new(File::open(&path).unwrap())).unwrap().is_usable());
    SnapshotTree::restore_metadata(bench.root(), &small()).unwrap();
    assert!(fs::read(&path).unwrap() == damaged, "taken back");
    assert!(SnapshotTree::restore_metadata(bench.root(), &small()).is_err(), "there is no other one");

    // Interrupted between the two, nothing is opened before it is finished.
    let repair = SnapshotTree::repair_metadata(bench.root(), &small()).unwrap();
    fs::rename(&repair.file, bench.root().join("metadata.replacing")).unwrap();
    drop(repair);
    File::options().write(true).open(&path).unwrap().write_all_at(&repaired[..BLOCK * 3], 0).unwrap();
    let refused = SnapshotTree::open(bench.root(), small()).unwrap_err();
    assert!(matches!(refused, Error::BackingFile { .. }), "{refused}");
    SnapshotTree::repair_metadata(bench.root(), &small()).unwrap().apply().unwrap();

    let tree = SnapshotTree::open(bench.root(), small()).unwrap();
    for id in ["a", "b", "c"].iter().filter(|id| **id != victim) {
        assert_eq!(read(&tree, &bench, id), **id);
    }
    let only_the_victim = |found: &Finding| matches!(found, Finding::MissingVolume { id: Some(id), .. } if id.as_str() == victim);
    assert!(tree.check().unwrap().iter().all(only_the_victim), "{:?}", tree.check().unwrap());
    tree.add("d", Parent::Base).unwrap();
    write(&tree, &bench, "d", "new");
    tree.remove(&victim).unwrap();
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn metadata_on_a_labelled_device_is_replaced() {
    let device = Path::new("/dev/vdb");
    let options = || {
        let source = PoolSource::Device { path: device.into() };
        Options::new().base_size(Bytes::mib(64)).pool_source(source)
    };
    let bench = Bench::new();
    crate::bench::wipe(device);
    make(&bench, options());
    let victim = damage_one(device, 1 << 20, &ids(&bench, &options()));
    SnapshotTree::repair_metadata(bench.root(), &options()).unwrap().apply().unwrap();
    bench.audit();
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    for id in ["a", "b", "c"].iter().filter(|id| **id != victim) {
        assert_eq!(read(&tree, &bench, id), **id);
    }
    let refused = SnapshotTree::repair_metadata(bench.root(), &options()).unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }), "{refused}");
    tree.close().unwrap();
    crate::bench::wipe(device);
}

/// Whether thin_repair finds the trees without a superblock depends on its version: 0.9.0 crashes. It is told what only
/// the superblock knows.
#[test]
fn without_a_superblock_all_or_nothing_is_saved() {
    let bench = Bench::new();
    make(&bench, small());
    let path = bench.root().join("pool/metadata");
    File::options().write(true).open(&path).unwrap().write_all_at(&[0xff; 4], 0).unwrap();
    let damaged = fs::read(&path).unwrap();
    let refused = SnapshotTree::open(bench.root(), small()).unwrap_err();
    assert!(matches!(refused, Error::DamagedMetadata { .. }), "{refused}");
    match SnapshotTree::repair_metadata(bench.root(), &small()) {
        Ok(repair) => {
            assert_eq!((&repair.lost[..], repair.base_is_lost), (&[][..], false));
            repair.apply().unwrap();
            let tree = SnapshotTree::open(bench.root(), small()).unwrap();
            for id in ["a", "b", "c"] {
                assert_eq!(read(&tree, &bench, id), id);
            }
            tree.close().unwrap();
        }
        Err(error) => {
            assert!(
                matches!(error, Error::Thin(thin::Error::Tool { program: "thin_repair", .. })),
                "{error}"
            );
            assert!(fs::read(&path).unwrap() == damaged, "untouched");
        }
    }
}

#[test]
fn where_there_is_no_tree_none_is_made() {
    let bench = Bench::new();
    assert!(SnapshotTree::repair_metadata(bench.root(), &small()).is_err());
    assert!(!bench.root().exists());
}
