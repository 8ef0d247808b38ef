//! Requests.

use proptest::prelude::*;

use super::super::*;
use crate::dm::{DmFlags, DmId, DmName, DmUuid, TargetSpec, TargetType};
use crate::kernel::DeviceNumber;
use crate::units::Sectors;

fn name(text: &str) -> DmName {
    DmName::new(text).unwrap()
}

fn encode(request: &Request<'_>, room: usize) -> Vec<u8> {
    let mut buffer = vec![0xa5; 312 + room];
    request.encode(&mut buffer).unwrap();
    buffer
}

/// The header of a request about the device `pool`, but for `data_size`, in little-endian bytes.
#[cfg(target_endian = "little")]
fn header(minor: u8, size: [u8; 2], count: u8, flags: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![4, 0, 0, 0, minor, 0, 0, 0, 0, 0, 0, 0]; // version
    bytes.extend([size[0], size[1], 0, 0]); // data_size
    bytes.extend([0x38, 0x01, 0, 0]); // data_start
    bytes.extend([count, 0, 0, 0]); // target_count
    bytes.extend([0; 4]); // open_count
    bytes.extend(flags);
    bytes.extend([0; 8]); // event_nr, padding
    bytes.extend([0; 8]); // dev
    bytes.extend(b"pool");
    bytes.resize(312, 0);
    bytes
}

#[test]
#[cfg(target_endian = "little")]
fn a_message_byte_for_byte() {
    let pool = name("pool");
    let payload = Payload::Message { sector: Sectors(0x0102_0304), text: &"create_thin 7" };
    let bytes = encode(&Request::on(Command::TARGET_MSG, DmId::Name(&pool)).payload(payload), 40);
    let mut expected = header(2, [0x60, 0x01], 0, [0; 4]);
    expected.extend([4, 3, 2, 1, 0, 0, 0, 0]);
    expected.extend(b"create_thin 7\0");
    expected.resize(352, 0);
    assert_eq!(bytes, expected);
}

#[test]
#[cfg(target_endian = "little")]
fn a_rename_byte_for_byte() {
    let (pool, new) = (name("pool"), name("pond"));
    let request = Request::on(Command::DEV_RENAME, DmId::Name(&pool)).payload(Payload::NewName(&new));
    let mut expected = header(0, [0x40, 0x01], 0, [0; 4]);
    expected.extend(b"pond\0\0\0\0");
    assert_eq!(encode(&request, 8), expected);

    let uuid = DmUuid::new("DMTHIN-1").unwrap();
    let request = Request::on(Command::DEV_RENAME, DmId::Name(&pool))
        .since(19)
        .flags(DmFlags::UUID)
        .payload(Payload::NewUuid(&uuid));
    let mut expected = header(19, [0x48, 0x01], 0, [0, 0x40, 0, 0]);
    expected.extend(b"DMTHIN-1\0\0\0\0\0\0\0\0");
    assert_eq!(encode(&request, 16), expected);
}

#[test]
#[cfg(target_endian = "little")]
fn a_table_of_two_lines_byte_for_byte() {
    let pool = name("pool");
    let target = |text| TargetType::new(text).unwrap();
    let table = [
        TargetSpec {
            start: Sectors(0),
            length: Sectors(0x800),
            target_type: target("linear"),
            parameters: &"7:0 0",
        },
        TargetSpec {
            start: Sectors(0x800),
            length: Sectors(1),
            target_type: target("thin"),
            parameters: &"253:0 1",
        },
    ];
    let request = Request::on(Command::TABLE_LOAD, DmId::Name(&pool))
        .flags(DmFlags::READONLY)
        .payload(Payload::Table(&table));
    let mut expected = header(0, [0x98, 0x01], 2, [1, 0, 0, 0]);
    expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0]); // sector_start, length
    expected.extend([0, 0, 0, 0, 48, 0, 0, 0]); // status, next
    expected.extend(b"linear\0\0\0\0\0\0\0\0\0\0");
    expected.extend(b"7:0 0\0\0\0");
    expected.extend([0, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([0, 0, 0, 0, 48, 0, 0, 0]);
    expected.extend(b"thin\0\0\0\0\0\0\0\0\0\0\0\0");
    expected.extend(b"253:0 1\0");
    assert_eq!(encode(&request, 96), expected);
}

#[test]
fn names_of_the_greatest_length_fill_their_fields() {
    let (long, uuid) = (name(&"n".repeat(127)), DmUuid::new(&"u".repeat(128)).unwrap());
    let number = DeviceNumber { major: 253, minor: 0x1234 };
    let bytes = encode(&Request::create(&long, Some(&uuid), Some(number)), 0);
    assert_eq!(bytes[48..175], [b'n'; 127]);
    assert_eq!(bytes[175], 0);
    assert_eq!(bytes[176..304], [b'u'; 128]);
    assert_eq!(bytes[304..], [0; 8]);
    assert_eq!(bytes[40..48], 0x0120_fd34_u64.to_ne_bytes());
    assert_eq!(bytes[28..32], (1_u32 << 3).to_ne_bytes());
}

proptest! {
    #[test]
    fn a_name_of_any_bytes_is_sent_as_it_is(bytes in prop::collection::vec(1u8.., 1..128)) {
        let Ok(name) = DmName::from_bytes(&bytes) else { return Ok(()) };
        let request = Request::on(Command::DEV_RENAME, DmId::Name(&name)).payload(Payload::NewName(&name));
        let encoded = encode(&request, 128);
        for at in [48, 312] {
            prop_assert_eq!(&encoded[at..at + bytes.len()], &bytes);
            prop_assert_eq!(encoded[at + bytes.len()], 0);
        }
        let uuid = DmUuid::from_bytes(&bytes).unwrap();
        let request = Request::on(Command::DEV_RENAME, DmId::Uuid(&uuid)).payload(Payload::NewUuid(&uuid));
        prop_assert_eq!(&encode(&request, 128)[312..312 + bytes.len()], &bytes);
        let mut short = vec![0; 312 + bytes.len()];
        prop_assert_eq!(request.encode(&mut short), Err(EncodeError::BufferTooSmall));
    }
}

#[test]
fn a_geometry_is_four_numbers() {
    let pool = name("pool");
    let geometry = Geometry { cylinders: 65535, heads: 255, sectors: 63, start: Sectors(2048) };
    let payload = Payload::Geometry(geometry);
    let bytes = encode(&Request::on(Command::DEV_SET_GEOMETRY, DmId::Name(&pool)).payload(payload), 24);
    assert_eq!(&bytes[312..], b"65535 255 63 2048\0\0\0\0\0\0\0");
}

#[test]
fn device_numbers_that_would_be_truncated_are_refused() {
    let on = |major, minor| Request::on(Command::DEV_STATUS, DeviceNumber { major, minor }.into());
    let mut buffer = [0; 312];
    assert_eq!(on(4095, 0xf_ffff).encode(&mut buffer), Ok(()));
    assert_eq!(on(4096, 0).encode(&mut buffer), Err(EncodeError::NumberTooLarge));
    assert_eq!(on(253, 1 << 20).encode(&mut buffer), Err(EncodeError::NumberTooLarge));
}

#[test]
fn secure_data_is_not_printed() {
    let pool = name("crypt");
    let payload = Payload::Message { sector: Sectors(0), text: &"key set 0123" };
    let request = Request::on(Command::TARGET_MSG, DmId::Name(&pool)).payload(payload);
    assert!(format!("{request:?}").contains("0123"));
    let request = request.flags(DmFlags::SECURE_DATA);
    assert!(!format!("{request:?} {:?}", request.detail()).contains("0123"));
}
