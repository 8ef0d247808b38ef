//! Sealed snapshots from one tree to another one.

#![allow(clippy::cast_possible_truncation)] // offsets in volumes of some MiB

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dm_thin::kernel::{Access, Kernel};
use dm_thin::thin::ThinId;
use dm_thin::tree::stream::{Encoder, StreamError, StreamFilesystem, StreamHeader, VolumeHeader};
use dm_thin::tree::{
    AddOptions, Finding, Labels, Parent, PartialReceive, ReceiveOptions, ReceiveReport, SendOptions,
    SnapshotTree,
};
use dm_thin::tree::{Error, Result};
use dm_thin::units::Bytes;
use uuid::Uuid;

use crate::rig::{Rig, crash_everywhere, crash_everywhere_with};

const BLOCK: u64 = 64 << 10;
/// Of `one` and `two`: no whole number of blocks.
const SIZE: Bytes = Bytes((2 << 20) + 12_288);

/// A tree with `one`, its difference `two`, and `three`, which differs from `two`.
fn family() -> (Rig, SnapshotTree) {
    let rig = Rig::new();
    let tree = rig.tree();
    let size = AddOptions::new().size(SIZE);
    let writer = tree.create("one", None, &size).unwrap();
    writer.write_at(Bytes(0), &pattern(1, 300_000)).unwrap();
    writer.write_at(Bytes::mib(1), &pattern(2, 70_000)).unwrap();
    writer.commit_sealed().unwrap();
    let mut labels = Labels::new();
    labels.set("layer", "2").unwrap();
    let labels = AddOptions::new().labels(labels);
    let writer = tree.create("two", Some(Parent::Snapshot("one")), &labels).unwrap();
    writer.write_at(Bytes(5000), &pattern(3, 6000)).unwrap();
    writer.zero(Bytes(2 * BLOCK), Bytes(2 * BLOCK)).unwrap();
    writer.write_at(Bytes(2 * BLOCK + 4096), b"island").unwrap();
    writer.commit_sealed().unwrap();
    let larger = AddOptions::new().size(Bytes::mib(3));
    let writer = tree.create("three", Some(Parent::Snapshot("two")), &larger).unwrap();
    writer.write_at(Bytes(2 * (1 << 20) - 10), &pattern(4, 20)).unwrap();
    writer.commit_sealed().unwrap();
    (rig, tree)
}

fn pattern(seed: u64, length: u64) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + at / 251 + seed * 17) % 255) as u8 + 1).collect()
}

fn content(tree: &SnapshotTree, id: &str) -> Vec<u8> {
    let reader = tree.open_snapshot(id).unwrap();
    let mut bytes = vec![0; reader.size().0 as usize];
    reader.read_at(Bytes(0), &mut bytes).unwrap();
    bytes
}

fn send(tree: &SnapshotTree, target: &str, base: Option<&str>) -> Vec<u8> {
    let mut stream = Vec::new();
    let summary = tree.send(target, base, &mut stream, SendOptions::new()).unwrap();
    assert_eq!(summary.size.0, stream.len() as u64);
    assert_eq!(tree.send_size(target, base, SendOptions::new()).unwrap().size, summary.size);
    stream
}

fn receive(tree: &SnapshotTree, stream: &[u8]) -> Result<ReceiveReport> {
    tree.receive(stream, ReceiveOptions::new())
}

fn assert_same(from: &SnapshotTree, to: &SnapshotTree, id: &str) {
    let (sent, received) = (from.get(id).unwrap(), to.get(id).unwrap());
    assert_eq!((&sent.sealed, &sent.labels, sent.size), (&received.sealed, &received.labels, received.size));
    assert!(content(from, id) == content(to, id), "{id} differs");
}

fn thins(rig: &Rig, tree: &SnapshotTree) -> usize {
    rig.kernel.thin_devices(tree.pool().name().to_str().unwrap()).unwrap().len()
}

