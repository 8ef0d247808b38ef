//! What a user does, right or wrong.

use dm_thin::Errno;
use dm_thin::kernel::{Access, Kernel};
use dm_thin::tree::Error;
use dm_thin::tree::{AddOptions, Labels, Parent, ReceiveOptions, RemoveOptions, SendOptions, SnapshotTree};
use dm_thin::units::Bytes;
use uuid::Uuid;

use crate::numbers::Group;
use crate::owner::{BASE_SIZE, DATA_MAX, Expected, Owner, Source};
use crate::snapshots::{Change, Content, Origin, POSITIONS, Sealed, Snapshot, block, copied, empty};
use crate::streams::{Stream, Volume};

/// Names are few, so that they meet again.
const NAMES: usize = 10;
/// Streams that are kept.
const STREAMS: usize = 6;

impl Owner {
    fn name(&mut self) -> String {
        // Some are escaped in the names of devices.
        match self.rng.below(NAMES) {
            8 => "s/8 ü\"".to_owned(),
            9 => "=s9".repeat(30),
            n => format!("s{n}"),
        }
    }

    /// One of those that are there, mostly.
    fn known_name(&mut self) -> String {
        let known: Vec<_> = self.known.keys().cloned().collect();
        match self.rng.pick(&known) {
            Some(id) if !self.rng.one_in(6) => id.clone(),
            _ => self.name(),
        }
    }

    fn sealed_names(&self) -> Vec<(String, Uuid)> {
        let sealed = self.known.iter().filter_map(|(id, snapshot)| match snapshot.sealed {
            Sealed::As(uuid) => Some((id.clone(), uuid)),
            _ => None,
        });
        sealed.collect()
    }

    fn holds(&self, id: &str) -> bool {
        self.held.as_ref().is_some_and(|(held, _)| held == id)
    }

    /// One call. Only what the simulation does to it excuses an error in what must work.
    pub fn step(&mut self) {
        match self.rng.below(46) {
            0..=6 => self.add(),
            7..=9 => self.remove(),
            10 | 11 => self.rename(),
            12 => {
                let id = self.known_name();
                self.call("activate", self.known.contains_key(&id), |tree| tree.activate(&id));
            }
            13 | 14 => self.deactivate(),
            15..=19 => self.write(),
            20 | 21 => self.seal(),
            22 => {
                let id = self.known_name();
                let expected = Change::Unseal(id.clone());
                if !self.holds(&id) {
                    self.change("unseal", vec![expected], |tree| tree.unseal(&id));
                }
            }
            23 | 24 => self.create(),
            25 | 26 => self.send(),
            27 | 28 => self.receive(),
            29 => self.look_around(),
            30 => self.hold(),
            31 => drop(self.held.take()),
            32 | 33 => self.grow(),
            34 => drop(self.call("reap", true, SnapshotTree::reap)),
            35 => self.discard_receives(),
            36 if self.fills => self.fill(),
            36 => self.open_twice(),
            37 => self.leave(),
            38 => self.keep_ready(),
            39 => drop(self.call("refill", true, SnapshotTree::refill_ready)),
            40 => self.add_activated(),
            41 | 42 => self.commit(),
            43 => self.resize(),
            _ => self.close(),
        }
    }

    fn parent(&mut self) -> (Origin, Content) {
        if self.rng.one_in(4) {
            return (Origin::Base, empty());
        }
        let id = self.known_name();
        let content = self.known.get(&id).map_or_else(empty, |parent| copied(&parent.content));
        (Origin::Snapshot(id), content)
    }

    fn add(&mut self) {
        let (id, (origin, content)) = (self.name(), self.parent());
        let change = Change::add(&id, &origin, Sealed::No, content);
        let options = if self.rng.one_in(6) {
            AddOptions::new().size(BASE_SIZE + BASE_SIZE)
        } else {
            AddOptions::new()
        };
        self.change("add", vec![change], |tree| tree.add_with(&id, parent_of(&origin), &options));
    }

    fn add_activated(&mut self) {
        let (id, (origin, content)) = (self.name(), self.parent());
        let change = Change::add(&id, &origin, Sealed::No, content);
        let add = |tree: &SnapshotTree| tree.add_activated(&id, parent_of(&origin), &AddOptions::new());
        self.change("add activated", vec![change], add);
    }

