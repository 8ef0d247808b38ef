//! A process that dies: from some call on, nothing that it does has an effect.

use std::io;
use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use dm_thin::Errno;
use dm_thin::tree::files::{RealDir, StateDir, StateFile};

/// What the panic of a death carries.
pub struct Died;

/// What the calling thread sees of its death.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// A panic at that call; what unwinding does has an effect.
    Panic,
    /// An error of that call and of all after it, which have no effect.
    Errors,
}

/// The calls that are left.
#[derive(Debug, Clone)]
pub struct Life {
    left: Arc<AtomicI32>,
    end: End,
    /// The last call has its effect, but not its answer.
    after: bool,
}

impl Life {
    /// One that does not end yet.
    pub fn new(end: End, after: bool) -> Self {
        Self { left: Arc::new(AtomicI32::new(i32::MAX)), end, after }
    }

    /// So many calls come through from now on.
    pub fn ends_in(&self, calls: i32) {
        self.left.store(calls, Ordering::Relaxed);
    }

    pub fn call<T, E: From<Errno>>(&self, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        let result = match (self.end, left) {
            (_, 1..) => return call(),
            (End::Panic, ..0) => return call(),
            (_, 0) if self.after => call().err(),
            _ => None,
        };
        match self.end {
            End::Panic => panic_any(Died),
            End::Errors => Err(result.unwrap_or_else(|| Errno::EIO.into())),
        }
    }
}

#[derive(Debug)]
pub struct Dying<T>(pub T, pub Life);

impl StateDir for Dying<RealDir> {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        let file = self.1.call(|| self.0.open(name, create))?;
        Ok(Box::new(Dying(file, self.1.clone())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.1.call(|| self.0.rename(from, to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.1.call(|| self.0.remove(name))
    }
    fn sync(&self) -> io::Result<()> {
        self.1.call(|| self.0.sync())
    }
}

impl StateFile for Dying<Box<dyn StateFile>> {
    fn read(&self) -> io::Result<Vec<u8>> {
        self.1.call(|| self.0.read())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.1.call(|| self.0.write_at(offset, bytes))
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.1.call(|| self.0.reserve(len))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.1.call(|| self.0.set_len(len))
    }
    fn sync(&self) -> io::Result<()> {
        self.1.call(|| self.0.sync())
    }
}
