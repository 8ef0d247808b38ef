//! A tree, its user, and what the user was told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::dm::UdevPolicy;
use dm_thin::kernel::{Access, DeviceFile, DeviceNumber, Kernel};
use dm_thin::model::{Cut, Mode, ModelKernel};
use dm_thin::thin;
use dm_thin::thin::{ExtendRule, MinFree};
use dm_thin::tree::{Error, Result};
use dm_thin::tree::{Filesystem, Finding, Options, PoolSource, SnapshotTree};
use dm_thin::units::{Bytes, Sectors};
use uuid::Uuid;

use crate::disk::{Dir, Disk};
use crate::numbers::{Group, Numbers};
use crate::rng::Rng;
use crate::snapshots::{
    Cell, Change, Content, LENGTH, POSITIONS, Sealed, Snapshots, list, matches, value_of,
};
use crate::streams::Stream;

pub const BASE_SIZE: Bytes = Bytes::mib(16);
const DATA_SIZE: Bytes = Bytes::mib(64);
pub const DATA_MAX: Bytes = Bytes::mib(128);

/// The pool that trees can adopt.
pub const SHARED_POOL: &str = "vg-pool";

/// Where a tree's pool comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Files,
    Devices,
    Device,
    Adopted,
}

impl Source {
    pub const ALL: [Self; 4] = [Self::Files, Self::Devices, Self::Device, Self::Adopted];
}

/// What everybody in a simulation can reach.
#[derive(Clone)]
pub struct Shared {
    pub numbers: Arc<Numbers>,
    /// Streams that were sent, by whichever tree.
    pub streams: Arc<Mutex<Vec<Stream>>>,
    /// What is written next.
    pub values: Arc<Mutex<u64>>,
}

/// A tree and its user.
pub struct Owner {
    pub index: usize,
    pub shared: Shared,
    pub rng: Rng,
    pub root: PathBuf,
    pub source: Source,
    pub machine: Arc<ModelKernel>,
    /// The manager's, and its user's.
    pub process: Arc<ModelKernel>,
    pub disk: Disk,
    pub tree: Option<SnapshotTree>,
    /// Acknowledged: these snapshots are there.
    pub known: Snapshots,
    /// What the call that is under way changes, step by step: any number of them may be done.
    pub doubt: Vec<Change>,
    /// Calls fail in this life.
    pub faulty: bool,
    /// Somebody does something to what is this tree's.
    pub disturbed: Arc<AtomicBool>,
    /// The other tree was killed when it read the pool's metadata, or could not let go of it.
    pub is_held_elsewhere: bool,
    /// How many of the faults that struck its process are counted.
    pub counted: usize,
    /// The tree's identity, once it was open.
    pub uuid: Arc<Mutex<Option<Uuid>>>,
    /// The tree is open, and neither being opened nor closed.
    pub exclusive: Arc<AtomicBool>,
    /// A snapshot whose device the user has open.
    pub held: Option<(String, DeviceFile)>,
    /// The device goes when it is closed.
    pub leaving: bool,
    pub data_size: Bytes,
    pub extends: bool,
    /// The disk under the state and the pool's files is full.
    pub full: bool,
    /// Whether the user fills the pool.
    pub fills: bool,
    /// How often the tree was opened.
    pub opened: u64,
    /// Its state is an older one now: what is known of it says nothing any more.
    pub is_over: bool,
}

/// How an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Done,
    Refused,
    Either,
}

impl From<bool> for Expected {
    fn from(possible: bool) -> Self {
        if possible { Self::Done } else { Self::Refused }
    }
}

impl Owner {
    pub fn new(
        index: usize,
        (shared, mut rng): (Shared, Rng),
        root: PathBuf,
        source: Source,
        machine: &Arc<ModelKernel>,
    ) -> Self {
        let extends = source == Source::Files && rng.one_in(3);
        let this = Self {
            index,
            shared,
            root,
            source,
            machine: machine.clone(),
            process: Arc::new(machine.process()),
            disk: Disk::new(rng.fork()),
            tree: None,
            known: Snapshots::new(),
            doubt: Vec::new(),
            faulty: false,
            disturbed: Arc::default(),
            is_held_elsewhere: false,
            counted: 0,
            uuid: Arc::default(),
            exclusive: Arc::default(),
            held: None,
            leaving: false,
            data_size: DATA_SIZE,
            extends,
            full: false,
            fills: false,
            opened: 0,
            is_over: false,
            rng,
        };
        this.set_disks();
        this
    }

