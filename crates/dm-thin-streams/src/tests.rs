use dm_thin::tree::stream::StreamError;
use dm_thin::units::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

#[derive(Debug, Clone, PartialEq)]
enum Item {
    Data(u64, Vec<u8>),
    Hole(u64, u64),
    Zero(u64, u64),
}

impl From<DiffEvent<'_>> for Item {
    fn from(event: DiffEvent<'_>) -> Self {
        match event {
            DiffEvent::Data { offset, data } => Self::Data(offset.0, data.to_vec()),
            DiffEvent::Hole { offset, length } => Self::Hole(offset.0, length.0),
            DiffEvent::Zero { offset, length } => Self::Zero(offset.0, length.0),
        }
    }
}

fn drain(source: &mut dyn DiffSource) -> (Vec<Item>, Result<()>) {
    let mut items = Vec::new();
    loop {
        match source.next_event() {
            Ok(Some(event)) => items.push(event.into()),
            Ok(None) => {
                assert!(source.next_event().unwrap().is_none());
                return (items, Ok(()));
            }
            Err(error) => {
                assert!(matches!(
                    source.next_event(),
                    Err(Error::Failed | Error::Stream(StreamError::Failed))
                ));
                return (items, Err(error));
            }
        }
    }
}

fn feed(sink: &mut dyn DiffSink, header: &DiffHeader, items: &[Item]) -> Result<()> {
    sink.begin(header)?;
    for item in items {
        match item {
            Item::Data(offset, data) => sink.data(Bytes(*offset), data)?,
            Item::Hole(offset, length) => sink.hole(Bytes(*offset), Bytes(*length))?,
            Item::Zero(offset, length) => sink.zero(Bytes(*offset), Bytes(*length))?,
        }
    }
    sink.finish()
}

