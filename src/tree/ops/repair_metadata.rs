//! A way back from damaged metadata of the pool.
//!
//! | file of the root | what it is |
//! |---|---|
//! | `metadata.repaired` | what `thin_repair` saved; nobody depends on it |
//! | `metadata.damaged` | the metadata before the last replacement, complete |
//! | `metadata.replacing` | what the metadata is being replaced by: until it is gone, the metadata may be half of each |

use std::collections::BTreeMap;
use std::fs::File; // open ones, which `kernel::Files` gives out
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use crate::dm::{DeviceMapper, DmUuid};
use crate::kernel::{Access, Kernel, Links};
use crate::thin::metadata::{self, Metadata, MetadataError};
use crate::thin::tools::{SuperblockOverrides, thin_repair_with};
use crate::thin::{ThinId, blank};
use crate::tree::error::busy;
use crate::tree::names::{Names, POOL};
use crate::tree::pool::claim::Claim;
use crate::tree::pool::source::{self, InactivePool};
use crate::tree::state::files::StateDir;
use crate::tree::state::graph::Graph;
use crate::tree::state::identity;
use crate::tree::state::pool_source::PoolSource;
use crate::tree::state::root::Root;
use crate::tree::state::store::Store;
use crate::tree::{Error, Options, Result, SnapshotId, SnapshotTree};
use crate::units::{Blocks, Bytes};

const REPAIRED: &str = "metadata.repaired";
const DAMAGED: &str = "metadata.damaged";
const REPLACING: &str = "metadata.replacing";

/// So much is copied at a time.
const CHUNK: usize = 1 << 20;

/// Repaired metadata of a tree's pool, which the pool does not use yet. Dropping this changes nothing: the next
/// [`SnapshotTree::repair_metadata`] begins anew.
#[derive(Debug)]
#[must_use = "the metadata is not replaced before `apply` is called"]
#[non_exhaustive]
pub struct MetadataRepair {
    /// The snapshots that are lost: the repaired metadata does not have their volumes.
    pub lost: Vec<SnapshotId>,
    /// Whether the base is lost. Snapshots of it are not affected; new ones cannot be made of it.
    pub base_is_lost: bool,
    /// The snapshots that have lost a part: what is missing of them reads as zeroes.
    pub reduced: Vec<ReducedSnapshot>,
    /// Volumes that the tree does not know, such as those of removed snapshots. [`SnapshotTree::check`] names them again.
    pub unknown: Vec<ThinId>,
    /// The file with the repaired metadata, for a look with `thin_dump`.
    pub file: PathBuf,
    tree: ClosedTree,
}

/// A snapshot that the repaired metadata has less of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReducedSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// How much was mapped according to the damaged metadata.
    pub before: Bytes,
    /// How much is mapped according to the repaired metadata.
    pub now: Bytes,
}

impl SnapshotTree {
    /// Repairs the metadata of the pool of a tree that is not open: `thin_repair` writes what it can save to a file in the
    /// root, this crate's own checker has to find it sound, and what it has is compared with the state. The pool still has
    /// its damaged metadata then: [`MetadataRepair::apply`] replaces it, and [`SnapshotTree::restore_metadata`] takes that
    /// back.
    ///
    /// The file takes as much space as the metadata device has, the copy of the damaged metadata takes it once more.
    ///
    /// ```no_run
    /// # fn main() -> dm_thin::tree::Result<()> {
    /// use dm_thin::tree::{Options, SnapshotTree};
    ///
    /// let repair = SnapshotTree::repair_metadata("/var/lib/example", &Options::new())?;
    /// println!("lost: {:?}, in parts: {:?}", repair.lost, repair.reduced);
    /// repair.apply()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`thin::Error::ToolMissing`](crate::thin::Error::ToolMissing); [`thin::Error::Tool`](crate::thin::Error::Tool) if nothing can be saved; [`Error::DamagedMetadata`] if what it
    /// saved is not sound; [`Error::Locked`], [`Error::Busy`] if the pool is active and in use;
    /// [`Error::ForeignPool`]; [`Error::InvalidOption`] if the pool is adopted: its owner repairs it.
    #[doc(alias = "thin_repair")]
    pub fn repair_metadata(root: impl AsRef<Path>, options: &Options) -> Result<MetadataRepair> {
        let mut tree = ClosedTree::open(root.as_ref(), options)?;
        let mut before = BTreeMap::new();
        if !tree.has(REPLACING)? {
            // As far as it can be read.
            let mapped = tree.pool()?.read(|metadata| Ok(mapped(metadata)?));
            before = mapped.unwrap_or_default();
            tree.save()?;
        }
        tree.compare(&before)
    }

