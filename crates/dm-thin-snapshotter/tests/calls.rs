//! The ten calls on a tree of a model kernel, through the service.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use dm_thin::Errno;
use dm_thin::dm::{DeviceMapper, UdevPolicy};
use dm_thin::kernel::{Access, DeviceNumber, Kernel};
use dm_thin::model::ModelKernel;
use dm_thin::thin::{PoolFeatures, PoolTable, ThinPool};
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};
use dm_thin::units::{Blocks, Bytes};
use dm_thin_snapshotter::config::Arguments;
use dm_thin_snapshotter::generated::snapshots as api;
use dm_thin_snapshotter::generated::snapshots::snapshots_server::Snapshots as _;
use dm_thin_snapshotter::record::{Info, Kind};
use dm_thin_snapshotter::service::Service;
use dm_thin_snapshotter::snapshots::{Mount, Snapshots};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status};

const SIZES: [&str; 4] = ["--data-size", "64M", "--metadata-size", "4M"];

struct Fixture {
    kernel: Arc<ModelKernel>,
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { kernel: Arc::new(ModelKernel::new()), directory: tempfile::tempdir().unwrap() }
    }

    fn options(&self, arguments: &[&str], filesystem: Filesystem) -> Options {
        let arguments = Arguments::try_parse_from([""].iter().chain(arguments)).unwrap();
        let base = Bytes::mib(if filesystem == Filesystem::Xfs { 300 } else { 16 });
        let options = arguments.trees().unwrap()[0].options().base_size(base).filesystem(filesystem);
        let options = options.busy_timeout(Duration::ZERO).background_threads(false);
        options.kernel(self.kernel.clone()).udev(UdevPolicy::None)
    }

    fn open_with(&self, filesystem: Filesystem) -> Snapshots {
        let root = self.directory.path().join("root");
        Snapshots::new(SnapshotTree::open(root, self.options(&SIZES, filesystem)).unwrap(), 2, None).unwrap()
    }

    fn open(&self) -> Snapshots {
        self.open_with(Filesystem::None)
    }

    /// Writes to a block of a device.
    fn write(&self, mounts: &[Mount], block: u64) {
        let name = Path::new(&mounts[0].source).file_name().unwrap().to_str().unwrap();
        self.kernel.write(name, block..block + 1).unwrap();
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

/// Makes a committed snapshot.
fn layer(snapshots: &Snapshots, name: &str, parent: &str) {
    snapshots.prepare("extract", parent, none()).unwrap();
    snapshots.commit(name, "extract", "", none()).unwrap();
}

fn keys(infos: &[Info]) -> Vec<&str> {
    infos.iter().map(|info| info.key.as_str()).collect()
}

#[test]
fn keys_and_names_share_a_name_space() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "layer", "");
    snapshots.prepare("active", "layer", none()).unwrap();
    snapshots.view("view", "layer", none()).unwrap();
    for key in ["layer", "active", "view"] {
        assert_eq!(code(snapshots.prepare(key, "", none())), Code::AlreadyExists, "{key}");
        assert_eq!(code(snapshots.view(key, "layer", none())), Code::AlreadyExists, "{key}");
        assert_eq!(code(snapshots.commit(key, "active", "", none())), Code::AlreadyExists, "{key}");
    }
    assert_eq!(code(snapshots.prepare("", "", none())), Code::InvalidArgument);
    assert_eq!(code(snapshots.commit("", "active", "", none())), Code::InvalidArgument);
}

#[test]
fn a_parent_is_committed() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "layer", "");
    snapshots.prepare("active", "layer", none()).unwrap();
    snapshots.view("view", "layer", none()).unwrap();
    for (parent, refused) in
        [("none", Code::NotFound), ("active", Code::InvalidArgument), ("view", Code::InvalidArgument)]
    {
        assert_eq!(code(snapshots.prepare("new", parent, none())), refused, "{parent}");
        assert_eq!(code(snapshots.view("new", parent, none())), refused, "{parent}");
    }
    assert_eq!(code(snapshots.stat("new")), Code::NotFound);
}

