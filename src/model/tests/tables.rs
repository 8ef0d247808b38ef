//! Loading tables from bytes, and what is said about them.

use super::*;
use crate::abi::dm::dm_target_spec;
use crate::dm::TableKind;
use crate::kernel::DeviceNumber;

struct Line(u64, u64, &'static str, &'static str);

/// A TABLE_LOAD request, `next` as given by `step` from the true distance.
fn load_request(device: &str, lines: &[Line], step: impl Fn(usize, u32) -> u32) -> Vec<u8> {
    let mut payload = Vec::new();
    for (at, Line(start, length, kind, parameters)) in lines.iter().enumerate() {
        let size = (40 + parameters.len() + 1).next_multiple_of(8);
        let mut spec = dm_target_spec {
            sector_start: *start,
            length: *length,
            status: 0,
            next: step(at, u32::try_from(size).unwrap()),
            target_type: [0; 16],
        };
        spec.target_type[..kind.len()].copy_from_slice(kind.as_bytes());
        let end = payload.len() + size;
        payload.extend(spec.as_bytes());
        payload.extend(parameters.as_bytes());
        payload.resize(end, 0);
    }
    let mut buffer = request(device, 312 + payload.len());
    buffer[312..].copy_from_slice(&payload);
    change(&mut buffer, |header| header.target_count = u32::try_from(lines.len()).unwrap());
    buffer
}

fn true_step(_: usize, size: u32) -> u32 {
    size
}

#[test]
fn next_counts_from_the_current_spec() {
    let machine = Machine::bare();
    machine.make("d");
    let lines = [Line(0, 8, "zero", ""), Line(8, 8, "error", ""), Line(16, 8, "zero", "")];
    let load = |buffer: &mut [u8]| machine.raw(dm::DM_TABLE_LOAD, buffer);
    assert_eq!(load(&mut load_request("d", &lines, true_step)), Ok(0));
    // The other base, TABLE_STATUS's.
    let wrong = |at: usize, size: u32| size * u32::try_from(at + 1).unwrap();
    assert_eq!(load(&mut load_request("d", &lines, wrong)), Err(Errno::EINVAL));
    assert_eq!(load(&mut load_request("d", &lines, |_, size| size - 8)), Err(Errno::EINVAL), "overlap");
    assert_eq!(load(&mut load_request("d", &lines, |_, size| size + 4)), Err(Errno::EINVAL), "unaligned");
    assert_eq!(load(&mut load_request("d", &lines, |_, _| 0)), Err(Errno::EINVAL));
    assert_eq!(load(&mut load_request("d", &lines, |_, _| u32::MAX - 7)), Err(Errno::EINVAL));
}

#[test]
fn bytes_that_are_no_table() {
    let machine = Machine::bare();
    machine.make("d");
    let load = |edit: fn(&mut Vec<u8>)| {
        let mut buffer = load_request("d", &[Line(0, 8, "zero", "")], true_step);
        edit(&mut buffer);
        machine.raw(dm::DM_TABLE_LOAD, &mut buffer)
    };
    assert_eq!(load(|_| {}), Ok(0));
    assert_eq!(load(|buffer| change(buffer, |header| header.target_count = 0)), Err(Errno::EINVAL));
    assert_eq!(load(|buffer| change(buffer, |header| header.target_count = 2)), Err(Errno::EINVAL));
    assert_eq!(load(|buffer| change(buffer, |header| header.target_count = u32::MAX)), Err(Errno::EOVERFLOW));
    assert_eq!(load(|buffer| change(buffer, |header| header.data_start = 304)), Err(Errno::EINVAL));
    assert_eq!(load(|buffer| change(buffer, |header| header.data_start = 316)), Err(Errno::EINVAL));
    assert_eq!(load(|buffer| change(buffer, |header| header.data_start = 320)), Err(Errno::EINVAL));
    assert_eq!(load(|buffer| buffer[352..].fill(b' ')), Err(Errno::EINVAL), "no NUL");
    assert_eq!(load(|buffer| change(buffer, |header| header.data_size = 352)), Err(Errno::EINVAL));
    assert_eq!(load(|buffer| buffer[336] = b'Z'), Err(Errno::EINVAL), "unknown target");
    assert_eq!(load(|buffer| buffer[48] = b'x'), Err(Errno::ENXIO));
}

