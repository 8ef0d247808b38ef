//! Who has a snapshot's device open: what to do about EBUSY.

use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde::Serialize;

use super::{SnapshotTree, mount};
use crate::Result;
use crate::kernel::DeviceNumber;

/// Somebody who keeps a device busy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Holder {
    /// A process has the device open.
    Process {
        /// Its id.
        pid: u32,
        /// Its command.
        command: String,
    },
    /// It is mounted, as this process sees it: possibly in a mount namespace of its own.
    Mount {
        /// The process.
        pid: u32,
        /// Its command.
        command: String,
        /// Where.
        target: PathBuf,
    },
    /// Another block device stands on it.
    Device {
        /// The kernel's name of that device.
        name: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, command } => write!(f, "process {pid} ({command}) has it open"),
            Self::Mount { pid, command, target } => {
                write!(f, "mounted on {}, as process {pid} ({command}) sees it", target.display())
            }
            Self::Device { name } => write!(f, "device {name} stands on it"),
        }
    }
}

impl SnapshotTree {
    /// Who has the device of a snapshot open, as far as this process can see: for a message about
    /// [`Error::Busy`](crate::Error::Busy). All of `/proc` is read for it. Of a mount that many processes see, the
    /// one with the lowest id is named. Who has files open below the mount is not looked for (`fuser -m` does).
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`](crate::Error::UnknownSnapshot).
    pub fn holders(&self, id: &str) -> Result<Vec<Holder>> {
        self.check_open()?;
        let id = self.get(id)?.id;
        let number = self.slots().get(&id).and_then(|slot| slot.view().device).map(|(_, number)| number);
        let mut holders = number.map(holders).unwrap_or_default();
        holders.sort();
        Ok(holders)
    }
}

fn holders(number: DeviceNumber) -> Vec<Holder> {
    let mut holders = Vec::new();
    let mut namespaces = Vec::new();
    let mut pids: Vec<u32> =
        names(Path::new("/proc")).filter_map(|name| name.to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    // What goes meanwhile holds nothing.
    for pid in pids {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let command = fs::read_to_string(proc.join("comm")).unwrap_or_default().trim_end().to_owned();
        let fds = proc.join("fd");
        if names(&fds).any(|fd| is_device(&fds.join(fd), number)) {
            holders.push(Holder::Process { pid, command: command.clone() });
        }
        let Ok(namespace) = fs::read_link(proc.join("ns/mnt")) else { continue };
        if namespaces.contains(&namespace) {
            continue;
        }
        namespaces.push(namespace);
        let table = fs::read(proc.join("mountinfo")).unwrap_or_default();
        for line in mount::parse_table(&table).into_iter().filter(|line| line.device == number) {
            holders.push(Holder::Mount { pid, command: command.clone(), target: line.target });
        }
    }
    let above = names(Path::new(&format!("/sys/dev/block/{number}/holders")))
        .map(|name| Holder::Device { name: name.to_string_lossy().into_owned() })
        .collect::<Vec<_>>();
    holders.extend(above);
    holders
}

fn names(directory: &Path) -> impl Iterator<Item = OsString> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.file_name()))
}

fn is_device(path: &Path, number: DeviceNumber) -> bool {
    fs::metadata(path).is_ok_and(|metadata| {
        #[allow(clippy::useless_conversion)] // the types differ between architectures
        let device = metadata.rdev().try_into().map(DeviceNumber::from_dev_t);
        metadata.file_type().is_block_device() && device.is_ok_and(|device| device == number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_text() {
        let command = "sleep".to_owned();
        let holder = Holder::Process { pid: 7, command: command.clone() };
        assert_eq!(holder.to_string(), "process 7 (sleep) has it open");
        let holder = Holder::Mount { pid: 7, command, target: "/mnt".into() };
        assert_eq!(holder.to_string(), "mounted on /mnt, as process 7 (sleep) sees it");
        let holder = Holder::Device { name: "dm-3".into() };
        assert_eq!(holder.to_string(), "device dm-3 stands on it");
    }
}