    /// Takes a [replacement](MetadataRepair::apply) of the pool's metadata back: the damaged metadata that was there before
    /// is there again. What was changed since is lost. The tree must not be open.
    ///
    /// # Errors
    /// [`Error::Io`] with `NotFound` if there is no such metadata; else as
    /// [`repair_metadata`](Self::repair_metadata).
    pub fn restore_metadata(root: impl AsRef<Path>, options: &Options) -> Result<()> {
        let mut tree = ClosedTree::open(root.as_ref(), options)?;
        if tree.has(REPLACING)? {
            return Err(replacing(&tree.root));
        }
        tree.dir.rename(DAMAGED, REPLACING).map_err(Error::io("rename", tree.path(DAMAGED)))?;
        tree.sync_names()?;
        tree.replace()
    }
}

impl MetadataRepair {
    /// Replaces the pool's metadata by the repaired one; the damaged one is kept in a file of the root. The next open of
    /// the tree uses it, and its [`check`](SnapshotTree::check) names what is lost. If this is interrupted, no open
    /// accepts the tree until another [`repair_metadata`](SnapshotTree::repair_metadata) and `apply` have finished it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn apply(self) -> Result<()> {
        let Self { mut tree, .. } = self;
        if !tree.has(REPLACING)? {
            tree.keep_damaged()?;
            // From the rename on it is the only copy of what belongs on the device.
            let synced = tree.dir.open(REPAIRED, false).and_then(|file| file.sync());
            synced.map_err(Error::io("sync", tree.path(REPAIRED)))?;
            tree.dir.rename(REPAIRED, REPLACING).map_err(Error::io("rename", tree.path(REPAIRED)))?;
            tree.sync_names()?;
        }
        tree.replace()
    }
}

/// # Errors
/// [`Error::BackingFile`] if the metadata of the pool was being replaced when a process ended.
pub(in crate::tree) fn check_replaced(root: &Root, dir: &dyn StateDir) -> Result<()> {
    match dir.open(REPLACING, false) {
        Ok(_) => Err(replacing(root)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("open", root.current_path().join(REPLACING))(error)),
    }
}

fn replacing(root: &Root) -> Error {
    let reason =
        "holds metadata of the pool that is only half in place; SnapshotTree::repair_metadata finishes that";
    Error::BackingFile { path: root.current_path().join(REPLACING), reason }
}

/// A tree that no manager has open, and whose pool is not active.
#[derive(Debug)]
struct ClosedTree {
    kernel: Arc<dyn Kernel>,
    root: Root,
    dir: Arc<dyn StateDir>,
    store: Store,
    /// `None` only while its metadata is worked on.
    pool: Option<InactivePool>,
    _claim: Claim,
}

