//! What a pool's devices stand on, as far as that can be made larger.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::fstatvfs;

use crate::kernel::DeviceNumber;
use crate::loopdev::{LoopControl, LoopDevice};
use crate::units::{Bytes, Sectors};
use crate::{Error, Result};

/// A pool's data or metadata device that may be made larger.
pub trait Backing: fmt::Debug + Send + Sync {
    /// The device.
    fn number(&self) -> DeviceNumber;

    /// How large it is.
    fn size(&self) -> Result<Sectors>;

    /// How large it can become now.
    fn limit(&self) -> Result<Sectors>;

    /// What is below it; `None` if all of it is there for certain.
    fn below(&self) -> Result<Option<Below>>;

    /// Make it at least `size` large. The pool does not know before it is reloaded.
    fn extend(&self, size: Sectors) -> Result<()>;
}

/// What is below a device that promises more than it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Below {
    /// Free in the file system that holds the file.
    pub free: Bytes,
    /// What the file has of it already.
    pub allocated: Bytes,
}

impl Below {
    /// What the file has and does not use, when `used` of the device is in use.
    pub fn spare(&self, used: Bytes) -> Bytes {
        Bytes(self.allocated.0.saturating_sub(used.0))
    }
}

/// A loop device over a sparse file.
#[derive(Debug)]
pub struct LoopFile {
    control: LoopControl,
    path: PathBuf,
    number: DeviceNumber,
}

impl LoopFile {
    /// The device that is bound to the file `path`. It is not kept open, so an autoclear device still
    /// ends with the pool.
    ///
    /// # Errors
    /// [`Error::BackingFile`] if there is none.
    pub fn find(control: LoopControl, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let number = bound(&control, &open(&path)?, &path)?.number();
        Ok(Self { control, path, number })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Backing for LoopFile {
    fn number(&self) -> DeviceNumber {
        self.number
    }

    fn size(&self) -> Result<Sectors> {
        Ok(bound(&self.control, &open(&self.path)?, &self.path)?.size()?.sectors())
    }

    /// A sparse file can become as large as anything; what it holds is another matter.
    fn limit(&self) -> Result<Sectors> {
        Ok(Bytes(i64::MAX.unsigned_abs()).sectors())
    }

    fn below(&self) -> Result<Option<Below>> {
        let file = open(&self.path)?;
        let allocated = file.metadata().map_err(Error::io("stat", &self.path))?.blocks();
        let below = fstatvfs(&file).map_err(|errno| Error::io("statvfs", &self.path)(errno.into()))?;
        #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // differs between architectures
        let free = (below.blocks_available() as u64).saturating_mul(below.fragment_size() as u64);
        Ok(Some(Below { free: Bytes(free), allocated: Sectors(allocated).bytes() }))
    }

    fn extend(&self, size: Sectors) -> Result<()> {
        let file = open(&self.path)?;
        let device = bound(&self.control, &file, &self.path)?;
        if device.number() != self.number {
            return Err(Error::BackingFile { path: self.path.clone(), reason: "is on another loop device" });
        }
        let length = file.metadata().map_err(Error::io("stat", &self.path))?.len();
        if length < size.bytes().0 {
            // Before the pool relies on it.
            let extended = file.set_len(size.bytes().0).and_then(|()| file.sync_all());
            extended.map_err(Error::io("extend", &self.path))?;
        }
        device.set_capacity()
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path).map_err(Error::io("open", path))
}

fn bound(control: &LoopControl, file: &File, path: &Path) -> Result<LoopDevice> {
    let reason = "is not bound to a loop device";
    control.find(file)?.ok_or_else(|| Error::BackingFile { path: path.into(), reason })
}
