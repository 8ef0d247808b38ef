//! Which devices share a data block.

use std::collections::HashMap;

use super::Metadata;
use super::btree::{DEPTH_MAX, Subtree};
use super::error::{Damage, MetadataError};
use super::mapping::unpack;
use crate::thin::ThinId;

impl Metadata {
    /// Returns the devices that map the same data block as the device `id` does at `virtual_block`, itself included, in
    /// the order of their ids; none if it is not mapped. Looks at that virtual block only: snapshots share data
    /// blocks there and nowhere else. Takes the path to that block in each device, and a shared node once.
    ///
    /// # Errors
    /// [`MetadataError::NoDevice`], [`MetadataError::Io`], [`MetadataError::Damaged`].
    pub fn sharers(&self, id: ThinId, virtual_block: u64) -> Result<Vec<ThinId>, MetadataError> {
        let mut known = HashMap::new();
        let wanted = self.data_block(self.mapping_root(id)?, virtual_block, &mut known)?;
        let Some(wanted) = wanted else { return Ok(Vec::new()) };
        let mut sharers = Vec::new();
        for (other, root) in self.mapping_roots(self.superblock.mapping_root)? {
            self.reader.check_child(self.superblock.mapping_root, root)?;
            if self.data_block(root, virtual_block, &mut known)? == Some(wanted) {
                sharers.push(other);
            }
        }
        Ok(sharers)
    }

    /// The data block of a virtual block. `known` has what was found below nodes that were visited before.
    fn data_block(
        &self,
        root: u64,
        virtual_block: u64,
        known: &mut HashMap<u64, Option<u64>>,
    ) -> Result<Option<u64>, MetadataError> {
        let (mut subtree, mut path) = (Subtree::root(root), Vec::new());
        let found = loop {
            if let Some(found) = known.get(&subtree.block) {
                break *found;
            }
            if path.len() == DEPTH_MAX {
                return Err(MetadataError::Damaged { block: root, damage: Damage::Depth });
            }
            path.push(subtree.block);
            let (node, below) = subtree.step(&self.reader, virtual_block, 8)?;
            match below {
                Some(below) => subtree = below,
                None => {
                    let value = node.find(virtual_block).and_then(|value| value.try_into().ok());
                    break value.map(|value| unpack(u64::from_le_bytes(value)).0);
                }
            }
        };
        known.extend(path.into_iter().map(|block| (block, found)));
        Ok(found)
    }
}
