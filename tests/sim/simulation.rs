//! A machine, two trees on it, and what happens to them.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use dm_thin::Errno;
use dm_thin::model::{Call, ModelKernel};
use dm_thin::tree::Error;
use tempfile::TempDir;

use crate::copies::Backup;
use crate::neighbour::{Neighbour, Victim};
use crate::numbers::{Group, Numbers};
use crate::owner::{Owner, Shared, Source, is_about_space};
use crate::rng::Rng;
use crate::snapshots::Cell;

const STEPS: usize = 200;

/// What happens in a simulation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    pub trees: usize,
    /// The power goes and managers are killed, at any call.
    pub cuts: bool,
    /// Calls fail.
    pub faults: bool,
    /// Somebody else acts, between calls and at any call.
    pub neighbour: bool,
    /// Roots are moved, copied and restored.
    pub administrator: bool,
    /// The disk below states and pools fills, and so do pools.
    pub fills: bool,
}

pub struct Simulation {
    plan: Plan,
    pub rng: Rng,
    pub directory: TempDir,
    machine: Arc<ModelKernel>,
    owners: Vec<Arc<Mutex<Owner>>>,
    neighbour: Arc<Mutex<Neighbour>>,
    pub numbers: Arc<Numbers>,
    /// Of each tree.
    pub backups: Vec<Option<Backup>>,
    /// How many paths were made.
    pub paths: u64,
    /// Nodes that could not be looked at or removed: of a device that is gone, one of these is left.
    kept_nodes: Mutex<HashSet<String>>,
}

impl Simulation {
    pub fn new(seed: u64, plan: Plan, numbers: &Arc<Numbers>) -> Self {
        let mut rng = Rng::new(seed);
        let machine = Arc::new(ModelKernel::new());
        let directory = TempDir::new_in(memory()).unwrap();
        let shared = Shared { numbers: numbers.clone(), streams: Arc::default(), values: Arc::default() };
        let owner = |index: usize| {
            let root = directory.path().join(format!("root{index}"));
            let source = Source::ALL[rng.below(Source::ALL.len())];
            let owner = Owner::new(index, (shared.clone(), rng.fork()), root, source, &machine);
            Owner { fills: plan.fills, ..owner }
        };
        let owners: Vec<_> = (0..plan.trees).map(owner).collect();
        let target = |owner: &Owner| {
            let (root, source) = (owner.root.clone(), owner.source);
            Victim { root, source, tree: owner.uuid.clone(), disturbed: owner.disturbed.clone() }
        };
        let trees = owners.iter().map(target).collect();
        let neighbour = Neighbour::new((rng.fork(), numbers.clone()), &machine, directory.path(), trees);
        let neighbour = Arc::new(Mutex::new(neighbour));
        let owners: Vec<_> = owners.into_iter().map(|owner| Arc::new(Mutex::new(owner))).collect();
        let backups = owners.iter().map(|_| None).collect();
        let numbers = numbers.clone();
        Self {
            plan,
            rng,
            directory,
            machine,
            owners,
            neighbour,
            numbers,
            backups,
            paths: 0,
            kept_nodes: Mutex::default(),
        }
    }

