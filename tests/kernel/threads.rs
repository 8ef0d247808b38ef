//! Many callers at once.

use std::fs;
use std::thread;

use dm_thin::tree::Parent;

use crate::bench::Bench;

const THREADS: usize = 8;
const ROUNDS: usize = 3;

#[test]
fn add_mount_write_snapshot_remove_from_eight_threads() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("image", Parent::Base).unwrap();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (tree, bench) = (&tree, &bench);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let (one, two) = (format!("one-{thread}-{round}"), format!("two-{thread}-{round}"));
                    let target = bench.path().join(&one);
                    tree.add(&one, Parent::Snapshot("image")).unwrap();
                    tree.mount(&one, &target).unwrap();
                    fs::write(target.join("file"), &one).unwrap();
                    tree.add(&two, Parent::Snapshot(&one)).unwrap();
                    tree.unmount(&one).unwrap();
                    tree.mount(&two, &target).unwrap();
                    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), one);
                    tree.unmount(&two).unwrap();
                    tree.remove(&one).unwrap();
                }
            });
        }
    });
    assert_eq!(tree.list().len(), 1 + THREADS * ROUNDS);
    for snapshot in tree.list() {
        tree.remove(snapshot.id.as_str()).unwrap();
    }
    tree.close().unwrap();
}

#[test]
fn one_of_many_adds_of_one_id_wins() {
    let bench = Bench::new();
    let tree = bench.tree();
    let added: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| tree.add("same", Parent::Base))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(added.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(added.iter().filter_map(|result| result.as_ref().err()).all(dm_thin::Error::is_exists));
    tree.close().unwrap();
}

#[test]
fn callers_share_one_mount() {
    let bench = Bench::new();
    let tree = bench.tree();
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
