//! The operations whose allocations (`tests/ratchet.rs`) and instructions (`benches/instructions.rs`) are counted, on
//! the model, and the file that says how many they may need.
//!
//! Whoever includes this defines `counted` and `uncounted`, which run a closure.

#![allow(unreachable_pub)] // in a program of its own, pub means no more than pub(crate)

#[path = "uncounted.rs"]
mod kernel;

use std::path::Path;
use std::sync::Arc;

use dm_thin::dm::UdevPolicy;
use dm_thin::tree::{Filesystem, Options, Parent, SnapshotTree};
use tempfile::TempDir;

use super::{counted, uncounted};
use kernel::Uncounted;

/// How often an operation is measured.
pub const TIMES: usize = 101;
/// Snapshots that are there meanwhile.
const OTHERS: usize = 200;

/// A tree with an active image and some snapshots.
pub struct Subject {
    tree: SnapshotTree,
    kernel: Uncounted,
    _directory: TempDir,
}

pub const OPERATIONS: &[&str] =
    &["add", "add-origin-active", "activate", "deactivate", "remove", "rename", "get"];

impl Subject {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let directory = TempDir::new_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).unwrap();
        let kernel = Uncounted::default();
        let options = Options::new().filesystem(Filesystem::None).udev(UdevPolicy::None).blkdiscard(false);
        let options = options.kernel(Arc::new(kernel.clone())).background_threads(false);
        let tree = SnapshotTree::open(directory.path().join("root"), options).unwrap();
        tree.add("image", Parent::Base).unwrap();
        tree.add("active", Parent::Base).unwrap();
        tree.activate("active").unwrap();
        (0..OTHERS).for_each(|index| tree.add(format!("other-{index}"), Parent::Base).unwrap());
        Self { tree, kernel, _directory: directory }
    }

    /// Runs one operation [`TIMES`] times, each of them within `counted`.
    pub fn run(&self, operation: &str) {
        for index in 0..TIMES {
            self.run_once(operation, &format!("{operation}-{index}"));
            self.kernel.0.clear_log();
        }
    }

    fn run_once(&self, operation: &str, id: &str) {
        let tree = &self.tree;
        let image = Parent::Snapshot("image");
        if !operation.starts_with("add") {
            tree.add(id, image).unwrap();
        }
        match operation {
            "add" => counted(|| tree.add(id, image).unwrap()),
            "add-origin-active" => counted(|| tree.add(id, Parent::Snapshot("active")).unwrap()),
            "activate" => counted(|| drop(tree.activate(id).unwrap())),
            "deactivate" => {
                tree.activate(id).unwrap();
                counted(|| tree.deactivate(id).unwrap());
            }
            "remove" => counted(|| tree.remove(id).unwrap()),
            "rename" => counted(|| tree.rename(id, "renamed").unwrap()),
            "get" => counted(|| drop(tree.get(id).unwrap())),
            _ => panic!("{operation}?"),
        }
        // Nothing is left for the next one.
        for left in [id, "renamed"] {
            if tree.contains(left) {
                tree.remove(left).unwrap();
            }
        }
    }
}

/// What `benches/ratchet.txt` allows an operation, in a column of it.
pub fn allowed(operation: &str, column: usize) -> u64 {
    let text = include_str!("../ratchet.txt");
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.first() == Some(&operation));
    let number = line.and_then(|words| words.get(column)?.parse().ok());
    number.unwrap_or_else(|| panic!("benches/ratchet.txt has no line for {operation}"))
}
