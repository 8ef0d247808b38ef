//! What a tree reads of its pool's metadata.

use dm_thin::Errno;
use dm_thin::model::Mode;
use dm_thin::thin;
use dm_thin::tree::Error;
use dm_thin::tree::{AddOptions, ChangeKind, Finding, Parent, Since, SnapshotTree};
use dm_thin::units::Bytes;

use crate::rig::{Rig, crash_everywhere};

/// Writes to blocks of 64 KiB of a snapshot.
fn write(rig: &Rig, tree: &SnapshotTree, id: &str, blocks: std::ops::Range<u64>) {
    let device = tree.activate(id).unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), blocks).unwrap();
    tree.deactivate(id).unwrap();
}

/// `begin..end` in blocks of 64 KiB, with a `-` before holes.
pub(crate) fn changed(tree: &SnapshotTree, since: Since<'_>, target: &str) -> Vec<String> {
    let ranges = tree.changed(since, target).unwrap().map(|range| {
        let range = range.unwrap();
        let sign = if range.kind == ChangeKind::Hole { "-" } else { "" };
        format!("{sign}{}..{}", range.offset.0 >> 16, (range.offset.0 + range.length.0) >> 16)
    });
    ranges.collect()
}

#[test]
fn usage_reports_exclusive_and_shared_bytes() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    write(&rig, &tree, "a", 0..10);
    tree.add("b", Parent::Snapshot("a")).unwrap();
    write(&rig, &tree, "b", 8..12);
    let usage = tree.usage().unwrap();
    let figures: Vec<_> = usage
        .iter()
        .map(|used| (used.id.as_str(), [used.mapped, used.exclusive, used.shared].map(|bytes| bytes.0 >> 16)))
        .collect();
    assert_eq!(figures, [("a", [10, 2, 8]), ("b", [12, 4, 8])]);
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn changed_reports_data_and_holes_in_order() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    write(&rig, &tree, "a", 0..10);
    tree.add("b", Parent::Snapshot("a")).unwrap();
    write(&rig, &tree, "b", 2..4);
    write(&rig, &tree, "b", 20..21);
    assert_eq!(changed(&tree, Since::Snapshot("a"), "b"), ["2..4", "20..21"]);
    assert_eq!(changed(&tree, Since::Snapshot("b"), "a"), ["2..4", "-20..21"]);
    assert_eq!(changed(&tree, Since::Nothing, "b"), ["0..10", "20..21"]);
    assert_eq!(changed(&tree, Since::Base, "a"), ["0..10"]);
    assert_eq!(changed(&tree, Since::Snapshot("a"), "a"), [""; 0]);
    let later = tree.changed(Since::Nothing, "b").unwrap().from_offset(Bytes::kib(64 * 9));
    assert_eq!(later.map(|range| range.unwrap().offset.0 >> 16).collect::<Vec<_>>(), [9, 20]);
    tree.close().unwrap();
}

/// More ranges than one metadata snapshot is held for.
#[test]
fn changed_continues_across_batches() {
    const RANGES: u64 = 16_384 + 100;
    let rig = Rig::new();
    let size = Bytes::mib(64 * 33);
    let tree = rig.open(rig.options().data_size(Bytes::gib(3)).base_size(size)).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let name = device.file_name().unwrap().to_str().unwrap();
    (0..RANGES).for_each(|at| rig.kernel.write(name, 2 * at..2 * at + 1).unwrap());
    tree.deactivate("a").unwrap();
    let ranges: Vec<_> = tree.changed(Since::Base, "a").unwrap().map(Result::unwrap).collect();
    assert!((0..RANGES).eq(ranges.iter().map(|range| range.offset.0 >> 17)));
    assert!(ranges.iter().all(|range| range.length == Bytes::kib(64) && range.kind == ChangeKind::Data));
    assert_eq!(tree.own_data("a").unwrap(), Bytes(RANGES << 16));
    tree.close().unwrap();
}