    pub fn set_disks(&self) {
        for (name, minor, size) in self.disks() {
            let number = DeviceNumber { major: 8, minor };
            self.machine.set_disk(Path::new(&name), number, size).unwrap();
        }
    }

    /// The disks of the pool: their paths, minor numbers and sizes.
    fn disks(&self) -> Vec<(String, u32, Sectors)> {
        let disk = |what: &str, number: u32, size: Bytes| {
            let minor = 32 * (1 + u32::try_from(self.index).unwrap()) + 16 * number;
            (format!("/dev/{what}{}", self.index), minor, size.sectors())
        };
        match self.source {
            Source::Devices => vec![disk("meta", 0, Bytes::mib(4)), disk("data", 1, self.data_size)],
            Source::Device => vec![disk("raw", 0, Bytes::mib(72))],
            Source::Files | Source::Adopted => Vec::new(),
        }
    }

    pub fn options_for(&self, process: &Arc<ModelKernel>, disk: &Disk) -> Options {
        let dir = Dir { disk: disk.clone(), process: process.clone() };
        let mut options = Options::new()
            .base_size(BASE_SIZE)
            .filesystem(Filesystem::None)
            .udev(UdevPolicy::None)
            .background_threads(false)
            .busy_timeout(Duration::ZERO)
            .checkpoint_at(Bytes(1500))
            .min_free_data(MinFree::Percent(0))
            .min_free_metadata(MinFree::Percent(0))
            .kernel(process.clone())
            .state_dir(Arc::new(dir));
        if self.extends {
            let rule = ExtendRule { threshold: 50, step: 10, maximum: DATA_MAX };
            options = options.auto_extend(rule);
        }
        match (self.source, &self.disks()[..]) {
            (Source::Files, _) => options.data_size(DATA_SIZE).metadata_size(Bytes::mib(2)),
            (Source::Devices, [(metadata, ..), (data, ..)]) => {
                options.pool_source(PoolSource::Devices { data: data.into(), metadata: metadata.into() })
            }
            (Source::Device, [(path, ..)]) => options.pool_source(PoolSource::Device { path: path.into() }),
            _ => options.pool_source(PoolSource::Pool { name: SHARED_POOL.to_owned() }),
        }
    }

    pub fn options(&self) -> Options {
        self.options_for(&self.process, &self.disk)
    }

    pub fn count(&self, group: Group, kind: &str) {
        self.shared.numbers.count(group, kind);
    }

    pub fn new_value(&self) -> u64 {
        let mut values = self.shared.values.lock().unwrap();
        *values += 1;
        *values
    }

    /// Whether there is nobody to call.
    pub fn is_down(&self) -> bool {
        self.tree.is_none() || self.process.is_cut()
    }

    pub fn is_disturbed(&self) -> bool {
        self.disturbed.load(Ordering::Relaxed)
    }

    /// Whether an error can come from outside.
    fn is_excused(&self, error: &Error) -> bool {
        let no_space = self.full || self.is_pool_full();
        // The other tree may be reading just now.
        let held = self.source == Source::Adopted && is_metadata_snap_held(error);
        self.faulty || self.is_disturbed() || held || no_space && is_about_space(error)
    }

    fn is_pool_full(&self) -> bool {
        let pool = self.tree.as_ref().map(|tree| tree.pool().name().to_string());
        pool.is_some_and(|pool| self.machine.mode(&pool) == Ok(Mode::OutOfDataSpace))
    }

    /// Nothing is planned, open, or waits for being closed.
    pub fn be_at_rest(&mut self) {
        self.heal();
        self.held = None;
        assert_eq!(self.tree.as_ref().unwrap().reap().unwrap(), 0);
    }

