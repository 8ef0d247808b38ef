//! A pool on two files below the root, on loop devices.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{ClaimedDevice, InactivePool, table, whole_blocks};
use crate::abi::loopdev::LoopFlags;
use crate::dm::DeviceMapper;
use crate::loopdev::{AttachOptions, LoopControl, LoopDevice};
use crate::tree::Options;
use crate::tree::journal::PoolRecord;
use crate::units::Bytes;
use crate::{Error, Result};

/// Makes the files.
pub(super) fn make(dir: &Path, pool: &PoolRecord) -> Result<()> {
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
        if name == "metadata" {
            // A hole in it that finds no space is a failed commit: the pool would be read-only for all.
            allocate(&file, size).map_err(Error::io("allocate", &path))?;
        }
        file.sync_all().map_err(Error::io("sync", &path))?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

fn allocate(file: &File, size: Bytes) -> io::Result<()> {
    let len = libc::off_t::try_from(size.0).map_err(io::Error::other)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        // The file system has no extents to preallocate.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            io::copy(&mut io::repeat(0).take(size.0), &mut &*file).map(drop)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Whether files of a pool are there, whoever made them.
pub(in crate::tree) fn has_files(dir: &Path) -> bool {
    ["data", "metadata"].iter().any(|name| fs::symlink_metadata(dir.join(name)).is_ok())
}

pub(super) fn set_up(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    dir: &Path,
    pool: &PoolRecord,
) -> Result<InactivePool> {
    let kernel = &*options.kernel;
    let control = LoopControl::with_kernel(options.kernel.clone())?;
    let attach = |name: &str, size: Bytes| -> Result<(LoopDevice, ClaimedDevice)> {
        let path = dir.join(name);
        let device = attach(&control, &path, size, options.direct_io)?;
        let claimed = ClaimedDevice::claim(kernel, device.path(), path)?;
        Ok((device, claimed))
    };
    let (metadata_loop, metadata) = attach("metadata", pool.metadata_size)?;
    let (data_loop, data) = attach("data", pool.data_size)?;
    let table = table(pool, metadata.number(), data.number());
    let size = whole_blocks(data_loop.size()?, pool.block_size);
    let loops = vec![metadata_loop, data_loop];
    Ok(InactivePool { dm: dm.clone(), table, size, metadata, data, loops, sub_devices: None })
}

fn attach(control: &LoopControl, path: &Path, size: Bytes, direct_io: bool) -> Result<LoopDevice> {
    let wrong = |reason| Error::BackingFile { path: path.into(), reason };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
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
    // Left by a process that died on a kernel without LOOP_CONFIGURE. A second device over the same
    // file would not see what the first one writes.
    if let Some(device) = control.find(&file)? {
        return if is_whole_file(&device)? {
            Ok(device)
        } else {
            Err(wrong("is bound to a loop device that somebody else set up; detach that (losetup -d)"))
        };
    }
    control.attach(&file, path, &AttachOptions::new().autoclear(true).direct_io(direct_io))
}

/// Whether a loop device shows all of its file and can be written to, as one that this crate attaches.
fn is_whole_file(device: &LoopDevice) -> Result<bool> {
    let status = device.status()?;
    let read_only = status.flags.contains(LoopFlags::READ_ONLY);
    Ok(status.offset == Bytes(0) && status.size_limit.is_none() && !read_only)
}
