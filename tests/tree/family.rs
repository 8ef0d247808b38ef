//! Parents, labels and names.

use dm_thin::tree::Error;
use dm_thin::tree::{AddOptions, Labels, Lineage, Parent, SnapshotTree};

use crate::rig::{Rig, crash_everywhere};

fn family(tree: &SnapshotTree) {
    tree.add("image", Parent::Base).unwrap();
    tree.add("one", Parent::Snapshot("image")).unwrap();
    tree.add("two", Parent::Snapshot("image")).unwrap();
    tree.add("leaf", Parent::Snapshot("one")).unwrap();
}

#[test]
fn open_restores_parents_and_children() {
    let rig = Rig::new();
    let tree = rig.tree();
    family(&tree);
    tree.remove("one").unwrap();
    let text = "base\n├── image\n│   └── two\n└── leaf (from one, removed)\n";
    assert_eq!(tree.to_text(), text);
    assert_eq!(tree.children("image").unwrap().len(), 1);
    assert_eq!(tree.depth("two").unwrap(), 1);
    // The namesake of a removed parent is not the parent.
    tree.add("one", Parent::Snapshot("leaf")).unwrap();
    assert_eq!(tree.ancestors("one").unwrap().len(), 1);
    let walk = tree.walk();
    tree.close().unwrap();
    drop(tree);
    let tree = rig.tree();
    assert_eq!(tree.walk(), walk);
    assert!(matches!(tree.parent("leaf").unwrap(), Lineage::Removed(id) if id.as_str() == "one"));
    assert!(tree.to_dot().contains("\"leaf\" -> \"one\""));
    assert!(matches!(tree.children("nobody"), Err(Error::UnknownSnapshot { .. })));
    tree.close().unwrap();
}

#[test]
fn labels_survive_a_reopen() {
    let rig = Rig::new();
    let tree = rig.tree();
    let mut labels = Labels::new();
    labels.set("layer", "sha256:0").unwrap();
    tree.add_with("image", Parent::Base, &AddOptions::new().labels(labels)).unwrap();
    tree.set_label("image", "used", "yes").unwrap();
    tree.set_label("image", "layer", "sha256:1").unwrap();
    assert_eq!(tree.remove_label("image", "used").unwrap().as_deref(), Some("yes"));
    assert!(tree.set_label("image", "a b", "").is_err());
    drop(tree);
    let tree = rig.tree();
    let labels = tree.labels("image").unwrap();
    assert_eq!(labels.iter().collect::<Vec<_>>(), [("layer", "sha256:1")]);
    assert_eq!(tree.get("image").unwrap().labels, labels);
    // A copy is not what its original is.
    tree.add("copy", Parent::Snapshot("image")).unwrap();
    assert!(tree.labels("copy").unwrap().is_empty());
    tree.close().unwrap();
}

#[test]
fn rename_keeps_device_mount_and_children() {
    let rig = Rig::new();
    let tree = rig.tree();
    family(&tree);
    tree.activate("one").unwrap();
    tree.rename("one", "uno").unwrap();
    assert_eq!(rig.devices(), ["pool", "uno"]);
    assert!(!tree.contains("one"));
    let device = tree.get("uno").unwrap().device.unwrap();
    assert!(device.to_str().unwrap().ends_with("-uno"));
    assert!(matches!(tree.parent("leaf").unwrap(), Lineage::Snapshot(id) if id.as_str() == "uno"));
    for (from, to) in [("uno", "two"), ("one", "x"), ("uno", "a\nb")] {
        assert!(tree.rename(from, to).is_err());
    }
    tree.rename("uno", "uno").unwrap();
    // The old id is free.
    tree.add("one", Parent::Snapshot("uno")).unwrap();
    drop(tree);
    let tree = rig.tree();
    assert!(tree.get("uno").unwrap().device.is_some());
    tree.deactivate("uno").unwrap();
    tree.close().unwrap();
    assert!(rig.kernel.is_clean());
}

#[test]
fn rename_is_atomic_across_crashes() {
    let prepare = |tree: &SnapshotTree| {
        family(tree);
        tree.activate("one").unwrap();
    };
    crash_everywhere(
        prepare,
        |tree| tree.rename("one", "uno"),
        |rig, tree| {
            let name = if tree.contains("uno") { "uno" } else { "one" };
            assert_eq!(tree.list().len(), 4);
            assert_eq!(tree.children(name).unwrap().len(), 1);
            let devices = rig.devices();
            assert!(
                devices == ["pool"] || devices == [name, "pool"] || devices == ["pool", name],
                "{devices:?}"
            );
        },
    );
}
