//! Snapshots from one tree to another one, through the foreign formats.

use std::path::Path;
use std::sync::Arc;

use dm_thin::dm::UdevPolicy;
use dm_thin::model::ModelKernel;
use dm_thin::tree::{
    AddOptions, ChangedRange, Filesystem, Options, Parent, ReceiveOptions, SendOptions, Since, SnapshotTree,
    SnapshotWriter,
};
use dm_thin::units::Bytes;
use dm_thin_streams::{
    DiffHeader, DiffSink, DiffSource, JsonReader, JsonWriter, LinbitReader, LinbitWriter, RbdReader,
    RbdWriter, StreamReader, StreamWriter, copy, copy_as,
};
use tempfile::TempDir;
use uuid::Uuid;

/// A tree on a kernel in memory.
fn tree(directory: &Path, block_size: Bytes) -> SnapshotTree {
    let options = Options::new().data_size(Bytes::mib(64)).metadata_size(Bytes::mib(4));
    let options = options.base_size(Bytes::mib(16)).block_size(block_size).filesystem(Filesystem::None);
    let options = options.kernel(Arc::new(ModelKernel::new())).udev(UdevPolicy::None);
    SnapshotTree::open(directory, options).unwrap()
}

/// No byte is zero.
fn pattern(seed: u64, length: u64) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251 + seed * 17) % 255).unwrap() + 1).collect()
}

/// Data across blocks, zeroes that take space, holes.
fn image(writer: SnapshotWriter<'_>) {
    writer.write_at(Bytes(3000), &pattern(1, 1_300_000)).unwrap();
    writer.write_at(Bytes(2 << 20), &vec![0; 200_000]).unwrap();
    writer.write_at(Bytes((4 << 20) - 5), b"end!!").unwrap();
    writer.commit_sealed().unwrap();
}

/// Data over data, over zeroes and over a hole; data that is zeroed, whole blocks and parts.
fn child(writer: SnapshotWriter<'_>) {
    writer.write_at(Bytes(100_000), &pattern(2, 70_000)).unwrap();
    writer.write_at(Bytes((2 << 20) + 1), &pattern(3, 10)).unwrap();
    writer.write_at(Bytes(3 << 20), &pattern(4, 65_537)).unwrap();
    writer.zero(Bytes(500_001), Bytes(400_000)).unwrap();
    writer.commit_sealed().unwrap();
}

fn content(tree: &SnapshotTree, id: &str) -> Vec<u8> {
    let reader = tree.open_snapshot(id).unwrap();
    let mut bytes = vec![0xee; usize::try_from(reader.size().0).unwrap()];
    reader.read_at(Bytes(0), &mut bytes).unwrap();
    bytes
}

/// Converts dm-thin's stream to another format, of which `back` makes the stream that is received.
fn assert_arrives(
    convert: impl Fn(&mut dyn DiffSource) -> Vec<u8>,
    back: impl Fn(&[u8], &DiffHeader) -> Vec<u8>,
) {
    let directory = TempDir::new().unwrap();
    let from = tree(&directory.path().join("from"), Bytes::kib(64));
    let to = tree(&directory.path().join("to"), Bytes::kib(128));
    image(from.create("image", None, &AddOptions::new().size(Bytes::mib(4))).unwrap());
    child(from.create("child", Some(Parent::Snapshot("image")), &AddOptions::new()).unwrap());
    for (id, base) in [("image", None), ("child", Some("image"))] {
        let mut sent = Vec::new();
        from.send(id, base, &mut sent, SendOptions::new()).unwrap();
        let mut reader = StreamReader::new(sent.as_slice()).unwrap();
        let header = reader.header().clone();
        let foreign = convert(&mut reader);
        to.receive(back(&foreign, &header).as_slice(), ReceiveOptions::new()).unwrap();
        assert_eq!(to.get(id).unwrap().sealed, from.get(id).unwrap().sealed);
        assert!(content(&to, id) == content(&from, id), "{id} differs");
    }
    assert_ne!(content(&to, "image"), content(&to, "child"));
    assert_eq!(to.check().unwrap(), []);
    from.close().unwrap();
    to.close().unwrap();
}

/// A stream of dm-thin, with this header or the source's own.
fn own(source: &mut dyn DiffSource, header: Option<&DiffHeader>) -> Vec<u8> {
    let mut writer = StreamWriter::new(Vec::new(), Uuid::nil()).unwrap();
    let header = header.unwrap_or(source.header()).clone();
    copy_as(source, &header, &mut writer).unwrap();
    writer.into_inner().unwrap().0
}

#[test]
fn snapshots_arrive_through_linbit_streams() {
    let convert = |source: &mut dyn DiffSource| {
        let mut writer = LinbitWriter::new(Vec::new());
        copy(source, &mut writer).unwrap();
        writer.into_inner()
    };
    assert_arrives(convert, |bytes, _| own(&mut LinbitReader::new(bytes).unwrap(), None));
}

#[test]
fn snapshots_arrive_through_linbit_streams_without_a_header() {
    // As thin_send writes them: identity and size come from elsewhere.
    let convert = |source: &mut dyn DiffSource| {
        let mut writer = LinbitWriter::new(Vec::new());
        copy_as(source, &DiffHeader::default(), &mut writer).unwrap();
        writer.into_inner()
    };
    assert_arrives(convert, |bytes, header| {
        let mut reader = LinbitReader::new(bytes).unwrap();
        assert_eq!(reader.header(), &DiffHeader::default());
        own(&mut reader, Some(header))
    });
}

#[test]
fn snapshots_arrive_through_rbd_diffs() {
    let convert = |source: &mut dyn DiffSource| {
        let mut writer = RbdWriter::new(Vec::new());
        copy(source, &mut writer).unwrap();
        let bytes = writer.into_inner();
        assert!(bytes.starts_with(b"rbd diff v1\n"));
        bytes
    };
    assert_arrives(convert, |bytes, header| own(&mut RbdReader::new(bytes).unwrap(), Some(header)));
}

#[test]
fn changed_ranges_are_listed_as_json_lines() {
    let directory = TempDir::new().unwrap();
    let tree = tree(&directory.path().join("tree"), Bytes::kib(64));
    image(tree.create("image", None, &AddOptions::new().size(Bytes::mib(4))).unwrap());
    child(tree.create("child", Some(Parent::Snapshot("image")), &AddOptions::new()).unwrap());
    let info = tree.get("child").unwrap();
    let header = DiffHeader { volume: info.sealed, size: Some(info.size), ..DiffHeader::default() };
    let ranges = || tree.changed(Since::Snapshot("image"), "child").unwrap().map(|range| range.unwrap());
    let mut writer = JsonWriter::new(Vec::new());
    writer.begin(&header).unwrap();
    ranges().for_each(|range| writer.range(range).unwrap());
    writer.finish().unwrap();
    let lines = writer.into_inner();
    let reader = JsonReader::new(lines.as_slice()).unwrap();
    assert_eq!(reader.header(), &header);
    let read: Vec<ChangedRange> = reader.map(|range| range.unwrap()).collect();
    assert!(read.len() > 4 && ranges().eq(read));
    let first = r#"{"offset":65536,"length":131072,"kind":"data"}"#;
    assert_eq!(lines.split(|byte| *byte == b'\n').nth(1).unwrap(), first.as_bytes());
    tree.close().unwrap();
}
