//! The commands that a thin pool does not need, each once on a real kernel.

use std::fs::File;
use std::thread;
use std::time::Duration;

use dm_thin::Errno;
use dm_thin::dm::Error;
use dm_thin::dm::targets::{ErrorTarget, Linear, Target, Zero};
use dm_thin::dm::{
    DeviceEvent, DeviceEvents, DeviceMapper, DmFlags, DmId, DmName, DmUuid, EventNr, Geometry, Removal,
    TableKind, TargetSpec, TargetType,
};
use dm_thin::units::Sectors;

use crate::bench::{Bench, dm};

fn name(name: &str) -> DmName {
    DmName::new(name).unwrap()
}

fn uuid(uuid: &str) -> DmUuid {
    DmUuid::new(uuid).unwrap()
}

/// 8 sectors of zeroes.
fn zeroes(dm: &DeviceMapper, name: &DmName) {
    let uuid = DmUuid::format(format_args!("DMTHIN-TEST-{name}")).unwrap();
    dm.create_active(name, &uuid, &[Zero.over(Sectors(0), Sectors(8))], DmFlags::empty()).unwrap();
}

#[test]
fn a_device_without_a_table_has_neither_lines_nor_dependencies() {
    let _bench = Bench::new();
    let (dm, device) = (dm(), name("dm-thin-bare"));
    dm.create(&device, None).unwrap();
    for kind in [TableKind::Live, TableKind::Inactive] {
        assert_eq!(dm.table(&device, kind).unwrap(), []);
        assert_eq!(dm.dependencies(&device, kind).unwrap(), []);
    }
    dm.remove(&device).unwrap();
}

#[test]
fn a_uuid_is_given_once() {
    let _bench = Bench::new();
    let (dm, device) = (dm(), name("dm-thin-uuid"));
    dm.create(&device, None).unwrap();
    dm.set_uuid(&device, &uuid("DMTHIN-TEST-given")).unwrap();
    let again = dm.set_uuid(&device, &uuid("DMTHIN-TEST-other")).unwrap_err();
    assert_eq!(again.errno(), Some(Errno::EINVAL));
    assert_eq!(dm.status(&device).unwrap().uuid, Some(uuid("DMTHIN-TEST-given")));
    let found = dm.list_matching(None, Some(&uuid("DMTHIN-TEST-g"))).unwrap();
    assert_eq!(found.iter().map(|found| found.name).collect::<Vec<_>>(), [device]);
    assert_eq!(found[0].uuid, Some(uuid("DMTHIN-TEST-given")));
    assert_eq!(dm.list_matching(Some(&name("another")), Some(&uuid("DMTHIN-TEST-g"))).unwrap(), []);
    dm.remove(&device).unwrap();
}

#[test]
fn list_returns_names_of_arbitrary_bytes() {
    let _bench = Bench::new();
    let dm = dm();
    let other = name("dm-thin-plain");
    zeroes(&dm, &other);
    let odd = DmName::from_bytes(b"dm-thin-caf\xe9 \x01").unwrap();
    let uuid = DmUuid::from_bytes(b"DMTHIN-TEST-\xff\xfe").unwrap();
    dm.create_active(&odd, &uuid, &[Zero.over(Sectors(0), Sectors(8))], DmFlags::empty()).unwrap();

    let devices = dm.list().unwrap();
    assert!(devices.iter().any(|device| device.name == other));
    let listed = devices.into_iter().find(|device| device.name == odd).unwrap();
    assert_eq!(listed.uuid, Some(uuid));
    // What the kernel told means the same device when it is given back.
    let status = dm.status(&listed.name).unwrap();
    assert_eq!((status.name, status.uuid, status.number), (odd, Some(uuid), listed.number));
    assert_eq!(dm.status(&listed.uuid.unwrap()).unwrap().name, odd);
    assert_eq!(dm.ensure_node(&odd, listed.number).unwrap(), dm.node_path(&odd));
    assert!(dm.node_path(&odd).exists());

    let odder = DmName::from_bytes(b"dm-thin-\xf0\x28").unwrap();
    dm.rename(&odd, &odder).unwrap();
    assert_eq!(dm.status(&odder).unwrap().number, listed.number);
    assert!(dm.find(&odd).unwrap().is_none() && !dm.node_path(&odd).exists());
    for device in [odder, other] {
        dm.remove(&device).unwrap();
    }
}

