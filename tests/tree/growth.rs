//! A pool that grew is as large after a restart.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use dm_thin::kernel::ProcessName;
use dm_thin::loopdev::LoopControl;
use dm_thin::thin;
use dm_thin::thin::{Backing, ExtendRule, Extended, Extension, LoopFile, MinFree, PoolEvent, ThinId};
use dm_thin::tree::Error;
use dm_thin::tree::{AddOptions, Filesystem, Options, Parent, PoolSource, SnapshotTree};
use dm_thin::units::{Blocks, Bytes};

use crate::rig::{Rig, crash_everywhere_with};

fn total(tree: &SnapshotTree) -> Bytes {
    tree.status().unwrap().data.unwrap().total
}

#[test]
fn grow_pool_survives_a_reopen() {
    let mut rig = Rig::new();
    let tree = rig.tree();
    tree.add("a", Parent::Base).unwrap();
    let control = LoopControl::with_kernel(rig.kernel.clone()).unwrap();
    let size = Bytes::mib(128).sectors();
    LoopFile::find(control, rig.root().join("pool/data")).unwrap().extend(size).unwrap();
    tree.pool().grow_data(size).unwrap();
    drop(tree);
    assert_eq!(total(&rig.tree()), Bytes::mib(128));
    rig.kernel = Arc::new(rig.kernel.power_cut());
    assert_eq!(total(&rig.tree()), Bytes::mib(128));
    let tree = rig.tree();
    assert!(tree.contains("a"));
    tree.close().unwrap();
}

#[test]
fn open_takes_sizes_as_minima() {
    let rig = Rig::new();
    rig.tree().add("a", Parent::Base).unwrap();
    let larger = || rig.options().data_size(Bytes::mib(96));
    for _ in 0..2 {
        let tree = rig.open(larger()).unwrap();
        assert_eq!(total(&tree), Bytes::mib(96));
        assert!(tree.contains("a"));
    }
    // As the program asks for at each of its starts, whatever the tree has grown to.
    let less = rig.options().metadata_size(Bytes::mib(2)).base_size(Bytes::mib(8));
    for options in [rig.options(), less] {
        assert_eq!(total(&rig.open(options).unwrap()), Bytes::mib(96));
    }
    let error = rig.open(rig.options().metadata_size(Bytes::mib(8))).unwrap_err();
    assert!(matches!(error, Error::OptionConflict { option: "metadata size", .. }), "{error}");
    assert_eq!(total(&rig.open(Options::new().kernel(rig.kernel.clone())).unwrap()), Bytes::mib(96));
    rig.open(larger()).unwrap().close().unwrap();
}

#[test]
fn an_open_that_grows_is_atomic_across_crashes() {
    crash_everywhere_with(
        |options, again| if again { options.data_size(Bytes::mib(96)) } else { options },
        |_, tree| tree.add("a", Parent::Base).unwrap(),
        |tree| tree.grow_pool(Bytes::mib(96)),
        |_, tree| {
            assert!(tree.contains("a"));
            assert_eq!((total(tree), tree.check().unwrap()), (Bytes::mib(96), vec![]));
        },
    );
}

const RULE: ExtendRule = ExtendRule { threshold: 50, step: 50, maximum: Bytes::mib(128) };

/// A snapshot with so many blocks written, in a pool of 1024.
fn fill(rig: &Rig, tree: &SnapshotTree, blocks: u64) {
    tree.add("full", Parent::Base).unwrap();
    let device = tree.activate("full").unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 0..blocks).unwrap();
}

#[test]
fn auto_extend_stops_at_the_maximum() {
    let rig = Rig::new();
    let options = || rig.options().base_size(Bytes::mib(128));
    let extending = || options().auto_extend(RULE);
    let tree = rig.open(options()).unwrap();
    fill(&rig, &tree, 600);
    let not_needed = Extended::default();
    assert_eq!(tree.extend_pool().unwrap(), not_needed, "nobody asked for it");
    drop(tree);
    let tree = rig.open(extending()).unwrap();
    assert_eq!(total(&tree), Bytes::mib(96));
    assert_eq!(tree.pool().table().unwrap().0.low_water_mark, Blocks(768));
    assert_eq!(tree.extend_pool().unwrap(), not_needed);
    let device = tree.activate("full").unwrap();
    rig.kernel.write(device.file_name().unwrap().to_str().unwrap(), 600..1100).unwrap();
    let to = Extension::To(Bytes::mib(128).sectors());
    assert_eq!(tree.extend_pool().unwrap(), Extended { data: to, ..not_needed });
    assert_eq!(tree.extend_pool().unwrap().data, Extension::Exhausted);
    // Opened as before, it is as large as it has become: sizes are minima.
    drop(tree);
    let tree = rig.open(options()).unwrap();
    assert_eq!(total(&tree), Bytes::mib(128));
    tree.deactivate("full").unwrap();
    tree.close().unwrap();
    assert!(matches!(tree.extend_pool(), Err(Error::Closed)));
}

