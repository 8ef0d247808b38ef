//! Whose the pool is, of what time, and what is in it: known before anything is done.
//!
//! [`recognise`] is what every open goes through. Each step believes what the one before has established:
//!
//! | step | who says so | what is believed | what is refused |
//! |---|---|---|---|
//! | root | `flock(2)` on the directory | no other manager has this directory, whatever it is called | [`Error::Locked`] |
//! | state | `state.json`, `journal.jsonl`, their checksums | what the tree is, and what its pool is to be | [`Error::Corrupt`] |
//! | tree | the device `DMTHIN-<tree>-lock`, opened O_EXCL | no other manager has a copy of the state | [`Error::Locked`], [`Error::OtherRoot`] |
//! | active pool | its uuid, `DMTHIN-<tree>-pool` | a manager of this tree made it active | |
//! | | its name, with device and inode of a root | it was this root's manager | [`Error::OtherRoot`], unless [`take_over_pool`] |
//! | inactive pool | its devices, opened O_EXCL | not in use elsewhere | EBUSY, [`Error::BackingFile`] |
//! | failed pool | as any active one; it reports no transaction id | it is this tree's; it is sent nothing | |
//! | time | the pool's transaction id | see below | [`Error::ForeignPool`], [`Error::StateOlderThanPool`], [`Error::PoolOlderThanState`] |
//! | volumes | the pool's metadata | see below | [`Error::StateOlderThanPool`] |
//! | adopted pool | the name and the uuid that it was adopted with | it is the same one; all else in it is its owner's | [`Error::OptionConflict`] |
//!
//! The transaction id of a tree's own pool is `nonce << 32 | generation`. The nonce is the tree's, made with it. The
//! generation rises at each open and close and with each window of thin ids, in the state first and then in the pool.
//!
//! | transaction id of the pool | means | opening the tree |
//! |---|---|---|
//! | our nonce, the state's generation | pool and state belong together | goes on |
//! | our nonce, one generation less | the power went between state and pool | raises the pool's |
//! | our nonce, fewer by two or more | the pool was restored from a backup | is refused, unless [`accept_older_pool`] |
//! | our nonce, more | the state was restored from a backup | is refused, unless [`accept_older_state`] |
//! | another nonce | it is another tree's pool, or a stranger's | is refused |
//! | no nonce, in a tree that has none, or whose nonce is new | both are from before there were nonces | as above; the tree gets a nonce |
//!
//! A volume of the tree's own pool, with an id in the window of reserved ones, that no record knows:
//!
//! | the volume | means | opening the tree |
//! |---|---|---|
//! | is active, or maps blocks that were written since it was made | it was handed out once: the state is old | is refused, unless [`accept_older_state`] |
//! | maps nothing, or just what a snapshot or the base maps | an `add` that was not acknowledged | deletes it |
//! | anything else | in doubt: its origin was written to, or is gone | records it as an orphan |
//!
//! With an age accepted nothing is deleted: volumes that no record knows, whatever their ids, and those that were being
//! made, become orphans. An orphan is shown by [`status`] and [`check`] and deleted by [`repair`] alone.
//!
//! An adopted pool's transaction id belongs to its owner: it is neither compared nor written. Nothing is deleted there
//! that no record knows.
//!
//! [`status`]: crate::tree::SnapshotTree::status
//! [`check`]: crate::tree::SnapshotTree::check
//! [`repair`]: crate::tree::SnapshotTree::repair
//! [`accept_older_pool`]: crate::tree::Options::accept_older_pool
//! [`accept_older_state`]: crate::tree::Options::accept_older_state
//! [`take_over_pool`]: crate::tree::Options::take_over_pool

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::dm::{DeviceMapper, DeviceStatus, DmName, DmUuid};
use crate::thin;
use crate::thin::tools::CheckPolicy;
use crate::thin::{PoolMode, PoolStatus, ThinId, ThinPool, TransactionId};
use crate::tree::pool::hold::HoldNote;
use crate::tree::pool::source::{self, InactivePool};
use crate::tree::state::identity::{self, Relation, Volumes};
use crate::tree::state::journal::PoolRecord;
use crate::tree::state::pool_source::PoolSource;
use crate::tree::state::root::Root;
use crate::tree::state::store::Store;
use crate::tree::{Error, Recovered, Result, StateAge};
use crate::tree::{Options, names::Names, names::POOL, pool::tree_pool};

