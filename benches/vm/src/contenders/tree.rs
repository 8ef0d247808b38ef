//! This crate's tree of snapshots.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dm_thin::tree::files::StateDir;
use dm_thin::tree::{AddOptions, Consistency, Filesystem, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::Bytes;

use crate::Result;
use crate::arena::{Arena, STORE, Storage};
use crate::base::{Base, Content};
use crate::contender::{Contender, Stepwise, Volume};

pub const NAME: &str = "dm-thin tree";
const IMAGE: &str = "image";
/// Of this one snapshots are kept ready.
const READY: &str = "ready";

pub struct Tree {
    options: Options,
    root: PathBuf,
    tree: Option<SnapshotTree>,
}

impl Tree {
    pub fn new(arena: &Arena, base: &Base, discard: bool) -> Result<Self> {
        let filesystem = if base.content == Content::Ext4 { Filesystem::Ext4 } else { Filesystem::None };
        let options = Options::new().filesystem(filesystem).base_size(Bytes(base.size)).blkdiscard(discard);
        let options = match arena.storage {
            Storage::LoopFiles => options.data_size(Bytes(STORE)),
            Storage::Disks => {
                let source = PoolSource::Devices { data: arena.disk()?, metadata: arena.disk()? };
                options.pool_source(source).force_device(true)
            }
        };
        Ok(Self { options, root: arena.directory("tree")?.join("root"), tree: None })
    }

    /// With its state in a directory that the caller watches.
    pub fn watched(mut self, make: impl FnOnce(&Path) -> Result<Arc<dyn StateDir>>) -> Result<Self> {
        std::fs::create_dir(&self.root)?;
        self.options = self.options.state_dir(make(&self.root)?);
        Ok(self)
    }

    /// With a volume of its own active all the time.
    pub fn keeping_one_active(mut self) -> Self {
        self.options = self.options.keep_one_active(true);
        self
    }

    /// Keeps one snapshot of the base ready.
    pub fn keep_ready(&self) -> Result<()> {
        let tree = self.tree()?;
        tree.add(READY, Parent::Base)?;
        tree.seal(READY)?;
        tree.keep_ready(Parent::Snapshot(READY), 1)?;
        self.settle()
    }

    pub fn tree(&self) -> Result<&SnapshotTree> {
        self.tree.as_ref().ok_or_else(|| "the tree is closed".into())
    }
}

fn name(id: u32) -> String {
    format!("vm-{id}")
}

impl Contender for Tree {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&mut self, _: &Arena, base: &Base) -> Result<()> {
        self.open()?;
        let tree = self.tree()?;
        tree.add(IMAGE, Parent::Base)?;
        if base.content != Content::Ext4 {
            base.fill(&tree.activate(IMAGE)?)?;
            tree.deactivate(IMAGE)?;
        }
        Ok(())
    }

    fn snapshot(&self, id: u32) -> Result<()> {
        Ok(self.tree()?.add(name(id), Parent::Snapshot(IMAGE))?)
    }

    fn activate(&self, id: u32) -> Result<Volume> {
        Volume::open(&self.tree()?.activate(name(id))?)
    }

    fn deactivate(&self, id: u32) -> Result<()> {
        Ok(self.tree()?.deactivate(name(id))?)
    }

    fn delete(&self, id: u32) -> Result<()> {
        Ok(self.tree()?.remove(name(id))?)
    }

    fn settle(&self) -> Result<()> {
        let tree = self.tree()?;
        tree.refill_ready()?;
        match tree.reap()? {
            0 => Ok(()),
            left => Err(format!("{left} removed snapshots are open").into()),
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.close()
    }
}

impl Stepwise for Tree {
    fn snapshot_of(&self, id: u32, origin: u32) -> Result<()> {
        Ok(self.tree()?.add(name(id), Parent::Snapshot(&name(origin)))?)
    }

    fn crash_snapshot_of(&self, id: u32, origin: u32) -> Result<()> {
        let options = AddOptions::new().consistency(Consistency::Crash);
        Ok(self.tree()?.add_with(name(id), Parent::Snapshot(&name(origin)), &options)?)
    }

    fn snapshot_ready(&self, id: u32) -> Result<Volume> {
        let device = self.tree()?.add_activated(name(id), Parent::Snapshot(READY), &AddOptions::new())?;
        Volume::open(&device)
    }

    fn mount(&self, id: u32, target: &Path) -> Result<()> {
        Ok(self.tree()?.mount(name(id), target)?)
    }

    fn unmount(&self, id: u32, _: &Path) -> Result<()> {
        Ok(self.tree()?.unmount(name(id))?)
    }

    fn remove_active(&self, id: u32) -> Result<()> {
        self.delete(id)
    }

    fn open(&mut self) -> Result<()> {
        self.tree = Some(SnapshotTree::open(&self.root, self.options.clone())?);
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some(tree) = self.tree.take() {
            tree.close()?;
        }
        Ok(())
    }
}
