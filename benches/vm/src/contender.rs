//! What is measured: something that makes a writable copy of a prepared disk image.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::arena::Arena;
use crate::base::Base;

/// One way to hand out copies of a base.
pub trait Contender: Sync {
    fn name(&self) -> &'static str;

    /// Makes the store and the base in it.
    fn prepare(&mut self, arena: &Arena, base: &Base) -> Result<()>;

    /// Makes a copy of the base. It is durable when this returns, unless the contender's name says otherwise.
    fn snapshot(&self, id: u32) -> Result<()>;

    /// Makes the copy usable.
    fn activate(&self, id: u32) -> Result<Volume>;

    /// Ends that; the copy stays.
    fn deactivate(&self, id: u32) -> Result<()>;

    /// Deletes a copy that is not active, durably.
    fn delete(&self, id: u32) -> Result<()>;

    /// Waits until nothing of what was asked for goes on in the background.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// Takes the store down.
    fn finish(&mut self) -> Result<()>;
}

/// One whose copies are thin volumes with ext4, so that each step of a tree has its counterpart.
pub trait Stepwise: Contender {
    /// Makes a snapshot of another one, which is active or mounted.
    fn snapshot_of(&self, id: u32, origin: u32) -> Result<()>;

    /// The same where what a power cut would leave of the origin is enough, for those who can do with less then.
    fn crash_snapshot_of(&self, id: u32, origin: u32) -> Result<()> {
        self.snapshot_of(id, origin)
    }

    /// Makes a copy of the base and activates it: one that was made before, for those who keep some ready.
    fn snapshot_ready(&self, id: u32) -> Result<Volume> {
        self.snapshot(id)?;
        self.activate(id)
    }

    /// Activates and mounts a snapshot.
    fn mount(&self, id: u32, target: &Path) -> Result<()>;

    /// Unmounts and deactivates it.
    fn unmount(&self, id: u32, target: &Path) -> Result<()>;

    /// Deactivates and deletes a snapshot.
    fn remove_active(&self, id: u32) -> Result<()>;

    /// Opens the store again after [`close`](Self::close).
    fn open(&mut self) -> Result<()>;

    /// Leaves nothing active.
    fn close(&mut self) -> Result<()>;
}

/// Where the bytes of an active copy are.
pub enum Volume {
    /// One block device.
    Device(File),
    /// A directory of files of [`PART`] bytes each, and those that were written to since the last sync.
    Directory(PathBuf, RefCell<BTreeMap<u64, File>>),
}

/// Size of a file where the base is a directory.
pub const PART: u64 = 1 << 20;

impl Volume {
    pub fn open(device: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(device);
        Ok(Self::Device(file.map_err(|error| format!("open {}: {error}", device.display()))?))
    }

    /// Writes within one page, through the page cache.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Device(file) => file.write_all_at(bytes, offset),
            Self::Directory(directory, written) => match written.borrow_mut().entry(offset / PART) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let path = directory.join(part_name(*entry.key()));
                    entry.insert(File::options().write(true).open(path)?)
                }
            }
            .write_all_at(bytes, offset % PART),
        }
    }

    /// Makes durable what was written.
    pub fn sync(&self) -> io::Result<()> {
        match self {
            Self::Device(file) => file.sync_data(),
            Self::Directory(_, written) => written.take().values().try_for_each(File::sync_data),
        }
    }
}

pub fn part_name(part: u64) -> String {
    format!("part-{part}")
}
