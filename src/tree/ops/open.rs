//! Opening a tree, or making it: everything, or nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use uuid::Uuid;

use crate::dm::DeviceMapper;
use crate::kernel::CountingKernel;
use crate::retry::Retry;
use crate::thin;
use crate::thin::tools;
use crate::thin::{PoolStatus, ThinPool};
use crate::tree::live::mount_options::MountOptions;
use crate::tree::live::mounts::{MountDefaults, Mounts};
use crate::tree::live::ready::ReadySnapshots;
use crate::tree::live::snapshots::LiveSnapshots;
use crate::tree::live::work::Work;
use crate::tree::names::{Names, POOL};
use crate::tree::ops::recognise::{Found, Opening, Recognised, recognise};
use crate::tree::ops::repair_metadata::check_replaced;
use crate::tree::pool::claim::Claim;
use crate::tree::pool::hold::HoldNote;
use crate::tree::state::files::StateDir;
use crate::tree::state::graph::Graph;
use crate::tree::state::identity;
use crate::tree::state::journal::{FORMAT, PoolRecord, Position, State};
use crate::tree::state::root::Root;
use crate::tree::state::store::{JOURNALS, OLD_JOURNAL, Store};
use crate::tree::{Error, Recovered, Result, trace};
use crate::tree::{Options, SnapshotTree, Threads, pool::source, pool::tree_pool::TreePool};
use crate::units::Bytes;

impl SnapshotTree {
    /// Opens the tree at `root`, or creates it if there is none.
    ///
    /// What a crash or a restart left is put right first: pool and loop devices are set up again, volumes
    /// without a record are deleted, interrupted removals finished, a half-made base made anew, active and
    /// mounted snapshots taken over.
    ///
    /// A pool that cannot commit (read-only, without metadata space, failed) is activated anew if it is unused, and
    /// extended if [`Options::auto_extend`] allows it. If that does not help the tree opens all the same, for looking,
    /// reading and removing: snapshots that are removed are gone for callers, and deleted by the first open that can.
    ///
    /// # Errors
    /// - The machine lacks something: [`dm::Error::NoDeviceMapper`](crate::dm::Error::NoDeviceMapper),
    ///   [`dm::Error::NotPermitted`](crate::dm::Error::NotPermitted),
    ///   [`loopdev::Error::NoLoopDevices`](crate::loopdev::Error::NoLoopDevices), [`Error::MkfsMissing`].
    /// - Root, state and pool do not fit: [`Error::Root`], [`Error::Locked`], [`Error::Corrupt`],
    ///   [`Error::BackingFile`], [`Error::ForeignPool`], [`Error::StateOlderThanPool`],
    ///   [`Error::PoolOlderThanState`]; [`Error::OtherRoot`] if this root is a copy of the one that the tree is
    ///   active from.
    /// - Options: [`Error::InvalidOption`], [`Error::OptionConflict`].
    /// - [`thin::Error::Tool`] if `thin_check`, which runs where [`Options::check_metadata`] or the pool's
    ///   `needs_check` flag asks for it, finds damage; [`thin::Error::ToolMissing`] if it is not installed.
    ///
    /// An error changes nothing: nothing stays attached, active or mounted, and no file is created.
    pub fn open(root: impl AsRef<Path>, options: Options) -> Result<Self> {
        let root = root.as_ref();
        trace::call("open", &root.to_string_lossy(), || Self::open_now(root, options))
    }

