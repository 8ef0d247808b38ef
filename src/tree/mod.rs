//! A tree of snapshots in a thin pool: which snapshot is which thin device, kept in JSON, safe against
//! crashes, other processes and full disks.
//!
//! ```no_run
//! use dm_thin::tree::{Options, Parent, SnapshotTree};
//!
//! # fn main() -> dm_thin::tree::Result<()> {
//! let tree = SnapshotTree::open("/var/lib/example", Options::new())?;
//! tree.add("image", Parent::Base)?;
//! tree.mount("image", "/mnt/image")?;
//! // … fill /mnt/image …
//! tree.unmount("image")?;
//! tree.add("container", Parent::Snapshot("image"))?;
//! tree.mount("container", "/mnt/container")?;
//! // … run …
//! tree.unmount("container")?;
//! tree.close()
//! # }
//! ```

mod error;
mod holders;
mod live;
mod mount_table;
mod names;
mod ops;
mod options;
mod pool;
#[cfg(all(test, shuttle, feature = "model"))]
mod shuttle_tests;
mod state;
pub mod stream;
mod sync;
mod trace;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::kernel::CountingKernel;
use crate::thin::ThinPool;
use crate::{dm, thin};

pub use self::error::{Error, Result};
pub use crate::dm::Removal;
pub use crate::thin::metadata::ChangeKind;
pub use holders::holder::Holder;
pub use live::device::{DeviceOptions, SnapshotDevice};
pub use live::init_layer::InitLayer;
pub use live::mount_options::{MountCall, MountOptions};
pub use live::recovered::Recovered;
pub use ops::add::{AddOptions, Consistency, Parent};
pub use ops::adopt::Adoption;
pub use ops::changed::{Bookmark, Changed, ChangedRange, Since};
pub use ops::finding::{DeviceProblem, Finding};
pub use ops::metrics::Metrics;
pub use ops::read_only::ReadOnlyTree;
pub use ops::reader::SnapshotReader;
pub use ops::ready::ReadyStatus;
pub use ops::receive::{PartialReceive, ReceiveReport};
pub use ops::receive_options::ReceiveOptions;
pub use ops::remove::RemoveOptions;
pub use ops::repair::Repair;
pub use ops::repair_metadata::{MetadataRepair, ReducedSnapshot};
pub use ops::send::{Progress, SendOptions};
pub use ops::status::{SnapshotInfo, SnapshotStatus, SpaceStatus, TreeStatus};
pub use ops::usage::SnapshotUsage;
pub use ops::watch::{PoolEvent, PoolWatcher};
pub use ops::writer::SnapshotWriter;
pub use options::Options;
pub use state::files;
pub use state::filesystem::Filesystem;
pub use state::id::SnapshotId;
pub use state::labels::Labels;
pub use state::lineage::{Lineage, Node};
pub use state::pool_source::PoolSource;
pub use state::reason::{RootProblem, StateAge};

use live::mounts::Mounts;
use live::ready::ReadySnapshots;
use live::snapshots::LiveSnapshots;
use live::work::{Work, Worker};
use pool::tree_pool::TreePool;
use state::root::Root;
use state::store::{Store, SyncThread};

/// A tree of snapshots. All methods can be called from any thread at any time.
///
/// It belongs to the process that opened it: in a child of `fork(2)` its methods answer [`Error::Forked`], though the
/// child keeps the root locked as long as it has not executed another program or ended.
///
/// Dropping it ends its threads, after what they are doing, and changes nothing else: volumes stay active, mounts stay
/// mounted, and opening the tree again, in this process or another one, finds them. [`close`](Self::close) takes everything down.
///
/// ```
/// use dm_thin::tree::{Options, Parent, SnapshotTree};
///
/// # #[cfg(not(feature = "model"))]
/// # fn main() {}
/// # #[cfg(feature = "model")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let root = directory.path().join("tree");
/// # let kernel = std::sync::Arc::new(dm_thin::model::ModelKernel::new());
/// # let options = Options::new().kernel(kernel);
/// # let _ = || -> dm_thin::tree::Result<SnapshotTree> { // on the model, and not on this machine
/// let tree = SnapshotTree::open("/var/lib/example", Options::new())?;
/// # Ok(tree) };
/// # let tree = SnapshotTree::open(root, options)?;
/// tree.add("golden", Parent::Base)?;
/// tree.seal("golden")?;
/// tree.add("vm", Parent::Snapshot("golden"))?;
/// let device = tree.activate("vm")?; // /dev/mapper/…
/// assert_eq!(tree.children("golden")?.len(), 1);
///
/// tree.deactivate("vm")?;
/// tree.remove("vm")?;
/// tree.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SnapshotTree {
    /// End before the root is unlocked, and the pool no longer claimed.
    _threads: Threads,
    options: Options,
    root: Arc<Root>,
    /// The durable state.
    store: Arc<Store>,
    /// The pool, and its devices.
    pool: Arc<TreePool>,
    /// Active snapshots.
    live: Arc<LiveSnapshots>,
    /// Mounted snapshots.
    mounts: Arc<Mounts>,
    ready: Arc<ReadySnapshots>,
    work: Arc<Work>,
    closed: Arc<AtomicBool>,
    counts: Arc<CountingKernel>,
    /// What the open found.
    recovered: Arc<[Recovered]>,
}

/// The threads of a tree; dropping this ends them.
#[derive(Debug, Default)]
struct Threads {
    _worker: Option<Worker>,
    _sync: Option<SyncThread>,
}

impl SnapshotTree {
    /// The tree's root directory, where it was when the tree was opened.
    pub fn root(&self) -> &std::path::Path {
        &self.root.path
    }

