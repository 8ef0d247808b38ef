//! The status of a tree, of its snapshots and of its pool.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::dm::DmName;
use crate::kernel::DeviceNumber;
use crate::thin;
use crate::thin::tools::node;
use crate::thin::{METADATA_BLOCK_SIZE, MinFree, PoolMode, PoolStatus, ThinId, ThinStatus};
use crate::tree::ops::ready::ReadyStatus;
use crate::tree::state::record::Snapshot;
use crate::tree::{Error, Result};
use crate::tree::{Filesystem, Labels, Lineage, PoolSource, SnapshotId, SnapshotTree};
use crate::units::{Blocks, Bytes, SECTOR_SIZE, Sectors};

/// A snapshot and its current state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// What it was made from.
    pub parent: Lineage,
    /// What callers noted about it.
    pub labels: Labels,
    /// Its size.
    pub size: Bytes,
    /// The identity of its content if it is sealed: the same in every tree that received it.
    pub sealed: Option<Uuid>,
    /// When it was made, to the second; `None` if a version made it that did not record that. Serialized as seconds since
    /// 1970-01-01 UTC.
    #[serde(serialize_with = "seconds")]
    pub created: Option<SystemTime>,
    /// Its id in the pool.
    pub thin_id: ThinId,
    /// Its device, if it is active.
    pub device: Option<PathBuf>,
    /// That device's number.
    pub number: Option<DeviceNumber>,
    /// Where it is mounted, if it is.
    pub mounted: Option<PathBuf>,
}

/// How much of a snapshot is in the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// Its id in the pool.
    pub thin_id: ThinId,
    /// Its size.
    pub size: Bytes,
    /// The identity of its content if it is sealed.
    pub sealed: Option<Uuid>,
    /// What is mapped, shared with others or not.
    pub mapped: Bytes,
    /// The end of the last block that is mapped.
    pub highest: Option<Bytes>,
}

/// One of a pool's two devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SpaceStatus {
    /// Its node.
    pub device: PathBuf,
    /// The file below it, if it is a loop device of the tree's.
    pub loop_file: Option<PathBuf>,
    /// What the pool uses of it.
    pub used: Bytes,
    /// All that the pool has of it.
    pub total: Bytes,
    /// What can still be used: not more than the file system below a loop file has left.
    pub available: Bytes,
}

/// The state of a tree and its pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TreeStatus {
    /// The pool's device name.
    pub pool_name: DmName,
    /// Size of its data blocks.
    pub block_size: Bytes,
    /// The size of the base, or the one that it will have.
    pub base_size: Bytes,
    /// The file system of the base.
    pub filesystem: Filesystem,
    /// The data device; `None` if the pool has failed.
    pub data: Option<SpaceStatus>,
    /// The metadata device; `None` if the pool has failed.
    pub metadata: Option<SpaceStatus>,
    /// Data space that must be free before a snapshot is made.
    pub min_free: Bytes,
    /// Whether this crate waits for udev.
    pub udev_sync: bool,
    /// Whether the kernel expedites all RCU grace periods (`/sys/kernel/rcu_expedited`); `None` if that cannot be read.
    /// Loading a table and removing a device wait for grace periods: expedited, they take a fraction of the time. It is a
    /// setting of the whole machine, which interrupts every CPU for each grace period, and which this crate never changes.
    pub rcu_expedited: Option<bool>,
    /// Whether unmount leaves devices that are open elsewhere to the kernel.
    pub deferred_removal: bool,
    /// Whether remove lets snapshots that are open elsewhere be deleted later.
    pub deferred_deletion: bool,
    /// How many removed snapshots have a volume that is still to be deleted.
    pub deferred: usize,
    /// The ready snapshots of each origin that has some.
    pub ready: Vec<ReadyStatus>,
    /// The volume that is kept active, [if one is](crate::tree::Options::keep_one_active).
    pub kept_active: Option<ThinId>,
    /// How many snapshots there are.
    pub snapshots: usize,
    /// How many volumes may hold what no snapshot has: [`check`](SnapshotTree::check) lists them.
    pub orphans: usize,
    /// The pool's own numbers.
    pub pool: PoolStatus,
    /// Version of this crate and of the kernel's device mapper.
    pub version: String,
}

