//! Sealed snapshots, and snapshots that are written before they are published.

#![allow(clippy::cast_possible_truncation)] // offsets in volumes of some MiB

use std::time::Duration;

use dm_thin::Errno;
use dm_thin::dm::DmName;
use dm_thin::tree::Error;
use dm_thin::tree::{AddOptions, DeviceProblem, Filesystem, Finding, Parent, SnapshotTree};
use dm_thin::units::Bytes;

use crate::rig::{Rig, crash_everywhere};

const BLOCK: u64 = 64 << 10;

fn bytes(tree: &SnapshotTree, id: &str, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    tree.open_snapshot(id).unwrap().read_at(Bytes(offset), &mut buffer).unwrap();
    buffer
}

/// Loads the same table again, writable or not.
fn reload(tree: &SnapshotTree, device: &str, read_only: bool) {
    use dm_thin::dm::{DmFlags, TableKind, TargetSpec};
    let dm = tree.pool().device_mapper();
    let name = DmName::new(device).unwrap();
    let line = dm.table(&name, TableKind::Live).unwrap().remove(0);
    let spec = TargetSpec {
        start: line.start,
        length: line.length,
        target_type: line.target_type,
        parameters: &line.text,
    };
    let flags = if read_only { DmFlags::READONLY } else { DmFlags::empty() };
    dm.load_table(&name, &[spec], flags).unwrap();
    dm.suspend(&name, DmFlags::empty()).unwrap();
    dm.resume(&name).unwrap();
}

fn device(tree: &SnapshotTree, id: &str) -> String {
    tree.activate(id).unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_sealed_snapshot_cannot_be_written() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("image", Parent::Base).unwrap();
    let name = device(&tree, "image");
    rig.kernel.write(&name, 0..1).unwrap();
    let uuid = tree.seal("image").unwrap();
    assert_eq!(tree.seal("image").unwrap(), uuid, "it keeps its identity");
    assert!(rig.devices().iter().all(|name| !name.contains("image")), "it is deactivated");
    assert_eq!(tree.get("image").unwrap().sealed, Some(uuid));
    assert_eq!(tree.snapshot_status("image").unwrap().sealed, Some(uuid));

    let name = device(&tree, "image");
    let status = tree.pool().device_mapper().status(&DmName::new(&name).unwrap()).unwrap();
    assert!(status.flags.contains(dm_thin::dm::DmFlags::READONLY));
    assert_eq!(tree.check().unwrap(), []);

    // Found again, sealed and active; and the snapshot of it is writable.
    drop(tree);
    let tree = rig.tree();
    assert_eq!(tree.get("image").unwrap().sealed, Some(uuid));
    assert!(tree.get("image").unwrap().device.is_some());
    rig.kernel.clear_log();
    tree.add("copy", Parent::Snapshot("image")).unwrap();
    assert!(rig.kernel.log().iter().all(|call| call.name != "DM_DEV_SUSPEND"), "nothing is suspended");
    assert_eq!(tree.get("copy").unwrap().sealed, None);
    rig.kernel.write(&device(&tree, "copy"), 0..1).unwrap();

    let error = tree.unseal("image").unwrap_err();
    assert!(
        matches!(&error, Error::HasChildren { id, child } if id == "image" && child == "copy"),
        "{error}"
    );
    tree.remove("copy").unwrap();
    tree.unseal("image").unwrap();
    assert_eq!(tree.get("image").unwrap().sealed, None);
    rig.kernel.write(&device(&tree, "image"), 0..1).unwrap();
    assert_ne!(tree.seal("image").unwrap(), uuid, "another content has another identity");
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn a_snapshot_in_use_is_not_sealed() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().filesystem(Filesystem::None).busy_timeout(Duration::ZERO)).unwrap();
    assert!(matches!(tree.seal("image"), Err(Error::UnknownSnapshot { .. })));
    tree.add("image", Parent::Base).unwrap();
    let path = tree.activate("image").unwrap();
    let open = dm_thin::kernel::Kernel::open(&*rig.kernel, &path, dm_thin::kernel::Access::READ).unwrap();
    assert!(matches!(tree.seal("image"), Err(Error::Busy { .. })));
    assert_eq!(tree.get("image").unwrap().sealed, None);
    drop(open);
    tree.seal("image").unwrap();
    tree.close().unwrap();
}

