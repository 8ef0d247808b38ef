//! What microVM runners pick: an image file cloned by the file system (FICLONE), and a loop device on the clone.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use dm_thin::loopdev::{AttachOptions, LoopControl, LoopDevice};

use super::bare::{remove_file, sync_file};
use crate::Result;
use crate::arena::{Arena, Mounted};
use crate::base::Base;
use crate::contender::{Contender, Volume};

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Xfs,
    Btrfs,
}

pub struct Reflink {
    kind: Kind,
    /// Whether clones and deletions are made durable.
    synced: bool,
    store: Option<Mounted>,
    control: LoopControl,
    devices: Mutex<HashMap<u32, LoopDevice>>,
}

impl Reflink {
    pub fn new(kind: Kind, synced: bool) -> Result<Self> {
        let (control, devices) = (LoopControl::open()?, Mutex::default());
        Ok(Self { kind, synced, store: None, control, devices })
    }

    fn path(&self, what: &str) -> Result<PathBuf> {
        Ok(self.store.as_ref().ok_or("not prepared")?.path.join(what))
    }

    fn clone_path(&self, id: u32) -> Result<PathBuf> {
        self.path(&format!("clone-{id}"))
    }
}

impl Contender for Reflink {
    fn name(&self) -> &'static str {
        match (self.kind, self.synced) {
            (Kind::Xfs, true) => "XFS reflink + loop",
            (Kind::Xfs, false) => "XFS reflink + loop, not synced",
            (Kind::Btrfs, true) => "btrfs reflink + loop",
            (Kind::Btrfs, false) => "btrfs reflink + loop, not synced",
        }
    }

    fn prepare(&mut self, arena: &Arena, base: &Base) -> Result<()> {
        let name =
            format!("{}{}", if self.kind == Kind::Xfs { "xfs" } else { "btrfs" }, u8::from(self.synced));
        let mut make = match self.kind {
            Kind::Xfs => Command::new("mkfs.xfs"),
            Kind::Btrfs => Command::new("mkfs.btrfs"),
        };
        self.store = Some(arena.filesystem(&name, make.args(["-q", "-f"]))?);
        base.make_file(&self.path("base")?)
    }

    fn snapshot(&self, id: u32) -> Result<()> {
        let path = self.clone_path(id)?;
        rustix::fs::ioctl_ficlone(File::create_new(&path)?, File::open(self.path("base")?)?)?;
        if self.synced { sync_file(&path) } else { Ok(()) }
    }

    fn activate(&self, id: u32) -> Result<Volume> {
        let path = self.clone_path(id)?;
        let file = File::options().read(true).write(true).open(&path)?;
        let device = self.control.attach(&file, &path, &AttachOptions::new().direct_io(true))?;
        let volume = Volume::open(&device.path())?;
        self.devices.lock().map_err(|_| "a thread panicked")?.insert(id, device);
        Ok(volume)
    }

    fn deactivate(&self, id: u32) -> Result<()> {
        let device = self.devices.lock().map_err(|_| "a thread panicked")?.remove(&id);
        Ok(device.ok_or("not active")?.detach()?)
    }

    fn delete(&self, id: u32) -> Result<()> {
        let path = self.clone_path(id)?;
        if self.synced { remove_file(&path) } else { Ok(fs::remove_file(path)?) }
    }

    fn finish(&mut self) -> Result<()> {
        self.store.take().map_or(Ok(()), Mounted::release)
    }
}
