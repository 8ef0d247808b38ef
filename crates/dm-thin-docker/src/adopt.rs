//! Devices into a snapshot tree of dm-thin's.

use std::collections::{BTreeMap, BTreeSet};

use dm_thin::thin::PoolStatus;
use dm_thin::thin::metadata::{ChangeKind, Mapping, ThinDevice};
use dm_thin::tree::{AddOptions, Adoption, Filesystem, Labels, Parent, SnapshotTree, SnapshotWriter};
use dm_thin::units::Bytes;
use serde::Serialize;

use crate::export::Readable;
use crate::{Device, DeviceName, DeviceState, Error, Result, Store};

const DEVICE: &str = "docker/device";
const FILESYSTEM: &str = "docker/filesystem";

/// What became of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Adopted {
    /// It was made a snapshot in its own pool.
    InPlace,
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
    /// container's name, or the image's first tag; `docker/filesystem` is the UUID of the file system, which all devices
    /// of a Docker directory have from its base. A snapshot that has the id, and the labels of the device and the file system,
    /// is left as it is, so an adoption that failed can be repeated.
    ///
    /// # Errors
    /// Before anything is written: [`Error::NoPool`]; [`Error::OtherBase`]; [`Error::OtherFilesystem`] if the tree could not
    /// mount a device; [`Error::OtherSnapshot`] if it has one of those ids already, of something else;
    /// [`Error::NotZeroed`]. After that [`Error::Tree`]: the snapshots of earlier calls of `each` stay, and nothing of the
    /// one that failed. A device that cannot be read to its end is [`Adopted::Unreadable`], and the others go on.
    pub fn adopt(&self, tree: &SnapshotTree, mut each: impl FnMut(&Device, &Adopted)) -> Result<()> {
        if tree.pool().table().map_err(dm_thin::tree::Error::from)?.0.features.skip_block_zeroing {
            return Err(Error::NotZeroed { pool: tree.pool().name().to_string() });
        }
        self.check_base()?;
        let (mut readable, mut left_out) = (BTreeMap::new(), Vec::new());
        for device in self.devices() {
            match self.readable(device) {
                _ if device.state != DeviceState::Ok => left_out.push((device, Adopted::Skipped)),
                Ok(source) => drop(readable.insert(&device.name, source)),
                Err(error @ Error::NoPool { .. }) => return Err(error),
                Err(error) => left_out.push((device, Adopted::Unreadable { reason: error.to_string() })),
            }
        }
        let expected = filesystem_of(tree)?;
        let mut present = BTreeSet::new();
        for (name, source) in &readable {
            check_filesystem(source, expected)?;
            if self.is_present(tree, name)? {
                present.insert(*name);
            }
        }
        left_out.iter().for_each(|(device, adopted)| each(device, adopted));
        let sizes = readable.iter().map(|(name, source)| (*name, source.size)).collect();
        // Those of which snapshots can be made.
        let mut made = BTreeMap::new();
        for name in self.parents_first(&sizes) {
            let source = &readable[name];
            let result = if present.contains(name) {
                Ok(Adopted::Present)
            } else {
                let parent = self.nearest(name, source.size, &made).and_then(|parent| readable.get(parent));
                self.adopt_one(tree, source, parent)
            };
            let adopted = match result {
                Err(error @ (Error::Read { .. } | Error::Metadata { .. })) => {
                    Adopted::Unreadable { reason: error.to_string() }
                }
                Err(error) => return Err(error),
                Ok(adopted) => {
                    made.insert(name, source.size);
                    adopted
                }
            };
            each(source.device, &adopted);
        }
        Ok(())
    }

    /// Whether the tree has the snapshot of that device; refused if it has another one of the same id.
    fn is_present(&self, tree: &SnapshotTree, name: &DeviceName) -> Result<bool> {
        let id = snapshot_id(name);
        let Ok(found) = tree.get(&id) else { return Ok(false) };
        let (labels, _) = self.labels(name)?;
        // A superblock that cannot be read any more says nothing.
        let has_uuid = |uuid| found.labels.get(FILESYSTEM) == Some(uuid);
        if found.labels.get(DEVICE) == labels.get(DEVICE) && labels.get(FILESYSTEM).is_none_or(has_uuid) {
            Ok(true)
        } else {
            Err(Error::OtherSnapshot { device: name.clone(), id })
        }
    }

    /// Makes all devices of [`DeviceState::Ok`] snapshots of a tree whose pool is Docker's own, with their thin ids, their
    /// content and, where `layerdb` has them, their parents, and tells `each` what became of them. The ids and labels are
    /// those of [`adopt`](Self::adopt); nothing is sealed, so that layers can be mounted whose journal is not clean.
    ///
    /// The tree is one with [`PoolSource::Pool`](dm_thin::tree::PoolSource::Pool), which names what
    /// [`activate_pool`](crate::activate_pool) or LVM has activated. Only its own state is written; what the pool's metadata
    /// says stays the same (it is read through a metadata snapshot, which is released again). Until a snapshot is
    /// mounted, written to or removed, or a new one is made, the tree can be closed and its root deleted, and Docker
    /// finds everything as it was. After that Docker must not be started with this directory any more. This can be
    /// repeated.
    ///
    /// # Errors
    /// [`Error::OtherBase`]; [`Error::OtherPool`] if the pool's transaction id is not the one in Docker's files, or its devices
    /// are not those of the pool that was read; [`Error::OtherFilesystem`]; [`Error::Tree`], as of
    /// [`SnapshotTree::adopt`]. Nothing is adopted then.
    pub fn adopt_in_place(&self, tree: &SnapshotTree, mut each: impl FnMut(&Device, &Adopted)) -> Result<()> {
        self.check_base()?;
        self.check_pool(tree)?;
        let expected = filesystem_of(tree)?;
        let (mut sizes, mut left_out) = (BTreeMap::new(), Vec::new());
        for device in self.devices() {
            let no_pool = || Error::NoPool { device: device.name.clone() };
            let size = match &self.pool {
                _ if device.state != DeviceState::Ok => {
                    left_out.push((device, Adopted::Skipped));
                    continue;
                }
                Some(_) => self
                    .readable(device)
                    .and_then(|source| check_filesystem(&source, expected).map(|()| source.size)),
                None => device.size.map(|size| size.0).ok_or_else(no_pool),
            };
            match size {
                Ok(size) => drop(sizes.insert(&device.name, size)),
                Err(error @ Error::OtherFilesystem { .. }) => return Err(error),
                Err(error) => left_out.push((device, Adopted::Unreadable { reason: error.to_string() })),
            }
        }
        let (mut adoptions, mut adopted) = (Vec::new(), Vec::new());
        for name in self.parents_first(&sizes) {
            let (id, device) = (snapshot_id(name), &self.devices[name]);
            let Some(thin_id) = device.thin_id else { continue };
            let is_there = tree.get(&id).is_ok_and(|found| found.thin_id == thin_id);
            adopted.push((device, if is_there { Adopted::Present } else { Adopted::InPlace }));
            let size = snapshot_size(sizes[name]);
            let adoption = Adoption::new(id, thin_id, size).labels(self.labels(name)?.0);
            adoptions.push(match self.nearest(name, sizes[name], &sizes) {
                Some(parent) => adoption.parent(snapshot_id(parent)),
                None => adoption,
            });
        }
        tree.adopt(&adoptions)?;
        left_out.iter().chain(&adopted).for_each(|(device, adopted)| each(device, adopted));
        Ok(())
    }

    /// Refuses a tree in another pool than Docker's.
    fn check_pool(&self, tree: &SnapshotTree) -> Result<()> {
        let pool = tree.pool();
        let other = |reason| Err(Error::OtherPool { pool: pool.name().to_string(), reason });
        let PoolStatus::Usage(usage) = pool.status()? else { return other("it has failed".to_owned()) };
        let (found, open) = (usage.transaction_id, self.transaction_id());
        // Docker's is one above as long as an operation is under way.
        let is_other = match open {
            Some(open) => !matches!(open.0.checked_sub(found.0), Some(0 | 1)),
            None => self.pool.is_none(),
        };
        if is_other {
            let open = open.map_or("none".to_owned(), |open| open.to_string());
            return other(format!("its transaction id is {found}, Docker's is {open}"));
        }
        let Some(read) = &self.pool else { return Ok(()) };
        let devices = pool.read_metadata(|metadata| Ok(metadata.devices()?))?;
        let identity = |it: &ThinDevice| (it.id, it.transaction_id, it.creation_time);
        let devices: BTreeSet<_> = devices.iter().map(identity).collect();
        match read.devices.iter().find(|it| !devices.contains(&identity(it))) {
            Some(missing) => other(format!("it does not have thin device {} of the directory's", missing.id)),
            None => Ok(()),
        }
    }

    /// The nearest ancestor of a device of that size whose snapshot it can be.
    fn nearest<'a>(
        &'a self,
        name: &DeviceName,
        size: u64,
        sizes: &BTreeMap<&'a DeviceName, u64>,
    ) -> Option<&'a DeviceName> {
        let parent_of = |name: &DeviceName| self.devices.get(name)?.parent.as_ref();
        let mut ancestors = std::iter::successors(parent_of(name), |name| parent_of(name));
        let (found, ancestor_size) = ancestors.find_map(|ancestor| sizes.get_key_value(ancestor))?;
        (*ancestor_size <= size).then_some(*found)
    }

    /// Devices, parents before their children.
    fn parents_first<'a>(&'a self, sizes: &BTreeMap<&'a DeviceName, u64>) -> Vec<&'a DeviceName> {
        let (mut ordered, mut done) = (Vec::new(), BTreeSet::new());
        for name in sizes.keys() {
            // Itself and its ancestors, the highest last.
            let line: Vec<_> =
                std::iter::successors(Some(*name), |name| self.nearest(name, sizes[*name], sizes)).collect();
            ordered.extend(line.into_iter().rev().filter(|name| done.insert(*name)));
        }
        ordered
    }

    fn adopt_one(
        &self,
        tree: &SnapshotTree,
        source: &Readable<'_>,
        parent: Option<&Readable<'_>>,
    ) -> Result<Adopted> {
        let name = &source.device.name;
        let id = snapshot_id(name);
        let (labels, is_final) = self.labels(name)?;
        let options = AddOptions::new().size(snapshot_size(source.size)).labels(labels);
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
        let thin_id = self.devices.get(name).and_then(|device| device.thin_id);
        let filesystem =
            self.pool.as_ref().zip(thin_id).and_then(|(pool, id)| pool.filesystem(id).ok().flatten());
        let filesystem = filesystem.map(|filesystem| filesystem.uuid.to_string());
        let mut labels = Labels::new();
        for (key, value) in [
            (DEVICE, Some(device.as_str())),
            (FILESYSTEM, filesystem.as_deref()),
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

/// The type of the file systems of a tree, if it has any.
fn filesystem_of(tree: &SnapshotTree) -> Result<Option<&'static str>> {
    Ok(match tree.status()?.filesystem {
        Filesystem::Ext4 => Some("ext4"),
        Filesystem::Xfs => Some("xfs"),
        _ => None,
    })
}

/// Refuses a device that the tree could not mount.
fn check_filesystem(source: &Readable<'_>, expected: Option<&'static str>) -> Result<()> {
    let found = source.pool.filesystem(source.id).ok().flatten().map(|filesystem| filesystem.kind);
    match (expected, found) {
        (Some(expected), Some(found)) if expected != found => {
            Err(Error::OtherFilesystem { device: source.device.name.clone(), found, expected })
        }
        _ => Ok(()),
    }
}

/// The sizes of a tree are multiples of 4 KiB.
fn snapshot_size(size: u64) -> Bytes {
    Bytes(size.next_multiple_of(4096))
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
