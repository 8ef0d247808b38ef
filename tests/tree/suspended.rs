//! While a parent is suspended for its snapshot nothing is done but the message.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use dm_thin::Errno;
use dm_thin::dm::{DeviceMapper, UdevPolicy};
use dm_thin::model::{Call, ModelKernel};
use dm_thin::thin::ThinId;
use dm_thin::tree::files::{RealDir, StateDir, StateFile};
use dm_thin::tree::{AddOptions, Consistency, Filesystem, Options, Parent, SnapshotTree};

use crate::rig::Rig;

/// Files of a root that may be on a device which is suspended: then whoever touches them waits for ever.
#[derive(Debug)]
struct Watched<T>(T, Arc<ModelKernel>);

impl<T> Watched<T> {
    fn check(&self) {
        let dm = DeviceMapper::with_kernel(self.1.clone(), UdevPolicy::None).unwrap();
        for device in dm.list().unwrap() {
            let status = dm.find(device.number).unwrap();
            assert!(status.is_none_or(|status| !status.is_suspended()), "{} is suspended", device.name);
        }
    }
}

impl StateDir for Watched<RealDir> {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        self.check();
        Ok(Box::new(Watched(self.0.open(name, create)?, self.1.clone())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check();
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.check();
        self.0.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        self.check();
        self.0.sync()
    }
}

impl StateFile for Watched<Box<dyn StateFile>> {
    fn read(&self) -> io::Result<Vec<u8>> {
        self.check();
        self.0.read()
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check();
        self.0.write_at(offset, bytes)
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.check();
        self.0.reserve(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check();
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.check();
        self.0.sync()
    }
}

fn open(rig: &Rig, options: Options) -> SnapshotTree {
    std::fs::DirBuilder::new().mode(0o700).create(rig.root()).unwrap();
    let files = RealDir::open(rig.root()).unwrap();
    // Its own calls are not those of the tree.
    let watcher = Arc::new(rig.kernel.process());
    rig.open(options.state_dir(Arc::new(Watched(files, watcher)))).unwrap()
}

/// The kernel's calls between each suspend and its resume.
fn suspended(log: &[Call]) -> Vec<Vec<&'static str>> {
    let names: Vec<_> = log.iter().map(|call| call.name).collect();
    let parts: Vec<_> = names.split(|name| *name == "DM_DEV_SUSPEND").map(<[_]>::to_vec).collect();
    parts.into_iter().skip(1).step_by(2).collect()
}

#[test]
fn add_sends_only_the_message_between_suspend_and_resume() {
    let rig = Rig::new();
    let tree = open(&rig, rig.options());
    tree.add("a", Parent::Base).unwrap();
    tree.activate("a").unwrap();
    for n in 0..100 {
        // The guard asks for a status now and then: not in between.
        rig.kernel.clear_log();
        tree.add(format!("b{n}"), Parent::Snapshot("a")).unwrap();
        assert_eq!(suspended(&rig.kernel.log()), [["DM_TARGET_MSG"]]);
        rig.kernel.event(&tree.pool().name().to_string()).unwrap();
    }
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn add_skips_taken_ids_with_the_parent_resumed() {
    let rig = Rig::new();
    let pool = rig.pool();
    let tree = open(&rig, rig.adopting("vg-pool"));
    tree.add("a", Parent::Base).unwrap();
    tree.activate("a").unwrap();
    let next = pool.thin_ids().unwrap().last().unwrap().get() + 1;
    // More than the window of reserved ids: a new one is written.
    for id in next..next + 100 {
        pool.create_thin(ThinId::new(id).unwrap()).unwrap();
    }
    rig.kernel.clear_log();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    assert_eq!(tree.get("b").unwrap().thin_id.get(), next + 100);
    assert_eq!(suspended(&rig.kernel.log()), vec![["DM_TARGET_MSG"]; 101]);
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
    drop(tree);
    pool.deactivate().unwrap();
}

#[test]
fn a_failed_create_snap_is_undone_after_the_resume() {
    let rig = Rig::new();
    let tree = open(&rig, rig.options());
    tree.add("a", Parent::Base).unwrap();
    tree.activate("a").unwrap();
    let before = tree.pool().thin_ids().unwrap();
    // Suspend, message, resume: the answer of the message, then of the resume, is lost.
    for (call, errno) in [(2, Errno::EIO), (3, Errno::EIO)] {
        rig.kernel.clear_log();
        rig.kernel.lose_answer_at(call, errno);
        assert_eq!(tree.add("b", Parent::Snapshot("a")).unwrap_err().errno(), Some(errno));
        assert_eq!(suspended(&rig.kernel.log()), [["DM_TARGET_MSG"]], "call {call}");
        assert_eq!(tree.pool().thin_ids().unwrap(), before, "call {call}");
    }
    tree.add("b", Parent::Snapshot("a")).unwrap();
    assert_eq!(tree.check().unwrap(), []);
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn a_crash_consistent_snapshot_does_not_freeze_its_parent() {
    let rig = Rig::new();
    let tree = open(&rig, rig.options().filesystem(Filesystem::Ext4));
    let target = |id: &str| rig.directory.path().join(id);
    tree.add("parent", Parent::Base).unwrap();
    tree.mount("parent", target("parent")).unwrap();
    rig.kernel.write_file(&target("parent").join("cached"), b"1").unwrap();
    for (id, consistency) in [("crash", Consistency::Crash), ("frozen", Consistency::Filesystem)] {
        let options = AddOptions::new().consistency(consistency);
        rig.kernel.clear_log();
        tree.add_with(id, Parent::Snapshot("parent"), &options).unwrap();
        assert_eq!(suspended(&rig.kernel.log()), [["DM_TARGET_MSG"]]);
        tree.mount(id, target(id)).unwrap();
        let cached = rig.kernel.read_file(&target(id).join("cached"));
        assert_eq!(cached.is_ok(), consistency == Consistency::Filesystem, "{id}: {cached:?}");
        tree.unmount(id).unwrap();
    }
    tree.unmount("parent").unwrap();
    tree.close().unwrap();
}