#[test]
fn check_finds_and_repair_corrects_a_wrong_access_mode() {
    for sealed in [true, false] {
        let rig = Rig::new();
        let tree = rig.tree();
        tree.add("image", Parent::Base).unwrap();
        if sealed {
            tree.seal("image").unwrap();
        }
        let name = device(&tree, "image");
        reload(&tree, &name, !sealed);
        let found = tree.check().unwrap();
        let expected = DeviceProblem::Mode { read_only: !sealed };
        assert!(
            matches!(&found[..], [Finding::WrongDevice { problem, .. }] if *problem == expected),
            "{found:?}"
        );
        let repair = tree.repair().unwrap();
        assert_eq!((repair.healed, repair.left), (found, vec![]));
        assert!(tree.get("image").unwrap().device.is_some(), "it is active again");

        // Found by an open, a writable device of a sealed snapshot is not taken over.
        reload(&tree, &name, !sealed);
        drop(tree);
        let tree = rig.tree();
        assert_eq!(tree.check().unwrap(), []);
        assert_eq!(tree.get("image").unwrap().device.is_none(), sealed);
        tree.close().unwrap();
    }
}

#[test]
fn seal_is_atomic_across_crashes() {
    crash_everywhere(
        |tree| {
            tree.add("image", Parent::Base).unwrap();
            tree.activate("image").unwrap();
        },
        |tree| tree.seal("image").map(drop),
        |_, tree| {
            assert_eq!(tree.check().unwrap(), []);
            tree.seal("image").unwrap();
        },
    );
}

#[test]
fn unaligned_writes_are_read_back() {
    let rig = Rig::new();
    let tree = rig.tree();
    let options = AddOptions::new().size(Bytes(10 * BLOCK + 8192));
    let writer = tree.create("disk", None, &options).unwrap();
    assert!(tree.list().is_empty(), "it is not published yet");
    assert_eq!(tree.check().unwrap(), []);
    let pattern: Vec<u8> = (0..10 * BLOCK + 8192).map(|at| (at % 251) as u8 + 1).collect();
    writer.write_at(Bytes(0), &pattern).unwrap();
    let mut expected = pattern;
    let ranges = [
        (0, 1),
        (BLOCK - 1, 2),
        (2 * BLOCK, BLOCK),
        (3 * BLOCK + 512, 3 * BLOCK),
        (7 * BLOCK + 1, 100),
        (9 * BLOCK, BLOCK + 8192),
    ];
    for (offset, length) in ranges {
        writer.zero(Bytes(offset), Bytes(length)).unwrap();
        expected[offset as usize..(offset + length) as usize].fill(0);
    }
    writer.write_at(Bytes(4 * BLOCK + 77), b"again").unwrap();
    expected[(4 * BLOCK + 77) as usize..][..5].copy_from_slice(b"again");
    let end = Bytes(10 * BLOCK + 8190);
    assert!(matches!(writer.write_at(end, b"abc"), Err(Error::InvalidOption { .. })));
    assert!(matches!(writer.zero(end, Bytes(u64::MAX)), Err(Error::InvalidOption { .. })));
    let uuid = writer.commit_sealed().unwrap();
    assert_eq!(tree.get("disk").unwrap().sealed, Some(uuid));
    assert!(bytes(&tree, "disk", 0, expected.len()) == expected);
    for (offset, length) in [(1, 1), (4095, 2), (4 * BLOCK + 70, 20), (BLOCK - 3, 300_000)] {
        let wanted = &expected[offset as usize..offset as usize + length];
        assert!(bytes(&tree, "disk", offset, length) == wanted, "{length} bytes at {offset}");
    }
    assert_eq!(tree.check().unwrap(), []);
    assert!(rig.devices().iter().all(|name| !name.contains("disk")), "closed, it is inactive again");
    tree.close().unwrap();
}

#[test]
fn zeroing_works_without_discards() {
    let rig = Rig::new();
    let features =
        dm_thin::thin::PoolFeatures { discards: dm_thin::thin::Discards::Ignore, ..Default::default() };
    let tree = rig.open(rig.options().features(features)).unwrap();
    let writer = tree.create("disk", None, &AddOptions::new().size(Bytes::mib(1))).unwrap();
    writer.write_at(Bytes(0), &[7; 300_000]).unwrap();
    writer.zero(Bytes(1000), Bytes::kib(256)).unwrap();
    let mut buffer = vec![0; 300_000];
    writer.read_at(Bytes(0), &mut buffer).unwrap();
    assert!(buffer[1000..1000 + (256 << 10)].iter().all(|&byte| byte == 0));
    assert!(buffer[..1000].iter().chain(&buffer[1000 + (256 << 10)..]).all(|&byte| byte == 7));
    drop(writer);
    tree.close().unwrap();
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("parent", Parent::Base).unwrap();
    let thins = || rig.kernel.thin_devices(tree.pool().name().to_str().unwrap()).unwrap().len();
    let before = thins();
    let writer = tree.create("copy", Some(Parent::Snapshot("parent")), &AddOptions::new()).unwrap();
    assert!(matches!(tree.add("copy", Parent::Base), Err(Error::SnapshotExists { .. })));
    writer.write_at(Bytes(5), b"five").unwrap();
    assert_eq!(thins(), before + 1);
    drop(writer);
    assert_eq!(thins(), before);
    assert_eq!(tree.check().unwrap(), []);
    tree.add("copy", Parent::Base).unwrap();
    let no_size = tree.create("other", None, &AddOptions::new()).unwrap_err();
    assert!(matches!(no_size, Error::InvalidOption { .. }), "{no_size}");
    tree.close().unwrap();
}