#[test]
fn mounts_are_of_active_snapshots_and_views() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "layer", "");
    let active = snapshots.prepare("active", "layer", none()).unwrap();
    let view = snapshots.view("view", "layer", none()).unwrap();
    let empty = snapshots.view("empty", "", none()).unwrap();
    assert_eq!((active[0].filesystem, active[0].options.len()), ("ext4", 0));
    assert!(active[0].source.starts_with("/dev/mapper/"));
    assert_eq!((&view[0].options, &empty[0].options), (&vec!["ro".to_owned()], &vec!["ro".to_owned()]));
    for (key, mounts) in [("active", active), ("view", view), ("empty", empty)] {
        assert_eq!(snapshots.mounts(key).unwrap(), mounts, "{key}");
    }
    assert_eq!(code(snapshots.mounts("layer")), Code::FailedPrecondition);
    assert_eq!(code(snapshots.mounts("none")), Code::NotFound);
}

#[test]
fn xfs_is_mounted_in_spite_of_its_uuid() {
    let fixture = Fixture::new();
    let snapshots = fixture.open_with(Filesystem::Xfs);
    let mounts = snapshots.view("view", "", none()).unwrap();
    assert_eq!((mounts[0].filesystem, mounts[0].options.join(",").as_str()), ("xfs", "ro,nouuid"));
}

#[test]
fn a_size_below_the_base_is_none_in_a_pool_that_has_no_base_yet() {
    let fixture = Fixture::new();
    let [metadata, data] = [16, 32].map(|minor| {
        let number = DeviceNumber { major: 8, minor };
        fixture
            .kernel
            .set_disk(Path::new(&format!("/dev/{minor}")), number, Bytes::mib(64).sectors())
            .unwrap();
        number
    });
    let table = PoolTable {
        metadata,
        data,
        block_size: Bytes::kib(64).sectors(),
        low_water_mark: Blocks(16),
        features: PoolFeatures::default(),
    };
    let dm = Arc::new(DeviceMapper::with_kernel(fixture.kernel.clone(), UdevPolicy::None).unwrap());
    let (name, uuid) = ("theirs".parse().unwrap(), "LVM-theirs".parse().unwrap());
    ThinPool::create(dm, &name, &uuid, &table, Bytes::mib(64).sectors()).unwrap();
    let options = fixture.options(&["--pool", "theirs"], Filesystem::None);
    let root = fixture.directory.path().join("root");
    let snapshots = Snapshots::new(SnapshotTree::open(root, options).unwrap(), 0, None).unwrap();
    let max_size = labels(&[("containerd.io/snapshot/max-size", "1048576")]);
    snapshots.prepare("key", "", max_size).unwrap();
    assert_eq!(snapshots.tree().get("key").unwrap().size, Bytes::mib(16));
}

#[test]
fn a_snapshot_without_a_parent_is_empty() {
    let fixture = Fixture::new();
    let snapshots = fixture.open_with(Filesystem::Ext4);
    snapshots.prepare("key", "", none()).unwrap();
    let target = fixture.directory.path().canonicalize().unwrap().join("target");
    snapshots.tree().mount("key", &target).unwrap();
    assert_eq!(fixture.kernel.read_file(&target.join("lost+found")), Err(Errno::ENOENT));
}