    /// The manager is gone, and its user with it: the machine goes on.
    pub fn die(&mut self) {
        self.exclusive.store(false, Ordering::Relaxed);
        // Which makes calls, too.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(self.tree.take()))) {
            cut_or_panic(payload);
        }
        self.held = None;
        // What is still planned holds managers and machines.
        self.heal();
        self.process = Arc::new(self.machine.process());
    }

    /// Nothing that was planned comes to pass.
    pub fn heal(&mut self) {
        self.process.heal();
        self.counted = 0;
    }

    /// The machine is off, and on again.
    pub fn reboot(&mut self, machine: &Arc<ModelKernel>) {
        self.machine = machine.clone();
        self.die();
        self.disk = self.disk.after_power_cut();
        self.for_each_cell(Cell::power_lost);
    }

    pub fn for_each_cell(&mut self, work: impl Fn(&mut Cell)) {
        let known = self.known.values_mut().map(|snapshot| &mut snapshot.content);
        let doubt = self.doubt.iter_mut().filter_map(|change| match change {
            Change::Add(_, snapshot) => Some(&mut snapshot.content),
            _ => None,
        });
        known.chain(doubt).flatten().for_each(work);
    }

    /// Opens the tree, and sees what became of the last call. `None` if the process was killed meanwhile.
    pub fn open(&mut self) -> Option<Result<()>> {
        let opened = self.open_only();
        if matches!(opened, Some(Ok(()))) {
            self.resolve();
        }
        opened
    }

    /// The same with a state that says what it wants.
    pub fn open_only(&mut self) -> Option<Result<()>> {
        self.count(Group::Operations, "open");
        self.shared.numbers.tell(|| format!("tree {}: open {:?}", self.index, self.source));
        let (root, options) = (self.root.clone(), self.options());
        match catch_unwind(AssertUnwindSafe(|| SnapshotTree::open(root, options))) {
            Err(payload) => {
                cut_or_panic(payload);
                None
            }
            Ok(Ok(tree)) => {
                *self.uuid.lock().unwrap() = Some(tree.uuid());
                self.tree = Some(tree);
                self.opened += 1;
                self.exclusive.store(true, Ordering::Relaxed);
                Some(Ok(()))
            }
            Ok(Err(_)) if self.process.is_cut() => None,
            Ok(Err(error)) => {
                self.shared.numbers.refused(&error);
                self.shared.numbers.tell(|| format!("tree {}: open: {error}", self.index));
                Some(Err(error))
            }
        }
    }

    /// A call of the user that changes nothing that is listed.
    pub fn call<T>(
        &mut self,
        what: &str,
        expected: impl Into<Expected>,
        work: impl FnOnce(&SnapshotTree) -> Result<T>,
    ) -> Option<T> {
        self.attempt(what, expected, Vec::new(), work)
    }

    /// A call that changes something.
    pub fn change<T>(
        &mut self,
        what: &str,
        changes: Vec<Change>,
        work: impl FnOnce(&SnapshotTree) -> Result<T>,
    ) -> Option<T> {
        let mut after = self.known.clone();
        let possible = changes.iter().all(|change| {
            let possible = change.is_possible(&after);
            if possible {
                change.apply(&mut after);
            }
            possible
        });
        let names = |change: &Change| match change {
            Change::Add(id, _) | Change::Remove(id) | Change::Seal(id) | Change::Unseal(id) => {
                [id.clone(), id.clone()]
            }
            Change::Rename(id, to) | Change::Commit(id, to) => [id.clone(), to.clone()],
        };
        let names: Vec<_> = changes.iter().flat_map(names).collect();
        // A device that goes when it is closed is removed before anything is done to it.
        let leaves = self.leaving && self.held.as_ref().is_some_and(|(id, _)| names.contains(id));
        let expected = if possible && leaves { Expected::Either } else { possible.into() };
        self.attempt(what, expected, changes, work)
    }

    pub fn attempt<T>(
        &mut self,
        what: &str,
        expected: impl Into<Expected>,
        changes: Vec<Change>,
        work: impl FnOnce(&SnapshotTree) -> Result<T>,
    ) -> Option<T> {
        let tree = self.tree.take()?;
        self.count(Group::Operations, what);
        let index = self.index;
        self.shared.numbers.tell(|| format!("tree {index}: {what} {changes:?}"));
        self.doubt = changes;
        let result = match catch_unwind(AssertUnwindSafe(|| work(&tree))) {
            Ok(result) => result,
            Err(payload) => {
                cut_or_panic(payload);
                drop(tree);
                return None;
            }
        };
        self.tree = Some(tree);
        if let Err(error) = &result {
            self.shared.numbers.tell(|| format!("tree {index}: {what}: {error}"));
        }
        match (result, expected.into()) {
            (Ok(value), expected) => {
                assert!(expected != Expected::Refused, "{what}: what cannot be done was done");
                for change in std::mem::take(&mut self.doubt) {
                    change.apply(&mut self.known);
                }
                Some(value)
            }
            // What became of it is seen when the tree is open again.
            (Err(_), _) if self.process.is_cut() => None,
            (Err(error), expected) => {
                self.shared.numbers.refused(&error);
                let as_expected = match expected {
                    Expected::Done => false,
                    Expected::Refused | Expected::Either => is_refusal(&error),
                };
                assert!(as_expected || self.is_excused(&error), "{what}: {error}");
                self.look(&error);
                None
            }
        }
    }

    /// A call failed and the process lives: it was done, or it was not. Which, only the next open tells if the state is
    /// unknown.
    fn look(&mut self, error: &Error) {
        if is_state_unknown(error) {
            self.die();
        }
        self.resolve();
    }

    /// Finds out what became of the call that was under way.
    pub fn resolve(&mut self) {
        let Some(tree) = &self.tree else { return };
        let listed = list(tree);
        let changes = std::mem::take(&mut self.doubt);
        let mut known = self.known.clone();
        let mut left = changes.iter();
        while !matches(&listed, &known) {
            let next = left.next().filter(|change| change.is_possible(&known));
            let Some(change) = next else {
                panic!("{listed:?} are there, not {:?}, after {changes:?}", self.known);
            };
            change.apply(&mut known);
        }
        for (id, snapshot) in &mut known {
            if snapshot.sealed == Sealed::Somehow {
                snapshot.sealed = Sealed::As(listed[id].1.unwrap());
            }
        }
        self.known = known;
    }

    pub fn set_full(&mut self, full: bool) {
        self.full = full;
        self.disk.set_full(full);
    }

    /// What the user does without the tree; the process may be killed in it.
    pub fn io<T>(&self, work: impl FnOnce(&ModelKernel) -> Result<T, Errno>) -> Result<T, Errno> {
        catch_unwind(AssertUnwindSafe(|| work(&self.process))).unwrap_or_else(|payload| {
            cut_or_panic(payload);
            Err(Errno::EIO)
        })
    }

    /// Whether I/O of the user may fail with that.
    pub fn is_excused_io(&self, errno: Errno) -> bool {
        let no_space = errno == Errno::ENOSPC && (self.full || self.is_pool_full());
        self.faulty || self.is_disturbed() || self.process.is_cut() || no_space
    }

    /// Everything acknowledged is there with its data, and nothing else: `foreign` are the ids of others in the pool, if
    /// they are all known.
    pub fn check(&mut self, foreign: Option<&[u32]>) {
        self.resolve();
        self.check_volumes(foreign);
        let tree = self.tree.as_ref().unwrap();
        let pool = tree.pool().name().to_string();
        for info in tree.list() {
            let content = &mut self.known.get_mut(info.id.as_str()).unwrap().content;
            let what = format!("snapshot {} of tree {}", info.id, self.index);
            check_content(&self.machine, &pool, info.thin_id.get(), content, &what);
        }
        self.count(Group::Checks, "a tree, its volumes, their data");
    }

    /// The same but for the data.
    pub fn check_volumes(&self, foreign: Option<&[u32]>) {
        let tree = self.tree.as_ref().unwrap();
        let listed = list(tree);
        assert!(matches(&listed, &self.known), "{listed:?}, not {:?}", self.known);
        let in_pool = self.machine.thin_devices(tree.pool().name().to_str().unwrap()).unwrap();
        let in_pool: BTreeSet<u32> = in_pool.into_iter().map(|(id, _)| id).collect();
        let mut own: BTreeSet<u32> = tree.list().iter().map(|info| info.thin_id.get()).collect();
        own.extend(tree.base_id().map(|id| id.get()));
        assert!(
            own.is_subset(&in_pool),
            "volumes lost: {own:?}, in the pool: {in_pool:?}; {:?}",
            tree.list()
        );
        let findings = tree.check().unwrap();
        let ready: usize = tree.status().unwrap().ready.iter().map(|ready| ready.count).sum();
        let unpublished = tree.partial_receives().len() + ready;
        if let Some(foreign) = foreign {
            let leaked: Vec<_> = in_pool.difference(&own).filter(|id| !foreign.contains(id)).collect();
            // In a shared pool what a crash left may be somebody else's.
            let leaks = if self.source == Source::Adopted {
                leaked.len() >= unpublished
            } else {
                leaked.len() == unpublished
            };
            assert!(leaks, "volumes leaked: {leaked:?}; found: {findings:?}");
        }
        let is_explained = |finding: &Finding| match finding {
            Finding::UnknownVolume { thin_id, own: false } => {
                self.source == Source::Adopted && !own.contains(&thin_id.get())
            }
            Finding::Pool { needs_check: false, .. } => self.is_pool_full(),
            Finding::MetadataSnapHeld => self.source == Source::Adopted && self.is_held_elsewhere,
            _ => false,
        };
        assert!(findings.iter().all(is_explained), "{findings:?}");
    }

    /// All volumes of the pool, and what is in each.
    pub fn volumes(&self) -> BTreeMap<u32, Vec<u64>> {
        let tree = self.tree.as_ref().unwrap();
        let pool = tree.pool().name().to_string();
        let mut volumes = BTreeMap::new();
        for (id, _) in self.machine.thin_devices(&pool).unwrap() {
            let read = |at| {
                let mut found = vec![0; LENGTH];
                self.machine.read_thin(&pool, id, at, &mut found).unwrap();
                value_of(&found, &id)
            };
            volumes.insert(id, POSITIONS.map(read).to_vec());
        }
        volumes
    }

    /// Activates each snapshot, and reads it.
    pub fn read_as_a_user(&mut self) {
        let tree = self.tree.as_ref().unwrap();
        for (id, snapshot) in &mut self.known {
            let file = self.process.open(&tree.activate(id).unwrap(), Access::READ).unwrap();
            for (cell, at) in snapshot.content.iter_mut().zip(POSITIONS) {
                let mut found = vec![0; LENGTH];
                self.process.read_at(&file, at, &mut found).unwrap();
                cell.found(value_of(&found, id), id);
            }
        }
    }

    /// Sees to it that nothing of the neighbour's doings is left, if the pool is there.
    pub fn repair(&mut self) -> bool {
        self.held = None;
        let tree = self.tree.as_ref().unwrap();
        let Ok(findings) = tree.check() else { return false };
        for finding in findings {
            let text = format!("{finding:?}");
            let kind: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
            self.count(Group::Findings, &kind);
        }
        // Ready snapshots that nobody wants any more are no finding.
        match tree.repair().and_then(|_| tree.reap()) {
            // A sync failed before: only an open finds out what is recorded.
            Err(Error::StateUnknown) if self.faulty => return false,
            repaired => _ = repaired.unwrap(),
        }
        self.disturbed.store(false, Ordering::Relaxed);
        true
    }

    /// Another manager of the same root, who comes between two calls.
    pub fn second_manager(&self) -> impl FnOnce() + Send + 'static {
        let process = Arc::new(self.machine.process());
        let (root, options) = (self.root.clone(), self.options_for(&process, &self.disk));
        let (numbers, exclusive) = (self.shared.numbers.clone(), self.exclusive.clone());
        let disturbed = self.disturbed.clone();
        move || {
            numbers.count(Group::Neighbour, "a second manager between two calls");
            match SnapshotTree::open(&root, options) {
                Ok(_) => assert!(!exclusive.load(Ordering::Relaxed), "two managers of {root:?}"),
                Err(Error::Locked { .. }) => {}
                Err(error) => {
                    let busy = exclusive.load(Ordering::Relaxed) && !disturbed.load(Ordering::Relaxed);
                    assert!(!busy, "a second manager of {root:?}: {error}");
                }
            }
        }
    }
}

