//! File systems of the model: a superblock with kind, UUID and size where the real ones have them, and a few files.
//!
//! Changes are in memory as long as it is mounted. They are on the device after a sync, a suspend that freezes, and an
//! unmount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::io::Io;
use super::world::World;
use crate::abi::mount::MountFlags;
use crate::kernel::{DeviceNumber, Directory, Entry};
use crate::thin::metadata::format::BLOCK_SIZE;

/// The files' bytes begin here, after their length.
const FILES: u64 = BLOCK;
/// A file system has no more room than that.
const FILES_MAX: usize = 1 << 20;
const BLOCK: u64 = BLOCK_SIZE as u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// ENODEV for one that this kernel does not know.
    pub(super) fn named(name: &str) -> Result<Self, Errno> {
        match name {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            _ => Err(Errno::ENODEV),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Node {
    Directory,
    File(Vec<u8>),
    Symlink(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileSystem {
    pub(super) kind: Kind,
    pub(super) uuid: Uuid,
    /// In bytes.
    pub(super) size: u64,
    /// By their paths from its root.
    nodes: BTreeMap<PathBuf, Node>,
    /// Since it was read or written.
    changed: bool,
}

impl FileSystem {
    pub(super) fn new(kind: Kind, uuid: Uuid, size: u64) -> Self {
        Self { kind, uuid, size, nodes: BTreeMap::new(), changed: false }
    }

    fn superblock(&self) -> [u8; BLOCK_SIZE] {
        let mut bytes = [0; BLOCK_SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let blocks = self.size / BLOCK;
        match self.kind {
            // struct ext4_super_block at 1024: s_blocks_count_lo 4, s_log_block_size 24, s_magic 56, s_uuid 104,
            // s_blocks_count_hi 336.
            Kind::Ext4 => {
                let count = blocks.to_le_bytes();
                put(1024 + 4, &count[..4]);
                put(1024 + 24, &2u32.to_le_bytes());
                put(1024 + 56, &[0x53, 0xef]);
                put(1024 + 104, self.uuid.as_bytes());
                put(1024 + 336, &count[4..]);
            }
            // struct xfs_dsb: sb_magicnum 0, sb_blocksize 4, sb_dblocks 8, sb_uuid 32.
            Kind::Xfs => {
                put(0, b"XFSB");
                put(4, &4096u32.to_be_bytes());
                put(8, &blocks.to_be_bytes());
                put(32, self.uuid.as_bytes());
            }
        }
        bytes
    }

    /// Kind, UUID and size.
    fn parse(bytes: &[u8; BLOCK_SIZE]) -> Option<Self> {
        let uuid = |at: usize| Uuid::from_slice(&bytes[at..at + 16]).ok();
        if bytes.starts_with(b"XFSB") {
            let blocks = u64::from_be_bytes(bytes[8..16].try_into().ok()?);
            return Some(Self::new(Kind::Xfs, uuid(32)?, blocks * BLOCK));
        }
        let half = |at: usize| Some(u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?)));
        let blocks = half(1024 + 4)? | half(1024 + 336)? << 32;
        bytes[1080..].starts_with(&[0x53, 0xef]).then_some(())?;
        Some(Self::new(Kind::Ext4, uuid(1024 + 104)?, blocks * BLOCK))
    }

    /// The bytes of the files, after their length. ENOSPC if they do not fit, EILSEQ for a path that is no text.
    fn files(&self) -> Result<Vec<u8>, Errno> {
        let bytes = serde_json::to_vec(&self.nodes).map_err(|_| Errno::EILSEQ)?;
        let room = self.size.saturating_sub(FILES + 8);
        if bytes.len() > FILES_MAX || bytes.len() as u64 > room {
            return Err(Errno::ENOSPC);
        }
        Ok([&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat())
    }

    fn node(&self, path: &Path) -> Result<&Node, Errno> {
        self.nodes.get(path).ok_or(Errno::ENOENT)
    }

    fn make(&mut self, path: &Path, node: Node) -> Result<(), Errno> {
        match path.parent() {
            Some(above) if !above.as_os_str().is_empty() && self.node(above)? != &Node::Directory => {
                return Err(Errno::ENOTDIR);
            }
            _ => {}
        }
        if self.nodes.contains_key(path) {
            return Err(Errno::EEXIST);
        }
        self.nodes.insert(path.to_owned(), node);
        self.files().map(drop).inspect_err(|_| drop(self.nodes.remove(path)))
    }

    fn remove(&mut self, path: &Path, directory: bool) -> Result<(), Errno> {
        match (self.node(path)?, directory) {
            (Node::Directory, false) => return Err(Errno::EISDIR),
            (Node::Directory, true) if self.nodes.keys().any(|other| other.parent() == Some(path)) => {
                return Err(Errno::ENOTEMPTY);
            }
            (Node::Directory, true) | (_, false) => {}
            (_, true) => return Err(Errno::ENOTDIR),
        }
        self.nodes.remove(path);
        Ok(())
    }
}

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
