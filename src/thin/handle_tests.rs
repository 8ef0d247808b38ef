//! Handles on the model whose devices change under them: removed, renamed, replaced, used by several at once.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use super::*;
use crate::dm;
use crate::dm::targets::{Target, Zero};
use crate::dm::{DeviceMapper, DmFlags, DmName, DmUuid, UdevPolicy};
use crate::kernel::{DeviceNumber, Kernel};
use crate::model::ModelKernel;
use crate::thin::{Error, Result};
use crate::units::{Blocks, Bytes, Sectors};

const SIZE: Sectors = Bytes::mib(1).sectors();

fn name(text: &str) -> DmName {
    DmName::new(text).unwrap()
}

fn uuid(text: &str) -> DmUuid {
    DmUuid::new(&format!("TEST-{text}")).unwrap()
}

fn id(id: u32) -> ThinId {
    ThinId::new(id).unwrap()
}

struct Machine {
    kernel: Arc<ModelKernel>,
    dm: Arc<DeviceMapper>,
}

impl Machine {
    fn new() -> Self {
        let kernel = Arc::new(ModelKernel::new());
        let dm = Arc::new(DeviceMapper::with_kernel(kernel.clone(), UdevPolicy::None).unwrap());
        Self { kernel, dm }
    }

    /// A table over two disks of its own.
    fn table(&self, disks: u32) -> PoolTable {
        let [metadata, data] = [0, 1].map(|minor| DeviceNumber { major: 8, minor: 16 * disks + minor });
        for number in [metadata, data] {
            let path = format!("/dev/disk-{number}");
            self.kernel.set_disk(Path::new(&path), number, Bytes::mib(64).sectors()).unwrap();
        }
        let (low_water_mark, features) = (Blocks(0), PoolFeatures::default());
        PoolTable { metadata, data, block_size: BLOCK_SIZE_MIN, low_water_mark, features }
    }

    fn pool(&self, called: &str, known: &str, disks: u32) -> ThinPool {
        let size = Bytes::mib(64).sectors();
        ThinPool::create(self.dm.clone(), &name(called), &uuid(known), &self.table(disks), size).unwrap()
    }

    /// As dmsetup makes it.
    fn pool_without_uuid(&self, called: &str, disks: u32) -> ThinPool {
        let line = crate::dm::TargetSpec {
            start: Sectors(0),
            length: Bytes::mib(64).sectors(),
            target_type: crate::dm::TargetType::THIN_POOL,
            parameters: &self.table(disks),
        };
        self.dm.create(&name(called), None).unwrap();
        self.dm.load_table(&name(called), &[line], DmFlags::empty()).unwrap();
        self.dm.resume(&name(called)).unwrap();
        ThinPool::open(self.dm.clone(), &name(called)).unwrap()
    }

    fn volume(&self, pool: &ThinPool, what: &str, number: u32) -> ThinVolume {
        pool.create_thin(id(number)).unwrap();
        pool.activate(&name(what), &uuid(what), id(number), SIZE).unwrap()
    }
}

#[test]
fn discard_all_refuses_a_device_that_took_over_the_number() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    let old = machine.volume(&pool, "old", 1);
    old.clone().deactivate().unwrap();
    let other = machine.volume(&pool, "other", 2);
    assert_eq!(other.number(), old.number());
    machine.kernel.write("other", 0..4).unwrap();
    assert!(old.discard_all().is_err());
    // Nor where the old name leads to it.
    machine.kernel.make_node(&old.path(), other.number()).unwrap();
    assert!(old.discard_all().unwrap_err().is_not_found());
    assert!(matches!(other.status().unwrap(), ThinStatus::Mapped { mapped: Sectors(512), .. }));
    assert!(old.deactivate().unwrap_err().is_not_found());
    assert!(other.device_status().is_ok());
    // Nor does the handle of a volume that is there discard what its node leads to.
    machine.kernel.remove_node(&other.path()).unwrap();
    machine.kernel.make_node(&other.path(), pool.number()).unwrap();
    assert!(
        matches!(other.discard_all(), Err(Error::Dm(dm::Error::Replaced { found, .. })) if found == pool.number())
    );
    machine.kernel.remove_node(&other.path()).unwrap();
    assert!(other.discard_all().unwrap_err().is_not_found(), "no node is made");
    assert_eq!(machine.kernel.block_device(&other.path()), Err(Errno::ENOENT));
    machine.dm.ensure_node(other.name(), other.number()).unwrap();
    other.discard_all().unwrap();
}

