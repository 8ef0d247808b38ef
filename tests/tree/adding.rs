//! An addition is recorded while its volume is made: whichever is there after a crash, the snapshot is or is not.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::abi::Ioctl;
use dm_thin::kernel::{Arg, DeviceFile, Files, Kernel};
use dm_thin::model::ModelKernel;
use dm_thin::thin::ThinId;
use dm_thin::tree::files::{RealDir, StateDir, StateFile};
use dm_thin::tree::{AddOptions, Parent, SnapshotTree};
use dm_thin::units::Bytes;

use crate::rig::{Rig, crash_everywhere};

fn names(tree: &SnapshotTree) -> Vec<String> {
    tree.list().into_iter().map(|snapshot| snapshot.id.to_string()).collect()
}

#[test]
fn a_crash_leaves_all_of_a_snapshot_or_nothing() {
    let prepare = |tree: &SnapshotTree| {
        tree.add("parent", Parent::Base).unwrap();
        tree.activate("parent").unwrap();
    };
    let work = |tree: &SnapshotTree| {
        tree.add("child", Parent::Snapshot("parent"))?;
        // An unsynced line says that the first one has been added.
        tree.add_with("grandchild", Parent::Snapshot("child"), &AddOptions::new().size(Bytes::mib(32)))
    };
    crash_everywhere(prepare, work, |rig, tree| {
        assert_eq!(tree.check().unwrap(), []);
        let names = names(tree);
        let expected: &[&[&str]] = &[&["parent"], &["child", "parent"], &["child", "grandchild", "parent"]];
        assert!(expected.contains(&&names.iter().map(String::as_str).collect::<Vec<_>>()[..]), "{names:?}");
        // The base, and one thin device for each snapshot.
        let devices = rig.kernel.thin_devices(&tree.pool().name().to_string()).unwrap();
        assert_eq!(devices.len(), 1 + names.len());
        for id in ["child", "grandchild"] {
            let _ = tree.remove(id);
            tree.add(id, Parent::Base).unwrap();
            tree.activate(id).unwrap();
        }
    });
}

#[test]
fn a_volume_that_somebody_made_is_not_taken_for_the_snapshot() {
    for cut in 1.. {
        let rig = Rig::new();
        let tree = rig.tree();
        tree.add("a", Parent::Base).unwrap();
        let theirs = ThinId::new(tree.get("a").unwrap().thin_id.get() + 1).unwrap();
        tree.pool().create_thin(theirs).unwrap();
        rig.kernel.unwind_at_cut(true);
        // The first call is the message that is refused.
        rig.kernel.cut_after(cut + 1);
        let done = catch_unwind(AssertUnwindSafe(|| tree.add("b", Parent::Base)));
        drop(catch_unwind(AssertUnwindSafe(|| drop(tree))));
        rig.kernel.heal();
        let tree = rig.tree();
        let found = tree.get("b").ok().map(|found| found.thin_id);
        assert_ne!(found, Some(theirs), "cut {cut}");
        tree.close().unwrap();
        if done.is_ok() {
            assert!(found.is_some() && cut > 1);
            break;
        }
    }
}

#[test]
fn a_failed_addition_frees_its_name() {
    let rig = Rig::new();
    let tree = rig.tree();
    // The message; then also what deletes the volume.
    for failures in 1..=2 {
        (1..=failures).for_each(|call| rig.kernel.fail_at(call, Errno::EIO));
        assert_eq!(tree.add("a", Parent::Base).unwrap_err().errno(), Some(Errno::EIO));
        rig.kernel.heal();
        assert!(!tree.contains("a"));
        tree.add("a", Parent::Base).unwrap();
        tree.remove("a").unwrap();
        let _ = tree.repair().unwrap();
        assert_eq!(tree.check().unwrap(), []);
    }
    tree.close().unwrap();
}

/// What has begun and ended since the first addition.
#[derive(Debug, Default)]
struct Counts {
    /// Syncs, also of what is not counted.
    all_syncs: u64,
    counts: bool,
    messages: u64,
    syncs: u64,
    /// Messages during which a sync ended.
    beside: u64,
}

#[derive(Debug, Default)]
struct Course {
    counts: Mutex<Counts>,
    changed: Condvar,
}

impl Course {
    /// Waits, but not for ever, and changes the counts.
    fn step(&self, wait: impl Fn(&Counts) -> bool, change: impl FnOnce(&mut Counts)) {
        let counts = self.counts.lock().unwrap();
        let while_it_counts = |counts: &mut Counts| counts.counts && wait(counts);
        let (mut counts, _) =
            self.changed.wait_timeout_while(counts, Duration::from_millis(300), while_it_counts).unwrap();
        change(&mut counts);
        self.changed.notify_all();
    }
}

