mod round_trip;

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::record::{self, RecordHeader};
use super::*;
use crate::units::Bytes;

/// Made with Python's struct and hashlib from the description in `mod.rs`.
const FIXTURE: &[&str] = &[
    // Magic and version.
    "444d5448494e0d0a 01000000",
    // STREAM
    "0100 0000 30000000 0000000000000000 31349d21",
    "111111111111111111111111111111112222222222222222222222222222222200000000000000000000000000000000",
    // BEGIN
    "0200 0000 59000000 0100000000000000 34078396",
    "333333333333333333333333333333330000000000000000000000000000000044444444444444444444444444444444",
    "000010000000000000000100000000000000000000000000010061040065787434010001006b010076",
    // DATA
    "0300 0000 0c000000 0200000000000000 37abe7be",
    "000000000000000064617461",
    // HOLE
    "0400 0000 10000000 0300000000000000 4a585e3d",
    "00000100000000000000020000000000",
    // ZERO
    "0500 0000 10000000 0400000000000000 6e3f91b5",
    "00000300000000000000010000000000",
    // VOLUME_END
    "0600 0000 50000000 0500000000000000 d64dac05",
    "010000000000000004000000000000000100000000000000000002000000000001000000000000000000010000000000",
    "d7e5675aa13f1cf9000e0f47fae9b05ab8e3d6d73ae734abf05c277a8ae478bd",
    // END
    "0700 0000 58000000 0600000000000000 454929dc",
    "010000000000000004000000000000000100000000000000000002000000000001000000000000000000010000000000",
    "0100000000000000519b8e291f253ac8a131ef38769de23872a2bae8df914de28d142aebbff422c8",
];

fn fixture() -> Vec<u8> {
    let digits: Vec<u8> = FIXTURE.iter().flat_map(|line| line.bytes()).filter(|byte| *byte != b' ').collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

const HEADER: StreamHeader =
    StreamHeader { stream: Uuid::from_bytes([0x11; 16]), tree: Uuid::from_bytes([0x22; 16]) };

fn volume() -> VolumeHeader {
    VolumeHeader {
        volume: Uuid::from_bytes([0x33; 16]),
        base: None,
        name: "a".to_owned(),
        size: Bytes::mib(1),
        block_size: Bytes::kib(64),
        filesystem: Some(StreamFilesystem {
            kind: "ext4".to_owned(),
            uuid: Some(Uuid::from_bytes([0x44; 16])),
        }),
        labels: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        resume: Bytes(0),
    }
}

/// An event that owns its data.
#[derive(Debug, Clone, PartialEq)]
enum Item {
    Begin(VolumeHeader),
    Data(Bytes, Vec<u8>),
    Hole(Bytes, Bytes),
    Zero(Bytes, Bytes),
    EndVolume(Counts),
    End(StreamSummary),
}

impl From<Event<'_>> for Item {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Begin(header) => Self::Begin(*header),
            Event::Data { offset, data } => Self::Data(offset, data.to_vec()),
            Event::Hole { offset, length } => Self::Hole(offset, length),
            Event::Zero { offset, length } => Self::Zero(offset, length),
            Event::EndVolume(counts) => Self::EndVolume(counts),
            Event::End(summary) => Self::End(summary),
        }
    }
}

/// Everything that a stream says, and its first error.
fn read(bytes: &[u8]) -> (Vec<Item>, Result<(), StreamError>) {
    let mut items = Vec::new();
    let mut decoder = match Decoder::new(bytes) {
        Ok(decoder) => decoder,
        Err(error) => return (items, Err(error)),
    };
    loop {
        match decoder.next_event() {
            Ok(Some(event)) => items.push(event.into()),
            Ok(None) => {
                assert!(decoder.next_event().unwrap().is_none());
                return (items, Ok(()));
            }
            Err(error) => {
                assert!(matches!(decoder.next_event(), Err(StreamError::Failed)));
                return (items, Err(error));
            }
        }
    }
}

fn error(bytes: &[u8]) -> StreamError {
    read(bytes).1.unwrap_err()
}

/// Builds streams that an encoder refuses to write, with right checksums.
struct Forger {
    bytes: Vec<u8>,
    sequence: u64,
}

