//! A labelled device, found again among all of the system, without waiting for devices that stand still.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use super::device::LabelledDevice;
use super::label::{RESERVED, SubDevice};
use crate::dm::{DeviceMapper, DeviceStatus, DmFlags, TableKind};
use crate::kernel::DeviceNumber;
use crate::thin::{Error, Result};
use crate::units::Sectors;

impl LabelledDevice {
    /// The device with a certain label, among all of the system. What cannot be read is passed over.
    ///
    /// Read are devices that are large enough, and neither volumes nor pools of this crate's trees: what is on those
    /// is not this machine's. Mapped devices that are suspended, or stand on one that is, are passed over: a read
    /// of them would wait until they are resumed. So are devices that another one stands on, as multipath and RAID do
    /// on their parts: the label is that one's. A read that takes longer than 30 seconds for another reason is given
    /// up, and left to a thread of its own.
    ///
    /// # Errors
    /// [`Error::NoLabel`] if none has it.
    pub fn find(dm: Arc<DeviceMapper>, uuid: Uuid) -> Result<Self> {
        let names = dm.kernel().block_device_names().map_err(Error::io("list", "/sys/class/block"))?;
        for name in names {
            let name = name.to_string_lossy();
            // sysfs has `!` for `/`.
            let path = Path::new("/dev").join(name.replace('!', "/"));
            if !is_candidate(&dm, &name, &path) {
                continue;
            }
            let shared = dm.clone();
            if let Some(Ok(device)) = within(PATIENCE, move || Self::open(shared, path))
                && device.label().uuid == uuid
                && !device.is_part_of_another()
            {
                return Ok(device);
            }
        }
        Err(Error::NoLabel { device: format!("any block device, uuid {uuid}").into() })
    }
}

impl LabelledDevice {
    /// Whether a device stands on it that the label does not describe.
    fn is_part_of_another(&self) -> bool {
        let kernel = &**self.dm.kernel();
        let parts = [SubDevice::Metadata, SubDevice::Data].map(|part| self.active_number(part).ok());
        let number = |name: &OsStr| {
            let text = kernel.block_attribute(name.to_str()?, "dev").ok()?;
            std::str::from_utf8(&text).ok()?.trim().parse::<DeviceNumber>().ok()
        };
        let holders = kernel.device_holders(self.number).unwrap_or_default();
        holders.iter().any(|name| number(name).is_none_or(|holder| !parts.contains(&Some(holder))))
    }
}

/// How long the read of one device may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether a label can be on the device, and can be read: a suspended device would block.
fn is_candidate(dm: &DeviceMapper, name: &str, path: &Path) -> bool {
    let size = dm.kernel().block_attribute(name, "size").ok();
    let size = size.and_then(|size| std::str::from_utf8(&size).ok()?.parse().ok());
    if size.is_some_and(|size| Sectors(size) <= RESERVED) {
        return false;
    }
    let Ok(number) = dm.kernel().block_device(path) else { return false };
    match dm.find(number) {
        Ok(None) => true,
        Ok(Some(status)) => !is_of_a_tree(&status) && is_running(dm, &status, &mut Vec::new()),
        Err(_) => false,
    }
}

/// Whether it is a tree's volume, pool or part: `DMTHIN-`, 32 hexadecimal digits, and what it is.
fn is_of_a_tree(status: &DeviceStatus) -> bool {
    let rest = status.uuid.as_ref().and_then(|uuid| uuid.as_bytes().strip_prefix(b"DMTHIN-"));
    rest.is_some_and(|rest| rest.get(..32).is_some_and(|id| id.iter().all(u8::is_ascii_hexdigit)))
}

/// Whether neither a mapped device nor one that it stands on is suspended.
fn is_running(dm: &DeviceMapper, status: &DeviceStatus, seen: &mut Vec<DeviceNumber>) -> bool {
    if status.flags.intersects(DmFlags::SUSPEND | DmFlags::INTERNAL_SUSPEND) || !status.has_live_table() {
        return false;
    }
    seen.push(status.number);
    let Ok(below) = dm.dependencies(status.number, TableKind::Live) else { return false };
    below.into_iter().all(|number| {
        seen.contains(&number)
            || match dm.find(number) {
                Ok(None) => true,
                Ok(Some(status)) => is_running(dm, &status, seen),
                Err(_) => false,
            }
    })
}

/// What `work` says, if it does so in time.
fn within<T: Send + 'static>(time: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .spawn(move || {
            // The receiver is gone after the timeout.
            let _ = sender.send(work());
        })
        .ok()?;
    receiver.recv_timeout(time).ok()
}
