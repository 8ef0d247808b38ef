//! A thread that syncs what callers will wait for, while they do something else.

use std::sync::Arc;

use super::Store;
use crate::tree::sync::thread::{self, JoinHandle};

/// The thread; dropping this ends it.
#[derive(Debug)]
pub(in crate::tree) struct SyncThread {
    store: Arc<Store>,
    thread: Option<JoinHandle<()>>,
}

impl SyncThread {
    /// `raise` raises the generation for a window of thin ids. Without a thread both are done when they are waited for.
    pub(in crate::tree) fn start(store: &Arc<Store>, raise: impl Fn(u64) + Send + 'static) -> Self {
        let this = store.clone();
        store.lock().wanted = Some(0);
        let thread = thread::Builder::new().name("dm-thin-sync".to_owned()).spawn(move || this.work(raise));
        if thread.is_err() {
            store.lock().wanted = None;
        }
        Self { store: store.clone(), thread: thread.ok() }
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        // A child of fork does not have the thread, and its locks are of no use.
        if let Some(thread) = self.thread.take().filter(|_| self.store.owner.is_current()) {
            self.store.lock().wanted = None;
            self.store.wanted.notify_one();
            // A panic of the thread was reported there.
            let _ = thread.join();
        }
    }
}

impl Store {
    /// Lets the thread sync a line that the caller will wait for with [`sync`](Self::sync).
    pub(in crate::tree) fn begin_sync(&self, seq: u64) {
        let mut inner = self.lock();
        if let Some(wanted) = &mut inner.wanted {
            *wanted = seq.max(*wanted);
            drop(inner);
            self.wanted.notify_one();
        }
    }

    fn work(&self, raise: impl Fn(u64)) {
        let mut inner = self.lock();
        while let Some(wanted) = inner.wanted {
            let window = inner.window_seq;
            let raises = std::mem::take(&mut inner.wants_raise);
            if inner.failed || wanted <= inner.synced && !raises {
                inner = self.wanted.wait(inner);
                continue;
            }
            drop(inner);
            // Who waits for it learns what failed.
            let _ = self.sync(wanted);
            if raises && self.sync(window).is_ok() {
                raise(window);
            }
            inner = self.lock();
        }
    }
}