    pub fn neighbour(&self) -> MutexGuard<'_, Neighbour> {
        self.neighbour.lock().unwrap()
    }

    pub fn owner(&self, index: usize) -> MutexGuard<'_, Owner> {
        self.owners[index].lock().unwrap()
    }

    /// Lives of operations, cut short again and again.
    pub fn run(mut self) {
        for _ in 0..STEPS {
            for index in 0..self.owners.len() {
                if self.is_to_recover(index) {
                    self.recover(index);
                    self.check(index);
                }
            }
            let index = self.rng.below(self.owners.len());
            // Down, if the power went while the other one was opened.
            if self.owner(index).is_over || self.owner(index).is_down() {
                continue;
            }
            if self.owner(index).is_disturbed() && self.rng.one_in(8) {
                self.settle(index);
            }
            let well = !self.owner(index).is_disturbed() && !self.owner(index).faulty;
            if self.plan.administrator && well && self.rng.one_in(12) {
                self.set_full(false);
                self.administer(index);
                continue;
            }
            if self.plan.fills && self.rng.one_in(10) {
                let full = self.rng.one_in(2);
                self.set_full(full);
            }
            self.plan_trouble(index);
            self.owner(index).step();
            self.count_faults();
            if self.plan.neighbour && self.rng.one_in(4) {
                self.neighbour().act();
            }
            self.neighbour().check();
        }
        self.finish();
    }

    fn is_to_recover(&mut self, index: usize) -> bool {
        let owner = self.owner(index);
        let (down, faulty) = (owner.is_down(), owner.faulty);
        let over = owner.is_over;
        drop(owner);
        !over && (down || faulty && self.rng.one_in(20))
    }

    /// The disk that all files are on.
    fn set_full(&self, full: bool) {
        self.machine.set_full(full);
        self.owners.iter().for_each(|owner| owner.lock().unwrap().set_full(full));
    }

    fn plan_trouble(&mut self, index: usize) {
        let process = self.owner(index).process.clone();
        if self.plan.faults && self.rng.one_in(2) {
            self.owner(index).heal();
            let call = self.rng.call(30);
            let errnos = [Errno::EIO, Errno::ENOMEM, Errno::EINTR, Errno::EBUSY, Errno::ENOSPC];
            if self.rng.one_in(2) {
                process.fail_at(call, errnos[self.rng.below(5)]);
            } else {
                // The others say that nothing was done.
                process.lose_answer_at(call, errnos[self.rng.below(3)]);
            }
            self.owner(index).faulty = true;
        }
        if self.plan.cuts && self.rng.one_in(6) {
            self.plan_a_cut(index);
        }
        if self.rng.one_in(4) {
            self.plan_an_interruption(index);
        }
    }

    /// Somebody else is faster, at a call of one of the next operations.
    fn plan_an_interruption(&mut self, index: usize) {
        let process = self.owner(index).process.clone();
        let call = self.rng.call(30);
        let other = self.owners.iter().enumerate().find(|(other, _)| *other != index);
        match (self.rng.below(4), other) {
            (0, _) => process.at_call(call, self.owner(index).second_manager()),
            (1 | 2, _) if self.plan.neighbour => {
                let neighbour = self.neighbour.clone();
                process.at_call(call, move || neighbour.lock().unwrap().act());
            }
            (_, Some((_, other))) => process.at_call(call, step(other)),
            _ => {}
        }
    }

    /// The process ends at a call of one of the next operations.
    fn plan_a_cut(&mut self, index: usize) {
        let process = self.owner(index).process.clone();
        process.unwind_at_cut(self.rng.one_in(2));
        let call = self.rng.call(40);
        if self.rng.one_in(2) { process.cut_at(call) } else { process.cut_after(call) }
    }

    fn power_cut(&mut self) {
        self.numbers.tell(|| "power cut".to_owned());
        self.numbers.count(Group::Faults, "power cut");
        self.machine = Arc::new(self.machine.power_cut());
        self.machine.set_full(self.owner(0).full);
        for owner in &self.owners {
            owner.lock().unwrap().reboot(&self.machine);
        }
        self.neighbour().reboot(&self.machine);
    }

    /// The power comes back, or only the process was killed; until the tree is open again.
    fn recover(&mut self, index: usize) {
        let mut again = if self.plan.cuts { self.rng.below(2) } else { 0 };
        let mut amended = false;
        loop {
            if self.plan.cuts && self.rng.one_in(2) {
                self.power_cut();
            } else {
                self.owner(index).die();
            }
            if again > 0 {
                again -= 1;
                self.plan_a_cut(index);
            }
            let opened = self.owner(index).open();
            self.count_faults();
            match opened {
                None => {}
                Some(Ok(())) if self.owner(index).process.is_cut() => {}
                Some(Ok(())) => break,
                Some(Err(_)) if self.owner(index).is_disturbed() && !amended => {
                    self.neighbour().make_amends();
                    amended = true;
                }
                Some(Err(error)) if self.owner(index).full && is_about_space(&error) => self.set_full(false),
                Some(Err(error)) => panic!("open: {error}"),
            }
        }
        let mut owner = self.owner(index);
        // What was planned for the opening did not come to pass.
        owner.heal();
        owner.faulty = false;
    }

    /// Which calls faults struck, and how: of the others, too, for they act between two calls of one.
    fn count_faults(&self) {
        for index in 0..self.owners.len() {
            let mut owner = self.owner(index);
            let (struck, is_cut) = (owner.process.all_struck(), owner.process.is_cut());
            let new: Vec<_> =
                struck.iter().skip(std::mem::replace(&mut owner.counted, struck.len())).collect();
            drop(owner);
            for (n, call) in new.iter().enumerate() {
                let is_end = is_cut && n + 1 == new.len();
                self.count_fault(index, call, if is_end { "end at" } else { "failure of" });
            }
        }
    }

    fn count_fault(&self, index: usize, call: &Call, what: &str) {
        self.numbers.tell(|| format!("tree {index}: {what} {} on {}", call.name, call.subject));
        self.numbers.count(Group::Faults, format!("{what} {}", call.name));
        if ["stat", "unlink"].contains(&call.name) {
            self.kept_nodes.lock().unwrap().insert(format!("node {}", call.subject));
        }
        if call.name == "fdatasync" {
            // On whatever device: the model drops what is not durable of all of them.
            self.owners.iter().for_each(|owner| owner.lock().unwrap().for_each_cell(Cell::lost));
        }
    }

    /// The neighbour makes amends, and the tree is as it was.
    fn settle(&mut self, index: usize) {
        if !self.owner(index).is_down() && self.rng.one_in(2) {
            self.owner(index).heal();
            self.neighbour().make_amends();
            // Not if the pool is gone.
            if self.owner(index).repair() {
                self.check(index);
                return;
            }
        }
        self.owner(index).die();
        self.neighbour().make_amends();
        self.recover(index);
        // In what was not active before.
        self.neighbour().make_amends();
        assert!(self.owner(index).repair());
        self.check(index);
    }

    /// Every promise. What the neighbour does to a tree is no promise broken.
    pub fn check(&self, index: usize) {
        if self.owner(index).is_disturbed() {
            return;
        }
        let foreign = self.foreign(index);
        let others = (0..self.owners.len()).filter(|other| *other != index).map(|other| self.owner(other));
        let held = others.into_iter().any(|other| other.faulty || other.is_down() || other.is_over);
        self.owner(index).is_held_elsewhere = held;
        self.owner(index).check(foreign.as_deref());
    }

    /// Who else has volumes in the pool; none if that cannot be told.
    fn foreign(&self, index: usize) -> Option<Vec<u32>> {
        if self.owner(index).source != Source::Adopted {
            return Some(Vec::new());
        }
        let mut ids: Vec<u32> = self.neighbour().ids().collect();
        for (_, other) in self.owners.iter().enumerate().filter(|(other, _)| *other != index) {
            let other = other.lock().unwrap();
            if other.source != Source::Adopted {
                continue;
            }
            if other.is_over {
                return None;
            }
            let tree = other.tree.as_ref().filter(|_| !other.is_down() && other.doubt.is_empty())?;
            ids.extend(tree.list().iter().map(|info| info.thin_id.get()));
            ids.extend(tree.base_id().map(|id| id.get()));
        }
        Some(ids)
    }

    fn finish(&mut self) {
        self.set_full(false);
        // Nobody interrupts any more.
        self.plan.cuts = false;
        for owner in &self.owners {
            let mut owner = owner.lock().unwrap();
            if owner.is_down() { owner.die() } else { owner.heal() }
        }
        self.neighbour().make_amends();
        for index in 0..self.owners.len() {
            if self.owner(index).is_over {
                self.owner(index).open_only().unwrap().unwrap();
            } else {
                self.settle(index);
                self.owner(index).read_as_a_user();
            }
        }
        for index in 0..self.owners.len() {
            let mut owner = self.owner(index);
            let tree = owner.tree.take().unwrap();
            match tree.close() {
                // A sync of the last operations failed. The devices are gone nevertheless.
                Err(Error::StateUnknown) if owner.faulty => {}
                closed => closed.unwrap(),
            }
        }
        self.neighbour().check();
        self.neighbour().leave();
        let mut left = self.machine.leftovers();
        left.retain(|thing| !self.kept_nodes.lock().unwrap().contains(thing));
        assert_eq!(left, Vec::<String>::new());
    }
}

/// Another tree's user, if he can.
fn step(owner: &Arc<Mutex<Owner>>) -> impl FnOnce() + Send + 'static {
    let owner = owner.clone();
    move || {
        if let Ok(mut owner) = owner.try_lock()
            && !owner.is_down()
        {
            owner.step();
        }
    }
}

/// A place for the files of the pools that costs nothing to sync.
pub fn memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}