    fn keep_ready(&mut self) {
        let (origin, _) = self.parent();
        let kept = match &origin {
            Origin::Base | Origin::Removed => true,
            Origin::Snapshot(id) => self.known.get(id).is_some_and(|it| it.sealed != Sealed::No),
        };
        let count = self.rng.below(3);
        self.call("keep ready", kept, |tree| tree.keep_ready(parent_of(&origin), count));
    }

    fn remove(&mut self) {
        let id = self.known_name();
        let (held, deferred) = (self.holds(&id), self.rng.one_in(2));
        let options = RemoveOptions::new().deferred(deferred).background(self.rng.one_in(2));
        let remove = |tree: &SnapshotTree| tree.remove_with(&id, &options);
        if held && !deferred {
            self.call("remove open", Expected::Refused, remove);
        } else {
            self.change("remove", vec![Change::Remove(id.clone())], remove);
            if held && !self.known.contains_key(&id) {
                // Another snapshot that gets its id is not the one that is open.
                self.held = self.held.take().map(|(_, file)| (String::new(), file));
            }
        }
    }

    fn rename(&mut self) {
        let (id, to) = (self.known_name(), self.name());
        let is_free = !self.known.contains_key(&to);
        self.change("rename", vec![Change::Rename(id.clone(), to.clone())], |tree| tree.rename(&id, &to));
        if is_free && self.holds(&id) && self.known.contains_key(&to) && !self.known.contains_key(&id) {
            self.held = self.held.take().map(|(_, file)| (to, file));
        }
    }

    fn deactivate(&mut self) {
        let id = self.known_name();
        let there = self.known.contains_key(&id);
        if self.rng.one_in(4) {
            if self.call("deactivate deferred", there, |tree| tree.deactivate_deferred(&id)).is_some() {
                self.leaving |= self.holds(&id);
            }
        } else {
            let expected = there && !self.holds(&id);
            self.call("deactivate", expected, |tree| tree.deactivate(&id));
        }
    }

    fn write(&mut self) {
        let id = self.known_name();
        let there = self.known.get(&id).map(|snapshot| snapshot.sealed != Sealed::No);
        let path = self.call("activate to write", there.is_some(), |tree| tree.activate(&id));
        let (Some(path), Some(sealed)) = (path, there) else { return };
        let (at, value) = (self.rng.below(POSITIONS.len()), self.new_value());
        let file = match self.io(|kernel| kernel.open(&path, Access::READ_WRITE)) {
            Ok(file) => file,
            Err(errno) => return assert!(self.is_excused_io(errno), "open {path:?}: {errno}"),
        };
        let tree = self.tree.as_ref().unwrap();
        let uuid = format!("DMTHIN-{}-{}", tree.uuid().simple(), tree.get(&id).unwrap().thin_id);
        let found = self.machine.block_attribute(&format!("dm-{}", file.number().minor), "dm/uuid");
        if found.as_deref() != Ok(uuid.as_bytes()) {
            // Whoever writes now writes into somebody else's device.
            return assert!(self.is_disturbed(), "{path:?} is {found:?}, not {uuid}");
        }
        self.count(Group::Operations, "write");
        let index = self.index;
        self.shared.numbers.tell(|| format!("tree {index}: write {value} to {id} at {}", POSITIONS[at]));
        let written = self.io(|kernel| kernel.write_at(&file, POSITIONS[at], &block(value)));
        let cell = &mut self.known.get_mut(&id).unwrap().content[at];
        match written {
            Ok(_) if sealed => panic!("a sealed snapshot was written to"),
            Ok(length) => {
                assert_eq!(length, block(value).len());
                cell.written(value);
            }
            Err(Errno::EPERM) if sealed => {}
            Err(errno) => {
                if !sealed {
                    cell.doubted(value);
                }
                assert!(self.is_excused_io(errno), "write to {path:?}: {errno}");
            }
        }
        if !sealed && self.rng.one_in(2) {
            self.count(Group::Operations, "sync");
            self.shared.numbers.tell(|| format!("tree {index}: sync {id}"));
            match self.io(|kernel| kernel.sync(&file)) {
                Ok(()) => self.known.get_mut(&id).unwrap().content.iter_mut().for_each(|cell| cell.synced()),
                Err(errno) => assert!(self.is_excused_io(errno), "sync {path:?}: {errno}"),
            }
        }
    }

