//! Header rules, devices, names, suspend and resume, removal.

use super::*;
use crate::dm::{DmUuid, Removal, TableKind};
use crate::kernel::DeviceNumber;

#[test]
fn versions() {
    let machine = Machine::bare();
    for (version, expected) in [
        ([4, 0, 0], Ok(0)),
        ([4, 48, 9], Ok(0)),
        ([4, 49, 0], Err(Errno::EINVAL)),
        ([3, 0, 0], Err(Errno::EINVAL)),
        ([5, 0, 0], Err(Errno::EINVAL)),
    ] {
        for ioctl in [dm::DM_VERSION, dm::DM_LIST_DEVICES] {
            let mut buffer = request("", 512);
            change(&mut buffer, |header| header.version = version);
            assert_eq!(machine.raw(ioctl, &mut buffer), expected, "{version:?}");
            assert_eq!(header(&buffer).version, [4, 48, 0]);
        }
    }
}

#[test]
fn commands_that_came_later() {
    for (minor, ioctl, known) in [
        (36, dm::DM_DEV_ARM_POLL, false),
        (37, dm::DM_DEV_ARM_POLL, true),
        (40, dm::DM_GET_TARGET_VERSION, false),
        (41, dm::DM_GET_TARGET_VERSION, true),
    ] {
        let machine = Machine::old(minor);
        let result = machine.raw(ioctl, &mut request("thin", 512));
        assert_eq!(result == Err(Errno::ENOTTY), !known, "{}", ioctl.name());
    }
}

#[test]
fn an_error_copies_the_version_back_and_nothing_else() {
    let machine = Machine::bare();
    let mut buffer = request("missing", 400);
    let mut expected = buffer.clone();
    assert_eq!(machine.raw(dm::DM_DEV_STATUS, &mut buffer), Err(Errno::ENXIO));
    change(&mut expected, |header| header.version = [4, 48, 0]);
    assert_eq!(buffer, expected);
}

#[test]
fn data_size() {
    let machine = Machine::bare();
    machine.make("d");
    for (size, expected) in [(304, Err(Errno::EINVAL)), (305, Ok(0)), (312, Ok(0)), (400, Ok(0))] {
        let mut buffer = request("d", 400);
        change(&mut buffer, |header| header.data_size = size);
        assert_eq!(machine.raw(dm::DM_DEV_STATUS, &mut buffer), expected, "{size}");
        if expected.is_ok() {
            assert_eq!((header(&buffer).data_size, header(&buffer).data_start), (305, 312));
        }
    }
    let mut buffer = request("d", 400);
    change(&mut buffer, |header| header.data_size = 401);
    assert_eq!(machine.raw(dm::DM_DEV_STATUS, &mut buffer), Err(Errno::EINVAL));
}

#[test]
fn lookup_is_by_one_of_three() {
    let machine = Machine::bare();
    machine.dm.create(&name("d"), Some(&DmUuid::new("U-1").unwrap())).unwrap();
    let status = |edit: fn(&mut dm_ioctl)| {
        let mut buffer = request("", 312);
        change(&mut buffer, edit);
        machine.raw(dm::DM_DEV_STATUS, &mut buffer).map(|_| {
            let header = header(&buffer);
            assert!(header.name.starts_with(b"d\0") && header.uuid.starts_with(b"U-1\0"));
        })
    };
    assert_eq!(status(|header| header.name[0] = b'd'), Ok(()));
    assert_eq!(status(|header| header.uuid[..3].copy_from_slice(b"U-1")), Ok(()));
    assert_eq!(status(|header| header.dev = 0xfd00), Ok(()));
    assert_eq!(status(|_| {}), Err(Errno::ENXIO));
    assert_eq!(status(|header| header.dev = 0x700), Err(Errno::ENXIO));
    assert_eq!(
        status(|header| {
            header.name[0] = b'd';
            header.uuid[..3].copy_from_slice(b"U-1");
        }),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        status(|header| {
            header.name[0] = b'd';
            header.dev = 0xfd00;
        }),
        Err(Errno::ENXIO)
    );
}

#[test]
fn a_name_without_an_end_is_cut() {
    let machine = Machine::bare();
    let mut buffer = request("", 312);
    change(&mut buffer, |header| {
        header.name = [b'n'; 128];
        header.uuid = [b'u'; 129];
    });
    machine.raw(dm::DM_DEV_CREATE, &mut buffer).unwrap();
    let device = machine.dm.list().unwrap()[0];
    assert_eq!(device.name.to_string(), "n".repeat(127));
    assert_eq!(
        machine.dm.status(DmId::Name(&device.name)).unwrap().uuid.unwrap().to_string(),
        "u".repeat(128)
    );
}