#[test]
fn a_stale_pool_handle_sends_nothing_to_its_successor() {
    let machine = Machine::new();
    let old = machine.pool("pool", "one", 1);
    old.create_thin(id(7)).unwrap();
    ThinPool::open(machine.dm.clone(), &name("pool")).unwrap().deactivate().unwrap();
    let new = machine.pool("pool", "two", 2);
    assert_eq!(new.number(), old.number());
    new.create_thin(id(7)).unwrap();
    for refused in [
        old.create_thin(id(8)),
        old.delete(id(7)),
        old.set_low_water_mark(Blocks(5)),
        old.status().map(drop),
        old.activate(&name("v"), &uuid("v"), id(7), SIZE).map(drop),
        old.deactivate(),
    ] {
        assert!(refused.as_ref().is_err_and(Error::is_not_found), "{refused:?}");
    }
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(7, 0)]);
    assert_eq!(new.table().unwrap().0.low_water_mark, Blocks(0));
    assert_eq!(machine.dm.list().unwrap().len(), 1);
    let volume = new.activate(&name("v"), &uuid("v"), id(7), SIZE).unwrap();
    assert!(old.active_volume(&name("v")).is_err());
    volume.deactivate().unwrap();
}

#[test]
fn a_pool_is_found_by_its_uuid_under_another_name() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    machine.dm.rename(&name("pool"), &name("moved")).unwrap();
    pool.create_thin(id(1)).unwrap();
    let error = pool.create_thin(id(1)).unwrap_err();
    assert!(error.is_exists() && error.to_string().contains("on pool "), "{error}");
    pool.deactivate().unwrap();
    assert!(machine.kernel.is_clean(), "{:?}", machine.kernel.leftovers());
}

#[test]
fn a_pool_without_a_uuid_is_known_by_its_number() {
    let machine = Machine::new();
    let dm = &machine.dm;
    machine.pool_without_uuid("first", 1);
    let pool = machine.pool_without_uuid("pool", 2);
    pool.create_thin(id(1)).unwrap();
    dm.remove(&name("pool")).unwrap();
    dm.remove(&name("first")).unwrap();
    machine.pool_without_uuid("pool", 3);
    assert!(matches!(pool.create_thin(id(1)), Err(Error::Dm(dm::Error::Replaced { .. }))));
    assert!(pool.deactivate().unwrap_err().is_not_found());
    assert!(dm.find(&name("pool")).unwrap().is_some());
}

#[test]
fn a_volume_is_resumed_when_its_last_suspension_ends() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    let volume = machine.volume(&pool, "v", 1);
    let again = pool.active_volume(&name("v")).unwrap();
    let (one, two) = (volume.suspend().unwrap(), again.suspend().unwrap());
    one.resume().unwrap();
    assert!(volume.device_status().unwrap().is_suspended());
    pool.create_snap(id(2), &Origin::Suspended(&two)).unwrap();
    assert!(volume.grow(Bytes::mib(2).sectors()).unwrap_err().is_busy());
    drop(two);
    assert!(!volume.device_status().unwrap().is_suspended());
    volume.grow(Bytes::mib(2).sectors()).unwrap();
}

#[test]
fn a_suspended_volume_of_another_pool_is_no_origin() {
    let machine = Machine::new();
    let (pool, other) = (machine.pool("pool", "pool", 1), machine.pool("other", "other", 2));
    let volume = machine.volume(&pool, "v", 1);
    other.create_thin(id(1)).unwrap();
    let suspended = volume.suspend().unwrap();
    let error = other.create_snap(id(2), &Origin::Suspended(&suspended)).unwrap_err();
    assert_eq!(error.to_string(), "origin: v: is a volume of another pool");
    pool.create_snap(id(2), &Origin::Suspended(&suspended)).unwrap();
    suspended.resume().unwrap();
}

