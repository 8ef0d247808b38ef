//! Ready snapshots: made before somebody asks for them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::thin::{ActivateOptions, ThinId, ThinVolume};
use crate::tree::error::unknown;
use crate::tree::live::active::ActiveSnapshot;
use crate::tree::live::ready::{Missing, ReadySnapshot};
use crate::tree::live::work::Exclusive;
use crate::tree::ops::add::now;
use crate::tree::state::graph::Graph;
use crate::tree::state::record::{FsState, Record, Snapshot};
use crate::tree::state::recorded::Recorded;
use crate::tree::{AddOptions, Filesystem, Parent, SnapshotId, SnapshotTree};
use crate::tree::{Error, Result};

/// The ready snapshots of one origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReadyStatus {
    /// What they are made from; `None` is the base.
    pub origin: Option<SnapshotId>,
    /// How many are to be ready.
    pub wanted: usize,
    /// How many are.
    pub count: usize,
    /// Since when the oldest of them is ready.
    pub oldest: Option<Duration>,
    /// Additions that took one, since the tree was opened.
    pub hits: usize,
    /// Additions that could have taken one, had one been there and of that size.
    pub misses: usize,
}

/// A ready snapshot became the new one.
pub(in crate::tree) struct Claimed {
    /// `None` if it could neither be renamed nor activated again: it is recorded, and inactive.
    pub(in crate::tree) device: Option<PathBuf>,
}

impl SnapshotTree {
    /// Keeps so many snapshots of the base or of a sealed snapshot ready: made, active and, with a file system, mounted
    /// and unmounted once, for the next additions from that origin. Such an addition is a rename and one record. 0 ends
    /// that. It is durable, until the origin is removed or unsealed.
    ///
    /// The tree's thread makes them; without it [`refill_ready`](Self::refill_ready) does.
    /// They take space in the pool, are not listed, and do not outlive this manager: the next one makes its own.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::NotSealed`], [`Error::InvalidOption`] for more than 65,535.
    pub fn keep_ready(&self, origin: Parent<'_>, count: usize) -> Result<()> {
        self.check_open()?;
        let too_many = |_| {
            let (option, value) = ("number of ready snapshots", count.to_string());
            Error::InvalidOption { option, value, reason: "more than 65535" }
        };
        let count = u16::try_from(count).map_err(too_many)?;
        match origin {
            Parent::Base => self.keep_ready_of(self.base()?.thin_id, count),
            Parent::Snapshot(id) => self.with_snapshot(id, |_, snapshot| match snapshot.sealed {
                Some(_) => self.keep_ready_of(snapshot.thin_id, count),
                None => Err(Error::NotSealed { id: id.to_owned() }),
            }),
        }?;
        self.work.wake();
        Ok(())
    }

    fn keep_ready_of(&self, origin: ThinId, count: u16) -> Result<()> {
        self.store.commit(&Record::Ready { origin, count })?;
        self.ready.keep(origin, usize::from(count));
        Ok(())
    }

    /// Makes the ready snapshots that are missing, and deletes those that are no longer wanted. The tree's thread does
    /// that by itself.
    ///
    /// # Errors
    /// As [`add`](Self::add) and [`mount`](Self::mount).
    pub fn refill_ready(&self) -> Result<()> {
        self.check_open()?;
        let exclusive = self.work.exclusive();
        // It may have been closed meanwhile.
        self.check_open()?;
        self.delete_unwanted(&exclusive)?;
        while let Some(missing) = self.ready.missing(&Default::default()) {
            self.make_ready(&exclusive, missing)?;
        }
        Ok(())
    }