#[test]
fn tables_of_several_lines_come_back_as_they_were_loaded() {
    let _bench = Bench::new();
    let (dm, below, above) = (dm(), name("dm-thin-below"), name("dm-thin-above"));
    let lines = [Zero.over(Sectors(0), Sectors(2048)), ErrorTarget.over(Sectors(2048), Sectors(8))];
    dm.create(&below, None).unwrap();
    dm.load_table(&below, &lines, DmFlags::SECURE_DATA).unwrap();
    let inactive = dm.table(&below, TableKind::Inactive).unwrap();
    assert_eq!(
        inactive.iter().map(ToString::to_string).collect::<Vec<_>>(),
        lines.map(|line| line.to_string())
    );
    assert_eq!(dm.ima_measurement(&below, TableKind::Inactive).unwrap().len(), 2);
    dm.resume(&below).unwrap();

    let device = dm.status(&below).unwrap().number;
    let linear = Linear { device, start: Sectors(8) };
    let (target_type, parameters) = (TargetType::FLAKEY, format!("{device} 0 1 0 1 drop_writes"));
    let flakey = TargetSpec { start: Sectors(16), length: Sectors(16), target_type, parameters: &parameters };
    let lines = [linear.over(Sectors(0), Sectors(16)), flakey];
    dm.create_active(&above, &uuid("DMTHIN-TEST-above"), &lines, DmFlags::empty()).unwrap();
    let live = dm.table(&above, TableKind::Live).unwrap();
    assert_eq!(live[0].text.parse::<Linear>().unwrap(), linear);
    // dm-flakey of 6.1 ends its line with a space.
    assert_eq!(live[1].text.trim_end(), parameters);
    assert_eq!(dm.dependencies(&above, TableKind::Live).unwrap(), [device]);

    assert!(dm.remove(&below).unwrap_err().is_busy());
    assert_eq!(dm.remove_deferred(&below).unwrap(), Removal::Deferred);
    dm.cancel_deferred_remove(&below).unwrap();
    dm.remove(&above).unwrap();
    dm.remove(&below).unwrap();
}

#[test]
fn a_geometry_within_its_own_span() {
    let _bench = Bench::new();
    let (dm, device) = (dm(), name("dm-thin-geometry"));
    zeroes(&dm, &device);
    let geometry = Geometry { cylinders: 1, heads: 1, sectors: 8, start: Sectors(8) };
    dm.set_geometry(&device, geometry).unwrap();
    let beyond = dm.set_geometry(&device, Geometry { start: Sectors(9), ..geometry });
    assert_eq!(beyond.unwrap_err().errno(), Some(Errno::EINVAL));
    dm.remove(&device).unwrap();
}

#[test]
fn create_snap_returns_the_event_number() {
    let _bench = Bench::new();
    let (dm, device) = (dm(), name("dm-thin-message"));
    zeroes(&dm, &device);
    let ask = |text: &str| dm.message_with_answer((&device).into(), Sectors(0), &text, 100).unwrap();
    assert_eq!(ask("@stats_list").as_deref(), Some(""));
    assert_eq!(ask("@stats_create - /1").as_deref(), Some("0"));
    assert_eq!(ask("@stats_list").as_deref(), Some("0: 0+8 8 - -\n"));
    let secret = dm.message_secure((&device).into(), Sectors(0), &"key set 0123").unwrap_err();
    assert_eq!(secret.errno(), Some(Errno::EINVAL));
    assert!(!secret.to_string().contains("0123"));
    dm.remove(&device).unwrap();
}

#[test]
fn wait_returns_when_the_event_number_changed() {
    let _bench = Bench::new();
    let (dm, device) = (dm(), name("dm-thin-wait"));
    zeroes(&dm, &device);
    let seen = dm.status(&device).unwrap().event_nr;
    // Another: not only a greater one.
    for other in [EventNr(seen.0.wrapping_sub(1)), EventNr(seen.0 + 1)] {
        let (status, lines) = dm.wait((&device).into(), other, DmFlags::empty()).unwrap();
        assert_eq!((status.event_nr, lines.len()), (seen, 1));
    }
    // A rename is an event.
    let renamed = name("dm-thin-waited");
    let number = dm.status(&device).unwrap().number;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| crate::bench::dm().wait(number.into(), seen, DmFlags::empty()));
        thread::sleep(Duration::from_millis(100));
        dm.rename(&device, &renamed).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap().0.event_nr, EventNr(seen.0 + 1));
    });
    dm.remove(&renamed).unwrap();
}