#[test]
fn watch_reports_the_event_after_a_failed_extension() {
    let rig = Rig::new();
    let tree = rig.open(rig.options().base_size(Bytes::mib(128)).auto_extend(RULE)).unwrap();
    let mut news = tree.watch().unwrap();
    fill(&rig, &tree, 600);
    let (file, away) = (rig.root().join("pool/data"), rig.root().join("pool/away"));
    std::fs::rename(&file, &away).unwrap();
    let error = news.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::Thin(thin::Error::Io { action: "open", .. })), "{error}");
    let told = news.next().unwrap().unwrap();
    assert!(matches!(told.event, PoolEvent::LowWater { .. }) && told.extended.is_none(), "{told:?}");
    std::fs::rename(&away, &file).unwrap();
    let data = Extension::To(Bytes::mib(96).sectors());
    assert_eq!(tree.extend_pool().unwrap().data, data);
    tree.deactivate("full").unwrap();
    tree.close().unwrap();
    let ended: Vec<_> = news.map(|news| news.unwrap().event).collect();
    assert_eq!(ended, [PoolEvent::Removed]);
}

#[test]
fn extend_pool_is_atomic_across_crashes() {
    let extending = |options: Options, _| options.base_size(Bytes::mib(128)).auto_extend(RULE);
    let work = |tree: &SnapshotTree| tree.extend_pool().map(drop);
    crash_everywhere_with(
        extending,
        |rig, tree| {
            fill(rig, tree, 600);
            // A message commits what was written.
            tree.add("other", Parent::Base).unwrap();
        },
        work,
        |_, tree| {
            assert!(tree.contains("full"));
            assert_eq!(total(tree), Bytes::mib(96));
            assert_eq!(tree.check().unwrap(), []);
        },
    );
}

#[test]
fn invalid_extend_rules_are_refused() {
    let rig = Rig::new();
    let said = |rule, options: Options| rig.open(options.auto_extend(rule)).unwrap_err().to_string();
    let threshold = |threshold| ExtendRule { threshold, ..RULE };
    assert!(said(threshold(0), rig.options()).contains("not from 1 to 99 percent"));
    assert!(said(threshold(91), rig.options()).contains("leaves less than must be free"));
    let small = ExtendRule { maximum: Bytes::mib(63), ..RULE };
    assert!(said(small, rig.options()).contains("less than the data size"));
    let default = Options::new().kernel(rig.kernel.clone());
    assert!(
        said(ExtendRule { maximum: Bytes::gib(99), ..RULE }, default).contains("less than the data size")
    );
    assert!(rig.kernel.is_clean());
    let devices = PoolSource::Devices { data: "/dev/a".into(), metadata: "/dev/b".into() };
    let options = Options::new().kernel(rig.kernel.clone()).pool_source(devices);
    assert!(said(RULE, options).contains("neither on loop files nor"));
    let tree = rig.open(rig.options().min_free_data(MinFree::Percent(0)).auto_extend(threshold(91))).unwrap();
    tree.close().unwrap();
}

/// Length of the metadata file, all of which is allocated.
fn allocated(rig: &Rig) -> Bytes {
    let file = fs::metadata(rig.root().join("pool/metadata")).unwrap();
    assert!(file.blocks() * 512 >= file.len(), "{} of {}", file.blocks() * 512, file.len());
    Bytes(file.len())
}

#[test]
fn the_metadata_file_is_allocated_by_lvms_rule() {
    for (data, metadata) in [(Bytes::gib(1), Bytes::mib(16)), (Bytes::gib(64), Bytes::mib(64))] {
        let rig = Rig::new();
        let options = Options::new().kernel(rig.kernel.clone()).data_size(data);
        let options = options.filesystem(dm_thin::tree::Filesystem::None);
        let tree = rig.open(options.udev(dm_thin::dm::UdevPolicy::None)).unwrap();
        assert_eq!(allocated(&rig), metadata);
        tree.close().unwrap();
    }
}