#[test]
fn a_volume_renamed_while_suspended_is_resumed() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    let volume = machine.volume(&pool, "v", 1);
    let suspended = volume.suspend().unwrap();
    machine.dm.rename(&name("v"), &name("moved")).unwrap();
    let line = Zero.over(Sectors(0), Sectors(8));
    machine.dm.create_active(&name("v"), &uuid("stranger"), &[line], DmFlags::empty()).unwrap();
    machine.dm.suspend(&name("v"), DmFlags::empty()).unwrap();
    suspended.resume().unwrap();
    assert!(!machine.dm.status(&name("moved")).unwrap().is_suspended());
    assert!(machine.dm.status(&name("v")).unwrap().is_suspended());
}

#[test]
fn rename_goes_by_uuid_and_costs_one_ioctl() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    let mut volume = machine.volume(&pool, "v", 1);
    let mut again = volume.clone();
    machine.kernel.clear_log();
    volume.rename(&name("first")).unwrap();
    let log = machine.kernel.log();
    let ioctls: Vec<_> = log.iter().map(|call| call.name).filter(|call| call.starts_with("DM_")).collect();
    assert_eq!(ioctls, ["DM_DEV_RENAME"]);
    // Another device has the name that the other handle knows.
    let line = Zero.over(Sectors(0), Sectors(8));
    machine.dm.create_active(&name("v"), &uuid("stranger"), &[line], DmFlags::empty()).unwrap();
    again.rename(&name("second")).unwrap();
    assert_eq!(machine.dm.status(&uuid("v")).unwrap().name, name("second"));
    assert_eq!(machine.dm.status(&uuid("stranger")).unwrap().name, name("v"));
    assert_eq!(machine.kernel.block_device(&again.path()), Ok(again.number()));
    volume.deactivate().unwrap();
    assert!(again.rename(&name("third")).unwrap_err().is_not_found());
}

#[test]
fn concurrent_pool_changes_are_not_lost() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    let again = ThinPool::open(machine.dm.clone(), &name("pool")).unwrap();
    for round in 0..100 {
        let no_space = if round % 2 == 0 { NoSpace::Error } else { NoSpace::Queue };
        thread::scope(|scope| {
            scope.spawn(|| pool.set_low_water_mark(Blocks(round)).unwrap());
            scope.spawn(|| again.set_no_space(no_space).unwrap());
        });
        let (table, _) = pool.table().unwrap();
        assert_eq!((table.low_water_mark, table.features.no_space), (Blocks(round), no_space));
    }
}

#[test]
fn a_failed_reload_leaves_no_inactive_table() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    machine.kernel.clear_log();
    // The table is read and loaded; the resume fails before it took effect.
    machine.kernel.fail_at(3, Errno::EIO);
    assert_eq!(pool.set_low_water_mark(Blocks(9)).unwrap_err().errno(), Some(Errno::EIO));
    assert!(
        machine.kernel.log().iter().all(|call| call.name != "DM_TABLE_CLEAR"),
        "{:?}",
        machine.kernel.log()
    );
    let status = machine.dm.status(&name("pool")).unwrap();
    assert!(!status.flags.intersects(DmFlags::INACTIVE_PRESENT | DmFlags::SUSPEND), "{status:?}");
    assert_eq!(pool.table().unwrap().0.low_water_mark, Blocks(0));
}

#[test]
fn a_pool_without_a_whole_block_is_refused() {
    let machine = Machine::new();
    for size in [Sectors(0), Sectors(127)] {
        let pool =
            ThinPool::create(machine.dm.clone(), &name("pool"), &uuid("pool"), &machine.table(1), size);
        assert!(matches!(pool, Err(Error::InvalidOption { option: "data size", .. })), "{pool:?}");
    }
    assert!(machine.kernel.is_clean());
}

