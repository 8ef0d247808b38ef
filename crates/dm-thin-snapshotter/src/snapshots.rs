//! The calls of a snapshotter, on a tree.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dm_thin::tree::{
    self, AddOptions, ChangeKind, Error, Filesystem, Lineage, Parent, RemoveOptions, Since, SnapshotTree,
};
use dm_thin::units::Bytes;
use tonic::{Code, Status};
use tracing::{info, warn};

use crate::entries::{Entries, Entry};
use crate::filter::Filter;
use crate::locks::Locks;
use crate::record::{self, Info, Kind, Record};

/// Label of a new active snapshot: the size that its file system is grown to, in bytes.
const MAX_SIZE: &str = "containerd.io/snapshot/max-size";

/// How long the usage of active snapshots is served from memory. It is read for all at once, and a caller that asks for one
/// asks for the others, too.
const USAGE_AGE: Duration = Duration::from_secs(2);

/// How long a removal waits for a device that was open at the last attempt, too. containerd makes no snapshots meanwhile.
const BUSY_AGAIN: Duration = Duration::from_millis(50);

/// Of so many layers snapshots are kept ready: those that were used last.
const READY_LAYERS: usize = 8;

type Result<T, E = Status> = std::result::Result<T, E>;

/// How a snapshot is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's name of the file system.
    pub filesystem: &'static str,
    /// The block device.
    pub source: String,
    /// Options, as for mount(8).
    pub options: Vec<String>,
}

/// containerd's snapshots in a tree: the calls of the service, which block.
#[derive(Debug)]
pub struct Snapshots {
    tree: Arc<SnapshotTree>,
    filesystem: Filesystem,
    base_size: Bytes,
    /// What the labels of the tree's snapshots say.
    entries: Mutex<Entries>,
    locks: Locks,
    /// Locks of the keys whose records are being written: a snapshot's labels can change while others are made of it.
    records: Locks,
    /// The size that the pool can be extended to.
    max_data_size: Option<Bytes>,
    /// How many snapshots are kept ready of a layer in use.
    ready: usize,
    /// Layers that snapshots were made of, and how many; the last one first.
    recent: Mutex<Vec<(String, usize)>>,
    active_usage: Mutex<Option<(Instant, BTreeMap<String, Bytes>)>>,
}

impl Snapshots {
    /// Serves a tree that is open. What a commit that was interrupted left in it is removed. So many snapshots are kept
    /// `ready` of each layer that several were made of lately. No snapshot becomes larger than the pool, or than
    /// `max_data_size` if the pool is extended to that.
    ///
    /// # Errors
    /// Those of the tree.
    pub fn new(tree: SnapshotTree, ready: usize, max_data_size: Option<Bytes>) -> tree::Result<Self> {
        let status = tree.status()?;
        let mut entries = Entries::default();
        for snapshot in tree.list() {
            let id = snapshot.id.as_str();
            if record::is_unfinished(&snapshot.labels) {
                match tree.remove(id) {
                    Ok(()) => info!(id, "removed what an interrupted commit left"),
                    Err(error) => warn!(id, %error, "what an interrupted commit left cannot be removed"),
                }
                continue;
            }
            match Record::read(&snapshot.labels) {
                Ok(None) => {}
                Ok(Some(Record { info, views })) => {
                    let views = views.into_iter().map(|info| Entry::new(info, None));
                    let own = Entry::new(info, Some(id.to_owned()));
                    views.chain([own]).for_each(|entry| entries.insert(entry));
                }
                Err(error) => warn!(id, %error, "the record of a snapshot cannot be read, it is not served"),
            }
        }
        // Those of the last run may be in use no more; they are found out as new ones are.
        for origin in status.ready.iter().filter_map(|ready| ready.origin.as_ref()) {
            tree.keep_ready(Parent::Snapshot(origin.as_str()), 0)?;
        }
        Ok(Self {
            ready,
            recent: Mutex::default(),
            filesystem: status.filesystem,
            base_size: status.base_size,
            tree: Arc::new(tree),
            entries: Mutex::new(entries),
            locks: Locks::default(),
            records: Locks::default(),
            max_data_size,
            active_usage: Mutex::default(),
        })
    }

    /// The tree.
    pub fn tree(&self) -> &Arc<SnapshotTree> {
        &self.tree
    }

