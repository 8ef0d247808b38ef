//! A disk for the state that keeps only what was synced, and may keep some of the rest.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use dm_thin::Errno;
use dm_thin::model::ModelKernel;
use dm_thin::tree::files::{StateDir, StateFile};

use crate::rng::Rng;

#[derive(Debug, Clone, Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// What happened since the last sync.
    unsynced: Vec<Change>,
    /// Writes up to here find space.
    room: usize,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let end = offset + data.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*offset..end].copy_from_slice(data);
            }
            Self::SetLen(len) => bytes.resize(*len, 0),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Contents {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    /// Every set of names since the last sync of the directory, the synced one first.
    history: Vec<BTreeMap<String, usize>>,
}

#[derive(Debug)]
struct Inner {
    contents: Contents,
    full: bool,
    rng: Rng,
}

/// The disk of one root.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Mutex<Inner>>);

impl Disk {
    pub fn new(rng: Rng) -> Self {
        Self::with(Contents::default(), rng)
    }

    fn with(contents: Contents, rng: Rng) -> Self {
        Self(Arc::new(Mutex::new(Inner { contents, full: false, rng })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Whether every write that needs space fails.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// What is left when the power comes back: what was synced, and any part of the rest.
    #[must_use]
    pub fn after_power_cut(&self) -> Self {
        let inner = &mut *self.lock();
        let mut contents = inner.contents.clone();
        let rng = &mut inner.rng;
        if !contents.history.is_empty() {
            contents.history.push(contents.names.clone());
            let survivor = rng.below(contents.history.len());
            contents.names = contents.history.swap_remove(survivor);
            contents.history.clear();
        }
        for inode in &mut contents.inodes {
            let mut bytes = inode.durable.clone();
            for change in inode.unsynced.drain(..) {
                match change {
                    Change::Write(offset, mut data) if rng.one_in(2) => {
                        data.truncate(rng.below(data.len() + 1));
                        Change::Write(offset, data).apply(&mut bytes);
                    }
                    change if rng.one_in(2) => change.apply(&mut bytes),
                    _ => {}
                }
            }
            inode.current.clone_from(&bytes);
            inode.durable = bytes;
        }
        let (full, rng) = (inner.full, rng.fork());
        let disk = Self::with(contents, rng);
        disk.set_full(full);
        disk
    }

    /// What `cp -a` makes of it, synced.
    #[must_use]
    pub fn copy(&self) -> Self {
        let inner = &mut *self.lock();
        let mut contents = inner.contents.clone();
        contents.history.clear();
        for inode in &mut contents.inodes {
            inode.durable.clone_from(&inode.current);
            inode.unsynced.clear();
        }
        Self::with(contents, inner.rng.fork())
    }
}

/// The disk as a process sees it.
#[derive(Clone)]
pub struct Dir {
    pub disk: Disk,
    pub process: Arc<ModelKernel>,
}

impl fmt::Debug for Dir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dir")
    }
}

impl Dir {
    /// A call. Struck by a fault, it has none of its effect.
    fn call<T>(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut Contents, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        self.call_or(name, |_, _| (), |inner| work(&mut inner.contents, inner.full))
    }

    /// The same; `half` of it is done when it is struck.
    fn call_or<T>(
        &self,
        name: &'static str,
        half: impl FnOnce(&mut Contents, &mut Rng),
        work: impl FnOnce(&mut Inner) -> io::Result<T>,
    ) -> io::Result<T> {
        let struck = self.process.call_elsewhere(name, "");
        if self.process.is_cut() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let inner = &mut *self.disk.lock();
        match struck {
            Ok(()) => work(inner),
            Err(errno) => {
                half(&mut inner.contents, &mut inner.rng);
                Err(errno.into())
            }
        }
    }
}

impl StateDir for Dir {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        let inode = self.call("open file", |contents, full| {
            if let Some(&inode) = contents.names.get(name) {
                return Ok(inode);
            }
            if !create {
                return Err(ErrorKind::NotFound.into());
            }
            if full {
                return Err(Errno::ENOSPC.into());
            }
            contents.history.push(contents.names.clone());
            contents.inodes.push(Inode::default());
            contents.names.insert(name.into(), contents.inodes.len() - 1);
            Ok(contents.inodes.len() - 1)
        })?;
        Ok(Box::new(Handle { dir: self.clone(), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.call("rename file", |contents, _| {
            contents.history.push(contents.names.clone());
            let inode = contents.names.remove(from).ok_or(ErrorKind::NotFound)?;
            contents.names.insert(to.into(), inode);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call("remove file", |contents, _| {
            contents.history.push(contents.names.clone());
            contents.names.remove(name).map(drop).ok_or(ErrorKind::NotFound.into())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.call("sync directory", |contents, _| {
            contents.history.clear();
            Ok(())
        })
    }
}

#[derive(Debug)]
struct Handle {
    dir: Dir,
    inode: usize,
}

impl Inode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.unsynced.push(change);
    }
}

impl StateFile for Handle {
    fn read(&self) -> io::Result<Vec<u8>> {
        self.dir.call("read file", |contents, _| Ok(contents.inodes[self.inode].current.clone()))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let write = |contents: &mut Contents, len: usize| {
            contents.inodes[self.inode].change(Change::Write(offset, bytes[..len].to_vec()));
        };
        let half = |contents: &mut Contents, rng: &mut Rng| write(contents, rng.below(bytes.len() + 1));
        self.dir.call_or("write file", half, |inner| {
            let inode = &inner.contents.inodes[self.inode];
            if inner.full && offset + bytes.len() > inode.current.len().max(inode.room) {
                half(&mut inner.contents, &mut inner.rng);
                return Err(Errno::ENOSPC.into());
            }
            write(&mut inner.contents, bytes.len());
            Ok(())
        })
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.dir.call("reserve file", |contents, full| {
            if full {
                return Err(Errno::ENOSPC.into());
            }
            contents.inodes[self.inode].room = usize::try_from(len).unwrap();
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.dir.call("truncate file", |contents, _| {
            let inode = &mut contents.inodes[self.inode];
            inode.room = 0;
            inode.change(Change::SetLen(usize::try_from(len).unwrap()));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.dir.call("sync file", |contents, _| {
            let inode = &mut contents.inodes[self.inode];
            inode.durable.clone_from(&inode.current);
            inode.unsynced.clear();
            Ok(())
        })
    }
}