impl ClosedTree {
    fn open(path: &Path, options: &Options) -> Result<Self> {
        options.check()?;
        let kernel = options.kernel.clone();
        let dm = Arc::new(DeviceMapper::with_kernel(kernel.clone(), options.udev)?);
        // A root that is missing is not made.
        kernel.files().open_directory(path, Links::All).map_err(Error::io("open", path))?;
        let root = Root::open(&kernel, path)?;
        let dir: Arc<dyn StateDir> = match &options.state_dir {
            Some(dir) => dir.clone(),
            None => Arc::new(root.files()?),
        };
        let no_tree = || Error::io("open", path.join("state.json"))(Errno::ENOENT);
        let store = Store::load(root.path.clone(), dir.clone())?.ok_or_else(no_tree)?;
        store.read_state(|state| options.check_against(state))?;
        let record = store.read_state(|state| state.pool.clone());
        if let PoolSource::Pool { name } = &record.source {
            let reason = "adopted: its owner repairs its metadata";
            return Err(Error::InvalidOption { option: "pool source", value: name.clone(), reason });
        }
        let names = Names::new(&options.name_prefix, (root.device, root.inode), store.tree());
        let claim = Claim::take(&dm, &names, &root.path)?;
        remove_active(&dm, &names.pool_uuid()?)?;
        let pool = source::set_up(options, &dm, &root, &record, &names.name(POOL)?)?;
        if let Ok(Some(superblock)) = pool.superblock() {
            let found = superblock.transaction_id;
            store.read_state(|state| identity::compare(state, found, &pool.origin()))?;
        }
        Ok(Self { kernel, root, dir, store, pool: Some(pool), _claim: claim })
    }

    fn pool(&self) -> Result<&InactivePool> {
        self.pool.as_ref().ok_or(Error::Closed)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.current_path().join(name)
    }

