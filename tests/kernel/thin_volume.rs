//! Volumes: activation, growth, suspension, names, deferred removal, discards.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::dm::{DmFlags, Removal};
use dm_thin::loopdev::{AttachOptions, LoopControl};
use dm_thin::thin::Error;
use dm_thin::thin::{ActivateOptions, Discards, Origin, PoolFeatures, ThinStatus};
use dm_thin::units::{Blocks, Bytes, Sectors};

use crate::bench::Bench;
use crate::rig::{Rig, holds, id, name, uuid, write};

const SIZE: Bytes = Bytes::mib(8);

#[test]
fn a_read_only_table_refuses_writes() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let volume = rig.volume(1, SIZE);
    write(&volume.path(), 0, 2, 7).unwrap();
    volume.deactivate().unwrap();
    let options = ActivateOptions::new().read_only(true);
    let volume = rig.pool().activate_with(&name("v1"), &uuid("v1"), id(1), SIZE.sectors(), &options).unwrap();
    assert!(volume.device_status().unwrap().flags.contains(DmFlags::READONLY));
    assert!(holds(&volume.path(), 0, 2, 7));
    let refused = write(&volume.path(), 0, 1, 8).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::EPERM as i32), "{refused}");
    // Growing it leaves it read-only.
    volume.grow(Bytes::mib(16).sectors()).unwrap();
    assert!(volume.device_status().unwrap().flags.contains(DmFlags::READONLY));
    assert!(write(&volume.path(), 0, 1, 8).is_err());
    assert_eq!(volume.discard_all().unwrap_err().errno(), Some(Errno::EPERM));
}

#[test]
fn an_external_origin_shows_through_and_stays_as_it_is() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let path = bench.path().join("image");
    let content: Vec<u8> = (0..SIZE.0).map(|at| (at >> 16) as u8 ^ 0xaa).collect();
    std::fs::write(&path, &content).unwrap();
    let options = AttachOptions::new().autoclear(true).read_only(true);
    let image = LoopControl::open().unwrap().attach(&File::open(&path).unwrap(), &path, &options).unwrap();
    rig.pool().create_thin(id(2)).unwrap();
    let options = ActivateOptions::new().external_origin(image.number());
    let size = Bytes::mib(16).sectors();
    let volume = rig.pool().activate_with(&name("v2"), &uuid("v2"), id(2), size, &options).unwrap();
    assert_eq!(volume.table().unwrap().0.external_origin, Some(image.number()));
    let shows = |block: u64| holds(&volume.path(), block, 1, block as u8 ^ 0xaa);
    assert!((0..128).all(shows));
    // Beyond the origin's end there are zeroes.
    assert!(holds(&volume.path(), 128, 16, 0));
    write(&volume.path(), 1, 2, 0xbb).unwrap();
    crate::rig::drop_caches();
    assert!(shows(0) && holds(&volume.path(), 1, 2, 0xbb) && shows(3));
    // Written in part, a block has the rest from the origin.
    let device = File::options().write(true).open(volume.path()).unwrap();
    device.write_all_at(&[0xcc; 4096], 7 << 16).unwrap();
    device.sync_all().unwrap();
    drop(device);
    crate::rig::drop_caches();
    let all = std::fs::read(volume.path()).unwrap();
    assert_eq!(all[7 << 16..][..4096], [0xcc; 4096]);
    assert_eq!(all[(7 << 16) + 4096..8 << 16], content[(7 << 16) + 4096..8 << 16]);
    assert_eq!(std::fs::read(&path).unwrap(), content, "the image is as it was");
    assert!(matches!(volume.status().unwrap(), ThinStatus::Mapped { mapped: Sectors(384), .. }));
    // Discarded, the origin shows through again.
    volume.discard_all().unwrap();
    assert!((0..128).all(shows));
    assert_eq!(std::fs::read(&path).unwrap(), content);
    volume.deactivate().unwrap();
    let options = ActivateOptions::new().external_origin(rig.pool().number());
    let error = rig.pool().activate_with(&name("v2"), &uuid("v2"), id(2), size, &options).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "external origin", .. }), "{error}");
}