#[test]
fn a_commit_replaces_the_labels_and_keeps_the_parent() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "layer", "");
    snapshots.prepare("k", "layer", labels(&[("old", "1")])).unwrap();
    let prepared = snapshots.stat("k").unwrap();
    assert_eq!(code(snapshots.commit("n", "k", "other", none())), Code::InvalidArgument);
    snapshots.commit("n", "k", "layer", labels(&[("new", "2"), ("nothing", "")])).unwrap();
    let info = snapshots.stat("n").unwrap();
    assert_eq!(
        (info.kind, info.parent.as_str(), &info.labels),
        (Kind::Committed, "layer", &labels(&[("new", "2")]))
    );
    assert!(info.created == info.updated && info.created > prepared.created);
    assert_eq!(code(snapshots.stat("k")), Code::NotFound);
    assert_eq!(code(snapshots.commit("other", "k", "", none())), Code::NotFound);
    assert_eq!(code(snapshots.commit("other", "n", "", none())), Code::FailedPrecondition);
    snapshots.view("view", "n", none()).unwrap();
    assert_eq!(code(snapshots.commit("other", "view", "", none())), Code::FailedPrecondition);
    snapshots.prepare("k", "", none()).unwrap();
    snapshots.prepare("k2", "", none()).unwrap();
    assert_eq!(code(snapshots.commit("k2", "k", "layer", none())), Code::AlreadyExists);
    assert_eq!(code(snapshots.commit("other", "k", "layer", none())), Code::InvalidArgument);
}

#[test]
fn a_snapshot_in_use_is_committed_as_it_is_now() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "layer", "");
    let mounts = snapshots.prepare("k", "layer", none()).unwrap();
    fixture.write(&mounts, 0);
    let open = fixture.kernel.open(Path::new(&mounts[0].source), Access::READ).unwrap();
    snapshots.commit("n", "k", "", labels(&[("a", "1")])).unwrap();
    assert_eq!(code(snapshots.stat("k")), Code::NotFound);
    let info = snapshots.stat("n").unwrap();
    assert_eq!((info.parent.as_str(), info.labels), ("layer", labels(&[("a", "1")])));
    assert!(snapshots.tree().get("n").unwrap().sealed.is_some());
    assert_eq!(code(snapshots.remove("layer")), Code::FailedPrecondition);
    // The key is free while the old device is open.
    snapshots.prepare("k", "n", none()).unwrap();
    snapshots.remove("k").unwrap();
    drop(open);
    snapshots.cleanup().unwrap();
    assert_eq!(snapshots.tree().deferred(), 0);
    drop(snapshots);
    let again = fixture.open();
    assert_eq!(keys(&again.list(&[]).unwrap()), ["layer", "n"]);
}

/// Runs `work` with the process killed at its first, second, … call of the kernel, and looks at what the next start finds.
fn killed_at_each_call(
    prepare: impl Fn(&Fixture, &Snapshots),
    work: impl Fn(&Snapshots) -> Result<(), Status>,
    look: impl Fn(&Snapshots, u64),
) {
    for n in 1.. {
        let fixture = Fixture::new();
        let snapshots = fixture.open();
        prepare(&fixture, &snapshots);
        fixture.kernel.unwind_at_cut(true);
        fixture.kernel.cut_at(n);
        let done = catch_unwind(AssertUnwindSafe(|| work(&snapshots)));
        drop(catch_unwind(AssertUnwindSafe(|| drop(snapshots))));
        fixture.kernel.heal();
        look(&fixture.open(), n);
        if let Ok(result) = done {
            result.unwrap();
            assert!(n > 3, "no call to be killed at");
            break;
        }
    }
}

#[test]
fn a_commit_of_what_is_in_use_is_done_or_not_done_after_a_kill() {
    let open = std::cell::RefCell::new(None);
    let prepare = |fixture: &Fixture, snapshots: &Snapshots| {
        layer(snapshots, "layer", "");
        let device = snapshots.prepare("k", "layer", none()).unwrap().remove(0).source;
        *open.borrow_mut() = Some(fixture.kernel.open(Path::new(&device), Access::READ).unwrap());
    };
    let look = |snapshots: &Snapshots, n| {
        let infos = snapshots.list(&[]).unwrap();
        let tree = snapshots.tree().list().len();
        assert_eq!(tree, infos.len(), "call {n}: {infos:?}");
        assert!(infos.iter().all(|info| info.key == "layer" || info.parent == "layer"), "call {n}");
        let found = keys(&infos);
        assert!(
            [&["k", "layer"][..], &["k", "layer", "n"], &["layer", "n"]].contains(&&*found),
            "call {n}: {found:?}"
        );
        if !found.contains(&"n") {
            snapshots.commit("n", "k", "layer", none()).unwrap();
        }
        snapshots.prepare("child", "n", none()).unwrap();
    };
    killed_at_each_call(prepare, |snapshots| snapshots.commit("n", "k", "", none()), look);
}