    fn has(&self, name: &str) -> Result<bool> {
        match self.dir.open(name, false) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("open", self.path(name))(error)),
        }
    }

    fn sync_names(&self) -> Result<()> {
        self.dir.sync().map_err(Error::io("sync", self.root.current_path()))
    }

    /// Works on the metadata device, which is not claimed meanwhile.
    fn on_metadata<T>(&mut self, work: impl FnOnce(&Self, &Path) -> Result<T>) -> Result<T> {
        let pool = self.pool.take().ok_or(Error::Closed)?;
        let (pool, done) = pool.run_on_metadata(|node| work(self, node))?;
        self.pool = Some(pool);
        Ok(done)
    }

    /// Has `thin_repair` write what it can save.
    fn save(&mut self) -> Result<()> {
        let pool = self.pool()?;
        let (size, data_blocks) = (pool.metadata_size()?, pool.data_blocks());
        // Only the superblock has these.
        let lost = !matches!(pool.superblock(), Ok(Some(_)));
        let facts = lost.then(|| {
            self.store.read_state(|state| SuperblockOverrides {
                transaction_id: identity::transaction_id(state),
                block_size: state.pool.block_size.sectors(),
                data_blocks,
            })
        });
        let path = self.path(REPAIRED);
        self.empty_file(REPAIRED, size)?;
        self.on_metadata(|tree, node| Ok(thin_repair_with(&*tree.kernel, node, &path, facts.as_ref())?))
    }

    /// Makes a file that has space for all of the metadata.
    fn empty_file(&self, name: &str, size: Bytes) -> Result<File> {
        let (files, path) = (self.kernel.files(), self.path(name));
        let file = self.root.file(name, true).map_err(Error::io("create", &path))?;
        let made =
            files.resize_file(&file, Bytes(0)).and_then(|()| files.allocate_file(&file, Bytes(0), size));
        made.map_err(Error::io("allocate", &path))?;
        Ok(file)
    }

    /// Checks what was saved, and compares it with the state.
    fn compare(self, before: &BTreeMap<ThinId, Blocks>) -> Result<MetadataRepair> {
        let name = if self.has(REPLACING)? { REPLACING } else { REPAIRED };
        let file = self.path(name);
        let saved = Arc::new(self.root.file(name, false).map_err(Error::io("open", &file))?);
        let damaged = |source| Error::DamagedMetadata { path: file.clone(), source };
        let report = metadata::check(saved.clone()).map_err(damaged)?;
        // What is counted too often costs space, and nothing else.
        if !report.is_usable() {
            let reason = "was repaired, and this crate's checker still finds damage in it";
            return Err(Error::BackingFile { path: file, reason });
        }
        let now = Metadata::open(saved).and_then(|metadata| mapped(&metadata)).map_err(damaged)?;
        let block_size = self.store.read_state(|state| state.pool.block_size);
        let bytes = |blocks: Blocks| Bytes(blocks.0 * block_size.0);
        let (mut lost, mut reduced) = (Vec::new(), Vec::new());
        let (base_is_lost, unknown) = self.store.read(|graph: &Graph| {
            for (id, snapshot) in &graph.snapshots {
                let was = before.get(&snapshot.thin_id).copied();
                match (now.get(&snapshot.thin_id), was) {
                    (None, _) => lost.push(id.clone()),
                    (Some(&now), Some(was)) if now < was => {
                        reduced.push(ReducedSnapshot { id: id.clone(), before: bytes(was), now: bytes(now) });
                    }
                    _ => {}
                }
            }
            let base_is_lost = graph.base.as_ref().is_some_and(|base| !now.contains_key(&base.thin_id));
            (base_is_lost, now.keys().copied().filter(|id| !graph.uses(*id)).collect())
        });
        lost.sort();
        reduced.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(MetadataRepair { lost, base_is_lost, reduced, unknown, file, tree: self })
    }

    /// Copies the metadata as it is now to a file, durably.
    fn keep_damaged(&mut self) -> Result<()> {
        let size = self.pool()?.metadata_size()?;
        let (name, path) = ("metadata.damaged.tmp", self.path("metadata.damaged.tmp"));
        let file = self.empty_file(name, size)?;
        self.on_metadata(|tree, node| {
            let kernel = &*tree.kernel;
            let device = kernel.open(node, Access::READ.exclusive()).map_err(Error::io("open", node))?;
            each_chunk(size, |offset, chunk| {
                blank::read_exact(kernel, &device, offset, chunk).map_err(Error::io("read", node))?;
                file.write_all_at(chunk, offset).map_err(Error::io("write", &path))
            })
        })?;
        self.kernel.files().sync_file(&file).map_err(Error::io("sync", &path))?;
        self.dir.rename(name, DAMAGED).map_err(Error::io("rename", &path))?;
        self.sync_names()
    }

    /// Copies `metadata.replacing` to the device, durably, and removes it.
    fn replace(&mut self) -> Result<()> {
        let (path, size) = (self.path(REPLACING), self.pool()?.metadata_size()?);
        let file = self.root.file(REPLACING, false).map_err(Error::io("open", &path))?;
        self.on_metadata(|tree, node| {
            let kernel = &*tree.kernel;
            let device =
                kernel.open(node, Access::READ_WRITE.exclusive()).map_err(Error::io("open", node))?;
            each_chunk(size, |offset, chunk| {
                file.read_exact_at(chunk, offset).map_err(Error::io("read", &path))?;
                blank::write_all(kernel, &device, offset, chunk).map_err(Error::io("write", node))
            })?;
            kernel.sync(&device).map_err(Error::io("sync", node))
        })?;
        self.dir.remove(REPLACING).map_err(Error::io("remove", &path))?;
        self.sync_names()
    }
}

/// Removes the pool's device if nobody uses it.
fn remove_active(dm: &DeviceMapper, uuid: &DmUuid) -> Result<()> {
    let Some(pool) = dm.find(uuid)? else { return Ok(()) };
    match dm.remove(uuid) {
        Err(error) if error.is_busy() => Err(busy(&pool.name, pool.open_count)),
        Err(error) if error.errno() == Some(Errno::ENXIO) => Ok(()),
        result => Ok(result.map(drop)?),
    }
}

/// How much each volume maps.
fn mapped(metadata: &Metadata) -> Result<BTreeMap<ThinId, Blocks>, MetadataError> {
    Ok(metadata.devices()?.into_iter().map(|device| (device.id, device.mapped)).collect())
}

fn each_chunk(size: Bytes, mut work: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    (0..size.0).step_by(CHUNK).try_for_each(|offset| {
        let length = usize::try_from(size.0 - offset).map_or(CHUNK, |rest| rest.min(CHUNK));
        work(offset, &mut buffer[..length])
    })
}