impl SnapshotInfo {
    pub(in crate::tree) fn new(
        id: SnapshotId,
        snapshot: &Snapshot,
        device: Option<(PathBuf, DeviceNumber)>,
        mounted: Option<PathBuf>,
    ) -> Self {
        let (device, number) = device.unzip();
        let parent = snapshot.lineage();
        let Snapshot { thin_id, size, sealed, created, .. } = *snapshot;
        let created = created.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let labels = snapshot.labels.clone();
        SnapshotInfo { id, parent, labels, size, sealed, created, thin_id, device, number, mounted }
    }
}

fn seconds<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map(|since| since.as_secs()).serialize(serializer)
}

impl SnapshotTree {
    /// One snapshot.
    pub fn get(&self, id: impl AsRef<str>) -> Result<SnapshotInfo> {
        let id = id.as_ref();
        self.check_open()?;
        let known =
            self.store.read(|graph| graph.snapshots.get_key_value(id).map(|(id, s)| (id.clone(), s.clone())));
        let (id, snapshot) = known.ok_or_else(|| crate::tree::error::unknown(id))?;
        Ok(self.info(id, &snapshot))
    }

    /// All snapshots, by their ids.
    pub fn list(&self) -> Vec<SnapshotInfo> {
        self.select(|_| true)
    }

    /// The snapshots with that label, by their ids.
    pub fn labelled(&self, key: &str, value: &str) -> Vec<SnapshotInfo> {
        self.select(|snapshot| snapshot.labels.get(key) == Some(value))
    }

    fn select(&self, is_wanted: impl Fn(&Snapshot) -> bool) -> Vec<SnapshotInfo> {
        let snapshots: Vec<_> = self.store.read(|graph| {
            let wanted = graph.snapshots.iter().filter(|(_, snapshot)| is_wanted(snapshot));
            wanted.map(|(id, snapshot)| (id.clone(), snapshot.clone())).collect()
        });
        snapshots.into_iter().map(|(id, snapshot)| self.info(id, &snapshot)).collect()
    }

    /// The base's id in the pool. An adopted pool has a base only after the first snapshot of it.
    pub fn base_id(&self) -> Option<ThinId> {
        self.store.read(|graph| graph.base.as_ref().map(|base| base.thin_id))
    }

    fn info(&self, id: SnapshotId, snapshot: &Snapshot) -> SnapshotInfo {
        let view = self.live.view(&id);
        let device = view.device.filter(|_| !view.removal_deferred);
        SnapshotInfo::new(id, snapshot, device, view.mounted.map(|(target, _)| target))
    }

    /// How much of a snapshot is mapped. A snapshot that is not active is activated for this.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`]; [`thin::Error::PoolMode`] if the pool has failed.
    pub fn snapshot_status(&self, id: impl AsRef<str>) -> Result<SnapshotStatus> {
        let id = id.as_ref();
        self.with_snapshot(id, |active, snapshot| {
            if let Some(volume) = active.volume.as_ref().filter(|_| active.removal_deferred) {
                // It was activated for its status only.
                match volume.status() {
                    Err(error) if error.errno() == Some(Errno::ENXIO) => active.forget_device(&self.pool)?,
                    status => return self.mapped(snapshot, &status?),
                }
            }
            let was_active = active.volume.is_some();
            self.activate_locked(active, id, snapshot)?;
            let status = active.volume.as_ref().ok_or(Error::Closed).and_then(|volume| Ok(volume.status()?));
            if !was_active {
                self.deactivate_locked(active, id)?;
            }
            self.mapped(snapshot, &status?)
        })
    }