    /// Makes what is missing.
    pub(in crate::tree) fn make_ready(&self, _: &Exclusive<'_>, missing: Missing) -> Result<()> {
        let mut reservation = self.reserve(None)?;
        let (origin, id) = match missing {
            Missing::Keeper => (None, None),
            Missing::Of(origin) => {
                (Some(origin.thin_id), self.store.read(|graph| graph.id_of(origin.thin_id)))
            }
        };
        let (parent, options) = match (origin, &id) {
            (None, _) => {
                let size = self.store.read_state(|state| state.pool.block_size);
                (None, AddOptions::new().size(size))
            }
            (_, Some(id)) => (Some(Parent::Snapshot(id.as_str())), AddOptions::new()),
            (origin, None) if origin == self.base_id() => (Some(Parent::Base), AddOptions::new()),
            (Some(removed), None) => {
                self.forget_ready(removed);
                return Ok(());
            }
        };
        let check = |parent: Option<&Snapshot>| match (parent, &id) {
            (Some(parent), Some(id)) if parent.sealed.is_none() || Some(parent.thin_id) != origin => {
                Err(Error::NotSealed { id: id.to_string() })
            }
            _ => Ok(()),
        };
        let (mut snapshot, _) = self.make_volume(&mut reservation, parent, &options, None, check)?;
        let (thin_id, name) = (snapshot.thin_id, self.pool.names.unpublished(snapshot.thin_id)?);
        let volume = self.pool.activate_as(&name, thin_id, snapshot.size, &ActivateOptions::new());
        let made = volume.and_then(|volume| {
            if origin.is_some() {
                self.mount_once(&volume, &mut snapshot)?;
            }
            Ok(volume)
        });
        let volume = made.inspect_err(|_| {
            // Best effort: return the original error. The next reap or open deletes what stays.
            let _ = self.deactivate_and_unmake(thin_id);
        })?;
        reservation.keep();
        self.ready.put(missing, ReadySnapshot { volume, snapshot, made: Instant::now() });
        Ok(())
    }

    /// Mounts and unmounts it, so that its first caller's mount is a second one.
    fn mount_once(&self, volume: &ThinVolume, snapshot: &mut Snapshot) -> Result<()> {
        if self.store.filesystem() == Filesystem::None || snapshot.fs != FsState::Ready {
            return Ok(());
        }
        snapshot.init = self.with_mount(volume, |mounted| {
            let root = mounted.root(&*self.options.kernel)?;
            self.prepare_filesystem(snapshot, volume.number(), &root)
        })?;
        Ok(())
    }

