//! Whether the metadata of a pool is sound: its trees, its details and its space maps.

mod compare;
mod report;
mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use report::{Finding, Report, Tree};

use self::compare::Comparison;
use self::walk::{NO_NODE, Walker};
use super::btree::Subtree;
use super::counts::Counts;
use super::details::{DETAILS_SIZE, device_id};
use super::error::{Damage, MetadataError};
use super::format::THIN_SUPERBLOCK_LOCATION;
use super::mapping::unpack;
use super::node::Node;
use super::space_map::{INDEX_ENTRY_SIZE, REF_COUNT_SIZE, SpaceMapKind};
use super::usage::WINDOW;
use super::{BlockSource, Metadata, Superblock};
use crate::thin::ThinId;
use crate::units::Blocks;

/// Checks the metadata of a pool that is not active, as [`Metadata::check`] does. A damaged superblock is a finding,
/// too.
///
/// # Errors
/// [`MetadataError::NotFormatted`] if the superblock is zeroes; [`MetadataError::Io`].
pub fn check(source: Arc<dyn BlockSource>) -> Result<Report, MetadataError> {
    match Metadata::open(source) {
        Ok(metadata) => metadata.check(),
        Err(MetadataError::Damaged { block, damage }) => {
            let mut report = Report::new();
            report.add(Finding::Damaged { tree: Tree::Superblock, block, damage });
            Ok(report)
        }
        Err(error) => Err(error),
    }
}

impl Metadata {
    /// Checks the structure of all trees, the details against the mapping trees, and, if this is not a metadata
    /// snapshot, both space maps against the references that there are. Reads all metadata blocks in use.
    ///
    /// # Errors
    /// [`MetadataError::Io`]; damage is a finding.
    pub fn check(&self) -> Result<Report, MetadataError> {
        let mut check = Check {
            metadata: self,
            walker: Walker::new(&self.reader),
            data: Counts::new(0, WINDOW.min(self.data_blocks)),
        };
        check.walker.refer(Tree::Superblock, NO_NODE, THIN_SUPERBLOCK_LOCATION);
        check.trees(THIN_SUPERBLOCK_LOCATION, &self.superblock)?;
        check.metadata_snapshot()?;
        check.space_map_blocks()?;
        check.space_maps()?;
        Ok(check.walker.report)
    }
}

struct Check<'a> {
    metadata: &'a Metadata,
    walker: Walker<'a>,
    /// Leaves that name each data block, of the first [`WINDOW`] of them.
    data: Counts,
}

