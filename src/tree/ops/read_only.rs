//! A tree that another process has open, looked at without its lock.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use uuid::Uuid;

use crate::dm::{DeviceMapper, DmName};
use crate::kernel::{DeviceNumber, Links, ProcessName};
use crate::thin::{PoolStatus, ThinId, ThinPool};
use crate::tree::holders::holder::Holder;
use crate::tree::names::Names;
use crate::tree::ops::check::{device_findings, pool_findings};
use crate::tree::ops::render;
use crate::tree::ops::status::SnapshotInfo;
use crate::tree::pool::tree_pool::active_devices;
use crate::tree::state::files::{RealDir, StateDir};
use crate::tree::state::journal::State;
use crate::tree::state::record::Snapshot;
use crate::tree::state::store::peek;
use crate::tree::{Error, Result};
use crate::tree::{Finding, Node, Options, PoolSource, SnapshotId, SnapshotTree, holders, mount_table};

/// A tree as it was at one moment: [`SnapshotTree::open_read_only`].
#[derive(Debug, Clone)]
pub struct ReadOnlyTree {
    state: State,
    devices: BTreeMap<ThinId, (PathBuf, DeviceNumber)>,
    mounts: BTreeMap<DeviceNumber, PathBuf>,
    pool: Option<(DmName, PoolStatus)>,
    manager: Option<ProcessName>,
    dm: Arc<DeviceMapper>,
    names: Names,
    root: PathBuf,
    dir: Arc<dyn StateDir>,
}

impl SnapshotTree {
    /// Looks at the tree at `root`, whether a manager has it open or not: at its state, and at what is active and mounted.
    /// Nothing is locked, written, activated or put right. What it shows was so at one moment of this call; what the
    /// manager does later is seen by the next one.
    ///
    /// Of `options` only [`Options::kernel`] matters, and [`Options::udev`] does not.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// use dm_thin::tree::{Options, SnapshotTree};
    ///
    /// let tree = SnapshotTree::open_read_only("/var/lib/example", &Options::new())?;
    /// print!("{}", tree.to_text());
    /// for snapshot in tree.list() {
    ///     println!("{} {:?}", snapshot.id, snapshot.mounted);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] if there is no tree, [`Error::Corrupt`]; [`dm::Error`](crate::dm::Error) without device mapper.
    pub fn open_read_only(root: impl AsRef<Path>, options: &Options) -> Result<ReadOnlyTree> {
        let (root, kernel) = (root.as_ref(), &options.kernel);
        let directory = kernel.files().open_directory(root, Links::All).map_err(Error::io("open", root))?;
        let dir: Arc<dyn StateDir> = match &options.state_dir {
            Some(dir) => dir.clone(),
            None => Arc::new(RealDir::open(directory.proc_path()).map_err(Error::io("open", root))?),
        };
        let state = peek(root, &*dir)?;
        let status = kernel.files().file_status(directory.as_fd()).map_err(Error::io("stat", root))?;
        let names = Names::new(&options.name_prefix, (status.device, status.inode), state.tree);
        let dm = Arc::new(DeviceMapper::with_kernel(kernel.clone(), options.udev)?);
        let active = active_devices(&dm, &names)?.into_iter();
        let active = active.filter(|(status, _)| status.has_live_table());
        let devices = active.map(|(status, id)| (id, (dm.node_path(&status.name), status.number)));
        let devices = devices.collect();
        let mounts = mount_table::mounts(&**kernel)?.into_iter().map(|line| (line.device, line.target));
        let pool = match &state.pool.source {
            PoolSource::Pool { name } => Some(name.parse()?),
            _ => dm.find(&names.pool_uuid()?)?.filter(|pool| pool.has_live_table()).map(|pool| pool.name),
        };
        let status = |name: DmName| -> Result<_> { Ok((name, ThinPool::open(dm.clone(), &name)?.status()?)) };
        let pool = pool.map(status).transpose()?;
        let manager = holders::of_lock(&**kernel, &directory);
        let (mounts, root) = (mounts.collect(), root.to_owned());
        Ok(ReadOnlyTree { devices, mounts, pool, manager, state, dm, names, root, dir })
    }
}

impl ReadOnlyTree {
    /// The tree's identity.
    pub fn uuid(&self) -> Uuid {
        self.state.tree
    }

    /// The process that has it open, if one has and `/proc` shows it.
    pub fn manager(&self) -> Option<&ProcessName> {
        self.manager.as_ref()
    }

    /// The name and status of its pool, if that is active.
    pub fn pool(&self) -> Option<(&DmName, &PoolStatus)> {
        self.pool.as_ref().map(|(name, status)| (name, status))
    }

    /// All snapshots, by their ids.
    pub fn list(&self) -> Vec<SnapshotInfo> {
        self.state.graph.snapshots.iter().map(|(id, snapshot)| self.info(id, snapshot)).collect()
    }

    /// One snapshot.
    pub fn get(&self, id: impl AsRef<str>) -> Option<SnapshotInfo> {
        let found = self.state.graph.snapshots.get_key_value(id.as_ref());
        found.map(|(id, snapshot)| self.info(id, snapshot))
    }

    /// As [`SnapshotTree::holders`], now; `None` if there is no such snapshot.
    pub fn holders(&self, id: impl AsRef<str>) -> Option<Vec<Holder>> {
        let number = self.get(id)?.number;
        Some(number.map(|number| holders::of_device(&**self.dm.kernel(), number)).unwrap_or_default())
    }

    /// As [`SnapshotTree::check`], as far as that can be told without the lock, now: the mode and the transaction id of
    /// the pool, and the devices of the snapshots. Volumes, mounts and files of the pool are not compared, and nothing
    /// is found if the pool is not active.
    ///
    /// # Errors
    /// Only what keeps it from looking.
    pub fn check(&self) -> Result<Vec<Finding>> {
        let Some((pool, _)) = &self.pool else { return Ok(Vec::new()) };
        let before = active_devices(&self.dm, &self.names)?;
        let state = peek(&self.root, &*self.dir)?;
        let pool = ThinPool::open(self.dm.clone(), pool)?;
        let mut findings = pool_findings(&pool.status()?, &state);
        let known = state.graph.by_thin_id();
        // What came or went while the state was read is not compared.
        for (status, thin_id) in active_devices(&self.dm, &self.names)? {
            if !before.iter().any(|(other, _)| other.number == status.number && other.name == status.name) {
                continue;
            }
            match known.get(&thin_id) {
                Some((id, snapshot)) => {
                    let (dm, number) = (&self.dm, pool.number());
                    match device_findings(dm, &self.names, number, (id, snapshot), &status, None) {
                        Err(error) if error.errno() == Some(Errno::ENXIO) => {}
                        found => findings.extend(found?),
                    }
                }
                None if state.graph.removed.contains_key(&thin_id)
                    || state.graph.making(thin_id).is_some() => {}
                None => findings.push(Finding::UnknownDevice { device: status.name, thin_id }),
            }
        }
        Ok(findings)
    }

    fn info(&self, id: &SnapshotId, snapshot: &Snapshot) -> SnapshotInfo {
        let device = self.devices.get(&snapshot.thin_id).cloned();
        let mounted = device.as_ref().and_then(|(_, number)| self.mounts.get(number).cloned());
        SnapshotInfo::new(id.clone(), snapshot, device, mounted)
    }

    /// All snapshots, each after its parent and before its next sibling.
    pub fn walk(&self) -> Vec<Node> {
        self.state.graph.walk(None)
    }

    /// As [`SnapshotTree::to_text`].
    pub fn to_text(&self) -> String {
        render::text(&self.walk())
    }
}
