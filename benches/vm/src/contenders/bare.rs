//! The same ioctls sent bare, and one durable line for what has to survive: the floor.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use dm_thin::abi::block::BLKDISCARD;
use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::dm::DmName;
use dm_thin::kernel::{Access, Arg, Kernel, RealKernel};

use crate::Result;
use crate::arena::Arena;
use crate::base::Base;
use crate::contender::{Contender, Stepwise, Volume};
use crate::journal::Journal;
use crate::pool::{BASE, Pool};

pub const NAME: &str = "bare ioctls";

pub struct Bare {
    pub pool: Arc<Pool>,
    pub journal: Journal,
    /// Whether a removed snapshot's blocks are discarded.
    discard: bool,
}

fn name(id: u32) -> Result<DmName> {
    Ok(DmName::format(format_args!("bare-{id}"))?)
}

impl Bare {
    pub fn new(arena: &Arena, pool: &Arc<Pool>, discard: bool) -> Result<Self> {
        let directory = arena.directory("bare")?;
        Ok(Self { pool: pool.clone(), journal: Journal::create(&directory.join("journal"))?, discard })
    }

    fn discard_all(&self, id: u32) -> Result<()> {
        let path = self.pool.activate(&name(id)?, id)?;
        let device = RealKernel.open(&path, Access::READ_WRITE)?;
        let mut range = [0; 16];
        range[8..].copy_from_slice(&self.pool.base.size.to_ne_bytes());
        RealKernel.ioctl(&device, BLKDISCARD, Arg::Bytes(&mut range))?;
        drop(device);
        self.deactivate(id)
    }
}

impl Contender for Bare {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&mut self, _: &Arena, _: &Base) -> Result<()> {
        Ok(())
    }

    fn snapshot(&self, id: u32) -> Result<()> {
        self.pool.create_snap(id, BASE)?;
        self.journal.append("add", id)
    }

    fn activate(&self, id: u32) -> Result<Volume> {
        Volume::open(&self.pool.activate(&name(id)?, id)?)
    }

    fn deactivate(&self, id: u32) -> Result<()> {
        self.pool.mapper.remove(&name(id)?)
    }

    fn delete(&self, id: u32) -> Result<()> {
        self.journal.append("remove", id)?;
        if self.discard {
            self.discard_all(id)?;
        }
        self.pool.delete(id)
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Stepwise for Bare {
    fn snapshot_of(&self, id: u32, origin: u32) -> Result<()> {
        let name = name(origin)?;
        self.pool.mapper.suspend(&name)?;
        let created = self.pool.create_snap(id, origin);
        self.pool.mapper.resume(&name)?;
        created?;
        self.journal.append("add", id)
    }

    fn mount(&self, id: u32, target: &Path) -> Result<()> {
        let device = self.pool.activate(&name(id)?, id)?;
        Ok(RealKernel.mount(Some(&device), target, Some("ext4"), MountFlags::empty(), "")?)
    }

    fn unmount(&self, id: u32, target: &Path) -> Result<()> {
        RealKernel.unmount(target, UnmountFlags::empty())?;
        self.deactivate(id)
    }

    fn remove_active(&self, id: u32) -> Result<()> {
        self.deactivate(id)?;
        self.delete(id)
    }

    fn open(&mut self) -> Result<()> {
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Keeps one thin volume active, so that no other one is the last of the machine.
pub struct Keeper {
    pool: Arc<Pool>,
    name: DmName,
}

/// Above all ids of contenders.
const KEEPER: u32 = 16_000_000;

impl Keeper {
    pub fn new(pool: &Arc<Pool>) -> Result<Self> {
        let name = DmName::new("bench-keeper")?;
        pool.create_snap(KEEPER, BASE)?;
        pool.activate(&name, KEEPER)?;
        Ok(Self { pool: pool.clone(), name })
    }

    pub fn release(self) -> Result<()> {
        self.pool.mapper.remove(&self.name)?;
        self.pool.delete(KEEPER)
    }
}

/// Makes a file durable together with its name.
pub fn sync_file(path: &Path) -> Result<()> {
    File::open(path)?.sync_all()?;
    sync_directory_of(path)
}

pub fn sync_directory_of(path: &Path) -> Result<()> {
    Ok(File::open(path.parent().ok_or("no directory")?)?.sync_all()?)
}

/// Deletes a file durably.
pub fn remove_file(path: &Path) -> Result<()> {
    fs::remove_file(path)?;
    sync_directory_of(path)
}