#[test]
fn devices_without_nodes_have_paths() {
    let _bench = Bench::new();
    let (dm, device) = (dm(), name("dm-thin-paths"));
    zeroes(&dm, &device);
    match dm.probe_paths(&device).unwrap_err() {
        Error::TooOld { needed: 50, kernel, .. } => assert!(kernel.minor < 50),
        other => assert_eq!(other.errno(), Some(Errno::ENOTTY), "{other}"),
    }
    dm.remove(&device).unwrap();
}

/// The events of our own devices so far.
fn ours(events: &mut DeviceEvents) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(event) = events.next_within(Duration::ZERO).unwrap() {
        let (sign, device) = match event {
            DeviceEvent::Added(device) => ('+', device),
            DeviceEvent::Changed(device) => ('~', device),
            DeviceEvent::Removed(device) => ('-', device),
        };
        if device.name.as_bytes().starts_with(b"dm-thin-event") {
            told.push(format!("{sign}{}", device.name));
        }
    }
    told
}

#[test]
fn events_of_all_devices() {
    let _bench = Bench::new();
    let (dm, one, two) = (dm(), name("dm-thin-event-1"), name("dm-thin-event-2"));
    let mut events = dm.events().unwrap();
    assert_eq!(ours(&mut events), [""; 0]);
    zeroes(&dm, &one);
    assert_eq!(ours(&mut events), ["+dm-thin-event-1"]);
    dm.rename(&one, &two).unwrap();
    assert_eq!(ours(&mut events), ["~dm-thin-event-2"]);
    // One that waits already when it happens.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            events.by_ref().map(Result::unwrap).find_map(|event| match event {
                DeviceEvent::Removed(device) => Some(device.name),
                _ => None,
            })
        });
        thread::sleep(Duration::from_millis(100));
        dm.remove(&two).unwrap();
        assert_eq!(waiting.join().unwrap(), Some(two));
    });
}

#[test]
fn list_grows_its_buffer() {
    let _bench = Bench::new();
    let dm = dm();
    let mut events = dm.events().unwrap();
    let names: Vec<_> = (0..300).map(|n| name(&format!("dm-thin-event-{n:0100}"))).collect();
    for device in &names {
        dm.create(device, None).unwrap();
    }
    let listed = dm.list().unwrap();
    assert!(names.iter().all(|name| listed.iter().any(|device| device.name == *name)));
    assert_eq!(ours(&mut events).len(), 300);
    for device in &names {
        dm.remove(device).unwrap();
    }
}

/// `tests/vm/run --host` leaves it out.
#[test]
fn remove_all_removes_closed_devices() {
    let _bench = Bench::new();
    let dm = dm();
    assert!(dm.list().unwrap().is_empty(), "there are devices of others, which this would remove");
    let [held, below, above] = ["dm-thin-held", "dm-thin-below", "dm-thin-above"].map(name);
    [&held, &below].into_iter().for_each(|name| zeroes(&dm, name));
    let device = dm.status(DmId::Name(&below)).unwrap().number;
    let linear = Linear { device, start: Sectors(0) };
    let line = linear.over(Sectors(0), Sectors(8));
    dm.create_active(&above, &uuid("DMTHIN-TEST-above"), &[line], DmFlags::empty()).unwrap();
    let open = File::open(dm.node_path(&held)).unwrap();
    let left = dm.remove_all(DmFlags::empty()).unwrap();
    assert_eq!(left.iter().map(|device| device.name).collect::<Vec<_>>(), [held]);
    let left = dm.remove_all(DmFlags::DEFERRED_REMOVE).unwrap();
    assert_eq!(left.len(), 1, "until it is closed");
    drop(open);
    while dm.find(&held).unwrap().is_some() {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(dm.remove(&held).unwrap_err().is_not_found(), "its node goes all the same");
}
