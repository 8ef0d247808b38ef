//! A disk for the state that keeps only what was synced, and may keep some of the rest.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use dm_thin::model::ModelKernel;
use dm_thin::tree::files::{StateDir, StateFile};

use crate::dice::Dice;

/// What goes wrong, and at which call from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power goes instead of the call.
    Cut,
    /// The call fails, having had none or some of its effect.
    NoSpace,
}

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
    calls: u64,
    fault: Option<(u64, Fault)>,
    full: bool,
    kernel: Arc<ModelKernel>,
    dice: Dice,
}

/// The disk. The power of its machine is the model kernel's.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Inner>>);

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    pub fn new(kernel: Arc<ModelKernel>, dice: Dice) -> Self {
        Self::with(Contents::default(), kernel, dice)
    }

    fn with(contents: Contents, kernel: Arc<ModelKernel>, dice: Dice) -> Self {
        Self(Arc::new(Mutex::new(Inner { contents, calls: 0, fault: None, full: false, kernel, dice })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Let the `n`-th call from now go wrong.
    pub fn plan(&self, n: u64, fault: Fault) {
        let mut inner = self.lock();
        inner.fault = Some((inner.calls + n, fault));
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    pub fn forget_faults(&self) {
        self.lock().fault = None;
    }

    /// Whether every write that needs space fails.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// What is left when the power comes back: what was synced, and any part of the rest.
    pub fn after_power_cut(&self, kernel: Arc<ModelKernel>) -> Self {
        let inner = &mut *self.lock();
        let mut contents = inner.contents.clone();
        let dice = &mut inner.dice;
        if !contents.history.is_empty() {
            contents.history.push(contents.names.clone());
            let survivor = dice.below(contents.history.len());
            contents.names = contents.history.swap_remove(survivor);
            contents.history.clear();
        }
        for inode in &mut contents.inodes {
            let mut bytes = inode.durable.clone();
            for change in inode.unsynced.drain(..) {
                match change {
                    Change::Write(offset, mut data) if dice.one_in(2) => {
                        data.truncate(dice.below(data.len() + 1));
                        Change::Write(offset, data).apply(&mut bytes);
                    }
                    change if dice.one_in(2) => change.apply(&mut bytes),
                    _ => {}
                }
            }
            inode.current.clone_from(&bytes);
            inode.durable = bytes;
        }
        Self::with(contents, kernel, dice.fork())
    }

    fn call<T>(
        &self,
        grows: bool,
        work: impl FnOnce(&mut Contents, &mut Dice, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let inner = &mut *self.lock();
        inner.calls += 1;
        if inner.kernel.is_cut() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let fault = inner.fault.filter(|(call, _)| *call == inner.calls).map(|(_, fault)| fault);
        match fault {
            Some(Fault::Cut) => {
                inner.kernel.cut_at(1);
                // Any call settles it.
                let _ = dm_thin::kernel::Kernel::mount_table(&*inner.kernel);
                Err(ErrorKind::BrokenPipe.into())
            }
            Some(Fault::NoSpace) => work(&mut inner.contents, &mut inner.dice, true),
            None => work(&mut inner.contents, &mut inner.dice, inner.full && grows),
        }
    }
}

fn no_space<T>() -> io::Result<T> {
    Err(ErrorKind::StorageFull.into())
}

impl StateDir for Disk {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        let inode = self.call(false, |contents, _, fails| {
            if let Some(&inode) = contents.names.get(name) {
                return if fails { no_space() } else { Ok(inode) };
            }
            if !create {
                return Err(ErrorKind::NotFound.into());
            }
            if fails {
                return no_space();
            }
            contents.history.push(contents.names.clone());
            contents.inodes.push(Inode::default());
            contents.names.insert(name.into(), contents.inodes.len() - 1);
            Ok(contents.inodes.len() - 1)
        })?;
        Ok(Box::new(Handle { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.call(false, |contents, _, fails| {
            if fails {
                return no_space();
            }
            contents.history.push(contents.names.clone());
            let inode = contents.names.remove(from).ok_or(ErrorKind::NotFound)?;
            contents.names.insert(to.into(), inode);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call(false, |contents, _, _| {
            contents.history.push(contents.names.clone());
            contents.names.remove(name).map(drop).ok_or(ErrorKind::NotFound.into())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.call(false, |contents, _, fails| {
            if fails {
                return no_space();
            }
            contents.history.clear();
            Ok(())
        })
    }
}

#[derive(Debug)]
struct Handle {
    disk: Disk,
    inode: usize,
}

impl StateFile for Handle {
    fn read(&self) -> io::Result<Vec<u8>> {
        self.disk.call(false, |contents, _, _| Ok(contents.inodes[self.inode].current.clone()))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.call(true, |contents, dice, fails| {
            let inode = &mut contents.inodes[self.inode];
            let end = usize::try_from(offset).unwrap() + bytes.len();
            let fails = fails && end > inode.current.len().max(inode.room);
            let len = if fails { dice.below(bytes.len() + 1) } else { bytes.len() };
            let change = Change::Write(usize::try_from(offset).unwrap(), bytes[..len].to_vec());
            change.apply(&mut inode.current);
            inode.unsynced.push(change);
            if fails { no_space() } else { Ok(()) }
        })
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.disk.call(true, |contents, _, fails| {
            if fails {
                return no_space();
            }
            contents.inodes[self.inode].room = usize::try_from(len).unwrap();
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.call(false, |contents, _, fails| {
            if fails {
                return no_space();
            }
            let inode = &mut contents.inodes[self.inode];
            inode.room = 0;
            let change = Change::SetLen(usize::try_from(len).unwrap());
            change.apply(&mut inode.current);
            inode.unsynced.push(change);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.call(false, |contents, _, fails| {
            if fails {
                return no_space();
            }
            let inode = &mut contents.inodes[self.inode];
            inode.durable.clone_from(&inode.current);
            inode.unsynced.clear();
            Ok(())
        })
    }
}
