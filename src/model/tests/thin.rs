//! Thin pools and thin volumes.

use super::*;
use crate::dm::TableKind;
use crate::model::Mode;

impl Machine {
    fn thin(&self, device: &str, id: u32) -> Result<()> {
        self.activate(device, "thin", &format!("253:0 {id}"), 16 * BLOCK)
    }

    fn ids(&self) -> Vec<u32> {
        self.kernel.thin_devices("pool").unwrap().into_iter().map(|(id, _)| id).collect()
    }
}

#[test]
fn table_grammar() {
    let machine = Machine::with_loops();
    machine.make("pool");
    machine.make("other");
    let load = |parameters: &str| machine.load("pool", "thin-pool", parameters, 256 * BLOCK);
    for wrong in [
        "7:0 7:1 128",
        "7:0 7:0 128 0",
        "7:0 7:1 127 0",
        "7:0 7:1 64 0",
        "7:0 7:1 192 0",
        "7:0 7:1 2097280 0",
        "7:0 7:1 x 0",
        "7:0 7:1 128 x",
        "7:0 7:1 128 -1",
        "7:0 7:1 128 0 1",
        "7:0 7:1 128 0 5 read_only read_only read_only read_only read_only",
        "7:0 7:1 128 0 1 unknown",
        "7:0 7:1 128 0 -1",
    ] {
        assert_eq!(errno(load(wrong)), Errno::EINVAL, "{wrong}");
    }
    assert_eq!(errno(load("7:0 7:9 128 0")), Errno::ENXIO);
    assert_eq!(errno(load("7:0 7:1 128 0 1 read_only")), Errno::EPERM, "not formatted yet");
    load("7:0 7:1 128 0 2 SKIP_block_zeroing error_if_no_space leftover").unwrap();
    // A different string for the same device passes, as in the kernel.
    machine.dm.clear_table(DmId::Name(&name("pool"))).unwrap();
    load("7:0 /dev/loop0 128 0").unwrap();
    machine.dm.clear_table(DmId::Name(&name("pool"))).unwrap();
    assert_eq!(errno(load("7:0 7:1 256 0")), Errno::EINVAL, "formatted with another block size");
    load("7:0 7:1 128 0").unwrap();
    let other = machine.load("other", "thin-pool", "7:0 7:1 128 0", 256 * BLOCK);
    assert_eq!(errno(other), Errno::EBUSY);
    assert_eq!(errno(load("7:1 7:0 128 0")), Errno::EINVAL, "another pool in its place");
    assert_eq!(errno(load("7:0 7:1 128 0 1 ignore_discard")), Errno::EINVAL);
}

#[test]
fn a_pool_larger_than_its_data_device_is_refused_at_resume() {
    let machine = Machine::with_loops();
    machine.make("pool");
    // The first table makes the disk: there it is refused at once.
    let load = || machine.load("pool", "thin-pool", "7:0 7:1 128 0", 257 * BLOCK);
    assert_eq!(errno(load()), Errno::EINVAL);
    machine.load("pool", "zero", "", 8).unwrap();
    load().unwrap();
    assert_eq!(errno(machine.dm.resume(&name("pool"))), Errno::EINVAL);
}

#[test]
fn status_and_table_lines() {
    let machine = Machine::with_pool();
    assert_eq!(machine.status("pool"), "0 10/1024 0/256 - rw discard_passdown queue_if_no_space - 256 ");
    let table = machine.dm.table(DmId::Name(&name("pool")), TableKind::Live).unwrap();
    assert_eq!(table[0].to_string(), "0 32768 thin-pool 7:0 7:1 128 16 0 ");
    machine.message("pool", "create_thin 7").unwrap();
    machine.thin("v", 7).unwrap();
    assert_eq!(machine.status("v"), "0 -");
    machine.kernel.write("v", 3..5).unwrap();
    assert_eq!(machine.status("v"), "256 639");
    let table = machine.dm.table(DmId::Name(&name("v")), TableKind::Live).unwrap();
    assert_eq!(table[0].to_string(), "0 2048 thin 253:0 7");
    let used = machine.dm.dependencies(DmId::Name(&name("pool")), TableKind::Live).unwrap();
    assert_eq!(used.iter().map(ToString::to_string).collect::<Vec<_>>(), ["7:1", "7:0"]);
}

