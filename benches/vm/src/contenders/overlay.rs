//! overlayfs: copies share files, and a file is copied as a whole when it is written to for the first time.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::kernel::{Kernel, RealKernel};

use super::bare::sync_directory_of;
use super::files::Files;
use crate::Result;
use crate::arena::Arena;
use crate::base::Base;
use crate::contender::{Contender, Volume};

#[derive(Default)]
pub struct Overlay {
    files: Files,
}

impl Overlay {
    fn directory(&self, id: u32) -> Result<PathBuf> {
        self.files.path(&format!("copy-{id}"))
    }
}

impl Contender for Overlay {
    fn name(&self) -> &'static str {
        "overlayfs, files of 1 MiB"
    }

    fn prepare(&mut self, arena: &Arena, base: &Base) -> Result<()> {
        self.files.prepare(arena, "overlay")?;
        base.make_directory(&self.files.path("base")?)
    }

    fn snapshot(&self, id: u32) -> Result<()> {
        let directory = self.directory(id)?;
        fs::create_dir(&directory)?;
        ["upper", "work", "merged"].iter().try_for_each(|name| fs::create_dir(directory.join(name)))?;
        sync_directory_of(&directory.join("upper"))?;
        sync_directory_of(&directory)
    }

    fn activate(&self, id: u32) -> Result<Volume> {
        let directory = self.directory(id)?;
        let text = |path: &Path| path.display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            text(&self.files.path("base")?),
            text(&directory.join("upper")),
            text(&directory.join("work")),
        );
        let merged = directory.join("merged");
        let source = Path::new("overlay");
        RealKernel.mount(Some(source), &merged, Some("overlay"), MountFlags::empty(), &options)?;
        Ok(Volume::Directory(merged, RefCell::default()))
    }

    fn deactivate(&self, id: u32) -> Result<()> {
        Ok(RealKernel.unmount(&self.directory(id)?.join("merged"), UnmountFlags::empty())?)
    }

    fn delete(&self, id: u32) -> Result<()> {
        let directory = self.directory(id)?;
        fs::remove_dir_all(&directory)?;
        sync_directory_of(&directory)
    }

    fn finish(&mut self) -> Result<()> {
        self.files.finish()
    }
}
