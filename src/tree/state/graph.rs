//! The tree itself: which snapshot is which thin device. Pure; knows no kernel and no file.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::thin::ThinId;
use crate::tree::{Filesystem, Labels, SnapshotId};
use crate::units::Bytes;

/// What is known of a volume's file system: facts, not the last thing tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::tree) enum FsState {
    /// Being made. Found at an open, the volume is worth nothing and is made again.
    Making,
    /// There, but smaller than the volume: to be grown before use.
    Growing,
    /// As large as the volume.
    Ready,
}

/// The volume that all others begin with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Base {
    /// Its thin device.
    pub(in crate::tree) thin_id: ThinId,
    /// Its size.
    pub(in crate::tree) size: Bytes,
    /// Its kind of file system.
    pub(in crate::tree) filesystem: Filesystem,
    /// The UUID that the file system was made with.
    pub(in crate::tree) filesystem_uuid: Uuid,
    /// How far that is.
    pub(in crate::tree) fs: FsState,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Snapshot {
    /// Its thin device.
    pub(in crate::tree) thin_id: ThinId,
    /// What it was made from; `None` is the base. That snapshot may be gone since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) parent: Option<SnapshotId>,
    /// The parent was removed; a snapshot that has its id now is another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::tree) parent_gone: bool,
    /// What callers noted about it.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(in crate::tree) labels: Labels,
    /// Its size.
    pub(in crate::tree) size: Bytes,
    /// Its file system.
    pub(in crate::tree) fs: FsState,
    /// The init layer that was applied to it, by its fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) init: Option<u32>,
    /// The identity of its content; set as long as the snapshot is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) sealed: Option<Uuid>,
    /// The pool's time when it was sealed: every block written since has a mapping of a later time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) seal_time: Option<u32>,
    /// Data that it has and what it was made from has not; known once both are sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) own: Option<Bytes>,
    /// How an older version recorded [`Graph::removed`].
    #[serde(default, skip_serializing)]
    pub(in crate::tree) deleting: bool,
}

/// A snapshot that was removed, as long as the pool has its volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Removed {
    /// The id that it had.
    pub(in crate::tree) id: SnapshotId,
    /// Its size.
    pub(in crate::tree) size: Bytes,
}

impl Snapshot {
    /// A new one.
    pub(in crate::tree) fn new(
        thin_id: ThinId,
        parent: Option<SnapshotId>,
        size: Bytes,
        fs: FsState,
    ) -> Self {
        let labels = Labels::default();
        Self {
            thin_id,
            parent,
            parent_gone: false,
            labels,
            size,
            fs,
            init: None,
            sealed: None,
            seal_time: None,
            own: None,
            deleting: false,
        }
    }
}

/// A volume that is written and not published yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Making {
    /// Its thin device.
    pub(in crate::tree) thin_id: ThinId,
    /// Its size.
    pub(in crate::tree) size: Bytes,
    /// The receive that fills it, if that can be continued. Without, the next open deletes the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) receive: Option<Receiving>,
}

/// A receive that can be continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Receiving {
    /// Identity of the content to be.
    pub(in crate::tree) volume: Uuid,
    /// Identity of the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::tree) base: Option<Uuid>,
    /// The snapshot to be.
    pub(in crate::tree) id: SnapshotId,
    /// Everything before this offset is durable.
    pub(in crate::tree) offset: Bytes,
}

/// Thin ids that may have been handed to the kernel without a record of what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct IdWindow {
    /// New ids are taken from here …
    pub(in crate::tree) from: u32,
    /// … up to but not including this.
    pub(in crate::tree) to: u32,
    /// Ids from earlier windows that were still under way.
    #[serde(rename = "stragglers", default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::tree) in_flight: Vec<ThinId>,
}

impl IdWindow {
    /// Every id in it.
    pub(in crate::tree) fn ids(&self) -> impl Iterator<Item = ThinId> + '_ {
        (self.from..self.to).filter_map(|id| ThinId::new(id).ok()).chain(self.in_flight.iter().copied())
    }
}

/// The largest window that a state may hold: opening looks at each of its ids.
const WINDOW_MAX: u32 = 1 << 16;

impl IdWindow {
    fn check(&self) -> Result<(), &'static str> {
        let whole = self.from <= self.to && self.to <= ThinId::MAX.get() + 1;
        if whole && self.to - self.from <= WINDOW_MAX { Ok(()) } else { Err("no window of thin ids") }
    }
}

