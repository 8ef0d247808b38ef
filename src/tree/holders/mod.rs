//! Finds the holders of a device, a file system or a root, through `/proc` and `/sys`.

pub(in crate::tree) mod holder;

use std::path::Path;

use crate::kernel::{DeviceNumber, Directory, Kernel, ProcessName};
use crate::tree::holders::holder::Holder;
use crate::tree::mount_table;

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
        let lines = mount_table::parse_table(&table).into_iter().filter(|line| line.device == number);
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
    let lines = mount_table::mounts(kernel).unwrap_or_default().into_iter();
    let below = lines.filter(|line| line.target != target && line.target.starts_with(target));
    holders.extend(below.map(|line| Holder::Mount { process: process.clone(), target: line.target }));
    holders
}

/// The process that holds a directory's flock(2).
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
    use crate::tree::holders::holder::Listed;

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
        assert_eq!(Listed(&[]).to_string(), "in use, by a process that /proc does not show");
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