#[test]
fn targets_adjoin() {
    let machine = Machine::bare();
    machine.make("d");
    let load = |lines: &[Line]| machine.raw(dm::DM_TABLE_LOAD, &mut load_request("d", lines, true_step));
    assert_eq!(load(&[Line(1, 8, "zero", "")]), Err(Errno::EINVAL));
    assert_eq!(load(&[Line(0, 0, "zero", "")]), Err(Errno::EINVAL));
    assert_eq!(load(&[Line(0, 8, "zero", ""), Line(9, 8, "zero", "")]), Err(Errno::EINVAL));
    assert_eq!(load(&[Line(0, 8, "zero", ""), Line(7, 8, "zero", "")]), Err(Errno::EINVAL));
    assert_eq!(load(&[Line(0, u64::MAX, "zero", ""), Line(u64::MAX, 8, "zero", "")]), Err(Errno::EINVAL));
    // "too large device", on 6.1 and 6.12: the bytes would not fit a loff_t.
    assert_eq!(load(&[Line(0, (1 << 54) - 1, "zero", "")]), Ok(0));
    for length in [1 << 54, 1 << 55, 1 << 62] {
        assert_eq!(load(&[Line(0, length, "zero", "")]), Err(Errno::EINVAL));
    }
    assert_eq!(load(&[Line(0, 1 << 53, "zero", ""), Line(1 << 53, 1 << 53, "zero", "")]), Err(Errno::EINVAL));
    assert_eq!(load(&[Line(0, 8, "zero", "argument")]), Err(Errno::EINVAL));
    assert_eq!(load(&[Line(0, 8, "linear", "7:0")]), Err(Errno::EINVAL));
}

#[test]
fn which_device_a_line_means() {
    let mut machine = Machine::bare();
    machine.attach("file", 1 << 20);
    machine.make("d");
    let load = |device: &str| machine.load("d", "linear", &format!("{device} 0"), 8);
    load("7:0").unwrap();
    load("/dev/loop0").unwrap();
    assert_eq!(errno(load("253:0")), Errno::EINVAL, "itself");
    assert_eq!(errno(load("253:9")), Errno::ENXIO);
    assert_eq!(errno(load("7:99")), Errno::ENXIO);
    assert_eq!(errno(load("5000:0")), Errno::EOVERFLOW);
    assert_eq!(errno(load("/dev/nothing")), Errno::ENOENT);
    assert_eq!(errno(load("/dev/mapper/control")), Errno::ENOTBLK);
    let old = Machine::old(47);
    old.make("d");
    assert_eq!(errno(old.load("d", "linear", "/dev/nothing 0", 8)), Errno::ENODEV);
}

#[test]
fn a_status_has_the_other_base() {
    let machine = Machine::bare();
    machine.make("d");
    let lines = [Line(0, 8, "zero", ""), Line(8, 8, "error", ""), Line(16, 8, "zero", "")];
    machine.raw(dm::DM_TABLE_LOAD, &mut load_request("d", &lines, true_step)).unwrap();
    machine.dm.resume(&name("d")).unwrap();
    let mut buffer = request("d", 1024);
    machine.raw(dm::DM_TABLE_STATUS, &mut buffer).unwrap();
    let next: Vec<u32> =
        [0, 48, 96].map(|at| dm_target_spec::read_from_prefix(&buffer[312 + at..]).unwrap().0.next).to_vec();
    assert_eq!(next, [48, 96, 144]);
    assert_eq!(header(&buffer).data_size, 312 + 96 + 41);

    for (size, lines, data_size) in [(312, 0, 305), (312 + 41, 0, 305), (312 + 60, 1, 312 + 41)] {
        let mut buffer = request("d", size);
        machine.raw(dm::DM_TABLE_STATUS, &mut buffer).unwrap();
        assert!(has(&buffer, DmFlags::BUFFER_FULL), "{size}");
        let header = header(&buffer);
        assert_eq!((header.target_count, header.data_size), (3, data_size), "{size}: {lines}");
    }
}

#[test]
fn no_table_is_a_header_only() {
    let machine = Machine::bare();
    machine.make("d");
    for ioctl in [dm::DM_TABLE_STATUS, dm::DM_TABLE_DEPS] {
        let mut buffer = request("d", 512);
        machine.raw(ioctl, &mut buffer).unwrap();
        assert_eq!((header(&buffer).data_size, header(&buffer).target_count), (305, 0));
    }
}