    /// Makes an active snapshot.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` for the key, `NOT_FOUND` for the parent, `INVALID_ARGUMENT` for a parent that is not committed;
    /// `RESOURCE_EXHAUSTED` if the pool is low on space.
    pub fn prepare(&self, key: &str, parent: &str, labels: BTreeMap<String, String>) -> Result<Vec<Mount>> {
        let _guard = self.locks.lock(&[key], &[parent]);
        let parent_id = self.check_new(key, parent)?;
        let info = Info::new(key, Kind::Active, parent, labels);
        let mounts = self.add(info, parent_id.as_deref())?;
        parent_id.iter().for_each(|id| self.keep_ready(id));
        Ok(mounts)
    }

    /// Has snapshots of a layer made ready when it is used for the second time: once is what the next layer does.
    fn keep_ready(&self, id: &str) {
        if self.ready == 0 {
            return;
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let known = recent.iter().position(|(other, _)| other == id);
        let uses = known.map_or(1, |at| recent.remove(at).1 + 1);
        recent.insert(0, (id.to_owned(), uses));
        let kept = recent.len().min(READY_LAYERS);
        let old = recent.split_off(kept).into_iter();
        let old = old.filter(|(_, uses)| *uses > 1).map(|(id, _)| (id, 0));
        for (id, count) in old.chain((uses == 2).then(|| (id.to_owned(), self.ready))) {
            match self.tree.keep_ready(Parent::Snapshot(&id), count) {
                Err(error) if !error.is_not_found() => warn!(id, %error, "no snapshots are kept ready"),
                _ => {}
            }
        }
    }

    /// Makes a read-only snapshot: if its parent has room for its record, that shares the parent's device.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn view(&self, key: &str, parent: &str, labels: BTreeMap<String, String>) -> Result<Vec<Mount>> {
        let _guard = self.locks.lock(&[key], &[parent]);
        let parent_id = self.check_new(key, parent)?;
        let info = Info::new(key, Kind::View, parent, labels);
        if let Some(parent_id) = &parent_id
            && let Some(mounts) = self.share(&info, parent_id)?
        {
            return Ok(mounts);
        }
        self.add(info, parent_id.as_deref())
    }

    /// Makes a view that shares its parent's device; `None` if the parent has no room for its record.
    fn share(&self, view: &Info, parent_id: &str) -> Result<Option<Vec<Mount>>> {
        let _guard = self.records.lock(&[&view.parent], &[]);
        let mut record = self.record(&view.parent)?;
        record.views.push(view.clone());
        if !record.has_room() {
            return Ok(None);
        }
        let device = self.tree.activate(parent_id).map_err(status)?;
        // On an error it stays active: other views may use it, and it does no harm.
        self.write(parent_id, &record)?;
        self.entries().insert(Entry::new(view.clone(), None));
        Ok(Some(self.describe(&device, Kind::View)))
    }

