//! A pool on two files below the root, on loop devices.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::inactive::{ClaimedDevice, InactivePool, table, whole_blocks};
use crate::abi::loopdev::LoopFlags;
use crate::dm::DeviceMapper;
use crate::loopdev::{AttachOptions, LoopControl, LoopDevice};
use crate::tree::Options;
use crate::tree::state::journal::PoolRecord;
use crate::tree::state::root::Root;
use crate::tree::{Error, Result};
use crate::units::Bytes;

/// Makes the files.
pub(super) fn make(options: &Options, root: &Root, pool: &PoolRecord) -> Result<()> {
    let files = options.kernel.files();
    let dir = root.make_pool().map_err(Error::io("create", root.pool_path()))?;
    for (name, size) in [("data", pool.data_size), ("metadata", pool.metadata_size)] {
        let path = dir.path().join(name);
        let file = files.open_file(&dir, name.as_ref(), true).map_err(Error::io("create", &path))?;
        let emptied = files.resize_file(&file, Bytes(0));
        emptied.and_then(|()| files.resize_file(&file, size)).map_err(Error::io("extend", &path))?;
        if name == "metadata" {
            // A hole in it that finds no space is a failed commit: the pool would be read-only for all.
            files.allocate_file(&file, Bytes(0), size).map_err(Error::io("allocate", &path))?;
        }
        files.sync_file(&file).map_err(Error::io("sync", &path))?;
    }
    files.sync_directory(&dir).map_err(Error::io("sync", dir.path()))
}

/// Whether files of a pool exist.
pub(in crate::tree) fn has_files(options: &Options, root: &Root) -> bool {
    let files = options.kernel.files();
    root.pool()
        .is_ok_and(|dir| ["data", "metadata"].iter().any(|name| files.entry(&dir, name.as_ref()).is_ok()))
}

pub(super) fn set_up(
    options: &Options,
    dm: &Arc<DeviceMapper>,
    root: &Root,
    pool: &PoolRecord,
) -> Result<InactivePool> {
    let kernel = &*options.kernel;
    let control = LoopControl::with_kernel(options.kernel.clone())?;
    let attach = |name: &str, size: Bytes| -> Result<(LoopDevice, ClaimedDevice)> {
        let device = attach(&control, root, name, size, options.direct_io)?;
        let claimed = ClaimedDevice::claim(kernel, device.path(), root.pool_path().join(name))?;
        Ok((device, claimed))
    };
    let (metadata_loop, metadata) = attach("metadata", pool.metadata_size)?;
    let (data_loop, data) = attach("data", pool.data_size)?;
    let table = table(pool, metadata.number(), data.number());
    let size = whole_blocks(data_loop.size()?, pool.block_size);
    let loops = vec![metadata_loop, data_loop];
    Ok(InactivePool { dm: dm.clone(), table, size, metadata, data, loops, sub_devices: None })
}

fn attach(
    control: &LoopControl,
    root: &Root,
    name: &str,
    size: Bytes,
    direct_io: bool,
) -> Result<LoopDevice> {
    let path = root.pool_path().join(name);
    let wrong = |reason| Error::BackingFile { path: path.clone(), reason };
    let file = root.pool_file(name).map_err(|errno| match errno {
        Errno::ENOENT => wrong("is missing"),
        errno => Error::io("open", &path)(errno),
    })?;
    let files = control.kernel().files();
    let status = files.file_status(file.as_fd()).map_err(Error::io("stat", &path))?;
    if !status.is_file {
        return Err(wrong("is not a regular file"));
    }
    if status.size < size {
        return Err(wrong("is shorter than it was made; a part of the pool is missing"));
    }
    if name == "metadata" {
        // Best effort: holes of a file that an earlier version made, or that was restored from a backup.
        let _ = files.allocate_file(&file, Bytes(0), status.size);
    }
    // Left by a process that died on a kernel without LOOP_CONFIGURE. A second device over the same
    // file would not see what the first one writes.
    if let Some(device) = control.find(&file)? {
        return if is_whole_file(&device)? {
            Ok(device)
        } else {
            Err(wrong("another program bound it to a loop device; detach that with losetup -d"))
        };
    }
    Ok(control.attach(&file, &path, &AttachOptions::new().autoclear(true).direct_io(direct_io))?)
}

/// Whether a loop device shows all of its file and can be written to, as one that this crate attaches.
fn is_whole_file(device: &LoopDevice) -> Result<bool> {
    let status = device.status()?;
    let read_only = status.flags.contains(LoopFlags::READ_ONLY);
    Ok(status.offset == Bytes(0) && status.size_limit.is_none() && !read_only)
}