#[test]
fn create() {
    let machine = Machine::bare();
    let uuid = DmUuid::new("U").unwrap();
    let made = machine.dm.create(&name("a"), Some(&uuid)).unwrap();
    assert_eq!(made.number, DeviceNumber { major: 253, minor: 0 });
    assert!(made.flags.is_empty() && made.target_count == 0 && made.open_count == 0);
    assert_eq!(errno(machine.dm.create(&name("a"), None)), Errno::EBUSY);
    assert_eq!(errno(machine.dm.create(&name("b"), Some(&uuid))), Errno::EBUSY);
    assert_eq!(machine.raw(dm::DM_DEV_CREATE, &mut request("", 312)), Err(Errno::EINVAL));
    assert_eq!(machine.raw(dm::DM_DEV_CREATE, &mut request("a/b", 312)), Err(Errno::EINVAL));
    assert_eq!(machine.raw(dm::DM_DEV_CREATE, &mut request("control", 312)), Err(Errno::EINVAL));

    let at = |minor| Some(DeviceNumber { major: 253, minor });
    let made = machine.dm.create_with_number(&name("seven"), None, at(7)).unwrap();
    assert_eq!(Some(made.number), at(7));
    assert_eq!(errno(machine.dm.create_with_number(&name("also"), None, at(7))), Errno::ENXIO);
    assert_eq!(machine.dm.create(&name("b"), None).unwrap().number.minor, 1);
    machine.dm.remove(&name("a")).unwrap();
    assert_eq!(machine.dm.create(&name("c"), None).unwrap().number.minor, 0);
}

#[test]
fn remove_and_deferred_remove() {
    let machine = Machine::bare();
    assert_eq!(errno(machine.dm.remove(&name("d"))), Errno::ENXIO);
    machine.activate("d", "zero", "", 8).unwrap();
    let open = machine.open("/dev/mapper/d");
    assert_eq!(machine.dm.status(DmId::Name(&name("d"))).unwrap().open_count, 1);
    assert_eq!(errno(machine.dm.remove(&name("d"))), Errno::EBUSY);
    assert_eq!(machine.dm.remove_deferred(&name("d")).unwrap(), Removal::Deferred);
    let status = machine.dm.status(DmId::Name(&name("d"))).unwrap();
    assert!(status.flags.contains(DmFlags::DEFERRED_REMOVE));
    machine.dm.cancel_deferred_remove(DmId::Name(&name("d"))).unwrap();
    machine.dm.cancel_deferred_remove(DmId::Name(&name("d"))).unwrap();
    drop(open);
    assert!(machine.dm.find(DmId::Name(&name("d"))).unwrap().is_some());

    let open = machine.open("/dev/mapper/d");
    assert_eq!(machine.dm.remove_deferred(&name("d")).unwrap(), Removal::Deferred);
    drop(open);
    assert!(machine.dm.find(DmId::Name(&name("d"))).unwrap().is_none());
    assert!(machine.kernel.is_clean());
    assert_eq!(errno(machine.dm.cancel_deferred_remove(DmId::Name(&name("d")))), Errno::ENXIO);

    machine.make("e");
    assert_eq!(machine.dm.remove_deferred(&name("e")).unwrap(), Removal::Removed);
}

#[test]
fn remove_all_takes_what_is_closed_and_answers_nothing() {
    let machine = Machine::bare();
    machine.activate("below", "zero", "", 8).unwrap();
    machine.activate("above", "linear", "253:0 0", 8).unwrap();
    machine.activate("held", "zero", "", 8).unwrap();
    let held = machine.open("/dev/mapper/held");
    let mut buffer = request("", 312);
    let before = buffer.clone();
    machine.raw(dm::DM_REMOVE_ALL, &mut buffer).unwrap();
    assert_eq!(buffer[12..], before[12..]);
    let left: Vec<_> = machine.dm.list().unwrap().iter().map(|device| device.name).collect();
    assert_eq!(left, [name("held")]);
    drop(held);
}

