//! What is below a pool's devices, where it can be extended.

use std::fmt;
use std::fs::File; // open ones, which `kernel::Files` or a caller gives out
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::kernel::{DeviceNumber, FileStatus, Files};
use crate::loopdev::{LoopControl, LoopDevice};
use crate::thin::{Error, Result};
use crate::units::{Bytes, Sectors};

/// A pool's data or metadata device that may be made larger.
pub trait Backing: fmt::Debug + Send + Sync {
    /// The device.
    fn number(&self) -> DeviceNumber;

    /// How large it is.
    fn size(&self) -> Result<Sectors>;

    /// How large it can become now.
    fn limit(&self) -> Result<Sectors>;

    /// What is below it; `None` if all of it is there for certain.
    fn below(&self) -> Result<Option<BackingSpace>>;

    /// Extends it to at least `size`. The pool uses the space after its next reload.
    fn extend(&self, size: Sectors) -> Result<()>;
}

impl<B: Backing + ?Sized> Backing for Box<B> {
    fn number(&self) -> DeviceNumber {
        (**self).number()
    }

    fn size(&self) -> Result<Sectors> {
        (**self).size()
    }

    fn limit(&self) -> Result<Sectors> {
        (**self).limit()
    }

    fn below(&self) -> Result<Option<BackingSpace>> {
        (**self).below()
    }

    fn extend(&self, size: Sectors) -> Result<()> {
        (**self).extend(size)
    }
}

/// What is below a device that promises more than it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackingSpace {
    /// Free in the file system that holds the file.
    pub free: Bytes,
    /// What the file has of it already.
    pub allocated: Bytes,
}

impl BackingSpace {
    /// What the file has and does not use, when `used` of the device is in use.
    pub fn unused(&self, used: Bytes) -> Bytes {
        Bytes(self.allocated.0.saturating_sub(used.0))
    }
}

/// A loop device over a sparse file.
#[derive(Debug)]
pub struct LoopFile {
    control: LoopControl,
    path: PathBuf,
    number: DeviceNumber,
    allocates: bool,
}

impl LoopFile {
    /// The device that is bound to the file `path`. It is not kept open, so an autoclear device still
    /// ends with the pool.
    ///
    /// # Errors
    /// [`Error::BackingFile`] if there is none.
    pub fn find(control: LoopControl, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = control.kernel().files().open_path(&path).map_err(Error::io("open", &path))?;
        let number = bound(&control, &file, &path)?.number();
        Ok(Self { control, path, number, allocates: false })
    }

    /// Allocates what the file is extended by. For metadata: where a commit finds no space, the pool is read-only for
    /// all.
    #[must_use]
    pub fn allocate(self) -> Self {
        Self { allocates: true, ..self }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn files(&self) -> &dyn Files {
        self.control.kernel().files()
    }

    fn open(&self) -> Result<File> {
        self.files().open_path(&self.path).map_err(Error::io("open", &self.path))
    }

    fn status(&self, file: &File) -> Result<FileStatus> {
        self.files().file_status(file.as_fd()).map_err(Error::io("stat", &self.path))
    }
}

impl Backing for LoopFile {
    fn number(&self) -> DeviceNumber {
        self.number
    }

    fn size(&self) -> Result<Sectors> {
        Ok(bound(&self.control, &self.open()?, &self.path)?.size()?.sectors())
    }

    /// A sparse file has no limit of its own. What its file system can hold, `below` reports.
    fn limit(&self) -> Result<Sectors> {
        Ok(Bytes(i64::MAX.unsigned_abs()).sectors())
    }

    fn below(&self) -> Result<Option<BackingSpace>> {
        let file = self.open()?;
        let allocated = self.status(&file)?.allocated;
        let free = self.files().free_space(file.as_fd()).map_err(Error::io("statvfs", &self.path))?;
        Ok(Some(BackingSpace { free, allocated }))
    }

    fn extend(&self, size: Sectors) -> Result<()> {
        let file = self.open()?;
        let device = bound(&self.control, &file, &self.path)?;
        if device.number() != self.number {
            return Err(Error::BackingFile { path: self.path.clone(), reason: "is on another loop device" });
        }
        // Of two callers at once, the one with the smaller size would cut off what the other one added.
        let _lock = device.lock()?;
        let (from, size) = (self.status(&file)?.size, size.bytes());
        if from < size {
            let extended = match self.allocates {
                true => self.files().allocate_file(&file, from, size),
                false => self.files().resize_file(&file, size),
            };
            // Before the pool relies on it.
            extended.and_then(|()| self.files().sync_file(&file)).map_err(Error::io("extend", &self.path))?;
        }
        Ok(device.set_capacity()?)
    }
}

fn bound(control: &LoopControl, file: &File, path: &Path) -> Result<LoopDevice> {
    let reason = "is not bound to a loop device";
    control.find(file)?.ok_or_else(|| Error::BackingFile { path: path.into(), reason })
}