impl Forger {
    fn new() -> Self {
        let bytes = [record::MAGIC.as_slice(), &record::VERSION.to_le_bytes()].concat();
        Self { bytes, sequence: 0 }.record(record::STREAM, 0, &HEADER.encode())
    }

    fn volume() -> Self {
        Self::new().record(record::BEGIN, 0, &volume().encode().unwrap())
    }

    fn record(mut self, kind: u16, flags: u16, body: &[u8]) -> Self {
        let length = body.len().try_into().unwrap();
        let mut header = RecordHeader { kind, flags, length, sequence: self.sequence, crc: 0 };
        header.crc = header.checksum(&[body]);
        self.bytes.extend(header.encode());
        self.bytes.extend(body);
        self.sequence += 1;
        self
    }

    fn numbers(self, kind: u16, numbers: &[u64]) -> Self {
        let body: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.record(kind, 0, &body)
    }

    fn end(self, kind: u16, counts: &Counts, volumes: &[u64]) -> Self {
        let volumes: Vec<u8> = volumes.iter().flat_map(|number| number.to_le_bytes()).collect();
        let digest = Sha256::digest(&self.bytes);
        self.record(kind, 0, &[&counts.encode(), volumes.as_slice(), &digest].concat())
    }

    fn error(self) -> String {
        error(&self.bytes).to_string()
    }
}

#[test]
fn encoder_and_decoder_match_the_documented_bytes() {
    let mut encoder = Encoder::new(Vec::new(), &HEADER).unwrap();
    encoder.begin(&volume()).unwrap();
    encoder.data(Bytes(0), b"data").unwrap();
    encoder.hole(Bytes(0x10000), Bytes(0x20000)).unwrap();
    encoder.zero(Bytes(0x30000), Bytes(0x10000)).unwrap();
    let counts = encoder.end_volume().unwrap();
    let (bytes, summary) = encoder.finish().unwrap();
    assert_eq!(bytes, fixture());
    assert_eq!((summary.volumes, summary.counts, summary.size), (1, counts, Bytes(501)));

    let (items, result) = read(&bytes);
    result.unwrap();
    let expected = [
        Item::Begin(volume()),
        Item::Data(Bytes(0), b"data".to_vec()),
        Item::Hole(Bytes(0x10000), Bytes(0x20000)),
        Item::Zero(Bytes(0x30000), Bytes(0x10000)),
        Item::EndVolume(counts),
        Item::End(summary),
    ];
    assert_eq!(items, expected);
}

#[test]
fn every_truncation_is_an_error_before_the_end() {
    let (bytes, (items, _)) = (fixture(), read(&fixture()));
    for length in 0..bytes.len() {
        let (read, result) = read(&bytes[..length]);
        assert!(matches!(result, Err(StreamError::Truncated { .. })), "{length}: {result:?}");
        assert!(read.len() < items.len() && items.starts_with(&read), "{length}");
    }
}

#[test]
fn every_flipped_bit_is_an_error_before_it_is_used() {
    let (bytes, (items, _)) = (fixture(), read(&fixture()));
    for at in 0..8 * bytes.len() {
        let mut changed = bytes.clone();
        changed[at / 8] ^= 1 << (at % 8);
        let (read, result) = read(&changed);
        assert!(result.is_err(), "bit {at}");
        assert!(read.len() < items.len() && items.starts_with(&read), "bit {at}");
    }
}

#[test]
fn records_cannot_be_dropped_repeated_or_reordered() {
    let bytes = fixture();
    let (mut records, mut at) = (Vec::new(), 12);
    while at < bytes.len() {
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        records.push(&bytes[at..at + 20 + length]);
        at += 20 + length;
    }
    let join = |records: &[&[u8]]| [&bytes[..12], &records.concat()].concat();
    assert_eq!(join(&records), bytes);
    for first in 0..records.len() {
        let mut changed = records.clone();
        changed.remove(first);
        // Without END the stream ends too early.
        let last = first == records.len() - 1;
        let result = error(&join(&changed));
        assert_eq!(matches!(result, StreamError::Sequence { .. }), !last, "{first}: {result}");
        changed = records.clone();
        changed.insert(first, records[first]);
        let result = error(&join(&changed));
        assert_eq!(matches!(result, StreamError::Sequence { .. }), !last, "{first}: {result}");
        for second in first + 1..records.len() {
            let mut changed = records.clone();
            changed.swap(first, second);
            assert!(matches!(error(&join(&changed)), StreamError::Sequence { .. }), "{first} {second}");
        }
    }
    assert!(matches!(error(&[bytes.clone(), bytes].concat()), StreamError::TrailingData { .. }));
}

