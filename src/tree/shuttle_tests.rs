//! Threads on one tree, in many orders: a thread may be stopped before each lock of the tree.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --target-dir target/shuttle --features model --lib shuttle`; without that flag
//! the locks are the standard library's.

use std::path::Path;
use std::sync::Arc;

use crate::dm::UdevPolicy;
use crate::model::ModelKernel;
use crate::tree::{AddOptions, Error, Filesystem, Options, Parent, Result, SnapshotTree};
use crate::units::Bytes;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};
use tempfile::TempDir;

/// What a test does on a new tree, in so many orders: chosen at random, and with three changes of who comes first.
fn in_orders(
    orders: usize,
    filesystem: Filesystem,
    work: impl Fn(&Arc<SnapshotTree>, &Path) + Send + Sync + 'static,
) {
    let orders = std::env::var("DM_THIN_ORDERS").map_or(orders, |orders| orders.parse().unwrap());
    let work = Arc::new(move || {
        let directory = TempDir::new_in("/dev/shm").unwrap();
        let kernel = Arc::new(ModelKernel::new());
        let open = || {
            let options = Options::new().data_size(Bytes::mib(64)).metadata_size(Bytes::mib(4));
            let options = options.base_size(Bytes::mib(16)).filesystem(filesystem);
            let options = options.kernel(kernel.clone()).udev(UdevPolicy::None);
            SnapshotTree::open(directory.path().join("root"), options).unwrap()
        };
        let tree = Arc::new(open());
        work(&tree, directory.path());
        let there = ids(&tree);
        match tree.close() {
            Ok(()) | Err(Error::Closed) => drop(tree),
            Err(error) => panic!("{error}"),
        }
        let tree = open();
        assert_eq!(tree.reap().unwrap(), 0);
        assert_eq!((ids(&tree), tree.check().unwrap()), (there, vec![]));
        tree.close().unwrap();
        assert!(kernel.is_clean(), "{:?}", kernel.leftovers());
    });
    let mut config = Config::new();
    config.stack_size = 4 << 20;
    let again = work.clone();
    Runner::new(RandomScheduler::new(orders), config.clone()).run(move || again());
    Runner::new(PctScheduler::new(3, orders), config).run(move || work());
}

/// Runs these at once, and returns their results in the same order.
fn at_once<T: Send + 'static>(work: Vec<Box<dyn FnOnce() -> T + Send>>) -> Vec<T> {
    let threads: Vec<_> = work.into_iter().map(thread::spawn).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn boxed<T>(
    tree: &Arc<SnapshotTree>,
    work: impl FnOnce(&SnapshotTree) -> T + Send + 'static,
) -> Box<dyn FnOnce() -> T + Send> {
    let tree = tree.clone();
    Box::new(move || work(&tree))
}

fn ids(tree: &SnapshotTree) -> Vec<String> {
    tree.list().into_iter().map(|snapshot| snapshot.id.to_string()).collect()
}