    fn seal(&mut self) {
        let id = self.known_name();
        let unsealed = self.known.get(&id).is_some_and(|snapshot| snapshot.sealed == Sealed::No);
        if self.holds(&id) && unsealed {
            self.call("seal open", Expected::Refused, |tree| tree.seal(&id));
        } else if let Some(uuid) = self.change("seal", vec![Change::Seal(id.clone())], |tree| tree.seal(&id))
        {
            let snapshot = self.known.get_mut(&id).unwrap();
            assert!([Sealed::Somehow, Sealed::As(uuid)].contains(&snapshot.sealed));
            snapshot.sealed = Sealed::As(uuid);
        }
    }

    fn commit(&mut self) {
        let (id, to) = (self.known_name(), self.name());
        let unsealed = self.known.get(&id).is_some_and(|snapshot| snapshot.sealed == Sealed::No);
        let commit = |tree: &SnapshotTree| tree.commit(&id, &to, Labels::new());
        if self.holds(&id) && unsealed {
            self.call("commit open", Expected::Refused, commit);
        } else if let Some(uuid) = self.change("commit", vec![Change::Commit(id.clone(), to.clone())], commit)
        {
            self.known.get_mut(&to).unwrap().sealed = Sealed::As(uuid);
        }
    }

    fn resize(&mut self) {
        let id = self.known_name();
        let size = Bytes(BASE_SIZE.0 * self.rng.below(3).max(1) as u64);
        let now = self.tree.as_ref().and_then(|tree| tree.get(&id).ok()).map(|info| info.size);
        let unsealed = self.known.get(&id).is_some_and(|snapshot| snapshot.sealed == Sealed::No);
        let possible = unsealed && now.is_some_and(|now| now <= size);
        if self.call("resize", possible, |tree| tree.resize(&id, size)).is_some() {
            assert_eq!(self.tree.as_ref().unwrap().get(&id).unwrap().size, size);
        }
    }

    /// A snapshot that is written before it is published, or never is.
    fn create(&mut self) {
        let (id, (origin, mut content)) = (self.name(), self.parent());
        let alone = origin == Origin::Base && self.rng.one_in(2);
        let (at, value, seals) = (self.rng.below(POSITIONS.len()), self.new_value(), self.rng.one_in(2));
        let given_up = self.rng.one_in(4);
        content[at].written(value);
        let content = copied(&content);
        let sealed = if seals { Sealed::Somehow } else { Sealed::No };
        let change = Change::add(&id, &origin, sealed, content);
        let options = if alone { AddOptions::new().size(BASE_SIZE) } else { AddOptions::new() };
        let parent = if alone { None } else { Some(parent_of(&origin)) };
        let write = |tree: &SnapshotTree| {
            let writer = tree.create(&id, parent, &options)?;
            writer.write_at(Bytes(POSITIONS[at]), &block(value))?;
            match (given_up, seals) {
                (true, _) => Ok(None),
                (false, true) => writer.commit_sealed().map(Some),
                (false, false) => writer.commit().map(|()| None),
            }
        };
        if given_up {
            self.call("create and give up", change.is_possible(&self.known), write);
        } else if let Some(Some(uuid)) = self.change("create", vec![change], write) {
            self.known.get_mut(&id).unwrap().sealed = Sealed::As(uuid);
        }
    }

    fn send(&mut self) {
        let sealed = self.sealed_names();
        let Some((id, _)) = self.rng.pick(&sealed).cloned() else { return };
        let base = self.rng.pick(&sealed).filter(|(base, _)| *base != id).cloned();
        let mut bytes = Vec::new();
        let whole = self.rng.one_in(2);
        let sent = if whole {
            self.call("send a subtree", true, |tree| tree.send_tree(&id, &mut bytes, SendOptions::new()))
        } else {
            let base = base.as_ref().map(|(base, _)| base.as_str());
            let fits = base.is_none_or(|base| self.size(base) <= self.size(&id));
            self.call("send", fits, |tree| tree.send(&id, base, &mut bytes, SendOptions::new()))
        };
        if sent.is_none() {
            return;
        }
        let base = base.filter(|_| !whole).map(|(_, uuid)| uuid);
        let mut volumes = vec![self.volume(&id, base)];
        if whole {
            self.add_descendants(&id, &mut volumes);
        }
        let mut streams = self.shared.streams.lock().unwrap();
        if streams.len() == STREAMS {
            streams.remove(0);
        }
        streams.push(Stream { bytes, volumes });
    }

