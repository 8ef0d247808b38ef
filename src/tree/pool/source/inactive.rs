//! A pool that is not active: its devices, claimed and recognised.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::sub_devices::SubDevices;
use crate::dm::{DeviceMapper, DmName, DmUuid};
use crate::kernel::{Access, DeviceFile, DeviceNumber, FileLock, Kernel};
use crate::loopdev::LoopDevice;
use crate::thin::metadata::{DeviceBlocks, Metadata, MetadataError, Superblock};
use crate::thin::{PoolMode, PoolTable, ThinPool, blank};
use crate::tree::state::journal::PoolRecord;
use crate::tree::{Error, Result};
use crate::units::{Blocks, Bytes, Sectors};
use crate::{dm, thin};

/// The two devices of a pool that is not active. They are opened O_EXCL, so no other program uses them, and nothing
/// was written to them.
#[derive(Debug)]
pub(in crate::tree) struct InactivePool {
    pub(super) dm: Arc<DeviceMapper>,
    pub(super) table: PoolTable,
    pub(super) size: Sectors,
    pub(super) metadata: ClaimedDevice,
    pub(super) data: ClaimedDevice,
    /// Autoclear: they end when the last one closes them, this or the pool.
    pub(super) loops: Vec<LoopDevice>,
    pub(super) sub_devices: Option<SubDevices>,
}

/// A device that is open with O_EXCL.
#[derive(Debug)]
pub(super) struct ClaimedDevice {
    pub(super) node: PathBuf,
    pub(super) file: DeviceFile,
    /// What errors name: the file below it, or the device.
    pub(super) origin: PathBuf,
}

impl ClaimedDevice {
    pub(super) fn claim(kernel: &dyn Kernel, node: PathBuf, origin: PathBuf) -> Result<Self> {
        match kernel.open(&node, Access::READ.exclusive()) {
            Ok(file) => Ok(Self { node, file, origin }),
            Err(Errno::ENOTBLK) => Err(Error::BackingFile { path: node, reason: "is not a block device" }),
            Err(errno) => Err(Error::Open { path: node, errno }),
        }
    }

    pub(super) fn number(&self) -> DeviceNumber {
        self.file.number()
    }

    pub(super) fn size(&self, kernel: &dyn Kernel) -> Result<Bytes> {
        Ok(blank::size_of(kernel, &self.file, &self.origin)?)
    }
}

impl InactivePool {
    /// The superblock; none if the metadata was never formatted.
    pub(in crate::tree) fn superblock(&self) -> Result<Option<Superblock>> {
        Superblock::read(&self.blocks()?).map_err(self.damaged())
    }

    /// The size of the metadata device.
    pub(in crate::tree) fn metadata_size(&self) -> Result<Bytes> {
        self.metadata.size(&**self.dm.kernel())
    }

    /// How many blocks the data device has.
    pub(in crate::tree) fn data_blocks(&self) -> Blocks {
        Blocks(self.size.0 / self.table.block_size.0)
    }

    /// Reads the pool's metadata.
    pub(in crate::tree) fn read<T>(&self, read: impl FnOnce(&Metadata) -> thin::Result<T>) -> Result<T> {
        let metadata = Metadata::open(Arc::new(self.blocks()?)).map_err(self.damaged())?;
        read(&metadata).map_err(|error| match error {
            thin::Error::Metadata(error) => self.damaged()(error),
            error => error.into(),
        })
    }

    /// What errors call the pool's metadata.
    pub(in crate::tree) fn origin(&self) -> String {
        self.metadata.origin.display().to_string()
    }