fn bytes(parts: &[&str]) -> Vec<u8> {
    let digits: Vec<u8> = parts.iter().flat_map(|part| part.bytes()).filter(|byte| *byte != b' ').collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

const MAGIC: &str = "24c4f02aae2e4fa9";

/// As thin_send 1.1 writes it: 4 bytes of data at 65536, 128 KiB unmapped at 1 MiB.
fn linbit() -> Vec<u8> {
    bytes(&[
        MAGIC,
        "0000000000000000 0000000000000000 00000002",
        MAGIC,
        "0000000000010000 0000000000000004 00000000 64617461",
        MAGIC,
        "0000000000100000 0000000000020000 00000001",
        MAGIC,
        "0000000000000000 0000000000000018 00000003",
        "0000000000000004 0000000000000001 0000000000000001",
    ])
}

fn items() -> Vec<Item> {
    vec![Item::Data(65536, b"data".to_vec()), Item::Hole(1 << 20, 128 << 10)]
}

fn header() -> DiffHeader {
    DiffHeader {
        volume: Some(Uuid::from_bytes([3; 16])),
        base: None,
        name: Some("image".to_owned()),
        base_name: None,
        size: Some(Bytes::mib(2)),
        block_size: None,
    }
}

fn read_linbit(bytes: &[u8]) -> (Vec<Item>, Result<()>) {
    match LinbitReader::new(bytes) {
        Ok(mut reader) => drain(&mut reader),
        Err(error) => (Vec::new(), Err(error)),
    }
}

fn read_rbd(bytes: &[u8]) -> (Vec<Item>, Result<()>) {
    match RbdReader::new(bytes) {
        Ok(mut reader) => drain(&mut reader),
        Err(error) => (Vec::new(), Err(error)),
    }
}

fn read_own(bytes: &[u8]) -> (Vec<Item>, Result<()>) {
    match StreamReader::new(bytes) {
        Ok(mut reader) => drain(&mut reader),
        Err(error) => (Vec::new(), Err(error)),
    }
}

#[test]
fn thin_send_1_1_is_read() {
    let bytes = linbit();
    let mut reader = LinbitReader::new(bytes.as_slice()).unwrap();
    assert_eq!(*reader.header(), DiffHeader::default());
    let (read, result) = drain(&mut reader);
    result.unwrap();
    assert_eq!(read, items());
    for length in 0..bytes.len() {
        let (read, result) = read_linbit(&bytes[..length]);
        assert!(matches!(result, Err(Error::Truncated { .. })), "{length}: {result:?}");
        assert!(items().starts_with(&read), "{length}");
    }
    let (_, result) = read_linbit(&[bytes.as_slice(), b"x"].concat());
    assert!(matches!(result, Err(Error::TrailingData { offset: 140, .. })), "{result:?}");
}

#[test]
fn thin_recv_1_1_could_read_what_is_written() {
    // Two chunks more than thin_send writes; both optional, and counted.
    let mut writer = LinbitWriter::new(Vec::new());
    feed(&mut writer, &header(), &items()).unwrap();
    let written = writer.into_inner();
    let (mut at, mut commands) = (0, Vec::new());
    while at < written.len() {
        assert_eq!(written[at..at + 8], bytes(&[MAGIC]));
        let number = |from: usize| u64::from_be_bytes(written[from..from + 8].try_into().unwrap());
        let command = u32::from_be_bytes(written[at + 24..at + 28].try_into().unwrap());
        commands.push(command);
        if command == 3 {
            assert_eq!([number(at + 28), number(at + 36), number(at + 44)], [6, 1, 1]);
        }
        at += 28 + if command == 1 { 0 } else { usize::try_from(number(at + 16)).unwrap() };
    }
    assert_eq!(commands, [2, 0x8000_0000 | 0x646d_7401, 0, 1, 0x8000_0000 | 0x646d_7402, 3]);

    let mut reader = LinbitReader::new(written.as_slice()).unwrap();
    assert_eq!(*reader.header(), header());
    let (read, result) = drain(&mut reader);
    result.unwrap();
    assert_eq!(read, items());
}

#[test]
fn a_flipped_byte_of_a_thin_send_stream_with_digest_is_an_error() {
    let mut writer = LinbitWriter::new(Vec::new());
    feed(&mut writer, &header(), &items()).unwrap();
    let written = writer.into_inner();
    // The header of the digest's chunk is not covered: with another command it is skipped as unknown.
    let digest = written.len() - 52 - 60;
    let unprotected = digest + 8..digest + 28;
    for at in (0..written.len()).filter(|at| !unprotected.contains(at)) {
        let mut changed = written.clone();
        changed[at] ^= 0x11;
        assert!(read_linbit(&changed).1.is_err(), "{at}");
    }
}

#[test]
fn older_thin_send_streams_are_refused_by_version() {
    let error = |magic: &str| {
        LinbitReader::new(bytes(&[magic, "0000000000000000 0000000000000000"]).as_slice()).unwrap_err()
    };
    assert_eq!(
        error("ca7f00d5de7ec7ed").to_string(),
        "thin-send-recv stream of version 1.0; 1.1 can be read"
    );
    assert!(matches!(error("e85bc5636cc72a05"), Error::Version { version: "older than 1.0", .. }));
    assert!(matches!(error("0000000000000000"), Error::BadMagic { .. }));
}

#[test]
fn thin_send_counters_and_commands_are_checked() {
    let changed = |at: usize, value: u8| {
        let mut bytes = linbit();
        bytes[at] = value;
        read_linbit(&bytes).1.unwrap_err().to_string()
    };
    assert_eq!(changed(123, 9), "thin-send-recv stream: chunks is 9 at its end, 4 were read");
    assert_eq!(changed(131, 9), "thin-send-recv stream: data is 9 at its end, 1 were read");
    assert_eq!(changed(139, 9), "thin-send-recv stream: unmap is 9 at its end, 1 were read");
    assert!(changed(27, 3).contains("does not begin with BEGIN_STREAM"));
    assert!(changed(23, 1).contains("does not begin with BEGIN_STREAM"));
    assert!(changed(55, 2).contains("second BEGIN_STREAM"));
    assert!(changed(55, 4).contains("unknown command"));
    assert!(changed(28, 0).contains("chunk without its magic number"));
    assert!(changed(111, 1).contains("END_STREAM of another length"));
}

#[test]
fn unknown_optional_chunks_are_skipped() {
    let optional = bytes(&[MAGIC, "0000000000000000 0000000000000003 80000007", "616263"]);
    let mut changed = [&linbit()[..28], &optional, &linbit()[28..]].concat();
    let counter = changed.len() - 24 + 7;
    changed[counter] = 5;
    let (read, result) = read_linbit(&changed);
    result.unwrap();
    assert_eq!(read, items());
}

const RBD_V1: &[&str] = &[
    "72626420646966662076310a",
    "66 04000000 62617365",
    "74 05000000 696d616765",
    "73 0000200000000000",
    "77 0000010000000000 0400000000000000 64617461",
    "7a 0000100000000000 0000020000000000",
    "65",
];

const RBD_V2: &[&str] = &[
    "72626420646966662076320a",
    "66 0800000000000000 04000000 62617365",
    "74 0900000000000000 05000000 696d616765",
    "73 0800000000000000 0000200000000000",
    "58 0200000000000000 ffff",
    "77 1400000000000000 0000010000000000 0400000000000000 64617461",
    "7a 1000000000000000 0000100000000000 0000020000000000",
    "65",
];

#[test]
fn rbd_diffs_are_read_and_written() {
    let expected = DiffHeader {
        name: Some("image".to_owned()),
        base_name: Some("base".to_owned()),
        size: Some(Bytes::mib(2)),
        ..DiffHeader::default()
    };
    for version in [RBD_V1, RBD_V2] {
        let bytes = bytes(version);
        let mut reader = RbdReader::new(bytes.as_slice()).unwrap();
        assert_eq!(*reader.header(), expected);
        let (read, result) = drain(&mut reader);
        result.unwrap();
        assert_eq!(read, items());
        for length in 0..bytes.len() {
            assert!(matches!(read_rbd(&bytes[..length]).1, Err(Error::Truncated { .. })), "{length}");
        }
        let (_, result) = read_rbd(&[bytes.as_slice(), b"e"].concat());
        assert!(matches!(result, Err(Error::TrailingData { .. })));
    }
    let mut writer = RbdWriter::new(Vec::new());
    feed(&mut writer, &expected, &items()).unwrap();
    assert_eq!(writer.into_inner(), bytes(RBD_V1));
}

#[test]
fn malformed_rbd_diffs_are_refused() {
    let error = |parts: &[&str]| read_rbd(&bytes(parts)).1.unwrap_err().to_string();
    assert_eq!(error(&["72626420646966662076330a"]), "not a rbd diff stream");
    assert!(error(&[RBD_V1[0], "58"]).contains("unknown tag"));
    assert!(error(&[RBD_V1[0], RBD_V1[3], RBD_V1[3]]).contains("repeated metadata"));
    assert!(error(&[RBD_V1[0], RBD_V1[3], RBD_V1[4], RBD_V1[2]]).contains("after a data record"));
    assert!(error(&[RBD_V1[0], "66 ffffffff"]).contains("longer than 64 KiB"));
    assert!(error(&[RBD_V1[0], "66 02000000 ff00"]).contains("not UTF-8"));
    assert!(error(&[RBD_V1[0], RBD_V1[3], RBD_V1[5], RBD_V1[4]]).contains("before the end of the range"));
    assert!(error(&[RBD_V1[0], "73 0000000000000000", RBD_V1[5]]).contains("after the end of the volume"));
    assert!(error(&[RBD_V2[0], "73 0900000000000000 0000200000000000"]).contains("differs from its fields"));
    assert!(error(&[RBD_V2[0], "7a 1100000000000000", &"00".repeat(16)]).contains("differs from its fields"));
}

#[test]
fn rbd_needs_a_size_and_names_the_base() {
    let mut writer = RbdWriter::new(Vec::new());
    let error = writer.begin(&DiffHeader::default()).unwrap_err();
    assert_eq!(error.to_string(), "a rbd diff stream needs the volume's size");
    let base = Uuid::from_bytes([4; 16]);
    feed(&mut writer, &DiffHeader { base: Some(base), ..header() }, &[]).unwrap();
    let bytes = writer.into_inner();
    let reader = RbdReader::new(bytes.as_slice()).unwrap();
    assert_eq!(reader.header().base_name, Some(base.to_string()));
}

#[test]
fn json_lines_have_ranges_without_data() {
    let mut writer = JsonWriter::new(Vec::new());
    let mut items = items();
    items.insert(1, Item::Zero(65540, 60));
    let header = DiffHeader { volume: None, ..header() };
    feed(&mut writer, &header, &items).unwrap();
    let written = String::from_utf8(writer.into_inner()).unwrap();
    let expected = [
        r#"{"version":1,"header":{"name":"image","size":2097152}}"#,
        r#"{"offset":65536,"length":64,"kind":"data"}"#,
        r#"{"offset":1048576,"length":131072,"kind":"hole"}"#,
        r#"{"ranges":2}"#,
        "",
    ];
    assert_eq!(written, expected.join("\n"));

    let reader = JsonReader::new(written.as_bytes()).unwrap();
    assert_eq!(*reader.header(), header);
    let ranges: Vec<_> = reader.map(|range| range.unwrap()).collect();
    let range = |offset, length, kind| JsonRange { offset: Bytes(offset), length: Bytes(length), kind };
    assert_eq!(ranges, [range(65536, 64, RangeKind::Data), range(1 << 20, 128 << 10, RangeKind::Hole)]);

    let read = |text: &str| JsonReader::new(text.as_bytes())?.collect::<Result<Vec<_>>>();
    for length in 0..written.len() {
        assert!(matches!(read(&written[..length]), Err(Error::Truncated { .. })), "{length}");
    }
    assert!(matches!(read(&format!("{written}\n")), Err(Error::TrailingData { .. })));
    let error = |text: &str| read(text).unwrap_err().to_string();
    assert_eq!(
        error(&written.replace(":2}", ":3}")),
        "JSON lines stream: ranges is 3 at its end, 2 were read"
    );
    assert!(error(&written.replace("1048576", "1048577000")).contains("after the end of the volume"));
    assert!(error(&written.replace("hole", "pole")).starts_with("line 3: "));
    assert!(error(&written.replace("\"version\":1", "\"version\":2")).contains("unknown version"));
    assert!(error(&" ".repeat(65537)).contains("longer than 64 KiB"));
}

#[test]
fn large_data_comes_in_pieces() {
    let data = vec![9; (2 << 20) + 5];
    let header = DiffHeader { size: Some(Bytes::mib(4)), ..header() };
    let mut writer = RbdWriter::new(Vec::new());
    feed(&mut writer, &header, &[Item::Data(3, data)]).unwrap();
    let (read, result) = read_rbd(&writer.into_inner());
    result.unwrap();
    let pieces: Vec<_> = read
        .iter()
        .map(|item| match item {
            Item::Data(offset, data) => (*offset, data.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(pieces, [(3, 1 << 20), (3 + (1 << 20), 1 << 20), (3 + (2 << 20), 5)]);

    // A length that the input does not have: no memory is allocated for it.
    let huge = bytes(&[RBD_V1[0], "77 0000000000000000 ffffffffffffff7f", "00"]);
    assert!(matches!(read_rbd(&huge).1, Err(Error::Truncated { .. })));
}

#[test]
fn sinks_are_used_in_order() {
    let writers: [Box<dyn DiffSink>; 4] = [
        Box::new(RbdWriter::new(Vec::new())),
        Box::new(LinbitWriter::new(Vec::new())),
        Box::new(JsonWriter::new(Vec::new())),
        Box::new(StreamWriter::new(Vec::new(), Uuid::nil()).unwrap()),
    ];
    for mut sink in writers {
        let order = |result: Result<()>| assert!(matches!(result, Err(Error::Order)), "{result:?}");
        let range = |result: Result<()>| {
            assert!(matches!(result, Err(Error::Stream(StreamError::OutOfRange { .. }))))
        };
        order(sink.data(Bytes(0), b"x"));
        order(sink.finish());
        sink.begin(&header()).unwrap();
        order(sink.begin(&header()));
        sink.hole(Bytes(8), Bytes(8)).unwrap();
        range(sink.data(Bytes(15), b"x"));
        range(sink.zero(Bytes::mib(2), Bytes(1)));
        range(sink.hole(Bytes(100), Bytes(0)));
        sink.finish().unwrap();
        order(sink.finish());
        order(sink.begin(&header()));
    }
}

#[test]
fn own_streams_with_another_number_of_volumes_are_refused() {
    use dm_thin::tree::stream::{Encoder, StreamHeader, VolumeHeader};
    let stream = StreamHeader { stream: Uuid::nil(), tree: Uuid::nil() };
    let volume = VolumeHeader {
        volume: Uuid::from_bytes([1; 16]),
        base: None,
        name: "a".to_owned(),
        size: Bytes(10),
        block_size: Bytes(0),
        filesystem: None,
        labels: Default::default(),
        resume: Bytes(0),
    };
    let error = |volumes: &[VolumeHeader]| {
        let mut encoder = Encoder::new(Vec::new(), &stream).unwrap();
        for volume in volumes {
            encoder.begin(volume).unwrap();
            encoder.end_volume().unwrap();
        }
        let (_, result) = read_own(&encoder.finish().unwrap().0);
        result.unwrap_err().to_string()
    };
    assert_eq!(error(&[]), "the stream has no volume; one volume can be converted");
    assert!(error(&[volume.clone(), volume.clone()]).starts_with("the stream has several volumes"));
    assert!(error(&[VolumeHeader { resume: Bytes(5), ..volume }]).starts_with("the stream has the rest"));
}

fn volume() -> impl Strategy<Value = Vec<Item>> {
    let range = (0u64..5000, 1u64..3000, any::<bool>(), any::<u8>());
    prop::collection::vec(range, 0..8).prop_map(|ranges| {
        let mut at = 0;
        let place = |(gap, length, is_data, byte)| {
            let offset = at + gap;
            at = offset + length;
            match is_data {
                true => Item::Data(offset, vec![byte; usize::try_from(length).unwrap()]),
                false => Item::Hole(offset, length),
            }
        };
        ranges.into_iter().map(place).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_format_converts_to_every_other(items in volume(), whole in any::<bool>()) {
        let header = DiffHeader { base: (!whole).then(|| Uuid::from_bytes([4; 16])), ..header() };
        let mut own = StreamWriter::new(Vec::new(), Uuid::nil()).unwrap();
        feed(&mut own, &header, &items).unwrap();
        let own = own.into_inner().unwrap().0;

        let mut linbit = LinbitWriter::new(Vec::new());
        copy(&mut StreamReader::new(own.as_slice()).unwrap(), &mut linbit).unwrap();
        let linbit = linbit.into_inner();
        let mut rbd = RbdWriter::new(Vec::new());
        copy(&mut LinbitReader::new(linbit.as_slice()).unwrap(), &mut rbd).unwrap();
        let rbd = rbd.into_inner();
        let mut back = StreamWriter::new(Vec::new(), Uuid::nil()).unwrap();
        copy_as(&mut RbdReader::new(rbd.as_slice()).unwrap(), &header, &mut back).unwrap();
        let back = back.into_inner().unwrap().0;
        let reader = StreamReader::new(back.as_slice()).unwrap();
        prop_assert_eq!(reader.header(), &header);
        for (read, result) in [read_own(&own), read_linbit(&linbit), read_rbd(&rbd), read_own(&back)] {
            result.unwrap();
            prop_assert_eq!(&read, &items);
        }
    }

    #[test]
    fn truncated_streams_never_end(items in volume(), at in any::<prop::sample::Index>()) {
        let (mut linbit, mut rbd) = (LinbitWriter::new(Vec::new()), RbdWriter::new(Vec::new()));
        feed(&mut linbit, &header(), &items).unwrap();
        feed(&mut rbd, &header(), &items).unwrap();
        let (linbit, rbd) = (linbit.into_inner(), rbd.into_inner());
        prop_assert!(read_linbit(&linbit[..at.index(linbit.len())]).1.is_err());
        prop_assert!(read_rbd(&rbd[..at.index(rbd.len())]).1.is_err());
    }
}