#[test]
fn creating_a_pool_names_the_missing_module() {
    let machine = Machine::new();
    machine.kernel.refuse(crate::abi::dm::DM_TABLE_LOAD, Errno::EINVAL);
    machine.kernel.refuse(crate::abi::dm::DM_GET_TARGET_VERSION, Errno::EINVAL);
    let (table, size) = (machine.table(1), Bytes::mib(64).sectors());
    let error = ThinPool::create(machine.dm.clone(), &name("pool"), &uuid("pool"), &table, size).unwrap_err();
    let text = "the kernel has no device-mapper target thin-pool; load the module dm-thin-pool";
    assert_eq!(error.to_string(), text);
    assert!(machine.kernel.is_clean());
}

#[test]
fn concurrent_reactivations_of_a_volume_all_succeed() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    pool.create_thin(id(1)).unwrap();
    let reactivate = || -> Result<ThinVolume> {
        let options = ActivateOptions::new();
        pool.reactivate(&name("v"), &uuid("v"), id(1), SIZE, &options, Duration::from_secs(10))
    };
    for _ in 0..100 {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let volume = reactivate().unwrap();
                    assert_eq!(machine.kernel.block_device(&volume.path()), Ok(volume.number()));
                });
            }
        });
        reactivate().unwrap().deactivate().unwrap();
    }
    // One without a table is waited for, as long as there is patience.
    machine.dm.create(&name("v"), Some(&uuid("v"))).unwrap();
    let volume = thread::scope(|scope| {
        let waiting = scope.spawn(reactivate);
        thread::sleep(Duration::from_millis(20));
        machine.dm.remove(&name("v")).unwrap();
        waiting.join().unwrap()
    });
    assert_eq!(volume.unwrap().id(), id(1));
}

/// A pool whose guard wants what the low water mark is, and a volume to fill it with.
fn guarded(machine: &Machine) -> ThinPool {
    let pool = machine.pool("pool", "pool", 1);
    pool.set_low_water_mark(Blocks(100)).unwrap();
    pool.create_thin(id(1)).unwrap();
    pool.activate(&name("v"), &uuid("v"), id(1), Bytes::mib(64).sectors()).unwrap();
    // Only events, and what this process knows, make it look.
    let (free, max_age) = (MinFree::Bytes(Bytes::kib(64 * 100)), Duration::from_secs(3600));
    let guard = SpaceGuard::new().data(free).max_age(max_age);
    pool.with_guard(guard).unwrap()
}

#[test]
fn a_guard_notices_that_another_handle_lowered_the_low_water_mark() {
    let machine = Machine::new();
    let pool = guarded(&machine);
    pool.create_thin(id(2)).unwrap();
    let other = ThinPool::open(machine.dm.clone(), &name("pool")).unwrap();
    other.set_low_water_mark(Blocks(1)).unwrap();
    machine.kernel.fill("v", 50).unwrap();
    assert!(pool.create_thin(id(3)).unwrap_err().is_out_of_space());
}

#[test]
fn a_full_pool_refuses_to_suspend_for_a_snapshot() {
    for guard in [SpaceGuard::new(), SpaceGuard::new().data(MinFree::Bytes(Bytes::kib(64)))] {
        let machine = Machine::new();
        let pool = guarded(&machine).with_guard(guard.max_age(Duration::ZERO)).unwrap();
        pool.check_suspend().unwrap();
        // Nothing that this handle is told says so.
        machine.kernel.fill("v", 0).unwrap();
        machine.kernel.set_mode("pool", crate::model::Mode::OutOfDataSpace).unwrap();
        let error = pool.check_suspend().unwrap_err();
        assert!(matches!(error, Error::PoolMode { mode: PoolMode::OutOfDataSpace, .. }), "{error}");
        pool.active_volume(&name("v")).unwrap().discard_all().unwrap();
        machine.kernel.commit();
        pool.check_suspend().unwrap();
    }
}