#[test]
fn messages() {
    let machine = Machine::with_pool();
    let message = |text: &str| machine.message("pool", text).map(drop).map_err(|e| e.errno().unwrap());
    assert_eq!(message("create_thin 0"), Ok(()));
    assert_eq!(message("create_thin 0"), Err(Errno::EEXIST));
    assert_eq!(message("CREATE_SNAP 1 0"), Ok(()));
    assert_eq!(message("create_snap 1 0"), Err(Errno::EEXIST));
    assert_eq!(message("create_snap 2 9"), Err(Errno::ENODATA));
    assert_eq!(message("create_thin 16777215"), Ok(()));
    for wrong in [
        "create_thin",
        "create_thin 16777216",
        "create_thin x",
        "create_thin -1",
        "create_thin 5 6",
        "create_snap 5",
        "delete",
        "set_transaction_id 0",
        "set_transaction_id 1 2",
        "set_transaction_id 0 x",
        "reserve_metadata_snap now",
        "release_metadata_snap",
        "nonsense",
    ] {
        assert_eq!(message(wrong), Err(Errno::EINVAL), "{wrong}");
    }
    assert_eq!(message("delete 9"), Err(Errno::ENODATA));
    machine.thin("v", 0).unwrap();
    assert_eq!(message("delete 0"), Err(Errno::EBUSY));
    assert_eq!(message("create_snap 3 0"), Ok(()), "an active origin is not refused");
    machine.dm.remove(&name("v")).unwrap();
    assert_eq!(message("delete 0"), Ok(()));
    assert_eq!(machine.ids(), [1, 3, 16_777_215]);
    assert_eq!(message("set_transaction_id 0 5"), Ok(()));
    assert!(machine.status("pool").starts_with("5 "));
    assert_eq!(message("reserve_metadata_snap"), Ok(()));
    assert_eq!(message("reserve_metadata_snap"), Err(Errno::EBUSY));
    assert!(!machine.status("pool").contains(" - rw"));
    assert_eq!(message("release_metadata_snap"), Ok(()));
    machine.kernel.set_mode("pool", Mode::ReadOnly).unwrap();
    assert_eq!(message("create_thin 77"), Err(Errno::EOPNOTSUPP));
    assert_eq!(message("nonsense"), Err(Errno::EOPNOTSUPP));
}

#[test]
fn activation() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    assert_eq!(errno(machine.thin("missing", 2)), Errno::ENODATA);
    assert!(machine.dm.find(DmId::Name(&name("missing"))).unwrap().is_some(), "still to be removed");
    machine.make("v");
    let load = |parameters: &str| machine.load("v", "thin", parameters, 16 * BLOCK);
    assert_eq!(errno(load("253:0")), Errno::EINVAL);
    assert_eq!(errno(load("253:0 x")), Errno::EINVAL);
    assert_eq!(errno(load("7:0 1")), Errno::EINVAL, "no pool");
    assert_eq!(errno(load("/dev/mapper/nothing 1")), Errno::ENOENT);
    assert_eq!(errno(load("253:0 1 253:0")), Errno::EINVAL);
    machine.dm.suspend(DmId::Name(&name("pool")), DmFlags::empty()).unwrap();
    assert_eq!(errno(load("253:0 1")), Errno::EINVAL, "pool suspended");
    machine.dm.resume(&name("pool")).unwrap();
    load("/dev/mapper/pool 1").unwrap();
    assert_eq!(errno(machine.message("pool", "delete 1")), Errno::EBUSY, "open in the inactive table");
    machine.dm.resume(&name("v")).unwrap();
    assert_eq!(machine.dm.status(DmId::Name(&name("pool"))).unwrap().open_count, 1);
    assert_eq!(errno(machine.dm.remove(&name("pool"))), Errno::EBUSY);
    machine.kernel.set_mode("pool", Mode::Fail).unwrap();
    assert_eq!(errno(load("253:0 1")), Errno::EINVAL);
    assert_eq!((machine.status("pool"), machine.status("v")), ("Fail".into(), "Fail".into()));
}