#[test]
fn a_chain_of_differences_is_received_byte_for_byte() {
    let (_from_rig, from) = family();
    for block_size in [Bytes::kib(64), Bytes::kib(128), Bytes::kib(192), Bytes::mib(1)] {
        let rig = Rig::new();
        let to = rig.open(rig.options().block_size(block_size)).unwrap();
        let streams =
            [send(&from, "one", None), send(&from, "two", Some("one")), send(&from, "three", Some("two"))];
        assert!(streams[1].len() < 80_000, "two blocks, of one a part: {}", streams[1].len());
        for stream in &streams {
            receive(&to, stream).unwrap();
        }
        ["one", "two", "three"].iter().for_each(|id| assert_same(&from, &to, id));
        assert_eq!(to.to_text(), "base\n└── one\n    └── two\n        └── three\n");
        assert_eq!(to.check().unwrap(), []);
        to.close().unwrap();
        drop(to);
        // What was received is durable, and sealed still.
        let to = rig.open(rig.options().block_size(block_size)).unwrap();
        ["one", "two", "three"].iter().for_each(|id| assert_same(&from, &to, id));
        to.close().unwrap();
    }
}

#[test]
fn a_subtree_is_one_stream() {
    let (_from_rig, from) = family();
    from.add("unsealed", Parent::Snapshot("one")).unwrap();
    let writer = from.create("below", Some(Parent::Snapshot("unsealed")), &AddOptions::new()).unwrap();
    writer.write_at(Bytes(77), b"below").unwrap();
    writer.commit_sealed().unwrap();
    let mut stream = Vec::new();
    let sent = from.send_tree("one", &mut stream, SendOptions::new()).unwrap();
    let rig = Rig::new();
    let to = rig.tree();
    let rename = ReceiveOptions::new().rename(|id| format!("x-{id}"));
    let report = to.receive(stream.as_slice(), rename).unwrap();
    assert_eq!(report.summary, sent);
    let names: Vec<_> = report.snapshots.iter().map(|id| id.as_str()).collect();
    assert_eq!(names, ["x-one", "x-two", "x-three", "x-below"]);
    assert!(content(&to, "x-below") == content(&from, "below"));
    assert!(content(&to, "x-three") == content(&from, "three"));
    assert_eq!(to.check().unwrap(), []);
    to.close().unwrap();
    let error = from.send_tree("unsealed", io::sink(), SendOptions::new()).unwrap_err();
    assert!(matches!(error, Error::NotSealed { id } if id == "unsealed"));
}

#[test]
fn receive_names_what_does_not_fit() {
    let (_from_rig, from) = family();
    let rig = Rig::new();
    let to = rig.tree();
    from.add("loose", Parent::Base).unwrap();
    for (target, base) in [("loose", None), ("one", Some("loose"))] {
        let error = from.send(target, base, io::sink(), SendOptions::new()).unwrap_err();
        assert!(matches!(error, Error::NotSealed { id } if id == "loose"));
    }
    let error = from.send("one", None, [0; 1000].as_mut_slice(), SendOptions::new()).unwrap_err();
    assert!(matches!(error, Error::Stream(StreamError::Io(_))), "{error}");
    assert_eq!(from.get("one").unwrap().device, None, "it is not left active");
    let difference = send(&from, "two", Some("one"));
    let one = from.get("one").unwrap().sealed.unwrap();
    assert!(matches!(receive(&to, &difference), Err(Error::NoBase { uuid }) if uuid == one));
    receive(&to, &send(&from, "one", None)).unwrap();
    // The base may have another name, but has to be sealed.
    to.rename("one", "uno").unwrap();
    to.unseal("uno").unwrap();
    assert!(matches!(receive(&to, &difference), Err(Error::NoBase { uuid }) if uuid == one));
    to.remove("uno").unwrap();
    receive(&to, &send(&from, "one", None)).unwrap();
    to.rename("one", "uno").unwrap();
    to.add("two", Parent::Base).unwrap();
    assert!(matches!(receive(&to, &difference), Err(Error::SnapshotExists { id }) if id == "two"));
    to.receive(difference.as_slice(), ReceiveOptions::new().name("dos")).unwrap();
    assert!(content(&to, "dos") == content(&from, "two"));
    let resumed = SendOptions::new().resume_from(Bytes(BLOCK));
    let mut stream = Vec::new();
    from.send("three", None, &mut stream, resumed).unwrap();
    assert!(matches!(receive(&to, &stream), Err(Error::NotResumable { asked: Bytes(BLOCK), .. })));
    assert_eq!(to.check().unwrap(), []);
    to.close().unwrap();
}