    fn open_now(root: &Path, mut options: Options) -> Result<Self> {
        options.check()?;
        let counts = Arc::new(CountingKernel::new(options.kernel));
        options.kernel = counts.clone();
        let dm = Arc::new(DeviceMapper::with_kernel(options.kernel.clone(), options.udev)?);
        let root = Root::open(&options.kernel, root)?;
        let dir: Arc<dyn StateDir> = match &options.state_dir {
            Some(dir) => dir.clone(),
            None => Arc::new(root.files()?),
        };
        if let Some(store) = Store::load(root.path.clone(), dir.clone())? {
            store.read_state(|state| options.check_against(state))?;
            check_replaced(&root, &*dir)?;
            return Self::assemble(options, root, store, dm, counts).map_err(|failed| failed.0);
        }
        refuse_orphans(&options, &root, &*dir)?;
        let record = options.check_new().and_then(|()| root.sync_name());
        let record = match record.and_then(|()| source::new_record(&options, &dm)) {
            Ok(record) => record,
            Err(error) => {
                root.clear(&*dir);
                return Err(error);
            }
        };
        let unmaking = options.clone();
        let undo = |root: Root, error: &Error| {
            // Data written to the device since the check stays.
            if !matches!(error, Error::Thin(thin::Error::DeviceInUse { .. })) {
                source::unmake(&unmaking, &dm, &record);
            }
            root.clear(&*dir);
        };
        let store = match Store::create(root.path.clone(), dir.clone(), new_state(&options, record.clone())) {
            Ok(store) => store,
            Err(error) => {
                undo(root, &error);
                return Err(error);
            }
        };
        Self::assemble(options, root, store, dm.clone(), counts).map_err(|failed| {
            let (error, root) = *failed;
            // Not under a pool that could not be taken down.
            root.into_iter().for_each(|root| undo(root, &error));
            error
        })
    }

    /// An error comes with the root, unless something is active there.
    fn assemble(
        options: Options,
        root: Root,
        store: Store,
        dm: Arc<DeviceMapper>,
        counts: Arc<CountingKernel>,
    ) -> Result<Self, Box<(Error, Option<Root>)>> {
        let filesystem = store.filesystem();
        let names = Names::new(&options.name_prefix, (root.device, root.inode), store.tree());
        let claimed = if store.awaits_base() { filesystem.check_maker(&*options.kernel) } else { Ok(()) }
            .and_then(|()| Claim::take(&dm, &names, &root.path));
        let claim = match claimed {
            Ok(claim) => claim,
            Err(error) => return Err(Box::new((error, Some(root)))),
        };
        let opened = HoldNote::open(&root.path, &*store.dir()).and_then(|hold| {
            let opening = Opening {
                options: &options,
                root: &root,
                store: &store,
                dm: &dm,
                names: &names,
                hold: &hold,
            };
            let mut found = Vec::new();
            if store.cut > Bytes(0) {
                found.push(Recovered::JournalCut { length: store.cut });
            }
            let Recognised { pool, volumes, active } = recognise(&opening, &mut found)?;
            let opened = guard(activate(&opening, pool, &mut found)?, &options, &store)?;
            Ok((hold, opened, volumes, active, found))
        });
        let (hold, OpenedPool { pool, activated }, volumes, active, mut found) = match opened {
            Ok(opened) => opened,
            Err(error) => return Err(Box::new((error, Some(root)))),
        };
        let pool = TreePool::new(pool, names, hold, claim, options.busy_timeout);
        let how = MountDefaults {
            filesystem,
            options: MountOptions::new().flags(options.mount_flags).options(&options.mount_options),
        };
        let mounts = Mounts::load(options.kernel.clone(), how, store.dir());
        let ready = ReadySnapshots::new(options.keep_one_active);
        store.read(|graph| {
            graph.ready.iter().for_each(|(&origin, &count)| ready.keep(origin, usize::from(count)))
        });
        let mut this = Self {
            _threads: Threads::default(),
            options,
            root: Arc::new(root),
            store: Arc::new(store),
            pool: Arc::new(pool),
            live: Arc::new(LiveSnapshots::default()),
            mounts: Arc::new(mounts),
            ready: Arc::new(ready),
            work: Arc::new(Work::default()),
            closed: Arc::new(AtomicBool::new(false)),
            counts,
            recovered: Arc::new([]),
        };
        let reconciled = this.reconcile(volumes.as_ref(), &active, &mut found);
        this.recovered = found.into();
        this.recovered.iter().for_each(trace::recovered);
        if reconciled.is_ok() && this.options.background_threads {
            this._threads = this.start_threads();
        }
        match reconciled {
            Ok(()) => Ok(this),
            Err(error) => {
                let down = !activated || this.undo_open().is_ok();
                Err(Box::new((error, Arc::into_inner(this.root).filter(|_| down))))
            }
        }
    }
}