#[test]
fn a_bookmark_outlives_its_snapshot() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    write(&rig, &tree, "a", 0..10);
    assert!(matches!(tree.bookmark("a"), Err(Error::NotSealed { .. })));
    tree.add("before", Parent::Snapshot("a")).unwrap();
    tree.seal("a").unwrap();
    let bookmark = tree.bookmark("a").unwrap();
    let writer = tree.create("b", Some(Parent::Snapshot("a")), &AddOptions::new()).unwrap();
    writer.write_at(Bytes::kib(64 * 3), &[1; 128 << 10]).unwrap();
    writer.zero(Bytes::kib(64 * 8), Bytes::kib(64)).unwrap();
    writer.commit().unwrap();
    tree.add("c", Parent::Snapshot("b")).unwrap();
    write(&rig, &tree, "c", 12..13);
    let since = Since::Bookmark(&bookmark);
    assert_eq!(changed(&tree, since, "a"), [""; 0]);
    assert_eq!(changed(&tree, since, "b"), ["3..5", "-8..9"]);
    tree.remove("a").unwrap();
    // What was discarded left no trace.
    assert_eq!(changed(&tree, since, "b"), ["3..5"]);
    assert_eq!(changed(&tree, since, "c"), ["3..5", "12..13"]);
    let refused = tree.changed(since, "before").unwrap().next();
    assert!(matches!(refused, Some(Err(Error::InvalidOption { .. }))), "{refused:?}");
    tree.close().unwrap();
}

#[test]
fn a_bookmark_of_an_unrelated_snapshot_is_refused() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    write(&rig, &tree, "a", 0..10);
    tree.seal("a").unwrap();
    let bookmark = tree.bookmark("a").unwrap();
    tree.add("other", Parent::Base).unwrap();
    write(&rig, &tree, "other", 0..1);
    // Its own later content is not what the bookmark remembers.
    tree.unseal("a").unwrap();
    write(&rig, &tree, "a", 0..2);
    tree.add("b", Parent::Snapshot("a")).unwrap();
    let foreign =
        serde_json::to_string(&bookmark).unwrap().replace(&tree.uuid().to_string(), &"0".repeat(32));
    let foreign = serde_json::from_str(&foreign).unwrap();
    for (bookmark, target) in [(&bookmark, "other"), (&bookmark, "a"), (&bookmark, "b"), (&foreign, "b")] {
        let refused = tree.changed(Since::Bookmark(bookmark), target);
        assert!(matches!(refused, Err(Error::InvalidOption { option: "bookmark", .. })), "{target}");
    }
    tree.close().unwrap();
}

#[test]
fn a_bookmark_reports_writes_after_the_seal() {
    let rig = Rig::new();
    let tree = rig.tree();
    let writer = tree.create("a", None, &AddOptions::new().size(Bytes::mib(1))).unwrap();
    writer.write_at(Bytes(0), &[1; 128 << 10]).unwrap();
    writer.commit_sealed().unwrap();
    let bookmark = tree.bookmark("a").unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    write(&rig, &tree, "b", 1..3);
    tree.remove("a").unwrap();
    assert_eq!(changed(&tree, Since::Bookmark(&bookmark), "b"), ["1..3"]);
    tree.close().unwrap();
}

#[test]
fn own_data_is_recorded_for_sealed_snapshots() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    write(&rig, &tree, "a", 0..10);
    tree.seal("a").unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    write(&rig, &tree, "b", 8..12);
    let own = |id: &str| tree.own_data(id).unwrap().0 >> 16;
    assert_eq!((own("a"), own("b")), (10, 4));
    write(&rig, &tree, "b", 20..21);
    assert_eq!(own("b"), 5);
    tree.seal("b").unwrap();
    assert_eq!(own("b"), 5);
    // Another program holds the metadata: what is recorded needs none.
    tree.pool().reserve_metadata_snap().unwrap();
    assert_eq!((own("a"), own("b")), (10, 5));
    tree.pool().release_metadata_snap().unwrap();
    tree.unseal("b").unwrap();
    tree.remove("a").unwrap();
    assert!(matches!(tree.own_data("b"), Err(Error::ParentGone { .. })));
    tree.close().unwrap();
}

