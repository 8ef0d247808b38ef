//! Answers.

use std::fmt::Write;

use proptest::prelude::*;

use super::super::*;
use crate::dm::Error;
use crate::dm::{DmName, DmUuid, TargetLine, TargetType};
use crate::kernel::DeviceNumber;
use crate::units::Sectors;

/// An answer of interface 4.`minor` with that payload.
fn answer(minor: u32, target_count: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = 312 + u32::try_from(payload.len()).unwrap();
    for word in [4, minor, 0, size, 312, target_count, 1, flags, 5, 0] {
        bytes.extend(u32::to_ne_bytes(word));
    }
    bytes.extend(DeviceNumber { major: 253, minor: 3 }.to_huge().to_ne_bytes());
    bytes.extend(b"pool");
    bytes.resize(176, 0);
    bytes.extend(b"DMTHIN-1");
    bytes.resize(312, 0);
    bytes.extend(payload);
    bytes
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// A record of LIST_DEVICES as list_devices() of dm-ioctl.c writes it in each of its three formats.
fn record(minor: u32, device: (u32, &[u8], u32, Option<&[u8]>), last: bool) -> Vec<u8> {
    let (number, name, event_nr, uuid) = device;
    let mut bytes = DeviceNumber { major: 253, minor: number }.to_huge().to_ne_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(name);
    bytes.push(0);
    if minor < 37 {
        // On 64-bit kernels: sizeof(struct dm_name_list), 16, rather than the offset of the name.
        bytes.extend([0; 4]);
        pad(&mut bytes);
    } else {
        pad(&mut bytes);
        bytes.extend(event_nr.to_ne_bytes());
        let flags = if uuid.is_some() { 1u32 } else { 2 };
        // Padding that kernels before 4.45 do not set.
        bytes.extend(if minor < 45 { [0xff; 4] } else { flags.to_ne_bytes() });
        if minor >= 45
            && let Some(uuid) = uuid
        {
            bytes.extend(uuid);
            bytes.push(0);
            pad(&mut bytes);
        }
    }
    let next = if last { 0 } else { u32::try_from(bytes.len()).unwrap() };
    bytes[8..12].copy_from_slice(&next.to_ne_bytes());
    bytes
}

fn listed(minor: u32) -> Vec<ListedDevice> {
    let mut payload = record(minor, (0, b"pool", 7, Some(b"DMTHIN-0")), false);
    payload.extend(record(minor, (1, b"a", 0, None), false));
    payload.extend(record(minor, (258, b"seven77", 9, Some(b"LVM-12345")), true));
    Response::decode(&answer(minor, 0, 0, &payload)).unwrap().devices().unwrap()
}

#[test]
fn device_lists_of_every_age() {
    for minor in [22, 36, 37, 44, 45, 50] {
        let devices = listed(minor);
        let names: Vec<_> = devices.iter().map(|device| device.name.to_string()).collect();
        assert_eq!(names, ["pool", "a", "seven77"]);
        let numbers: Vec<_> = devices.iter().map(|device| device.number.minor).collect();
        assert_eq!(numbers, [0, 1, 258]);
        let events: Vec<_> = devices.iter().map(|device| device.event_nr).collect();
        let uuids: Vec<_> = devices.iter().map(|device| device.uuid.map(|uuid| uuid.to_string())).collect();
        if minor < 37 {
            assert_eq!(events, [None; 3]);
        } else {
            assert_eq!(events, [7, 0, 9].map(|nr| Some(EventNr(nr))));
        }
        if minor < 45 {
            assert_eq!(uuids, [None, None, None]);
        } else {
            assert_eq!(uuids, [Some("DMTHIN-0".into()), None, Some("LVM-12345".into())]);
        }
    }
}

#[test]
fn an_empty_device_list() {
    // data_size == data_start, or one record of zeroes.
    for payload in [&[][..], &[0; 12], &[0; 16]] {
        assert_eq!(Response::decode(&answer(47, 0, 0, payload)).unwrap().devices().unwrap(), []);
    }
}

#[test]
fn ten_thousand_devices() {
    let mut payload = Vec::new();
    for n in 0..10_000 {
        let name = format!("docker-8:1-7077897-{n:064x}");
        payload.extend(record(
            47,
            (n, name.as_bytes(), n, Some(format!("DMTHIN-{n}").as_bytes())),
            n == 9_999,
        ));
    }
    let devices = Response::decode(&answer(47, 0, 0, &payload)).unwrap().devices().unwrap();
    assert_eq!(devices.len(), 10_000);
    assert_eq!(devices[9_999].event_nr, Some(EventNr(9_999)));
    assert_eq!(devices[9_999].uuid.unwrap().to_str(), Some("DMTHIN-9999"));
}

fn targets(count: u32, payload: &[u8]) -> crate::dm::Result<Vec<crate::dm::TargetLine>> {
    Response::decode(&answer(47, count, 0, payload)).unwrap().targets()
}

fn spec(start: u64, length: u64, next: u32, target: &str, text: &str) -> Vec<u8> {
    let mut bytes = start.to_ne_bytes().to_vec();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(next.to_ne_bytes());
    bytes.extend(target.as_bytes());
    bytes.resize(40, 0);
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

#[test]
fn the_next_of_a_table_counts_from_the_first_line() {
    let mut payload = spec(0, 8, 48, "linear", "7:0 0");
    pad(&mut payload);
    payload.extend(spec(8, 16, 104, "thin-pool", "0 1/2 3/4 -"));
    pad(&mut payload);
    // The last `next` is aligned, the end of the payload is not.
    payload.extend(spec(24, 1, 152, "zero", ""));
    assert_eq!(payload.len(), 145);
    let lines: Vec<_> = targets(3, &payload).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(lines, ["0 8 linear 7:0 0", "8 16 thin-pool 0 1/2 3/4 -", "24 1 zero "]);
}

#[test]
fn non_monotonic_or_unterminated_lines_are_malformed() {
    let malformed = |payload: &[u8], count| matches!(targets(count, payload), Err(Error::Malformed { .. }));
    let line = spec(0, 8, 48, "linear", "7:0 0");
    assert!(!malformed(&line, 1));
    // Fewer lines than the count says; `next` at itself, before itself, unaligned; no NUL before `next`.
    assert!(malformed(&line, 2));
    assert!(malformed(&spec(0, 8, 0, "linear", "7:0 0"), 1));
    assert!(malformed(&spec(0, 8, 40, "linear", "7:0 0"), 1));
    assert!(malformed(&spec(0, 8, 46, "linear", "7:0 0"), 1));
    assert!(malformed(&spec(0, 8, 48, "linear", "7:0 01234567"), 1));
    assert!(malformed(&line[..45], 1));
    assert!(malformed(&[], u32::MAX));
    assert_eq!(targets(0, &[]).unwrap(), []);
}

#[test]
fn a_text_ends_before_the_next_line() {
    // No NUL before `next`, and none in the first bytes of the line there.
    let mut payload = spec(0, 8, 48, "linear", "0123456");
    *payload.last_mut().unwrap() = b'x';
    payload.extend(spec(u64::MAX, u64::MAX, 96, "linear", "0123456"));
    assert!(matches!(targets(2, &payload), Err(Error::Malformed { .. })));
}

#[test]
fn dependencies() {
    let deps = |payload: &[u8]| Response::decode(&answer(47, 0, 0, payload)).unwrap().dependencies();
    let mut payload = 2u32.to_ne_bytes().to_vec();
    payload.extend([0; 4]);
    let numbers = [DeviceNumber { major: 7, minor: 0 }, DeviceNumber { major: 259, minor: 0x1_2345 }];
    for number in numbers {
        payload.extend(number.to_huge().to_ne_bytes());
    }
    assert_eq!(deps(&payload).unwrap(), numbers);
    assert!(matches!(deps(&payload[..20]), Err(Error::Malformed { .. })));
    payload[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(matches!(deps(&payload), Err(Error::Malformed { .. })));
    // A device without a table: nothing follows the header.
    assert_eq!(deps(&[]).unwrap(), []);
}

#[test]
fn versions() {
    let mut payload = Vec::new();
    for (next, version, name) in [(32u32, [1u32, 23, 0], "thin-pool"), (0, [1, 4, 0], "linear")] {
        payload.extend(next.to_ne_bytes());
        payload.extend(version.iter().flat_map(|number| number.to_ne_bytes()));
        payload.extend(name.as_bytes());
        payload.push(0);
        pad(&mut payload);
    }
    payload.extend([0; 7]); // list_version_get_needed() counts too much
    let versions = Response::decode(&answer(47, 0, 0, &payload)).unwrap().target_versions().unwrap();
    let lines = versions.iter().fold(String::new(), |mut text, version| {
        write!(text, "{} {} ", version.target_type, version.version).unwrap();
        text
    });
    assert_eq!(lines, "thin-pool 1.23.0 linear 1.4.0 ");
    payload[..4].copy_from_slice(&31u32.to_ne_bytes());
    let bytes = answer(47, 0, 0, &payload);
    assert!(matches!(Response::decode(&bytes).unwrap().target_versions(), Err(Error::Malformed { .. })));
}

#[test]
fn a_message_answers_only_if_the_flag_is_set() {
    let message = |flags, payload: &[u8]| {
        let bytes = answer(47, 0, flags, payload);
        Response::decode(&bytes).unwrap().message().map(|text| text.map(str::to_owned))
    };
    assert_eq!(message(1 << 16, b"0: 0+8\n\0").unwrap().as_deref(), Some("0: 0+8\n"));
    assert_eq!(message(1 << 16, b"\0").unwrap().as_deref(), Some(""));
    assert_eq!(message(0, b"what was sent\0").unwrap(), None);
    assert!(message(1 << 16, b"no end").is_err());
}

#[test]
fn the_state_of_a_device() {
    let bytes = answer(47, 1, 1 << 5 | 1 << 1 | 1 << 30, &[]);
    let status = Response::decode(&bytes).unwrap().device().unwrap();
    assert_eq!(status.number, DeviceNumber { major: 253, minor: 3 });
    assert_eq!((status.open_count, status.event_nr, status.target_count), (1, EventNr(5), 1));
    assert_eq!((status.name.as_bytes(), status.uuid.unwrap().as_bytes()), (&b"pool"[..], &b"DMTHIN-1"[..]));
    assert!(status.is_suspended() && status.has_live_table());
    assert!(status.flags.bits() & 1 << 30 != 0, "a flag of a newer kernel is kept");
}

#[test]
fn an_answer_without_payload_has_size_305() {
    let mut bytes = answer(47, 0, 0, &[]);
    bytes[12..16].copy_from_slice(&305u32.to_ne_bytes());
    assert!(Response::decode(&bytes).unwrap().device().is_ok());
    assert_eq!(Response::decode(&bytes).unwrap().devices().unwrap(), []);
    for (at, value) in [(12, 304u32), (12, 313), (16, 311), (16, 0)] {
        let mut bytes = answer(47, 0, 0, &[]);
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        assert!(matches!(Response::decode(&bytes), Err(Error::Malformed { .. })), "{value} at {at}");
    }
    for len in 0..312 {
        assert!(Response::decode(&bytes[..len]).is_err());
    }
}

#[test]
fn a_foreign_name_is_listed_whatever_it_is() {
    let uuid = Some(&b"a/\xff"[..]);
    for name in [&b"control"[..], b".", b"..", b"caf\xe9"] {
        let payload =
            [record(47, (0, name, 0, uuid), false), record(47, (1, b"pool", 0, None), true)].concat();
        let bytes = answer(47, 0, 0, &payload);
        let devices = Response::decode(&bytes).unwrap().devices().unwrap();
        assert_eq!((devices[0].name.as_bytes(), devices[1].name.as_bytes()), (name, &b"pool"[..]));
        assert_eq!(devices[0].uuid.as_ref().map(DmUuid::as_bytes), uuid);
    }
}

#[test]
fn impossible_names_are_malformed() {
    for name in [&b""[..], b"a/b", &[b'n'; 128]] {
        let bytes = answer(47, 0, 0, &record(47, (0, name, 0, None), true));
        assert!(matches!(Response::decode(&bytes).unwrap().devices(), Err(Error::Malformed { .. })));
    }
}

fn device() -> impl Strategy<Value = (u32, Vec<u8>, u32, Option<Vec<u8>>)> {
    let name = proptest::collection::vec((1u8..).prop_filter("slash", |byte| *byte != b'/'), 1..128);
    let uuid = proptest::option::of(proptest::collection::vec(1u8.., 1..129));
    (0u32..1 << 20, name, any::<u32>(), uuid)
}

proptest! {
    #[test]
    fn any_device_list_is_read_as_it_was_written(
        minor in 30u32..51, devices in proptest::collection::vec(device(), 0..30),
    ) {
        let mut payload = Vec::new();
        for (n, (number, name, event_nr, uuid)) in devices.iter().enumerate() {
            let last = n + 1 == devices.len();
            payload.extend(record(minor, (*number, name, *event_nr, uuid.as_deref()), last));
        }
        let bytes = answer(minor, 0, 0, &payload);
        let listed = Response::decode(&bytes).unwrap().devices().unwrap();
        let expected: Vec<_> = devices
            .iter()
            .map(|(number, name, event_nr, uuid)| ListedDevice {
                number: DeviceNumber { major: 253, minor: *number },
                name: DmName::of_kernel(name).unwrap(),
                event_nr: (minor >= 37).then_some(EventNr(*event_nr)),
                uuid: uuid.as_ref().filter(|_| minor >= 45).map(|uuid| DmUuid::of_kernel(uuid).unwrap()),
            })
            .collect();
        prop_assert_eq!(listed, expected);
    }

    #[test]
    fn any_table_is_read_as_it_was_written(
        lines in proptest::collection::vec((any::<u64>(), any::<u64>(), "[a-z-]{1,15}", "\\PC{0,60}"), 0..30),
    ) {
        let mut payload = Vec::new();
        let mut end = 0;
        for (start, length, target, text) in &lines {
            pad(&mut payload);
            let next = u32::try_from((payload.len() + 40 + text.len() + 1).next_multiple_of(8)).unwrap();
            payload.extend(spec(*start, *length, next, target, text));
            end = payload.len();
        }
        payload.truncate(end);
        let count = u32::try_from(lines.len()).unwrap();
        let expected: Vec<_> = lines
            .iter()
            .map(|(start, length, target, text)| TargetLine {
                start: Sectors(*start),
                length: Sectors(*length),
                target_type: TargetType::new(target).unwrap(),
                text: text.clone(),
            })
            .collect();
        prop_assert_eq!(targets(count, &payload).unwrap(), expected);
    }
}
