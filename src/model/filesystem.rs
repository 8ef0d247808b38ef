//! File systems of the model: a superblock with kind, UUID and size where the real ones have them, and a few files.
//!
//! Changes are in memory as long as it is mounted. They are on the device after a sync, a suspend that freezes, and an
//! unmount.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::file_tree::{FILES, FILES_MAX, FileSystem, Kind, Node};
use super::io::Io;
use super::world::World;
use crate::abi::mount::MountFlags;
use crate::kernel::{DeviceNumber, Directory, Entry};
use crate::thin::metadata::format::BLOCK_SIZE;

/// Something in a mounted file system.
#[derive(Debug)]
pub(super) struct Inside {
    pub(super) number: DeviceNumber,
    /// From the root of the file system.
    pub(super) path: PathBuf,
    read_only: bool,
}

impl World {
    /// What is on a device; none if that is no file system.
    pub(super) fn read_filesystem(&mut self, number: DeviceNumber) -> Result<Option<FileSystem>, Errno> {
        let mut superblock = [0; BLOCK_SIZE];
        if self.sectors(number).unwrap_or(0) * 512 < FILES + 8 {
            return Ok(None);
        }
        self.transfer(number, 0, Io::Read(&mut superblock), 0)?;
        let Some(mut filesystem) = FileSystem::parse(&superblock) else { return Ok(None) };
        let mut len = [0; 8];
        self.transfer(number, FILES, Io::Read(&mut len), 0)?;
        let len = usize::try_from(u64::from_le_bytes(len)).map_err(|_| Errno::EUCLEAN)?;
        let mut files = vec![0; len.min(FILES_MAX)];
        self.transfer(number, FILES + 8, Io::Read(&mut files), 0)?;
        filesystem.nodes = serde_json::from_slice(&files).map_err(|_| Errno::EUCLEAN)?;
        Ok(Some(filesystem))
    }

    pub(super) fn write_filesystem(
        &mut self,
        number: DeviceNumber,
        filesystem: &FileSystem,
    ) -> Result<(), Errno> {
        self.transfer(number, 0, Io::Write(&filesystem.superblock()), 0)?;
        self.transfer(number, FILES, Io::Write(&filesystem.files()?), 0)?;
        self.flush(number, 0)
    }

    /// Reads what is to be mounted.
    pub(super) fn load_filesystem(
        &mut self,
        number: DeviceNumber,
        kind: Kind,
        options: &str,
    ) -> Result<(), Errno> {
        if self.filesystems.contains_key(&number) {
            return Ok(());
        }
        let found = self.read_filesystem(number)?.filter(|found| found.kind == kind).ok_or(Errno::EINVAL)?;
        let twin = self.filesystems.values().any(|other| other.kind == Kind::Xfs && other.uuid == found.uuid);
        let unchecked = options.split(',').any(|option| option == "nouuid");
        let fits = found.size <= self.sectors(number).unwrap_or(0) * 512;
        if (kind == Kind::Xfs && twin && !unchecked) || !fits {
            return Err(Errno::EINVAL);
        }
        self.filesystems.insert(number, found);
        Ok(())
    }

    /// Writes what a mounted file system has in memory.
    pub(super) fn write_back(&mut self, number: DeviceNumber) -> Result<(), Errno> {
        let Some(filesystem) = self.filesystems.get(&number).filter(|filesystem| filesystem.changed).cloned()
        else {
            return Ok(());
        };
        self.write_filesystem(number, &filesystem)?;
        if let Some(mounted) = self.filesystems.get_mut(&number) {
            mounted.changed = false;
        }
        Ok(())
    }

    /// Ends file systems that are mounted nowhere any more.
    pub(super) fn drop_unmounted(&mut self) {
        let unmounted: Vec<_> =
            self.filesystems.keys().copied().filter(|&number| !self.is_mounted(number)).collect();
        for number in unmounted {
            // As in a kernel: what cannot be written is lost, and unmounting succeeds.
            let _ = self.write_back(number);
            self.filesystems.remove(&number);
        }
    }

