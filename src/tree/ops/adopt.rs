//! Thin devices that a shared pool has already, as snapshots.

use std::collections::BTreeMap;

use crate::thin::ThinId;
use crate::tree::error::busy;
use crate::tree::state::record::{FsState, Record, Snapshot};
use crate::tree::state::size::{check_child_size, check_size};
use crate::tree::{Error, Labels, Result, SnapshotId, SnapshotTree, trace};
use crate::units::Bytes;

/// A thin device that is to become a snapshot: see [`SnapshotTree::adopt`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Adoption {
    id: String,
    thin_id: ThinId,
    size: Bytes,
    parent: Option<String>,
    labels: Labels,
}

impl Adoption {
    /// The thin device `thin_id` becomes the snapshot `id`. The size is what whoever made the device gave it: a pool does
    /// not know the sizes of its devices.
    pub fn new(id: impl Into<String>, thin_id: ThinId, size: Bytes) -> Self {
        Self { id: id.into(), thin_id, size, parent: None, labels: Labels::new() }
    }

    /// The snapshot that it was made from. Default: none, which [`SnapshotTree::list`] shows as the base.
    #[must_use]
    pub fn parent(mut self, id: impl Into<String>) -> Self {
        self.parent = Some(id.into());
        self
    }

    /// Labels that it has from the start.
    #[must_use]
    pub fn labels(mut self, labels: Labels) -> Self {
        self.labels = labels;
        self
    }
}

impl SnapshotTree {
    /// Makes snapshots of thin devices that a [shared pool](crate::tree::PoolSource::Pool) has already, parents first, and
    /// returns how many are new. A device that is that snapshot already stays as it is, so this can be repeated.
    ///
    /// Only this tree's state is written: the devices keep their thin ids and their content. As long as none of the
    /// snapshots is mounted, activated or removed, whoever made the devices can go on with them, and the tree's root can
    /// be deleted. The devices have to have the tree's kind of file system. To the caller belongs the decision whose they
    /// are: from here on the tree mounts, and [removes](Self::remove), them as its own.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// use dm_thin::thin::ThinId;
    /// use dm_thin::tree::{Adoption, Options, PoolSource, SnapshotTree};
    /// use dm_thin::units::Bytes;
    ///
    /// let options = Options::new().pool_source(PoolSource::Pool { name: "vg-pool".into() });
    /// let tree = SnapshotTree::open("/var/lib/example", options)?;
    /// let [image, machine] = [ThinId::new(1)?, ThinId::new(2)?];
    /// tree.adopt(&[
    ///     Adoption::new("image", image, Bytes::gib(10)),
    ///     Adoption::new("machine", machine, Bytes::gib(10)).parent("image"),
    /// ])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a thin device that the pool does not have or that is a volume of the tree under
    /// another id, for any if the pool is the tree's own, and for a size; [`Error::InvalidName`];
    /// [`Error::SnapshotExists`]; [`Error::UnknownSnapshot`] for a parent that is neither in the tree nor before its
    /// child; [`Error::Busy`] if another program has a device active. None is adopted then. [`Error::Io`] if the state
    /// cannot be written: those that were written before are adopted.
    pub fn adopt(&self, devices: &[Adoption]) -> Result<usize> {
        let first = devices.first().map_or("", |device| device.id.as_str());
        trace::call("adopt", first, || self.adopt_now(devices))
    }

    fn adopt_now(&self, devices: &[Adoption]) -> Result<usize> {
        self.check_open()?;
        if let (Some(device), false) = (devices.first(), self.store.is_shared()) {
            return Err(refused(device, "the pool is the tree's own: no one else makes devices in it"));
        }
        let present = self.pool.read_metadata(|metadata| Ok(metadata.device_ids()?))?;
        let active = self.pool.thin.active_volumes()?;
        let (mut reservations, mut new) = (Vec::new(), BTreeMap::new());
        let mut records = Vec::new();
        for device in devices {
            let id = SnapshotId::new(&device.id)?;
            check_size("snapshot size", device.size)?;
            if !present.contains(&device.thin_id) {
                return Err(refused(device, "is not in the pool"));
            }
            let known = self.store.read(|graph| graph.get(&device.id).map(|known| known.thin_id));
            if known == Some(device.thin_id) {
                continue;
            }
            if let Some(volume) = active.iter().find(|volume| volume.id() == device.thin_id) {
                let open_count = self.pool.dm().status(volume.name()).map_or(0, |status| status.open_count);
                return Err(self.pool.with_holders(None, busy(volume.name(), open_count)));
            }
            // No other call takes the name or the thin id until all is recorded.
            match self.store.reserve_id(device.thin_id) {
                Some(reservation) if !reservation.unresolved => reservations.push(reservation),
                _ => return Err(refused(device, "is a volume of this tree already")),
            }
            reservations.push(self.store.reserve_kept(&id, device.thin_id)?);
            let parent = device.parent.as_deref().map(SnapshotId::new).transpose()?;
            if let Some(parent) = &parent {
                let size = new.get(parent).copied();
                let size = size.map_or_else(|| self.get(parent.as_str()).map(|parent| parent.size), Ok)?;
                check_child_size(device.size, size)?;
            }
            new.insert(id.clone(), device.size);
            let snapshot = Snapshot::new(device.thin_id, parent, device.size, FsState::Ready);
            let snapshot = Snapshot { labels: device.labels.clone(), ..snapshot };
            records.push(Record::Add { id, snapshot });
        }
        let appended = records.iter().try_fold(None, |_, record| self.store.append(record).map(Some))?;
        appended.map_or(Ok(()), |last| self.store.sync(last))?;
        drop(reservations);
        self.compact();
        Ok(records.len())
    }
}

fn refused(device: &Adoption, reason: &'static str) -> Error {
    Error::InvalidOption { option: "thin device", value: device.thin_id.to_string(), reason }
}
