//! What the fuzz target `stream` and the tests share: checks one input, and panics if something is wrong.

#![allow(unreachable_pub, missing_docs)]

use dm_thin::tree::ChangedRange;
use dm_thin::units::Bytes;
use dm_thin_streams::*;

/// Whatever the input is, every reader answers; a complete stream is written as one that says the same.
pub fn fuzz(bytes: &[u8]) {
    if let Some((header, items)) = complete(LinbitReader::new(bytes)) {
        let mut writer = LinbitWriter::new(Vec::new());
        feed(&mut writer, &header, &items);
        assert_eq!(complete(LinbitReader::new(writer.into_inner().as_slice())), Some((header, items)));
    }
    if let Some((header, items)) = complete(RbdReader::new(bytes))
        && header.size.is_some()
    {
        let mut writer = RbdWriter::new(Vec::new());
        feed(&mut writer, &header, &items);
        assert_eq!(complete(RbdReader::new(writer.into_inner().as_slice())), Some((header, items)));
    }
    if let Some((header, items)) = complete(StreamReader::new(bytes)) {
        let mut writer = StreamWriter::new(Vec::new(), Default::default()).unwrap();
        feed(&mut writer, &header, &items);
        let bytes = writer.into_inner().unwrap().0;
        assert_eq!(complete(StreamReader::new(bytes.as_slice())), Some((header, items)));
    }
    if let Some((header, ranges)) = json(bytes) {
        let mut writer = JsonWriter::new(Vec::new());
        writer.begin(&header).unwrap();
        ranges.iter().for_each(|range| writer.range(*range).unwrap());
        writer.finish().unwrap();
        let (again, merged) = json(&writer.into_inner()).unwrap();
        let length = |ranges: &[ChangedRange]| ranges.iter().map(|range| range.length.0).sum::<u64>();
        assert_eq!((again, length(&merged)), (header, length(&ranges)));
    }
}

#[derive(Debug, PartialEq)]
enum Item {
    Data(Bytes, Vec<u8>),
    Hole(Bytes, Bytes),
    Zero(Bytes, Bytes),
}

fn complete(source: Result<impl DiffSource>) -> Option<(DiffHeader, Vec<Item>)> {
    let mut source = source.ok()?;
    let mut items = Vec::new();
    loop {
        items.push(match source.next_event() {
            Ok(Some(DiffEvent::Data { offset, data })) => Item::Data(offset, data.to_vec()),
            Ok(Some(DiffEvent::Hole { offset, length })) => Item::Hole(offset, length),
            Ok(Some(DiffEvent::Zero { offset, length })) => Item::Zero(offset, length),
            Ok(None) => return Some((source.header().clone(), items)),
            Err(_) => {
                assert!(source.next_event().is_err(), "a reader that failed goes on");
                return None;
            }
        });
    }
}

fn feed(sink: &mut dyn DiffSink, header: &DiffHeader, items: &[Item]) {
    sink.begin(header).unwrap();
    for item in items {
        match item {
            Item::Data(offset, data) => sink.data(*offset, data).unwrap(),
            Item::Hole(offset, length) => sink.hole(*offset, *length).unwrap(),
            Item::Zero(offset, length) => sink.zero(*offset, *length).unwrap(),
        }
    }
    sink.finish().unwrap();
}

fn json(bytes: &[u8]) -> Option<(DiffHeader, Vec<ChangedRange>)> {
    let mut reader = JsonReader::new(bytes).ok()?;
    let ranges: Result<_> = reader.by_ref().collect();
    Some((reader.header().clone(), ranges.ok()?))
}