#[test]
fn a_view_is_there_or_not_after_a_kill() {
    let look = |snapshots: &Snapshots, n| {
        let is_there = snapshots.stat("v").is_ok();
        assert_eq!(snapshots.view("v", "layer", none()).is_err(), is_there, "call {n}");
        snapshots.mounts("v").unwrap();
        snapshots.remove("v").unwrap();
        snapshots.remove("layer").unwrap();
    };
    let view = |snapshots: &Snapshots| snapshots.view("v", "layer", none()).map(drop);
    killed_at_each_call(|_, snapshots| layer(snapshots, "layer", ""), view, look);
}

#[test]
fn what_an_interrupted_commit_left_is_removed() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    let unfinished = dm_thin_snapshotter::record::unfinished().unwrap();
    let options = dm_thin::tree::AddOptions::new().labels(unfinished);
    snapshots.tree().add_with("n", Parent::Base, &options).unwrap();
    drop(snapshots);
    let snapshots = fixture.open();
    assert!(!snapshots.tree().contains("n"));
    layer(&snapshots, "n", "");
}

#[test]
fn parents_and_what_is_busy_are_not_removed() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "a", "");
    layer(&snapshots, "b", "a");
    snapshots.view("view", "b", none()).unwrap();
    assert_eq!(code(snapshots.remove("none")), Code::NotFound);
    for parent in ["a", "b"] {
        let refused = snapshots.remove(parent).unwrap_err();
        // containerd's suite looks for the word.
        assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("remove"));
    }
    let active = snapshots.prepare("active", "b", none()).unwrap();
    for (key, device) in [("active", active), ("view", snapshots.mounts("view").unwrap())] {
        let open = fixture.kernel.open(Path::new(&device[0].source), Access::READ).unwrap();
        assert_eq!(code(snapshots.remove(key)), Code::FailedPrecondition, "{key}");
        drop(open);
        snapshots.remove(key).unwrap();
        assert_eq!(code(snapshots.remove(key)), Code::NotFound, "{key}");
    }
    snapshots.remove("b").unwrap();
    snapshots.remove("a").unwrap();
    assert!(snapshots.tree().list().is_empty());
}

/// Another program opens the new device, and then a call fails: what is left is listed, so that it can be removed.
#[test]
fn what_a_failed_call_leaves_is_listed() {
    let mut listed = 0;
    for n in 1.. {
        let fixture = Fixture::new();
        let snapshots = fixture.open_with(Filesystem::Ext4);
        let device =
            snapshots.prepare("first", "", none()).unwrap().remove(0).source.replace("first", "second");
        let (kernel, opened) = (fixture.kernel.clone(), Arc::new(Mutex::new(None)));
        let keep = opened.clone();
        fixture
            .kernel
            .at_call(n, move || *keep.lock().unwrap() = kernel.open(Path::new(&device), Access::READ).ok());
        fixture.kernel.fail_at(n + 1, Errno::EIO);
        let size = labels(&[("containerd.io/snapshot/max-size", "33554432")]);
        let done = snapshots.prepare("second", "", size);
        let is_struck = fixture.kernel.struck().is_some();
        fixture.kernel.heal();
        let infos = snapshots.list(&[]).unwrap();
        assert_eq!(infos.len(), snapshots.tree().list().len(), "{n}: {done:?}");
        *opened.lock().unwrap() = None;
        if done.is_err() && infos.len() == 2 {
            listed += 1;
            // A start unmounts what a failed call left mounted.
            drop(snapshots);
            fixture.open_with(Filesystem::Ext4).remove("second").unwrap();
        }
        if !is_struck {
            break;
        }
    }
    assert!(listed > 0);
}