#[test]
fn a_message_that_reveals_low_space_is_undone() {
    let machine = Machine::new();
    let pool = guarded(&machine);
    pool.create_thin(id(2)).unwrap();
    machine.kernel.fill("v", 50).unwrap();
    assert!(pool.create_thin(id(3)).unwrap_err().is_out_of_space());
    assert!(pool.create_snap(id(4), &Origin::Inactive(id(2))).unwrap_err().is_out_of_space());
    let ids: Vec<_> = machine.kernel.thin_devices("pool").unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn the_guard_costs_no_ioctl_without_events() {
    let machine = Machine::new();
    let pool = guarded(&machine);
    machine.kernel.clear_log();
    (2..50).for_each(|number| pool.create_thin(id(number)).unwrap());
    let statuses = machine.kernel.log().iter().filter(|call| call.name != "DM_TARGET_MSG").count();
    assert!(statuses < 48, "{statuses}");
    // Nor after a reload of its own. (Other tests' reloads make it look, too, but not each time.)
    let costs = |first: u32| {
        pool.set_low_water_mark(Blocks(first.into())).unwrap();
        machine.kernel.clear_log();
        (first..first + 10).for_each(|number| pool.create_thin(id(number)).unwrap());
        machine.kernel.log().iter().filter(|call| call.name != "DM_TARGET_MSG").count()
    };
    assert!((1..100).any(|round| costs(100 + round * 10) == 0));
}

#[test]
fn discard_all_zeroes_a_partial_last_block() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    pool.create_thin(id(1)).unwrap();
    // Two blocks and a part of a third.
    let volume = pool.activate(&name("v"), &uuid("v"), id(1), Sectors(2 * 128 + 8)).unwrap();
    let zeroed = || machine.kernel.log().iter().filter(|call| call.name == "BLKZEROOUT").count();
    machine.kernel.clear_log();
    machine.kernel.write("v", 0..2).unwrap();
    volume.discard_all().unwrap();
    assert_eq!(volume.status().unwrap(), ThinStatus::Mapped { mapped: Sectors(0), highest: None });
    assert_eq!(zeroed(), 0, "nothing is mapped to be zeroed");
    machine.kernel.write("v", 0..3).unwrap();
    volume.discard_all().unwrap();
    assert!(matches!(volume.status().unwrap(), ThinStatus::Mapped { mapped: Sectors(128), .. }));
    assert_eq!(zeroed(), 1);
}

#[test]
fn the_watcher_reports_a_recreated_pool() {
    let machine = Machine::new();
    let pool = machine.pool("pool", "pool", 1);
    let mut watcher = pool.watch().unwrap();
    while watcher.next_within(Duration::ZERO).unwrap().is_some() {}
    pool.deactivate().unwrap();
    let again = machine.pool("pool", "pool", 1);
    assert_eq!(again.number(), pool.number());
    assert_eq!(watcher.next_within(Duration::ZERO).unwrap(), Some(PoolEvent::Removed));
}

#[test]
fn a_watch_ends_with_the_pool_and_not_before() {
    // One call fails.
    for call in 1.. {
        let machine = Machine::new();
        let pool = machine.pool("pool", "pool", 1);
        let mut events = pool.watch().unwrap();
        pool.create_thin(id(1)).unwrap();
        machine.kernel.fail_at(call, Errno::EMFILE);
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(events.next_within(Duration::ZERO));
        }
        let struck = machine.kernel.struck();
        assert!(!seen.iter().any(|it| matches!(it, Ok(Some(PoolEvent::Removed)))), "{struck:?}: {seen:?}");
        if struck.is_none() {
            break;
        }
    }
    // A pool of the same name, with or without a uuid.
    for has_uuid in [true, false] {
        let machine = Machine::new();
        let pool = match has_uuid {
            true => machine.pool("pool", "old", 1),
            false => machine.pool_without_uuid("pool", 1),
        };
        let mut events = pool.watch().unwrap();
        while let Some(event) = events.next_within(Duration::ZERO).unwrap() {
            assert_ne!(event, PoolEvent::Removed);
        }
        machine.dm.remove(&name("pool")).unwrap();
        machine.dm.create(&name("taker"), None).unwrap();
        machine.pool("pool", "new", 2);
        assert_eq!(events.next_within(Duration::ZERO).unwrap(), Some(PoolEvent::Removed), "{has_uuid}");
        assert_eq!(events.next_within(Duration::ZERO).unwrap(), None);
    }
}