/// A change of the tree: one line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(in crate::tree) enum Record {
    /// New ids will be taken from this window.
    Reserve(IdWindow),
    /// The generation has risen.
    Generation {
        /// To this.
        generation: u64,
    },
    /// A volume that may hold what nobody else has, or that was being made in a state that was too old, is kept, and
    /// its id stays taken.
    Orphan {
        /// Its thin device.
        thin_id: ThinId,
    },
    /// There is a base volume; it replaces one that was never ready.
    Base(Base),
    /// The base is as large as this, its file system in this state.
    BaseFs {
        /// The size.
        size: Bytes,
        /// The state.
        fs: FsState,
    },
    /// A volume is there that is not published yet.
    Making(Making),
    /// A receive has written everything before this offset.
    Received {
        /// Its thin device.
        thin_id: ThinId,
        /// Everything before this offset is durable.
        offset: Bytes,
    },
    /// A volume that no caller sees is gone: one that was never published, or a removed snapshot's.
    Unmade {
        /// Its thin device.
        thin_id: ThinId,
    },
    /// There is a snapshot; if its volume was being made, it is published.
    Add {
        /// Its id.
        id: SnapshotId,
        /// The rest.
        snapshot: Snapshot,
    },
    /// A snapshot is being added: the pool may have its volume already. No caller sees it.
    Adding {
        /// Its id.
        id: SnapshotId,
        /// The rest.
        snapshot: Snapshot,
    },
    /// It has been added. Without this line the next open looks for the volume: [`Record::Unmade`] if there is none.
    Added {
        /// Its thin device.
        thin_id: ThinId,
    },
    /// A snapshot's file system is in this state.
    Fs {
        /// Which snapshot.
        id: SnapshotId,
        /// The state.
        fs: FsState,
    },
    /// A snapshot is removed, and its id is free. Its volume is still to be deleted.
    Deleting {
        /// Which.
        id: SnapshotId,
    },
    /// How an older version recorded that the volume is deleted.
    Deleted {
        /// Which.
        id: SnapshotId,
    },
    /// This init layer was applied to a snapshot.
    Init {
        /// Which snapshot.
        id: SnapshotId,
        /// The layer's fingerprint.
        layer: u32,
    },
    /// A snapshot is sealed, or not any more.
    Sealed {
        /// Which.
        id: SnapshotId,
        /// The identity of its content; `None` if it is not sealed any more.
        sealed: Option<Uuid>,
        /// The pool's time, if it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        time: Option<u32>,
    },
    /// This much data a sealed snapshot has that what it was made from has not.
    Own {
        /// Which snapshot.
        id: SnapshotId,
        /// How much.
        own: Bytes,
    },
    /// So many snapshots are kept ready of an origin.
    Ready {
        /// Its thin device.
        origin: ThinId,
        /// How many.
        count: u16,
    },
    /// These are a snapshot's labels.
    Labels {
        /// Which snapshot.
        id: SnapshotId,
        /// All of them.
        labels: Labels,
    },
    /// A snapshot has another id.
    Renamed {
        /// The one it had.
        id: SnapshotId,
        /// The one it has.
        to: SnapshotId,
    },
}

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
    pub(in crate::tree) adding: BTreeMap<SnapshotId, Snapshot>,
    /// All snapshots.
    pub(in crate::tree) snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Removed snapshots whose volumes are still to be deleted, by their thin devices.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::tree) removed: BTreeMap<ThinId, Removed>,
    /// How many snapshots are kept ready, by the thin devices of their origins: of the base, and of sealed snapshots.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::tree) ready: BTreeMap<ThinId, u16>,
    /// The thin ids of the above.
    #[serde(skip)]
    used: HashSet<ThinId>,
    /// Parents that are there, each with each of its children.
    #[serde(skip)]
    edges: BTreeSet<(SnapshotId, SnapshotId)>,
}

impl Graph {
    /// A snapshot.
    pub(in crate::tree) fn get(&self, id: &str) -> Option<&Snapshot> {
        self.snapshots.get(id)
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

    /// Volumes that an open leaves as they are: the base if it is made, the snapshots, and those that were being added.
    pub(in crate::tree) fn kept(&self) -> impl Iterator<Item = ThinId> + '_ {
        let base = self.base.iter().filter(|base| base.fs != FsState::Making).map(|base| base.thin_id);
        let snapshots = self.snapshots.values().chain(self.adding.values());
        base.chain(snapshots.map(|snapshot| snapshot.thin_id))
    }

    /// Whether a thin id is in use.
    pub(in crate::tree) fn uses(&self, id: ThinId) -> bool {
        self.used.contains(&id)
    }

