//! A tree with a file system whose snapshots are mounted, written, grown and snapshotted while they are, with the power
//! going, the manager killed, calls that fail, and a neighbour who mounts and unmounts.

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::dm::UdevPolicy;
use dm_thin::kernel::{DeviceNumber, Kernel};
use dm_thin::model::ModelKernel;
use dm_thin::tree::{AddOptions, Consistency, Filesystem, InitLayer, Options, Parent, SnapshotTree};
use dm_thin::tree::{Error, Result};
use dm_thin::units::Bytes;

use crate::numbers::{Group, Numbers};
use crate::owner::cut_or_panic;
use crate::rng::Rng;
use crate::simulation::memory;
use crate::snapshots::Cell;

const SIZE: Bytes = Bytes::mib(16);
const LARGE: Bytes = Bytes::mib(24);
const STEPS: usize = 60;
/// The file of the init layer.
const LAYER: &str = "etc/hostname";
const THEIRS: &str = "/dev/theirs";

struct Snapshot {
    /// What the file `value` contains.
    value: Cell,
    size: Bytes,
    mounted: bool,
}

/// What the call that is under way is about.
#[derive(Clone, Debug)]
enum Doubt {
    Add { id: String, parent: Option<String>, size: Bytes, crash: bool },
    Remove(String),
    Mount(String),
    Unmount(String),
}

struct Simulation {
    rng: Rng,
    numbers: Arc<Numbers>,
    machine: Arc<ModelKernel>,
    process: Arc<ModelKernel>,
    directory: tempfile::TempDir,
    filesystem: Filesystem,
    tree: Option<SnapshotTree>,
    known: BTreeMap<String, Snapshot>,
    values: u64,
    /// Mounts that were cut: a manager that is killed when it has made a directory, and has not noted it yet, leaves it
    /// there. And directories that could not be removed.
    mounts_cut: usize,
    /// Nodes that could not be looked at or removed: of a device that is gone, one of these is left.
    kept_nodes: HashSet<String>,
}

impl Simulation {
    fn new(seed: u64, numbers: &Arc<Numbers>) -> Self {
        let mut rng = Rng::new(seed);
        let filesystem = if rng.one_in(2) { Filesystem::Ext4 } else { Filesystem::Xfs };
        let machine = Arc::new(ModelKernel::new());
        let this = Self {
            rng,
            numbers: numbers.clone(),
            process: Arc::new(machine.process()),
            machine,
            directory: tempfile::tempdir_in(memory()).unwrap(),
            filesystem,
            tree: None,
            known: BTreeMap::new(),
            values: 0,
            mounts_cut: 0,
            kept_nodes: HashSet::new(),
        };
        this.set_disk();
        this.machine.run("mkfs.ext4", &[THEIRS.as_ref()]).unwrap();
        this
    }

    fn set_disk(&self) {
        let number = DeviceNumber { major: 8, minor: 1 };
        self.machine.set_disk(Path::new(THEIRS), number, Bytes::mib(8).sectors()).unwrap();
    }

    fn options(&self) -> Options {
        Options::new()
            .background_threads(false)
            .base_size(SIZE)
            .data_size(Bytes::mib(64))
            .metadata_size(Bytes::mib(2))
            .filesystem(self.filesystem)
            .mkfs_args(vec!["--unsupported".to_owned()])
            .init_layer(InitLayer::new().file(LAYER))
            .busy_timeout(Duration::ZERO)
            .udev(UdevPolicy::None)
            .kernel(self.process.clone())
    }

    fn target(&self, id: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join("targets").join(id)
    }

    fn run(mut self) {
        std::fs::create_dir(self.directory.path().join("targets")).unwrap();
        for _ in 0..STEPS {
            if self.tree.is_none() {
                self.open();
            }
            if self.tree.is_some() {
                self.step();
            }
        }
        self.process.heal();
        if self.tree.is_none() {
            self.open_well();
        }
        self.check();
        let mounted: Vec<_> =
            self.known.iter().filter(|(_, it)| it.mounted).map(|(id, _)| id.clone()).collect();
        let tree = self.tree.as_ref().unwrap();
        mounted.iter().for_each(|id| tree.unmount(id).unwrap());
        tree.close().unwrap();
        let mut left = self.machine.leftovers();
        left.retain(|thing| !self.kept_nodes.contains(thing));
        assert_eq!(left, Vec::<String>::new());
        let left = std::fs::read_dir(self.directory.path().join("targets")).unwrap().count();
        assert!(left <= self.mounts_cut, "{left} directories are left");
    }

    /// Opens the tree, in an opening that may be cut as well.
    fn open(&mut self) {
        self.process = Arc::new(self.machine.process());
        self.plan(150);
        self.numbers.count(Group::Operations, "mounts: open");
        let (root, options) = (self.directory.path().join("root"), self.options());
        match catch_unwind(AssertUnwindSafe(|| SnapshotTree::open(root, options))) {
            Ok(Ok(tree)) => {
                self.mounts_cut += usize::from(self.process.struck().is_some());
                self.process.heal();
                self.tree = Some(tree);
                self.check();
            }
            Ok(Err(error)) => {
                assert!(self.process.struck().is_some(), "open: {error}");
                self.end();
            }
            Err(payload) => {
                cut_or_panic(payload);
                self.end();
            }
        }
    }