#[test]
fn a_snapshot_that_is_not_containerds_is_not_served() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    snapshots.tree().add("own", Parent::Base).unwrap();
    assert_eq!(code(snapshots.prepare("own", "", none())), Code::AlreadyExists);
    assert_eq!(code(snapshots.view("own", "", none())), Code::AlreadyExists);
    assert_eq!(code(snapshots.remove("own")), Code::NotFound);
    assert!(snapshots.list(&[]).unwrap().is_empty() && snapshots.tree().contains("own"));
}

/// containerd's garbage collection goes on after no other code.
#[test]
fn a_removal_that_fails_is_a_failed_precondition() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "layer", "");
    snapshots.prepare("active", "layer", none()).unwrap();
    snapshots.view("view", "layer", none()).unwrap();
    fixture.kernel.cut_at(1);
    for key in ["active", "view"] {
        assert_eq!(code(snapshots.remove(key)), Code::FailedPrecondition, "{key}");
    }
    fixture.kernel.heal();
    ["active", "view", "layer"].into_iter().for_each(|key| snapshots.remove(key).unwrap());
}

#[test]
fn views_share_the_device_of_their_parent() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "layer", "");
    let first = snapshots.view("v1", "layer", labels(&[("a", "1")])).unwrap();
    assert_eq!(snapshots.view("v2", "layer", none()).unwrap(), first);
    assert_eq!(snapshots.tree().list().len(), 1);
    let before = snapshots.stat("v1").unwrap();
    assert_eq!((before.kind, before.parent.as_str()), (Kind::View, "layer"));
    assert_eq!(snapshots.usage("v1").unwrap(), Bytes(0));
    drop(snapshots);

    // They are found again, and so are changes of their labels.
    let snapshots = fixture.open();
    assert_eq!((snapshots.stat("v1").unwrap(), snapshots.mounts("v2").unwrap()), (before, first));
    let updated = snapshots.update("v1", &labels(&[("b", "2")]), &[]).unwrap();
    drop(snapshots);
    let snapshots = fixture.open();
    assert_eq!(snapshots.stat("v1").unwrap(), updated);
    snapshots.remove("v1").unwrap();
    assert!(snapshots.tree().get("layer").unwrap().device.is_some());
    snapshots.remove("v2").unwrap();
    assert!(snapshots.tree().get("layer").unwrap().device.is_none());
}

#[test]
fn a_view_that_its_parent_has_no_room_for_is_a_snapshot() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "layer", "");
    let long = labels(&[("long", &"x".repeat(3000))]);
    snapshots.view("v1", "layer", long.clone()).unwrap();
    let mounts = snapshots.view("v2", "layer", long.clone()).unwrap();
    assert_eq!(mounts[0].options, ["ro"]);
    assert_eq!((snapshots.tree().list().len(), &snapshots.stat("v2").unwrap().labels), (2, &long));
    // What is left is for labels that the layer and its views get later.
    for key in ["layer", "v1"] {
        snapshots.update(key, &labels(&[("later", &"x".repeat(3500))]), &[]).unwrap();
    }
    let too_long = labels(&[("a", &"x".repeat(4000)), ("b", &"x".repeat(4000)), ("c", &"x".repeat(300))]);
    assert_eq!(code(snapshots.prepare("new", "layer", too_long)), Code::InvalidArgument);
}

