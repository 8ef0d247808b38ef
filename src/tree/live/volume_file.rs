//! An open thin volume, read and written through the kernel seam.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use zerocopy::IntoBytes;

use crate::abi::block::BLKDISCARD;
use crate::kernel::{Access, Arg, DeviceFile, Kernel};
use crate::thin::ThinVolume;
use crate::tree::{Error, Result};

/// An open thin volume.
#[derive(Debug)]
pub(in crate::tree) struct VolumeFile {
    kernel: Arc<dyn Kernel>,
    file: DeviceFile,
    path: PathBuf,
    /// A sync failed: the kernel may have dropped what it could not write, and would call the next one a success.
    failed: AtomicBool,
}

impl VolumeFile {
    /// Opens an active volume.
    pub(in crate::tree) fn open(
        kernel: Arc<dyn Kernel>,
        volume: &ThinVolume,
        access: Access,
    ) -> Result<Self> {
        let file = volume.open(access)?;
        Ok(Self { kernel, file, path: volume.path(), failed: AtomicBool::new(false) })
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`Error::Io`], with `UnexpectedEof` if the volume ends before the buffer is full.
    pub(in crate::tree) fn read_exact_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            match self.kernel.read_at(&self.file, offset, buffer) {
                Ok(0) => return Err(self.error("read", std::io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => {
                    offset += read as u64;
                    buffer = &mut buffer[read..];
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.error("read", errno.into())),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` at `offset`.
    pub(in crate::tree) fn write_all_at(&self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match self.kernel.write_at(&self.file, offset, bytes) {
                Ok(0) => return Err(self.error("write", std::io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    offset += written as u64;
                    bytes = &bytes[written..];
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.error("write", errno.into())),
            }
        }
        Ok(())
    }

    /// Makes what was written durable: data, and the pool's mappings of it. After an error it fails for good.
    pub(in crate::tree) fn sync(&self) -> Result<()> {
        let synced = match self.failed.load(Ordering::Acquire) {
            true => Err(Errno::EIO),
            false => self.kernel.sync(&self.file),
        };
        synced.map_err(|errno| {
            self.failed.store(true, Ordering::Release);
            self.error("sync", errno.into())
        })
    }

    /// Discards a range that begins and ends at blocks of the pool, so that it reads as zeroes. `false` if the pool
    /// ignores discards.
    pub(in crate::tree) fn discard(&self, offset: u64, length: u64) -> Result<bool> {
        let mut range = [offset, length];
        match self.kernel.ioctl(&self.file, BLKDISCARD, Arg::Bytes(range.as_mut_bytes())) {
            Ok(_) => Ok(true),
            Err(Errno::EOPNOTSUPP) => Ok(false),
            Err(errno) => Err(self.error("discard", errno.into())),
        }
    }

    fn error(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Io { action, path: self.path.clone(), source }
    }
}