#[test]
fn a_writer_whose_sync_failed_publishes_nothing() {
    let rig = Rig::new();
    let tree = rig.tree();
    let writer = tree.create("disk", None, &AddOptions::new().size(Bytes::mib(1))).unwrap();
    writer.write_at(Bytes(0), b"lost").unwrap();
    rig.kernel.fail_at(1, Errno::EIO);
    assert!(matches!(writer.sync(), Err(Error::Io { action: "sync", .. })));
    assert!(matches!(writer.commit(), Err(Error::Io { action: "sync", .. })));
    assert!(!tree.contains("disk"));
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn the_parent_of_a_writer_may_be_renamed_and_removed() {
    let rig = Rig::new();
    let tree = rig.tree();
    for (remove, text) in
        [(false, "base\n└── to\n    └── copy\n"), (true, "base\n├── from\n└── copy (from from, removed)\n")]
    {
        tree.add("from", Parent::Base).unwrap();
        let writer = tree.create("copy", Some(Parent::Snapshot("from")), &AddOptions::new()).unwrap();
        if remove {
            tree.remove("from").unwrap();
            tree.add("from", Parent::Base).unwrap();
        } else {
            tree.rename("from", "to").unwrap();
        }
        writer.commit().unwrap();
        assert_eq!(tree.to_text(), text);
        tree.list().iter().for_each(|info| tree.remove(info.id.as_str()).unwrap());
    }
    tree.close().unwrap();
}

#[test]
fn readers_keep_a_snapshot_active() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().busy_timeout(Duration::ZERO)).unwrap();
    tree.add("image", Parent::Base).unwrap();
    assert!(matches!(tree.open_snapshot("image"), Err(Error::NotSealed { id }) if id == "image"));
    tree.seal("image").unwrap();
    let first = tree.open_snapshot("image").unwrap();
    let second = tree.open_snapshot("image").unwrap();
    assert!(matches!(tree.deactivate("image"), Err(Error::Busy { .. })));
    assert!(matches!(tree.remove("image"), Err(Error::Busy { .. })));
    tree.rename("image", "picture").unwrap();
    drop(first);
    assert!(tree.get("picture").unwrap().device.is_some());
    let mut buffer = [1; 100];
    second.read_at(Bytes(4000), &mut buffer).unwrap();
    assert_eq!(buffer, [0; 100]);
    assert!(second.read_at(Bytes::mib(16), &mut buffer).is_err());
    drop(second);
    assert_eq!(tree.get("picture").unwrap().device, None);
    // Who asked for it to be active finds it so.
    tree.activate("picture").unwrap();
    drop(tree.open_snapshot("picture").unwrap());
    assert!(tree.get("picture").unwrap().device.is_some());
    tree.close().unwrap();
}

#[test]
fn a_writer_is_atomic_across_crashes() {
    for sealed in [false, true] {
        crash_everywhere(
            |tree| tree.add("parent", Parent::Base).unwrap(),
            |tree| {
                let parent = Some(Parent::Snapshot("parent"));
                let writer = tree.create("copy", parent, &AddOptions::new())?;
                writer.write_at(Bytes(BLOCK - 2), b"over the edge")?;
                writer.zero(Bytes(BLOCK), Bytes(2 * BLOCK))?;
                if sealed { writer.commit_sealed().map(drop) } else { writer.commit() }
            },
            |rig, tree| {
                assert_eq!(tree.check().unwrap(), []);
                let pool = tree.pool().name().to_str().unwrap();
                let thins = rig.kernel.thin_devices(pool).unwrap().len();
                assert_eq!(thins, tree.list().len() + 1);
                if tree.contains("copy") {
                    assert_eq!(tree.get("copy").unwrap().sealed.is_some(), sealed);
                    tree.seal("copy").unwrap();
                    assert_eq!(bytes(tree, "copy", BLOCK - 3, 4), [0, b'o', b'v', 0]);
                }
            },
        );
    }
}
