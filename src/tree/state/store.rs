//! The tree and its journal: every change is one durable line, and concurrent callers share the sync.

mod look;
mod reading;
mod reservation;
mod sync_thread;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::kernel::Process;
use crate::thin::ThinId;
use crate::tree::SnapshotId;
use crate::tree::state::files::{StateDir, StateFile, read_at_most};
use crate::tree::state::journal::{self, FORMAT, Journal, Replayed, State};
use crate::tree::state::record::Record;
use crate::tree::state::recorded::Recorded;
use crate::tree::sync::{Changed, Guard, Lock, Rank};
use crate::tree::{Error, Result};
use crate::units::Bytes;

use reading::{JOURNAL_MAX, STATE, STATE_MAX, read, read_journals};
pub(in crate::tree) use reading::{JOURNALS, OLD_JOURNAL, peek};
pub(in crate::tree) use reservation::{First, Reservation};
pub(in crate::tree) use sync_thread::SyncThread;

const STATE_TMP: &str = "state.json.tmp";
/// The lock file holds the number of the last acknowledged change: see `journal`.
const MARK: &str = "lock";

/// Room that a snapshot's removal takes in the journal, beside its id: two lines.
const REMOVAL: u64 = 240;
/// The most that a byte of an id takes in JSON: a quotation mark, or a backslash.
const ID_BYTE: u64 = 2;
/// Room that the end of an addition takes.
const ADDED: u64 = 150;
/// Room for the generations and windows that are recorded meanwhile: some fifty opens and closes.
const GENERATIONS: u64 = 16 << 10;
/// A journal's room is reserved, and written with zeroes, in such steps.
const ROOM: u64 = 64 << 10;

/// The durable tree.
#[derive(Debug)]
pub(in crate::tree) struct Store {
    root: PathBuf,
    tree: Uuid,
    dir: Arc<dyn StateDir>,
    journals: [Box<dyn StateFile>; 2],
    mark: Box<dyn StateFile>,
    end: Lock<JournalEnd>,
    inner: Lock<Inner>,
    changed: Changed,
    /// There is something to do for the [`SyncThread`].
    wanted: Changed,
    /// Of the process that opened it: a child of fork writes nothing.
    owner: Process,
    /// How much of the journals' ends was not written completely, and cut off when this was loaded.
    pub(in crate::tree) cut: Bytes,
}

/// Where the next line goes. The lock serialises writers.
#[derive(Debug)]
struct JournalEnd {
    /// The journal that is written to. [`Inner`] has it, too, for those who sync.
    current: usize,
    /// Bytes of it.
    len: u64,
    /// Bytes for which each journal has room.
    rooms: [u64; 2],
    /// Bytes of each journal that are known to be written: a line over them changes neither its size nor its extents, so
    /// that syncing it takes no commit of the file system's journal.
    written: [u64; 2],
}

/// What was written since the store was opened.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::tree) struct Counters {
    pub(in crate::tree) lines: u64,
    pub(in crate::tree) bytes: Bytes,
    pub(in crate::tree) syncs: u64,
    pub(in crate::tree) checkpoints: u64,
}

#[derive(Debug)]
struct Inner {
    /// Checkpoint and every line written since, synced or not.
    state: State,
    /// The journal that contains the last line. What is not in it of the lines before is durable.
    current: usize,
    /// The checkpoint contains all of the other journal.
    other_is_free: bool,
    /// Bytes of the last checkpoint.
    checkpoint_len: u64,
    /// Lines up to this one are durable.
    synced: u64,
    syncing: bool,
    /// The line that the [`SyncThread`] is to sync, if there is such a thread.
    wanted: Option<u64>,
    compacting: bool,
    /// A write failed so that what is on disk is unknown.
    failed: bool,
    counters: Counters,
    /// The next id to try.
    next_id: u32,
    /// The last line that removed a snapshot: to be durable before anything of a removed one is deleted.
    removal_seq: u64,
    /// The line that reserved the window: to be durable before an id of it is used.
    window_seq: u64,
    /// The first id that no line before that one reserved.
    window_from: u32,
    /// The line that reserved the window for which the generation was raised last.
    raised: u64,
    /// The [`SyncThread`] is to raise the generation for the window.
    wants_raise: bool,
    /// The window was reserved since the tree was opened.
    is_new_window: bool,
    /// Ids handed out whose fate is not recorded yet.
    pending_ids: BTreeSet<ThinId>,
    /// Those of them that no call has any more: the pool may have the volume.
    unresolved_ids: BTreeSet<ThinId>,
    /// Names that are being added.
    pending_names: HashSet<SnapshotId>,
}