/// A tree that is being opened: what it says of itself.
pub(in crate::tree) struct Opening<'a> {
    pub(in crate::tree) options: &'a Options,
    pub(in crate::tree) root: &'a Root,
    pub(in crate::tree) store: &'a Store,
    pub(in crate::tree) dm: &'a Arc<DeviceMapper>,
    pub(in crate::tree) names: &'a Names,
    pub(in crate::tree) hold: &'a HoldNote,
}

/// What was found, all of it this tree's and of its time.
pub(in crate::tree) struct Recognised {
    pub(in crate::tree) pool: Found,
    /// The pool's volumes; `None` while another program holds the metadata snapshot, or if the pool has failed.
    pub(in crate::tree) volumes: Option<Volumes>,
    /// This tree's volumes that are active.
    pub(in crate::tree) active: Vec<(DeviceStatus, ThinId)>,
}

/// A tree's pool.
#[allow(clippy::large_enum_variant)] // there is one of it in an open
pub(in crate::tree) enum Found {
    /// Active: left so by a manager before this one, or by the owner of an adopted pool.
    Active(ThinPool),
    /// On these devices.
    Inactive { pool: InactivePool, needs_check: bool },
    /// To be made.
    Unmade,
}

/// Tells whose the pool is, of what time, and what is in it. Until that is known nothing is activated, written, resumed
/// or deleted, but for what reading takes: the devices of an inactive pool are set up; a pool that is this tree's by
/// uuid, name and transaction id is resumed if it was left suspended, and its metadata snapshot is held for a moment.
/// One that cannot commit is removed if it is unused, and is an inactive pool then.
///
/// # Errors
/// What the tables of this module name, and [`Error::DamagedMetadata`].
pub(in crate::tree) fn recognise(
    opening: &Opening<'_>,
    recovered: &mut Vec<Recovered>,
) -> Result<Recognised> {
    let pool = opening.find_pool(recovered)?;
    let active = opening.active_devices()?;
    let volumes = opening.read_volumes(&pool, &active)?;
    opening.check_volumes(volumes.as_ref())?;
    Ok(Recognised { pool, volumes, active })
}