#[test]
fn a_volume_grows_in_use_and_never_shrinks() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let volume = rig.volume(1, SIZE);
    write(&volume.path(), 0, 128, 1).unwrap();
    assert!(write(&volume.path(), 128, 1, 2).is_err());
    let mut open = File::open(volume.path()).unwrap();
    volume.grow(Bytes::mib(16).sectors()).unwrap();
    write(&volume.path(), 128, 128, 2).unwrap();
    assert!(holds(&volume.path(), 0, 128, 1) && holds(&volume.path(), 128, 128, 2));
    let mut all = Vec::new();
    open.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 16 << 20);
    drop(open);
    let error = volume.grow(SIZE.sectors()).unwrap_err();
    assert_eq!(error.to_string(), "volume size: 16384 sectors: smaller than the volume is");
    assert_eq!(volume.table().unwrap().1, Bytes::mib(16).sectors());
    let ThinStatus::Mapped { mapped, highest } = volume.status().unwrap() else { panic!() };
    assert_eq!((mapped, highest), (Sectors(32768), Some(Sectors(32767))));
}

#[test]
fn a_suspended_volume_holds_writes_back() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let volume = rig.volume(1, SIZE);
    write(&volume.path(), 0, 1, 1).unwrap();
    for (snapshot, flags) in [
        (2, DmFlags::empty()),
        (3, DmFlags::SKIP_LOCKFS),
        (4, DmFlags::NOFLUSH),
        (5, DmFlags::SKIP_LOCKFS | DmFlags::NOFLUSH),
    ] {
        let suspended = volume.suspend_with(flags).unwrap();
        assert!(volume.device_status().unwrap().is_suspended());
        let path = volume.path();
        let writer = std::thread::spawn(move || write(&path, 0, 1, 9));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!writer.is_finished());
        rig.pool().create_snap(id(snapshot), &Origin::Suspended(&suspended)).unwrap();
        suspended.resume().unwrap();
        writer.join().unwrap().unwrap();
        let taken = rig.activated(snapshot, SIZE);
        assert!(holds(&taken.path(), 0, 1, 1), "{flags:?}");
        write(&volume.path(), 0, 1, 1).unwrap();
    }
    // Dropped, it is resumed too.
    drop(volume.suspend().unwrap());
    assert!(!volume.device_status().unwrap().is_suspended());
}

#[test]
fn an_open_volume_can_be_renamed() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let mut volume = rig.volume(1, SIZE);
    let other = rig.volume(2, SIZE);
    write(&volume.path(), 0, 1, 5).unwrap();
    let open = File::open(volume.path()).unwrap();
    let error = volume.rename(other.name()).unwrap_err();
    assert!(error.is_busy(), "{error}");
    assert_eq!(volume.name(), &name("v1"));
    volume.rename(&name("v-renamed")).unwrap();
    assert_eq!(volume.path().to_str(), Some("/dev/mapper/dm-thin-v-renamed"));
    assert!(holds(&volume.path(), 0, 1, 5) && !std::path::Path::new("/dev/mapper/dm-thin-v1").exists());
    drop(open);
    assert_eq!(rig.pool().active_volume(&name("v-renamed")).unwrap().id(), id(1));
}