#[test]
fn rename() {
    let machine = Machine::bare();
    machine.activate("a", "zero", "", 8).unwrap();
    machine.make("b");
    assert_eq!(errno(machine.dm.rename(&name("a"), &name("b"))), Errno::EBUSY);
    assert_eq!(errno(machine.dm.rename(&name("x"), &name("y"))), Errno::ENXIO);
    let before = machine.event_nr("a");
    machine.dm.rename(&name("a"), &name("c")).unwrap();
    assert_eq!(machine.event_nr("c"), before + 1);
    assert!(machine.kernel.block_device(&machine.node("c")).is_ok());
    assert_eq!(machine.kernel.block_device(&machine.node("a")), Err(Errno::ENOENT));

    let rename = |device: &str, new: &[u8], flags: DmFlags, edit: fn(&mut dm_ioctl)| {
        let mut buffer = request(device, 312 + new.len());
        buffer[312..].copy_from_slice(new);
        change(&mut buffer, |header| header.flags = flags.bits());
        change(&mut buffer, edit);
        machine.raw(dm::DM_DEV_RENAME, &mut buffer)
    };
    let plain = DmFlags::empty();
    assert_eq!(rename("c", b"new", plain, |_| {}), Err(Errno::EINVAL), "no NUL");
    assert_eq!(rename("c", b"\0", plain, |_| {}), Err(Errno::EINVAL), "empty");
    assert_eq!(rename("c", b"a/b\0", plain, |_| {}), Err(Errno::EINVAL));
    assert_eq!(rename("c", &[&[b'n'; 128][..], b"\0"].concat(), plain, |_| {}), Err(Errno::EINVAL));
    assert_eq!(rename("c", b"new\0", plain, |header| header.data_start = 304), Err(Errno::EINVAL));
    assert_eq!(rename("c", b"new\0", plain, |header| header.data_start = 4000), Err(Errno::EINVAL));
    assert_eq!(rename("c", b"U\0", DmFlags::UUID, |_| {}), Ok(0));
    assert_eq!(rename("c", b"V\0", DmFlags::UUID, |_| {}), Err(Errno::EINVAL), "has one");
    assert_eq!(rename("b", b"U\0", DmFlags::UUID, |_| {}), Err(Errno::EBUSY));
}

#[test]
fn suspend_and_resume() {
    let machine = Machine::bare();
    machine.make("d");
    let id = name("d");
    machine.dm.resume(&id).unwrap();
    assert!(machine.dm.suspend(DmId::Name(&id), DmFlags::empty()).unwrap().is_suspended());
    assert_eq!(errno(machine.dm.resume(&id)), Errno::EINVAL, "suspended, and no table");
    machine.load("d", "zero", "", 8).unwrap();
    let status = machine.dm.status(DmId::Name(&id)).unwrap();
    assert!(status.flags.contains(DmFlags::INACTIVE_PRESENT) && !status.has_live_table());
    machine.dm.resume(&id).unwrap();
    let status = machine.dm.status(DmId::Name(&id)).unwrap();
    assert!(!status.flags.contains(DmFlags::INACTIVE_PRESENT) && status.has_live_table());
    assert!(!status.is_suspended() && status.target_count == 1);
    for _ in 0..2 {
        assert!(machine.dm.suspend(DmId::Name(&id), DmFlags::empty()).unwrap().is_suspended());
    }
    assert_eq!(errno(machine.dm.resume(&name("x"))), Errno::ENXIO);
    machine.dm.resume(&id).unwrap();
}

#[test]
fn a_table_that_cannot_be_swapped_in_is_dropped() {
    let mut machine = Machine::bare();
    machine.attach("small", 1 << 20);
    machine.activate("d", "zero", "", 8).unwrap();
    machine.load("d", "linear", "7:0 1", 2048).unwrap();
    assert_eq!(errno(machine.dm.resume(&name("d"))), Errno::EINVAL);
    let status = machine.dm.status(DmId::Name(&name("d"))).unwrap();
    assert!(status.is_suspended() && !status.flags.contains(DmFlags::INACTIVE_PRESENT));
    assert_eq!(
        machine.dm.table(DmId::Name(&name("d")), TableKind::Live).unwrap()[0].target_type,
        target("zero")
    );
    machine.dm.resume(&name("d")).unwrap();
}

