//! A file system of the model: its superblock, and named files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::thin::metadata::format::BLOCK_SIZE;

/// The files' bytes begin here, after their length.
pub(super) const FILES: u64 = BLOCK;

/// A file system has no more room than that.
pub(super) const FILES_MAX: usize = 1 << 20;

pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;

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
    pub(super) nodes: BTreeMap<PathBuf, Node>,
    /// Since it was read or written.
    pub(super) changed: bool,
}

impl FileSystem {
    pub(super) fn new(kind: Kind, uuid: Uuid, size: u64) -> Self {
        Self { kind, uuid, size, nodes: BTreeMap::new(), changed: false }
    }

    pub(super) fn superblock(&self) -> [u8; BLOCK_SIZE] {
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
    pub(super) fn parse(bytes: &[u8; BLOCK_SIZE]) -> Option<Self> {
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
    pub(super) fn files(&self) -> Result<Vec<u8>, Errno> {
        let bytes = serde_json::to_vec(&self.nodes).map_err(|_| Errno::EILSEQ)?;
        let room = self.size.saturating_sub(FILES + 8);
        if bytes.len() > FILES_MAX || bytes.len() as u64 > room {
            return Err(Errno::ENOSPC);
        }
        Ok([&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat())
    }

    pub(super) fn node(&self, path: &Path) -> Result<&Node, Errno> {
        self.nodes.get(path).ok_or(Errno::ENOENT)
    }

    pub(super) fn make(&mut self, path: &Path, node: Node) -> Result<(), Errno> {
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

    pub(super) fn remove(&mut self, path: &Path, directory: bool) -> Result<(), Errno> {
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