#[derive(Debug)]
struct Counting<T>(T, Arc<Course>);

impl StateDir for Counting<RealDir> {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        Ok(Box::new(Counting(self.0.open(name, create)?, self.1.clone())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

impl StateFile for Counting<Box<dyn StateFile>> {
    fn read(&self) -> io::Result<Vec<u8>> {
        self.0.read()
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.0.reserve(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()?;
        self.1.counts.lock().unwrap().all_syncs += 1;
        // Not before its message has begun.
        self.1.step(|counts| counts.messages == counts.syncs, |counts| counts.syncs += 1);
        Ok(())
    }
}

/// A kernel in which a message takes as long as a sync.
#[derive(Debug)]
struct Waiting(Arc<ModelKernel>, Arc<Course>);

impl Kernel for Waiting {
    fn below(&self) -> Option<&dyn Kernel> {
        Some(&*self.0)
    }

    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        if request.name() == "DM_TARGET_MSG" {
            self.1.step(|_| false, |counts| counts.messages += 1);
            let beside = |counts: &mut Counts| counts.beside += u64::from(counts.syncs == counts.messages);
            self.1.step(|counts| counts.syncs < counts.messages, beside);
        }
        self.0.ioctl(file, request, argument)
    }

    fn files(&self) -> &dyn Files {
        self.0.files()
    }
}

fn counting(rig: &Rig, course: &Arc<Course>) -> Arc<dyn StateDir> {
    DirBuilder::new().mode(0o700).create(rig.root()).unwrap();
    Arc::new(Counting(RealDir::open(rig.root()).unwrap(), course.clone()))
}

#[test]
fn the_record_is_synced_while_the_pool_makes_the_volume() {
    for (thread, expected) in [(true, 3), (false, 0)] {
        let (rig, course) = (Rig::new(), Arc::new(Course::default()));
        let dir = counting(&rig, &course);
        let kernel = Waiting(rig.kernel.clone(), course.clone());
        let options = rig.options().kernel(Arc::new(kernel)).state_dir(dir).background_threads(thread);
        let tree = rig.open(options).unwrap();
        *course.counts.lock().unwrap() = Counts { counts: true, ..Counts::default() };
        for id in ["a", "b", "c"] {
            tree.add(id, Parent::Base).unwrap();
        }
        let counts = std::mem::take(&mut *course.counts.lock().unwrap());
        assert_eq!((counts.messages, counts.syncs, counts.beside), (3, 3, expected));
        tree.close().unwrap();
    }
}

#[test]
fn a_window_of_thin_ids_is_reserved_with_the_sync_of_an_addition() {
    let (rig, course) = (Rig::new(), Arc::new(Course::default()));
    let options = rig.options().checkpoint_at(Bytes::mib(1)).state_dir(counting(&rig, &course));
    let tree = rig.open(options).unwrap();
    let syncs = || course.counts.lock().unwrap().all_syncs;
    let (before, additions, windows) = (syncs(), 64 * 3, 3);
    (0..additions).for_each(|n| tree.add(format!("a{n}"), Parent::Base).unwrap());
    // The generation of each window has one of its own.
    assert_eq!(syncs() - before, additions + windows);
    tree.close().unwrap();
}

#[test]
fn a_crash_beside_a_new_window_leaves_no_id_unknown() {
    // Half of a window is used, and all of it.
    for used in [30, 62] {
        let prepare = |tree: &SnapshotTree| {
            (0..used).for_each(|n| tree.add(format!("a{n}"), Parent::Base).unwrap());
        };
        let work =
            |tree: &SnapshotTree| ["b", "c", "d", "e"].iter().try_for_each(|id| tree.add(id, Parent::Base));
        crash_everywhere(prepare, work, |rig, tree| {
            assert_eq!(tree.check().unwrap(), []);
            let devices = rig.kernel.thin_devices(&tree.pool().name().to_string()).unwrap();
            assert_eq!(devices.len(), 1 + tree.list().len());
            assert!(tree.list().len() >= used);
        });
    }
}

/// What holds the pool's metadata snapshot keeps this tree from reading which volumes there are.
#[test]
fn an_addition_that_never_came_to_the_pool_is_dropped_while_the_metadata_is_held() {
    crash_everywhere(
        |tree| tree.pool().reserve_metadata_snap().unwrap(),
        |tree| tree.add("a", Parent::Base),
        |_, tree| {
            tree.pool().release_metadata_snap().unwrap();
            assert_eq!(tree.check().unwrap(), []);
        },
    );
}