/// The header of a whole volume.
fn header(name: &str) -> VolumeHeader {
    VolumeHeader {
        volume: Uuid::new_v4(),
        base: None,
        name: name.to_owned(),
        size: Bytes::mib(1),
        block_size: Bytes(0),
        filesystem: None,
        labels: BTreeMap::new(),
        resume: Bytes(0),
    }
}

/// A stream of one volume, with data at its begin and at its end and a hole in between.
fn forge(header: &VolumeHeader) -> Vec<u8> {
    let stream = StreamHeader { stream: Uuid::new_v4(), tree: Uuid::nil() };
    let mut encoder = Encoder::new(Vec::new(), &stream).unwrap();
    encoder.begin(header).unwrap();
    let end = header.size.0 - 8;
    for (offset, data) in [(0, b"beginning"), (end - 1, b"last word")] {
        if offset >= header.resume.0 {
            encoder.data(Bytes(offset), data).unwrap();
        }
        if offset == 0 {
            encoder.hole(Bytes(9.max(header.resume.0)), Bytes(end - 10 - 9.max(header.resume.0))).unwrap();
        }
    }
    encoder.end_volume().unwrap();
    encoder.finish().unwrap().0
}

#[test]
fn receive_refuses_a_stream_before_writing_anything() {
    let (rig, tree) = family();
    let one = tree.get("one").unwrap().sealed;
    let device = tree.activate("three").unwrap();
    let before = thins(&rig, &tree);
    let refuse = |header: VolumeHeader, expected: &str| {
        for resumable in [false, true] {
            let options = ReceiveOptions::new().resumable(resumable);
            let error = tree.receive(forge(&header).as_slice(), options).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!((thins(&rig, &tree), tree.partial_receives()), (before, vec![]));
        }
    };
    // Active, and sealed with another content.
    refuse(header("three"), "\"three\" exists");
    let filesystem = Some(StreamFilesystem { kind: "xfs".to_owned(), uuid: None });
    refuse(VolumeHeader { filesystem, ..header("new") }, "file system: the tree has none, xfs was asked for");
    refuse(VolumeHeader { base: one, ..header("new") }, "less than its parent's");
    refuse(VolumeHeader { size: Bytes(100_000), ..header("new") }, "not a multiple of 4096");
    refuse(VolumeHeader { size: Bytes(u64::MAX - 4095), ..header("new") }, "larger than 1 PiB");
    refuse(VolumeHeader { base: Some(Uuid::new_v4()), ..header("new") }, "no sealed snapshot with content");
    refuse(VolumeHeader { resume: Bytes(4096), ..header("new") }, "received so far: 0");
    refuse(header("base"), "reserved");
    let labels = BTreeMap::from([("a key".to_owned(), String::new())]);
    refuse(VolumeHeader { labels, ..header("new") }, "a key");
    assert_eq!(tree.get("three").unwrap().device.as_ref(), Some(&device));
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
}

#[test]
fn holes_are_discarded_only_where_blocks_are_mapped() {
    let rig = Rig::new();
    let tree = rig.tree();
    let sizes = |name| rig.kernel.log().iter().filter(|call| call.name == name).count();
    let large = VolumeHeader { size: Bytes::gib(1 << 19), ..header("large") };
    rig.kernel.clear_log();
    receive(&tree, &forge(&large)).unwrap();
    assert_eq!(sizes("BLKDISCARD"), 0);
    let larger = VolumeHeader { base: Some(large.volume), ..header("larger") };
    let larger = VolumeHeader { size: Bytes::gib(1 << 20), ..larger };
    receive(&tree, &forge(&larger)).unwrap();
    // Of the large one's hole nothing is mapped; its last word is in the larger one's.
    assert_eq!(sizes("BLKDISCARD"), 1);
    let reader = tree.open_snapshot("larger").unwrap();
    for (offset, expected) in
        [(0, b"beginning"), (large.size.0 - 9, &[0; 9]), (larger.size.0 - 9, b"last word")]
    {
        let mut found = [1; 9];
        reader.read_at(Bytes(offset), &mut found).unwrap();
        assert_eq!(&found, expected);
    }
    drop(reader);
    tree.close().unwrap();
}

