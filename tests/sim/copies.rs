//! cp and mv: roots that are moved, copied, and restored from older copies.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dm_thin::tree::Error;
use dm_thin::tree::{Parent, SnapshotTree};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::disk::Disk;
use crate::numbers::Group;
use crate::owner::{Owner, Source, check_content};
use crate::simulation::Simulation;
use crate::snapshots::{Snapshots, list, matches};

/// What was copied of a root, to be put back later.
pub struct Backup {
    disk: Disk,
    /// The files of the pool, if it was closed.
    pool: Option<PathBuf>,
    known: Snapshots,
    /// How often the tree was opened before.
    opened: u64,
}

/// `cp --sparse=always`.
fn copy(from: &Path, to: &Path) {
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    let length = from.metadata().unwrap().len();
    to.set_len(length).unwrap();
    let mut at = 0;
    loop {
        let data = match lseek(&from, at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => break,
            Err(errno) => panic!("{errno}"),
        };
        at = lseek(&from, data, Whence::SeekHole).unwrap();
        let mut bytes = vec![0; usize::try_from(at - data).unwrap()];
        from.read_exact_at(&mut bytes, data.unsigned_abs()).unwrap();
        to.write_all_at(&bytes, data.unsigned_abs()).unwrap();
    }
}

/// The pool's files, with metadata of their own.
fn copy_pool(owner: &Owner, to: &Path) {
    let from = owner.root.join("pool");
    if !from.is_dir() {
        return;
    }
    DirBuilder::new().mode(0o700).create(to).unwrap();
    for name in ["data", "metadata"] {
        copy(&from.join(name), &to.join(name));
    }
    let metadata = File::options().read(true).write(true).open(to.join("metadata")).unwrap();
    owner.machine.copy_metadata(&metadata).unwrap();
}

/// `cp -a`.
fn copy_root(owner: &Owner, to: &Path) -> Disk {
    DirBuilder::new().mode(0o700).create(to).unwrap();
    copy_pool(owner, &to.join("pool"));
    owner.disk.copy()
}

impl Simulation {
    /// Something that an administrator does to a root. The tree is up and everything is well.
    pub fn administer(&mut self, index: usize) {
        self.owner(index).be_at_rest();
        let what = match self.rng.below(6) {
            0 => self.move_root(index),
            1 => self.open_copy_of_open(index),
            2 => self.open_copy_of_closed(index),
            3 => self.back_up(index),
            4 => self.restore_state(index),
            _ => self.restore_pool(index),
        };
        self.numbers.tell(|| format!("tree {index}: {what}"));
        self.numbers.count(Group::Neighbour, what);
    }

    fn new_path(&mut self, what: &str) -> PathBuf {
        self.paths += 1;
        self.directory.path().join(format!("{what}{}", self.paths))
    }

