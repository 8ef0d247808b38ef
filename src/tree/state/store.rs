//! The tree and its journal: every change is one durable line, and concurrent callers share the sync.

mod reservation;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::kernel::Process;
use crate::thin::ThinId;
use crate::tree::state::files::{StateDir, StateFile, read_at_most};
use crate::tree::state::graph::{Graph, Record};
use crate::tree::state::journal::{self, State};
use crate::tree::sync::{Changed, Guard, Lock, Rank};
use crate::tree::{Error, Result};
use crate::tree::{Filesystem, SnapshotId};
use crate::units::Bytes;

pub(in crate::tree) use reservation::Reservation;

const STATE: &str = "state.json";
const STATE_TMP: &str = "state.json.tmp";
const JOURNAL: &str = "journal.jsonl";
/// The lock file holds the number of the last acknowledged change: see `journal`.
const MARK: &str = "lock";

/// The largest checkpoint that is written or read.
const STATE_MAX: u64 = 256 << 20;
/// The longest journal that is written by anything but removals; one twice as long is read.
const JOURNAL_MAX: u64 = 512 << 20;

/// Room that a snapshot's removal takes in the journal: two lines with the longest id.
const REMOVAL: u64 = 400;
/// Room for the generations and windows that are recorded meanwhile: some fifty opens and closes.
const GENERATIONS: u64 = 16 << 10;
/// The journal's room is reserved in such steps.
const ROOM: u64 = 64 << 10;

/// The durable tree.
#[derive(Debug)]
pub(in crate::tree) struct Store {
    root: PathBuf,
    tree: Uuid,
    dir: Arc<dyn StateDir>,
    journal: Box<dyn StateFile>,
    mark: Box<dyn StateFile>,
    end: Lock<JournalEnd>,
    inner: Lock<Inner>,
    changed: Changed,
    /// Of the process that opened it: a child of fork writes nothing.
    owner: Process,
}

/// Where the next line goes. The lock serialises writers.
#[derive(Debug)]
struct JournalEnd {
    /// Bytes of the journal.
    len: u64,
    /// Bytes for which the journal has room.
    room: u64,
}