#[test]
fn receives_of_one_volume_from_several_bases_are_kept_apart() {
    let (_from_rig, from) = family();
    let rig = Rig::new();
    let to = rig.tree();
    receive(&to, &send(&from, "one", None)).unwrap();
    to.add("taken", Parent::Base).unwrap();
    let (whole, difference) = (send(&from, "two", None), send(&from, "two", Some("one")));
    let resumable = |name: &str| ReceiveOptions::new().resumable(true).name(name);
    to.receive(&whole[..whole.len() / 2], resumable("whole")).unwrap_err();
    let partial = to.partial_receives();
    let [PartialReceive { volume, base: None, offset, .. }] = partial[..] else { panic!("{partial:?}") };
    // A stream that is refused takes nothing away.
    let refused = to.receive(difference.as_slice(), resumable("taken"));
    assert!(matches!(refused, Err(Error::SnapshotExists { .. })));
    assert_eq!(to.partial_receives(), partial);
    to.receive(&difference[..difference.len() / 2], resumable("two")).unwrap_err();
    assert_eq!(to.partial_receives().len(), 2);
    receive(&to, &difference).unwrap();
    assert_eq!(to.partial_receives(), partial);
    let mut rest = Vec::new();
    from.send("two", None, &mut rest, SendOptions::new().resume_from(offset)).unwrap();
    to.receive(rest.as_slice(), resumable("whole")).unwrap();
    for id in ["two", "whole"] {
        assert!(content(&to, id) == content(&from, "two"), "{id}");
    }
    for stream in [&whole, &difference] {
        to.receive(&stream[..stream.len() / 2], resumable("again")).unwrap_err();
    }
    to.discard_receive(volume).unwrap();
    assert_eq!(to.partial_receives(), []);
    assert_eq!(to.check().unwrap(), []);
    to.close().unwrap();
}

/// Who knows the UUID of a volume that is still to come can send something else under it, and stop.
#[test]
fn a_whole_stream_does_not_build_on_what_another_one_left() {
    let (_from_rig, from) = family();
    let one = from.get("one").unwrap();
    let theirs = VolumeHeader { volume: one.sealed.unwrap(), size: one.size, ..header("theirs") };
    let theirs = forge(&theirs);
    let rig = Rig::new();
    let to = rig.tree();
    let resumable = ReceiveOptions::new().resumable(true).checkpoint_every(Bytes(4096));
    to.receive(&theirs[..theirs.len() - 40], resumable).unwrap_err();
    assert_eq!(to.partial_receives().len(), 1);
    receive(&to, &send(&from, "one", None)).unwrap();
    assert_same(&from, &to, "one");
    assert_eq!((to.partial_receives(), to.check().unwrap()), (vec![], vec![]));
    to.close().unwrap();
}

#[test]
fn discard_receive_removes_an_active_volume() {
    let (_from_rig, from) = family();
    let whole = send(&from, "two", None);
    let rig = Rig::new();
    let to = rig.open(rig.options().busy_timeout(Duration::ZERO)).unwrap();
    // Opened by somebody else once it is there, so that the failed receive cannot deactivate it.
    let (kernel, held) = (rig.kernel.clone(), Arc::new(Mutex::new(None)));
    let hold = {
        let held = held.clone();
        move || {
            let names = kernel.mapper_node_names().unwrap();
            let node = names.iter().find(|name| name.to_string_lossy().contains('+')).unwrap();
            let path = Path::new("/dev/mapper").join(node);
            *held.lock().unwrap() = Some(kernel.open(&path, Access::READ).unwrap());
        }
    };
    let resumable = ReceiveOptions::new().resumable(true);
    let half = Hooked { bytes: &whole[..whole.len() / 2], hook: Some(hold) };
    to.receive(half, resumable).unwrap_err();
    let [PartialReceive { volume, .. }] = to.partial_receives()[..] else { panic!() };
    assert!(to.discard_receive(volume).unwrap_err().is_busy());
    drop(held.lock().unwrap().take().unwrap());
    to.discard_receive(volume).unwrap();
    assert_eq!(to.check().unwrap(), []);
    to.close().unwrap();
    assert!(rig.kernel.is_clean());
}

