//! A thin pool under bare ioctls, shared by all contenders that drive one.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use dm_thin::dm::DmName;
use dm_thin::kernel::{Kernel, RealKernel};

use crate::Result;
use crate::arena::{Arena, Backing, METADATA, STORE};
use crate::base::Base;
use crate::mapper::Mapper;

/// Thin id of the base.
pub const BASE: u32 = 0;
/// As a tree's: 64 KiB.
const BLOCK_SECTORS: u64 = 128;

pub struct Pool {
    pub mapper: Mapper,
    pub name: DmName,
    /// The pool's device number as tables have it.
    pub number: String,
    pub base: Base,
    data: Backing,
    metadata: Backing,
}

impl Pool {
    pub fn make(arena: &Arena, base: &Base) -> Result<Arc<Self>> {
        let mapper = Mapper::open()?;
        let data = arena.device("pool-data", STORE)?;
        let metadata = arena.device("pool-metadata", METADATA)?;
        let name = DmName::new("bench-pool")?;
        let number = |path: &PathBuf| RealKernel.block_device(path).map(|number| number.to_string());
        let bytes = File::open(&data.path)?.seek(SeekFrom::End(0))?;
        let block = BLOCK_SECTORS * 512;
        let table = format!("{} {} {BLOCK_SECTORS} 1024", number(&metadata.path)?, number(&data.path)?);
        let device = mapper.activate(&name, bytes / block * block, "thin-pool", &table)?;
        let number = number(&device)?;
        let pool = Self { mapper, name, number, base: *base, data, metadata };
        pool.mapper.message(&pool.name, format_args!("create_thin {BASE}"))?;
        let name = DmName::new("bench-base")?;
        base.fill(&pool.activate(&name, BASE)?)?;
        pool.mapper.remove(&name)?;
        Ok(Arc::new(pool))
    }

    pub fn activate(&self, name: &DmName, id: u32) -> Result<PathBuf> {
        self.mapper.activate(name, self.base.size, "thin", &format!("{} {id}", self.number))
    }

    pub fn create_snap(&self, id: u32, origin: u32) -> Result<()> {
        self.mapper.message(&self.name, format_args!("create_snap {id} {origin}"))
    }

    pub fn delete(&self, id: u32) -> Result<()> {
        self.mapper.message(&self.name, format_args!("delete {id}"))
    }

    pub fn release(self) -> Result<()> {
        self.mapper.remove(&self.name)?;
        self.data.release()?;
        self.metadata.release()
    }
}
