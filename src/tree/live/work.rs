//! Work that no caller waits for, and the thread that does it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kernel::Process;
use crate::tree::sync::thread::{self, JoinHandle};
use crate::tree::sync::{Changed, Guard, Lock, Rank};

/// Work that no caller waits for. It is done by the tree's thread, and by calls that need what it frees.
#[derive(Debug)]
pub(in crate::tree) struct Work {
    /// Held while one piece of it is done.
    busy: Lock<()>,
    signals: Lock<Signals>,
    changed: Changed,
}

#[derive(Debug, Default)]
struct Signals {
    /// There is a thread.
    thread: bool,
    /// There may be something to do.
    wanted: bool,
    stop: bool,
}

/// As long as this is held nobody else does such work.
#[derive(Debug)]
pub(in crate::tree) struct Exclusive<'a> {
    _busy: Guard<'a, ()>,
    work: &'a Work,
    in_background: bool,
}

impl Exclusive<'_> {
    /// Between two parts of a piece that takes long, the first of which began then: the thread leaves the pool to callers
    /// for as long. `false` at its end.
    pub(in crate::tree) fn pause(&self, begun: Instant) -> bool {
        !self.in_background || self.work.pause(begun.elapsed())
    }
}

impl Default for Work {
    fn default() -> Self {
        let (busy, signals) = (Lock::new(Rank::Work, ()), Lock::new(Rank::Leaf, Signals::default()));
        Self { busy, signals, changed: Changed::default() }
    }
}

impl Work {
    /// For a call.
    pub(in crate::tree) fn exclusive(&self) -> Exclusive<'_> {
        Exclusive { _busy: self.busy.lock(), work: self, in_background: false }
    }

    /// For the thread.
    pub(in crate::tree) fn in_background(&self) -> Exclusive<'_> {
        Exclusive { in_background: true, ..self.exclusive() }
    }

    /// Lets the thread look for something to do; `false` if there is no thread.
    pub(in crate::tree) fn wake(&self) -> bool {
        let mut signals = self.signals.lock();
        signals.wanted = true;
        self.changed.notify_all();
        signals.thread
    }

    pub(in crate::tree) fn has_thread(&self) -> bool {
        self.signals.lock().thread
    }

    /// Waits until there may be something to do, or for so long if something is left; `false` at the end.
    pub(in crate::tree) fn wait(&self, left: Option<Duration>) -> bool {
        let mut signals = self.signals.lock();
        while !signals.wanted && !signals.stop {
            let Some(left) = left else {
                signals = self.changed.wait(signals);
                continue;
            };
            let (guard, late) = self.changed.wait_within(signals, left);
            signals = guard;
            signals.wanted |= late;
        }
        signals.wanted = false;
        !signals.stop
    }

    /// Waits for so long; `false` at the end.
    pub(in crate::tree) fn pause(&self, duration: Duration) -> bool {
        let until = Instant::now() + duration;
        let mut signals = self.signals.lock();
        while !signals.stop && !cfg!(all(test, shuttle)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            (signals, _) = self.changed.wait_within(signals, left);
        }
        !signals.stop
    }
}

/// The thread that does the work; dropping this ends it.
#[derive(Debug)]
pub(in crate::tree) struct Worker {
    work: Arc<Work>,
    thread: Option<JoinHandle<()>>,
    owner: Process,
}

impl Worker {
    /// `run` ends when [`Work::wait`] says so.
    pub(in crate::tree) fn start(work: Arc<Work>, run: impl FnOnce() + Send + 'static) -> Self {
        let ended = Ended(work.clone());
        let thread = thread::Builder::new().name("dm-thin-worker".to_owned()).spawn(move || {
            let _ended = ended;
            run();
        });
        work.signals.lock().thread = thread.is_ok();
        work.wake();
        Self { work, thread: thread.ok(), owner: Process::current() }
    }
}

/// At the end of the thread, be it a panic, the calls do its work again.
struct Ended(Arc<Work>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.signals.lock().thread = false;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A child of fork does not have the thread, and its locks are of no use.
        if let Some(thread) = self.thread.take().filter(|_| self.owner.is_current()) {
            self.work.signals.lock().stop = true;
            self.work.changed.notify_all();
            // A panic of the thread was reported there.
            let _ = thread.join();
        }
    }
}