/// Bytes, and what is done when they are all read.
struct Hooked<'a, F> {
    bytes: &'a [u8],
    hook: Option<F>,
}

impl<F: FnOnce()> Read for Hooked<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        if read == 0
            && let Some(hook) = self.hook.take()
        {
            hook();
        }
        Ok(read)
    }
}

#[test]
fn pools_that_do_not_zero_are_refused_unless_allowed() {
    let features = dm_thin::thin::PoolFeatures { skip_block_zeroing: true, ..Default::default() };
    let rig = Rig::new();
    let tree = rig.open(rig.options().features(features)).unwrap();
    tree.add("one", Parent::Base).unwrap();
    tree.seal("one").unwrap();
    let mut stream = Vec::new();
    let refused = tree.send("one", None, &mut stream, SendOptions::new());
    assert!(matches!(refused, Err(Error::NotZeroed { .. })));
    assert!(stream.is_empty());
    tree.send("one", None, &mut stream, SendOptions::new().allow_unzeroed(true)).unwrap();
    let refused = tree.receive(stream.as_slice(), ReceiveOptions::new().name("two"));
    assert!(matches!(refused, Err(Error::NotZeroed { .. })));
    // Every block of an image is written, zeroes, too, and those behind its end.
    let image = [&[7; 100][..], &[0; 300_000], &[9]].concat();
    tree.import("image", &image[..], Bytes(500_000), &AddOptions::new()).unwrap();
    assert_eq!(tree.snapshot_status("image").unwrap().mapped, Bytes(8 * 65_536));
    tree.remove("image").unwrap();
    tree.receive(stream.as_slice(), ReceiveOptions::new().name("two").allow_unzeroed(true)).unwrap();
    tree.close().unwrap();
}

#[test]
fn send_refuses_an_adopted_pool_that_may_hold_unzeroed_blocks() {
    let rig = Rig::new();
    let pool = rig.pool();
    let (zeroing, size) = pool.table().unwrap();
    let mut table = zeroing;
    table.features.skip_block_zeroing = true;
    pool.reload(&table, size).unwrap();
    let tree = rig.open(rig.adopting("vg-pool")).unwrap();
    tree.add("one", Parent::Base).unwrap();
    tree.seal("one").unwrap();
    pool.reload(&zeroing, size).unwrap();
    let refused = tree.send("one", None, io::sink(), SendOptions::new());
    assert!(matches!(refused, Err(Error::NotZeroed { .. })), "{refused:?}");
    tree.close().unwrap();
}

/// Calls somebody after each write.
struct Observed<'a>(&'a mut Vec<u8>, &'a dyn Fn(&[u8]));

impl Write for Observed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes);
        (self.1)(self.0);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn send_survives_a_rename_of_its_snapshot() {
    let (_from_rig, from) = family();
    from.add("same", Parent::Snapshot("one")).unwrap();
    from.seal("same").unwrap();
    let swapped = Cell::new(false);
    let swap = |sent: &[u8]| {
        // Not before the header of the volume: it is open then.
        if sent.len() > 100 && !swapped.replace(true) {
            from.rename("two", "renamed").unwrap();
            from.rename("same", "two").unwrap();
        }
    };
    let mut stream = Vec::new();
    let out = Observed(&mut stream, &swap);
    from.send("two", Some("one"), out, SendOptions::new()).unwrap();
    let rig = Rig::new();
    let to = rig.tree();
    receive(&to, &send(&from, "one", None)).unwrap();
    receive(&to, &stream).unwrap();
    assert!(content(&to, "two") == content(&from, "renamed"));
    to.close().unwrap();
}

