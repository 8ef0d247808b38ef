//! What a check finds.

use std::fmt;

use super::super::error::Damage;
use super::super::space_map::SpaceMapKind;
use crate::thin::ThinId;
use crate::units::Blocks;

/// Findings that a report names.
const NAMED: usize = 1000;

/// Which structure of the metadata a block belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tree {
    /// The superblock.
    Superblock,
    /// The superblock of the metadata snapshot.
    MetadataSnapshot,
    /// Device id to mapping tree.
    Devices,
    /// The mapping tree of a device, the first one that leads to the block.
    Mappings(ThinId),
    /// The details of all devices.
    Details,
    /// The bitmaps of a space map, and their index.
    Bitmaps(SpaceMapKind),
    /// The reference counts above 2 of a space map.
    RefCounts(SpaceMapKind),
}

/// Something that is wrong with a pool's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A block cannot be used, nor what it leads to.
    Damaged {
        /// The structure that it belongs to.
        tree: Tree,
        /// The metadata block.
        block: u64,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Two structures lead to a block, or two levels of one.
    DoublyUsed {
        /// The structure that led to it last.
        tree: Tree,
        /// The metadata block.
        block: u64,
    },
    /// A device's details record another number of mapped blocks than its mapping tree has.
    MappedBlocks {
        /// The device.
        id: ThinId,
        /// In its details.
        recorded: Blocks,
        /// In its mapping tree.
        found: Blocks,
    },
    /// A device has details, but no mapping tree.
    NoMappings {
        /// The device.
        id: ThinId,
    },
    /// A device has a mapping tree, but no details.
    NoDetails {
        /// The device.
        id: ThinId,
    },
    /// A space map's count of a block is not the number of references to it.
    RefCount {
        /// The space map.
        map: SpaceMapKind,
        /// The data or metadata block.
        block: u64,
        /// In the space map.
        recorded: u32,
        /// References that were found.
        found: u32,
    },
    /// A count that is in the tree of counts above 2, and in the bitmap as well.
    StaleCount {
        /// The space map.
        map: SpaceMapKind,
        /// The data or metadata block.
        block: u64,
    },
    /// A space map promises more free blocks than its bitmaps have. (Fewer only cost space, and thin_restore 0.9 says
    /// one less.)
    Allocated {
        /// The space map.
        map: SpaceMapKind,
        /// In the superblock.
        recorded: Blocks,
        /// In the bitmaps.
        found: Blocks,
    },
    /// The index of a space map promises more free blocks than the bitmap has.
    FreeBlocks {
        /// The space map.
        map: SpaceMapKind,
        /// The bitmap's place in the index.
        bitmap: u64,
        /// In the index.
        recorded: u32,
        /// In the bitmap.
        found: u32,
    },
}

impl Finding {
    /// Returns whether it only costs space: a block that counts more references than there are. `thin_check` calls that
    /// non-fatal; a pool with such blocks can be used.
    pub fn is_leak(&self) -> bool {
        matches!(self, Self::RefCount { recorded, found, .. } if recorded > found)
    }
}

/// What [`check`](super::check) found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What is wrong, in the order in which it was found; the first 1,000.
    pub findings: Vec<Finding>,
    /// Findings that are not in `findings`.
    pub omitted: u64,
    /// Those of them that are leaks.
    pub omitted_leaks: u64,
    /// Whether reference counts were compared: they are where all trees can be read, and there are space maps.
    pub counts_compared: bool,
}

impl Report {
    pub(super) fn new() -> Self {
        Self { findings: Vec::new(), omitted: 0, omitted_leaks: 0, counts_compared: false }
    }

    pub(super) fn add(&mut self, finding: Finding) {
        if self.findings.len() < NAMED {
            self.findings.push(finding);
        } else {
            self.omitted += 1;
            self.omitted_leaks += u64::from(finding.is_leak());
        }
    }

    /// Returns whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// Returns whether the pool can be used: nothing is wrong but that some blocks are leaked.
    pub fn is_usable(&self) -> bool {
        self.omitted == self.omitted_leaks && self.findings.iter().all(Finding::is_leak)
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::MetadataSnapshot => f.write_str("superblock of the metadata snapshot"),
            Self::Devices => f.write_str("tree of devices"),
            Self::Mappings(id) => write!(f, "mapping tree of thin device {id}"),
            Self::Details => f.write_str("device details tree"),
            Self::Bitmaps(map) => write!(f, "bitmaps of the {map}"),
            Self::RefCounts(map) => write!(f, "reference counts of the {map}"),
        }
    }
}

impl fmt::Display for SpaceMapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data space map",
            Self::Metadata => "metadata space map",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Damaged { tree, block, damage } => write!(f, "metadata block {block} ({tree}): {damage}"),
            Self::DoublyUsed { tree, block } => {
                write!(f, "metadata block {block} ({tree}) is used for something else, too")
            }
            Self::MappedBlocks { id, recorded, found } => {
                write!(f, "thin device {id} maps {found} blocks, its details say {recorded}")
            }
            Self::NoMappings { id } => write!(f, "thin device {id} has details, but no mapping tree"),
            Self::NoDetails { id } => write!(f, "thin device {id} has a mapping tree, but no details"),
            Self::RefCount { map, block, recorded, found } if recorded > found => {
                write!(f, "block {block} is leaked: {found} references, the {map} has {recorded}")
            }
            Self::RefCount { map, block, recorded, found } => {
                write!(f, "block {block} has {found} references, the {map} has {recorded}")
            }
            Self::StaleCount { map, block } => {
                write!(f, "the {map} has a count above 2 for block {block} that its bitmap does not refer to")
            }
            Self::Allocated { map, recorded, found } => {
                write!(f, "{found} blocks of the {map} are in use, the superblock says {recorded}")
            }
            Self::FreeBlocks { map, bitmap, recorded, found } => {
                write!(
                    f,
                    "{found} blocks are free in bitmap {bitmap} of the {map}, its index says {recorded}"
                )
            }
        }
    }
}