#[test]
fn prelude_and_features_are_checked() {
    let mut bytes = fixture();
    bytes[8] = 2;
    assert_eq!(error(&bytes).to_string(), "send stream of version 2; this program reads version 1");
    bytes[7] = b'\r';
    assert_eq!(error(&bytes).to_string(), r#"not a send stream: it begins with "DMTHIN\\r\\r""#);
    let stream = |required: u64, optional: u64| {
        let mut forger = Forger::new();
        forger.bytes.truncate(12);
        forger.sequence = 0;
        let features = [required.to_le_bytes(), optional.to_le_bytes()];
        let body = [&HEADER.encode()[..32], features.as_flattened()].concat();
        forger.record(record::STREAM, 0, &body)
    };
    assert_eq!(stream(4, 0).error(), "unsupported features 0x4; a newer program wrote the stream");
    let (_, result) = read(&stream(0, 4).end(record::END, &Counts::default(), &[0]).bytes);
    result.unwrap();
}

#[test]
fn unknown_records_are_skipped_only_if_optional() {
    let optional = Forger::volume().record(0x99, record::OPTIONAL, b"more");
    let counts = Counts::default();
    let (items, result) =
        read(&optional.end(record::VOLUME_END, &counts, &[]).end(record::END, &counts, &[1]).bytes);
    result.unwrap();
    assert_eq!(items[..2], [Item::Begin(volume()), Item::EndVolume(counts)]);
    let unsupported = |what| format!("unsupported {what}; a newer program wrote the stream");
    assert_eq!(Forger::volume().record(8, 0, b"zstd").error(), unsupported("record type 0x8"));
    assert_eq!(Forger::volume().record(0x99, 3, b"").error(), unsupported("record flags 0x3"));
    assert_eq!(Forger::volume().record(3, 1, b"").error(), unsupported("record flags 0x1"));
}

#[test]
fn records_appear_only_where_the_format_allows_them() {
    let unexpected = |forger: Forger, text: &str| assert!(forger.error().ends_with(text), "{text}");
    unexpected(Forger::new().numbers(record::HOLE, &[0, 1]), "record 1: unexpected HOLE");
    unexpected(Forger::new().record(record::STREAM, 0, b""), "record 1: unexpected STREAM");
    unexpected(Forger::volume().record(record::BEGIN, 0, b""), "record 2: unexpected BEGIN");
    unexpected(Forger::volume().record(record::END, 0, b""), "record 2: unexpected END");

    let mut encoder = Encoder::new(Vec::new(), &HEADER).unwrap();
    assert!(matches!(encoder.data(Bytes(0), b"x"), Err(StreamError::Unexpected { kind: "DATA", .. })));
    assert!(matches!(encoder.end_volume(), Err(StreamError::Unexpected { kind: "VOLUME_END", .. })));
    encoder.begin(&volume()).unwrap();
    assert!(matches!(encoder.begin(&volume()), Err(StreamError::Unexpected { kind: "BEGIN", .. })));
    assert!(matches!(encoder.finish(), Err(StreamError::Unexpected { kind: "END", .. })));
}

#[test]
fn ranges_ascend_within_the_volume() {
    let mib = Bytes::mib(1).0;
    for ranges in [
        vec![(0, 0)],
        vec![(0, mib + 1)],
        vec![(mib, 1)],
        vec![(u64::MAX, 2)],
        vec![(0, 2), (1, 1)],
        vec![(4, 2), (0, 1)],
    ] {
        let (mut forger, mut encoder) = (Forger::volume(), Encoder::new(Vec::new(), &HEADER).unwrap());
        encoder.begin(&volume()).unwrap();
        let mut result = Ok(());
        for (offset, length) in &ranges {
            forger = forger.numbers(record::ZERO, &[*offset, *length]);
            result = encoder.zero(Bytes(*offset), Bytes(*length));
        }
        assert!(matches!(result, Err(StreamError::OutOfRange { .. })), "{ranges:?}");
        assert!(matches!(error(&forger.bytes), StreamError::OutOfRange { .. }), "{ranges:?}");
    }
    let resumed = VolumeHeader { resume: Bytes(8), ..volume() };
    let forger = Forger::new().record(record::BEGIN, 0, &resumed.encode().unwrap());
    let text = "range of 2 bytes at 7: begins before the end of the range before it";
    assert_eq!(forger.numbers(record::ZERO, &[7, 2]).error(), text);
}

#[test]
fn counts_and_digests_are_compared() {
    let counts = Counts::default();
    let wrong = Counts { zeroes: Bytes(1), ..counts };
    let whole = || Forger::volume().end(record::VOLUME_END, &counts, &[]);
    assert!(Forger::volume().end(record::VOLUME_END, &wrong, &[]).error().contains("its counts differ"));
    assert!(whole().end(record::END, &wrong, &[1]).error().contains("record 3: its counts differ"));
    assert!(whole().end(record::END, &counts, &[2]).error().contains("record 3: its counts differ"));
    let body = [counts.encode().as_slice(), &[0; 32]].concat();
    assert!(Forger::volume().record(record::VOLUME_END, 0, &body).error().contains("its digest differs"));
    assert!(Forger::volume().record(record::VOLUME_END, 0, &body[1..]).error().contains("does not match"));
}

#[test]
fn headers_are_checked_by_both_sides() {
    let long = "x".repeat(256);
    let reason = |header: VolumeHeader| header.encode().unwrap_err().to_string();
    assert_eq!(reason(VolumeHeader { name: String::new(), ..volume() }), "volume header: name: empty");
    assert_eq!(
        reason(VolumeHeader { name: long.clone(), ..volume() }),
        "volume header: name: longer than 255 bytes"
    );
    assert!(reason(VolumeHeader { name: "a\n".to_owned(), ..volume() }).contains("control character"));
    assert!(reason(VolumeHeader { volume: Uuid::nil(), ..volume() }).contains("nil UUID"));
    assert!(reason(VolumeHeader { base: Some(volume().volume), ..volume() }).contains("base"));
    assert!(reason(VolumeHeader { size: Bytes(0), ..volume() }).contains("size: zero"));
    assert!(reason(VolumeHeader { resume: Bytes::mib(2), ..volume() }).contains("resume"));
    let labels = (0..300).map(|number| (number.to_string(), long.clone())).collect();
    assert!(reason(VolumeHeader { labels, ..volume() }).contains("longer than 64 KiB"));

    let body = volume().encode().unwrap();
    for length in 0..body.len() {
        assert!(VolumeHeader::decode(&body[..length]).is_none(), "{length}");
    }
    assert!(VolumeHeader::decode(&[body.as_slice(), &[0]].concat()).is_none());
    let mut nil = body.clone();
    nil[..16].fill(0);
    assert!(matches!(VolumeHeader::decode(&nil), Some(Err(StreamError::InvalidHeader { .. }))));
}

#[test]
fn large_data_is_split() {
    let data = vec![7; (MAX_DATA.0 * 2 + 5).try_into().unwrap()];
    let header = VolumeHeader { size: Bytes::mib(4), ..volume() };
    let mut encoder = Encoder::new(Vec::new(), &HEADER).unwrap();
    encoder.begin(&header).unwrap();
    encoder.data(Bytes(3), &data).unwrap();
    let counts = encoder.end_volume().unwrap();
    assert_eq!((counts.data_records, counts.data), (3, Bytes(data.len() as u64)));
    let (bytes, summary) = encoder.finish().unwrap();
    assert_eq!(summary.size, Bytes(bytes.len() as u64));

    let (items, result) = read(&bytes);
    result.unwrap();
    let pieces = items.iter().filter_map(|item| match item {
        Item::Data(offset, data) => Some((offset.0, data.len())),
        _ => None,
    });
    let pieces: Vec<_> = pieces.collect();
    let mib = 1 << 20;
    assert_eq!(pieces, [(3, mib), (3 + mib as u64, mib), (3 + 2 * mib as u64, 5)]);
}

#[test]
fn io_errors_are_not_truncations() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    assert!(matches!(Decoder::new(Broken), Err(StreamError::Io(_))));
    let mut room = [0; 40];
    assert!(matches!(Encoder::new(room.as_mut_slice(), &HEADER), Err(StreamError::Io(_))));
}