#[test]
fn a_damaged_stream_leaves_nothing() {
    let (_from_rig, from) = family();
    let rig = Rig::new();
    let to = rig.tree();
    receive(&to, &send(&from, "one", None)).unwrap();
    let stream = send(&from, "two", Some("one"));
    let (before, base) = (thins(&rig, &to), content(&to, "one"));
    let look = |error: Error| {
        assert!(matches!(&error, Error::Stream(_) | Error::Receive { resume: None, .. }), "{error}");
        assert!(!to.contains("two"));
        assert_eq!(thins(&rig, &to), before);
    };
    for cut in (0..stream.len()).step_by(997).chain(stream.len() - 40..stream.len()) {
        look(receive(&to, &stream[..cut]).unwrap_err());
    }
    for flipped in (0..stream.len()).step_by(1009) {
        let mut damaged = stream.clone();
        damaged[flipped] ^= 1;
        look(receive(&to, &damaged).unwrap_err());
    }
    look(receive(&to, &[stream.as_slice(), b"x"].concat()).unwrap_err());
    assert!(content(&to, "one") == base);
    assert_eq!(to.check().unwrap(), []);
    receive(&to, &stream).unwrap();
    assert_same(&from, &to, "two");
    to.close().unwrap();
}

#[test]
fn receive_resumes_at_the_offset_it_reached() {
    let (_from_rig, from) = family();
    let rig = Rig::new();
    let mut to = rig.tree();
    let stream = send(&from, "one", None);
    let uuid = from.get("one").unwrap().sealed.unwrap();
    let resumable = || ReceiveOptions::new().resumable(true);
    let error = to.receive(&stream[..stream.len() - 30_000], resumable()).unwrap_err();
    let Error::Receive { id, offset, resume: Some(resume), source } = error else { panic!("{error}") };
    assert_eq!((id.as_str(), offset), ("one", resume));
    assert!(matches!(*source, Error::Stream(StreamError::Truncated { .. })));
    assert!(resume > Bytes(0));

    // It survives.
    for _ in 0..2 {
        assert_eq!(to.check().unwrap(), []);
        let [partial] = &to.partial_receives()[..] else { panic!("{:?}", to.partial_receives()) };
        assert_eq!((partial.volume, partial.offset, partial.size), (uuid, resume, SIZE));
        to.close().unwrap();
        drop(to);
        to = rig.tree();
    }
    let later = SendOptions::new().resume_from(resume + Bytes(4096));
    let mut gap = Vec::new();
    from.send("one", None, &mut gap, later).unwrap();
    let refused = to.receive(gap.as_slice(), resumable()).unwrap_err();
    assert!(matches!(refused, Error::NotResumable { received, .. } if received == resume), "{refused}");

    let mut rest = Vec::new();
    from.send("one", None, &mut rest, SendOptions::new().resume_from(resume)).unwrap();
    assert!(rest.len() < stream.len());
    let seen = Cell::new(Bytes(0));
    let options = ReceiveOptions::new().progress(|progress| {
        assert_eq!(progress.volume, uuid);
        assert!(progress.offset >= seen.replace(progress.offset));
    });
    to.receive(rest.as_slice(), options).unwrap();
    assert!(seen.get() > resume);
    assert_same(&from, &to, "one");
    assert!(to.partial_receives().is_empty());

    // Another one is given up.
    let stream = send(&from, "two", Some("one"));
    to.receive(&stream[..stream.len() / 2], resumable()).unwrap_err();
    let uuid = to.partial_receives()[0].volume;
    let before = thins(&rig, &to);
    to.discard_receive(uuid).unwrap();
    assert_eq!(thins(&rig, &to), before - 1);
    assert!(matches!(to.discard_receive(uuid), Err(Error::NoReceive { .. })));
    assert_eq!(to.check().unwrap(), []);
    to.close().unwrap();
}

#[test]
fn a_receive_into_an_adopted_pool_leaves_the_volumes_of_others_alone() {
    let (_from_rig, from) = family();
    let rig = Rig::new();
    let pool = rig.pool();
    let to = rig.open(rig.adopting("vg-pool")).unwrap();
    to.add("of the base", Parent::Base).unwrap();
    let last = pool.thin_ids().unwrap().last().unwrap().get();
    let theirs: Vec<_> = (last + 1..last + 4).map(|id| ThinId::new(id).unwrap()).collect();
    theirs.iter().for_each(|id| pool.create_thin(*id).unwrap());
    let stream = send(&from, "one", None);
    let uuid = from.get("one").unwrap().sealed.unwrap();
    to.receive(&stream[..stream.len() / 2], ReceiveOptions::new().resumable(true)).unwrap_err();
    drop(to);
    let to = rig.open(rig.adopting("vg-pool")).unwrap();
    receive(&to, &stream).unwrap();
    assert_same(&from, &to, "one");
    to.remove("one").unwrap();
    to.receive(&stream[..stream.len() / 2], ReceiveOptions::new().resumable(true)).unwrap_err();
    to.discard_receive(uuid).unwrap();
    let left = rig.kernel.thin_devices("vg-pool").unwrap();
    assert_eq!(left.len(), 2 + theirs.len());
    assert!(theirs.iter().all(|id| left.contains(&(id.get(), 0))));
    to.close().unwrap();
}

