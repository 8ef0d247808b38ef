//! A model of the kernel whose own work is left out of what is counted. What only mounts, programs and udev need answers ENOSYS.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dm_thin::Errno;
use dm_thin::abi::Ioctl;
use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::kernel::{
    Access, Arg, DeviceFile, DeviceNumber, Directory, Entry, FileLock, FileStatus, Files, Kernel, Links,
};
use dm_thin::model::ModelKernel;
use dm_thin::units::Bytes;

use super::uncounted;

#[derive(Debug, Clone, Default)]
pub struct Uncounted(pub Arc<ModelKernel>);

macro_rules! forward {
    ($trait:ident for $through:ident; $($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)* $(@ $rest:item)?) => {
        impl $trait for Uncounted {
            $(fn $name(&self, $($argument: $type),*) -> $result {
                uncounted(|| $through(self).$name($($argument),*))
            })*
            $($rest)?
        }
    };
}

forward! {
    Kernel for kernel;
    open(path: &Path, access: Access) -> Result<DeviceFile, Errno>;
    ioctl(file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno>;
    read_at(file: &DeviceFile, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno>;
    write_at(file: &DeviceFile, offset: u64, bytes: &[u8]) -> Result<usize, Errno>;
    sync(file: &DeviceFile) -> Result<(), Errno>;
    block_device(path: &Path) -> Result<DeviceNumber, Errno>;
    device_node(number: DeviceNumber) -> Result<PathBuf, Errno>;
    make_node(path: &Path, number: DeviceNumber) -> Result<(), Errno>;
    remove_node(path: &Path) -> Result<(), Errno>;
    block_device_names() -> Result<Vec<OsString>, Errno>;
    block_attribute(device: &str, attribute: &str) -> Result<Vec<u8>, Errno>;
    mapper_node_names() -> Result<Vec<OsString>, Errno>;
    udev_runs() -> bool;
    mount(source: Option<&Path>, target: &Path, filesystem: Option<&str>, flags: MountFlags, options: &str) -> Result<(), Errno>;
    unmount(target: &Path, flags: UnmountFlags) -> Result<(), Errno>;
    mount_table() -> Result<Vec<u8>, Errno>;
    lock_device(file: &DeviceFile) -> Result<FileLock, Errno>;
    @ fn files(&self) -> &dyn Files {
        self
    }
}

fn kernel(this: &Uncounted) -> &ModelKernel {
    &this.0
}

fn files(this: &Uncounted) -> &dyn Files {
    this.0.files()
}

forward! {
    Files for files;
    open_directory(path: &Path, links: Links) -> Result<Directory, Errno>;
    enter_directory(above: &Directory, name: &OsStr) -> Result<Directory, Errno>;
    make_directory(above: &Directory, name: &OsStr, mode: u32) -> Result<(), Errno>;
    remove_directory(above: &Directory, name: &OsStr) -> Result<(), Errno>;
    entry(above: &Directory, name: &OsStr) -> Result<Entry, Errno>;
    make_file(above: &Directory, name: &OsStr, mode: u32) -> Result<(), Errno>;
    make_symlink(above: &Directory, name: &OsStr, text: &Path) -> Result<(), Errno>;
    remove_file(above: &Directory, name: &OsStr) -> Result<(), Errno>;
    open_file(above: &Directory, name: &OsStr, create: bool) -> Result<File, Errno>;
    sync_directory(directory: &Directory) -> Result<(), Errno>;
    sync_filesystem(directory: &Directory) -> Result<(), Errno>;
    trim_filesystem(directory: &Directory) -> Result<Bytes, Errno>;
    lock_directory(directory: &Directory) -> Result<FileLock, Errno>;
    file_status(file: BorrowedFd<'_>) -> Result<FileStatus, Errno>;
    free_space(file: BorrowedFd<'_>) -> Result<Bytes, Errno>;
    resize_file(file: &File, size: Bytes) -> Result<(), Errno>;
    allocate_file(file: &File, from: Bytes, size: Bytes) -> Result<(), Errno>;
    sync_file(file: &File) -> Result<(), Errno>;
}