#[derive(Debug)]
struct Inner {
    /// Checkpoint and every line written since, synced or not.
    state: State,
    /// Bytes of the last checkpoint.
    checkpoint_len: u64,
    /// Lines up to this one are durable.
    synced: u64,
    syncing: bool,
    compacting: bool,
    /// A write failed so that what is on disk is unknown.
    failed: bool,
    /// The next id to try.
    next_id: u32,
    /// The line that reserved the window: to be durable before an id of it is used.
    window_seq: u64,
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
        let (journal, mark) = open_files(&root, &*dir)?;
        let path = root.join(JOURNAL);
        let bytes = read(&*journal, 2 * JOURNAL_MAX, &path)?;
        let acknowledged = read_mark(&*mark, state.tree);
        let replayed = journal::replay(&mut state, &bytes, &path, acknowledged)?;
        state.journal = replayed.last;
        let mut len = replayed.len;
        if len > 0 && bytes[..usize::try_from(len).unwrap_or(0)].last() != Some(&b'\n') {
            journal.write_at(len, b"\n").map_err(Error::io("write", &path))?;
            len += 1;
        }
        // What the power cut off must not follow a line that is written next. The file keeps its size, and so the room
        // for removals.
        let rest = bytes.get(usize::try_from(len).unwrap_or(usize::MAX)..).unwrap_or_default();
        if rest.iter().any(|byte| *byte != 0) {
            journal.write_at(len, &vec![0; rest.len()]).map_err(Error::io("cut", &path))?;
        }
        // What was read may have been written by a process that died before its sync.
        journal.sync().map_err(Error::io("sync", &path))?;
        dir.sync().map_err(Error::io("sync", &root))?;
        let store = Self::new(root, dir, journal, mark, state, len, checkpoint_len);
        // Best effort: on a disk that is full by now, the last manager's room is still there.
        let _ = store.reserve_room(&mut store.journal_end(), 0);
        Ok(Some(store))
    }

    /// Begins a tree: its first checkpoint is durable when this returns.
    pub(in crate::tree) fn create(root: PathBuf, dir: Arc<dyn StateDir>, state: State) -> Result<Self> {
        let (journal, mark) = open_files(&root, &*dir)?;
        journal.set_len(0).map_err(Error::io("cut", root.join(JOURNAL)))?;
        mark.set_len(0).map_err(Error::io("cut", root.join(MARK)))?;
        let store = Self::new(root, dir, journal, mark, state, 0, 0);
        let bytes = store.encode(&store.lock().state)?;
        store.write_checkpoint(&bytes)?;
        store.lock().checkpoint_len = bytes.len() as u64;
        Ok(store)
    }

    fn new(
        root: PathBuf,
        dir: Arc<dyn StateDir>,
        journal: Box<dyn StateFile>,
        mark: Box<dyn StateFile>,
        state: State,
        len: u64,
        checkpoint_len: u64,
    ) -> Self {
        let tree = state.tree;
        let inner = Inner {
            checkpoint_len,
            synced: state.journal.seq,
            syncing: false,
            compacting: false,
            failed: false,
            next_id: state.graph.ids.from,
            window_seq: state.journal.seq,
            is_new_window: false,
            pending_ids: BTreeSet::new(),
            unresolved_ids: BTreeSet::new(),
            pending_names: HashSet::new(),
            state,
        };
        let end = Lock::new(Rank::JournalEnd, JournalEnd { len, room: 0 });
        let (inner, changed, owner) = (Lock::new(Rank::State, inner), Changed::default(), Process::current());
        Self { root, tree, dir, journal, mark, end, inner, changed, owner }
    }

    fn check_process(&self) -> Result<()> {
        Error::check_process(self.owner)
    }

    /// # Errors
    /// [`Error::StateUnknown`] after a write or a sync that failed.
    pub(in crate::tree) fn check_known(&self) -> Result<()> {
        if self.lock().failed { Err(Error::StateUnknown) } else { Ok(()) }
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

    /// The tree's identity.
    pub(in crate::tree) fn tree(&self) -> Uuid {
        self.tree
    }

    /// The kind of file system of the tree.
    pub(in crate::tree) fn filesystem(&self) -> Filesystem {
        self.lock().state.filesystem
    }

    /// Whether the pool is adopted: other programs may use it.
    pub(in crate::tree) fn is_shared(&self) -> bool {
        self.lock().state.pool.source.is_shared()
    }

    /// Looks at the tree.
    pub(in crate::tree) fn read<T>(&self, look: impl FnOnce(&Graph) -> T) -> T {
        look(&self.lock().state.graph)
    }

    /// Looks at everything.
    pub(in crate::tree) fn read_state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    /// Volumes under construction whose writer is gone: left by a failed undo.
    pub(in crate::tree) fn abandoned(&self) -> Vec<ThinId> {
        let inner = self.lock();
        let making = inner.state.graph.making.iter().filter(|making| making.receive.is_none());
        making.map(|making| making.thin_id).filter(|id| !inner.pending_ids.contains(id)).collect()
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

    fn append_at(&self, end: &mut JournalEnd, record: &Record) -> Result<u64> {
        let path = || self.root.join(JOURNAL);
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
        if let Err(error) = self.journal.write_at(end.len, &line) {
            // A part of the line may be there.
            self.take_back(end, line.len());
            return Err(Error::io("write", path())(error));
        }
        let mut inner = self.lock();
        if let Err(reason) = inner.state.apply(record) {
            drop(inner);
            self.take_back(end, line.len());
            return Err(Error::Corrupt { path: path(), line: None, reason: reason.into() });
        }
        if let Record::Reserve(window) = record {
            (inner.next_id, inner.window_seq, inner.is_new_window) = (window.from, position.seq, true);
        }
        inner.state.journal = position;
        end.len += line.len() as u64;
        Ok(position.seq)
    }

    /// Takes back a line of so many bytes that was written behind the end.
    fn take_back(&self, end: &mut JournalEnd, len: usize) {
        // Cutting the file would give up the room for removals, too.
        if self.journal.write_at(end.len, &vec![0; len]).is_ok() {
            return;
        }
        end.room = 0;
        if self.journal.set_len(end.len).is_err() {
            self.lock().failed = true;
        }
    }

    /// A change that takes space must leave room in the journal to remove every snapshot: what is full
    /// can then be emptied, by this manager and by later ones.
    fn make_room(&self, end: &mut JournalEnd, record: &Record, line: u64) -> Result<()> {
        match record {
            Record::Deleting { .. } | Record::Deleted { .. } | Record::Unmade { .. } => Ok(()),
            // Each open writes these.
            Record::Generation { .. } | Record::Reserve(_) => Ok(()),
            _ => self.reserve_room(end, line),
        }
    }

    /// Reserves room for a line of so many bytes, and after it for all removals.
    fn reserve_room(&self, end: &mut JournalEnd, line: u64) -> Result<()> {
        let snapshots = self.read(|graph| graph.snapshots.len() + graph.making.len()) as u64 + 1;
        if end.len + line > JOURNAL_MAX {
            return Err(Error::io("write", self.root.join(JOURNAL))(nix::errno::Errno::EFBIG));
        }
        let needed = end.len + line + snapshots * REMOVAL + GENERATIONS;
        if needed > end.room {
            let room = needed.next_multiple_of(ROOM);
            self.journal.reserve(room).map_err(Error::io("reserve space for", self.root.join(JOURNAL)))?;
            end.room = room;
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
            let written = inner.state.journal.seq;
            drop(inner);
            let result = self.journal.sync();
            if result.is_ok() {
                // Not synced itself: after a power cut the mark may be older, never newer.
                let _ = self.mark.write_at(0, mark_text(self.tree, written).as_bytes());
            }
            inner = self.lock();
            inner.syncing = false;
            match result {
                Ok(()) => inner.synced = inner.synced.max(written),
                // What the kernel could not write it may have dropped: a second sync would lie.
                Err(_) => inner.failed = true,
            }
            self.changed.notify_all();
        }
    }

    /// Whether the journal has outgrown the checkpoint, and `at`.
    pub(in crate::tree) fn wants_checkpoint(&self, at: Bytes) -> bool {
        let (len, inner) = (self.journal_end().len, self.lock());
        !inner.compacting && !inner.failed && len > at.0.max(inner.checkpoint_len)
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
        let state = inner.state.clone();
        drop(inner);
        self.encode(&state).and_then(|bytes| {
            self.write_checkpoint(&bytes)?;
            let (mut end, mut inner) = (self.journal_end(), self.lock());
            inner.checkpoint_len = bytes.len() as u64;
            inner.synced = inner.synced.max(state.journal.seq);
            // Lines written meanwhile stay; the older ones before them are passed over, and so is what is left of them
            // when the next one is written in their place. A cut would give up the room for removals.
            if inner.state.journal == state.journal {
                end.len = 0;
            }
            drop(inner);
            self.changed.notify_all();
            Ok(())
        })
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
        write().map_err(Error::io("write", self.root.join(STATE)))
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

fn read(file: &dyn StateFile, max: u64, path: &Path) -> Result<Vec<u8>> {
    read_at_most(file, max).map_err(|error| match error.raw_os_error() {
        Some(libc::EFBIG) => {
            let reason = format!("longer than {} MiB, the most that is ever written", max >> 20);
            Error::Corrupt { path: path.into(), line: None, reason }
        }
        _ => Error::io("read", path)(error),
    })
}

fn open_files(root: &Path, dir: &dyn StateDir) -> Result<(Box<dyn StateFile>, Box<dyn StateFile>)> {
    let open = |name: &str| dir.open(name, true).map_err(Error::io("open", root.join(name)));
    Ok((open(JOURNAL)?, open(MARK)?))
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
