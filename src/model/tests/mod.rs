//! The model against the contract, errno by errno: raw bytes where the typed layer could not say it.

mod control;
mod data;
mod faults;
pub(super) mod image;
mod io;
mod loops;
mod metadata;
mod property;
mod reader;
mod reference;
mod tables;
mod thin;
mod udev;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{ModelKernel, ModelOptions};
use crate::abi::dm::dm_ioctl;
use crate::abi::{Ioctl, dm, loopdev};
use crate::dm::{DeviceMapper, DmFlags, DmId, DmName, Result, TargetSpec, TargetType, UdevPolicy};
use crate::kernel::{Access, Arg, DeviceFile, Kernel};
use crate::units::Sectors;

/// 64 KiB.
const BLOCK: u64 = 128;

/// A kernel, its device mapper and two loop devices over files, kept open.
struct Machine {
    kernel: Arc<ModelKernel>,
    dm: DeviceMapper,
    directory: Arc<tempfile::TempDir>,
    loops: Vec<DeviceFile>,
}

fn new_directory() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

fn name(text: &str) -> DmName {
    DmName::new(text).unwrap()
}

fn target(text: &str) -> TargetType {
    TargetType::new(text).unwrap()
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno().unwrap()
}

impl Machine {
    fn bare() -> Self {
        Self::boot(ModelKernel::new(), new_directory())
    }

    fn boot(kernel: ModelKernel, directory: Arc<tempfile::TempDir>) -> Self {
        let kernel = Arc::new(kernel);
        let dm = DeviceMapper::with_kernel(kernel.clone(), UdevPolicy::None).unwrap();
        Self { kernel, dm, directory, loops: Vec::new() }
    }

    fn old(interface_minor: u32) -> Self {
        let options = ModelOptions { interface_minor, ..ModelOptions::default() };
        Self::boot(ModelKernel::with_options(options), new_directory())
    }

    /// loop0 over 4 MiB for metadata, loop1 over 16 MiB (256 blocks) for data.
    fn with_loops() -> Self {
        let mut machine = Self::bare();
        machine.attach("metadata", 4 << 20);
        machine.attach("data", 16 << 20);
        machine
    }

    /// A pool named "pool" over all of loop1, active.
    fn with_pool() -> Self {
        let machine = Self::with_loops();
        machine.make("pool");
        machine.load("pool", "thin-pool", "7:0 7:1 128 16 0", 256 * BLOCK).unwrap();
        machine.dm.resume(&name("pool")).unwrap();
        machine
    }

    /// Cut the power, boot, attach the files again, activate the pool.
    fn power_cut(self) -> Self {
        self.kernel.check();
        let mut machine = Self::boot(self.kernel.power_cut(), Arc::clone(&self.directory));
        machine.attach("metadata", 4 << 20);
        machine.attach("data", 16 << 20);
        machine.make("pool");
        machine.load("pool", "thin-pool", "7:0 7:1 128 16 0", 256 * BLOCK).unwrap();
        machine.dm.resume(&name("pool")).unwrap();
        machine
    }

    fn file(&self, file: &str, size: u64) -> std::fs::File {
        let path = self.directory.path().join(file);
        let file = std::fs::File::options().create(true).truncate(false).read(true).write(true).open(path);
        let file = file.unwrap();
        file.set_len(size).unwrap();
        file
    }

    fn attach(&mut self, file: &str, size: u64) {
        let file = self.file(file, size);
        let control = self.open("/dev/loop-control");
        let index = self.kernel.ioctl(&control, loopdev::LOOP_CTL_GET_FREE, Arg::Value(0)).unwrap();
        let device = self.open(&format!("/dev/loop{index}"));
        self.kernel.ioctl(&device, loopdev::LOOP_SET_FD, Arg::Fd(file.as_fd())).unwrap();
        self.loops.push(device);
    }

    fn open(&self, path: &str) -> DeviceFile {
        self.kernel.open(Path::new(path), Access::READ_WRITE).unwrap()
    }

    fn make(&self, device: &str) {
        self.dm.create(&name(device), None).unwrap();
    }

    fn load(&self, device: &str, target_type: &str, parameters: &str, length: u64) -> Result<()> {
        let line = TargetSpec {
            start: Sectors(0),
            length: Sectors(length),
            target_type: target(target_type),
            parameters: &parameters,
        };
        self.dm.load_table(DmId::Name(&name(device)), &[line], DmFlags::empty())
    }

    fn activate(&self, device: &str, target_type: &str, parameters: &str, length: u64) -> Result<()> {
        self.make(device);
        self.load(device, target_type, parameters, length)?;
        self.dm.resume(&name(device))
    }

    fn message(&self, device: &str, text: &str) -> Result<u32> {
        self.dm.message(DmId::Name(&name(device)), Sectors(0), &text).map(|event_nr| event_nr.0)
    }

    fn status(&self, device: &str) -> String {
        let (_, lines) = self.dm.table_status(DmId::Name(&name(device)), DmFlags::empty()).unwrap();
        lines[0].text.clone()
    }

    fn event_nr(&self, device: &str) -> u32 {
        self.dm.status(DmId::Name(&name(device))).unwrap().event_nr.0
    }

    fn node(&self, device: &str) -> PathBuf {
        self.dm.node_path(&name(device))
    }

    /// A raw request to the control device.
    fn raw(&self, request: Ioctl, buffer: &mut [u8]) -> std::result::Result<u32, Errno> {
        let control = self.open("/dev/mapper/control");
        self.kernel.ioctl(&control, request, Arg::Bytes(buffer))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kernel.check();
        }
    }
}

/// A header about the device of that name, in a buffer of `size` bytes.
fn request(device: &str, size: usize) -> Vec<u8> {
    let mut header = dm_ioctl::new_zeroed();
    header.version = [4, 0, 0];
    header.data_size = u32::try_from(size).unwrap();
    header.data_start = 312;
    header.name[..device.len()].copy_from_slice(device.as_bytes());
    let mut buffer = vec![0; size.max(312)];
    buffer[..312].copy_from_slice(header.as_bytes());
    buffer
}

fn header(buffer: &[u8]) -> dm_ioctl {
    dm_ioctl::read_from_prefix(buffer).unwrap().0
}

fn change(buffer: &mut [u8], change: impl FnOnce(&mut dm_ioctl)) {
    change(dm_ioctl::mut_from_prefix(buffer).unwrap().0);
}

fn has(buffer: &[u8], flag: DmFlags) -> bool {
    DmFlags::from_bits_retain(header(buffer).flags).contains(flag)
}