    /// Makes a ready snapshot of that parent the new snapshot, if there is one.
    pub(in crate::tree) fn claim_ready(
        &self,
        id: &SnapshotId,
        parent: Parent<'_>,
        options: &AddOptions,
        activated: bool,
    ) -> Result<Option<Claimed>> {
        // A snapshot, and its content: written since, it has another identity.
        let sealed = |graph: &Graph, id: &str| graph.get(id).and_then(|it| Some((it.thin_id, it.sealed?)));
        let (origin, content) = match parent {
            Parent::Base => (self.base_id(), None),
            Parent::Snapshot(id) => {
                let content = self.store.read(|graph| sealed(graph, id));
                (content.map(|(origin, _)| origin), content)
            }
        };
        let claimed = origin.and_then(|origin| self.ready.claim(origin, options.size));
        let Some((origin, ready)) = claimed else { return Ok(None) };
        let mut reservation = match self.store.reserve_kept(id, ready.snapshot.thin_id) {
            Ok(reservation) => reservation,
            Err(error) => {
                self.ready.put_back(origin, ready);
                return Err(error);
            }
        };
        let snapshot = Snapshot { labels: options.labels.clone(), created: now(), ..ready.snapshot.clone() };
        let record = |recorded: &Recorded<'_>| {
            let graph = recorded.graph;
            let mut snapshot = snapshot.clone();
            if let Parent::Snapshot(asked) = parent {
                let is_it = |id: &SnapshotId| sealed(graph, id.as_str()) == content;
                let named = SnapshotId::new(asked).ok().filter(is_it);
                // It may have another name by now, or be gone.
                let parent = named.or_else(|| graph.id_of(origin.thin_id).filter(is_it));
                snapshot.parent = Some(parent.ok_or_else(|| unknown(asked))?);
            }
            Ok(Record::Add { id: id.clone(), snapshot })
        };
        let cell = self.live.cell(id);
        let claimed = {
            let mut active = cell.lock();
            // It may have been closed meanwhile.
            match self.check_open().and_then(|()| self.store.append_with(record)) {
                Ok(seq) => {
                    self.store.begin_sync(seq);
                    let device = self.name_ready(&mut active, id, ready.volume, &snapshot);
                    active.pinned = activated;
                    self.store
                        .sync(seq)
                        .inspect_err(|_| reservation.unresolved = true)
                        .map(|()| Some(Claimed { device }))
                }
                Err(error) => {
                    self.ready.put_back(origin, ready);
                    reservation.keep();
                    // What became of the parent is for the addition to say.
                    if error.is_not_found() { Ok(None) } else { Err(error) }
                }
            }
        };
        self.live.release(id, cell);
        self.work.wake();
        claimed
    }

    /// Gives the device of a ready snapshot the name of the snapshot that it is now.
    fn name_ready(
        &self,
        active: &mut ActiveSnapshot,
        id: &SnapshotId,
        mut volume: ThinVolume,
        snapshot: &Snapshot,
    ) -> Option<PathBuf> {
        let renamed = self.pool.names.name(id.as_str()).and_then(|name| Ok(volume.rename(&name)?));
        let path = active.volume.insert(volume).path();
        match renamed {
            Ok(()) => Some(path),
            // Another program renamed or removed it.
            Err(_) => self.activate_locked(active, id.as_str(), snapshot).ok(),
        }
    }

    /// There are to be no ready snapshots of that origin any more.
    pub(in crate::tree) fn forget_ready(&self, origin: ThinId) {
        self.ready.keep(origin, 0);
    }

    /// Deletes those that are not wanted any more. All are tried.
    pub(in crate::tree) fn delete_unwanted(&self, exclusive: &Exclusive<'_>) -> Result<()> {
        let mut first_error = Ok(());
        while let Some(unwanted) = self.ready.take_unwanted() {
            first_error = first_error.and(self.delete_one_ready(exclusive, unwanted));
        }
        first_error
    }

    /// Deletes all: the tree is being closed.
    pub(in crate::tree) fn delete_ready(&self, exclusive: &Exclusive<'_>) -> Result<()> {
        let all = self.ready.take_all().into_iter();
        all.map(|ready| self.delete_one_ready(exclusive, ready)).fold(Ok(()), Result::and)
    }

    /// What fails here, the next reap or open does.
    fn delete_one_ready(&self, _: &Exclusive<'_>, ready: ReadySnapshot) -> Result<()> {
        // From here on the id is nobody's.
        let reservation = self.store.release_kept(ready.snapshot.thin_id);
        let deleted = self.deactivate_and_unmake(ready.snapshot.thin_id);
        drop(reservation);
        deleted
    }

    pub(in crate::tree) fn ready_status(&self) -> (Vec<ReadyStatus>, Option<ThinId>) {
        let (queues, keeper) = self.ready.look(|queues, keeper| {
            let queues = queues.iter().map(|(&origin, queue)| {
                let oldest = queue.ready.front().map(|ready| ready.made.elapsed());
                let (wanted, count, hits, misses) =
                    (queue.wanted, queue.ready.len(), queue.hits, queue.misses);
                (origin, ReadyStatus { origin: None, wanted, count, oldest, hits, misses })
            });
            (queues.collect::<Vec<_>>(), keeper.map(|keeper| keeper.snapshot.thin_id))
        });
        let named = self.store.read(|graph| {
            let named = queues.into_iter();
            named.map(|(origin, status)| ReadyStatus { origin: graph.id_of(origin), ..status }).collect()
        });
        (named, keeper)
    }
}
