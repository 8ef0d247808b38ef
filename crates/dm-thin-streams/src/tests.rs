mod json;
mod linbit;
mod rbd;

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
fn a_difference_whose_base_has_a_name_only_is_no_whole_volume() {
    let header = DiffHeader { base_name: Some("base".to_owned()), ..header() };
    let mut writer = StreamWriter::new(Vec::new(), Uuid::nil()).unwrap();
    let error = writer.begin(&header).unwrap_err();
    assert!(matches!(error, Error::MissingField { field: "base", .. }), "{error}");
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
    let huge = bytes(&[rbd::V1[0], "77 0000000000000000 ffffffffffffff7f", "00"]);
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