fn new_state(options: &Options, pool: PoolRecord) -> State {
    State {
        format: FORMAT,
        tree: Uuid::new_v4(),
        nonce: identity::new_nonce(),
        new_nonce: false,
        generation: 0,
        journal: Position::default(),
        pool,
        filesystem: options.new_filesystem(),
        graph: Graph::default(),
    }
}

/// A pool, or changes, without a state: something was lost, and nothing may be written over the rest.
fn refuse_orphans(options: &Options, root: &Root, dir: &dyn StateDir) -> Result<()> {
    let has_lines =
        |name: &&&str| dir.open(name, false).and_then(|file| file.size()).is_ok_and(|size| size > 0);
    let path = if source::has_files(options, root) {
        root.pool_path()
    } else if let Some(name) = JOURNALS.iter().chain(&[OLD_JOURNAL]).find(has_lines) {
        root.path.join(name)
    } else {
        return Ok(());
    };
    Err(Error::BackingFile { path, reason: "exists, but state.json does not: it was lost or moved" })
}

/// The tree's pool, active.
struct OpenedPool {
    pool: ThinPool,
    /// This call activated it.
    activated: bool,
}

/// Makes a recognised pool active.
fn activate(opening: &Opening<'_>, pool: Found, recovered: &mut Vec<Recovered>) -> Result<OpenedPool> {
    let Opening { options, root, store, dm, names, .. } = *opening;
    let record = store.read_state(|state| state.pool.clone());
    let name = names.name(POOL)?;
    let inactive = match pool {
        Found::Active(pool) => {
            if !record.made {
                claim_pool(&pool, store)?;
            }
            return Ok(OpenedPool { pool, activated: false });
        }
        Found::Inactive { pool, needs_check: false } => pool,
        Found::Inactive { pool, needs_check: true } => {
            let clear = |metadata: &Path| tools::clear_needs_check_with(&*options.kernel, metadata);
            let (pool, ()) = pool.run_on_metadata(clear)?;
            recovered.push(Recovered::NeedsCheckCleared);
            pool
        }
        Found::Unmade => {
            source::make(options, dm, root, &record)?;
            let pool = source::set_up(options, dm, root, &record, &name)?;
            // A process that died here has left what the kernel formatted.
            if let Some(superblock) = pool.superblock()? {
                opening.check_time(superblock.transaction_id, &pool.origin())?;
            }
            pool
        }
    };
    let pool = inactive.activate(&name, &names.pool_uuid()?)?;
    if !record.made
        && let Err(error) = claim_pool(&pool, store)
    {
        take_down(&pool, &record, options.busy_timeout);
        return Err(error);
    }
    Ok(OpenedPool { pool, activated: true })
}

/// Gives a new pool the tree's nonce, then says in the state that the pool is made.
fn claim_pool(pool: &ThinPool, store: &Store) -> Result<()> {
    let wanted = store.read_state(identity::transaction_id);
    if let PoolStatus::Usage(usage) = pool.status()?
        && usage.transaction_id != wanted
    {
        pool.set_transaction_id(usage.transaction_id, wanted)?;
    }
    store.set_made()
}

/// Deactivates a pool again. Best effort: the caller returns the error that made it necessary.
fn take_down(pool: &ThinPool, record: &PoolRecord, timeout: Duration) {
    let mut retry = Retry::within(timeout);
    // udev looks at new devices.
    while source::deactivate(pool, record).is_err_and(|error| error.is_busy()) && retry.pause() {}
}

/// From here on the pool refuses to allocate when it has too little space.
fn guard(opened: OpenedPool, options: &Options, store: &Store) -> Result<OpenedPool> {
    let OpenedPool { pool, activated } = opened;
    let (dm, name) = (pool.device_mapper().clone(), *pool.name());
    let guarded = pool.with_guard(options.guard()).inspect_err(|_| {
        if activated {
            let record = store.read_state(|state| state.pool.clone());
            // Best effort: return the original error.
            let _ = ThinPool::open(dm, &name).map(|pool| take_down(&pool, &record, options.busy_timeout));
        }
    });
    Ok(OpenedPool { pool: guarded?, activated })
}
