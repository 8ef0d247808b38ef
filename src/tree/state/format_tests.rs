//! States that earlier versions wrote are read, and mean what they meant.
//!
//! `tests/support/states/format-N` is what the first version with that format wrote, `format-2-final` what the last one
//! with format 2 wrote, with each record that came in between. A new format gets a new directory;
//! `DM_THIN_WRITE_STATE=DIRECTORY` makes this test write two, `DIRECTORY` and `DIRECTORY-final`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use crate::dm::UdevPolicy;
use crate::model::ModelKernel;
use crate::tree::state::files::RealDir;
use crate::tree::state::store::Store;
use crate::tree::{
    AddOptions, Filesystem, Labels, Lineage, Options, Parent, PoolSource, RemoveOptions, SnapshotId,
    SnapshotTree,
};
use crate::units::Bytes;

/// Each record that came after the first version.
fn write_final(to: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let options = Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None);
    let options = options.kernel(Arc::new(ModelKernel::new())).background_threads(false);
    let tree = SnapshotTree::open(&root, options).unwrap();
    let mut labels = Labels::new();
    labels.set("digest", "sha256:1").unwrap();
    tree.add("extract", Parent::Base).unwrap();
    tree.commit("extract", "k8s.io/1/golden: latest", labels).unwrap();
    tree.add("vm", Parent::Snapshot("k8s.io/1/golden: latest")).unwrap();
    tree.resize("vm", Bytes::gib(20)).unwrap();
    tree.change_labels("vm", |labels| labels.set("owner", "1000")).unwrap();
    tree.keep_ready(Parent::Snapshot("k8s.io/1/golden: latest"), 1).unwrap();
    tree.refill_ready().unwrap();
    tree.add("gone", Parent::Snapshot("vm")).unwrap();
    let _ = tree.remove_with("gone", &RemoveOptions::new().background(true)).unwrap();
    keep(&root, to);
}

/// Copies the files of a state.
fn keep(root: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in ["state.json", "journal.0", "journal.1", "lock"] {
        // Without the room for what is written next.
        let Ok(mut bytes) = fs::read(root.join(name)) else { continue };
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        fs::write(to.join(name), bytes).unwrap();
    }
}

fn write(to: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let kernel = Arc::new(ModelKernel::new());
    let options =
        || Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None).kernel(kernel.clone());
    let tree = SnapshotTree::open(&root, options()).unwrap();
    tree.add("image", Parent::Base).unwrap();
    tree.set_label("image", "made-by", "an earlier version").unwrap();
    tree.seal("image").unwrap();
    tree.add("container", Parent::Snapshot("image")).unwrap();
    let large = AddOptions::new().size(Bytes::gib(20));
    tree.add_with("large", Parent::Snapshot("container"), &large).unwrap();
    tree.remove("container").unwrap();
    tree.close().unwrap();
    drop(tree);
    // In the journal, not in the checkpoint.
    let tree = SnapshotTree::open(&root, options()).unwrap();
    tree.rename("large", "larger").unwrap();
    tree.add("second", Parent::Base).unwrap();
    tree.add("removed", Parent::Snapshot("second")).unwrap();
    tree.remove("removed").unwrap();
    tree.create("made", None, &AddOptions::new().size(Bytes::mib(1))).unwrap().commit_sealed().unwrap();
    keep(&root, to);
}

#[test]
fn format_1_is_read() {
    let root = read("format-1");
    // It is format 2 now, which an earlier version refuses.
    let files: BTreeSet<_> =
        fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.contains(OsStr::new("journal.0")) && !files.contains(OsStr::new("journal.jsonl")));
}

#[test]
fn format_2_is_read() {
    if let Some(to) = std::env::var_os("DM_THIN_WRITE_STATE") {
        write(to.as_ref());
    }
    read("format-2");
}

#[test]
fn the_last_records_of_format_2_are_read() {
    if let Some(mut to) = std::env::var_os("DM_THIN_WRITE_STATE") {
        to.push("-final");
        write_final(to.as_ref());
    }
    let (_root, store) = load("format-2-final");
    store.read(|graph| {
        let found: Vec<_> = graph
            .snapshots
            .iter()
            .map(|(id, it)| {
                let labels: Vec<_> = it.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                (id.as_str(), it.size, it.sealed.is_some(), it.lineage(), labels)
            })
            .collect();
        let golden = SnapshotId::new("k8s.io/1/golden: latest").unwrap();
        assert_eq!(
            found,
            [
                (golden.as_str(), Bytes::gib(10), true, Lineage::Base, vec!["digest=sha256:1".to_owned()]),
                (
                    "vm",
                    Bytes::gib(20),
                    false,
                    Lineage::Snapshot(golden.clone()),
                    vec!["owner=1000".to_owned()]
                ),
            ]
        );
        let origin = graph.snapshots[&golden].thin_id;
        assert_eq!(graph.ready.get(&origin).map(|&count| usize::from(count)), Some(1));
        assert_eq!((graph.making.len(), graph.removed.len()), (1, 1), "the ready one, and the removed one");
    });
}

/// The state as it is kept, in a directory of its own.
fn load(format: &str) -> (TempDir, Store) {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/states").join(format);
    let root = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(kept).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), root.path().join(entry.file_name())).unwrap();
    }
    let dir = RealDir::new(fs::File::open(root.path()).unwrap());
    let store = Store::load(root.path().into(), Arc::new(dir)).unwrap().unwrap();
    (root, store)
}

fn read(format: &str) -> TempDir {
    let (root, store) = load(format);
    let snapshots: Vec<_> = store.read(|graph| {
        let snapshots = graph.snapshots.iter().map(|(id, it)| {
            let labels: Vec<_> = it.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            (id.to_string(), it.size, it.sealed.is_some(), it.lineage(), labels)
        });
        snapshots.collect()
    });
    let removed = Lineage::Removed(SnapshotId::new("container").unwrap());
    let label = vec!["made-by=an earlier version".to_owned()];
    assert_eq!(
        snapshots,
        [
            ("image".to_owned(), Bytes::gib(10), true, Lineage::Base, label),
            ("larger".to_owned(), Bytes::gib(20), false, removed, vec![]),
            ("made".to_owned(), Bytes::mib(1), true, Lineage::Base, vec![]),
            ("second".to_owned(), Bytes::gib(10), false, Lineage::Base, vec![]),
        ]
    );
    let (source, filesystem) = store.read_state(|state| (state.pool.source.clone(), state.filesystem));
    assert_eq!((source, filesystem), (PoolSource::LoopFiles, Filesystem::None));
    root
}