impl Opening<'_> {
    /// The pool, of which root and time are checked.
    fn find_pool(&self, recovered: &mut Vec<Recovered>) -> Result<Found> {
        let record = self.store.read_state(|state| state.pool.clone());
        if let PoolSource::Pool { name } = &record.source {
            return source::adopted(self.dm, name, &record).map(Found::Active);
        }
        let uuid = self.names.pool_uuid()?;
        match self.dm.find(&uuid)? {
            Some(status) if status.has_live_table() => {
                if let Some(pool) = self.find_active(&status, &uuid, &record)? {
                    return Ok(Found::Active(pool));
                }
                recovered.push(Recovered::PoolActivatedAnew);
            }
            // Left by a process that died while it activated the pool. It may hold the pool's devices.
            Some(_) => self.dm.remove(&uuid)?,
            None => {}
        }
        if !record.made {
            return Ok(Found::Unmade);
        }
        let name = self.names.name(POOL)?;
        let mut pool = source::set_up(self.options, self.dm, self.root, &record, &name)?;
        let superblock = pool.superblock()?.ok_or_else(|| pool.superblock_gone())?;
        self.check_time(superblock.transaction_id, &pool.origin())?;
        if self.options.check_metadata != CheckPolicy::Never {
            let check =
                |metadata: &Path| self.options.check_metadata.check_with(&self.options.kernel, metadata);
            (pool, ()) = pool.run_on_metadata(check)?;
        }
        Ok(Found::Inactive { pool, needs_check: superblock.needs_check })
    }

    /// The pool; `None` if it could not commit, and was removed to be activated anew.
    fn find_active(
        &self,
        status: &DeviceStatus,
        uuid: &DmUuid,
        record: &PoolRecord,
    ) -> Result<Option<ThinPool>> {
        self.check_name(&status.name)?;
        let pool = ThinPool::open(self.dm.clone(), &status.name)?;
        let found = pool.status()?;
        // A failed pool reports no transaction id. Nothing is sent to one.
        if let PoolStatus::Usage(usage) = &found {
            self.check_time(usage.transaction_id, &pool.name().to_string())?;
        }
        // A pool in use stays as it is.
        if !found.mode().is_sound() && self.dm.remove(uuid).is_ok() {
            return Ok(None);
        }
        source::check_block_size(&pool, record)?;
        if status.is_suspended() {
            self.dm.resume(uuid)?;
        }
        self.dm.ensure_node(&status.name, status.number)?;
        Ok(Some(pool))
    }

    /// A pool's name carries the root that activated it. Another root's pool is in use by that one: this root is a
    /// copy.
    fn check_name(&self, name: &DmName) -> Result<()> {
        if self.options.take_over_pool || self.names.is_of_root(name, POOL) {
            return Ok(());
        }
        Err(Error::OtherRoot { path: self.root.path.clone(), device: name.to_string() })
    }

    /// Refuses a pool that is not this tree's, or of another time; `pool` is what errors call it.
    pub(in crate::tree) fn check_time(&self, found: TransactionId, pool: &str) -> Result<()> {
        self.store.read_state(|state| {
            if !state.pool.made && found == TransactionId(0) {
                return Ok(());
            }
            let (state_is, pool_is) = (state.generation, identity::generation(found));
            match identity::compare(state, found, pool)? {
                Relation::Ahead if !self.options.accept_older_state => {
                    let evidence = StateAge::Generation { state: state_is, pool: pool_is };
                    Err(Error::StateOlderThanPool { evidence })
                }
                Relation::Older if !self.options.accept_older_pool => {
                    Err(Error::PoolOlderThanState { state: state_is, pool: pool_is })
                }
                _ => Ok(()),
            }
        })
    }

    fn active_devices(&self) -> Result<Vec<(DeviceStatus, ThinId)>> {
        tree_pool::active_devices(self.dm, self.names)
    }

    fn read_volumes(&self, pool: &Found, active: &[(DeviceStatus, ThinId)]) -> Result<Option<Volumes>> {
        let active: BTreeSet<_> = active.iter().map(|(_, id)| *id).collect();
        let everything = self.options.keeps_all() && !self.store.is_shared();
        let read =
            |metadata: &_| self.store.read(|graph| Volumes::read(metadata, graph, &active, everything));
        match pool {
            Found::Unmade => Ok(Some(Volumes::default())),
            Found::Inactive { pool, .. } => pool.read(read).map(Some),
            Found::Active(pool) => {
                self.hold.release_left(pool)?;
                match self.hold.read(pool, |metadata| Ok(read(metadata)?)) {
                    // With an age accepted each volume counts.
                    volumes if everything => volumes.map(Some),
                    // What is left then the next open, or a repair, finds.
                    Err(
                        Error::Thin(thin::Error::MetadataSnapHeld { .. })
                        | Error::Thin(thin::Error::PoolMode { .. }),
                    ) => Ok(None),
                    // What a failed pool could not read cannot be read here either.
                    Err(_) if pool.status()?.mode() == PoolMode::Fail => Ok(None),
                    volumes => volumes.map(Some),
                }
            }
        }
    }

    /// Refuses a state that does not know of a volume that was handed out.
    fn check_volumes(&self, volumes: Option<&Volumes>) -> Result<()> {
        match volumes.and_then(|volumes| volumes.used.first()) {
            Some(&thin_id) if !self.store.is_shared() && !self.options.keeps_all() => {
                Err(Error::StateOlderThanPool { evidence: StateAge::UnknownVolume { thin_id } })
            }
            _ => Ok(()),
        }
    }
}
