//! Opening a tree, or making it: everything, or nothing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::claim::Claim;
use super::files::StateDir;
use super::graph::{FsState, Graph};
use super::hold::HoldNote;
use super::identity::{self, Relation, Volumes};
use super::journal::{FORMAT, PoolRecord, Position, State};
use super::mount::Mounts;
use super::pool_source::PoolSource;
use super::root::Root;
use super::store::Store;
use super::{Options, SnapshotTree, pool_uuid, source, volume_name};
use crate::dm::{DeviceMapper, DmName, DmUuid};
use crate::thin::tools::{self, CheckPolicy};
use crate::thin::{PoolStatus, ThinPool, TransactionId};
use crate::{Error, Result, StateAge};

impl SnapshotTree {
    /// Open the tree at `root`, or make it if there is none.
    ///
    /// What a crash or a restart left is put right first: pool and loop devices are set up again, volumes
    /// without a record are deleted, interrupted removals finished, a half-made base made anew, active and
    /// mounted snapshots taken over.
    ///
    /// # Errors
    /// [`Error::NoDeviceMapper`], [`Error::NotPermitted`], [`Error::NoLoopDevices`], [`Error::MkfsMissing`] for what the
    /// machine lacks; [`Error::Root`], [`Error::Locked`], [`Error::Corrupt`], [`Error::BackingFile`], [`Error::ForeignPool`],
    /// [`Error::StateOlderThanPool`], [`Error::PoolOlderThanState`] for
    /// what is wrong at `root`; [`Error::OtherRoot`] if the tree is active from another root, of which this one is a copy; [`Error::InvalidOption`], [`Error::OptionConflict`]; [`Error::Tool`] for what `thin_check`
    /// found, if [`Options::check_metadata`] asks for it, or the pool's `needs_check` flag does, and
    /// [`Error::ToolMissing`] without it. After an error everything is as
    /// it was before: nothing is attached, active or mounted, and no file is made.
    pub fn open(root: impl AsRef<Path>, options: Options) -> Result<Self> {
        options.check()?;
        let dm = Arc::new(DeviceMapper::with_kernel(options.kernel.clone(), options.udev)?);
        let root = Root::open(&options.kernel, root.as_ref())?;
        let dir: Arc<dyn StateDir> = match &options.state_dir {
            Some(dir) => dir.clone(),
            None => Arc::new(root.files()?),
        };
        if let Some(store) = Store::load(root.path.clone(), dir.clone())? {
            store.read_state(|state| options.check_against(state))?;
            return Self::assemble(options, root, store, dm).map_err(|failed| failed.0);
        }
        refuse_orphans(&options, &root, &*dir)?;
        let record = match root.sync_name().and_then(|()| source::new_record(&options, &dm)) {
            Ok(record) => record,
            Err(error) => {
                root.clear(&*dir);
                return Err(error);
            }
        };
        let unmaking = options.clone();
        let undo = |root: Root| {
            source::unmake(&unmaking, &dm, &record);
            root.clear(&*dir);
        };
        let store = match Store::create(root.path.clone(), dir.clone(), new_state(&options, record.clone())) {
            Ok(store) => store,
            Err(error) => {
                undo(root);
                return Err(error);
            }
        };
        Self::assemble(options, root, store, dm.clone()).map_err(|failed| {
            let (error, root) = *failed;
            // Not under a pool that could not be taken down.
            root.into_iter().for_each(undo);
            error
        })
    }

    /// An error comes with the root, unless something is active there.
    fn assemble(
        options: Options,
        root: Root,
        mut store: Store,
        dm: Arc<DeviceMapper>,
    ) -> Result<Self, Box<(Error, Option<Root>)>> {
        let (tree, filesystem) = store.read_state(|state| (state.tree, state.filesystem));
        let ready = store.read(|graph| graph.base.as_ref().is_some_and(|base| base.fs == FsState::Ready));
        let claimed = if ready { Ok(()) } else { filesystem.check_maker(&*options.kernel) }
            .and_then(|()| Claim::take(&dm, &options, &root, tree));
        let claim = match claimed {
            Ok(claim) => claim,
            Err(error) => return Err(Box::new((error, Some(root)))),
        };
        let pool = HoldNote::open(&root.path, &*store.dir())
            .and_then(|hold| Ok((hold, open_pool(&options, &root, &mut store, &dm)?)))
            .and_then(|(hold, opened)| Ok((hold, guard(opened, &options, &store)?)));
        let (hold, opened) = match pool {
            Ok(pool) => pool,
            Err(error) => return Err(Box::new((error, Some(root)))),
        };
        let mounts = Mounts::load(store.dir());
        let OpenedPool { pool, activated, volumes } = opened;
        let this = Self {
            options,
            root,
            tree,
            filesystem,
            store,
            hold,
            pool,
            generation: Mutex::default(),
            slots: Mutex::new(HashMap::new()),
            mounts,
            claim: Mutex::new(claim),
            growing: Mutex::new(()),
            closed: AtomicBool::new(false),
        };
        match this.agree(activated, volumes) {
            Ok(()) => Ok(this),
            Err(error) => {
                let down = !activated || this.take_down().is_ok();
                Err(Box::new((error, Some(this.root).filter(|_| down))))
            }
        }
    }
}

fn new_state(options: &Options, pool: PoolRecord) -> State {
    State {
        format: FORMAT,
        tree: Uuid::new_v4(),
        nonce: identity::new_nonce(),
        generation: 0,
        journal: Position::default(),
        pool,
        filesystem: options.new_filesystem(),
        graph: Graph::default(),
    }
}