#[test]
fn an_update_changes_labels_and_nothing_else() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    snapshots.prepare("k", "", labels(&[("a", "1"), ("b", "2")])).unwrap();
    let before = snapshots.stat("k").unwrap();
    let update = |pairs: &[(&str, &str)], paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        snapshots.update("k", &labels(pairs), &paths)
    };
    let after =
        update(&[("a", "3"), ("x.y", "4"), ("c", "5")], &["labels.a", "labels.x.y", "labels.b"]).unwrap();
    assert_eq!(after.labels, labels(&[("a", "3"), ("x.y", "4")]));
    assert!(after.updated > before.updated && after.created == before.created);
    assert_eq!(update(&[("l", "1")], &["labels"]).unwrap().labels, labels(&[("l", "1")]));
    assert_eq!(update(&[("m", "1")], &[]).unwrap().labels, labels(&[("m", "1")]));
    for path in ["parent", "kind", "labelsx", ""] {
        assert_eq!(code(update(&[], &[path])), Code::InvalidArgument, "{path}");
    }
    assert_eq!(code(snapshots.update("none", &none(), &[])), Code::NotFound);
    let last = snapshots.stat("k").unwrap();
    assert_eq!(last.labels, labels(&[("m", "1")]));
    drop(snapshots);
    assert_eq!(fixture.open().stat("k").unwrap(), last);
}

#[test]
fn a_list_is_filtered() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "default/1/sha256:aa", "");
    let reference = [("containerd.io/snapshot.ref", "sha256:bb")];
    snapshots.prepare("default/2/key one", "default/1/sha256:aa", labels(&reference)).unwrap();
    snapshots.view("default/3/view", "default/1/sha256:aa", none()).unwrap();
    let list = |texts: &[&str]| {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        snapshots
            .list(&texts)
            .map(|infos| keys(&infos).iter().map(|key| key[8..9].to_owned()).collect::<String>())
    };
    assert_eq!(list(&[]).unwrap(), "123");
    assert_eq!(list(&["kind==active"]).unwrap(), "2");
    assert_eq!(list(&["kind==committed", "kind==view"]).unwrap(), "13");
    assert_eq!(list(&[r#"parent=="default/1/sha256:aa""#]).unwrap(), "23");
    let remote = r#"labels."containerd.io/snapshot.ref"=="sha256:bb",parent~=sha256"#;
    assert_eq!(list(&[remote]).unwrap(), "2");
    assert_eq!(list(&["name~=/key one$/"]).unwrap(), "2");
    assert_eq!(code(list(&["name=="])), Code::InvalidArgument);
}

#[test]
fn usage_is_without_the_parents() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    let mounts = snapshots.prepare("a-", "", none()).unwrap();
    (0..3).for_each(|block| fixture.write(&mounts, block));
    snapshots.commit("a", "a-", "", none()).unwrap();
    let mounts = snapshots.prepare("b-", "a", none()).unwrap();
    fixture.write(&mounts, 3);
    let block = snapshots.tree().status().unwrap().block_size;
    assert_eq!(snapshots.usage("b-").unwrap(), block);
    snapshots.commit("b", "b-", "", none()).unwrap();
    let mounts = snapshots.prepare("c", "b", none()).unwrap();
    (0..2).for_each(|block| fixture.write(&mounts, block));
    for (key, blocks) in [("a", 3), ("b", 1), ("c", 2), ("a", 3)] {
        assert_eq!(snapshots.usage(key).unwrap(), Bytes(blocks * block.0), "{key}");
    }
    assert_eq!(code(snapshots.usage("none")), Code::NotFound);
}

#[test]
fn a_snapshot_is_as_large_as_its_label_says() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    let size = |key: &str, text: &str| {
        snapshots.prepare(key, "", labels(&[("containerd.io/snapshot/max-size", text)]))?;
        Ok::<_, Status>(snapshots.tree().get(key).unwrap().size)
    };
    assert_eq!(size("larger", "33554433").unwrap(), Bytes(33_558_528));
    assert_eq!(size("smaller", "4096").unwrap(), Bytes::mib(16));
    // The pool has 64 MiB.
    for text in ["10G", "67108865"] {
        assert_eq!(code(size("none", text)), Code::InvalidArgument);
    }
    assert_eq!(code(snapshots.stat("none")), Code::NotFound);
}