    fn size(&self, id: &str) -> Bytes {
        self.tree.as_ref().unwrap().get(id).unwrap().size
    }

    fn volume(&self, id: &str, base: Option<Uuid>) -> Volume {
        let Snapshot { sealed: Sealed::As(uuid), content, .. } = &self.known[id] else {
            panic!("{id} is not sealed")
        };
        Volume { id: id.to_owned(), uuid: *uuid, base, content: content.clone() }
    }

    /// As in a stream: each after its ancestors, siblings by their names.
    fn add_descendants(&self, id: &str, volumes: &mut Vec<Volume>) {
        let children =
            self.known.iter().filter(|(_, snapshot)| snapshot.origin == Origin::Snapshot(id.to_owned()));
        for (child, snapshot) in children {
            if let Sealed::As(_) = snapshot.sealed {
                let ancestor = self.ancestors(child).into_iter().find_map(|ancestor| {
                    volumes.iter().find(|volume| volume.id == ancestor).map(|volume| (ancestor, volume.uuid))
                });
                // Of one that was resized since it is sent as a whole.
                let base = ancestor.filter(|(ancestor, _)| self.size(ancestor) <= self.size(child));
                volumes.push(self.volume(child, base.map(|(_, uuid)| uuid)));
            }
            self.add_descendants(child, volumes);
        }
    }

    fn ancestors(&self, id: &str) -> Vec<String> {
        let parent = |id: &String| match &self.known[id].origin {
            Origin::Snapshot(parent) => Some(parent.clone()),
            _ => None,
        };
        std::iter::successors(parent(&id.to_owned()), parent).collect()
    }

    fn receive(&mut self) {
        let streams = self.shared.streams.lock().unwrap().clone();
        let Some(stream) = self.rng.pick(&streams) else { return };
        let sealed = self.sealed_names();
        if stream.volumes.iter().any(|volume| sealed.iter().any(|(_, uuid)| volume.uuid == *uuid)) {
            // Which of two of the same content is a base is not told.
            return;
        }
        let name = self.name();
        let one = stream.volumes.len() == 1;
        let rename = |id: &str| if one { name.clone() } else { format!("{id}+") };
        let mut changes = Vec::new();
        for Volume { id, uuid, base, content } in &stream.volumes {
            let in_stream = stream.volumes.iter().find(|volume| Some(volume.uuid) == *base);
            let here = sealed.iter().find(|(_, uuid)| Some(*uuid) == *base).map(|(id, _)| id.clone());
            let origin = match (base, in_stream.map(|volume| rename(&volume.id)).or(here)) {
                (None, _) => Origin::Base,
                (Some(_), Some(id)) => Origin::Snapshot(id),
                // Not here.
                (Some(uuid), None) => Origin::Snapshot(uuid.to_string()),
            };
            changes.push(Change::add(&rename(id), &origin, Sealed::As(*uuid), copied(content)));
        }
        let resumable = self.rng.one_in(2);
        self.change("receive", changes, |tree| {
            let options = ReceiveOptions::new().resumable(resumable).checkpoint_every(Bytes(4096));
            tree.receive(stream.bytes.as_slice(), options.rename(rename))
        });
    }

    fn discard_receives(&mut self) {
        self.call("discard receives", true, |tree| {
            tree.partial_receives().iter().try_for_each(|partial| tree.discard_receive(partial.volume))
        });
    }

    fn look_around(&mut self) {
        let id = self.known_name();
        self.call("status", true, SnapshotTree::status);
        let there = self.known.contains_key(&id) && !self.holds(&id);
        let expected = if self.holds(&id) { Expected::Either } else { there.into() };
        self.call("status of a snapshot", expected, |tree| tree.snapshot_status(&id));
    }