impl Store {
    /// What is on disk, if there is anything.
    pub(in crate::tree) fn load(root: PathBuf, dir: Arc<dyn StateDir>) -> Result<Option<Self>> {
        let path = root.join(STATE);
        let bytes = match dir.open(STATE, false) {
            Ok(file) => read(&*file, STATE_MAX, &path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        // A manager that was killed before it did so left a name that a power cut takes back, while the journal is
        // overwritten as if it was durable.
        dir.sync().map_err(Error::io("sync", &root))?;
        let mut state = journal::decode_state(&bytes, &path)?;
        let checkpoint_len = bytes.len() as u64;
        drop(bytes);
        // Format 2 has two journals; the one of format 1 becomes the first of them.
        let is_old = state.format != FORMAT && dir.open(OLD_JOURNAL, false).is_ok();
        let (paths, contents) = read_journals(&root, &*dir, is_old)?;
        let mark = open_mark(&root, &*dir)?;
        let acknowledged = read_mark(&*mark, state.tree);
        let both = [0, 1].map(|which| Journal { path: &paths[which], bytes: &contents[which] });
        let replayed = journal::replay(&mut state, both, acknowledged)?;
        state.journal = replayed.last;
        // Nothing has been changed so far.
        if is_old {
            dir.rename(OLD_JOURNAL, JOURNALS[0]).map_err(Error::io("rename", &paths[0]))?;
        }
        let journals = open_journals(&root, &*dir)?;
        let Replayed { current, mut len, mut ends, .. } = replayed;
        let ends_whole = |len: u64| contents[current][..usize::try_from(len).unwrap_or(0)].ends_with(b"\n");
        if len > 0 && !ends_whole(len) {
            journals[current].write_at(len, b"\n").map_err(Error::io("write", &paths[current]))?;
            (len, ends[current]) = (len + 1, len + 1);
        }
        let mut cut = Bytes(0);
        for which in [0, 1] {
            // What the power cut off must not follow a line that is written next. The file keeps its size, and so the
            // room for removals.
            let whole = usize::try_from(ends[which]).unwrap_or(usize::MAX);
            let rest = contents[which].get(whole..).unwrap_or_default();
            if let Some(last) = rest.iter().rposition(|byte| *byte != 0) {
                cut.0 += last as u64 + 1;
                let zeroed = journals[which].write_at(ends[which], &vec![0; rest.len()]);
                zeroed.map_err(Error::io("cut", &paths[which]))?;
            }
            // What was read may have been written by a process that died before its sync.
            journals[which].sync().map_err(Error::io("sync", &paths[which]))?;
        }
        dir.sync().map_err(Error::io("sync", &root))?;
        let end = JournalEnd { current, len, rooms: [0; 2], written: [0; 2] };
        // A version that knows one journal must not find a state of its format beside two.
        let other_is_free = !replayed.needs_other && state.format == FORMAT;
        let store = Self { cut, ..Self::new(root, dir, journals, mark, state, end, checkpoint_len) };
        store.lock().other_is_free = other_is_free;
        store.lock().state.format = FORMAT;
        // Best effort: on a disk that is full by now, the last manager's room is still there.
        let _ = store.reserve_room(&mut store.journal_end(), 0);
        Ok(Some(store))
    }

    /// Begins a tree: its first checkpoint is durable when this returns.
    pub(in crate::tree) fn create(root: PathBuf, dir: Arc<dyn StateDir>, state: State) -> Result<Self> {
        let (journals, mark) = (open_journals(&root, &*dir)?, open_mark(&root, &*dir)?);
        for (journal, name) in journals.iter().zip(JOURNALS) {
            journal.set_len(0).map_err(Error::io("cut", root.join(name)))?;
        }
        mark.set_len(0).map_err(Error::io("cut", root.join(MARK)))?;
        let end = JournalEnd { current: 0, len: 0, rooms: [0; 2], written: [0; 2] };
        let store = Self::new(root, dir, journals, mark, state, end, 0);
        let bytes = store.encode(&store.lock().state)?;
        store.write_checkpoint(&bytes)?;
        store.lock().checkpoint_len = bytes.len() as u64;
        Ok(store)
    }

    fn new(
        root: PathBuf,
        dir: Arc<dyn StateDir>,
        journals: [Box<dyn StateFile>; 2],
        mark: Box<dyn StateFile>,
        state: State,
        end: JournalEnd,
        checkpoint_len: u64,
    ) -> Self {
        let tree = state.tree;
        let inner = Inner {
            checkpoint_len,
            current: end.current,
            other_is_free: true,
            synced: state.journal.seq,
            syncing: false,
            wanted: None,
            compacting: false,
            failed: false,
            counters: Counters::default(),
            next_id: state.graph.ids.from,
            removal_seq: 0,
            window_seq: state.journal.seq,
            window_from: state.graph.ids.from,
            raised: 0,
            wants_raise: false,
            is_new_window: false,
            pending_ids: BTreeSet::new(),
            unresolved_ids: BTreeSet::new(),
            pending_names: HashSet::new(),
            state,
        };
        let (end, inner) = (Lock::new(Rank::JournalEnd, end), Lock::new(Rank::State, inner));
        let (changed, wanted, owner) = (Changed::default(), Changed::default(), Process::current());
        Self { root, tree, dir, journals, mark, end, inner, changed, wanted, owner, cut: Bytes(0) }
    }

    fn check_process(&self) -> Result<()> {
        Error::check_process(self.owner)
    }

    /// # Errors
    /// [`Error::StateUnknown`] after a write or a sync that failed.
    pub(in crate::tree) fn check_known(&self) -> Result<()> {
        if self.lock().failed { Err(Error::StateUnknown) } else { Ok(()) }
    }

    pub(in crate::tree) fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// The files of the root.
    pub(in crate::tree) fn dir(&self) -> Arc<dyn StateDir> {
        self.dir.clone()
    }

    fn lock(&self) -> Guard<'_, Inner> {
        self.inner.lock()
    }

    fn journal_end(&self) -> Guard<'_, JournalEnd> {
        self.end.lock()
    }

