//! Devices into a snapshot tree of dm-thin's.

use std::collections::{BTreeMap, BTreeSet};

use dm_thin::thin::metadata::{ChangeKind, Mapping};
use dm_thin::tree::{AddOptions, Filesystem, Labels, Parent, SnapshotTree, SnapshotWriter};
use dm_thin::units::Bytes;
use serde::Serialize;

use crate::export::Readable;
use crate::{Device, DeviceName, DeviceState, Error, Result, Store};

/// What became of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Adopted {
    /// It was copied.
    Copied {
        /// How much was written: what is mapped, not zero, and not as in the parent.
        written: Bytes,
    },
    /// The tree had it already.
    Present,
    /// It was left out, because it is not [`DeviceState::Ok`].
    Skipped,
    /// It was left out, because the pool's metadata or data is damaged there.
    Unreadable {
        /// Why.
        reason: String,
    },
}

impl Store {
    /// Copies all devices of [`DeviceState::Ok`] into a tree, parents first, and tells `each` what became of them. A child
    /// becomes a snapshot of its parent, into which only the blocks are written that Docker's pool does not share between
    /// the two. The base device, layers and init layers are sealed. Nothing is written to Docker's directory.
    ///
    /// A snapshot has the hash of its device for an id; the base device is `docker-base`. Its labels are `docker/device`,
    /// `docker/kind` (`base`, `layer`, `container`, `device`), `docker/id` of the image or container, and `docker/name`: the
    /// container's name, or the image's first tag. A snapshot that has the id and label already is left as it is, so an
    /// adoption that failed can be repeated.
    ///
    /// # Errors
    /// Before anything is written: [`Error::NoPool`]; [`Error::OtherFilesystem`] if the tree could not mount a device;
    /// [`Error::NotZeroed`]. After that those of [`export_raw`](Self::export_raw), and [`Error::Tree`]: the snapshots of
    /// earlier calls of `each` stay, and nothing of the one that failed.
    pub fn adopt(&self, tree: &SnapshotTree, mut each: impl FnMut(&Device, &Adopted)) -> Result<()> {
        if tree.pool().table().map_err(dm_thin::tree::Error::from)?.0.features.skip_block_zeroing {
            return Err(Error::NotZeroed { pool: tree.pool().name().to_string() });
        }
        let (mut readable, mut left_out) = (BTreeMap::new(), Vec::new());
        for device in self.devices() {
            match self.readable(device) {
                _ if device.state != DeviceState::Ok => left_out.push((device, Adopted::Skipped)),
                Ok(source) => drop(readable.insert(&device.name, source)),
                Err(error @ Error::NoPool { .. }) => return Err(error),
                Err(error) => left_out.push((device, Adopted::Unreadable { reason: error.to_string() })),
            }
        }
        let expected = match tree.status()?.filesystem {
            Filesystem::Ext4 => Some("ext4"),
            Filesystem::Xfs => Some("xfs"),
            _ => None,
        };
        for (name, source) in &readable {
            let found = source.pool.filesystem(source.id).ok().flatten().map(|filesystem| filesystem.kind);
            if let (Some(expected), Some(found)) = (expected, found)
                && expected != found
            {
                return Err(Error::OtherFilesystem { device: (*name).clone(), found, expected });
            }
        }
        left_out.iter().for_each(|(device, adopted)| each(device, adopted));
        let mut done = BTreeSet::new();
        for name in readable.keys() {
            // Itself and its ancestors, the highest last.
            let mut line = vec![*name];
            while let Some(parent) = line.last().and_then(|name| self.parent(name, &readable)) {
                line.push(parent);
            }
            for name in line.into_iter().rev() {
                if done.insert(name) {
                    let parent = self.parent(name, &readable).and_then(|parent| readable.get(parent));
                    let adopted = self.adopt_one(tree, &readable[name], parent)?;
                    each(readable[name].device, &adopted);
                }
            }
        }
        Ok(())
    }

