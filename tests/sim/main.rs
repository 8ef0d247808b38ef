//! The tree on the model kernel and a model disk, with the power going at any call.
//!
//! Deterministic from a seed, which is printed when a promise is broken:
//! `DM_THIN_SIM_SEED=7 cargo test --all-features --test sim` replays it, `DM_THIN_SIM_WORLDS=100000` runs
//! more of them.

#![allow(unreachable_pub)] // in a program of its own, pub means no more than pub(crate)

mod dice;
mod disk;
mod receive;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::dm::UdevPolicy;
use dm_thin::model::ModelKernel;
use dm_thin::thin::MinFree;
use dm_thin::tree::{Filesystem, Lineage, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;
use tempfile::TempDir;

use dice::Dice;
use disk::{Disk, Fault};

/// Names are few, so that they meet again.
const NAMES: usize = 12;
const STEPS: usize = 60;

/// Snapshots, and what each was made from.
type Snapshots = BTreeMap<String, Origin>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Base,
    Snapshot(String),
    Removed,
}

/// What a call changes.
#[derive(Debug, Clone)]
enum Change {
    Add(String, Option<String>),
    Remove(String),
    Rename(String, String),
}

impl Change {
    /// Whether it can be done.
    fn is_possible(&self, known: &Snapshots) -> bool {
        match self {
            Self::Add(id, parent) => {
                !known.contains_key(id) && parent.as_ref().is_none_or(|parent| known.contains_key(parent))
            }
            Self::Remove(id) => known.contains_key(id),
            Self::Rename(id, to) => known.contains_key(id) && (id == to || !known.contains_key(to)),
        }
    }

    fn apply(&self, known: &mut Snapshots) {
        match self {
            Self::Add(id, parent) => {
                let origin = parent.clone().map_or(Origin::Base, Origin::Snapshot);
                known.insert(id.clone(), origin);
            }
            Self::Remove(id) => {
                known.remove(id);
                replace(known, id, &Origin::Removed);
            }
            Self::Rename(id, to) => {
                let origin = known.remove(id).unwrap();
                known.insert(to.clone(), origin);
                replace(known, id, &Origin::Snapshot(to.clone()));
            }
        }
    }
}

/// What was made from `id` was made from `origin`.
fn replace(known: &mut Snapshots, id: &str, origin: &Origin) {
    let made_from_it = known.values_mut().filter(|origin| **origin == Origin::Snapshot(id.to_owned()));
    made_from_it.for_each(|found| *found = origin.clone());
}

/// A machine, and what its user was told.
struct World {
    dice: Dice,
    directory: TempDir,
    kernel: Arc<ModelKernel>,
    disk: Disk,
    tree: Option<SnapshotTree>,
    /// Acknowledged: these snapshots are there.
    known: Snapshots,
    /// The call that was under way: it may be done, or not, but not half.
    doubt: Option<Change>,
    operations: u64,
    /// Calls fail in this world.
    faulty: bool,
    /// The tree's own `check()` has its say, too.
    inspected: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let kernel = Arc::new(ModelKernel::new());
        let disk = Disk::new(kernel.clone(), dice.fork());
        let directory = TempDir::new_in(memory()).unwrap();
        let (known, doubt) = (Snapshots::new(), None);
        let (tree, operations, faulty, inspected) = (None, 0, false, false);
        Self { dice, directory, kernel, disk, tree, known, doubt, operations, faulty, inspected }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn options(&self) -> Options {
        Options::new()
            .data_size(Bytes::gib(1))
            .metadata_size(Bytes::mib(2))
            .base_size(Bytes::mib(64))
            .filesystem(Filesystem::None)
            .udev(UdevPolicy::None)
            .busy_timeout(Duration::ZERO)
            .checkpoint_at(Bytes(1500))
            .min_free_data(MinFree::Percent(0))
            .min_free_metadata(MinFree::Percent(0))
            .kernel(self.kernel.clone())
            .state_dir(Arc::new(self.disk.clone()))
    }

    fn open(&mut self) -> dm_thin::Result<()> {
        self.tree = Some(SnapshotTree::open(self.root(), self.options())?);
        Ok(())
    }

    fn name(&mut self) -> String {
        format!("s{}", self.dice.below(NAMES))
    }

