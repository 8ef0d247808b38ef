//! What an open tells, and what a tree counts.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use dm_thin::thin::MinFree;
use dm_thin::tree::{Parent, Recovered};
use dm_thin::units::Bytes;

use crate::rig::{Rig, crash_everywhere};

#[test]
fn an_open_tells_what_it_found() {
    let rig = Rig::new();
    let tree = rig.tree();
    assert_eq!(tree.recovered(), [], "a new tree");
    tree.add("a", Parent::Base).unwrap();
    tree.activate("a").unwrap();
    let id = tree.get("a").unwrap().id;
    let (dm, device) = (tree.pool().device_mapper().clone(), tree.get("a").unwrap().number.unwrap());
    dm.suspend(device, Default::default()).unwrap();
    drop(tree);
    // As by a process that died in the middle of a line.
    let path = rig.root().join("journal.0");
    let text = fs::read(&path).unwrap();
    let end = text.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    File::options().write(true).open(&path).unwrap().write_all_at(b"{\"seq\":", end).unwrap();

    let tree = rig.tree();
    let expected = [
        Recovered::JournalCut { length: Bytes(7) },
        Recovered::DeviceResumed { id: id.clone() },
        Recovered::TakenOver { id, mounted: None },
    ];
    assert_eq!(tree.recovered(), expected);
    assert_eq!(tree.recovered().iter().map(Recovered::is_repair).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(tree.recovered()[1].to_string(), "resumed the suspended device of snapshot a");
    tree.close().unwrap();
    drop(tree);
    let tree = rig.tree();
    assert_eq!(tree.recovered(), [], "closed before");
    tree.close().unwrap();
}

#[test]
fn an_interrupted_addition_is_told() {
    let told = RefCell::new(BTreeSet::new());
    crash_everywhere(
        |_| {},
        |tree| tree.add("a", Parent::Base),
        |_, tree| {
            let is_there = tree.contains("a");
            for found in tree.recovered() {
                match found {
                    Recovered::AdditionCompleted { id } => assert!(is_there && id.as_str() == "a"),
                    Recovered::AdditionDropped { .. } | Recovered::VolumeDeleted { .. } => assert!(!is_there),
                    Recovered::JournalCut { .. } => {}
                    other => panic!("{other}"),
                }
                told.borrow_mut().insert(found.to_string());
            }
        },
    );
    let told = told.into_inner();
    for what in ["completed the addition of snapshot a", "dropped an addition"] {
        assert!(told.iter().any(|told| told.starts_with(what)), "{told:?}");
    }
}

#[test]
fn what_a_tree_does_is_counted() {
    let rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let before = tree.metrics().unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    tree.activate("b").unwrap();
    let after = tree.metrics().unwrap();
    let ioctls = |name| after.ioctls.get(name).unwrap_or(&0) - before.ioctls.get(name).unwrap_or(&0);
    let counted = ["DM_TARGET_MSG", "DM_DEV_CREATE", "DM_TABLE_LOAD", "DM_DEV_REMOVE"].map(ioctls);
    assert_eq!(counted, [1, 1, 1, 0]);
    assert_eq!(after.journal_syncs - before.journal_syncs, 1);
    assert!(after.journal_lines > before.journal_lines && after.journal_bytes > before.journal_bytes);
    assert_eq!((after.checkpoints, after.refusals, after.backlog), (before.checkpoints, 0, 0));
    tree.deactivate("b").unwrap();
    tree.remove("b").unwrap();
    tree.close().unwrap();
    assert!(tree.metrics().is_err());
    drop(tree);

    let tree = rig.open(rig.options().min_free_data(MinFree::Percent(100))).unwrap();
    let device = tree.activate("a").unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 0..1).unwrap();
    tree.status().unwrap();
    tree.add("c", Parent::Base).unwrap_err();
    assert!(tree.metrics().unwrap().refusals > 0);
    tree.close().unwrap();
}
