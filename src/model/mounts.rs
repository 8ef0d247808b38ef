//! Mounts: a list, as `/proc/self/mountinfo` tells it.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::file_tree::Kind;
use super::mount::{Mount, ROOT_DEVICE};
use super::world::World;
use crate::abi::mount::{MountFlags, UnmountFlags};
use crate::kernel::{DeviceNumber, Directory, MountId};

impl World {
    pub(super) fn mount(
        &mut self,
        source: Option<&Path>,
        target: &Path,
        filesystem: Option<&str>,
        flags: MountFlags,
        options: &str,
    ) -> Result<(), Errno> {
        let target = directory(target)?;
        let (source, filesystem) = match (source, filesystem) {
            (Some(source), Some(filesystem)) => (source, filesystem),
            // A change of propagation, which has no effect here.
            (None, None) => {
                let known = self.mounts.iter().any(|mount| mount.target == target);
                return if known { Ok(()) } else { Err(Errno::EINVAL) };
            }
            _ => return Err(Errno::EINVAL),
        };
        let number = self.block_device(source)?;
        match self.sectors(number) {
            None => return Err(Errno::ENXIO),
            Some(0) => return Err(Errno::EINVAL),
            Some(_) if self.is_in_table(number) || self.is_open_exclusively(number) => {
                return Err(Errno::EBUSY);
            }
            Some(_) => {}
        }
        if self.mounts.iter().any(|mount| mount.number == Some(number) && mount.target == target) {
            return Err(Errno::EBUSY);
        }
        if self.is_read_only(number) && !flags.contains(MountFlags::RDONLY) {
            return Err(Errno::EACCES);
        }
        self.load_filesystem(number, Kind::named(filesystem)?, options)?;
        let mount = Mount {
            id: self.next_mount,
            number: Some(number),
            source: source.to_owned(),
            target,
            filesystem: filesystem.to_owned(),
            flags,
            options: options.to_owned(),
            user: None,
        };
        self.next_mount += 1;
        self.mounts.push(mount);
        Ok(())
    }

    pub(super) fn unmount(&mut self, target: &Path, flags: UnmountFlags) -> Result<(), Errno> {
        let target = directory(target)?;
        let top = self.mounts.iter().rposition(|mount| mount.target == target).ok_or(Errno::EINVAL)?;
        let below = |mount: &Mount| mount.target != target && mount.target.starts_with(&target);
        if flags.contains(UnmountFlags::DETACH) {
            self.mounts.remove(top);
            self.mounts.retain(|mount| !below(mount));
        } else if self.mounts[top].user.is_some() || self.mounts.iter().any(below) {
            return Err(Errno::EBUSY);
        } else {
            self.mounts.remove(top);
        }
        self.drop_unmounted();
        self.released = true;
        Ok(())
    }

    /// The mount on top of a directory.
    pub(super) fn mounted_on(&self, path: &Path) -> Option<&Mount> {
        self.mounts.iter().rfind(|mount| mount.target == path)
    }

    /// A directory of the host, in the mount that is on it or above it here.
    pub(super) fn mounted(&self, directory: Directory) -> Directory {
        let mount = directory.path().ancestors().find_map(|path| self.mounted_on(path));
        let (id, number) = mount.map_or((1, None), |mount| (mount.id(), mount.number));
        let device = number.unwrap_or(ROOT_DEVICE);
        directory.with_mount(MountId { id, unique: Some(id), device })
    }

    pub(super) fn is_mounted_as(&self, device: DeviceNumber, filesystem: &str) -> bool {
        self.mounts.iter().any(|mount| mount.number == Some(device) && mount.filesystem == filesystem)
    }

    /// The text of mountinfo.
    pub(super) fn mount_table(&self) -> Vec<u8> {
        let mut table = String::new();
        for mount in &self.mounts {
            let number = mount.number.unwrap_or(ROOT_DEVICE);
            let access = if mount.flags.contains(MountFlags::RDONLY) { "ro" } else { "rw" };
            let words = [
                (MountFlags::NOSUID, ",nosuid"),
                (MountFlags::NODEV, ",nodev"),
                (MountFlags::NOEXEC, ",noexec"),
                (MountFlags::NOATIME, ",noatime"),
                (MountFlags::NODIRATIME, ",nodiratime"),
            ];
            let words: String =
                words.iter().filter(|(flag, _)| mount.flags.contains(*flag)).map(|(_, word)| *word).collect();
            let comma = if mount.options.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = writeln!(
                table,
                "{} {} {number} / {} {access}{words} - {} {} {access}{comma}{}",
                mount.id,
                u32::from(mount.id > 1),
                escape(&mount.target),
                mount.filesystem,
                escape(&mount.source),
                mount.options,
            );
        }
        table.into_bytes()
    }
}

/// The directory itself, links resolved: ENOENT, ENOTDIR.
fn directory(path: &Path) -> Result<PathBuf, Errno> {
    let path = std::fs::canonicalize(path).map_err(|_| Errno::ENOENT)?;
    if path.is_dir() { Ok(path) } else { Err(Errno::ENOTDIR) }
}

/// As the kernel writes a path there: blanks, line ends and backslashes in octal.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                ' ' | '\t' | '\n' | '\\' => {
                    // As above.
                    let _ = write!(text, "\\{:03o}", u32::from(char));
                }
                char => text.push(char),
            }
        }
        text.extend(chunk.invalid().iter().map(|_| '?'));
    }
    text
}