/// # Panics
/// If it was not the power, or a kill.
pub fn cut_or_panic(payload: Box<dyn std::any::Any + Send>) {
    if !payload.is::<Cut>() {
        resume_unwind(payload);
    }
}

/// Each position of a volume has one of the values that it may have.
pub fn check_content(kernel: &ModelKernel, pool: &str, id: u32, content: &mut Content, what: &dyn Display) {
    for (cell, at) in content.iter_mut().zip(POSITIONS) {
        let mut found = vec![0; LENGTH];
        kernel.read_thin(pool, id, at, &mut found).unwrap_or_else(|errno| panic!("{what}, {at}: {errno}"));
        let what = format!("{what}, {at}");
        cell.found(value_of(&found, &what), &what);
    }
}

/// What a user is refused that did something wrong.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Receive { source, .. } => is_refusal(source),
        Error::NotSealed { .. } | Error::Sealed { .. } | Error::HasChildren { .. } | Error::NoBase { .. } => {
            true
        }
        Error::OptionConflict { option: "snapshot size", .. } => true,
        Error::InvalidOption { option: "base", .. } => true,
        error => error.is_not_found() || error.is_exists() || error.is_busy(),
    }
}

fn is_metadata_snap_held(error: &Error) -> bool {
    match error {
        Error::Receive { source, .. } => is_metadata_snap_held(source),
        error => matches!(error, Error::Thin(thin::Error::MetadataSnapHeld { .. })),
    }
}

pub fn is_about_space(error: &Error) -> bool {
    match error {
        Error::Receive { source, .. } => is_about_space(source),
        Error::StateUnknown => true,
        error => error.is_out_of_space(),
    }
}

pub fn is_state_unknown(error: &Error) -> bool {
    match error {
        Error::Receive { source, .. } => is_state_unknown(source),
        error => matches!(error, Error::StateUnknown),
    }
}