#[test]
fn own_data_is_cached_until_an_activation() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    write(&rig, &tree, "b", 8..12);
    let own = || tree.own_data("b").map(|own| own.0 >> 16);
    assert_eq!(own().unwrap(), 4);
    tree.pool().reserve_metadata_snap().unwrap();
    assert_eq!(own().unwrap(), 4);
    tree.activate("a").unwrap();
    assert!(matches!(own(), Err(Error::Thin(thin::Error::MetadataSnapHeld { .. }))));
    tree.pool().release_metadata_snap().unwrap();
    // What is active can be written to at any time.
    let device = tree.activate("b").unwrap();
    assert_eq!(own().unwrap(), 4);
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 20..21).unwrap();
    assert_eq!(own().unwrap(), 5);
    tree.close().unwrap();
}

#[test]
fn changed_fails_when_a_snapshot_was_removed_meanwhile() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let mut changed = tree.changed(Since::Nothing, "a").unwrap();
    tree.remove("a").unwrap();
    tree.add("a", Parent::Base).unwrap();
    assert!(matches!(changed.next(), Some(Err(Error::UnknownSnapshot { .. }))));
    assert!(changed.next().is_none());
    assert!(matches!(tree.changed(Since::Nothing, "b"), Err(Error::UnknownSnapshot { .. })));
    tree.close().unwrap();
}

#[test]
fn a_crash_while_metadata_is_read_leaves_no_metadata_snapshot() {
    crash_everywhere(
        |tree| tree.add("a", Parent::Base).unwrap(),
        |tree| tree.usage().map(drop),
        |_, tree| assert_eq!(tree.check().unwrap(), []),
    );
}

#[test]
fn open_keeps_the_metadata_snapshot_of_another_program_after_a_crash() {
    crash_everywhere(
        |tree| tree.pool().reserve_metadata_snap().unwrap(),
        |tree| match tree.usage() {
            Err(Error::Thin(thin::Error::MetadataSnapHeld { .. })) => Ok(()),
            other => panic!("{other:?}"),
        },
        |_, tree| assert_eq!(tree.check().unwrap(), [Finding::MetadataSnapHeld]),
    );
}

#[test]
fn a_leaked_metadata_snapshot_is_released_once_the_pool_is_writable() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    // Used, the pool cannot be activated anew.
    tree.activate("a").unwrap();
    tree.pool().reserve_metadata_snap().unwrap();
    // As a manager leaves it that is killed meanwhile.
    std::fs::write(rig.root().join("metadata-snapshot"), "held\n").unwrap();
    let pool = tree.pool().name().to_string();
    drop(tree);
    for (mode, held) in [(Mode::ReadOnly, true), (Mode::Write, false)] {
        rig.kernel.set_mode(&pool, mode).unwrap();
        let tree = rig.open(rig.options()).unwrap();
        tree.usage().unwrap();
        assert_eq!(tree.check().unwrap().contains(&Finding::MetadataSnapHeld), held);
    }
}

#[test]
fn a_metadata_snapshot_of_another_program_is_kept() {
    let mut rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    tree.pool().reserve_metadata_snap().unwrap();
    drop(tree);
    for power in [false, true] {
        if power {
            rig.kernel = std::sync::Arc::new(rig.kernel.power_cut());
        }
        let tree = rig.tree();
        assert!(matches!(tree.usage(), Err(Error::Thin(thin::Error::MetadataSnapHeld { .. }))));
        assert_eq!(tree.check().unwrap(), [Finding::MetadataSnapHeld]);
    }
}

#[test]
fn a_failed_release_of_the_metadata_snapshot_is_retried() {
    for reopen in [false, true] {
        for call in 1.. {
            let rig = Rig::new();
            let mut tree = rig.tree();
            tree.add("a", Parent::Base).unwrap();
            let before = rig.kernel.calls();
            rig.kernel.fail_at(call, Errno::ENOMEM);
            let used = tree.usage();
            if rig.kernel.calls() - before < call {
                used.unwrap();
                break;
            }
            rig.kernel.heal();
            if reopen {
                drop(tree);
                tree = rig.tree();
            }
            assert_eq!(tree.check().unwrap(), [], "call {call}: {used:?}");
            tree.close().unwrap();
        }
    }
}