#[test]
fn list() {
    let machine = Machine::bare();
    let mut buffer = request("", 400);
    machine.raw(dm::DM_LIST_DEVICES, &mut buffer).unwrap();
    assert_eq!(header(&buffer).data_size, 312, "empty");
    let mut buffer = request("", 312);
    machine.raw(dm::DM_LIST_DEVICES, &mut buffer).unwrap();
    assert!(has(&buffer, DmFlags::BUFFER_FULL), "no room to say none");

    machine.dm.create(&name("zz"), Some(&DmUuid::new("U").unwrap())).unwrap();
    machine.make("a");
    let names: Vec<_> = machine.dm.list().unwrap().iter().map(|device| device.name).collect();
    assert_eq!(names, [name("a"), name("zz")], "in order of name");

    let mut buffer = request("", 512);
    change(&mut buffer, |header| header.flags = DmFlags::UUID.bits());
    machine.raw(dm::DM_LIST_DEVICES, &mut buffer).unwrap();
    let size = header(&buffer).data_size as usize;
    let mut expected = Vec::new();
    expected.extend(0xfd01u64.to_ne_bytes());
    expected.extend(24u32.to_ne_bytes());
    expected.extend(b"a\0\0\0");
    expected.extend(0u32.to_ne_bytes());
    expected.extend(2u32.to_ne_bytes());
    expected.extend(0xfd00u64.to_ne_bytes());
    expected.extend(0u32.to_ne_bytes());
    expected.extend(b"zz\0\0");
    expected.extend(0u32.to_ne_bytes());
    expected.extend(1u32.to_ne_bytes());
    expected.extend(b"U\0\0\0\0\0\0\0");
    assert_eq!(buffer[312..size], expected);
    let mut short = request("", size - 1);
    change(&mut short, |header| header.flags = DmFlags::UUID.bits());
    machine.raw(dm::DM_LIST_DEVICES, &mut short).unwrap();
    assert!(has(&short, DmFlags::BUFFER_FULL) && header(&short).data_size == 305);
}

#[test]
fn geometry() {
    let machine = Machine::bare();
    machine.make("d");
    for (text, expected) in [
        ("1 2 3 4", Ok(0)),
        ("1 2 3 7", Err(Errno::EINVAL)),
        ("1 256 3 4", Err(Errno::EINVAL)),
        ("1 2 3", Err(Errno::EINVAL)),
        ("1 2 3 4 5", Err(Errno::EINVAL)),
        ("a 2 3 4", Err(Errno::EINVAL)),
    ] {
        let mut buffer = request("d", 400);
        buffer[312..312 + text.len()].copy_from_slice(text.as_bytes());
        assert_eq!(machine.raw(dm::DM_DEV_SET_GEOMETRY, &mut buffer), expected, "{text}");
    }
}

#[test]
fn secure_data_is_wiped() {
    let machine = Machine::bare();
    machine.make("d");
    let mut buffer = request("d", 400);
    buffer[312..].fill(b'x');
    change(&mut buffer, |header| header.flags = DmFlags::SECURE_DATA.bits());
    machine.raw(dm::DM_TABLE_DEPS, &mut buffer).unwrap();
    assert!(buffer[312..].iter().all(|&byte| byte == 0));
    assert!(!has(&buffer, DmFlags::SECURE_DATA) && buffer[48] == b'd');
}

#[test]
fn poll_tells_events_until_it_is_armed_again() {
    let machine = Machine::bare();
    let control = machine.open("/dev/mapper/control");
    // Reading is as good as polling, as long as each event is read once.
    let readable = |file: &DeviceFile| nix::unistd::read(file, &mut [0]) == Ok(1);
    assert!(!readable(&control));
    machine.make("d");
    let mut buffer = request("", 312);
    machine.kernel.ioctl(&control, dm::DM_DEV_ARM_POLL, Arg::Bytes(&mut buffer)).unwrap();
    assert!(!readable(&control));
    machine.activate("e", "zero", "", 8).unwrap();
    machine.kernel.ioctl(&control, dm::DM_DEV_ARM_POLL, Arg::Bytes(&mut buffer)).unwrap();
    machine.kernel.event("e").unwrap();
    assert!(readable(&control));
}

#[test]
fn wait_returns_at_the_next_event() {
    let machine = Machine::bare();
    machine.activate("d", "zero", "", 8).unwrap();
    let waits = |event_nr| {
        let mut buffer = request("d", 512);
        change(&mut buffer, |header| header.event_nr = event_nr);
        machine.raw(dm::DM_DEV_WAIT, &mut buffer).map(|_| header(&buffer).event_nr)
    };
    assert_eq!(waits(7), Ok(0), "any other number returns at once");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| waits(0));
        std::thread::sleep(std::time::Duration::from_millis(50));
        machine.kernel.event("d").unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(1));
    });
    assert_eq!(waits(1), Err(Errno::EINTR));
}
