//! The `snapshot` target: a read-only base, and a sparse file of exceptions for each copy, both on loop devices.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;

use dm_thin::dm::DmName;
use dm_thin::loopdev::{AttachOptions, LoopControl, LoopDevice};

use super::bare::{remove_file, sync_file};
use super::files::Files;
use crate::Result;
use crate::arena::Arena;
use crate::base::Base;
use crate::contender::{Contender, Volume};
use crate::mapper::Mapper;

pub struct DmSnapshot {
    mapper: Mapper,
    control: LoopControl,
    files: Files,
    size: u64,
    origin: Option<LoopDevice>,
    stores: Mutex<HashMap<u32, LoopDevice>>,
}

/// 4 KiB.
const CHUNK_SECTORS: u64 = 8;

fn name(id: u32) -> Result<DmName> {
    Ok(DmName::format(format_args!("cow-{id}"))?)
}

impl DmSnapshot {
    pub fn new() -> Result<Self> {
        let (mapper, control) = (Mapper::open()?, LoopControl::open()?);
        Ok(Self { mapper, control, files: Files::default(), size: 0, origin: None, stores: Mutex::default() })
    }

    fn path(&self, id: u32) -> Result<PathBuf> {
        self.files.path(&format!("exceptions-{id}"))
    }
}

impl Contender for DmSnapshot {
    fn name(&self) -> &'static str {
        "dm-snapshot on loop files"
    }

    fn prepare(&mut self, arena: &Arena, base: &Base) -> Result<()> {
        self.files.prepare(arena, "dm-snapshot")?;
        self.size = base.size;
        let path = self.files.path("base")?;
        base.make_file(&path)?;
        let options = AttachOptions::new().direct_io(true).read_only(true);
        self.origin = Some(self.control.attach(&File::open(&path)?, &path, &options)?);
        Ok(())
    }

    fn snapshot(&self, id: u32) -> Result<()> {
        let path = self.path(id)?;
        // Room for every chunk, and for the table of them.
        File::create_new(&path)?.set_len(self.size + self.size / 64 + (1 << 20))?;
        sync_file(&path)
    }

    fn activate(&self, id: u32) -> Result<Volume> {
        let path = self.path(id)?;
        let file = File::options().read(true).write(true).open(&path)?;
        let store = self.control.attach(&file, &path, &AttachOptions::new().direct_io(true))?;
        let origin = self.origin.as_ref().ok_or("not prepared")?.number();
        let table = format!("{origin} {} P {CHUNK_SECTORS}", store.number());
        let volume = Volume::open(&self.mapper.activate(&name(id)?, self.size, "snapshot", &table)?)?;
        self.stores.lock().map_err(|_| "a thread panicked")?.insert(id, store);
        Ok(volume)
    }

    fn deactivate(&self, id: u32) -> Result<()> {
        self.mapper.remove(&name(id)?)?;
        let store = self.stores.lock().map_err(|_| "a thread panicked")?.remove(&id);
        Ok(store.ok_or("not active")?.detach()?)
    }

    fn delete(&self, id: u32) -> Result<()> {
        remove_file(&self.path(id)?)
    }

    fn finish(&mut self) -> Result<()> {
        self.origin.take().map_or(Ok(()), LoopDevice::detach)?;
        self.files.finish()
    }
}
