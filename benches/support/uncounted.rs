//! A model of the kernel whose own work is left out of what is counted. What only mounts and udev need answers ENOSYS.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dm_thin::Errno;
use dm_thin::abi::Ioctl;
use dm_thin::abi::mount::{MountFlags, UnmountFlags};
use dm_thin::kernel::{Access, Arg, DeviceFile, DeviceNumber, Kernel};
use dm_thin::model::ModelKernel;

use super::uncounted;

#[derive(Debug, Clone, Default)]
pub struct Uncounted(pub Arc<ModelKernel>);

macro_rules! forward {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        impl Kernel for Uncounted {
            $(fn $name(&self, $($argument: $type),*) -> $result {
                uncounted(|| self.0.$name($($argument),*))
            })*
        }
    };
}

forward! {
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
}