    /// The number of thin ids in use.
    pub(in crate::tree) fn used_ids(&self) -> usize {
        self.used.len()
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
                let old = self.base.as_ref();
                if old.is_some_and(|old| old.fs != FsState::Making) {
                    return Err("a second base");
                }
                let old = old.map(|old| old.thin_id);
                if old != Some(base.thin_id) {
                    self.claim(base.thin_id)?;
                    old.map(|old| self.used.remove(&old));
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
                self.used.remove(thin_id);
            }
            Record::Add { id, snapshot } => {
                self.check_new(id, snapshot)?;
                match self.making(snapshot.thin_id) {
                    Some(_) => self.making.retain(|making| making.thin_id != snapshot.thin_id),
                    None => self.claim(snapshot.thin_id)?,
                }
                self.insert(id.clone(), snapshot.clone());
            }
            Record::Adding { id, snapshot } => {
                self.check_new(id, snapshot)?;
                self.claim(snapshot.thin_id)?;
                let mut snapshot = snapshot.clone();
                self.look_for_parent(&mut snapshot);
                self.adding.insert(id.clone(), snapshot);
            }
            Record::Added { thin_id } => {
                let id = self.adding.iter().find(|(_, snapshot)| snapshot.thin_id == *thin_id);
                let id = id.map(|(id, _)| id.clone()).ok_or("no such snapshot")?;
                let added = self.adding.remove(&id);
                added.into_iter().for_each(|snapshot| self.insert(id.clone(), snapshot));
            }
            Record::Fs { id, fs } => self.find(id)?.fs = *fs,
            Record::Deleting { id } => {
                self.remove(id)?;
                for child in self.children(id) {
                    self.edges.remove(&(id.clone(), child.clone()));
                    self.find(&child)?.parent_gone = true;
                }
                self.children_being_added(id).for_each(|child| child.parent_gone = true);
            }
            Record::Deleted { id } => {
                let removed = self.removed.iter().find(|(_, removed)| removed.id == *id);
                let thin_id = removed.map(|(thin_id, _)| *thin_id).ok_or("deleted without warning")?;
                self.removed.remove(&thin_id);
                self.used.remove(&thin_id);
            }
            Record::Init { id, layer } => self.find(id)?.init = Some(*layer),
            Record::Sealed { id, sealed, time } => {
                let snapshot = self.find(id)?;
                if sealed.is_some() && snapshot.fs != FsState::Ready {
                    return Err("sealed before its file system is ready");
                }
                (snapshot.sealed, snapshot.seal_time) = (*sealed, time.filter(|_| sealed.is_some()));
                snapshot.own = None;
                let thin_id = snapshot.thin_id;
                if sealed.is_none() {
                    self.ready.remove(&thin_id);
                }
            }
            Record::Own { id, own } => self.find(id)?.own = Some(*own),
            Record::Ready { origin, count: 0 } => drop(self.ready.remove(origin)),
            Record::Ready { origin, count } => {
                if !self.is_final(*origin) {
                    return Err("ready snapshots of what changes");
                }
                self.ready.insert(*origin, *count);
            }
            Record::Labels { id, labels } => self.find(id)?.labels = labels.clone(),
            Record::Renamed { id, to } => {
                self.check_name(to)?;
                let snapshot = self.snapshots.remove(id).ok_or("no such snapshot")?;
                self.unlink(id, &snapshot);
                self.link(to, &snapshot);
                self.snapshots.insert(to.clone(), snapshot);
                for child in self.children(id) {
                    self.edges.remove(&(id.clone(), child.clone()));
                    self.edges.insert((to.clone(), child.clone()));
                    self.find(&child)?.parent = Some(to.clone());
                }
                self.children_being_added(id).for_each(|child| child.parent = Some(to.clone()));
            }
        }
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

    fn insert(&mut self, id: SnapshotId, mut snapshot: Snapshot) {
        self.look_for_parent(&mut snapshot);
        self.link(&id, &snapshot);
        self.snapshots.insert(id, snapshot);
    }

    /// The parent may be removed before its child is recorded.
    fn look_for_parent(&self, snapshot: &mut Snapshot) {
        let gone = snapshot.parent.as_ref().is_some_and(|parent| self.get(parent.as_str()).is_none());
        snapshot.parent_gone |= gone;
    }

    fn children_being_added<'a>(&'a mut self, id: &'a SnapshotId) -> impl Iterator<Item = &'a mut Snapshot> {
        let adding = self.adding.values_mut();
        adding.filter(move |child| !child.parent_gone && child.parent.as_ref() == Some(id))
    }

