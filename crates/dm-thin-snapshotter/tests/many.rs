//! How long the calls take where there are thousands of snapshots.
//!
//! `cargo test --release -p dm-thin-snapshotter --test many -- --ignored --nocapture`; on a real kernel if `DM_THIN_MANY_ROOT`
//! names a directory. `DM_THIN_MANY` is the number of snapshots.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dm_thin::dm::UdevPolicy;
use dm_thin::model::ModelKernel;
use dm_thin::tree::{Filesystem, Options, SnapshotTree};
use dm_thin::units::Bytes;
use dm_thin_snapshotter::snapshots::Snapshots;

/// Layers in an image: so long are the chains.
const LAYERS: usize = 10;

/// Durations of one call.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn measure<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = call();
        self.0.push(begun.elapsed());
        result
    }

    fn report(mut self, what: &str) {
        self.0.sort();
        let at = |percent: usize| self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)];
        println!("{what:<8} p50 {:9.3?}  p99 {:9.3?}  max {:9.3?}", at(50), at(99), at(100));
    }
}

fn labels() -> BTreeMap<String, String> {
    let digest = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
    [("containerd.io/snapshot.ref", digest)].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[test]
#[ignore = "takes long"]
fn thousands_of_snapshots() {
    let count = std::env::var("DM_THIN_MANY").map_or(5000, |text| text.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let real = std::env::var_os("DM_THIN_MANY_ROOT").map(PathBuf::from);
    let model = Arc::new(ModelKernel::new());
    let open = || {
        let options = Options::new().data_size(Bytes::gib(8)).metadata_size(Bytes::mib(128));
        let options = options.base_size(Bytes::mib(16)).keep_one_active(true);
        let (root, options) = match &real {
            Some(root) => (root.clone(), options),
            None => {
                let options = options.kernel(model.clone()).udev(UdevPolicy::None);
                (directory.path().join("root"), options.filesystem(Filesystem::None))
            }
        };
        Snapshots::new(SnapshotTree::open(root, options).unwrap(), 0, None).unwrap()
    };
    let (mut prepare, mut commit, mut remove) = (Times::default(), Times::default(), Times::default());
    let snapshots = open();
    let mut parent = String::new();
    for number in 0..count {
        if number % LAYERS == 0 {
            parent.clear();
        }
        let (key, name) = (format!("default/{number}/extract"), format!("default/{number}/layer"));
        prepare.measure(|| snapshots.prepare(&key, &parent, labels()).unwrap());
        commit.measure(|| snapshots.commit(&name, &key, "", labels()).unwrap());
        parent = name;
    }
    println!("{count} snapshots in chains of {LAYERS}, {}", if real.is_some() { "kernel" } else { "model" });
    prepare.report("Prepare");
    commit.report("Commit");
    // As if it was killed.
    drop(snapshots);
    let begun = Instant::now();
    let snapshots = open();
    println!("start    {:9.3?}", begun.elapsed());
    let begun = Instant::now();
    let infos = snapshots.list(&[]).unwrap();
    println!("List     {:9.3?}", begun.elapsed());
    assert_eq!(infos.len(), count);
    let begun = Instant::now();
    assert_eq!(snapshots.list(&[r#"labels."containerd.io/snapshot.ref"==none"#.to_owned()]).unwrap(), []);
    println!("List, a filter that none matches {:9.3?}", begun.elapsed());
    // As the garbage collection does it: leaves first.
    let begun = Instant::now();
    for number in (0..count).rev() {
        remove.measure(|| snapshots.remove(&format!("default/{number}/layer")).unwrap());
    }
    println!("all removed after {:.3?}", begun.elapsed());
    remove.report("Remove");
    snapshots.cleanup().unwrap();
    println!("all volumes deleted after {:.3?}", begun.elapsed());
    assert_eq!(snapshots.list(&[]).unwrap(), []);
    assert_eq!(snapshots.tree().check().unwrap(), []);
    snapshots.tree().close().unwrap();
}