    /// The tree's identity, which its devices carry in their uuids.
    pub fn uuid(&self) -> Uuid {
        self.store.tree()
    }

    /// The pool behind it.
    pub fn pool(&self) -> &ThinPool {
        &self.pool.thin
    }

    /// Whether there is a snapshot of that id.
    pub fn contains(&self, id: impl AsRef<str>) -> bool {
        let id = id.as_ref();
        self.store.read(|graph| graph.get(id).is_some())
    }

    /// What the open of this tree found of a manager before it, in the order in which it dealt with it.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// for found in tree.recovered() {
    ///     eprintln!("{found}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn recovered(&self) -> &[Recovered] {
        &self.recovered
    }

    /// Deactivates everything, deletes the volumes of removed snapshots, writes a checkpoint, removes the pool and detaches
    /// its files. An adopted pool stays.
    ///
    /// A pool that is read-only or has failed goes, too: the next open does what it refused. The root is free for
    /// another manager when this value is dropped.
    ///
    /// # Errors
    /// [`Error::Mounted`] if a snapshot is mounted, [`Error::Busy`] if one is open elsewhere: the tree stays open,
    /// though what could be deactivated is. [`Error::Io`] if the checkpoint could not be written, though all the
    /// rest is done: the journal holds what is in it; [`Error::StateUnknown`], with the rest done, too, if an earlier
    /// sync failed. After a close, whatever can fail answers [`Error::Closed`]; what
    /// cannot, such as [`list`](Self::list), returns what was recorded last.
    pub fn close(&self) -> Result<()> {
        self.close_until(None)
    }

    /// The same, but no deletion of a removed snapshot's volume is begun when `time` is over: the next open deletes the
    /// rest.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    pub fn close_within(&self, time: Duration) -> Result<()> {
        self.close_until(Instant::now().checked_add(time))
    }

    fn close_until(&self, end: Option<Instant>) -> Result<()> {
        self.check_open()?;
        let closed = trace::call("close", &self.root.path.to_string_lossy(), || self.close_now(end));
        closed.inspect_err(|_| _ = self.work.wake())
    }

    fn close_now(&self, end: Option<Instant>) -> Result<()> {
        let exclusive = self.work.exclusive();
        let _resizing = self.pool.resizing();
        self.check_open()?;
        self.deactivate_all()?;
        // What was removed is recorded, and what the pool refuses to delete now, the next open deletes.
        let _ = self.delete_ready(&exclusive).and(self.reap_closed(&exclusive, end));
        // New calls are refused from here on; a failure opens the tree again.
        self.closed.store(true, Ordering::Release);
        let checkpoint = self.shut_down().inspect_err(|_| self.closed.store(false, Ordering::Release))?;
        match checkpoint {
            // The journal holds everything.
            Err(Error::Thin(thin::Error::PoolMode { .. })) => Ok(()),
            result => result,
        }
    }

    /// Takes down what is left; the inner result is the checkpoint's.
    fn shut_down(&self) -> Result<Result<()>> {
        // Calls that began before hold their snapshots: this waits for them.
        self.deactivate_rest()?;
        self.remove_devices()?;
        // An earlier close may have failed after this step.
        let there = match self.pool.thin.table() {
            Err(error) if error.is_not_found() => false,
            status => status.map(|_| true)?,
        };
        let checkpoint = if there {
            self.pool.generation.raise(&self.pool.thin, &self.store).and_then(|()| self.checkpoint())
        } else {
            Ok(())
        };
        if !self.store.is_shared() {
            self.take_down()?;
        }
        self.pool.release_claim()?;
        Ok(checkpoint)
    }

    /// Undoes an open that failed after it activated the pool.
    fn undo_open(&self) -> Result<()> {
        // Mounts that a failed unmount left.
        self.mounts.take_over(self.options.busy_timeout)?;
        self.remove_devices()?;
        self.take_down()
    }

    /// Removes all devices of volumes.
    fn remove_devices(&self) -> Result<()> {
        for (status, thin_id) in self.pool.active_devices()? {
            let uuid = self.pool.names.volume_uuid(thin_id)?;
            self.pool.retry_while_busy(&status.name, || Ok(self.pool.dm().remove(&uuid)?))?;
        }
        self.pool.sweep_nodes()
    }

    /// Deactivates the pool, and its devices where they do not end with it.
    fn take_down(&self) -> Result<()> {
        self.pool.retry_while_busy(self.pool.thin.name(), || Ok(self.pool.thin.deactivate()?))?;
        let record = self.store.read_state(|state| state.pool.clone());
        let dm = self.pool.dm();
        pool::source::parts(&record)?.iter().try_for_each(|part| match dm.find(part)? {
            Some(status) => self.pool.retry_while_busy(&status.name, || Ok(dm.remove(part)?)),
            None => Ok(()),
        })
    }

    /// # Errors
    /// [`Error::Closed`]; [`Error::Forked`] in a child of the process that opened the tree.
    fn check_open(&self) -> Result<()> {
        self.root.check_process()?;
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// The error of an ioctl whose device a concurrent close has removed is [`Error::Closed`].
    fn closed_or(&self, error: impl Into<Error>) -> Error {
        match error.into() {
            Error::Thin(thin::Error::Dm(dm::Error::Ioctl(_))) if self.closed.load(Ordering::Acquire) => {
                Error::Closed
            }
            error => error,
        }
    }

    /// Writes a checkpoint.
    fn checkpoint(&self) -> Result<()> {
        self.store.checkpoint()
    }

    /// After a change: keep the journal short.
    fn compact(&self) {
        if self.store.wants_checkpoint(self.options.checkpoint_at) && !self.work.wake() {
            // The journal holds everything. It can wait for the next change.
            let _ = self.checkpoint();
        }
    }
}