    /// Runs a program on the metadata device. Such programs claim it in turn, so the claim is given up meanwhile.
    pub(in crate::tree) fn run_on_metadata<T, E: Into<Error>>(
        mut self,
        run: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<(Self, T)> {
        let ClaimedDevice { node, file, origin } = self.metadata;
        let number = file.number();
        drop(file);
        let done = run(&node).map_err(Into::into)?;
        self.metadata = ClaimedDevice::claim(&**self.dm.kernel(), node, origin)?;
        if self.metadata.number() == number {
            return Ok((self, done));
        }
        let (device, found) = (self.metadata.node.display().to_string(), self.metadata.number());
        Err(dm::Error::Replaced { device, expected: number, found }.into())
    }

    fn blocks(&self) -> Result<DeviceBlocks> {
        let blocks = DeviceBlocks::open(self.dm.kernel().clone(), &self.metadata.node, false);
        blocks.map_err(Error::io("open", &self.metadata.origin))
    }

    fn damaged(&self) -> impl Fn(MetadataError) -> Error {
        |error| Error::DamagedMetadata { path: self.metadata.origin.clone(), source: error }
    }

    /// The pool has a superblock. Without one the kernel would format the metadata anew.
    pub(in crate::tree) fn superblock_gone(&self) -> Error {
        let reason =
            "begins with zeroes where the pool's superblock was; thin_repair can save what is behind them";
        Error::BackingFile { path: self.metadata.origin.clone(), reason }
    }

    /// Activates the pool, which claims the devices in turn. Nothing stays behind if that fails.
    pub(in crate::tree) fn activate(self, name: &DmName, uuid: &DmUuid) -> Result<ThinPool> {
        let locked = self.lock()?;
        let Self { dm, table, size, metadata, data, loops, sub_devices } = self;
        let ClaimedDevice { file, origin, .. } = metadata;
        // A table cannot take a device that is claimed, not even from the same process.
        drop((file, data));
        let pool = ThinPool::create(dm, name, uuid, &table, size).map_err(no_pool(origin))?;
        drop(locked);
        sub_devices.into_iter().for_each(SubDevices::keep);
        drop(loops);
        Ok(pool)
    }

    /// Between the end of the claims and the load of the table another manager could claim a device, let go of it, and
    /// load a table of its own: tables share their devices. It has to wait here, and is refused, or refuses this one.
    fn lock(&self) -> Result<[FileLock; 2]> {
        let lock = |device: &ClaimedDevice| {
            self.dm.kernel().lock_device(&device.file).map_err(Error::io("lock", &device.origin))
        };
        // In one order, whatever the devices are used for.
        let is_first = self.metadata.number() < self.data.number();
        let (first, second) =
            if is_first { (&self.metadata, &self.data) } else { (&self.data, &self.metadata) };
        Ok([lock(first)?, lock(second)?])
    }
}

/// What the kernel's check of a metadata block means: another block's number, or a checksum.
pub(super) fn no_pool(metadata: PathBuf) -> impl FnOnce(thin::Error) -> Error {
    move |error| match error.errno() {
        Some(Errno::ENOTBLK | Errno::EILSEQ) => {
            let reason =
                "is damaged, or no thin pool's metadata; thin_check tells more, thin_repair may save it";
            Error::BackingFile { path: metadata, reason }
        }
        _ => error.into(),
    }
}

pub(super) fn table(pool: &PoolRecord, metadata: DeviceNumber, data: DeviceNumber) -> PoolTable {
    let block_size = pool.block_size.sectors();
    PoolTable { metadata, data, block_size, low_water_mark: pool.low_water_mark, features: pool.features }
}

/// All of the data device, which may have grown since it was recorded: a pool that has taken that over cannot
/// become smaller again. A device need not be a whole number of blocks; the pool does.
pub(in crate::tree) fn whole_blocks(data: Bytes, block_size: Bytes) -> Sectors {
    Bytes(data.0 - data.0 % block_size.0).sectors()
}

pub(in crate::tree) fn pool_mode(pool: &ThinPool, mode: PoolMode) -> Error {
    thin::Error::PoolMode { pool: pool.name().to_string(), mode, consequence: "it cannot be used" }.into()
}
