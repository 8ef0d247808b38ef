//! One tree on a machine of its own.

use std::sync::Arc;

use dm_thin::model::ModelKernel;
use dm_thin::tree::SnapshotTree;
use tempfile::TempDir;

use crate::owner::{Owner, Shared, Source};
use crate::rng::Rng;
use crate::simulation::memory;

pub struct Fixture {
    pub owner: Owner,
    _directory: TempDir,
}

impl Fixture {
    pub fn new(seed: u64) -> Self {
        let directory = TempDir::new_in(memory()).unwrap();
        let shared = Shared { numbers: Arc::default(), streams: Arc::default(), values: Arc::default() };
        let (root, machine) = (directory.path().join("root"), Arc::new(ModelKernel::new()));
        let mut owner = Owner::new(0, (shared, Rng::new(seed)), root, Source::Files, &machine);
        owner.open().unwrap().unwrap();
        Self { owner, _directory: directory }
    }

    pub fn tree(&self) -> &SnapshotTree {
        self.owner.tree.as_ref().unwrap()
    }

    pub fn recover(&mut self, power: bool) {
        if power {
            let machine = Arc::new(self.owner.machine.power_cut());
            self.owner.reboot(&machine);
        } else {
            self.owner.die();
        }
        self.owner.open_only().unwrap().unwrap();
    }
}
