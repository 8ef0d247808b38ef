//! A thin pool on two loop files, without a tree: each file under a device that a test can make fail.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dm_thin::dm::targets::{ErrorTarget, Linear, Target};
use dm_thin::dm::{DeviceMapper, DmFlags, DmName, DmUuid, TargetSpec, TargetType};
use dm_thin::kernel::DeviceNumber;
use dm_thin::loopdev::{AttachOptions, LoopControl, LoopDevice};
use dm_thin::thin::{PoolFeatures, PoolMode, PoolStatus, PoolTable, PoolUsage, ThinId, ThinPool, ThinVolume};
use dm_thin::units::{Blocks, Bytes, Sectors};

use crate::bench::Bench;

pub const BLOCK: Sectors = Sectors(128);

pub fn name(name: &str) -> DmName {
    DmName::new(&format!("dm-thin-{name}")).unwrap()
}

pub fn uuid(name: &str) -> DmUuid {
    DmUuid::new(&format!("EXAMPLE-{name}")).unwrap()
}

pub fn id(id: u32) -> ThinId {
    ThinId::new(id).unwrap()
}

/// A loop file, and a linear device over it.
pub struct Disk {
    pub dm: Arc<DeviceMapper>,
    pub path: PathBuf,
    pub name: DmName,
    pub number: DeviceNumber,
    pub loop_device: LoopDevice,
}

impl Disk {
    pub fn new(bench: &Bench, dm: &Arc<DeviceMapper>, what: &str, size: Bytes) -> Self {
        let path = bench.path().join(what);
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(size.0).unwrap();
        let options = AttachOptions::new().autoclear(true);
        let loop_device = LoopControl::open().unwrap().attach(&file, &path, &options).unwrap();
        let (dm, name) = (dm.clone(), name(what));
        let linear = Linear { device: loop_device.number(), start: Sectors(0) };
        let line = linear.over(Sectors(0), size.sectors());
        let status = dm.create_active(&name, &uuid(what), &[line], DmFlags::empty()).unwrap();
        Self { dm, path, name, number: status.number, loop_device }
    }

    fn becomes(&self, table: TargetSpec<'_>) {
        self.dm.suspend(&self.name, DmFlags::NOFLUSH | DmFlags::SKIP_LOCKFS).unwrap();
        self.dm.load_table(&self.name, &[table], DmFlags::empty()).unwrap();
        self.dm.resume(&self.name).unwrap();
    }

    fn size(&self) -> Sectors {
        self.loop_device.size().unwrap().sectors()
    }

    /// Reads go on, writes fail from now on.
    pub fn fail_writes(&self) {
        // Up for no second, down for an hour.
        let parameters = format!("{} 0 0 3600 1 error_writes", self.loop_device.number());
        let (length, target_type) = (self.size(), TargetType::FLAKEY);
        self.becomes(TargetSpec { start: Sectors(0), length, target_type, parameters: &parameters });
    }

    /// Everything fails from now on.
    pub fn fail(&self) {
        self.becomes(ErrorTarget.over(Sectors(0), self.size()));
    }

    /// It works again, with the size that the file has now.
    pub fn heal(&self) {
        let linear = Linear { device: self.loop_device.number(), start: Sectors(0) };
        self.becomes(linear.over(Sectors(0), self.size()));
    }

    /// Make the file larger, and the devices over it.
    pub fn grow(&self, size: Bytes) {
        File::options().write(true).open(&self.path).unwrap().set_len(size.0).unwrap();
        self.loop_device.set_capacity().unwrap();
        self.heal();
    }

    /// What the file takes of the file system below.
    pub fn allocated(&self) -> Bytes {
        let file = File::open(&self.path).unwrap();
        file.sync_all().unwrap();
        Bytes(file.metadata().unwrap().blocks() * 512)
    }

    pub fn node(&self) -> PathBuf {
        self.dm.node_path(&self.name)
    }
}

