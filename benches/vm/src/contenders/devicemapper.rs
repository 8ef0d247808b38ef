//! The `devicemapper` crate. It keeps no record of what it made.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use devicemapper::{
    DM, DataBlocks, DevId, DmDevice, DmName, DmOptions, LinearDev, LinearDevTargetParams, LinearTargetParams,
    Sectors, TargetLine, ThinDev, ThinDevId, ThinPoolDev, devnode_to_devno,
};

use crate::Result;
use crate::arena::{Arena, Backing, METADATA, STORE};
use crate::base::Base;
use crate::contender::{Contender, Volume};
use crate::pool::BASE;

pub struct Devicemapper {
    dm: DM,
    pool: Option<(ThinPoolDev, Vec<Backing>)>,
    size: Sectors,
}

impl Devicemapper {
    pub fn new() -> Result<Self> {
        Ok(Self { dm: DM::new()?, pool: None, size: Sectors(0) })
    }

    fn pool(&self) -> Result<&ThinPoolDev> {
        Ok(&self.pool.as_ref().ok_or("not prepared")?.0)
    }

    fn linear(&self, name: &str, path: &Path) -> Result<LinearDev> {
        let number = devnode_to_devno(path)?.ok_or("no block device")?;
        let length = File::open(path)?.seek(SeekFrom::End(0))? / 512;
        let target = LinearTargetParams::new(number.into(), Sectors(0));
        let line = TargetLine::new(Sectors(0), Sectors(length), LinearDevTargetParams::Linear(target));
        Ok(LinearDev::setup(&self.dm, DmName::new(name)?, None, vec![line])?)
    }

    fn thin(&self, id: u32) -> Result<ThinDev> {
        let (name, id) = (format!("devicemapper-{id}"), ThinDevId::new_u64(id.into())?);
        Ok(ThinDev::setup(&self.dm, DmName::new(&name)?, None, self.size, self.pool()?, id)?)
    }

    fn message(&self, text: &str) -> Result<()> {
        self.dm.target_msg(&DevId::Name(self.pool()?.name()), None, text)?;
        Ok(())
    }
}

impl Contender for Devicemapper {
    fn name(&self) -> &'static str {
        "devicemapper crate"
    }

    fn prepare(&mut self, arena: &Arena, base: &Base) -> Result<()> {
        self.size = Sectors(base.size / 512);
        let backings = vec![arena.device("crate-data", STORE)?, arena.device("crate-metadata", METADATA)?];
        let data = self.linear("devicemapper-data", &backings[0].path)?;
        let metadata = self.linear("devicemapper-metadata", &backings[1].path)?;
        let name = DmName::new("devicemapper-pool")?;
        let (block, low_water) = (Sectors(128), DataBlocks(1024));
        let pool = ThinPoolDev::new(&self.dm, name, None, metadata, data, block, low_water, Vec::new())?;
        self.pool = Some((pool, backings));
        self.message(&format!("create_thin {BASE}"))?;
        let mut thin = self.thin(BASE)?;
        base.fill(&thin.devnode())?;
        Ok(thin.teardown(&self.dm)?)
    }

    fn snapshot(&self, id: u32) -> Result<()> {
        self.message(&format!("create_snap {id} {BASE}"))
    }

    fn activate(&self, id: u32) -> Result<Volume> {
        Volume::open(&self.thin(id)?.devnode())
    }

    fn deactivate(&self, id: u32) -> Result<()> {
        let name = format!("devicemapper-{id}");
        self.dm.device_remove(&DevId::Name(DmName::new(&name)?), DmOptions::default())?;
        Ok(())
    }

    fn delete(&self, id: u32) -> Result<()> {
        self.message(&format!("delete {id}"))
    }

    fn finish(&mut self) -> Result<()> {
        let Some((mut pool, backings)) = self.pool.take() else { return Ok(()) };
        pool.teardown(&self.dm)?;
        backings.into_iter().try_for_each(Backing::release)
    }
}