#[test]
fn an_external_origin() {
    let machine = Machine::with_pool();
    machine.activate("origin", "zero", "", 16 * BLOCK).unwrap();
    machine.message("pool", "create_thin 1").unwrap();
    machine.activate("v", "thin", "253:0 1 /dev/mapper/origin", 16 * BLOCK).unwrap();
    let table = machine.dm.table(DmId::Name(&name("v")), TableKind::Live).unwrap();
    assert_eq!(table[0].text, "253:0 1 253:1");
    assert_eq!(errno(machine.dm.remove(&name("origin"))), Errno::EBUSY);
}

#[test]
fn suspending_a_pool_suspends_its_volumes() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    machine.thin("v", 1).unwrap();
    machine.dm.suspend(DmId::Name(&name("pool")), DmFlags::empty()).unwrap();
    let flags = || machine.dm.status(DmId::Name(&name("v"))).unwrap().flags;
    assert!(flags().contains(DmFlags::INTERNAL_SUSPEND) && !flags().contains(DmFlags::SUSPEND));
    assert_eq!(machine.kernel.write("v", 0..1), Err(Errno::EAGAIN));
    machine.dm.resume(&name("pool")).unwrap();
    assert!(!flags().contains(DmFlags::INTERNAL_SUSPEND));
}

#[test]
fn snapshots_share_blocks_until_written() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    machine.thin("v", 1).unwrap();
    machine.kernel.write("v", 0..10).unwrap();
    machine.message("pool", "create_snap 2 1").unwrap();
    machine.thin("s", 2).unwrap();
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 10), (2, 10)]);
    assert!(machine.status("pool").contains(" 10/256 "));
    machine.kernel.write("s", 0..3).unwrap();
    machine.kernel.write("v", 0..3).unwrap();
    assert!(machine.status("pool").contains(" 13/256 "));
    machine.dm.remove(&name("v")).unwrap();
    machine.message("pool", "delete 1").unwrap();
    assert!(machine.status("pool").contains(" 10/256 "));
}

#[test]
fn low_water_and_exhaustion() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    machine.activate("v", "thin", "253:0 1", 1024 * BLOCK).unwrap();
    let before = machine.event_nr("pool");
    machine.kernel.fill("v", 16).unwrap();
    assert_eq!(machine.event_nr("pool"), before);
    machine.kernel.fill("v", 15).unwrap();
    // Seen in the answer to the very next message.
    assert_eq!(machine.message("pool", "create_thin 2").unwrap(), before + 1);
    machine.kernel.fill("v", 0).unwrap();
    assert_eq!(machine.kernel.mode("pool"), Ok(Mode::Write));
    assert_eq!(machine.kernel.write("v", 1000..1001), Err(Errno::ENOSPC));
    assert_eq!(machine.message("pool", "create_thin 3").unwrap(), before + 2);
    assert!(machine.status("pool").contains(" out_of_data_space "));
    // Space that comes back brings the mode back.
    machine.dm.remove(&name("v")).unwrap();
    assert_eq!(machine.message("pool", "delete 1").unwrap(), before + 3);
    assert_eq!(machine.kernel.mode("pool"), Ok(Mode::Write));
}

#[test]
fn a_failed_commit_is_seen_in_the_event_number_only() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    let before = machine.event_nr("pool");
    machine.kernel.fail_commits("pool", true).unwrap();
    assert_eq!(machine.message("pool", "create_thin 2").unwrap(), before + 1);
    assert_eq!(machine.ids(), [1]);
    assert!(machine.status("pool").contains(" ro discard_passdown queue_if_no_space needs_check "));
    assert_eq!(errno(machine.message("pool", "create_thin 3")), Errno::EOPNOTSUPP);
    // Not even a reload makes it writable, until it is repaired.
    machine.load("pool", "thin-pool", "7:0 7:1 128 16", 256 * BLOCK).unwrap();
    machine.dm.resume(&name("pool")).unwrap();
    assert_eq!(machine.kernel.mode("pool"), Ok(Mode::ReadOnly));
    machine.kernel.fail_commits("pool", false).unwrap();
    machine.kernel.set_needs_check("pool", false).unwrap();
    machine.load("pool", "thin-pool", "7:0 7:1 128 16", 256 * BLOCK).unwrap();
    machine.dm.resume(&name("pool")).unwrap();
    machine.message("pool", "create_thin 3").unwrap();
}

