//! Who keeps a device, a file system or a root in use: what to do about EBUSY.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::dm::DmName;
use crate::kernel::{DeviceNumber, Directory, Kernel, ProcessName};
use crate::tree::{Error, Result};
use crate::tree::{SnapshotTree, live::mount};

/// Somebody who keeps a device or a file system busy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Holder {
    /// A process has the device open.
    Process(ProcessName),
    /// A process has files of the file system open or mapped, or works in one of its directories.
    Files(ProcessName),
    /// It is mounted, or something is mounted below it.
    Mount {
        /// A process that sees the mount: the one of its mount namespace with the lowest id.
        process: ProcessName,
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
            Self::Process(process) => write!(f, "open in {process}"),
            Self::Files(process) => write!(f, "files open in {process}"),
            Self::Mount { process, target } => {
                write!(f, "mounted on {}, seen by {process}", target.display())
            }
            Self::Device { name } => write!(f, "used by device {name}"),
        }
    }
}

/// Holders in the text of an error: the first ones by name.
pub(crate) struct Listed<'a>(pub(crate) &'a [Holder]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED: usize = 4;
        if self.0.is_empty() {
            return f.write_str("in use by somebody whom /proc does not show");
        }
        for (n, holder) in self.0.iter().take(NAMED).enumerate() {
            write!(f, "{}{holder}", if n > 0 { "; " } else { "" })?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl SnapshotTree {
    /// Who has the device of a snapshot open, or files of the file system on it, as far as this process can see. All of
    /// `/proc` is read for it. [`Error::Busy`] and [`Error::MountInUse`] tell the same.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`].
    pub fn holders(&self, id: &str) -> Result<Vec<Holder>> {
        self.check_open()?;
        let id = self.get(id)?.id;
        let number = self.slots().get(&id).and_then(|slot| slot.view().device).map(|(_, number)| number);
        Ok(number.map(|number| of_device(&*self.options.kernel, number)).unwrap_or_default())
    }

    /// Adds to an error that a device is busy which snapshot's it is, and who has it open.
    pub(in crate::tree) fn with_holders(&self, id: Option<&str>, mut error: Error) -> Error {
        if let Error::Busy { snapshot, device, holders, .. } = &mut error
            && holders.is_empty()
        {
            *snapshot = id.map(str::to_owned);
            let name = DmName::new(device);
            let found = name.and_then(|name| self.pool.device_mapper().find((&name).into()));
            // Without an answer the error is as true as before.
            if let Ok(Some(status)) = found {
                *holders = of_device(&*self.options.kernel, status.number);
            }
        }
        error
    }
}

/// Who uses a device, or the file system on it.
pub(in crate::tree) fn of_device(kernel: &dyn Kernel, number: DeviceNumber) -> Vec<Holder> {
    let (mut holders, mut namespaces) = (Vec::new(), Vec::new());
    let mut pids = kernel.process_ids().unwrap_or_default();
    pids.sort_unstable();
    for pid in pids {
        // What goes meanwhile holds nothing.
        let Ok(info) = kernel.process_info(pid) else { continue };
        let process = ProcessName { pid, command: info.command };
        if info.files.iter().any(|file| file.device == Some(number)) {
            holders.push(Holder::Process(process.clone()));
        }
        if info.files.iter().any(|file| file.filesystem == number) {
            holders.push(Holder::Files(process.clone()));
        }
        let Some(namespace) = info.mount_namespace.filter(|it| !namespaces.contains(it)) else { continue };
        namespaces.push(namespace);
        let table = kernel.proc_text(&format!("{pid}/mountinfo")).unwrap_or_default();
        let lines = mount::parse_table(&table).into_iter().filter(|line| line.device == number);
        holders.extend(lines.map(|line| Holder::Mount { process: process.clone(), target: line.target }));
    }
    let above = kernel.device_holders(number).unwrap_or_default();
    holders.extend(above.iter().map(|name| Holder::Device { name: name.to_string_lossy().into_owned() }));
    holders.sort();
    holders
}

/// Who keeps the file system of a device from being unmounted from `target`.
pub(in crate::tree) fn of_mount(kernel: &dyn Kernel, number: DeviceNumber, target: &Path) -> Vec<Holder> {
    let mut holders = of_device(kernel, number);
    holders.retain(|holder| matches!(holder, Holder::Files(_)));
    // A number, for which no kernel is asked.
    let pid = std::process::id();
    let process =
        ProcessName { pid, command: kernel.process_info(pid).map(|info| info.command).unwrap_or_default() };
    let lines = mount::mounts(kernel).unwrap_or_default().into_iter();
    let below = lines.filter(|line| line.target != target && line.target.starts_with(target));
    holders.extend(below.map(|line| Holder::Mount { process: process.clone(), target: line.target }));
    holders
}

/// Who has a directory locked with flock(2).
pub(in crate::tree) fn of_lock(kernel: &dyn Kernel, directory: &Directory) -> Option<ProcessName> {
    let known = (directory.mount().device, directory.inode());
    let locks = kernel.proc_text("locks").ok()?;
    let locks = locks.split(|&byte| byte == b'\n').filter_map(flock);
    // Other file systems have the same inode numbers, and the process that took the lock may have died.
    locks.filter(|(_, inode)| *inode == known.1).find_map(|(pid, _)| {
        let info = kernel.process_info(pid).ok()?;
        let has_it = info.files.iter().any(|used| (used.filesystem, used.inode) == known);
        has_it.then_some(ProcessName { pid, command: info.command })
    })
}

/// Process and inode number of a line of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 4711 fe:01:131099 0 EOF`. A lock
/// that is waited for has an arrow in front.
fn flock(line: &[u8]) -> Option<(u32, u64)> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace().skip(1);
    words.next().filter(|kind| *kind == "FLOCK")?;
    let pid = words.nth(2)?.parse().ok()?;
    let inode = words.next()?.rsplit(':').next()?.parse().ok()?;
    Some((pid, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_as_text() {
        let process = ProcessName { pid: 233, command: "sleep".to_owned() };
        let mount = Holder::Mount { process: process.clone(), target: "/mnt".into() };
        let holders = [
            Holder::Process(process.clone()),
            Holder::Files(process),
            mount,
            Holder::Device { name: "dm-3".to_owned() },
            Holder::Device { name: "dm-4".to_owned() },
        ];
        let text = "open in sleep[233]; files open in sleep[233]; mounted on /mnt, seen by sleep[233]; \
                    used by device dm-3";
        assert_eq!(Listed(&holders[..4]).to_string(), text);
        assert_eq!(Listed(&holders).to_string(), format!("{text}; and 1 more"));
        assert_eq!(Listed(&[]).to_string(), "in use by somebody whom /proc does not show");
    }

    #[test]
    fn lines_of_locks() {
        assert_eq!(flock(b"1: FLOCK  ADVISORY  WRITE 4711 fe:01:131099 0 EOF"), Some((4711, 131_099)));
        assert_eq!(flock(b"2: POSIX  ADVISORY  WRITE 4711 fe:01:131099 0 EOF"), None);
        assert_eq!(flock(b"1: -> FLOCK  ADVISORY  WRITE 4712 fe:01:131099 0 EOF"), None);
        assert_eq!(flock(b"3: FLOCK  ADVISORY  WRITE -1 fe:01:131099 0 EOF"), None);
        assert_eq!(flock(b""), None);
    }
}