/// A pool, or changes, without a state: something was lost, and nothing may be written over the rest.
fn refuse_orphans(options: &Options, root: &Root, dir: &dyn StateDir) -> Result<()> {
    let journal = dir.open("journal.jsonl", false).and_then(|file| file.size());
    let path = if source::has_files(options, root) {
        root.pool_path()
    } else if journal.is_ok_and(|size| size > 0) {
        root.path.join("journal.jsonl")
    } else {
        return Ok(());
    };
    Err(Error::BackingFile { path, reason: "is there, but state.json is not: it was lost or moved away" })
}

/// A pool's name carries the root that activated it. Another root's pool is in use by that one: this root is a copy.
fn check_name(options: &Options, root: &Root, name: &DmName) -> Result<()> {
    let own = root.suffix("pool");
    if options.take_over_pool || name.as_bytes().ends_with(own.as_bytes()) {
        return Ok(());
    }
    Err(Error::OtherRoot { path: root.path.clone(), device: name.to_string() })
}

/// The tree's pool.
struct OpenedPool {
    pool: ThinPool,
    /// This call activated it.
    activated: bool,
    /// The thin devices that it had before that.
    volumes: Option<Volumes>,
}

/// Refuses a pool that is not this tree's, or of another time. A pool that was not made yet has no transaction id.
fn check_pool(options: &Options, store: &Store, found: TransactionId, pool: &str) -> Result<()> {
    store.read_state(|state| {
        if !state.pool.made && found == TransactionId(0) {
            return Ok(());
        }
        match identity::compare(state, found, pool)? {
            Relation::Ahead if !options.accept_older_state => {
                let (state, pool) = (state.generation, identity::generation(found));
                Err(Error::StateOlderThanPool { evidence: StateAge::Generation { state, pool } })
            }
            _ => Ok(()),
        }
    })
}

/// Gives a new pool the tree's nonce before the state says that it was made.
fn claim_pool(pool: &ThinPool, store: &Store) -> Result<()> {
    let wanted = store.read_state(identity::transaction_id);
    match pool.status()? {
        PoolStatus::Usage(usage) if usage.transaction_id != wanted => {
            pool.set_transaction_id(usage.transaction_id, wanted)
        }
        _ => Ok(()),
    }
}

/// From here on the pool refuses to allocate when it has too little space.
fn guard(opened: OpenedPool, options: &Options, store: &Store) -> Result<OpenedPool> {
    let OpenedPool { pool, activated, volumes } = opened;
    let (dm, name) = (pool.device_mapper().clone(), *pool.name());
    let guarded = pool.with_guard(options.guard()).inspect_err(|_| {
        if activated {
            let record = store.read_state(|state| state.pool.clone());
            // Best effort: return the original error.
            let _ = source::deactivate(&dm, &name, &record);
        }
    });
    Ok(OpenedPool { pool: guarded?, activated, volumes })
}

fn open_pool(
    options: &Options,
    root: &Root,
    store: &mut Store,
    dm: &Arc<DeviceMapper>,
) -> Result<OpenedPool> {
    let (tree, record) = store.read_state(|state| (state.tree, state.pool.clone()));
    let active = |pool| OpenedPool { pool, activated: false, volumes: None };
    if let PoolSource::Pool { name } = &record.source {
        return source::adopted(dm, name, &record).map(active);
    }
    let uuid = pool_uuid(tree)?;
    if let Some(status) = dm.find((&uuid).into())? {
        if status.has_live_table() {
            check_name(options, root, &status.name)?;
            let pool = ThinPool::open(dm.clone(), &status.name)?;
            if let PoolStatus::Usage(usage) = pool.status()? {
                check_pool(options, store, usage.transaction_id, &status.name.to_string())?;
            }
            if status.is_suspended() {
                dm.resume(&status.name)?;
            }
            source::check_block_size(&pool, &record)?;
            dm.ensure_node(&status.name, status.number)?;
            if !record.made {
                store.set_made()?;
            }
            return Ok(active(pool));
        }
        // Left without a table by a process that died while it activated the pool.
        dm.remove(&status.name)?;
    }
    activate_pool(options, root, store, dm, &record, &uuid)
}

fn activate_pool(
    options: &Options,
    root: &Root,
    store: &mut Store,
    dm: &Arc<DeviceMapper>,
    record: &PoolRecord,
    uuid: &DmUuid,
) -> Result<OpenedPool> {
    if !record.made {
        source::make(options, dm, root, record)?;
    }
    let name = volume_name(&options.name_prefix, root, "pool")?;
    let mut inactive = source::set_up(options, dm, root, record, &name)?;
    let volumes = match inactive.superblock()? {
        None if record.made => return Err(inactive.superblock_gone()),
        None => Volumes::default(),
        Some(superblock) => {
            check_pool(options, store, superblock.transaction_id, &inactive.origin())?;
            if options.check_metadata != CheckPolicy::Never {
                let check = |metadata: &Path| options.check_metadata.check_with(&options.kernel, metadata);
                (inactive, ()) = inactive.run_on_metadata(check)?;
            }
            if superblock.needs_check {
                let clear = |metadata: &Path| tools::clear_needs_check_with(&*options.kernel, metadata);
                (inactive, ()) = inactive.run_on_metadata(clear)?;
            }
            inactive.read(|metadata| store.read(|graph| Volumes::read(metadata, graph)))?
        }
    };
    let pool = inactive.activate(&name, uuid)?;
    if !record.made
        && let Err(error) = claim_pool(&pool, store).and_then(|()| store.set_made())
    {
        // Best effort: return the original error.
        let _ = source::deactivate(dm, &name, record);
        return Err(error);
    }
    Ok(OpenedPool { pool, activated: true, volumes: Some(volumes) })
}