#[test]
fn live_and_inactive() {
    let machine = Machine::with_loops();
    machine.activate("d", "linear", "7:0 8", 8).unwrap();
    machine.load("d", "linear", "/dev/loop1 16", 16).unwrap();
    let id = name("d");
    let line = |kind| machine.dm.table(DmId::Name(&id), kind).unwrap()[0].to_string();
    assert_eq!(line(TableKind::Live), "0 8 linear 7:0 8");
    assert_eq!(line(TableKind::Inactive), "0 16 linear 7:1 16");
    let dependencies = |kind| machine.dm.dependencies(DmId::Name(&id), kind).unwrap();
    assert_eq!(dependencies(TableKind::Live), [DeviceNumber { major: 7, minor: 0 }]);
    assert_eq!(dependencies(TableKind::Inactive), [DeviceNumber { major: 7, minor: 1 }]);
    machine.dm.clear_table(DmId::Name(&id)).unwrap();
    machine.dm.clear_table(DmId::Name(&id)).unwrap();
    assert!(machine.dm.table(DmId::Name(&id), TableKind::Inactive).unwrap().is_empty());
}

#[test]
fn a_read_only_table() {
    let machine = Machine::with_loops();
    machine.make("d");
    let line = TargetSpec {
        start: Sectors(0),
        length: Sectors(8),
        target_type: target("linear"),
        parameters: &"7:0 0",
    };
    machine.dm.load_table(DmId::Name(&name("d")), &[line], DmFlags::READONLY).unwrap();
    machine.dm.resume(&name("d")).unwrap();
    assert!(machine.dm.status(DmId::Name(&name("d"))).unwrap().flags.contains(DmFlags::READONLY));
    let line = TargetSpec { target_type: target("thin-pool"), parameters: &"7:0 7:1 128 0", ..line };
    let result = machine.dm.load_table(DmId::Name(&name("d")), &[line], DmFlags::READONLY);
    assert_eq!(errno(result), Errno::EINVAL);
}

#[test]
fn target_types() {
    let machine = Machine::bare();
    let names: Vec<_> = machine.dm.target_versions().unwrap().iter().map(|v| v.target_type).collect();
    assert_eq!(names, ["thin", "thin-pool", "zero", "linear", "error"].map(target));
    assert_eq!(machine.dm.target_version(target("thin")).unwrap().version.minor, 23);
    assert!(machine.dm.target_version(target("crypt")).is_err());
    let mut buffer = request("", 330);
    machine.raw(dm::DM_LIST_VERSIONS, &mut buffer).unwrap();
    assert!(has(&buffer, DmFlags::BUFFER_FULL));
}

#[test]
fn messages_read_strictly() {
    let machine = Machine::with_pool();
    machine.make("empty");
    let message = |device: &str, edit: fn(&mut Vec<u8>)| {
        let mut buffer = request(device, 400);
        buffer[320..334].copy_from_slice(b"create_thin 1\0");
        edit(&mut buffer);
        machine.raw(dm::DM_TARGET_MSG, &mut buffer)
    };
    assert_eq!(message("pool", |_| {}), Ok(0));
    assert_eq!(message("pool", |_| {}), Err(Errno::EEXIST));
    assert_eq!(message("pool", |buffer| buffer[320..].fill(b'x')), Err(Errno::EINVAL), "no NUL");
    assert_eq!(message("pool", |buffer| buffer[320..].fill(0)), Err(Errno::EINVAL), "no word");
    assert_eq!(message("pool", |buffer| buffer[312] = 0xff), Err(Errno::EEXIST), "sector inside");
    assert_eq!(message("pool", |buffer| buffer[315] = 1), Err(Errno::EINVAL), "sector outside");
    assert_eq!(message("pool", |buffer| change(buffer, |header| header.data_start = 8)), Err(Errno::EINVAL));
    assert_eq!(message("x", |_| {}), Err(Errno::ENXIO));
    // dm-ioctl.c: `r` still holds message_for_md's 2 when there is no live table.
    assert_eq!(message("empty", |_| {}), Err(Errno::EINVAL));
    assert_eq!(message("pool", |buffer| buffer[320] = b'@'), Err(Errno::EINVAL));
    let answer = machine.dm.message_with_answer(DmId::Name(&name("pool")), Sectors(0), &"@stats_list", 64);
    assert_eq!(answer.unwrap().as_deref(), Some(""));
    // A list of nothing writes nothing: the answer is what the request had there, its sector.
    let answer = machine.dm.message_with_answer(DmId::Name(&name("pool")), Sectors(0x41), &"@stats_list", 64);
    assert_eq!(answer.unwrap().as_deref(), Some("A"));
}