    /// The nearest ancestor that can be adopted, and whose snapshot the device can be.
    fn parent<'a>(
        &'a self,
        name: &DeviceName,
        readable: &BTreeMap<&'a DeviceName, Readable<'_>>,
    ) -> Option<&'a DeviceName> {
        let size = readable.get(name)?.size;
        let parent_of = |name: &DeviceName| self.devices.get(name)?.parent.as_ref();
        let mut ancestors = std::iter::successors(parent_of(name), |name| parent_of(name));
        let found = ancestors.find_map(|ancestor| readable.get_key_value(ancestor))?;
        (found.1.size <= size).then_some(*found.0)
    }

    fn adopt_one(
        &self,
        tree: &SnapshotTree,
        source: &Readable<'_>,
        parent: Option<&Readable<'_>>,
    ) -> Result<Adopted> {
        let name = &source.device.name;
        let (id, text) = (snapshot_id(name), name.to_string());
        if tree.get(&id).is_ok_and(|found| found.labels.get("docker/device") == Some(&text)) {
            return Ok(Adopted::Present);
        }
        let (labels, is_final) = self.labels(name)?;
        let size = Bytes(source.size.next_multiple_of(4096));
        let options = AddOptions::new().size(size).labels(labels);
        let parent_id = parent.map(|parent| snapshot_id(&parent.device.name));
        let writer = tree.create(&id, parent_id.as_deref().map(Parent::Snapshot), &options)?;
        let written = source.write_changes(parent, &writer)?;
        if is_final {
            writer.commit_sealed()?;
        } else {
            writer.commit()?;
        }
        Ok(Adopted::Copied { written })
    }

    /// The labels of a device, and whether nothing writes to it any more.
    fn labels(&self, name: &DeviceName) -> Result<(Labels, bool)> {
        let has = |device: &Option<DeviceName>| device.as_ref() == Some(name);
        let container = self.containers().iter().find(|it| has(&it.device));
        let image = self.images().iter().find(|it| has(&it.device));
        let init = self.containers().iter().any(|it| has(&it.init));
        let is_layer = init || self.layers().any(|it| has(&it.device));
        let kind = match () {
            () if *name == DeviceName::Base => "base",
            () if container.is_some() => "container",
            () if is_layer => "layer",
            () => "device",
        };
        let title =
            container.and_then(|it| it.name.as_ref()).or_else(|| image.and_then(|it| it.tags.first()));
        let owner = container.map(|it| &it.id).or_else(|| image.map(|it| &it.id));
        let device = name.to_string();
        let mut labels = Labels::new();
        for (key, value) in [
            ("docker/device", Some(device.as_str())),
            ("docker/kind", Some(kind)),
            ("docker/id", owner.map(String::as_str)),
            ("docker/name", title.map(String::as_str).filter(|title| title.len() <= Labels::MAX_VALUE)),
        ] {
            if let Some(value) = value {
                labels.set(key, value)?;
            }
        }
        Ok((labels, matches!(kind, "base" | "layer")))
    }
}

/// `base` is reserved in a tree.
fn snapshot_id(name: &DeviceName) -> String {
    if *name == DeviceName::Base { "docker-base".to_owned() } else { name.to_string() }
}

impl Readable<'_> {
    /// Writes what differs from the parent, which the new snapshot begins as.
    fn write_changes(&self, parent: Option<&Self>, writer: &SnapshotWriter<'_>) -> Result<Bytes> {
        let (metadata, block_size) = (&self.pool.metadata, self.pool.block_size());
        let damaged = |source| self.damaged(source);
        let mut written = 0;
        for change in metadata.changed(parent.map(|parent| parent.id), self.id, 0).map_err(damaged)? {
            let change = change.map_err(damaged)?;
            let (begin, end) = (change.begin, change.begin.saturating_add(change.length));
            if parent.is_some() {
                // Zeroes are not written, and must not be the parent's data.
                let offset = begin.saturating_mul(block_size).min(self.size);
                let length = end.saturating_mul(block_size).min(self.size) - offset;
                writer.zero(Bytes(offset), Bytes(length))?;
            }
            if change.kind == ChangeKind::Hole {
                continue;
            }
            for mapping in metadata.mappings(self.id, begin).map_err(damaged)? {
                let mapping = mapping.map_err(damaged)?;
                if mapping.virtual_block >= end {
                    break;
                }
                let length = mapping.length.min(end - mapping.virtual_block);
                self.copy(&Mapping { length, ..mapping }, &mut |offset, data| {
                    written += data.len() as u64;
                    Ok(writer.write_at(Bytes(offset), data)?)
                })?;
            }
        }
        Ok(Bytes(written))
    }
}