#[test]
fn a_deferred_removal_is_cancelled_or_overtaken() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let patience = Duration::from_secs(20);
    let again = || {
        let options = ActivateOptions::new();
        rig.pool().reactivate(&name("v1"), &uuid("v1"), id(1), SIZE.sectors(), &options, patience)
    };
    let volume = rig.volume(1, SIZE);
    let open = File::open(volume.path()).unwrap();
    assert_eq!(volume.deactivate_deferred().unwrap(), Removal::Deferred);
    assert!(volume.device_status().unwrap().flags.contains(DmFlags::DEFERRED_REMOVE));
    assert_eq!(again().unwrap().number(), volume.number());
    assert!(!volume.device_status().unwrap().flags.contains(DmFlags::DEFERRED_REMOVE));
    drop(open);
    assert!(volume.device_status().is_ok(), "it was cancelled");
    // Nothing pending; then gone.
    volume.cancel_deactivate().unwrap();
    again().unwrap();
    assert_eq!(volume.deactivate_deferred().unwrap(), Removal::Removed);
    assert_eq!(volume.cancel_deactivate().unwrap_err().errno(), Some(Errno::ENXIO));
    again().unwrap();
    // While it goes: whoever wins, the volume is there in the end.
    for _ in 0..10 {
        let open = File::open(volume.path()).unwrap();
        assert_eq!(volume.deactivate_deferred().unwrap(), Removal::Deferred);
        let closer = std::thread::spawn(move || drop(open));
        let volume = again().unwrap();
        closer.join().unwrap();
        assert!(volume.device_status().unwrap().has_live_table());
    }
    // The name of another volume, or of something else, is not taken over.
    let error = rig.pool().reactivate(
        &name("v1"),
        &uuid("v2"),
        id(2),
        SIZE.sectors(),
        &ActivateOptions::new(),
        patience,
    );
    assert!(error.as_ref().is_err_and(Error::is_busy), "{error:?}");
}

#[test]
fn discard_all_unmaps_and_punches_the_loop_file() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    let before = rig.data.allocated();
    let volume = rig.volume(1, Bytes::mib(32));
    write(&volume.path(), 0, 512, 0x55).unwrap();
    let full = rig.data.allocated();
    assert!(full.0 >= before.0 + (32 << 20), "{before} -> {full}");
    volume.discard_all().unwrap();
    assert_eq!(volume.status().unwrap(), ThinStatus::Mapped { mapped: Sectors(0), highest: None });
    assert!(holds(&volume.path(), 0, 512, 0));
    assert_eq!(rig.usage().used_data, Blocks(0));
    let discarded = rig.data.allocated();
    println!("loop file: {before}, written {full}, discarded {discarded}");
    assert!(discarded.0 <= before.0 + (1 << 20), "{discarded}");
    // A deleted volume gives its blocks back to the pool, not to the file: discard it before.
    write(&volume.path(), 0, 512, 0x55).unwrap();
    volume.deactivate().unwrap();
    rig.pool().delete(id(1)).unwrap();
    assert_eq!(rig.usage().used_data, Blocks(0));
    println!("loop file: deleted without a discard {}", rig.data.allocated());
}

#[test]
fn discard_all_zeroes_the_partial_last_block() {
    let bench = Bench::new();
    let rig = Rig::new(&bench, Bytes::mib(64), PoolFeatures::default());
    // Two blocks, and 4 KiB of a third.
    let size = Bytes::kib(2 * 64 + 4);
    let volume = rig.volume(1, size);
    std::fs::write(volume.path(), vec![7; size.0 as usize]).unwrap();
    File::open(volume.path()).unwrap().sync_all().unwrap();
    volume.discard_all().unwrap();
    crate::rig::drop_caches();
    assert_eq!(std::fs::read(volume.path()).unwrap(), vec![0; size.0 as usize]);
}

#[test]
fn a_pool_that_ignores_discards_says_so() {
    let bench = Bench::new();
    let features = PoolFeatures { discards: Discards::Ignore, ..Default::default() };
    let rig = Rig::new(&bench, Bytes::mib(64), features);
    let volume = rig.volume(1, SIZE);
    let error = volume.discard_all().unwrap_err();
    assert_eq!(
        error.to_string(),
        "BLKDISCARD on dm-thin-v1: EOPNOTSUPP: Operation not supported on transport endpoint"
    );
}