#[test]
fn additions_and_removals_of_one_id() {
    in_orders(300, Filesystem::None, |tree, _| {
        let done = at_once(vec![
            boxed(tree, |tree| tree.add("a", Parent::Base).map(|()| 1)),
            boxed(tree, |tree| tree.add("a", Parent::Base).map(|()| 1)),
            boxed(tree, |tree| tree.remove("a").map(|_| -1)),
        ]);
        let mut there = 0;
        for result in done {
            match result {
                Ok(change) => there += change,
                Err(Error::SnapshotExists { .. } | Error::UnknownSnapshot { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(i32::try_from(ids(tree).len()).unwrap(), there);
    });
}

#[test]
fn renames_and_removals() {
    in_orders(300, Filesystem::None, |tree, _| {
        for id in ["a", "b"] {
            tree.add(id, Parent::Base).unwrap();
        }
        let done = at_once(vec![
            boxed(tree, |tree| tree.rename("a", "c")),
            boxed(tree, |tree| tree.rename("b", "c")),
            boxed(tree, |tree| tree.remove("a").map(drop)),
        ]);
        let there = ids(tree);
        let left = 2 - usize::from(done[2].is_ok());
        assert_eq!(there.len(), left, "{done:?} {there:?}");
        assert!(done[0].is_ok() != done[2].is_ok() && !(done[0].is_ok() && done[1].is_ok()), "{done:?}");
        assert_eq!(
            there.iter().any(|id| id == "c"),
            done[0].is_ok() || done[1].is_ok(),
            "{done:?} {there:?}"
        );
    });
}

#[test]
fn renames_there_and_back() {
    in_orders(300, Filesystem::None, |tree, _| {
        tree.add("a", Parent::Base).unwrap();
        let done = at_once(vec![
            boxed(tree, |tree| tree.rename("a", "b")),
            boxed(tree, |tree| tree.rename("b", "a")),
        ]);
        assert!(done[0].is_ok(), "{done:?}");
        assert_eq!(ids(tree), [if done[1].is_ok() { "a" } else { "b" }]);
    });
}

#[test]
fn additions_beside_their_parents_activation() {
    in_orders(300, Filesystem::None, |tree, _| {
        tree.add("parent", Parent::Base).unwrap();
        let done: Vec<Result<()>> = at_once(vec![
            boxed(tree, |tree| tree.activate("parent").map(drop)),
            boxed(tree, |tree| tree.add("one", Parent::Snapshot("parent"))),
            boxed(tree, |tree| tree.deactivate("parent")),
            boxed(tree, |tree| tree.add("two", Parent::Snapshot("parent"))),
        ]);
        done.into_iter().for_each(Result::unwrap);
        assert_eq!(ids(tree), ["one", "parent", "two"]);
        tree.remove("two").unwrap();
    });
}

#[test]
fn additions_beside_those_who_make_them_ready() {
    in_orders(200, Filesystem::None, |tree, _| {
        tree.add("image", Parent::Base).unwrap();
        tree.seal("image").unwrap();
        tree.keep_ready(Parent::Snapshot("image"), 2).unwrap();
        let add = |id: &'static str| {
            boxed(tree, move |tree| tree.add_activated(id, Parent::Snapshot("image"), &AddOptions::new()))
        };
        let done =
            at_once(vec![add("a"), add("b"), boxed(tree, |tree| tree.refill_ready().map(|()| "".into()))]);
        let [a, b, refilled] = done.try_into().unwrap();
        assert_ne!(a.unwrap(), b.unwrap());
        refilled.unwrap();
        let thin_ids: Vec<_> = tree.list().into_iter().map(|snapshot| snapshot.thin_id).collect();
        assert!(thin_ids.len() == 3 && thin_ids[0] != thin_ids[1]);
    });
}

#[test]
fn one_directory_for_two_mounts() {
    in_orders(200, Filesystem::Ext4, |tree, directory| {
        for id in ["a", "b"] {
            tree.add(id, Parent::Base).unwrap();
        }
        let target = directory.join("mnt");
        let mount = |id: &'static str| {
            let target = target.clone();
            boxed(tree, move |tree| tree.mount(id, target).map(|()| id))
        };
        let done = at_once(vec![mount("a"), mount("b")]);
        let mounted: Vec<_> = done.iter().flatten().collect();
        assert_eq!(mounted.len(), 1, "{done:?}");
        assert!(done.iter().any(|result| matches!(result, Err(Error::Mounted { .. }))), "{done:?}");
        tree.unmount(mounted[0]).unwrap();
    });
}

#[test]
fn metadata_is_read_beside_changes() {
    in_orders(200, Filesystem::None, |tree, _| {
        tree.add("a", Parent::Base).unwrap();
        let done: Vec<Result<()>> = at_once(vec![
            boxed(tree, |tree| tree.usage().map(drop)),
            boxed(tree, |tree| tree.remove("a").map(drop)),
            // What it finds is what the removal has not done yet.
            boxed(tree, |tree| tree.check().map(drop)),
            boxed(tree, |tree| tree.grow_pool(Bytes::mib(96))),
        ]);
        done.into_iter().for_each(Result::unwrap);
    });
}

#[test]
fn a_close_beside_changes() {
    in_orders(300, Filesystem::None, |tree, _| {
        tree.add("a", Parent::Base).unwrap();
        let done = at_once(vec![
            boxed(tree, |tree| tree.add("b", Parent::Snapshot("a"))),
            boxed(tree, |tree| tree.activate("a").map(drop)),
            boxed(tree, SnapshotTree::close),
            boxed(tree, |tree| tree.remove("a").map(drop)),
        ]);
        assert!(done[2].is_ok(), "{done:?}");
        let expected = |error: &Error| matches!(error, Error::Closed | Error::UnknownSnapshot { .. });
        assert!(done.iter().all(|result| result.as_ref().err().is_none_or(expected)), "{done:?}");
    });
}
