//! A tree whose pool runs low, and grows by itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dm_thin::thin;
use dm_thin::thin::{
    ExtendRule, Extended, Extension, MinFree, NoSpace, PoolEvent, PoolFeatures, PoolMode, Space, ThinId,
};
use dm_thin::tree::Error;
use dm_thin::tree::{Filesystem, Finding, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;

use crate::bench::Bench;
use crate::rig::{drop_caches, holds, write};
use crate::spy::Spy;

/// 64 MiB of data, under snapshots of 512 MiB.
fn tiny() -> Options {
    let options = Options::new().data_size(Bytes::mib(64)).metadata_size(Bytes::mib(2));
    options.base_size(Bytes::mib(512)).filesystem(Filesystem::None).background_threads(false)
}

fn total(tree: &SnapshotTree) -> Bytes {
    tree.status().unwrap().data.unwrap().total
}

#[test]
fn it_grows_while_a_snapshot_is_filled_up_to_the_maximum() {
    let bench = Bench::new();
    let rule = ExtendRule { threshold: 50, step: 50, maximum: Bytes::mib(192) };
    let options = || tiny().auto_extend(rule);
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let news = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let news = tree.watch().unwrap().map(Result::unwrap);
            news.inspect(|news| println!("{news:?}")).collect::<Vec<_>>()
        });
        // In steps: a pool that fills up in the very moment in which it is suspended would wait for 60 s.
        (0..180).for_each(|mib| write(&device, mib << 4, 16, 7).unwrap());
        drop_caches();
        assert!(holds(&device, 0, 180 << 4, 7));
        // More is not to be had: 12 MiB are free, a tenth of 192 has to be.
        assert_eq!(
            tree.extend_pool().unwrap(),
            Extended { data: Extension::Exhausted, ..Extended::default() }
        );
        let error = tree.add("b", Parent::Snapshot("a")).unwrap_err();
        assert!(matches!(error, Error::Thin(thin::Error::LowSpace { space: Space::Data, .. })), "{error}");
        assert_eq!(total(&tree), rule.maximum);
        tree.deactivate("a").unwrap();
        tree.close().unwrap();
        watcher.join().unwrap()
    });
    let extended = news.iter().filter_map(|news| news.extended);
    let grown = extended.clone().filter(|done| matches!(done.data, Extension::To(_))).count();
    let exhausted = extended.clone().any(|done| done.data == Extension::Exhausted);
    assert!(grown >= 2, "{news:?}");
    assert!(exhausted, "{news:?}");
    assert_eq!(news.last().unwrap().event, PoolEvent::Removed);
    drop(tree);
    // With the options that it was made with.
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    assert_eq!(total(&tree), rule.maximum);
    assert!(holds(&tree.activate("a").unwrap(), 0, 180 << 4, 7));
    assert_eq!(tree.check().unwrap(), []);
    tree.remove("a").unwrap();
    tree.add("b", Parent::Base).unwrap();
    tree.close().unwrap();
}

#[test]
fn a_grown_pool_keeps_the_threshold() {
    let bench = Bench::new();
    let rule = ExtendRule { threshold: 75, step: 50, maximum: Bytes::gib(1) };
    let tree = SnapshotTree::open(bench.root(), tiny().auto_extend(rule)).unwrap();
    let mark = |tree: &SnapshotTree| tree.pool().table().unwrap().0.low_water_mark.0;
    assert_eq!(mark(&tree), 256);
    tree.grow_pool(Bytes::mib(512)).unwrap();
    assert_eq!((mark(&tree), total(&tree)), (2048, Bytes::mib(512)));
    tree.close().unwrap();
}

