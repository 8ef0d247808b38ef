//! Where metadata blocks come from: a file, a block device, a device of the model.

use std::fmt;
use std::fs::File; // open ones, which `kernel::Files` or a caller gives out
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::format::BLOCK_SIZE;
use crate::abi::block::BLKGETSIZE64;
use crate::kernel::{Access, AlignedBlock, Arg, DeviceFile, DeviceNumber, Kernel};

/// Gives the 4 KiB blocks of a metadata device.
pub trait BlockSource: fmt::Debug + Send + Sync {
    /// How many blocks there are.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is none.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|blocks| blocks == 0)
    }

    /// Fills `buffer` with the blocks from `first` on.
    ///
    /// # Errors
    /// Also [`io::ErrorKind::UnexpectedEof`] if there are not so many.
    fn read(&self, first: u64, buffer: &mut [AlignedBlock]) -> io::Result<()>;
}

impl BlockSource for File {
    fn len(&self) -> io::Result<u64> {
        // The length in a block device's inode is 0. Reads do not use the position.
        let mut file = self;
        Ok(file.seek(SeekFrom::End(0))? / BLOCK_SIZE as u64)
    }

    fn read(&self, first: u64, buffer: &mut [AlignedBlock]) -> io::Result<()> {
        self.read_exact_at(buffer.as_mut_bytes(), offset(first)?)
    }
}

/// The blocks of a block device, read past the page cache: the kernel writes a live pool's metadata under it.
#[derive(Debug)]
pub struct DeviceBlocks {
    kernel: Arc<dyn Kernel>,
    file: DeviceFile,
}

impl DeviceBlocks {
    /// Opens the device at `path`, with O_DIRECT, and O_EXCL if asked for: then no pool uses it.
    pub fn open(kernel: Arc<dyn Kernel>, path: &Path, exclusive: bool) -> io::Result<Self> {
        let access = if exclusive { Access::READ.direct().exclusive() } else { Access::READ.direct() };
        let file = kernel.open(path, access)?;
        Ok(Self { kernel, file })
    }

    /// The device's number.
    pub fn number(&self) -> DeviceNumber {
        self.file.number()
    }
}

impl BlockSource for DeviceBlocks {
    fn len(&self) -> io::Result<u64> {
        let mut size = 0u64;
        self.kernel.ioctl(&self.file, BLKGETSIZE64, Arg::Bytes(size.as_mut_bytes()))?;
        Ok(size / BLOCK_SIZE as u64)
    }

    fn read(&self, first: u64, buffer: &mut [AlignedBlock]) -> io::Result<()> {
        let (mut at, mut rest) = (offset(first)?, buffer.as_mut_bytes());
        while !rest.is_empty() {
            match self.kernel.read_at(&self.file, at, rest)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    at += read as u64;
                    rest = &mut rest[read..];
                }
            }
        }
        Ok(())
    }
}

fn offset(block: u64) -> io::Result<u64> {
    block.checked_mul(BLOCK_SIZE as u64).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
