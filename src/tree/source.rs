//! Where a pool comes from: two sparse files on loop devices.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::journal::PoolRecord;
use crate::dm::{DeviceMapper, DmName, DmUuid};
use crate::kernel::Kernel;
use crate::loopdev::{AttachOptions, LoopControl, LoopDevice};
use crate::thin::{PoolTable, ThinPool};
use crate::units::Bytes;
use crate::{Error, Result};

/// Make the files. What an earlier attempt left is made again: nothing was ever in it.
pub(super) fn make_files(dir: &Path, pool: &PoolRecord) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create", dir)(error));
        }
        _ => {}
    }
    for (name, size) in [("data", pool.data_size), ("metadata", pool.metadata_size)] {
        let path = dir.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(Error::io("create", &path))?;
        file.set_len(0).and_then(|()| file.set_len(size.0)).map_err(Error::io("extend", &path))?;
        file.sync_all().map_err(Error::io("sync", &path))?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

/// Whether files of a pool are there, whoever made them.
pub(super) fn has_files(dir: &Path) -> bool {
    ["data", "metadata"].iter().any(|name| fs::symlink_metadata(dir.join(name)).is_ok())
}

/// Attach the files and activate the pool. Nothing stays behind if that fails.
pub(super) fn activate(
    kernel: &Arc<dyn Kernel>,
    dm: &Arc<DeviceMapper>,
    dir: &Path,
    pool: &PoolRecord,
    (name, uuid): (&DmName, &DmUuid),
    direct_io: bool,
) -> Result<ThinPool> {
    let control = LoopControl::with_kernel(kernel.clone())?;
    let metadata = attach(&control, &dir.join("metadata"), pool.metadata_size, direct_io)?;
    let data = attach(&control, &dir.join("data"), pool.data_size, direct_io)?;
    let block_size = pool.block_size.sectors();
    let table = PoolTable {
        metadata: metadata.number(),
        data: data.number(),
        block_size,
        low_water_mark: pool.low_water_mark,
        features: pool.features,
    };
    // The devices are autoclear: from here on the pool keeps them open, and they end with it.
    ThinPool::create(dm.clone(), name, uuid, &table, pool.data_size.sectors())
}

fn attach(control: &LoopControl, path: &Path, size: Bytes, direct_io: bool) -> Result<LoopDevice> {
    let wrong = |reason| Error::BackingFile { path: path.into(), reason };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => wrong("is gone; the tree cannot work without it"),
        _ => Error::io("open", path)(error),
    })?;
    let metadata = file.metadata().map_err(Error::io("stat", path))?;
    if !metadata.is_file() {
        return Err(wrong("is not a regular file"));
    }
    if metadata.size() < size.0 {
        return Err(wrong("is shorter than it was made; a part of the pool is missing"));
    }
    // Left over by a process that died on a kernel without LOOP_CONFIGURE. A second device over the same
    // file would not see what the first one writes.
    if let Some(device) = control.find(&file)? {
        return Ok(device);
    }
    control.attach(&file, path, &AttachOptions::new().autoclear(true).direct_io(direct_io))
}
