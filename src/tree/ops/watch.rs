//! What happens to the pool, and what is done about it.

use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::thin;
use crate::thin::{Extended, WatchState};
use crate::tree::{Error, Result, SnapshotTree};

/// Something that happened to a tree's pool, and what was done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolEvent {
    /// What happened.
    pub event: thin::PoolEvent,
    /// How the files were extended; `None` if the pool is gone, the tree is closed, or it failed: then the error was
    /// returned before.
    pub extended: Option<Extended>,
}

/// The events of a tree's pool: see [`SnapshotTree::watch`].
///
/// `T` is a reference to the tree, or an [`Arc`] of it for a watcher that a thread or a task owns.
#[derive(Debug)]
pub struct PoolWatcher<T = Arc<SnapshotTree>> {
    tree: T,
    state: WatchState,
    /// An event for which the pool could not be extended; the error was returned first.
    unanswered: Option<thin::PoolEvent>,
}

impl SnapshotTree {
    /// Returns an iterator over the events of the pool. It blocks until there is one, and ends with the pool: at the
    /// [`close`](Self::close) of the tree, unless the pool was adopted. Before an event is returned, the pool is
    /// [extended](Self::extend_pool), as far as the options say so. That happens only while this is iterated, so give
    /// it a thread:
    ///
    /// ```no_run
    /// # fn run(tree: &dm_thin::tree::SnapshotTree) -> dm_thin::tree::Result<()> {
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| -> dm_thin::tree::Result<()> {
    ///         for news in tree.watch()? {
    ///             println!("{news:?}");
    ///         }
    ///         Ok(())
    ///     });
    ///     // … work with the tree …
    ///     tree.close()
    /// })
    /// # }
    /// ```
    ///
    /// An error does not end the iterator. If the pool cannot be extended, the error is returned first, then the event.
    ///
    /// # Errors
    /// [`dm::Error::TooOld`](crate::dm::Error::TooOld) before device-mapper interface 4.37.
    pub fn watch(&self) -> Result<PoolWatcher<&Self>> {
        self.check_open()?;
        Ok(PoolWatcher { state: WatchState::new(&self.pool.thin)?, tree: self, unanswered: None })
    }

    /// The same for a thread or a task that outlives the caller.
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub fn watch_owned(self: &Arc<Self>) -> Result<PoolWatcher> {
        self.check_open()?;
        Ok(PoolWatcher { state: WatchState::new(&self.pool.thin)?, tree: Arc::clone(self), unanswered: None })
    }
}

impl<T: Deref<Target = SnapshotTree>> PoolWatcher<T> {
    /// The next event; `None` if there is none within `timeout`, or the pool is gone.
    ///
    /// A zero timeout looks once, which together with [`AsFd`] suits an event loop: call it until it says `None`, then
    /// wait for the file to become readable.
    ///
    /// # Errors
    /// What keeps the pool from being extended; the next call returns the event itself.
    pub fn next_within(&mut self, timeout: Duration) -> Result<Option<PoolEvent>> {
        if let Some(event) = self.unanswered.take() {
            return Ok(Some(PoolEvent { event, extended: None }));
        }
        let event = self.state.next_until(&self.tree.pool.thin, Instant::now().checked_add(timeout))?;
        event.map(|event| self.answer(event)).transpose()
    }

    fn answer(&mut self, event: thin::PoolEvent) -> Result<PoolEvent> {
        if event == thin::PoolEvent::Removed {
            return Ok(PoolEvent { event, extended: None });
        }
        match self.tree.extend_pool() {
            Ok(extended) => Ok(PoolEvent { event, extended: Some(extended) }),
            Err(Error::Closed) => Ok(PoolEvent { event, extended: None }),
            Err(error) => {
                self.unanswered = Some(event);
                Err(error)
            }
        }
    }
}

impl<T: Deref<Target = SnapshotTree>> Iterator for PoolWatcher<T> {
    type Item = Result<PoolEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(event) = self.unanswered.take() {
            return Some(Ok(PoolEvent { event, extended: None }));
        }
        match self.state.next(&self.tree.pool.thin)? {
            Ok(event) => Some(self.answer(event)),
            Err(error) => Some(Err(error.into())),
        }
    }
}

impl<T> AsFd for PoolWatcher<T> {
    /// Readable when there may be something new.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }
}

impl<T> AsRawFd for PoolWatcher<T> {
    /// For event loops that register a number.
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