#[test]
fn snapshots_are_ready_of_a_layer_that_is_used_again() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    (0..12).for_each(|number| layer(&snapshots, &format!("l{number}"), ""));
    let ready = |snapshots: &Snapshots| {
        snapshots.tree().refill_ready().unwrap();
        let status = snapshots.tree().status().unwrap().ready.into_iter();
        let counts = status.map(|ready| (ready.origin.unwrap().to_string(), ready.count));
        counts.filter(|(_, count)| *count > 0).collect::<Vec<_>>()
    };
    snapshots.prepare("a", "l0", none()).unwrap();
    assert_eq!(ready(&snapshots), []);
    snapshots.prepare("b", "l0", none()).unwrap();
    assert_eq!(ready(&snapshots), [("l0".to_owned(), 2)]);
    let mounts = snapshots.prepare("c", "l0", labels(&[("a", "1")])).unwrap();
    assert_eq!(snapshots.tree().status().unwrap().ready[0].hits, 1);
    assert_eq!((snapshots.mounts("c").unwrap(), snapshots.stat("c").unwrap().labels.len()), (mounts, 1));
    // Eight other layers were used since.
    (1..9).for_each(|number| {
        drop(snapshots.prepare(&format!("d{number}"), &format!("l{number}"), none()).unwrap())
    });
    assert_eq!(ready(&snapshots), []);
    snapshots.prepare("e", "l8", none()).unwrap();
    assert_eq!(ready(&snapshots), [("l8".to_owned(), 2)]);
    drop(snapshots);
    assert_eq!(ready(&fixture.open()), []);
}

#[test]
fn a_full_pool_is_no_other_error() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    let mounts = snapshots.prepare("a", "", none()).unwrap();
    let mut refused = None;
    for number in 0..1000 {
        fixture
            .kernel
            .write(Path::new(&mounts[0].source).file_name().unwrap().to_str().unwrap(), 0..256)
            .unwrap();
        refused = snapshots.commit(&format!("c{number}"), "a", "", none()).err();
        refused = refused.or_else(|| snapshots.prepare("a", &format!("c{number}"), none()).err());
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.unwrap().code(), Code::ResourceExhausted);
}

#[test]
fn calls_run_at_the_same_time() {
    let fixture = Fixture::new();
    let snapshots = fixture.open();
    layer(&snapshots, "layer", "");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let snapshots = &snapshots;
            scope.spawn(move || {
                for round in 0..10 {
                    let key = |what: &str| format!("{what}-{thread}-{round}");
                    snapshots.prepare(&key("k"), "layer", none()).unwrap();
                    snapshots.view(&key("v"), "layer", none()).unwrap();
                    snapshots.update(&key("v"), &labels(&[("a", "1")]), &[]).unwrap();
                    snapshots.commit(&key("n"), &key("k"), "layer", none()).unwrap();
                    snapshots.remove(&key("v")).unwrap();
                    snapshots.remove(&key("n")).unwrap();
                    // One of them makes it.
                    let made = snapshots.prepare(&format!("same-{round}"), "layer", none());
                    assert!(made.is_ok() || code(made) == Code::AlreadyExists);
                }
            });
        }
    });
    assert_eq!(snapshots.list(&["kind==active".to_owned()]).unwrap().len(), 10);
    assert_eq!(snapshots.tree().list().len(), 11);
}