    /// Whether a thin device is the base's or a sealed snapshot's.
    fn is_final(&self, thin_id: ThinId) -> bool {
        let base = self.base.as_ref().filter(|base| base.fs != FsState::Making);
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
        self.snapshots.get_mut(id).ok_or("no such snapshot")
    }

    /// The children of a snapshot, in order.
    pub(in crate::tree) fn children(&self, id: &SnapshotId) -> Vec<SnapshotId> {
        let from = self.edges.range((id.clone(), SnapshotId::first())..);
        from.take_while(|(parent, _)| parent == id).map(|(_, child)| child.clone()).collect()
    }

    fn link(&mut self, id: &SnapshotId, snapshot: &Snapshot) {
        if let Some(parent) = snapshot.parent.clone().filter(|_| !snapshot.parent_gone) {
            self.edges.insert((parent, id.clone()));
        }
    }

    fn unlink(&mut self, id: &SnapshotId, snapshot: &Snapshot) {
        if let Some(parent) = snapshot.parent.clone().filter(|_| !snapshot.parent_gone) {
            self.edges.remove(&(parent, id.clone()));
        }
    }

    fn claim(&mut self, id: ThinId) -> Result<(), &'static str> {
        if self.used.insert(id) { Ok(()) } else { Err("a thin id used twice") }
    }

    /// Rebuild what is not stored, and check what [`apply`](Self::apply) sees to: each thin id is used once, parents
    /// are there, and no snapshot descends from itself. A new snapshot has no children yet, so it closes no cycle.
    pub(in crate::tree) fn index(&mut self) -> Result<(), &'static str> {
        self.ids.check()?;
        let deleting = self.snapshots.iter().filter(|(_, snapshot)| snapshot.deleting);
        for id in deleting.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.remove(&id)?;
        }
        self.used.clear();
        let base = self.base.as_ref().map(|base| base.thin_id);
        let making = self.making.iter().map(|making| making.thin_id);
        let snapshots = self.snapshots.values().chain(self.adding.values()).map(|snapshot| snapshot.thin_id);
        let orphans = self.orphans.iter().chain(self.removed.keys()).copied();
        let ids: Vec<_> = snapshots.chain(making).chain(orphans).chain(base).collect();
        ids.into_iter().try_for_each(|id| self.claim(id))?;
        let linked = self.snapshots.iter().filter(|(_, snapshot)| !snapshot.parent_gone);
        self.edges =
            linked.filter_map(|(id, snapshot)| Some((snapshot.parent.clone()?, id.clone()))).collect();
        let adding = self.adding.values().filter(|snapshot| !snapshot.parent_gone);
        let parents = adding.filter_map(|snapshot| snapshot.parent.as_ref());
        let mut parents = self.edges.iter().map(|(parent, _)| parent).chain(parents);
        if parents.any(|parent| self.get(parent.as_str()).is_none()) {
            return Err("a parent that is not there");
        }
        if self.adding.keys().any(|id| self.snapshots.contains_key(id)) {
            return Err("a second snapshot of that id");
        }
        if !self.ready.keys().all(|origin| self.is_final(*origin)) {
            return Err("ready snapshots of what changes");
        }
        // From the roots a walk does not come by a circle, nor by what is below one.
        if self.walk(None).len() != self.snapshots.len() {
            return Err("a snapshot that descends from itself");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(id: &str, thin_id: u32) -> Record {
        let thin_id = ThinId::new(thin_id).unwrap();
        let snapshot = Snapshot::new(thin_id, None, Bytes::gib(1), FsState::Ready);
        Record::Add { id: SnapshotId::new(id).unwrap(), snapshot }
    }

    fn id(id: &str) -> SnapshotId {
        SnapshotId::new(id).unwrap()
    }

    #[test]
    fn what_contradicts_the_tree_is_refused() {
        let mut graph = Graph::default();
        graph.apply(&add("a", 1)).unwrap();
        assert_eq!(graph.apply(&add("a", 2)), Err("a second snapshot of that id"));
        assert_eq!(graph.apply(&add("b", 1)), Err("a thin id used twice"));
        assert_eq!(graph.apply(&Record::Deleted { id: id("a") }), Err("deleted without warning"));
        assert_eq!(graph.apply(&Record::Deleting { id: id("b") }), Err("no such snapshot"));
    }

    #[test]
    fn a_record_that_is_refused_changes_nothing() {
        let mut graph = Graph::default();
        let base = |thin_id, fs| Base {
            thin_id: ThinId::new(thin_id).unwrap(),
            size: Bytes::gib(1),
            filesystem: Filesystem::Ext4,
            filesystem_uuid: Uuid::nil(),
            fs,
        };
        graph.apply(&Record::Base(base(0, FsState::Making))).unwrap();
        graph.apply(&add("a", 1)).unwrap();
        let before = graph.clone();
        assert_eq!(graph.apply(&Record::Base(base(1, FsState::Making))), Err("a thin id used twice"));
        for (from, to) in [(1, 0), (0, u32::MAX), (0, 1 << 24), (u32::MAX, u32::MAX)] {
            let window = IdWindow { from, to, in_flight: Vec::new() };
            assert_eq!(graph.apply(&Record::Reserve(window)), Err("no window of thin ids"));
        }
        assert_eq!(graph, before);
        // Made again under the same id, and under another one.
        graph.apply(&Record::Base(base(0, FsState::Making))).unwrap();
        graph.apply(&Record::Base(base(2, FsState::Ready))).unwrap();
        assert!(!graph.uses(ThinId::new(0).unwrap()) && graph.uses(ThinId::new(2).unwrap()));
    }

    #[test]
    fn a_deleted_snapshot_frees_its_ids() {
        let mut graph = Graph::default();
        graph.apply(&add("a", 1)).unwrap();
        graph.apply(&Record::Deleting { id: id("a") }).unwrap();
        assert!(graph.get("a").is_none());
        assert_eq!(graph.apply(&add("a", 1)), Err("a thin id used twice"));
        // The name is free at once, the thin id when the volume is deleted.
        graph.apply(&add("a", 2)).unwrap();
        graph.apply(&Record::Unmade { thin_id: ThinId::new(1).unwrap() }).unwrap();
        graph.apply(&add("b", 1)).unwrap();
    }

    #[test]
    fn a_snapshot_is_sealed_with_an_identity_and_without() {
        let mut graph = Graph::default();
        let sealed = |sealed, time| Record::Sealed { id: id("a"), sealed, time };
        assert_eq!(graph.apply(&sealed(None, None)), Err("no such snapshot"));
        graph.apply(&add("a", 1)).unwrap();
        let before = serde_json::to_string(&graph).unwrap();
        let uuid = Uuid::from_u128(7);
        graph.apply(&sealed(Some(uuid), Some(3))).unwrap();
        let found = |graph: &Graph| graph.get("a").map(|found| (found.sealed, found.seal_time)).unwrap();
        assert_eq!(found(&graph), (Some(uuid), Some(3)));
        let text = serde_json::to_string(&graph).unwrap();
        assert_eq!(found(&serde_json::from_str(&text).unwrap()), (Some(uuid), Some(3)));
        graph.apply(&sealed(None, Some(4))).unwrap();
        assert_eq!(serde_json::to_string(&graph).unwrap(), before);
        graph.apply(&Record::Fs { id: id("a"), fs: FsState::Growing }).unwrap();
        assert_eq!(graph.apply(&sealed(Some(uuid), None)), Err("sealed before its file system is ready"));
    }

    #[test]
    fn a_volume_is_made_until_it_is_published_or_gone() {
        let mut graph = Graph::default();
        let thin_id = ThinId::new(1).unwrap();
        let receive = Receiving { volume: Uuid::from_u128(7), base: None, id: id("a"), offset: Bytes(0) };
        let making = |receive| Record::Making(Making { thin_id, size: Bytes::gib(1), receive });
        let received = Record::Received { thin_id, offset: Bytes::mib(64) };
        graph.apply(&making(None)).unwrap();
        assert_eq!(graph.apply(&making(None)), Err("a thin id used twice"));
        assert_eq!(graph.apply(&received), Err("no such receive"));
        graph.apply(&Record::Unmade { thin_id }).unwrap();
        assert_eq!(graph, Graph::default());
        assert_eq!(graph.apply(&Record::Unmade { thin_id }), Err("no such volume"));

        graph.apply(&making(Some(receive))).unwrap();
        graph.apply(&received).unwrap();
        let text = serde_json::to_string(&graph).unwrap();
        let mut again: Graph = serde_json::from_str(&text).unwrap();
        again.index().unwrap();
        assert_eq!(again, graph);
        let offset = graph.making(thin_id).and_then(|making| making.receive.as_ref()).unwrap().offset;
        assert_eq!(offset, Bytes::mib(64));
        graph.apply(&add("a", 1)).unwrap();
        assert!(graph.making.is_empty());
        assert!(graph.uses(thin_id));
    }
}