#[test]
fn growth_at_resume() {
    let machine = Machine::with_pool();
    for (file, size, device) in [("metadata", 8 << 20, 0), ("data", 32 << 20, 1)] {
        machine.file(file, size);
        machine.kernel.ioctl(&machine.loops[device], loopdev::LOOP_SET_CAPACITY, Arg::Value(0)).unwrap();
    }
    let reload = |blocks: u64| {
        machine.load("pool", "thin-pool", "7:0 7:1 128 16", blocks * BLOCK).unwrap();
        machine.dm.resume(&name("pool"))
    };
    machine.kernel.set_needs_check("pool", true).unwrap();
    reload(512).unwrap();
    assert!(machine.status("pool").contains(" 10/1024 0/256 "), "silently skipped");
    machine.kernel.set_needs_check("pool", false).unwrap();
    reload(512).unwrap();
    assert!(machine.status("pool").contains(" 10/2048 0/512 "));
    assert_eq!(errno(reload(256)), Errno::EINVAL, "shrinking");
    assert!(machine.dm.status(DmId::Name(&name("pool"))).unwrap().is_suspended());
    reload(512).unwrap();
}

#[test]
fn immutable_target() {
    let machine = Machine::with_pool();
    assert_eq!(errno(machine.load("pool", "zero", "", 8)), Errno::EINVAL);
    machine.message("pool", "create_thin 1").unwrap();
    machine.thin("v", 1).unwrap();
    machine.load("pool", "error", "", 8).unwrap();
    machine.dm.resume(&name("pool")).unwrap();
    assert!(machine.dm.status(DmId::Name(&name("v"))).unwrap().flags.contains(DmFlags::INTERNAL_SUSPEND));
}

#[test]
fn a_power_cut_leaves_what_was_committed() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    machine.thin("v", 1).unwrap();
    machine.kernel.write("v", 0..4).unwrap();
    machine.message("pool", "set_transaction_id 0 3").unwrap();
    machine.kernel.write("v", 4..9).unwrap();
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 9)]);
    let machine = machine.power_cut();
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 4)]);
    assert!(machine.status("pool").starts_with("3 "));

    // A status commits, unless it is told not to; so does removing the pool.
    machine.thin("v", 1).unwrap();
    machine.kernel.write("v", 4..6).unwrap();
    machine.dm.table_status(DmId::Name(&name("pool")), DmFlags::NOFLUSH).unwrap();
    let machine = machine.power_cut();
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 4)]);
    machine.thin("v", 1).unwrap();
    machine.kernel.write("v", 4..6).unwrap();
    machine.status("pool");
    let machine = machine.power_cut();
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 6)]);
    machine.thin("v", 1).unwrap();
    machine.kernel.write("v", 6..7).unwrap();
    machine.dm.remove(&name("v")).unwrap();
    machine.dm.remove(&name("pool")).unwrap();
    let machine = machine.power_cut();
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 7)]);
}

#[test]
fn a_new_metadata_file_is_a_new_pool() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    std::fs::remove_file(machine.directory.path().join("metadata")).unwrap();
    let machine = machine.power_cut();
    assert!(machine.ids().is_empty());
}

#[test]
fn metadata_of_another_format_is_refused() {
    let mut machine = Machine::bare();
    std::fs::write(machine.directory.path().join("metadata"), vec![b'x'; 4096]).unwrap();
    machine.attach("metadata", 4 << 20);
    machine.attach("data", 16 << 20);
    machine.make("pool");
    let result = machine.load("pool", "thin-pool", "7:0 7:1 128 16", 256 * BLOCK);
    assert_eq!(errno(result), Errno::EILSEQ);
}