#[test]
fn usage_tells_what_a_removal_frees() {
    let bench = Bench::new();
    let tree = SnapshotTree::open(bench.root(), tiny()).unwrap();
    let fill = |id: &str, start: u64, blocks: u64, byte: u8| {
        write(&tree.activate(id).unwrap(), start, blocks, byte).unwrap();
        tree.deactivate(id).unwrap();
    };
    tree.add("image", Parent::Base).unwrap();
    fill("image", 0, 100, 1);
    tree.add("one", Parent::Snapshot("image")).unwrap();
    tree.add("two", Parent::Snapshot("one")).unwrap();
    fill("one", 90, 20, 2);
    let usage = || {
        let all = tree.usage().unwrap().into_iter();
        all.map(|used| (used.id.to_string(), [used.mapped, used.exclusive, used.shared].map(|it| it.0 >> 16)))
            .collect::<Vec<_>>()
    };
    let [image, one, two] = ["image", "one", "two"].map(str::to_owned);
    let shares_all = [100, 0, 100];
    assert_eq!(usage(), [(image, shares_all), (one, [110, 20, 90]), (two.clone(), shares_all)]);
    let mut used = tree.status().unwrap().data.unwrap().used;
    for (id, frees) in [("one", 20), ("image", 0), ("two", 100)] {
        let exclusive = usage().into_iter().find(|(of, _)| of == id).unwrap().1[1];
        assert_eq!(exclusive, frees, "{id}");
        tree.remove(id).unwrap();
        let now = tree.status().unwrap().data.unwrap().used;
        assert_eq!((used - now).0 >> 16, frees, "{id}");
        used = now;
    }
    assert_eq!(usage(), []);
    tree.close().unwrap();
}

#[test]
fn a_metadata_snapshot_of_another_program_is_kept() {
    let bench = Bench::new();
    let tree = SnapshotTree::open(bench.root(), tiny()).unwrap();
    tree.pool().reserve_metadata_snap().unwrap();
    drop(tree);
    // The pool is as it was: somebody may be reading still.
    let tree = SnapshotTree::open(bench.root(), tiny()).unwrap();
    assert!(matches!(tree.usage(), Err(Error::Thin(thin::Error::MetadataSnapHeld { .. }))));
    assert_eq!(tree.check().unwrap(), [Finding::MetadataSnapHeld]);
    bench.restart(tree);
    // After a restart, too: only what the tree itself held is released.
    let tree = SnapshotTree::open(bench.root(), tiny()).unwrap();
    assert_eq!(tree.check().unwrap(), [Finding::MetadataSnapHeld]);
    tree.pool().release_metadata_snap().unwrap();
    assert_eq!(tree.usage().unwrap(), []);
    tree.close().unwrap();
}

/// `fill` takes all of the metadata that is left. Then the tree opens for looking, reading and removing, until its
/// pool is extended.
fn opens_without_metadata_space(bench: &Bench, fill: impl Fn(&SnapshotTree)) {
    let none = MinFree::Percent(0);
    let features = PoolFeatures { skip_block_zeroing: true, no_space: NoSpace::Error, ..Default::default() };
    let options = || {
        let options = tiny().data_size(Bytes::gib(4)).features(features);
        options.min_free_metadata(none).min_free_data(none)
    };
    let tree = SnapshotTree::open(bench.root(), options()).unwrap();
    for id in ["a", "b", "c", "full"] {
        tree.add(id, Parent::Base).unwrap();
    }
    write(&tree.activate("a").unwrap(), 0, 16, 7).unwrap();
    tree.deactivate("a").unwrap();
    fill(&tree);
    println!("{}", tree.pool().status().unwrap());
    for id in ["a", "b"] {
        let error = tree.add("d", Parent::Snapshot(id)).unwrap_err();
        assert!(matches!(error, Error::Thin(thin::Error::PoolMode { .. })), "{error}");
    }
    tree.close().unwrap();
    drop(tree);
    for removed in ["b", "c"] {
        let tree = SnapshotTree::open(bench.root(), options()).unwrap();
        println!("opened: {}", tree.pool().status().unwrap());
        assert!(tree.list().iter().any(|info| info.id.as_str() == removed));
        assert!(holds(&tree.activate("a").unwrap(), 0, 16, 7));
        tree.deactivate("a").unwrap();
        let deleted = tree.remove(removed);
        assert!(matches!(deleted, Ok(()) | Err(Error::Thin(thin::Error::PoolMode { .. }))), "{deleted:?}");
        assert!(!tree.contains(removed));
        tree.close().unwrap();
    }
    let rule = ExtendRule { threshold: 70, step: 50, maximum: Bytes::gib(4) };
    let tree = SnapshotTree::open(bench.root(), options().auto_extend(rule)).unwrap();
    println!("extended: {}", tree.pool().status().unwrap());
    tree.add("e", Parent::Snapshot("a")).unwrap();
    assert!(holds(&tree.activate("e").unwrap(), 0, 16, 7));
    tree.deactivate("e").unwrap();
    assert!(["a", "e", "full"].iter().all(|id| tree.contains(id)));
    assert_eq!(tree.deferred(), 0);
    tree.remove("full").unwrap();
    let others = |finding: &Finding| matches!(finding, Finding::UnknownVolume { own: false, .. });
    assert!(tree.check().unwrap().iter().all(others));
    tree.close().unwrap();
}

