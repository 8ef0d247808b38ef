//! What a block device is, whatever its path is after the next restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::kernel::{DeviceNumber, Kernel};
use crate::tree::{Error, Result};

/// The ids of a device that outlast restarts, by their kinds: `dm-uuid`, `wwid`, `serial`, `partuuid`. Many a device
/// has none of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(in crate::tree) struct DeviceIds(BTreeMap<String, String>);

/// Where sysfs has a disk's ids: of SCSI and NVMe, of virtio, NVMe and MMC.
const DISK: [(&str, &[&str]); 2] =
    [("wwid", &["wwid", "device/wwid"]), ("serial", &["serial", "device/serial"])];

impl DeviceIds {
    pub(in crate::tree) fn read(kernel: &dyn Kernel, device: DeviceNumber) -> Self {
        let node = kernel.device_node(device).unwrap_or_default();
        let name = node.file_name().unwrap_or_default().to_string_lossy();
        let attribute = |path: &str| -> Option<String> {
            let text = String::from_utf8(kernel.block_attribute(&name, path).ok()?).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let partition = attribute("partition");
        let (above, suffix) = match &partition {
            Some(number) => ("../", format!("-part{number}")),
            None => ("", String::new()),
        };
        let mut ids = BTreeMap::new();
        ids.extend(attribute("dm/uuid").map(|uuid| ("dm-uuid".to_owned(), uuid)));
        for (kind, paths) in DISK {
            let id = paths.iter().find_map(|path| attribute(&format!("{above}{path}")));
            ids.extend(id.map(|id| (kind.to_owned(), id + &suffix)));
        }
        // Told by newer kernels.
        let events = attribute("uevent").unwrap_or_default();
        let uuid = events.lines().find_map(|line| line.strip_prefix("PARTUUID="));
        ids.extend(uuid.map(|uuid| ("partuuid".to_owned(), uuid.to_owned())));
        Self(ids)
    }

    /// Whether both are of one device; none if they have no kind of id in common.
    fn is(&self, other: &Self) -> Option<bool> {
        let common = self.0.iter().filter_map(|(kind, id)| Some(other.0.get(kind)? == id));
        common.reduce(|one, other| one || other)
    }

    /// The path of the device that has these ids: `path`, or another one if that leads to another device by now.
    ///
    /// # Errors
    /// [`Error::BackingFile`] if no device has them, or several have.
    pub(in crate::tree) fn locate(&self, kernel: &dyn Kernel, path: &Path) -> Result<PathBuf> {
        let refused = |reason| Err(Error::BackingFile { path: path.into(), reason });
        let at_path = kernel.block_device(path).map(|number| Self::read(kernel, number).is(self));
        if self.0.is_empty() || at_path == Ok(Some(true)) {
            return Ok(path.into());
        }
        let mut found = Vec::new();
        for name in kernel.block_device_names().map_err(Error::io("list", "/sys/class/block"))? {
            // sysfs has `!` for `/`.
            let node = Path::new("/dev").join(name.to_string_lossy().replace('!', "/"));
            let number = kernel.block_device(&node);
            if number.is_ok_and(|number| Self::read(kernel, number).is(self) == Some(true)) {
                found.push(node);
            }
        }
        match (&mut found[..], at_path) {
            ([node], _) => Ok(std::mem::take(node)),
            ([], Ok(None)) => Ok(path.into()),
            ([], Ok(_)) => refused("is not the pool's device, which was not found"),
            ([], Err(_)) => refused("not found, and no other device is the pool's"),
            _ => refused(
                "is not the pool's device, and several others have its ids; have it lead to the right one",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[(&str, &str)]) -> DeviceIds {
        DeviceIds(ids.iter().map(|(kind, id)| ((*kind).to_owned(), (*id).to_owned())).collect())
    }

    #[test]
    fn one_id_in_common_is_enough() {
        let disk = ids(&[("serial", "1"), ("wwid", "a")]);
        assert_eq!(disk.is(&ids(&[("wwid", "a")])), Some(true));
        // Another kernel spells one of them otherwise.
        assert_eq!(disk.is(&ids(&[("serial", "1"), ("wwid", "b")])), Some(true));
        assert_eq!(disk.is(&ids(&[("serial", "2")])), Some(false));
        assert_eq!(disk.is(&ids(&[("dm-uuid", "1")])), None);
        assert_eq!(disk.is(&ids(&[])), None);
    }
}

/// What the two devices are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct KnownDevices {
    pub(in crate::tree) data: DeviceIds,
    pub(in crate::tree) metadata: DeviceIds,
}
