//! Processes, as `/proc` shows them: who keeps a device, a file system or a lock.

use std::fmt;
use std::fs::{self, read_dir};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
#[cfg(feature = "serde")]
use serde::Serialize;

use super::DeviceNumber;
use super::error::errno;

/// What a process is called in a message: `sleep[233]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct ProcessName {
    /// Its id.
    pub pid: u32,
    /// Its command, of which the kernel keeps 15 bytes.
    pub command: String,
}

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.command, self.pid)
    }
}

/// What `/proc` shows of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its command.
    pub command: String,
    /// The inode number of its mount namespace; `None` if it cannot be seen.
    pub mount_namespace: Option<u64>,
    /// The files that it has open or mapped, its working and its root directory: as many as can be seen.
    pub files: Vec<UsedFile>,
}

/// A file that a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UsedFile {
    /// The device of the file system that it is in.
    pub filesystem: DeviceNumber,
    /// Its inode number there.
    pub inode: u64,
    /// The device that it is, if it is a block device's node.
    pub device: Option<DeviceNumber>,
}

pub(super) fn ids() -> Result<Vec<u32>, Errno> {
    let entries = read_dir("/proc").map_err(errno)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

pub(super) fn info(pid: u32) -> Result<ProcessInfo, Errno> {
    let proc = Path::new("/proc").join(pid.to_string());
    let command = fs::read(proc.join("comm")).map_err(errno)?;
    // What this process may not see, and what goes meanwhile, is left out.
    let open = read_dir(proc.join("fd")).into_iter().flatten();
    let open = open.filter_map(|entry| used(&entry.ok()?.path()));
    let directories = ["cwd", "root"].into_iter().filter_map(|name| used(&proc.join(name)));
    let maps = fs::read(proc.join("maps")).unwrap_or_default();
    let mapped = maps.split(|&byte| byte == b'\n').filter_map(mapped);
    Ok(ProcessInfo {
        command: String::from_utf8_lossy(command.trim_ascii_end()).into_owned(),
        mount_namespace: fs::metadata(proc.join("ns/mnt")).ok().map(|namespace| namespace.ino()),
        files: open.chain(directories).chain(mapped).collect(),
    })
}

/// The file behind a link in `/proc/<pid>`. Neither its driver nor its file system is asked for anything: that could
/// wait for a server that does not answer.
fn used(link: &Path) -> Option<UsedFile> {
    let file = open(link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let stat = crate::sys::cached_stat(file.as_fd())?;
    let number = |(major, minor)| DeviceNumber { major, minor };
    let device = (stat.mode & libc::S_IFMT == libc::S_IFBLK).then_some(number(stat.device));
    Some(UsedFile { filesystem: number(stat.filesystem), inode: stat.inode, device })
}

/// A line of `maps`: `5581c2a00000-5581c2a05000 r-xp 00002000 fe:01 131099   /usr/bin/sleep`.
fn mapped(line: &[u8]) -> Option<UsedFile> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace().skip(3);
    let (major, minor) = words.next()?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let filesystem = DeviceNumber { major: number(major)?, minor: number(minor)? };
    let inode = words.next()?.parse().ok().filter(|inode| *inode > 0)?;
    Some(UsedFile { filesystem, inode, device: None })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_mapped_file() {
        let file = |major, minor, inode| {
            Some(UsedFile { filesystem: DeviceNumber { major, minor }, inode, device: None })
        };
        let line = b"5581c2a00000-5581c2a05000 r-xp 00002000 fe:01 131099   /usr/bin/a file";
        assert_eq!(mapped(line), file(254, 1, 131_099));
        assert_eq!(mapped(b"7ffd5b5e0000-7ffd5b601000 rw-p 00000000 00:00 0   [stack]"), None);
        assert_eq!(mapped(b""), None);
    }

    #[test]
    fn the_files_of_this_process_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile_in(directory.path()).unwrap();
        let (pid, inode) = (std::process::id(), file.metadata().unwrap().ino());
        assert!(ids().unwrap().contains(&pid));
        let uses = |inode: u64| info(pid).unwrap().files.iter().any(|file| file.inode == inode);
        assert!(uses(inode));
        drop(file);
        assert!(!uses(inode));
        let this = fs::metadata(std::env::current_exe().unwrap()).unwrap();
        assert!(uses(this.ino()), "mapped");
        assert!(uses(fs::metadata(".").unwrap().ino()), "working directory");
        assert!(info(pid).unwrap().mount_namespace.is_some());
        assert!(!info(pid).unwrap().command.is_empty());
        assert_eq!(info(u32::MAX).unwrap_err(), Errno::ENOENT);
    }
}