impl Check<'_> {
    /// The trees of devices, of their details and of their mappings.
    fn trees(&mut self, parent: u64, superblock: &Superblock) -> Result<(), MetadataError> {
        let (top, details) = (superblock.mapping_root, superblock.details_root);
        // A leaf that the metadata snapshot shares refers to its mapping trees once.
        let mut referred = Vec::new();
        let mut on_leaf = |leaf: &Node| {
            referred.extend((0..leaf.len()).map(|index| (leaf.key(index), leaf.value_u64(index))));
            Ok(())
        };
        let sound = self.walker.tree(Tree::Devices, parent, top, 8, &mut on_leaf)?;
        let roots = sound.map(|_| self.metadata.mapping_roots(top)).transpose();
        let roots = self.walker.note(Tree::Devices, roots)?.flatten();
        let sound = self.walker.tree(Tree::Details, parent, details, DETAILS_SIZE, &mut |_| Ok(()))?;
        let devices = sound.map(|_| self.metadata.devices_in(details)).transpose();
        let devices = self.walker.note(Tree::Details, devices)?.flatten();
        let mapped = devices.map(|devices| devices.into_iter().map(|device| (device.id, device.mapped)));
        let mut mapped: Option<BTreeMap<ThinId, Blocks>> = mapped.map(Iterator::collect);
        for (key, root) in referred {
            // Another key was a finding above.
            let Ok(id) = device_id(key) else { continue };
            let (data, blocks) = (&mut self.data, self.metadata.data_blocks);
            let mut on_leaf = |leaf: &Node| count(leaf, data, blocks);
            self.walker.tree(Tree::Mappings(id), top, root, 8, &mut on_leaf)?;
        }
        // Without the tree of devices none is known to have no mappings.
        let Some(roots) = roots else { return Ok(()) };
        for (id, root) in roots {
            let Some(mapped) = &mut mapped else { break };
            match (mapped.remove(&id), self.walker.entries(root).map(Blocks)) {
                (None, _) => self.walker.report.add(Finding::NoDetails { id }),
                (Some(recorded), Some(found)) if recorded != found => {
                    self.walker.report.add(Finding::MappedBlocks { id, recorded, found });
                }
                _ => {}
            }
        }
        for id in mapped.into_iter().flatten().map(|(id, _)| id) {
            self.walker.report.add(Finding::NoMappings { id });
        }
        Ok(())
    }

    fn metadata_snapshot(&mut self) -> Result<(), MetadataError> {
        let reader = &self.metadata.reader;
        let Some(root) = self.metadata.superblock.held_root else { return Ok(()) };
        let tree = Tree::MetadataSnapshot;
        let inside = reader.check_child(THIN_SUPERBLOCK_LOCATION, root);
        if self.walker.note(tree, inside)?.is_none() || !self.walker.refer(tree, NO_NODE, root) {
            return Ok(());
        }
        let superblock = reader.superblock(root).and_then(|superblock| {
            let damage = Damage::Magic { found: 0 };
            superblock.ok_or(MetadataError::Damaged { block: root, damage })
        });
        match self.walker.note(tree, superblock)? {
            Some(superblock) => self.trees(root, &superblock),
            None => Ok(()),
        }
    }

    /// The blocks that the space maps are in.
    fn space_map_blocks(&mut self) -> Result<(), MetadataError> {
        for kind in [SpaceMapKind::Data, SpaceMapKind::Metadata] {
            let Some(map) = self.metadata.space_map(kind) else { continue };
            let (bitmaps, counts) = (Tree::Bitmaps(kind), Tree::RefCounts(kind));
            match kind {
                SpaceMapKind::Data => {
                    self.walker.tree(bitmaps, 0, map.root.bitmap_root, INDEX_ENTRY_SIZE, &mut |_| Ok(()))?;
                }
                SpaceMapKind::Metadata => {
                    self.walker.refer(bitmaps, NO_NODE, map.root.bitmap_root);
                }
            }
            self.walker.tree(counts, 0, map.root.ref_count_root, REF_COUNT_SIZE, &mut |_| Ok(()))?;
            let index = map.entries();
            for entry in self.walker.note(bitmaps, index)?.unwrap_or_default() {
                let bitmap = map.bitmap(&entry);
                if self.walker.note(bitmaps, bitmap)?.is_some() {
                    self.walker.refer(bitmaps, NO_NODE, entry.blocknr.get());
                }
            }
        }
        Ok(())
    }

    fn space_maps(&mut self) -> Result<(), MetadataError> {
        // Of what cannot be read the references are missing.
        if self.walker.damaged {
            return Ok(());
        }
        let compared = self.compare_data();
        self.walker.note(Tree::Bitmaps(SpaceMapKind::Data), compared)?;
        let compared = self.compare_metadata();
        self.walker.note(Tree::Bitmaps(SpaceMapKind::Metadata), compared)?;
        Ok(())
    }

    fn compare_data(&mut self) -> Result<(), MetadataError> {
        let (metadata, kind) = (self.metadata, SpaceMapKind::Data);
        let Some(map) = metadata.space_map(kind) else { return Ok(()) };
        let mut comparison = Comparison::new(&metadata.reader, map, kind)?;
        let (mut first, blocks) = (0, metadata.data_blocks);
        while first < blocks {
            if first > 0 {
                self.data = Counts::new(first, WINDOW.min(blocks - first));
                // Their keys were compared with their parents' when they were counted.
                metadata.each_data_block(self.walker.mapping_leaves().map(Subtree::root), |_, data| {
                    self.data.add(data);
                    Ok(())
                })?;
            }
            comparison.run(&mut self.walker.report, &self.data, first, first + WINDOW)?;
            first += WINDOW;
        }
        comparison.finish(&mut self.walker.report)
    }

    fn compare_metadata(&mut self) -> Result<(), MetadataError> {
        let (metadata, kind) = (self.metadata, SpaceMapKind::Metadata);
        let Some(map) = metadata.space_map(kind) else { return Ok(()) };
        let mut comparison = Comparison::new(&metadata.reader, map, kind)?;
        comparison.run(&mut self.walker.report, &self.walker.counts, 0, u64::MAX)?;
        self.walker.report.counts_compared = true;
        comparison.beyond_the_end(&mut self.walker.report, &self.walker.counts, metadata.reader.len());
        comparison.finish(&mut self.walker.report)
    }
}

/// Counts the data blocks that a leaf names.
fn count(leaf: &Node, counts: &mut Counts, blocks: u64) -> Result<(), Damage> {
    let mut outside = None;
    for index in 0..leaf.len() {
        let (data, _) = unpack(leaf.value_u64(index));
        counts.add(data);
        outside = outside.or(Some(data).filter(|data| *data >= blocks));
    }
    outside.map_or(Ok(()), |data| Err(Damage::DataBlock { data, blocks }))
}
