//! The pool below the devices, read without the kernel.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use dm_thin::thin::metadata::{Metadata, MetadataError, ThinDevice};
use dm_thin::thin::{ThinId, TransactionId};
use dm_thin::units::Bytes;
use serde::Serialize;

use crate::Finding;
use crate::filesystem::{Filesystem, PROBE_LEN};

/// What the superblock of the pool's metadata says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolInfo {
    /// Size of a data block.
    pub block_size: Bytes,
    /// Size of the data device.
    pub data_size: Bytes,
    /// Size of the data blocks that are in use.
    pub data_used: Bytes,
    /// The pool's transaction id.
    pub transaction_id: TransactionId,
}

/// A pool that can be read.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) metadata: Metadata,
    pub(crate) devices: Vec<ThinDevice>,
    pub(crate) data: File,
    pub(crate) data_len: u64,
}

impl Pool {
    pub(crate) fn open(metadata: File, data: File, findings: &mut Vec<Finding>) -> Option<Self> {
        match Self::try_open(metadata, data) {
            Ok(pool) => {
                if pool.metadata.superblock().needs_check {
                    findings.push(Finding::NeedsCheck);
                }
                let (expected, found) = (pool.info().data_size, Bytes(pool.data_len));
                if found < expected {
                    findings.push(Finding::DataTooShort { expected, found });
                }
                Some(pool)
            }
            Err(error) => {
                findings.push(Finding::PoolUnreadable { reason: error.to_string() });
                None
            }
        }
    }

    fn try_open(metadata: File, mut data: File) -> Result<Self, Box<dyn std::error::Error>> {
        let metadata = Metadata::open(Arc::new(metadata))?;
        // The length in a block device's inode is 0.
        let data_len = data.seek(SeekFrom::End(0)).map_err(|error| format!("data file: {error}"))?;
        Ok(Self { devices: metadata.devices()?, metadata, data, data_len })
    }

    pub(crate) fn info(&self) -> PoolInfo {
        let superblock = self.metadata.superblock();
        let size = superblock.block_size;
        let (all, used) =
            superblock.space.as_ref().map_or_else(Default::default, |it| (it.data_blocks, it.data_used));
        PoolInfo {
            block_size: size.bytes(),
            data_size: all.bytes(size),
            data_used: used.bytes(size),
            transaction_id: superblock.transaction_id,
        }
    }

    pub(crate) fn block_size(&self) -> u64 {
        self.metadata.superblock().block_size.bytes().0
    }

    pub(crate) fn device(&self, id: ThinId) -> Option<&ThinDevice> {
        let at = self.devices.binary_search_by_key(&id, |device| device.id).ok()?;
        self.devices.get(at)
    }

    /// Size of what a device maps.
    pub(crate) fn mapped(&self, device: &ThinDevice) -> Bytes {
        device.mapped.bytes(self.metadata.superblock().block_size)
    }

    /// The file system on a device, if it is one that is known.
    pub(crate) fn filesystem(&self, id: ThinId) -> Result<Option<Filesystem>, MetadataError> {
        let first = self.metadata.mappings(id, 0)?.next().transpose()?;
        let Some(first) = first.filter(|mapping| mapping.virtual_block == 0) else { return Ok(None) };
        let mut bytes = [0; PROBE_LEN];
        let offset = first.data_block.saturating_mul(self.block_size());
        Ok(self.read(&mut bytes, offset).ok().and_then(|()| Filesystem::probe(&bytes)))
    }

    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.data.read_exact_at(buffer, offset)
    }
}
