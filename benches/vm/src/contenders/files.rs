//! A directory for contenders that need nothing but files: on the machine's ext4, or on a disk with one of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::Result;
use crate::arena::{Arena, Mounted, Storage};

#[derive(Default)]
pub struct Files {
    directory: PathBuf,
    disk: Option<Mounted>,
}

impl Files {
    pub fn prepare(&mut self, arena: &Arena, name: &str) -> Result<()> {
        self.directory = match arena.storage {
            Storage::LoopFiles => arena.directory(name)?,
            Storage::Disks => {
                let mut make = Command::new("mkfs.ext4");
                let disk =
                    arena.filesystem(name, make.args(["-q", "-F", "-E", "lazy_itable_init=1,nodiscard"]))?;
                self.disk.insert(disk).path.clone()
            }
        };
        Ok(())
    }

    pub fn path(&self, name: &str) -> Result<PathBuf> {
        Ok(self.directory.join(name))
    }

    pub fn finish(&mut self) -> Result<()> {
        match self.disk.take() {
            Some(disk) => disk.release(),
            None => Ok(fs::remove_dir_all(&self.directory)?),
        }
    }
}