    fn mapped(&self, snapshot: &Snapshot, status: &ThinStatus) -> Result<SnapshotStatus> {
        let Snapshot { thin_id, size, sealed, .. } = *snapshot;
        match *status {
            ThinStatus::Mapped { mapped, highest } => {
                // The last sector that is mapped.
                let highest = highest.map(|sector| sector.bytes() + SECTOR_SIZE);
                Ok(SnapshotStatus { thin_id, size, sealed, mapped: mapped.bytes(), highest })
            }
            ThinStatus::Inactive | ThinStatus::Fail | ThinStatus::Error => {
                let (pool, consequence) =
                    (self.pool.thin.name().to_string(), "it cannot tell what is mapped");
                Err(Error::Thin(thin::Error::PoolMode { pool, mode: PoolMode::Fail, consequence }))
            }
        }
    }

    /// What the file system of the pool's files has left.
    fn free_below(&self) -> Option<Bytes> {
        let pool = self.root.pool().ok()?;
        self.options.kernel.files().free_space(pool.as_fd()).ok()
    }

    /// The tree and its pool, as the kernel sees it now.
    pub fn status(&self) -> Result<TreeStatus> {
        self.check_open()?;
        let pool = self.pool.thin.status().map_err(|error| self.closed_or(error))?;
        let (table, _) = self.pool.thin.table().map_err(|error| self.closed_or(error))?;
        let record = self.store.read_state(|state| state.pool.clone());
        let dm = self.pool.dm();
        let space = |name: &str, device: DeviceNumber, block: Sectors, used: Blocks, total: Blocks| {
            let files = record.source == PoolSource::LoopFiles;
            let loop_file = files.then(|| self.root.pool_path().join(name));
            let (used, total) = (used.bytes(block), total.bytes(block));
            let free = Bytes(total.0.saturating_sub(used.0));
            let below = loop_file.as_ref().and_then(|_| self.free_below());
            let available = below.map_or(free, |below| below.min(free));
            SpaceStatus { device: node(&*self.options.kernel, device), loop_file, used, total, available }
        };
        let (data, metadata) = match &pool {
            PoolStatus::Usage(usage) => (
                Some(space("data", table.data, table.block_size, usage.used_data, usage.total_data)),
                Some(space(
                    "metadata",
                    table.metadata,
                    METADATA_BLOCK_SIZE.sectors(),
                    usage.used_metadata,
                    usage.total_metadata,
                )),
            ),
            PoolStatus::Fail | PoolStatus::Error => (None, None),
        };
        let rcu_expedited = self.options.kernel.kernel_attribute("rcu_expedited").ok();
        let rcu_expedited = rcu_expedited.map(|text| text != b"0");
        let (ready, kept_active) = self.ready_status();
        Ok(self.store.read_state(|state| TreeStatus {
            pool_name: *self.pool.thin.name(),
            block_size: state.pool.block_size,
            base_size: state.graph.base.as_ref().map_or(self.options.new_base_size(), |base| base.size),
            filesystem: state.filesystem,
            min_free: match (self.options.min_free_data, &data) {
                (MinFree::Bytes(bytes), _) => bytes,
                (MinFree::Percent(percent), Some(data)) => Bytes(data.total.0 / 100 * u64::from(percent)),
                (MinFree::Percent(_), None) => Bytes(0),
            },
            data,
            metadata,
            udev_sync: dm.waits_for_udev(),
            rcu_expedited,
            deferred_removal: self.options.deferred_removal,
            deferred_deletion: self.options.deferred_deletion,
            deferred: state.graph.removed.len(),
            ready,
            kept_active,
            snapshots: state.graph.snapshots.len(),
            orphans: state.graph.orphans.len(),
            pool,
            version: format!("{} (device mapper {})", env!("CARGO_PKG_VERSION"), dm.version()),
        }))
    }
}