    /// How a snapshot is mounted. Its device is activated if it is not active, as after a restart of the machine.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` for a committed snapshot.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let _guard = self.locks.lock(&[], &[key]);
        let entry = self.entry(key)?;
        if entry.info.kind == Kind::Committed {
            return Err(Status::failed_precondition(format!("snapshot {key} is committed")));
        }
        let device = self.tree.activate(self.device_id(&entry)?).map_err(status)?;
        Ok(self.describe(&device, entry.info.kind))
    }

    /// Makes an active snapshot a committed one, with another name and these labels.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` for the name, `NOT_FOUND` for the key; `FAILED_PRECONDITION` if it is not active;
    /// `INVALID_ARGUMENT` for another parent than it has.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<()> {
        check_key(name)?;
        let _guard = self.locks.lock(&[name, key], &[]);
        self.check_free(name)?;
        let entry = self.entry(key)?;
        let (Kind::Active, Some(id)) = (entry.info.kind, entry.id) else {
            return Err(Status::failed_precondition(format!("snapshot {key} is not active")));
        };
        if !parent.is_empty() && parent != entry.info.parent {
            let has = &entry.info.parent;
            return Err(Status::invalid_argument(format!(
                "snapshot {key} has the parent {has:?}, not {parent:?}"
            )));
        }
        let info = Info::new(name, Kind::Committed, &entry.info.parent, labels);
        let record = Record { info: info.clone(), views: Vec::new() };
        let new_id = record::id_of(name);
        if self.tree.get(&new_id).is_ok_and(|left| record::is_unfinished(&left.labels)) {
            self.tree.remove(&new_id).map_err(status)?;
        }
        match self.tree.commit(&id, &new_id, record.labels().map_err(status)?) {
            Err(error) if error.is_busy() => self.commit_copy(&id, &new_id, &record)?,
            result => result.map(drop).map_err(status)?,
        }
        let is_gone = !self.tree.contains(&id);
        let mut entries = self.entries();
        if is_gone {
            entries.remove(key);
        }
        entries.insert(Entry::new(info, Some(new_id)));
        Ok(())
    }

    /// Commits a snapshot whose device is open: a copy of what it contains now. What is written to the device later is
    /// lost with it, when it is closed.
    fn commit_copy(&self, id: &str, new_id: &str, record: &Record) -> Result<()> {
        let unfinished = AddOptions::new().labels(record::unfinished().map_err(status)?);
        self.tree.add_with(new_id, Parent::Snapshot(id), &unfinished).map_err(status)?;
        let committed = self.tree.seal(new_id).map_err(status).and_then(|_| self.write(new_id, record));
        committed.inspect_err(|_| {
            // The next commit of that name, or the next start, does it if this fails.
            let _ = self.tree.remove(new_id);
        })?;
        let deferred = RemoveOptions::new().deferred(true).busy_timeout(Duration::ZERO);
        if let Err(error) = self.tree.remove_with(id, &deferred) {
            // Committed it is. What is left is listed, so that containerd's garbage collection removes it.
            warn!(id, %error, "a snapshot was committed and cannot be removed");
        }
        Ok(())
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// `NOT_FOUND`, `UNAVAILABLE`; `FAILED_PRECONDITION` if it has children, its device is open, or it cannot be removed
    /// for another reason: containerd's garbage collection goes on after no other.
    pub fn remove(&self, key: &str) -> Result<()> {
        let _guard = self.locks.lock(&[key], &[]);
        let entry = self.entry(key)?;
        let has_children = self.entries().children(key).next().is_some();
        if has_children {
            return Err(Status::failed_precondition(format!(
                "cannot remove snapshot {key}: it has children"
            )));
        }
        let Some(id) = &entry.id else { return self.remove_shared(&entry.info).map_err(not_removed) };
        let mut options = RemoveOptions::new();
        if entry.was_busy {
            options = options.busy_timeout(BUSY_AGAIN);
        }
        match self.tree.remove_with(id, &options) {
            Ok(_) => {}
            // A removal that failed may have removed it.
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                self.entries().change(key, |entry| entry.was_busy = error.is_busy());
                return Err(not_removed(status(error)));
            }
        }
        self.entries().remove(key);
        Ok(())
    }

    /// Removes a view that shares its parent's device; the last one deactivates it.
    fn remove_shared(&self, view: &Info) -> Result<()> {
        let _guard = self.records.lock(&[&view.parent], &[]);
        let id = self.id(&view.parent)?;
        let mut record = self.record(&view.parent)?;
        record.views.retain(|other| other.key != view.key);
        if record.views.is_empty() {
            self.tree.deactivate(&id).map_err(status)?;
        }
        self.write(&id, &record)?;
        self.entries().remove(&view.key);
        Ok(())
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn stat(&self, key: &str) -> Result<Info> {
        self.entry(key).map(|entry| entry.info)
    }

    /// Changes the labels of a snapshot: all of them if `paths` is empty or has `labels`, else those it has as `labels.KEY`.
    ///
    /// # Errors
    /// `NOT_FOUND`; `INVALID_ARGUMENT` for another path.
    pub fn update(&self, key: &str, labels: &BTreeMap<String, String>, paths: &[String]) -> Result<Info> {
        let _guard = self.locks.lock(&[], &[key]);
        let entry = self.entry(key)?;
        let owner = if entry.id.is_none() { &entry.info.parent } else { key };
        let _record = self.records.lock(&[owner], &[]);
        let mut info = self.entry(key)?.info;
        for path in paths {
            match path.strip_prefix("labels") {
                Some("") => info.labels.clone_from(labels),
                Some(label) if label.starts_with('.') => {
                    let label = &label[1..];
                    info.labels.insert(label.to_owned(), labels.get(label).cloned().unwrap_or_default());
                }
                _ => {
                    let message = format!("cannot update {path:?} of snapshot {key}: only labels can change");
                    return Err(Status::invalid_argument(message));
                }
            }
        }
        if paths.is_empty() {
            info.labels.clone_from(labels);
        }
        info.touch();
        let mut record = self.record(owner)?;
        let records = record.views.iter_mut().chain([&mut record.info]);
        records.filter(|old| old.key == key).for_each(|old| *old = info.clone());
        self.write(&self.id(owner)?, &record)?;
        self.entries().change(key, |entry| entry.info = info.clone());
        Ok(info)
    }

    /// The snapshots that match a filter, by their keys.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the texts are none.
    pub fn list(&self, filters: &[String]) -> Result<Vec<Info>> {
        let filter = Filter::parse(filters).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let entries = self.entries();
        let infos = entries.iter().map(|entry| &entry.info);
        Ok(infos.filter(|info| filter.matches(|path| info.field(path))).cloned().collect())
    }

    /// What a snapshot has of the pool's space without its parents.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn usage(&self, key: &str) -> Result<Bytes> {
        let entry = self.entry(key)?;
        match (entry.info.kind, &entry.id, entry.usage) {
            (_, _, Some(usage)) => Ok(usage),
            (_, None, _) => Ok(Bytes(0)),
            (Kind::Committed, Some(id), None) => {
                let usage = self.own(id, &entry.info.parent)?;
                self.entries().change(key, |entry| entry.usage = Some(usage));
                Ok(usage)
            }
            // It has no children, so that what it has alone is what its parents have not.
            (_, Some(id), None) => self.exclusive(id),
        }
    }

    /// What was written to a committed snapshot since it was made.
    fn own(&self, id: &str, parent: &str) -> Result<Bytes> {
        let parent_id = if parent.is_empty() { None } else { Some(self.id(parent)?) };
        let is_made_from_it = match &self.tree.get(id).map_err(status)?.parent {
            Lineage::Base => parent_id.is_none(),
            Lineage::Snapshot(made_from) => Some(made_from.as_str()) == parent_id.as_deref(),
            _ => false,
        };
        if is_made_from_it {
            return self.tree.own_data(id).map_err(status);
        }
        // A copy of a snapshot that was open when it was committed.
        let since = parent_id.as_deref().map_or(Since::Base, Since::Snapshot);
        let mut changed = self.tree.changed(since, id).map_err(status)?;
        changed.try_fold(Bytes(0), |sum, range| {
            let range = range.map_err(status)?;
            Ok(if range.kind == ChangeKind::Data { Bytes(sum.0 + range.length.0) } else { sum })
        })
    }

    fn exclusive(&self, id: &str) -> Result<Bytes> {
        let mut known = self.active_usage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, usage)) = &*known
            && read.elapsed() < USAGE_AGE
            && let Some(usage) = usage.get(id)
        {
            return Ok(*usage);
        }
        let usage = self.tree.usage().map_err(status)?.into_iter();
        let usage: BTreeMap<_, _> = usage.map(|usage| (usage.id.to_string(), usage.exclusive)).collect();
        let found = usage.get(id).copied().unwrap_or(Bytes(0));
        *known = Some((Instant::now(), usage));
        Ok(found)
    }

    /// Deletes the volumes of removed snapshots, as far as they are closed.
    ///
    /// # Errors
    /// Those of the tree.
    pub fn cleanup(&self) -> Result<()> {
        self.tree.reap().map(drop).map_err(status)
    }

    /// Makes a snapshot of the tree, of a committed one or of the base.
    fn add(&self, info: Info, parent: Option<&str>) -> Result<Vec<Mount>> {
        let record = Record { info: info.clone(), views: Vec::new() };
        let labels = record.labels().map_err(status)?;
        let mut options = AddOptions::new().labels(labels.clone());
        if let Some(size) = self.wanted_size(&info, parent)? {
            options = options.size(size);
        }
        let (id, kind) = (record::id_of(&info.key), info.kind);
        let parent = parent.map_or(Parent::Base, Parent::Snapshot);
        let device = self.tree.add_activated(&id, parent, &options);
        // What a failure left is listed, so that containerd's garbage collection removes it. Another snapshot may have the id.
        if device.is_ok() || self.tree.get(&id).is_ok_and(|left| left.labels == labels) {
            self.entries().insert(Entry::new(info, Some(id)));
        }
        Ok(self.describe(&device.map_err(status)?, kind))
    }

    /// The size that an active snapshot is asked to have, if that is more than its parent's. Whoever runs a container
    /// chooses it.
    fn wanted_size(&self, info: &Info, parent: Option<&str>) -> Result<Option<Bytes>> {
        let Some(text) = info.labels.get(MAX_SIZE).filter(|_| info.kind == Kind::Active) else {
            return Ok(None);
        };
        let size = text.parse().ok().and_then(|size: u64| size.checked_next_multiple_of(4096));
        let size = size
            .ok_or_else(|| Status::invalid_argument(format!("{MAX_SIZE}: {text:?} is no number of bytes")))?;
        let current = match parent {
            Some(id) => self.tree.get(id).map_err(status)?.size,
            None => self.base_size,
        };
        let Some(size) = Some(Bytes(size)).filter(|size| *size > current) else { return Ok(None) };
        let pool = self.tree.status().map_err(status)?.data.map(|data| data.total);
        match self.max_data_size.max(pool) {
            Some(limit) if size > limit => Err(Status::invalid_argument(format!(
                "{MAX_SIZE}: {size} is more than the pool can have, {limit}"
            ))),
            _ => Ok(Some(size)),
        }
    }

    fn describe(&self, device: &Path, kind: Kind) -> Vec<Mount> {
        let (filesystem, option) = match self.filesystem {
            // Its UUID is that of every other snapshot.
            Filesystem::Xfs => ("xfs", Some("nouuid")),
            _ => ("ext4", None),
        };
        let read_only = (kind == Kind::View).then_some("ro");
        let options = read_only.into_iter().chain(option).map(str::to_owned).collect();
        vec![Mount { filesystem, source: device.display().to_string(), options }]
    }

    /// Checks a new key and its parent, and returns the parent's id in the tree.
    fn check_new(&self, key: &str, parent: &str) -> Result<Option<String>> {
        check_key(key)?;
        self.check_free(key)?;
        if parent.is_empty() {
            return Ok(None);
        }
        let entry = self.entry(parent)?;
        if entry.info.kind != Kind::Committed {
            return Err(Status::invalid_argument(format!("parent {parent} is not committed")));
        }
        self.device_id(&entry).map(Some)
    }

    fn check_free(&self, key: &str) -> Result<()> {
        match self.entries().get(key).is_some() {
            true => Err(Status::already_exists(format!("snapshot {key} already exists"))),
            false => Ok(()),
        }
    }

    fn entry(&self, key: &str) -> Result<Entry> {
        let entry = self.entries().get(key).cloned();
        entry.ok_or_else(|| Status::not_found(format!("snapshot {key} does not exist")))
    }

    /// The id in the tree of a snapshot, or of the one whose device it shares.
    fn device_id(&self, entry: &Entry) -> Result<String> {
        entry.id.clone().map_or_else(|| self.id(&entry.info.parent), Ok)
    }

    fn id(&self, key: &str) -> Result<String> {
        self.entry(key)?
            .id
            .ok_or_else(|| Status::internal(format!("snapshot {key} is a view of another one")))
    }

    /// The record of a snapshot that has one of its own.
    fn record(&self, key: &str) -> Result<Record> {
        let info = self.entry(key)?.info;
        let entries = self.entries();
        let views = entries.children(key).filter(|entry| entry.id.is_none());
        Ok(Record { info, views: views.map(|entry| entry.info.clone()).collect() })
    }

    fn write(&self, id: &str, record: &Record) -> Result<()> {
        self.tree.change_labels(id, |labels| record.write(labels)).map_err(status)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() { Err(Status::invalid_argument("the key of a snapshot is empty")) } else { Ok(()) }
}

/// containerd's garbage collection ends at the first answer that it does not expect.
fn not_removed(status: Status) -> Status {
    match status.code() {
        Code::NotFound | Code::Unavailable | Code::FailedPrecondition => status,
        code => {
            warn!(%code, "a snapshot cannot be removed: {}", status.message());
            Status::failed_precondition(status.message())
        }
    }
}

/// What a failure of the tree is for containerd.
fn status(error: Error) -> Status {
    let code = match &error {
        Error::UnknownSnapshot { .. } => Code::NotFound,
        Error::SnapshotExists { .. } => Code::AlreadyExists,
        Error::InvalidName { .. } | Error::InvalidOption { .. } => Code::InvalidArgument,
        Error::Closed | Error::StateUnknown => Code::Unavailable,
        error if error.is_busy() => Code::FailedPrecondition,
        error if error.is_out_of_space() => Code::ResourceExhausted,
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}