    /// One call of a user, right or wrong. Only what the world does excuses an error in what must work.
    fn step(&mut self) {
        let (id, other) = (self.name(), self.name());
        let parent = if self.dice.one_in(3) { None } else { Some(other.clone()) };
        let choice = self.dice.below(11);
        let tree = self.tree.as_ref().unwrap();
        self.operations += 1;
        let there = self.known.contains_key(&id);
        match choice {
            0..=3 => {
                let result = tree.add(&id, parent.as_deref().map_or(Parent::Base, Parent::Snapshot));
                self.settle_change(&result, Change::Add(id, parent));
            }
            4..=5 => {
                let result = tree.remove(&id);
                self.settle_change(&result, Change::Remove(id));
            }
            6 => {
                let result = tree.rename(&id, &other);
                self.settle_change(&result, Change::Rename(id, other));
            }
            7 => {
                let result = tree.activate(&id);
                self.settle(&result, there);
            }
            8 => {
                let result = tree.deactivate(&id);
                self.settle(&result, there);
            }
            9 => {
                let result = tree.status();
                self.settle(&result, true);
            }
            _ => {
                let result = tree.close();
                self.settle(&result, true);
                self.tree = None;
                if result.is_ok() {
                    assert_eq!(self.kernel.leftovers(), Vec::<String>::new(), "after a close");
                    let result = self.open();
                    self.settle(&result, true);
                }
            }
        }
    }

    fn settle_change(&mut self, result: &dm_thin::Result<()>, change: Change) {
        let possible = change.is_possible(&self.known);
        if result.is_ok() && possible {
            change.apply(&mut self.known);
        } else if possible {
            self.doubt = Some(change);
        }
        self.settle(result, possible);
    }

    fn settle<T>(&mut self, result: &dm_thin::Result<T>, possible: bool) {
        match result {
            Ok(_) => assert!(possible, "what cannot be done was done"),
            Err(_) if self.kernel.is_cut() => {}
            Err(error) if !possible => {
                assert!(error.is_not_found() || error.is_exists() || self.faulty, "{error}")
            }
            Err(error) if self.faulty => self.look(error),
            Err(error) => panic!("{error}"),
        }
    }

    /// An operation failed because a call did: it was done, or it was not. Which, only the next open
    /// tells if the state is unknown.
    fn look(&mut self, error: &dm_thin::Error) {
        if matches!(error, dm_thin::Error::StateUnknown) {
            self.tree = None;
        }
        self.resolve();
    }

    /// Find out what became of the call that was under way.
    fn resolve(&mut self) {
        let Some(tree) = &self.tree else { return };
        let Some(change) = self.doubt.take() else { return };
        if snapshots(tree) != self.known {
            change.apply(&mut self.known);
        }
    }

    /// Let one of the next calls fail, and no other.
    fn plan_a_fault(&mut self) {
        self.kernel.heal();
        self.disk.forget_faults();
        let call = 1 + self.dice.below(30) as u64;
        let errno = [Errno::EIO, Errno::ENOMEM, Errno::EBUSY, Errno::ENOSPC][self.dice.below(4)];
        match self.dice.below(3) {
            0 => self.kernel.fail_at(call, errno),
            1 => self.kernel.lose_answer_at(call, errno),
            _ => self.disk.plan(call, Fault::NoSpace),
        }
    }

    /// A life in which calls fail.
    fn suffer(&mut self) {
        self.faulty = true;
        for _ in 0..STEPS {
            self.plan_a_fault();
            if self.tree.is_some() {
                self.step();
            } else if self.open().is_ok() {
                self.resolve();
            }
        }
        self.faulty = false;
        self.recover();
        self.check();
    }

    /// Let the power go at a call of one of the next operations.
    fn plan_a_cut(&mut self) {
        let call = 1 + self.dice.below(60) as u64;
        match self.dice.below(3) {
            0 => self.kernel.cut_at(call),
            1 => self.kernel.cut_after(call),
            _ => self.disk.plan(call, Fault::Cut),
        }
    }

    /// The power comes back, or only the process was killed; until the tree is open again.
    fn recover(&mut self) {
        let mut again = self.dice.below(3);
        loop {
            self.tree = None;
            if self.dice.one_in(3) {
                // The kernel goes on, and what was written is in its page cache.
                self.kernel.heal();
                self.disk.forget_faults();
            } else {
                self.kernel = Arc::new(self.kernel.power_cut());
                self.disk = self.disk.after_power_cut(self.kernel.clone());
            }
            if again > 0 {
                again -= 1;
                self.plan_a_cut();
            }
            match self.open() {
                Ok(()) if self.kernel.is_cut() => {}
                Ok(()) => break,
                Err(error) => assert!(self.kernel.is_cut(), "open: {error}"),
            }
        }
        // A cut that was planned for the opening did not come to pass.
        self.kernel.heal();
        self.disk.forget_faults();
    }