    /// Records that the pool's files were made. While the tree is being opened: a checkpoint at the same time could
    /// undo it.
    pub(in crate::tree) fn set_made(&self) -> Result<()> {
        self.lock().state.pool.made = true;
        let bytes = self.encode(&self.lock().state)?;
        self.write_checkpoint(&bytes)
    }

    /// Raises the generation, durably.
    pub(in crate::tree) fn raise_generation(&self) -> Result<()> {
        let generation = self.lock().state.generation + 1;
        self.commit(&Record::Generation { generation })
    }

    /// Gives a tree of format 1 its nonce. While the tree is being opened: see [`set_made`](Self::set_made).
    pub(in crate::tree) fn set_nonce(&self, nonce: u32) -> Result<()> {
        let mut state = self.lock().state.clone();
        (state.nonce, state.new_nonce, state.generation) = (nonce, true, state.generation + 1);
        self.write_checkpoint(&self.encode(&state)?)?;
        let mut inner = self.lock();
        (inner.state.nonce, inner.state.new_nonce, inner.state.generation) = (nonce, true, state.generation);
        Ok(())
    }

    /// The pool has grown; the next checkpoint says so.
    pub(in crate::tree) fn set_data_size(&self, size: Bytes) {
        self.lock().state.pool.data_size = size;
    }