#[test]
fn a_pool_whose_metadata_was_filled_by_messages_opens() {
    let bench = Bench::new();
    opens_without_metadata_space(&bench, |tree| {
        // Each thin device has a block of metadata of its own.
        let create = |id| tree.pool().create_thin(ThinId::new(id).unwrap());
        let error = (1_000_000..).find_map(|id| create(id).err()).unwrap();
        assert!(matches!(error, thin::Error::PoolMode { .. }), "{error}");
    });
}

#[test]
fn a_pool_whose_metadata_was_filled_by_writes_opens() {
    let bench = Bench::new();
    opens_without_metadata_space(&bench, |tree| {
        let write = |id: &str, step| {
            let file = File::options().write(true).open(tree.activate(id).unwrap()).unwrap();
            let blocks = (0..512 << 4).step_by(step);
            let written = blocks.map(|block| file.write_all_at(&[1; 4096], block << 16));
            let written = written.collect::<std::io::Result<()>>().and_then(|()| file.sync_all());
            drop(file);
            tree.deactivate(id).unwrap();
            written
        };
        // A leaf has some hundred mappings; a snapshot shares it until one of them is written to.
        write("full", 1).unwrap();
        let mut ids = (0..).map(|round| format!("s{round}"));
        let full = ids.find(|id| tree.add(id, Parent::Snapshot("full")).is_err() || write(id, 60).is_err());
        println!("full at {full:?}");
    });
}

#[test]
fn an_active_parent_of_a_full_pool_is_not_suspended() {
    let bench = Bench::new();
    let (spy, none) = (Arc::new(Spy::default()), MinFree::Percent(0));
    for guarded in [true, false] {
        let options = tiny().kernel(spy.clone());
        let options = if guarded { options } else { options.min_free_data(none).min_free_metadata(none) };
        let tree = SnapshotTree::open(bench.path().join(guarded.to_string()), options).unwrap();
        tree.add("a", Parent::Base).unwrap();
        let device = tree.activate("a").unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(|| write(&device, 0, 72 << 4, 1));
            while tree.status().unwrap().pool.mode() != PoolMode::OutOfDataSpace {
                thread::sleep(Duration::from_millis(20));
            }
            // A suspend would wait for the writer, and the writer for space.
            let add = spy.during(|| {
                let error = tree.add("b", Parent::Snapshot("a")).unwrap_err();
                assert!(error.is_out_of_space(), "{error}");
            });
            assert!(!add.contains(&"DM_DEV_SUSPEND"), "{add:?}");
            assert!(!writer.is_finished());
            tree.grow_pool(Bytes::mib(128)).unwrap();
            writer.join().unwrap().unwrap();
        });
        tree.add("b", Parent::Snapshot("a")).unwrap();
        drop_caches();
        assert!(holds(&tree.activate("b").unwrap(), 0, 72 << 4, 1));
        for id in ["a", "b"] {
            tree.deactivate(id).unwrap();
        }
        tree.close().unwrap();
    }
}
