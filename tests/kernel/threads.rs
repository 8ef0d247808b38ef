//! Many callers at once.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use dm_thin::tree::{Parent, SnapshotTree};

use crate::bench::{Bench, small};

const THREADS: usize = 8;

/// How much is done: a little in every run, all of it when `name` says how much.
pub fn amount(name: &str, little: usize) -> usize {
    std::env::var(name).map_or(little, |value| value.parse().expect("a number"))
}

/// Ends the whole run if `work` takes longer than a minute for each step of it: a deadlock.
fn watched<T>(steps: &AtomicUsize, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (done, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            let mut last = 0;
            while ended.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
                let now = steps.load(Ordering::Relaxed);
                if now == last {
                    eprintln!("deadlock: nothing has happened for a minute after {now} operations");
                    std::process::abort();
                }
                last = now;
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// A tree with threads of its own.
fn with_threads(bench: &Bench) -> SnapshotTree {
    SnapshotTree::open(bench.root(), small().background_threads(true)).unwrap()
}

#[test]
fn add_mount_write_snapshot_remove_from_eight_threads() {
    let bench = Bench::new();
    let tree = with_threads(&bench);
    let operations = AtomicUsize::new(0);
    // A round is nine operations.
    let rounds = amount("DM_THIN_OPERATIONS", 27) / 9;
    let did = || operations.fetch_add(1, Ordering::Relaxed);
    tree.add("image", Parent::Base).unwrap();
    let work = || {
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (tree, bench, did) = (&tree, &bench, &did);
                scope.spawn(move || {
                    for round in 0..rounds {
                        let (one, two) = (format!("one-{thread}-{round}"), format!("two-{thread}-{round}"));
                        let target = bench.path().join(&one);
                        tree.add(&one, Parent::Snapshot("image")).unwrap();
                        did();
                        tree.mount(&one, &target).unwrap();
                        did();
                        fs::write(target.join("file"), &one).unwrap();
                        tree.add(&two, Parent::Snapshot(&one)).unwrap();
                        did();
                        tree.unmount(&one).unwrap();
                        did();
                        tree.mount(&two, &target).unwrap();
                        did();
                        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), one);
                        tree.unmount(&two).unwrap();
                        did();
                        tree.remove(&one).unwrap();
                        did();
                        tree.rename(&two, &one).unwrap();
                        did();
                        if round + 1 < rounds {
                            tree.remove(&one).unwrap();
                            did();
                        }
                    }
                });
            }
        });
    };
    watched(&operations, work);
    println!("{} operations from {THREADS} threads", operations.into_inner());
    assert_eq!((tree.list().len(), tree.reap().unwrap()), (1 + THREADS, 0));
    assert_eq!(tree.check().unwrap(), []);
    for snapshot in tree.list() {
        tree.remove(snapshot.id.as_str()).unwrap();
    }
    tree.close().unwrap();
}

#[test]
fn many_are_active_and_mounted_at_once() {
    let bench = Bench::new();
    let tree = with_threads(&bench);
    let many = amount("DM_THIN_MOUNTED", 24);
    let operations = AtomicUsize::new(0);
    let target = |index: usize| bench.path().join(format!("mounted-{index}"));
    let mount_all = || {
        for index in 0..many {
            tree.add(index.to_string(), Parent::Base).unwrap();
            tree.mount(index.to_string(), target(index)).unwrap();
            fs::write(target(index).join("file"), index.to_string()).unwrap();
            operations.fetch_add(1, Ordering::Relaxed);
        }
    };
    watched(&operations, mount_all);
    assert_eq!(tree.check().unwrap(), []);
    let tree = bench.reopen(tree);
    assert_eq!(tree.list().iter().filter(|info| info.mounted.is_some()).count(), many);
    for index in 0..many {
        assert_eq!(fs::read_to_string(target(index).join("file")).unwrap(), index.to_string());
        tree.unmount(index.to_string()).unwrap();
        assert!(!target(index).exists(), "made by the manager before");
        tree.remove(index.to_string()).unwrap();
    }
    println!("{many} were active and mounted at once");
    tree.close().unwrap();
}

#[test]
fn one_of_many_adds_of_one_id_wins() {
    let bench = Bench::new();
    let tree = with_threads(&bench);
    let added: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| tree.add("same", Parent::Base))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(added.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(added.iter().filter_map(|result| result.as_ref().err()).all(dm_thin::tree::Error::is_exists));
    tree.close().unwrap();
}

#[test]
fn callers_share_one_mount() {
    let bench = Bench::new();
    let tree = with_threads(&bench);
    tree.add("image", Parent::Base).unwrap();
    let target = bench.path().join("shared");
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (tree, target) = (&tree, &target);
            scope.spawn(move || {
                tree.mount("image", target).unwrap();
                fs::write(target.join(thread.to_string()), "here").unwrap();
                tree.unmount("image").unwrap();
            });
        }
    });
    tree.mount("image", &target).unwrap();
    assert!((0..THREADS).all(|thread| target.join(thread.to_string()).exists()));
    tree.unmount("image").unwrap();
    tree.close().unwrap();
}