    /// Makes a change, durably.
    pub(in crate::tree) fn commit(&self, record: &Record) -> Result<()> {
        let seq = self.append(record)?;
        self.sync(seq)
    }

    /// Makes a change that is durable when the next one is. Nothing has changed if this fails.
    pub(in crate::tree) fn append(&self, record: &Record) -> Result<u64> {
        self.append_at(&mut self.journal_end(), record)
    }

    /// The same of a change that depends on all that were made before it.
    pub(in crate::tree) fn append_with(
        &self,
        record: impl FnOnce(&Recorded<'_>) -> Result<Record>,
    ) -> Result<u64> {
        let mut end = self.journal_end();
        let record = self.recorded(record)?;
        self.append_at(&mut end, &record)
    }

    /// The same, durably.
    pub(in crate::tree) fn commit_with(
        &self,
        record: impl FnOnce(&Recorded<'_>) -> Result<Record>,
    ) -> Result<()> {
        let seq = self.append_with(record)?;
        self.sync(seq)
    }

    /// Waits until each removal that is recorded is durable.
    pub(in crate::tree) fn sync_removals(&self) -> Result<()> {
        let seq = self.lock().removal_seq;
        self.sync(seq)
    }

    fn append_at(&self, end: &mut JournalEnd, record: &Record) -> Result<u64> {
        let (journal, name) = (&self.journals[end.current], JOURNALS[end.current]);
        let path = || self.root.join(name);
        self.check_process()?;
        let encoded = {
            let inner = self.lock();
            if inner.failed {
                return Err(Error::StateUnknown);
            }
            journal::encode_line(inner.state.journal, inner.synced, record)
        };
        let (line, position) = encoded.map_err(|error| Error::io("encode", path())(error))?;
        self.make_room(end, record, line.len() as u64)?;
        self.write_ahead(end, line.len() as u64);
        if let Err(error) = journal.write_at(end.len, &line) {
            // A part of the line may be there.
            self.take_back(end, line.len());
            return Err(Error::io("write", path())(error));
        }
        let mut inner = self.lock();
        let before = inner.state.graph.ids.to;
        if let Err(reason) = inner.state.apply(record) {
            drop(inner);
            self.take_back(end, line.len());
            return Err(Error::Corrupt { path: path(), line: None, reason: reason.into() });
        }
        if let Record::Reserve(window) = record {
            // Reserved ahead, it goes on with the one before.
            if window.from < before && before < window.to {
                inner.window_from = before;
            } else {
                (inner.window_from, inner.next_id) = (window.from, window.from);
            }
            (inner.window_seq, inner.is_new_window) = (position.seq, true);
        }
        if let Record::Deleting { .. } = record {
            inner.removal_seq = position.seq;
        }
        inner.state.journal = position;
        inner.counters.lines += 1;
        inner.counters.bytes.0 += line.len() as u64;
        end.len += line.len() as u64;
        Ok(position.seq)
    }

    /// Takes back a line of so many bytes that was written behind the end.
    fn take_back(&self, end: &mut JournalEnd, len: usize) {
        // Cutting the file would give up the room for removals, too.
        let journal = &self.journals[end.current];
        if journal.write_at(end.len, &vec![0; len]).is_ok() {
            return;
        }
        (end.rooms[end.current], end.written[end.current]) = (0, 0);
        if journal.set_len(end.len).is_err() {
            self.lock().failed = true;
        }
    }

    /// Writes zeroes into the room ahead of a line of so many bytes, so that few lines change the file's size. Durable
    /// with the line.
    fn write_ahead(&self, end: &mut JournalEnd, line: u64) {
        let (written, room) = (&mut end.written[end.current], end.rooms[end.current]);
        if end.len + line <= *written {
            return;
        }
        let from = end.len.max(*written);
        let to = room.min((end.len + line).next_multiple_of(ROOM));
        let zeroes = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
        // Best effort: without it the line's sync takes longer.
        if !zeroes.is_empty() && self.journals[end.current].write_at(from, &zeroes).is_ok() {
            *written = to;
        }
    }

    /// A change that takes space must leave room in the journal to remove every snapshot: what is full
    /// can then be emptied, by this manager and by later ones.
    fn make_room(&self, end: &mut JournalEnd, record: &Record, line: u64) -> Result<()> {
        match record {
            Record::Deleting { .. } | Record::Deleted { .. } | Record::Unmade { .. } => Ok(()),
            // Each open writes these.
            Record::Generation { .. } | Record::Reserve(_) => Ok(()),
            // Its room was reserved before.
            Record::Added { .. } => Ok(()),
            _ => self.reserve_room(end, line),
        }
    }

    /// Reserves room for a line of so many bytes and after it for all removals, and for these in the other journal, too:
    /// whichever the next manager writes to, everything can be removed.
    fn reserve_room(&self, end: &mut JournalEnd, line: u64) -> Result<()> {
        let (volumes, adding, ids) = self.read(|graph| {
            let volumes = graph.snapshots.len() + graph.making.len() + graph.removed.len();
            (volumes as u64, graph.adding.len() as u64 + 1, graph.id_bytes() as u64)
        });
        // Of those that are being added, this one among them, ids may be as long as they can be.
        let ids = ids + adding * SnapshotId::MAX_LEN as u64;
        let removals = (volumes + adding) * REMOVAL + ids * ID_BYTE + adding * ADDED + GENERATIONS;
        for (which, len) in [(end.current, end.len + line), (1 - end.current, 0)] {
            let path = || self.root.join(JOURNALS[which]);
            if len > JOURNAL_MAX {
                return Err(Error::io("write", path())(nix::errno::Errno::EFBIG));
            }
            if len + removals > end.rooms[which] {
                let room = (len + removals).next_multiple_of(ROOM);
                self.journals[which].reserve(room).map_err(Error::io("reserve space for", path()))?;
                end.rooms[which] = room;
            }
        }
        Ok(())
    }

    /// Waits until line `seq` is durable: through another caller's sync, or through one of its own that serves all
    /// callers.
    pub(in crate::tree) fn sync(&self, seq: u64) -> Result<()> {
        let mut inner = self.lock();
        loop {
            if inner.synced >= seq {
                return Ok(());
            }
            if inner.failed {
                return Err(Error::StateUnknown);
            }
            if inner.syncing {
                inner = self.changed.wait(inner);
                continue;
            }
            inner.syncing = true;
            let (written, current) = (inner.state.journal.seq, inner.current);
            drop(inner);
            let result = self.journals[current].sync();
            if result.is_ok() {
                // Not synced itself: after a power cut the mark may be older, never newer.
                let _ = self.mark.write_at(0, mark_text(self.tree, written).as_bytes());
            }
            inner = self.lock();
            inner.syncing = false;
            inner.counters.syncs += 1;
            match result {
                Ok(()) => inner.synced = inner.synced.max(written),
                // What the kernel could not write it may have dropped: a second sync would lie.
                Err(_) => inner.failed = true,
            }
            self.changed.notify_all();
        }
    }

    /// Whether the journal has outgrown a quarter of the checkpoint, and `at`: the next open reads both.
    pub(in crate::tree) fn wants_checkpoint(&self, at: Bytes) -> bool {
        let (len, inner) = (self.journal_end().len, self.lock());
        !inner.compacting && !inner.failed && len > at.0.max(inner.checkpoint_len / 4)
    }

    /// Writes a checkpoint. Done by one caller at a time: another one waits, since what it has changed may have come
    /// too late for the first.
    pub(in crate::tree) fn checkpoint(&self) -> Result<()> {
        self.check_process()?;
        let mut inner = self.lock();
        while inner.compacting {
            inner = self.changed.wait(inner);
        }
        if inner.failed {
            return Err(Error::StateUnknown);
        }
        inner.compacting = true;
        let _compacting = Compacting(self);
        let other_is_free = inner.other_is_free;
        drop(inner);
        if other_is_free {
            self.change_journals()?;
        }
        let state = self.lock().state.stored();
        self.encode(&state).and_then(|bytes| {
            self.write_checkpoint(&bytes)?;
            let (mut end, mut inner) = (self.journal_end(), self.lock());
            inner.checkpoint_len = bytes.len() as u64;
            inner.synced = inner.synced.max(state.journal.seq);
            inner.other_is_free = true;
            // What is left of older lines when the next one is written in their place is passed over. A cut would give
            // up the room for removals.
            if inner.state.journal == state.journal {
                end.len = 0;
            }
            drop(inner);
            self.changed.notify_all();
            Ok(())
        })
    }

    /// Lets the next line begin the other journal. All lines before it are durable then. Nothing is changed where there
    /// is no room for that.
    fn change_journals(&self) -> Result<()> {
        let mut end = self.journal_end();
        let end = &mut *end;
        let other = 1 - end.current;
        if self.reserve_room(end, 0).is_err() {
            return Ok(());
        }
        let last = self.lock().state.journal.seq;
        self.sync(last)?;
        let mut inner = self.lock();
        (end.current, end.len) = (other, 0);
        (inner.current, inner.other_is_free) = (other, false);
        Ok(())
    }

    fn encode(&self, state: &State) -> Result<Vec<u8>> {
        let path = || self.root.join(STATE);
        let bytes = journal::encode_state(state).map_err(|error| Error::io("encode", path())(error))?;
        match bytes.len() as u64 {
            0..=STATE_MAX => Ok(bytes),
            // The journal holds everything.
            _ => Err(Error::io("write", path())(nix::errno::Errno::EFBIG)),
        }
    }

    fn write_checkpoint(&self, bytes: &[u8]) -> Result<()> {
        let write = || {
            let file = self.dir.open(STATE_TMP, true)?;
            file.set_len(0)?;
            file.write_at(0, bytes)?;
            file.sync()?;
            self.dir.rename(STATE_TMP, STATE)?;
            self.dir.sync()
        };
        write().map_err(Error::io("write", self.root.join(STATE)))?;
        self.lock().counters.checkpoints += 1;
        Ok(())
    }
}

/// A checkpoint is being written; dropped, the next one may begin.
struct Compacting<'a>(&'a Store);

impl Drop for Compacting<'_> {
    fn drop(&mut self) {
        self.0.lock().compacting = false;
        self.0.changed.notify_all();
    }
}

fn open_file(root: &Path, dir: &dyn StateDir, name: &str) -> Result<Box<dyn StateFile>> {
    dir.open(name, true).map_err(Error::io("open", root.join(name)))
}

fn open_journals(root: &Path, dir: &dyn StateDir) -> Result<[Box<dyn StateFile>; 2]> {
    let [first, second] = JOURNALS;
    Ok([open_file(root, dir, first)?, open_file(root, dir, second)?])
}

fn open_mark(root: &Path, dir: &dyn StateDir) -> Result<Box<dyn StateFile>> {
    open_file(root, dir, MARK)
}

/// The tree's uuid comes along because the file can be older than the tree, the checksum because a torn
/// write leaves digits of two numbers.
fn mark_text(tree: Uuid, acknowledged: u64) -> String {
    let text = format!("{} {acknowledged:020}", tree.simple());
    format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()))
}

/// Nothing readable counts as nothing acknowledged: the mark is evidence, not state.
fn read_mark(mark: &dyn StateFile, tree: Uuid) -> u64 {
    let bytes = read_at_most(mark, 4096).unwrap_or_default();
    let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
    number.filter(|&number| mark_text(tree, number).as_bytes() == bytes).unwrap_or(0)
}