    fn move_root(&mut self, index: usize) -> &'static str {
        let to = self.new_path("moved");
        let mut owner = self.owner(index);
        fs::rename(&owner.root, &to).unwrap();
        owner.root.clone_from(&to);
        drop(owner);
        self.neighbour().moved(index, to);
        "mv of an open root"
    }

    fn open_copy_of_open(&mut self, index: usize) -> &'static str {
        let to = self.new_path("copy");
        let owner = self.owner(index);
        let disk = copy_root(&owner, &to);
        let process = Arc::new(owner.machine.process());
        match SnapshotTree::open(&to, owner.options_for(&process, &disk)) {
            Err(Error::OtherRoot { .. }) => {}
            other => panic!("the copy of an open root: {other:?}"),
        }
        drop(owner);
        fs::remove_dir_all(to).unwrap();
        self.check(index);
        "cp of an open root, opened beside it"
    }

    /// Closes the tree for good.
    fn close_well(&self, index: usize) {
        let mut owner = self.owner(index);
        owner.tree.as_ref().unwrap().close().unwrap();
        owner.die();
    }

    fn open_well(&mut self, index: usize) {
        self.owner(index).open().unwrap().unwrap();
        self.check(index);
    }

    fn open_copy_of_closed(&mut self, index: usize) -> &'static str {
        self.close_well(index);
        let to = self.new_path("copy");
        let (disk, tree) = {
            let owner = self.owner(index);
            let disk = copy_root(&owner, &to);
            let process = Arc::new(owner.machine.process());
            let tree = SnapshotTree::open(&to, owner.options_for(&process, &disk)).unwrap();
            (disk, tree)
        };
        let mut owner = self.owner(index);
        assert!(matches(&list(&tree), &owner.known), "the copy of a closed root has something else");
        check_listed(&mut owner, &tree);
        tree.add("copied", Parent::Base).unwrap();
        tree.remove("copied").unwrap();
        tree.close().unwrap();
        drop(tree);
        match owner.source {
            Source::Files | Source::Adopted => fs::remove_dir_all(to).unwrap(),
            Source::Devices | Source::Device => {
                // The pool follows the copy now.
                match owner.open().unwrap() {
                    Err(Error::StateOlderThanPool { .. }) => {}
                    other => panic!("a root whose pool another one had: {other:?}"),
                }
                fs::remove_dir_all(&owner.root).unwrap();
                (owner.root, owner.disk) = (to.clone(), disk);
                owner.die();
                drop(owner);
                self.backups[index] = None;
                self.neighbour().moved(index, to);
                self.open_well(index);
                return "cp of a closed root, opened after it";
            }
        }
        drop(owner);
        self.open_well(index);
        "cp of a closed root, opened after it"
    }

    /// Copies the state of an open tree, or state and pool of a closed one.
    fn back_up(&mut self, index: usize) -> &'static str {
        let closed = self.owner(index).source == Source::Files && self.rng.one_in(2);
        let pool = closed.then(|| self.new_path("backup"));
        if let Some(pool) = &pool {
            self.close_well(index);
            copy_pool(&self.owner(index), pool);
        }
        let owner = self.owner(index);
        let (disk, known, opened) = (owner.disk.copy(), owner.known.clone(), owner.opened);
        drop(owner);
        self.backups[index] = Some(Backup { disk, pool, known, opened });
        if closed {
            self.open_well(index);
        }
        "backup"
    }

    /// The state is put back, and the pool is as it is.
    fn restore_state(&mut self, index: usize) -> &'static str {
        let Some(backup) = &self.backups[index] else { return "no backup to restore" };
        let older = backup.disk.copy();
        let (closes, accepts) = (self.rng.one_in(2), self.rng.one_in(2));
        if closes {
            // Which deletes ready snapshots.
            self.close_well(index);
            self.open_well(index);
        }
        let before = self.owner(index).volumes();
        if closes {
            self.close_well(index);
        }
        let mut owner = self.owner(index);
        owner.die();
        let newest = std::mem::replace(&mut owner.disk, older);
        match owner.open_only().unwrap() {
            Err(Error::StateOlderThanPool { .. }) => {}
            Err(error) => panic!("an older state: {error}"),
            Ok(()) => {
                assert_nothing_lost(&before, &owner.volumes());
                owner.is_over = true;
                owner.die();
                return "older state, opened without a loss";
            }
        }
        if !accepts {
            owner.disk = newest;
            owner.die();
            drop(owner);
            self.open_well(index);
            return "older state, refused";
        }
        for disk in [None, Some(newest)] {
            owner.disk = disk.unwrap_or_else(|| owner.disk.clone());
            owner.die();
            let options = owner.options().accept_older_state(true);
            owner.tree = Some(SnapshotTree::open(&owner.root, options).unwrap());
            assert_eq!(owner.volumes(), before, "an older state was accepted, and something deleted");
        }
        // Ready snapshots, which the newest state knows, are orphans now.
        owner.tree.as_ref().unwrap().repair().unwrap();
        owner.die();
        drop(owner);
        self.backups[index] = None;
        self.open_well(index);
        "older state, refused, then accepted"
    }

    /// The pool is put back, with its state or without.
    fn restore_pool(&mut self, index: usize) -> &'static str {
        let Some(Backup { disk, pool: Some(pool), known, opened }) = &self.backups[index] else {
            return "no pool to restore";
        };
        let (disk, pool, known, opened) = (disk.copy(), pool.clone(), known.clone(), *opened);
        self.close_well(index);
        let whole = self.rng.one_in(2);
        let aside = self.new_path("aside");
        let mut owner = self.owner(index);
        if !whole && owner.opened < opened + 2 {
            // Told from a power cut by nothing.
            drop(owner);
            self.open_well(index);
            return "pool as old as its state";
        }
        fs::rename(owner.root.join("pool"), &aside).unwrap();
        fs::rename(&pool, owner.root.join("pool")).unwrap();
        if whole {
            let newest =
                (std::mem::replace(&mut owner.disk, disk), std::mem::replace(&mut owner.known, known));
            drop(owner);
            self.open_well(index);
            self.close_well(index);
            owner = self.owner(index);
            (owner.disk, owner.known) = newest;
        } else {
            match owner.open().unwrap() {
                Err(Error::PoolOlderThanState { .. }) => {}
                // From before it was grown.
                Err(Error::BackingFile { reason, .. }) if reason.contains("shorter") => {}
                other => panic!("an older pool: {other:?}"),
            }
            owner.die();
        }
        fs::remove_dir_all(owner.root.join("pool")).unwrap();
        fs::rename(&aside, owner.root.join("pool")).unwrap();
        drop(owner);
        self.backups[index] = None;
        self.open_well(index);
        if whole { "older root, opened" } else { "older pool, refused" }
    }
}

/// Each volume that is gone was empty, or the same as one that is there.
fn assert_nothing_lost(before: &BTreeMap<u32, Vec<u64>>, after: &BTreeMap<u32, Vec<u64>>) {
    for (id, data) in before.iter().filter(|(id, _)| !after.contains_key(id)) {
        let is_there = data.iter().all(|value| *value == 0) || after.values().any(|other| other == data);
        assert!(is_there, "the only copy of {data:?} is lost: volume {id}, {after:?} are left");
    }
}

/// The data of everything that a tree lists is as known.
fn check_listed(owner: &mut Owner, tree: &SnapshotTree) {
    let pool = tree.pool().name().to_string();
    for info in tree.list() {
        let content = &mut owner.known.get_mut(info.id.as_str()).unwrap().content;
        check_content(&owner.machine, &pool, info.thin_id.get(), content, &info.id);
    }
    let findings = tree.check().unwrap();
    assert!(owner.source == Source::Adopted || findings.is_empty(), "{findings:?}");
}
