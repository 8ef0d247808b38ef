//! Opening: the state, the pool and what is active are brought to agree.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use uuid::Uuid;

use super::active::{Mounted, Slot};
use super::files::{RealDir, StateDir};
use super::graph::{Base, FsState, Graph, Record};
use super::journal::{FORMAT, PoolRecord, Position, State};
use super::pool_source::PoolSource;
use super::root::Root;
use super::store::Store;
use super::{Filesystem, Options, SnapshotId, SnapshotTree, mount, pool_uuid, source, volume_name};
use crate::dm::{DeviceMapper, DeviceStatus, DmFlags, DmId, DmName, DmUuid};
use crate::thin::{PoolStatus, ThinId, ThinPool, ThinVolume};
use crate::units::Bytes;
use crate::{Error, Result};

/// The base's name among the volumes; no snapshot can have it.
const BASE: &str = "base";

impl SnapshotTree {
    /// Open the tree at `root`, or make it if there is none.
    ///
    /// What a crash or a restart left is put right first: pool and loop devices are set up again, volumes
    /// without a record are deleted, interrupted removals finished, a half-made base made anew, active and
    /// mounted snapshots taken over.
    ///
    /// # Errors
    /// [`Error::NoDeviceMapper`], [`Error::NotPermitted`], [`Error::NoLoopDevices`], [`Error::MkfsMissing`] for what the
    /// machine lacks; [`Error::Root`], [`Error::Locked`], [`Error::Corrupt`], [`Error::BackingFile`], [`Error::GenerationMismatch`] for
    /// what is wrong at `root`; [`Error::InvalidOption`], [`Error::OptionConflict`]. After an error everything is as
    /// it was before: nothing is attached, active or mounted, and no file is made.
    pub fn open(root: impl AsRef<Path>, options: Options) -> Result<Self> {
        options.check()?;
        let dm = Arc::new(DeviceMapper::with_kernel(options.kernel.clone(), options.udev)?);
        let root = Root::open(root.as_ref())?;
        let dir: Arc<dyn StateDir> = match &options.state_dir {
            Some(dir) => dir.clone(),
            None => Arc::new(RealDir::open(&root.path).map_err(Error::io("open", &root.path))?),
        };
        if let Some(store) = Store::load(root.path.clone(), dir.clone())? {
            store.read_state(|state| options.check_against(state))?;
            return Self::assemble(options, root, store, dm).map_err(|failed| failed.0);
        }
        refuse_orphans(&root, &*dir)?;
        let record = match source::new_record(&options, &dm) {
            Ok(record) => record,
            Err(error) => {
                root.clear(&*dir);
                return Err(error);
            }
        };
        let undo = |root: Root| {
            source::unmake(&record);
            root.clear(&*dir);
        };
        let store = match Store::create(root.path.clone(), dir.clone(), new_state(&options, record.clone())) {
            Ok(store) => store,
            Err(error) => {
                undo(root);
                return Err(error);
            }
        };
        Self::assemble(options, root, store, dm).map_err(|failed| {
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
        store: Store,
        dm: Arc<DeviceMapper>,
    ) -> Result<Self, Box<(Error, Option<Root>)>> {
        let (tree, filesystem) = store.read_state(|state| (state.tree, state.filesystem));
        let ready = store.read(|graph| graph.base.as_ref().is_some_and(|base| base.fs == FsState::Ready));
        let pool = if ready { Ok(()) } else { filesystem.check_maker() }
            .and_then(|()| open_pool(&options, &root, &store, &dm))
            .and_then(|(pool, activated)| guard(pool, activated, &options, &store));
        let (pool, activated) = match pool {
            Ok(pool) => pool,
            Err(error) => return Err(Box::new((error, Some(root)))),
        };
        let this = Self {
            options,
            root,
            tree,
            filesystem,
            store,
            pool,
            transaction_id: Mutex::new(0),
            slots: Mutex::new(HashMap::new()),
            closed: AtomicBool::new(false),
        };
        match this.agree(activated) {
            Ok(()) => Ok(this),
            Err(error) => {
                let down = !activated || this.take_down().is_ok();
                Err(Box::new((error, Some(this.root).filter(|_| down))))
            }
        }
    }

    fn agree(&self, activated: bool) -> Result<()> {
        self.check_generation()?;
        if !activated {
            self.take_over()?;
        }
        self.sweep_nodes()?;
        self.reap_closed()?;
        self.sweep_ids()?;
        self.make_base()?;
        self.check_base()?;
        self.grow_base()
    }

    /// The pool's transaction id is the state's generation, or one less: then the power went between the
    /// checkpoint and the message.
    fn check_generation(&self) -> Result<()> {
        let usage = match self.pool.status()? {
            PoolStatus::Usage(usage) => usage,
            status => return Err(source::pool_mode(&self.pool, status.mode())),
        };
        if !self.store.read_state(|state| state.pool.follows_generation()) {
            return Ok(());
        }
        let state = self.store.read_state(|state| state.generation);
        let pool = usage.transaction_id;
        if pool != state && Some(pool) != state.checked_sub(1) {
            return Err(Error::GenerationMismatch { state, pool });
        }
        *self.transaction_id.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = pool;
        self.settle(state)
    }

    /// Devices of this tree that a manager before this one left active.
    fn take_over(&self) -> Result<()> {
        let dm = self.pool.device_mapper();
        let mounts = mount::mounts(&*self.options.kernel)?;
        let names: HashMap<ThinId, SnapshotId> = self.store.read(|graph| {
            let visible = graph.snapshots.iter().filter(|(_, snapshot)| !snapshot.deleting);
            visible.map(|(id, snapshot)| (snapshot.thin_id, id.clone())).collect()
        });
        let deleting: HashSet<ThinId> = self.store.read(|graph| {
            let deleting = graph.deleting().iter().filter_map(|id| graph.snapshots.get(id));
            deleting.map(|snapshot| snapshot.thin_id).collect()
        });
        for (status, thin_id) in self.active_devices()? {
            let targets = mounts.iter().filter(|(number, _)| *number == status.number);
            let mut targets: Vec<_> = targets.map(|(_, target)| target.clone()).collect();
            if let Some(own) = targets.iter().position(|target| *target == self.grow_target(thin_id)) {
                // A growing that was interrupted.
                let target = targets.remove(own);
                mount::unmount(&*self.options.kernel, &target)?;
                let _ = std::fs::remove_dir(&target);
            }
            let known = names.get(&thin_id).filter(|_| status.has_live_table());
            let Some(id) = known else {
                // Not recorded, or never finished: the same as never made. What is to be deleted may be open.
                match dm.remove(&status.name) {
                    Err(error) if error.is_busy() && deleting.contains(&thin_id) => {}
                    Err(error) if error.is_busy() => {
                        self.patiently(&status.name, || dm.remove(&status.name))?;
                    }
                    result => result?,
                }
                continue;
            };
            if status.is_suspended() {
                dm.resume(&status.name)?;
            }
            dm.ensure_node(&status.name, status.number)?;
            let mut volume = self.pool.active_volume(&status.name)?;
            let name = self.volume_name(id.as_str())?;
            if *volume.name() != name {
                // A rename was interrupted, or the root has moved. Under a foreign name it works as well.
                let _ = volume.rename(&name);
            }
            let mounted = targets.into_iter().next().map(|target| Mounted { target, count: 1, made: false });
            let slot = Slot {
                volume: Some(volume),
                leaving: status.flags.contains(DmFlags::DEFERRED_REMOVE),
                held: mounted.is_none(),
                mounted,
            };
            self.slots().insert(id.clone(), Arc::new(Mutex::new(slot)));
        }
        Ok(())
    }

    /// Volumes of this tree that are active, told by their uuids.
    pub(super) fn active_devices(&self) -> Result<Vec<(DeviceStatus, ThinId)>> {
        let dm = self.pool.device_mapper();
        let prefix = DmUuid::format(format_args!("DMTHIN-{}-", self.tree.simple()))?;
        let mut active = Vec::new();
        // The kernel sorts the others out since interface 4.45; before, the list has no uuids.
        let devices = match dm.version().minor {
            45.. => dm.list_matching(None, Some(&prefix))?,
            _ => dm.list()?,
        };
        for device in devices {
            // It can go at any time.
            let Some(status) = dm.find(DmId::Number(device.number))? else { continue };
            let uuid = status.uuid;
            let id = uuid.as_ref().and_then(|uuid| uuid.as_str().strip_prefix(prefix.as_str()));
            if let Some(id) = id.and_then(|id| id.parse().ok()) {
                active.push((status, id));
            }
        }
        Ok(active)
    }

    /// Nodes of this tree's devices without the device: left by a process that died in between.
    pub(super) fn sweep_nodes(&self) -> Result<()> {
        self.stale_nodes()?.iter().try_for_each(|name| self.pool.device_mapper().remove_node(name))
    }

    pub(super) fn stale_nodes(&self) -> Result<Vec<DmName>> {
        let dm = self.pool.device_mapper();
        let prefix = volume_name(&self.options.name_prefix, &self.root, "")?;
        let names = self.options.kernel.mapper_node_names().map_err(|errno| Error::Io {
            action: "list",
            path: "/dev/mapper".into(),
            source: errno.into(),
        })?;
        let mut stale = Vec::new();
        for name in names {
            let Some(name) = name.to_str().filter(|name| name.starts_with(prefix.as_str())) else { continue };
            let name = DmName::new(name)?;
            if dm.find((&name).into())?.is_none() {
                stale.push(name);
            }
        }
        Ok(stale)
    }

    /// Delete what the pool may have got without a record.
    fn sweep_ids(&self) -> Result<()> {
        if self.store.read_state(|state| state.pool.source.is_shared()) {
            return Ok(());
        }
        let unknown: Vec<_> =
            self.store.read(|graph| graph.ids.ids().filter(|id| !graph.uses(*id)).collect());
        unknown.into_iter().try_for_each(|id| self.delete_id(id))
    }

    fn delete_id(&self, id: ThinId) -> Result<()> {
        match self.pool.delete(id) {
            Err(error) if error.errno() != Some(Errno::ENODATA) => Err(error),
            _ => Ok(()),
        }
    }

    fn make_base(&self) -> Result<()> {
        match self.store.read(|graph| graph.base.clone()) {
            Some(base) if base.fs != FsState::Making => return Ok(()),
            Some(half_made) => self.delete_id(half_made.thin_id)?,
            None => {}
        }
        let mut reservation = self.store.reserve(None)?;
        loop {
            match self.pool.create_thin(reservation.thin_id) {
                Err(error) if error.is_exists() => self.store.take_another(&mut reservation)?,
                result => break result?,
            }
        }
        let (size, filesystem) = (self.options.new_base_size(), self.filesystem);
        let base = Base {
            thin_id: reservation.thin_id,
            size,
            filesystem,
            filesystem_uuid: Uuid::new_v4(),
            fs: if filesystem == Filesystem::None { FsState::Ready } else { FsState::Making },
        };
        reservation.commit(&Record::Base(base.clone()))?;
        drop(reservation);
        if base.fs == FsState::Ready {
            return Ok(());
        }
        let made = self.with_base(&base, size, |volume| {
            filesystem.make(&volume.path(), base.filesystem_uuid, &self.options.mkfs_args)
        });
        made.inspect_err(|_| {
            // The state may go with this error, a shared pool stays.
            let _ = self.delete_id(base.thin_id);
        })?;
        self.store.commit(&Record::BaseFs { size, fs: FsState::Ready })
    }

    fn grow_base(&self) -> Result<()> {
        let Some(base) = self.store.read(|graph| graph.base.clone()) else { return Ok(()) };
        let size = self.options.wanted_base_size().unwrap_or(base.size).max(base.size);
        if size == base.size && base.fs == FsState::Ready {
            return Ok(());
        }
        if self.filesystem != Filesystem::None {
            self.store.commit(&Record::BaseFs { size, fs: FsState::Growing })?;
            self.with_base(&base, size, |volume| self.grow(volume))?;
        }
        self.store.commit(&Record::BaseFs { size, fs: FsState::Ready })
    }

    /// Run `work` with the base active.
    pub(super) fn with_base(
        &self,
        base: &Base,
        size: Bytes,
        work: impl FnOnce(&ThinVolume) -> Result<()>,
    ) -> Result<()> {
        let volume = self.activate_volume(BASE, base.thin_id, size)?;
        let worked = work(&volume);
        let removed = self.remove_volume(&volume);
        worked.and(removed)
    }
}

fn new_state(options: &Options, pool: PoolRecord) -> State {
    State {
        format: FORMAT,
        tree: Uuid::new_v4(),
        generation: 0,
        journal: Position::default(),
        pool,
        filesystem: options.new_filesystem(),
        graph: Graph::default(),
    }
}

/// A pool, or changes, without a state: something was lost, and nothing may be written over the rest.
fn refuse_orphans(root: &Root, dir: &dyn StateDir) -> Result<()> {
    let journal = dir.open("journal.jsonl", false).and_then(|file| file.read());
    let path = if source::has_files(&root.pool_dir()) {
        root.pool_dir()
    } else if journal.is_ok_and(|bytes| !bytes.is_empty()) {
        root.path.join("journal.jsonl")
    } else {
        return Ok(());
    };
    Err(Error::BackingFile { path, reason: "is there, but state.json is not: it was lost or moved away" })
}

/// From here on the pool refuses to allocate when it has too little space.
fn guard(pool: ThinPool, activated: bool, options: &Options, store: &Store) -> Result<(ThinPool, bool)> {
    let (dm, name) = (pool.device_mapper().clone(), *pool.name());
    let guarded = pool.with_guard(options.guard()).inspect_err(|_| {
        if activated {
            let record = store.read_state(|state| state.pool.clone());
            let _ = dm.remove(&name).and_then(|()| source::release(&dm, &name, &record));
        }
    });
    Ok((guarded?, activated))
}

/// The tree's pool, and whether this call activated it.
fn open_pool(
    options: &Options,
    root: &Root,
    store: &Store,
    dm: &Arc<DeviceMapper>,
) -> Result<(ThinPool, bool)> {
    let (tree, record) = store.read_state(|state| (state.tree, state.pool.clone()));
    if let PoolSource::Pool { name } = &record.source {
        return Ok((source::adopted(dm, name, &record)?, false));
    }
    let uuid = pool_uuid(tree)?;
    if let Some(status) = dm.find((&uuid).into())? {
        if status.has_live_table() {
            if status.is_suspended() {
                dm.resume(&status.name)?;
            }
            let pool = ThinPool::open(dm.clone(), &status.name)?;
            source::check_block_size(&pool, &record)?;
            dm.ensure_node(&status.name, status.number)?;
            if !record.made {
                store.change_pool(|pool| pool.made = true)?;
            }
            return Ok((pool, false));
        }
        // Left without a table by a process that died while it activated the pool.
        dm.remove(&status.name)?;
    }
    let dir = root.pool_dir();
    if !record.made && record.source == PoolSource::LoopFiles {
        source::make_files(&dir, &record)?;
    }
    let name = volume_name(&options.name_prefix, root, "pool")?;
    let pool = source::activate(options, dm, &dir, &record, (&name, &uuid))?;
    if !record.made
        && let Err(error) = store.change_pool(|pool| pool.made = true)
    {
        let _ = pool.deactivate().and_then(|()| source::release(dm, &name, &record));
        return Err(error);
    }
    Ok((pool, true))
}