    /// Opens a device for longer.
    fn hold(&mut self) {
        let id = self.known_name();
        let there = self.known.contains_key(&id);
        let Some(path) = self.call("activate to hold", there, |tree| tree.activate(&id)) else { return };
        match self.io(|kernel| kernel.open(&path, Access::READ)) {
            Ok(file) => (self.held, self.leaving) = (Some((id, file)), false),
            Err(errno) => assert!(self.is_excused_io(errno), "open {path:?}: {errno}"),
        }
    }

    /// Writes to each block of a snapshot. What is in it stays.
    fn fill(&mut self) {
        let id = self.known_name();
        let there = self.known.contains_key(&id);
        let Some(path) = self.call("activate to fill", there, |tree| tree.activate(&id)) else { return };
        let blocks = 0..self.rng.below(256) as u64;
        // As far as it goes.
        let filled = self.machine.write(path.file_name().unwrap().to_str().unwrap(), blocks);
        self.count(Group::Operations, if filled.is_ok() { "fill" } else { "fill the pool" });
    }

    fn grow(&mut self) {
        if self.rng.one_in(2) {
            self.call("extend", true, SnapshotTree::extend_pool);
            return;
        }
        let size = DATA_MAX.min(self.data_size + Bytes::mib(self.rng.below(3) as u64));
        match self.source {
            Source::Devices => {
                let grows = |tree: &SnapshotTree| Ok(tree.pool().grow_data(size.sectors())?);
                self.data_size = size;
                self.set_disks();
                self.call("grow the pool", true, grows);
            }
            source => {
                let has_room = source == Source::Files;
                let grows = |tree: &SnapshotTree| {
                    let total = tree.status()?.data.map_or(Bytes(0), |data| data.total);
                    // Extended meanwhile.
                    match tree.grow_pool(size.max(total)) {
                        Err(Error::InvalidOption { .. }) if !has_room => Ok(()),
                        other => other,
                    }
                };
                if self.call("grow the pool", true, grows).is_some() && has_room {
                    self.data_size = size;
                }
            }
        }
    }

    /// Another manager of the same root.
    fn open_twice(&mut self) {
        let process = std::sync::Arc::new(self.machine.process());
        let second = SnapshotTree::open(&self.root, self.options_for(&process, &self.disk));
        self.count(Group::Neighbour, "a second manager");
        match second {
            Err(Error::Locked { .. }) => {}
            Err(error) => assert!(self.is_disturbed(), "{error}"),
            Ok(_) => panic!("{} has two managers", self.root.display()),
        }
    }

    /// The manager goes and leaves everything as it is.
    fn leave(&mut self) {
        self.die();
        self.reopen();
    }

    fn close(&mut self) {
        let expected = if self.held.is_some() { Expected::Either } else { Expected::Done };
        self.exclusive.store(false, std::sync::atomic::Ordering::Relaxed);
        let closed = self.call("close", expected, SnapshotTree::close);
        if closed.is_some() {
            let ends =
                self.machine.leftovers().into_iter().filter(|thing| thing.contains(&self.device_names()));
            let left: Vec<_> = ends.collect();
            assert!(left.is_empty() || self.is_disturbed(), "after a close: {left:?}");
            self.die();
            self.reopen();
        } else if self.tree.as_ref().is_some_and(|tree| matches!(tree.get("s0"), Err(Error::Closed))) {
            // Closed but for the checkpoint.
            self.die();
        } else if self.tree.is_some() {
            self.exclusive.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// What the names of this root's devices have in common, with no other root's.
    fn device_names(&self) -> String {
        format!("-{}-", std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&self.root).unwrap()))
    }

    pub fn reopen(&mut self) {
        match self.open() {
            None | Some(Ok(())) => {}
            Some(Err(error)) => {
                assert!(self.faulty || self.is_disturbed() || self.full, "open: {error}");
            }
        }
    }
}

fn parent_of(origin: &Origin) -> Parent<'_> {
    match origin {
        Origin::Snapshot(id) => Parent::Snapshot(id),
        _ => Parent::Base,
    }
}