    /// Where a name in a directory is, if that is in a file system of the model.
    pub(super) fn inside(&self, above: &Directory, name: Option<&OsStr>) -> Option<Inside> {
        let mount = self.mounts.iter().find(|mount| mount.id() == above.mount().id)?;
        let path = above.path().strip_prefix(&mount.target).ok()?;
        let path = name.map_or_else(|| path.to_owned(), |name| path.join(name));
        let read_only = mount.flags().contains(MountFlags::RDONLY);
        Some(Inside { number: mount.number?, path, read_only })
    }

    fn filesystem(&mut self, inside: &Inside) -> Result<&mut FileSystem, Errno> {
        self.filesystems.get_mut(&inside.number).ok_or(Errno::EIO)
    }

    fn writable(&mut self, inside: &Inside) -> Result<&mut FileSystem, Errno> {
        if inside.read_only {
            return Err(Errno::EROFS);
        }
        let filesystem = self.filesystem(inside)?;
        filesystem.changed = true;
        Ok(filesystem)
    }

    pub(super) fn enter_inside(&mut self, above: &Directory, inside: &Inside) -> Result<Directory, Errno> {
        let filesystem = self.filesystem(inside)?;
        match filesystem.node(&inside.path)? {
            Node::Directory => {}
            Node::File(_) | Node::Symlink(_) => return Err(Errno::ENOTDIR),
        }
        // The root has 2, as in ext4.
        let inode = filesystem.nodes.range(..=inside.path.clone()).count() as u64 + 2;
        let name = inside.path.file_name().ok_or(Errno::ENOENT)?;
        Directory::simulated(above.path().join(name), inode, above.mount())
    }

    pub(super) fn entry_inside(&mut self, inside: &Inside) -> Result<Entry, Errno> {
        Ok(match self.filesystem(inside)?.node(&inside.path)? {
            Node::Directory => Entry::Directory,
            Node::File(_) => Entry::File,
            Node::Symlink(text) => Entry::Symlink(text.clone()),
        })
    }

    pub(super) fn make_inside(&mut self, inside: &Inside, node: Node) -> Result<(), Errno> {
        self.writable(inside)?.make(&inside.path, node)
    }

    pub(super) fn remove_inside(&mut self, inside: &Inside, directory: bool) -> Result<(), Errno> {
        self.writable(inside)?.remove(&inside.path, directory)
    }

    /// The file at a path of the host, below a mount.
    fn at(&self, path: &Path) -> Result<Inside, Errno> {
        let mounts = self.mounts.iter().rev().filter(|mount| mount.number.is_some());
        let mount = mounts.filter(|mount| path.starts_with(&mount.target)).max_by_key(|mount| {
            let depth = mount.target.components().count();
            (depth, mount.id())
        });
        let mount = mount.ok_or(Errno::ENOENT)?;
        let path = path.strip_prefix(&mount.target).map_err(|_| Errno::ENOENT)?.to_owned();
        let read_only = mount.flags().contains(MountFlags::RDONLY);
        Ok(Inside { number: mount.number.ok_or(Errno::ENOENT)?, path, read_only })
    }

    pub(super) fn write_file(&mut self, path: &Path, contents: &[u8]) -> Result<(), Errno> {
        let inside = self.at(path)?;
        let filesystem = self.writable(&inside)?;
        let old = match filesystem.nodes.get(&inside.path) {
            Some(Node::File(_)) => filesystem.nodes.remove(&inside.path),
            _ => None,
        };
        let made = filesystem.make(&inside.path, Node::File(contents.to_owned()));
        if let (Err(_), Some(old)) = (made, old) {
            filesystem.nodes.insert(inside.path, old);
        }
        made
    }

    pub(super) fn read_file(&mut self, path: &Path) -> Result<Vec<u8>, Errno> {
        let inside = self.at(path)?;
        match self.filesystem(&inside)?.node(&inside.path)? {
            Node::File(contents) => Ok(contents.clone()),
            Node::Directory => Err(Errno::EISDIR),
            Node::Symlink(_) => Err(Errno::ELOOP),
        }
    }
}