/// A pool that is taken down when dropped, volumes first.
pub struct Rig {
    pub pool: Option<ThinPool>,
    pub data: Disk,
    pub metadata: Disk,
    pub dm: Arc<DeviceMapper>,
}

impl Rig {
    /// New blocks are not zeroed, errors come at once, so that tests are quick; 4 MiB of metadata.
    pub fn new(bench: &Bench, data: Bytes, features: PoolFeatures) -> Self {
        Self::with(bench, crate::bench::dm(), data, Bytes::mib(4), features)
    }

    pub fn with(
        bench: &Bench,
        dm: Arc<DeviceMapper>,
        data: Bytes,
        metadata: Bytes,
        features: PoolFeatures,
    ) -> Self {
        let plain = crate::bench::dm();
        let data = Disk::new(bench, &plain, "data", data);
        let metadata = Disk::new(bench, &plain, "metadata", metadata);
        let mut rig = Self { pool: None, data, metadata, dm };
        rig.activate(features);
        rig
    }

    pub fn table(&self, features: PoolFeatures) -> PoolTable {
        let (metadata, data) = (self.metadata.number, self.data.number);
        PoolTable { metadata, data, block_size: BLOCK, low_water_mark: Blocks(16), features }
    }

    pub fn activate(&mut self, features: PoolFeatures) {
        let table = self.table(features);
        let size = self.data.size();
        self.pool =
            Some(ThinPool::create(self.dm.clone(), &name("pool"), &uuid("pool"), &table, size).unwrap());
    }

    pub fn deactivate(&mut self) {
        self.pool.take().unwrap().deactivate().unwrap();
    }

    pub fn pool(&self) -> &ThinPool {
        self.pool.as_ref().unwrap()
    }

    pub fn usage(&self) -> PoolUsage {
        match self.pool().status().unwrap() {
            PoolStatus::Usage(usage) => usage,
            status => panic!("{status}"),
        }
    }

    pub fn mode(&self) -> PoolMode {
        self.pool().status().unwrap().mode()
    }

    /// Create a thin device and activate it.
    pub fn volume(&self, number: u32, size: Bytes) -> ThinVolume {
        self.pool().create_thin(id(number)).unwrap();
        self.activated(number, size)
    }

    pub fn activated(&self, number: u32, size: Bytes) -> ThinVolume {
        let what = format!("v{number}");
        self.pool().activate(&name(&what), &uuid(&what), id(number), size.sectors()).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for disk in [&self.data, &self.metadata] {
            if std::thread::panicking() {
                disk.heal();
            }
        }
        TakeDown.now();
    }
}

/// Removes what a test of this crate's thin layer made, when dropped.
pub struct TakeDown;

impl TakeDown {
    fn now(&self) {
        let dm = crate::bench::dm();
        // Volumes before the pool, the pool before its devices.
        for prefix in ["dm-thin-v", "dm-thin-pool", "dm-thin-data", "dm-thin-metadata"] {
            let devices = dm.list().unwrap();
            for device in
                devices.iter().filter(|device| device.name.as_bytes().starts_with(prefix.as_bytes()))
            {
                let removed = dm.remove(&device.name);
                if !std::thread::panicking() {
                    removed.unwrap();
                }
            }
        }
    }
}

impl Drop for TakeDown {
    fn drop(&mut self) {
        self.now();
    }
}

/// Write `blocks` blocks of 64 KiB from block `start`, each filled with `byte`, and sync.
pub fn write(path: &Path, start: u64, blocks: u64, byte: u8) -> std::io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let block = vec![byte; 64 << 10];
    for n in start..start + blocks {
        file.write_all_at(&block, n << 16)?;
    }
    file.sync_all()
}

/// Whether these blocks are all `byte`. The page cache is left out.
pub fn holds(path: &Path, start: u64, blocks: u64, byte: u8) -> bool {
    let file = File::open(path).unwrap();
    let mut block = vec![0; 64 << 10];
    (start..start + blocks).all(|n| {
        file.read_exact_at(&mut block, n << 16).unwrap();
        block.iter().all(|&found| found == byte)
    })
}

pub fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}
