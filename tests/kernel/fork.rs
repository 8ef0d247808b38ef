//! A child of fork(2) has its parent's memory and descriptors, and is nobody to the tree.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::panic::{AssertUnwindSafe, catch_unwind};

use dm_thin::tree::Error;
use dm_thin::tree::{AddOptions, Parent, SnapshotTree};
use dm_thin::units::Bytes;

use crate::bench::{Bench, small};

/// A child that runs a closure when it is told to.
struct Child {
    pid: libc::pid_t,
    go: PipeWriter,
}

impl Child {
    fn new(work: impl FnOnce()) -> Self {
        let (mut wait, go): (PipeReader, PipeWriter) = pipe().unwrap();
        #[allow(unsafe_code)]
        // SAFETY: tests run one at a time, so that no other thread holds a lock that the child would wait for; the child
        // leaves by `_exit`, and returns to nobody's stack.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let done = catch_unwind(AssertUnwindSafe(|| {
                wait.read_exact(&mut [0]).unwrap();
                work();
            }));
            #[allow(unsafe_code)]
            // SAFETY: ends the process.
            unsafe {
                libc::_exit(i32::from(done.is_err()))
            }
        }
        assert!(pid > 0);
        Self { pid, go }
    }

    /// Lets it run, to its end.
    fn run(mut self) {
        self.go.write_all(&[0]).unwrap();
        let mut status = 0;
        #[allow(unsafe_code)]
        // SAFETY: writes to `status` alone.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        assert_eq!((waited, status), (self.pid, 0), "the child failed");
    }
}

#[test]
fn a_forked_child_is_refused() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let writer = tree.create("written", Some(Parent::Base), &AddOptions::new()).unwrap();
    writer.write_at(Bytes(0), b"kept").unwrap();
    let (mut in_child, mut of_child) = (None, Some(writer));
    // Both have the writer; the child drops it before the parent publishes it.
    let child = Child::new(|| {
        in_child = of_child.take();
        let refused = |result: dm_thin::tree::Result<()>| {
            assert!(matches!(result, Err(Error::Forked { .. })), "{result:?}");
        };
        refused(tree.add("b", Parent::Snapshot("a")));
        refused(tree.remove("a"));
        refused(tree.deactivate("a"));
        refused(tree.rename("a", "b"));
        refused(tree.repair().map(drop));
        refused(tree.close());
        refused(in_child.as_ref().unwrap().write_at(Bytes(0), b"lost"));
        drop(in_child.take());
    });
    let journal = fs::read(bench.root().join("journal.0")).unwrap();
    child.run();
    assert_eq!(fs::read(bench.root().join("journal.0")).unwrap(), journal);
    let uuid = of_child.take().unwrap().commit_sealed().unwrap();
    assert_eq!(tree.check().unwrap(), []);
    assert_eq!(tree.get("a").unwrap().device, Some(device));
    let mut found = [0; 4];
    let reader = tree.open_snapshot("written").unwrap();
    reader.read_at(Bytes(0), &mut found).unwrap();
    assert_eq!((reader.uuid(), &found), (uuid, b"kept"));
    drop(reader);
    tree.deactivate("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn a_forked_child_keeps_the_lock() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    let child = Child::new(|| {});
    drop(tree);
    let error = SnapshotTree::open(bench.root(), small()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    child.run();
    let tree = bench.tree();
    assert!(tree.contains("a"));
    tree.close().unwrap();
}