#[test]
fn the_metadata_file_stays_allocated() {
    let rig = Rig::new();
    rig.tree().close().unwrap();
    // As a backup that leaves out zeroes restores it.
    let path = rig.root().join("pool/metadata");
    let bytes = fs::read(&path).unwrap();
    let file = File::create(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (block, bytes) in bytes.chunks(4096).enumerate().filter(|(_, bytes)| bytes.iter().any(|it| *it != 0))
    {
        file.write_all_at(bytes, block as u64 * 4096).unwrap();
    }
    let rule = ExtendRule { threshold: 5, step: 50, maximum: Bytes::mib(128) };
    let options = rig.options().min_free_metadata(MinFree::Percent(0)).auto_extend(rule);
    let tree = rig.open(options.metadata_size(Bytes::mib(4))).unwrap();
    assert_eq!(allocated(&rig), Bytes::mib(4));
    (100..150).for_each(|id| tree.pool().create_thin(ThinId::new(id).unwrap()).unwrap());
    let extended = tree.extend_pool().unwrap().metadata;
    assert!(matches!(extended, Extension::To(size) if size.bytes() == allocated(&rig)), "{extended:?}");
    assert!(allocated(&rig) > Bytes::mib(4));
    tree.close().unwrap();
}

/// A child of the manager that was killed: it goes on growing the file system.
#[test]
fn open_waits_for_a_running_resize2fs() {
    let rig = Rig::new();
    let options = || rig.options().filesystem(Filesystem::Ext4).busy_timeout(Duration::MAX);
    let tree = rig.open(options()).unwrap();
    let large = AddOptions::new().size(Bytes::mib(32));
    rig.kernel.clear_log();
    tree.add_with("a", Parent::Base, &large).unwrap();
    let grows = rig.kernel.log().iter().position(|call| call.name == "run").unwrap() as u64 + 1;
    rig.kernel.unwind_at_cut(true);
    rig.kernel.cut_after(grows);
    catch_unwind(AssertUnwindSafe(|| tree.add_with("b", Parent::Base, &large))).unwrap_err();
    drop(catch_unwind(AssertUnwindSafe(|| drop(tree))));
    rig.kernel.heal();
    let is_temporary = |name: &OsString| name.as_bytes().starts_with(b"grow-");
    let names = fs::read_dir(rig.root()).unwrap().map(|entry| entry.unwrap().file_name());
    let target = rig.root().join(names.into_iter().find(is_temporary).unwrap());
    let user = ProcessName { pid: 7, command: "resize2fs".to_owned() };
    rig.kernel.set_mount_user(&target, Some(user)).unwrap();
    let opener = Arc::new(rig.kernel.process());
    let impatient = options().busy_timeout(Duration::ZERO).kernel(opener.clone());
    assert!(rig.open(impatient).unwrap_err().is_busy());
    let unmounts = opener.log().iter().position(|call| call.name == "umount").unwrap() as u64 + 1;
    // It ends some attempts later.
    let opener = Arc::new(rig.kernel.process());
    let (kernel, ended) = (rig.kernel.clone(), target.clone());
    opener.at_call(unmounts + 40, move || kernel.set_mount_user(&ended, None).unwrap());
    let tree = rig.open(options().kernel(opener)).unwrap();
    assert!(!target.exists());
    assert_eq!(tree.check().unwrap(), []);
    // The manager left it active, and with the size of its parent.
    let device = tree.activate("b").unwrap();
    let (.., size) = rig.kernel.filesystem(&device).unwrap().unwrap();
    assert_eq!(size, Bytes::mib(32));
    tree.close().unwrap();
    assert!(rig.kernel.is_clean(), "{:?}", rig.kernel.leftovers());
}

#[test]
fn an_owned_watcher_moves_to_another_thread() {
    let rig = Rig::new();
    let tree = Arc::new(rig.open(rig.options().base_size(Bytes::mib(128)).auto_extend(RULE)).unwrap());
    let mut watcher = tree.watch_owned().unwrap();
    assert!(watcher.next_within(Duration::ZERO).unwrap().is_none());
    let watching = std::thread::spawn(move || {
        let first = watcher.next().unwrap().unwrap();
        (first, watcher.last().unwrap().unwrap())
    });
    fill(&rig, &tree, 600);
    let (first, last) = {
        while tree.status().unwrap().data.unwrap().total == Bytes::mib(64) {
            std::thread::yield_now();
        }
        tree.deactivate("full").unwrap();
        tree.close().unwrap();
        watching.join().unwrap()
    };
    assert!(matches!(first.event, PoolEvent::LowWater { .. }) && first.extended.is_some(), "{first:?}");
    assert_eq!((last.event, last.extended), (PoolEvent::Removed, None));
}
