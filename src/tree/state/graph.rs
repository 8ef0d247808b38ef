//! The tree itself: which snapshot is which thin device. Pure; knows no kernel and no file.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::thin::ThinId;
use crate::tree::SnapshotId;
use crate::tree::state::record::{Base, FsState, IdWindow, Making, Record, Removed, Snapshot};

/// The tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Graph {
    /// Reserved thin ids.
    pub(in crate::tree) ids: IdWindow,
    /// The base volume.
    pub(in crate::tree) base: Option<Base>,
    /// Volumes that are not published yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::tree) making: Vec<Making>,
    /// Volumes that were found without a record and may hold what nobody else has.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(in crate::tree) orphans: BTreeSet<ThinId>,
    /// Snapshots that are being added.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::tree) adding: BTreeMap<SnapshotId, Arc<Snapshot>>,
    /// All snapshots.
    pub(in crate::tree) snapshots: BTreeMap<SnapshotId, Arc<Snapshot>>,
    /// Removed snapshots whose volumes are still to be deleted, by their thin devices.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::tree) removed: BTreeMap<ThinId, Removed>,
    /// How many snapshots are kept ready, by the thin devices of their origins: of the base, and of sealed snapshots.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::tree) ready: BTreeMap<ThinId, u16>,
    /// What is found from the rest.
    #[serde(skip)]
    index: Index,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Index {
    /// The thin ids in use.
    used: HashSet<ThinId>,
    /// Parents that are there, each with each of its children.
    edges: BTreeSet<(SnapshotId, SnapshotId)>,
    /// Bytes of all snapshots' ids.
    id_bytes: usize,
}

impl Graph {
    /// What a checkpoint holds of it. The copy shares the snapshots.
    pub(in crate::tree) fn stored(&mut self) -> Self {
        let index = std::mem::take(&mut self.index);
        let copy = self.clone();
        self.index = index;
        copy
    }

    /// A snapshot.
    pub(in crate::tree) fn get(&self, id: &str) -> Option<&Snapshot> {
        self.snapshots.get(id).map(Arc::as_ref)
    }

    /// A volume that is not published yet.
    pub(in crate::tree) fn making(&self, thin_id: ThinId) -> Option<&Making> {
        self.making.iter().find(|making| making.thin_id == thin_id)
    }

    /// A snapshot by the identity of its content.
    pub(in crate::tree) fn sealed_as(&self, uuid: Uuid) -> Option<SnapshotId> {
        let mut all = self.snapshots.iter();
        all.find(|(_, snapshot)| snapshot.sealed == Some(uuid)).map(|(id, _)| id.clone())
    }

    /// The snapshot of a thin device.
    pub(in crate::tree) fn id_of(&self, thin_id: ThinId) -> Option<SnapshotId> {
        let mut all = self.snapshots.iter();
        all.find(|(_, snapshot)| snapshot.thin_id == thin_id).map(|(id, _)| id.clone())
    }

    /// All snapshots by their thin devices.
    pub(in crate::tree) fn by_thin_id(&self) -> HashMap<ThinId, (SnapshotId, Arc<Snapshot>)> {
        let all = self.snapshots.iter();
        all.map(|(id, snapshot)| (snapshot.thin_id, (id.clone(), snapshot.clone()))).collect()
    }

    /// The base, unless it is only half made.
    pub(in crate::tree) fn made_base(&self) -> Option<&Base> {
        self.base.as_ref().filter(|base| base.fs != FsState::Making)
    }