    fn open_well(&mut self) {
        let root = self.directory.path().join("root");
        self.tree = Some(SnapshotTree::open(root, self.options()).unwrap());
    }

    /// Once in a while the process is killed at one of the next calls, or a call fails.
    fn plan(&mut self, calls: usize) {
        if !self.rng.one_in(3) {
            return;
        }
        let call = self.rng.call(calls);
        self.process.unwind_at_cut(true);
        match self.rng.below(3) {
            0 => self.process.cut_at(call),
            1 => self.process.cut_after(call),
            _ => self.process.fail_at(call, *self.rng.pick(&[Errno::EIO, Errno::ENOMEM]).unwrap()),
        }
    }

    /// The manager is gone; and perhaps the power.
    fn end(&mut self) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(self.tree.take()))) {
            cut_or_panic(payload);
        }
        if let Some(call) = self.process.struck() {
            self.numbers.tell(|| {
                format!("cut {} or failure of {} on {}", self.process.is_cut(), call.name, call.subject)
            });
            self.numbers.count(Group::Faults, format!("mounts: {}", call.name));
            if ["stat", "unlink"].contains(&call.name) {
                self.kept_nodes.insert(format!("node {}", call.subject));
            }
        }
        self.process = Arc::new(self.machine.process());
        if self.rng.one_in(2) {
            self.numbers.count(Group::Faults, "mounts: power cut");
            self.machine = Arc::new(self.machine.power_cut());
            self.process = Arc::new(self.machine.process());
            self.set_disk();
            for snapshot in self.known.values_mut() {
                snapshot.mounted = false;
                snapshot.value.power_lost();
            }
        }
    }

    fn step(&mut self) {
        let names: Vec<String> = self.known.keys().cloned().collect();
        let id = self.rng.pick(&names).cloned();
        let mounted = id.as_ref().is_some_and(|id| self.known[id].mounted);
        match (self.rng.below(10), id) {
            (0 | 1, _) | (_, None) => {
                let id = format!("s{}", self.rng.below(6));
                if !self.known.contains_key(&id) {
                    let parent = self.rng.pick(&names).cloned();
                    let least = parent.as_ref().map_or(SIZE, |parent| self.known[parent].size);
                    let size = if self.rng.one_in(3) { LARGE } else { least };
                    let crash = self.rng.one_in(3);
                    self.call(Doubt::Add { id, parent, size, crash });
                }
            }
            (2, Some(id)) if !mounted => self.call(Doubt::Remove(id)),
            (3 | 4, Some(id)) if !mounted => self.call(Doubt::Mount(id)),
            (5, Some(id)) if mounted => self.call(Doubt::Unmount(id)),
            (6 | 7, Some(id)) if mounted => self.write(&id),
            (8, Some(id)) if mounted => self.neighbour_covers(&id),
            (9, Some(id)) if mounted => self.neighbour_unmounts(&id),
            _ => {}
        }
    }

    /// A call of the user.
    fn call(&mut self, doubt: Doubt) {
        let tree = self.tree.take().unwrap();
        self.plan(40);
        let kind: String = format!("{doubt:?}").chars().take_while(char::is_ascii_alphabetic).collect();
        self.numbers.count(Group::Operations, format!("mounts: {kind}"));
        self.numbers.tell(|| format!("{doubt:?}"));
        let done = catch_unwind(AssertUnwindSafe(|| self.act(&tree, &doubt)));
        self.tree = Some(tree);
        match done {
            Ok(Ok(())) => {
                // Removing a directory is best effort.
                self.mounts_cut += usize::from(self.process.struck().is_some());
                self.process.heal();
                self.apply(&doubt);
            }
            Ok(Err(error)) => {
                self.numbers.tell(|| error.to_string());
                assert!(self.process.struck().is_some(), "{doubt:?}: {error}");
                self.end();
                self.resolve(&doubt);
            }
            Err(payload) => {
                cut_or_panic(payload);
                self.end();
                self.resolve(&doubt);
            }
        }
    }

    fn act(&self, tree: &SnapshotTree, doubt: &Doubt) -> Result<()> {
        match doubt {
            Doubt::Add { id, parent, size, crash } => {
                let parent = parent.as_deref().map_or(Parent::Base, Parent::Snapshot);
                let consistency = if *crash { Consistency::Crash } else { Consistency::Filesystem };
                tree.add_with(id, parent, &AddOptions::new().size(*size).consistency(consistency))
            }
            Doubt::Remove(id) => tree.remove(id),
            Doubt::Mount(id) => tree.mount(id, self.target(id)).map(drop),
            Doubt::Unmount(id) => tree.unmount(id).map(drop),
        }
    }

    fn apply(&mut self, doubt: &Doubt) {
        match doubt {
            Doubt::Add { id, parent, size, crash } => {
                let mut value = match parent.as_ref().and_then(|parent| self.known.get_mut(parent)) {
                    Some(parent) => {
                        if parent.mounted && !crash {
                            // It was frozen.
                            parent.value.synced();
                        }
                        let mut value = parent.value.clone();
                        if *crash {
                            value.power_lost();
                        }
                        value
                    }
                    None => Cell::empty(),
                };
                value.synced();
                self.known.insert(id.clone(), Snapshot { value, size: *size, mounted: false });
            }
            Doubt::Remove(id) => drop(self.known.remove(id)),
            Doubt::Mount(id) => self.known.get_mut(id).unwrap().mounted = true,
            Doubt::Unmount(id) => {
                let snapshot = self.known.get_mut(id).unwrap();
                snapshot.mounted = false;
                snapshot.value.synced();
            }
        }
    }

    /// What became of a call that was cut or failed, as an opening without faults tells.
    fn resolve(&mut self, doubt: &Doubt) {
        self.mounts_cut += usize::from(matches!(doubt, Doubt::Mount(_)));
        self.open_well();
        let tree = self.tree.as_ref().unwrap();
        let done = match doubt {
            Doubt::Add { id, .. } => tree.contains(id),
            Doubt::Remove(id) => !tree.contains(id),
            Doubt::Mount(id) => tree.get(id).unwrap().mounted.is_some(),
            Doubt::Unmount(id) => self.known[id].mounted && tree.get(id).unwrap().mounted.is_none(),
        };
        if done {
            self.apply(doubt);
        }
        // Mounted, it may not be ready yet: whoever mounts it gets it ready.
        if let (Doubt::Mount(id), true) = (doubt, done) {
            let tree = self.tree.as_ref().unwrap();
            tree.mount(id, self.target(id)).unwrap();
            tree.unmount(id).unwrap();
        }
        self.check();
    }

    fn write(&mut self, id: &str) {
        self.numbers.count(Group::Operations, "mounts: write");
        self.values += 1;
        let target = self.target(id);
        self.machine.write_file(&target.join("value"), &self.values.to_le_bytes()).unwrap();
        self.known.get_mut(id).unwrap().value.written(self.values);
    }

    /// Another file system over a snapshot's: it is not taken down in its place.
    fn neighbour_covers(&mut self, id: &str) {
        self.numbers.count(Group::Neighbour, "mounts: covers a mount");
        let target = self.target(id);
        let theirs = || self.machine.unmount(&target, UnmountFlags::empty());
        self.machine.mount(Some(Path::new(THEIRS)), &target, Some("ext4"), MountFlags::empty(), "").unwrap();
        let tree = self.tree.as_ref().unwrap();
        let error = tree.unmount(id).unwrap_err();
        assert!(matches!(error, Error::Covered { .. }), "{error}");
        theirs().unwrap();
        assert!(tree.get(id).unwrap().mounted.is_some());
    }

    /// Somebody takes down a snapshot's mount.
    fn neighbour_unmounts(&mut self, id: &str) {
        self.numbers.count(Group::Neighbour, "mounts: takes a mount down");
        self.numbers.tell(|| format!("neighbour unmounts {id}"));
        self.machine.unmount(&self.target(id), UnmountFlags::empty()).unwrap();
        let tree = self.tree.as_ref().unwrap();
        match tree.unmount(id) {
            Ok(_) | Err(Error::NotMounted { .. }) => {}
            Err(error) => panic!("unmount after somebody else: {error}"),
        }
        self.apply(&Doubt::Unmount(id.to_owned()));
    }

    /// Every promise, in a life without faults.
    fn check(&mut self) {
        self.numbers.count(Group::Checks, "mounts: a tree, its mounts, their files");
        let tree = self.tree.as_ref().unwrap();
        let ids: Vec<String> = tree.list().iter().map(|info| info.id.to_string()).collect();
        assert_eq!(ids, self.known.keys().cloned().collect::<Vec<_>>());
        for (id, snapshot) in &mut self.known {
            let target = self.directory.path().canonicalize().unwrap().join("targets").join(id);
            let found = tree.get(id).unwrap();
            assert_eq!(found.mounted.is_some(), snapshot.mounted, "{id}: {found:?}");
            if !snapshot.mounted {
                tree.mount(id, &target).unwrap();
            }
            let device = tree.get(id).unwrap().device.unwrap();
            let (_, _, size) = self.machine.filesystem(&device).unwrap().unwrap();
            assert_eq!(size, snapshot.size, "the file system of {id}");
            self.machine.read_file(&target.join(LAYER)).unwrap();
            let value = match self.machine.read_file(&target.join("value")) {
                Ok(bytes) => u64::from_le_bytes(bytes.try_into().unwrap()),
                Err(Errno::ENOENT) => 0,
                Err(errno) => panic!("{id}: {errno}"),
            };
            snapshot.value.found(value, &format!("the file of {id}"));
            if !snapshot.mounted {
                tree.unmount(id).unwrap();
                snapshot.value.synced();
            }
        }
        let found = tree.repair().unwrap();
        assert_eq!(found.left, [], "{found:?}");
    }
}

pub fn run(seed: u64, numbers: &Arc<Numbers>) {
    Simulation::new(seed, numbers).run();
}
