//! Where stores are made: on files of the machine's file system, or on disks of their own.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use dm_thin::loopdev::{AttachOptions, LoopControl, LoopDevice};

use crate::{Result, run};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Storage {
    LoopFiles,
    Disks,
}

impl Storage {
    pub fn name(self) -> &'static str {
        match self {
            Self::LoopFiles => "loop files",
            Self::Disks => "disks",
        }
    }
}

/// What one scenario uses. Dropping it deletes the files.
pub struct Arena {
    pub storage: Storage,
    directory: PathBuf,
    free_disks: RefCell<Vec<PathBuf>>,
}

/// Size of a store's data: sparse, on loop files as on disks.
pub const STORE: u64 = 16 << 30;
pub const METADATA: u64 = 64 << 20;

impl Arena {
    pub fn new(storage: Storage, directory: &Path, disks: &[PathBuf]) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let free_disks = RefCell::new(disks.iter().rev().cloned().collect());
        Ok(Self { storage, directory: directory.to_owned(), free_disks })
    }

    /// A new directory on the machine's file system.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::create_dir(&path).map_err(|error| format!("make {}: {error}", path.display()))?;
        Ok(path)
    }

    /// A disk that nobody has yet, emptied.
    pub fn disk(&self) -> Result<PathBuf> {
        let path = self.free_disks.borrow_mut().pop().ok_or("not enough disks (DM_THIN_BENCH_DISKS)")?;
        run(Command::new("blkdiscard").arg("-f").arg(&path))?;
        File::options().write(true).open(&path)?.write_all_at(&vec![0; 8 << 20], 0)?;
        Ok(path)
    }

    /// An empty block device: a loop device on a new sparse file that bypasses the page cache, or a disk.
    pub fn device(&self, name: &str, size: u64) -> Result<Backing> {
        if self.storage == Storage::Disks {
            return Ok(Backing { path: self.disk()?, file: None });
        }
        let path = self.directory.join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        file.set_len(size)?;
        let options = AttachOptions::new().direct_io(true);
        let device = LoopControl::open()?.attach(&file, &path, &options)?;
        Ok(Backing { path: device.path(), file: Some((device, path)) })
    }

    /// A directory in a file system of its own.
    pub fn filesystem(&self, name: &str, make: &mut Command) -> Result<Mounted> {
        let backing = self.device(&format!("{name}.image"), STORE)?;
        run(make.arg(&backing.path))?;
        let path = self.directory(name)?;
        run(Command::new("mount").arg(&backing.path).arg(&path))?;
        Ok(Mounted { path, backing })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub struct Backing {
    pub path: PathBuf,
    file: Option<(LoopDevice, PathBuf)>,
}

impl Backing {
    pub fn release(self) -> Result<()> {
        if let Some((device, path)) = self.file {
            device.detach()?;
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

pub struct Mounted {
    pub path: PathBuf,
    backing: Backing,
}

impl Mounted {
    pub fn release(self) -> Result<()> {
        run(Command::new("umount").arg(&self.path))?;
        fs::remove_dir(&self.path)?;
        self.backing.release()
    }
}