/// Gives the stream in short pieces, and asks the tree for something in between.
struct Watched<'a>(&'a [u8], &'a dyn Fn());

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.1)();
        let length = buffer.len().min(10_000);
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn a_received_snapshot_is_invisible_until_complete() {
    let (_from_rig, from) = family();
    let rig = Rig::new();
    let to = rig.tree();
    let stream = send(&from, "one", None);
    let look = || {
        assert!(!to.contains("one"));
        assert!(to.list().is_empty());
        assert_eq!(to.repair().unwrap().left, Vec::<Finding>::new());
        if !to.partial_receives().is_empty() {
            let volume = to.partial_receives()[0].volume;
            assert!(matches!(to.discard_receive(volume), Err(Error::Receiving { .. })));
        }
    };
    to.receive(Watched(&stream, &look), ReceiveOptions::new().resumable(true)).unwrap();
    assert_same(&from, &to, "one");
    to.close().unwrap();
}

#[test]
fn a_crash_in_a_receive_leaves_nothing_or_what_can_be_continued() {
    let (_from_rig, from) = family();
    let (whole, difference) = (send(&from, "one", None), send(&from, "two", Some("one")));
    let base = content(&from, "one");
    let wanted = content(&from, "two");
    for resumable in [false, true] {
        crash_everywhere_with(
            |options, _| options,
            |_, tree| drop(receive(tree, &whole).unwrap()),
            |tree| {
                let options = ReceiveOptions::new().resumable(resumable).checkpoint_every(Bytes(4096));
                tree.receive(difference.as_slice(), options).map(drop)
            },
            |rig, tree| {
                assert_eq!(tree.check().unwrap(), []);
                assert!(content(tree, "one") == base, "the base is as it was");
                let partial = tree.partial_receives();
                assert!(resumable || partial.is_empty());
                assert_eq!(thins(rig, tree), 1 + tree.list().len() + partial.len());
                if !tree.contains("two") {
                    let resume = partial.first().map_or(Bytes(0), |partial| partial.offset);
                    let mut rest = Vec::new();
                    let from_there = SendOptions::new().resume_from(resume);
                    from.send("two", Some("one"), &mut rest, from_there).unwrap();
                    receive(tree, &rest).unwrap();
                }
                assert!(content(tree, "two") == wanted);
                assert!(tree.partial_receives().is_empty());
            },
        );
    }
}

#[test]
fn a_crash_in_discard_receive_leaves_what_can_be_received_again() {
    let (_from_rig, from) = family();
    let stream = send(&from, "one", None);
    let half = &stream[..stream.len() / 2];
    crash_everywhere(
        |tree| drop(tree.receive(half, ReceiveOptions::new().resumable(true)).unwrap_err()),
        |tree| tree.discard_receive(tree.partial_receives()[0].volume),
        |rig, tree| {
            assert_eq!(thins(rig, tree), 1 + tree.partial_receives().len());
            receive(tree, &stream).unwrap();
            assert_same(&from, tree, "one");
        },
    );
}

#[test]
fn a_base_that_is_larger_than_the_snapshot_is_refused() {
    let rig = Rig::new();
    let tree = rig.tree();
    for (id, size) in [("small", 1), ("large", 2)] {
        tree.create(id, None, &AddOptions::new().size(Bytes::mib(size))).unwrap().commit_sealed().unwrap();
    }
    let error = tree.send("small", Some("large"), Vec::new(), SendOptions::new()).unwrap_err();
    let text = "base: \"large\" (2 MiB): larger than the snapshot that is sent";
    assert_eq!(error.to_string(), text);
    tree.send("large", Some("small"), Vec::new(), SendOptions::new()).unwrap();
    tree.close().unwrap();
}