    /// Every promise.
    fn check(&mut self) {
        self.resolve();
        let tree = self.tree.as_ref().unwrap();
        let listed = tree.list();
        assert_eq!(snapshots(tree), self.known);
        if self.inspected {
            let findings = tree.check().unwrap();
            assert!(findings.is_empty(), "{findings:?}");
        }
        let pool = self.kernel.thin_devices(tree.pool().name().to_str().unwrap()).unwrap();
        let mut in_pool: Vec<u32> = pool.into_iter().map(|(id, _)| id).collect();
        let mut in_state: Vec<u32> = listed.iter().map(|info| info.thin_id.get()).collect();
        in_state.push(tree.base_id().unwrap().get());
        in_pool.sort_unstable();
        in_state.sort_unstable();
        assert_eq!(in_pool, in_state, "ids leaked or volumes lost");
        self.kernel.clear_log();
    }

    /// A life of operations, cut short again and again.
    fn live(&mut self) {
        self.plan_a_cut();
        if self.open().is_err() {
            self.recover();
        }
        for _ in 0..STEPS {
            if self.tree.is_none() || self.kernel.is_cut() {
                self.recover();
                self.check();
                self.plan_a_cut();
            }
            if self.tree.is_some() && !self.kernel.is_cut() {
                self.step();
            }
        }
        self.recover();
        self.check();
    }
}

fn snapshots(tree: &SnapshotTree) -> Snapshots {
    let origin = |parent| match parent {
        Lineage::Base => Origin::Base,
        Lineage::Snapshot(parent) => Origin::Snapshot(parent.to_string()),
        Lineage::Removed(_) => Origin::Removed,
    };
    tree.list().into_iter().map(|info| (info.id.to_string(), origin(info.parent))).collect()
}

/// A place for the files of the pool that costs nothing to sync.
fn memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Run `life` with many seeds; a seed whose life breaks a promise is named.
fn worlds(default: u64, life: impl Fn(u64) -> u64 + std::panic::RefUnwindSafe) {
    let seeds = match variable("DM_THIN_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("DM_THIN_SIM_WORLDS").unwrap_or(default),
    };
    let mut operations = 0;
    for seed in seeds.clone() {
        match std::panic::catch_unwind(|| life(seed)) {
            Ok(done) => operations += done,
            Err(panic) => {
                println!("replay with DM_THIN_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{operations} operations in {} worlds", seeds.end - seeds.start);
}

/// `check()` runs programs. Another world's devices, inherited by a child that has not reached its exec,
/// would look open there.
static FORKS: RwLock<()> = RwLock::new(());

#[test]
fn nothing_is_lost_or_leaked_when_the_power_goes() {
    worlds(300, |seed| {
        let _no_forks = FORKS.read();
        let mut world = World::new(seed);
        world.live();
        world.operations
    });
}

#[test]
fn check_agrees_after_every_power_cut() {
    worlds(20, |seed| {
        let _no_others = FORKS.write();
        let mut world = World::new(1_000_000 + seed);
        world.inspected = true;
        world.live();
        world.operations
    });
}

#[test]
fn nothing_is_lost_or_leaked_when_calls_fail() {
    worlds(300, |seed| {
        let _no_forks = FORKS.read();
        let mut world = World::new(seed);
        world.suffer();
        world.operations
    });
}

#[test]
fn on_a_full_disk_everything_can_be_removed_and_nothing_added() {
    let _no_forks = FORKS.read();
    let mut world = World::new(0);
    world.open().unwrap();
    let tree = world.tree.as_ref().unwrap();
    let ids: Vec<_> = (0..500).map(|index| format!("a-name-of-some-length-{index}")).collect();
    ids.iter().for_each(|id| tree.add(id, Parent::Base).unwrap());
    world.disk.set_full(true);
    // What room is left is for removals.
    let mut added = 0;
    let error = loop {
        match tree.add(&format!("more-{added}"), Parent::Base) {
            Ok(()) => added += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_out_of_space(), "{error}");
    assert_eq!(tree.list().len(), ids.len() + added);
    for snapshot in tree.list() {
        tree.remove(snapshot.id.as_str()).unwrap();
    }
    assert!(tree.list().is_empty());
    world.disk.set_full(false);
    world.recover();
    world.check();
}