    /// Volumes that an open leaves as they are: the base if it is made, the snapshots, and those that were being added.
    pub(in crate::tree) fn kept(&self) -> impl Iterator<Item = ThinId> + '_ {
        let base = self.made_base().into_iter().map(|base| base.thin_id);
        let snapshots = self.snapshots.values().chain(self.adding.values());
        base.chain(snapshots.map(|snapshot| snapshot.thin_id))
    }

    /// Whether a thin id is in use.
    pub(in crate::tree) fn uses(&self, id: ThinId) -> bool {
        self.index.used.contains(&id)
    }

    /// Bytes of the ids of all snapshots together.
    pub(in crate::tree) fn id_bytes(&self) -> usize {
        self.index.id_bytes
    }

    /// The number of thin ids in use.
    pub(in crate::tree) fn used_ids(&self) -> usize {
        self.index.used.len()
    }

    /// Applies a change, or says why it cannot be applied.
    pub(in crate::tree) fn apply(&mut self, record: &Record) -> Result<(), &'static str> {
        match record {
            Record::Reserve(window) => {
                window.check()?;
                self.ids = window.clone();
            }
            Record::Generation { .. } => {}
            Record::Orphan { thin_id } => {
                match self.making(*thin_id) {
                    Some(_) => self.making.retain(|making| making.thin_id != *thin_id),
                    None => self.claim(*thin_id)?,
                }
                self.orphans.insert(*thin_id);
            }
            Record::Base(base) => {
                if self.made_base().is_some() {
                    return Err("a second base");
                }
                let old = self.base.as_ref().map(|old| old.thin_id);
                if old != Some(base.thin_id) {
                    self.claim(base.thin_id)?;
                    old.map(|old| self.index.used.remove(&old));
                }
                self.base = Some(base.clone());
            }
            Record::BaseFs { size, fs } => {
                let base = self.base.as_mut().ok_or("no base")?;
                (base.size, base.fs) = (*size, *fs);
            }
            Record::Making(making) => {
                self.claim(making.thin_id)?;
                self.making.push(making.clone());
            }
            Record::Received { thin_id, offset } => {
                let making = self.making.iter_mut().find(|making| making.thin_id == *thin_id);
                let receive = making.and_then(|making| making.receive.as_mut());
                receive.ok_or("no such receive")?.offset = *offset;
            }
            Record::Unmade { thin_id } => {
                let is_adding = self.adding.values().any(|snapshot| snapshot.thin_id == *thin_id);
                let is_removed = self.removed.remove(thin_id).is_some();
                if !is_adding
                    && !is_removed
                    && self.making(*thin_id).is_none()
                    && !self.orphans.contains(thin_id)
                {
                    return Err("no such volume");
                }
                self.adding.retain(|_, snapshot| snapshot.thin_id != *thin_id);
                self.making.retain(|making| making.thin_id != *thin_id);
                self.orphans.remove(thin_id);
                self.index.used.remove(thin_id);
            }
            Record::Add { id, snapshot } => {
                self.check_new(id, snapshot)?;
                match self.making(snapshot.thin_id) {
                    Some(_) => self.making.retain(|making| making.thin_id != snapshot.thin_id),
                    None => self.claim(snapshot.thin_id)?,
                }
                self.insert(id.clone(), Arc::new(snapshot.clone()));
            }
            Record::Adding { id, snapshot } => {
                self.check_new(id, snapshot)?;
                self.claim(snapshot.thin_id)?;
                let mut snapshot = snapshot.clone();
                self.look_for_parent(&mut snapshot);
                self.adding.insert(id.clone(), Arc::new(snapshot));
            }
            Record::Added { thin_id } => {
                let id = self.adding.iter().find(|(_, snapshot)| snapshot.thin_id == *thin_id);
                let id = id.map(|(id, _)| id.clone()).ok_or("no such snapshot")?;
                let added = self.adding.remove(&id);
                added.into_iter().for_each(|snapshot| self.insert(id.clone(), snapshot));
            }
            Record::Fs { id, fs } => self.find(id)?.fs = *fs,
            Record::Resized { id, size } => {
                let snapshot = self.find(id)?;
                if *size <= snapshot.size || snapshot.sealed.is_some() {
                    return Err("a snapshot that cannot be resized");
                }
                (snapshot.size, snapshot.fs) = (*size, FsState::Growing);
            }
            Record::Deleting { id } => {
                self.remove(id)?;
                for child in self.children(id) {
                    self.index.edges.remove(&(id.clone(), child.clone()));
                    self.find(&child)?.parent_gone = true;
                }
                self.children_being_added(id).for_each(|child| child.parent_gone = true);
            }
            Record::Deleted { id } => {
                let removed = self.removed.iter().find(|(_, removed)| removed.id == *id);
                let thin_id = removed.map(|(thin_id, _)| *thin_id).ok_or("deleted without warning")?;
                self.removed.remove(&thin_id);
                self.index.used.remove(&thin_id);
            }
            Record::Init { id, layer } => self.find(id)?.init = Some(*layer),
            Record::Sealed { id, sealed, time } => self.seal(id, *sealed, *time)?,
            Record::Own { id, own } => self.find(id)?.own = Some(*own),
            Record::Ready { origin, count: 0 } => drop(self.ready.remove(origin)),
            Record::Ready { origin, count } => {
                if !self.is_final(*origin) {
                    return Err("ready snapshots of what changes");
                }
                self.ready.insert(*origin, *count);
            }
            Record::Labels { id, labels } => self.find(id)?.labels = labels.clone(),
            Record::Committed { id, to, labels, sealed, time } => {
                self.check_name(to)?;
                self.seal(id, Some(*sealed), Some(*time))?;
                self.find(id)?.labels = labels.clone();
                self.rename(id, to)?;
            }
            Record::Renamed { id, to } => self.rename(id, to)?,
        }
        Ok(())
    }

    fn seal(&mut self, id: &SnapshotId, sealed: Option<Uuid>, time: Option<u32>) -> Result<(), &'static str> {
        let snapshot = self.find(id)?;
        if sealed.is_some() && snapshot.fs != FsState::Ready {
            return Err("sealed before its file system is ready");
        }
        (snapshot.sealed, snapshot.seal_time) = (sealed, time.filter(|_| sealed.is_some()));
        snapshot.own = None;
        let thin_id = snapshot.thin_id;
        if sealed.is_none() {
            self.ready.remove(&thin_id);
        }
        Ok(())
    }

    fn rename(&mut self, id: &SnapshotId, to: &SnapshotId) -> Result<(), &'static str> {
        self.check_name(to)?;
        let snapshot = self.snapshots.remove(id).ok_or("no such snapshot")?;
        self.unlink(id, &snapshot);
        self.link(to, &snapshot);
        self.snapshots.insert(to.clone(), snapshot);
        for child in self.children(id) {
            self.index.edges.remove(&(id.clone(), child.clone()));
            self.index.edges.insert((to.clone(), child.clone()));
            self.find(&child)?.parent = Some(to.clone());
        }
        self.children_being_added(id).for_each(|child| child.parent = Some(to.clone()));
        Ok(())
    }

    fn check_name(&self, id: &SnapshotId) -> Result<(), &'static str> {
        let is_free = !self.snapshots.contains_key(id) && !self.adding.contains_key(id);
        if is_free { Ok(()) } else { Err("a second snapshot of that id") }
    }

    fn check_new(&self, id: &SnapshotId, snapshot: &Snapshot) -> Result<(), &'static str> {
        self.check_name(id)?;
        if snapshot.deleting || snapshot.parent_gone && snapshot.parent.is_none() {
            return Err("a new snapshot that is removed");
        }
        if snapshot.sealed.is_some() && snapshot.fs != FsState::Ready {
            return Err("sealed before its file system is ready");
        }
        Ok(())
    }

    fn insert(&mut self, id: SnapshotId, mut snapshot: Arc<Snapshot>) {
        self.look_for_parent(Arc::make_mut(&mut snapshot));
        self.link(&id, &snapshot);
        self.snapshots.insert(id, snapshot);
    }

    /// The parent may be removed before its child is recorded. One that is there shares its id.
    fn look_for_parent(&self, snapshot: &mut Snapshot) {
        let Some(parent) = &mut snapshot.parent else { return };
        match self.snapshots.get_key_value(parent) {
            Some((known, _)) => *parent = known.clone(),
            None => snapshot.parent_gone = true,
        }
    }

    fn children_being_added<'a>(&'a mut self, id: &'a SnapshotId) -> impl Iterator<Item = &'a mut Snapshot> {
        let adding = self.adding.values_mut();
        adding.filter(move |child| child.is_child_of(id)).map(Arc::make_mut)
    }

    /// Whether a thin device is the base's or a sealed snapshot's.
    fn is_final(&self, thin_id: ThinId) -> bool {
        let base = self.made_base();
        let mut sealed = self.snapshots.values().filter(|snapshot| snapshot.sealed.is_some());
        base.is_some_and(|base| base.thin_id == thin_id) || sealed.any(|snapshot| snapshot.thin_id == thin_id)
    }

    fn remove(&mut self, id: &SnapshotId) -> Result<(), &'static str> {
        let gone = self.snapshots.remove(id).ok_or("no such snapshot")?;
        self.unlink(id, &gone);
        self.ready.remove(&gone.thin_id);
        self.removed.insert(gone.thin_id, Removed { id: id.clone(), size: gone.size });
        Ok(())
    }

    fn find(&mut self, id: &SnapshotId) -> Result<&mut Snapshot, &'static str> {
        self.snapshots.get_mut(id).map(Arc::make_mut).ok_or("no such snapshot")
    }

    /// The children of a snapshot, in order.
    pub(in crate::tree) fn children(&self, id: &SnapshotId) -> Vec<SnapshotId> {
        let from = self.index.edges.range((id.clone(), SnapshotId::first())..);
        from.take_while(|(parent, _)| parent == id).map(|(_, child)| child.clone()).collect()
    }

    fn link(&mut self, id: &SnapshotId, snapshot: &Snapshot) {
        self.index.id_bytes += id.as_str().len();
        if let Some(parent) = snapshot.parent.clone().filter(|_| !snapshot.parent_gone) {
            self.index.edges.insert((parent, id.clone()));
        }
    }

    fn unlink(&mut self, id: &SnapshotId, snapshot: &Snapshot) {
        self.index.id_bytes -= id.as_str().len();
        if let Some(parent) = snapshot.parent.clone().filter(|_| !snapshot.parent_gone) {
            self.index.edges.remove(&(parent, id.clone()));
        }
    }

    fn claim(&mut self, id: ThinId) -> Result<(), &'static str> {
        if self.index.used.insert(id) { Ok(()) } else { Err("a thin id used twice") }
    }

    /// Rebuild what is not stored, and check what [`apply`](Self::apply) sees to: each thin id is used once, parents
    /// are there, and no snapshot descends from itself. A new snapshot has no children yet, so it closes no cycle.
    pub(in crate::tree) fn index(&mut self) -> Result<(), &'static str> {
        self.ids.check()?;
        self.index.id_bytes = self.snapshots.keys().map(|id| id.as_str().len()).sum();
        let deleting = self.snapshots.iter().filter(|(_, snapshot)| snapshot.deleting);
        for id in deleting.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.remove(&id)?;
        }
        self.index.used.clear();
        let base = self.base.as_ref().map(|base| base.thin_id);
        let making = self.making.iter().map(|making| making.thin_id);
        let snapshots = self.snapshots.values().chain(self.adding.values()).map(|snapshot| snapshot.thin_id);
        let orphans = self.orphans.iter().chain(self.removed.keys()).copied();
        let ids: Vec<_> = snapshots.chain(making).chain(orphans).chain(base).collect();
        ids.into_iter().try_for_each(|id| self.claim(id))?;
        let known: Vec<_> = self.snapshots.keys().cloned().collect();
        let mut parents = Vec::with_capacity(known.len());
        for snapshot in self.snapshots.values_mut().chain(self.adding.values_mut()) {
            let parent = snapshot.parent.as_ref().filter(|_| !snapshot.parent_gone);
            let found = parent.map(|parent| known.binary_search(parent)).transpose();
            let found = found.map_err(|_| "a parent that is not there")?;
            if let Some(found) = found {
                // One text for all of its children.
                Arc::make_mut(snapshot).parent = Some(known[found].clone());
            }
            parents.push(found);
        }
        parents.truncate(known.len());
        if has_circle(&parents) {
            return Err("a snapshot that descends from itself");
        }
        let mut edges: Vec<_> =
            parents.iter().zip(0..).filter_map(|(parent, child)| Some(((*parent)?, child))).collect();
        edges.sort_unstable();
        let edges = edges
            .into_iter()
            .map(|(parent, child): (usize, usize)| (known[parent].clone(), known[child].clone()));
        self.index.edges = edges.collect();
        if self.adding.keys().any(|id| self.snapshots.contains_key(id)) {
            return Err("a second snapshot of that id");
        }
        if !self.ready.keys().all(|origin| self.is_final(*origin)) {
            return Err("ready snapshots of what changes");
        }
        Ok(())
    }
}

/// Whether somebody is an own ancestor, by the parent of each.
fn has_circle(parents: &[Option<usize>]) -> bool {
    // Which walk came by: none, or the one that began there.
    let mut seen = vec![None; parents.len()];
    (0..parents.len()).any(|first| {
        let mut next = Some(first);
        while let Some(at) = next {
            if seen[at].is_some() {
                return seen[at] == Some(first);
            }
            (seen[at], next) = (Some(first), parents[at]);
        }
        false
    })
}

#[cfg(test)]
mod tests;