#[tokio::test]
async fn the_service_answers_in_containerds_terms() {
    let fixture = Fixture::new();
    let service = Service::new(Arc::new(fixture.open()), Arc::default());
    let prepare = |key: &str| api::PrepareSnapshotRequest { key: key.to_owned(), ..Default::default() };
    let mounts = service.prepare(Request::new(prepare("k/1"))).await.unwrap().into_inner().mounts;
    assert_eq!((mounts.len(), mounts[0].r#type.as_str(), mounts[0].target.as_str()), (1, "ext4", ""));
    let asked = api::MountsRequest { key: "k/1".to_owned(), ..Default::default() };
    assert_eq!(service.mounts(Request::new(asked)).await.unwrap().into_inner().mounts, mounts);
    let (name, key) = ("n/1".to_owned(), "k/1".to_owned());
    let commit =
        api::CommitSnapshotRequest { name, key, labels: labels(&[("a", "1")]), ..Default::default() };
    service.commit(Request::new(commit)).await.unwrap();
    let (key, parent) = ("v/1".to_owned(), "n/1".to_owned());
    let view = api::ViewSnapshotRequest { key: key.clone(), parent, ..Default::default() };
    assert_eq!(service.view(Request::new(view)).await.unwrap().into_inner().mounts[0].options, ["ro"]);
    let info =
        service.stat(Request::new(api::StatSnapshotRequest { key: "n/1".to_owned(), ..Default::default() }));
    let info = info.await.unwrap().into_inner().info.unwrap();
    assert_eq!(
        (info.kind(), info.name.as_str(), &info.labels),
        (api::Kind::Committed, "n/1", &labels(&[("a", "1")]))
    );
    assert!(info.created_at == info.updated_at && info.created_at.unwrap().seconds > 1_700_000_000);
    let update = api::UpdateSnapshotRequest { info: Some(info.clone()), ..Default::default() };
    let updated = service.update(Request::new(update)).await.unwrap().into_inner().info.unwrap();
    assert!(updated.labels == info.labels && updated.updated_at != info.updated_at);
    let usage = api::UsageRequest { key: "n/1".to_owned(), ..Default::default() };
    assert_eq!(service.usage(Request::new(usage)).await.unwrap().into_inner().size, 0);
    service.remove(Request::new(api::RemoveSnapshotRequest { key, ..Default::default() })).await.unwrap();
    service.cleanup(Request::new(api::CleanupRequest::default())).await.unwrap();

    for number in 0..249 {
        service.prepare(Request::new(prepare(&format!("k{number}")))).await.unwrap();
    }
    let list = service.list(Request::new(api::ListSnapshotsRequest::default())).await.unwrap().into_inner();
    let sizes: Vec<_> = list.map(|message| message.unwrap().info.len()).collect().await;
    assert_eq!(sizes, [100, 100, 50]);
}

#[tokio::test]
async fn a_tree_that_answers_nothing_any_more_is_told_of() {
    let fixture = Fixture::new();
    let (snapshots, unavailable) = (Arc::new(fixture.open()), Arc::new(Notify::new()));
    let service = Service::new(snapshots.clone(), unavailable.clone());
    let prepare = |key: &str| {
        let request = api::PrepareSnapshotRequest { key: key.to_owned(), ..Default::default() };
        service.prepare(Request::new(request))
    };
    prepare("before").await.unwrap();
    let told = || async { timeout(Duration::from_millis(1), unavailable.notified()).await.is_ok() };
    assert!(!told().await);
    snapshots.tree().close().unwrap();
    assert_eq!(prepare("after").await.unwrap_err().code(), Code::Unavailable);
    assert!(told().await);
}

#[tokio::test]
async fn calls_wait_until_the_tree_is_open() {
    let fixture = Fixture::new();
    let stat = |service: Service| async move {
        let asked = api::StatSnapshotRequest { key: "none".to_owned(), ..Default::default() };
        service.stat(Request::new(asked)).await.unwrap_err().code()
    };
    let (opening, service) = Service::opening(Arc::default());
    let waiting = tokio::spawn(stat(service.clone()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    opening.opened(Arc::new(fixture.open()));
    assert_eq!((waiting.await.unwrap(), stat(service).await), (Code::NotFound, Code::NotFound));

    let (opening, service) = Service::opening(Arc::default());
    let waiting = tokio::spawn(stat(service));
    drop(opening);
    assert_eq!(waiting.await.unwrap(), Code::Unavailable);
}
