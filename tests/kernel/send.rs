//! Sealed snapshots, sent to trees in other pools.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use dm_thin::tree::Error;
use dm_thin::tree::{
    AddOptions, Filesystem, Options, Parent, ReceiveOptions, SendOptions, SnapshotTree, SnapshotWriter,
};
use dm_thin::units::Bytes;
use dm_thin_streams::{LinbitReader, LinbitWriter, StreamReader, StreamWriter, copy};

use crate::bench::Bench;
use crate::rig::drop_caches;

/// Size of a file in an image.
const FILE: usize = 300_000;

/// A tree in a pool with blocks of this size.
fn tree(bench: &Bench, name: &str, block_size: Bytes, filesystem: Filesystem) -> SnapshotTree {
    // XFS needs 300 MiB.
    let (data, base) = if filesystem == Filesystem::Xfs { (512, 320) } else { (256, 32) };
    let options = Options::new().data_size(Bytes::mib(data)).base_size(Bytes::mib(base));
    let options = options.metadata_size(Bytes::mib(8)).block_size(block_size).filesystem(filesystem);
    SnapshotTree::open(bench.path().join(name), options.background_threads(false)).unwrap()
}

/// Two trees: one whose blocks are 64 KiB, one whose blocks are 128 KiB.
fn pair(bench: &Bench, filesystem: Filesystem) -> (SnapshotTree, SnapshotTree) {
    (tree(bench, "from", Bytes::kib(64), filesystem), tree(bench, "to", Bytes::kib(128), filesystem))
}

fn transfer(from: &SnapshotTree, to: &SnapshotTree, id: &str, base: Option<&str>) -> u64 {
    let mut stream = Vec::new();
    let summary = from.send(id, base, &mut stream, SendOptions::new()).unwrap();
    assert_eq!(summary.size.0, stream.len() as u64);
    let report = to.receive(stream.as_slice(), ReceiveOptions::new()).unwrap();
    assert_eq!(report.snapshots.iter().map(ToString::to_string).collect::<Vec<_>>(), [id]);
    summary.size.0
}

/// The same through a stream of thin-send-recv.
fn transfer_as_linbit(from: &SnapshotTree, to: &SnapshotTree, id: &str, base: Option<&str>) {
    let mut sent = Vec::new();
    from.send(id, base, &mut sent, SendOptions::new()).unwrap();
    let mut foreign = LinbitWriter::new(Vec::new());
    copy(&mut StreamReader::new(sent.as_slice()).unwrap(), &mut foreign).unwrap();
    let foreign = foreign.into_inner();
    let mut own = StreamWriter::new(Vec::new(), from.uuid()).unwrap();
    copy(&mut LinbitReader::new(foreign.as_slice()).unwrap(), &mut own).unwrap();
    let (own, _) = own.into_inner().unwrap();
    to.receive(own.as_slice(), ReceiveOptions::new()).unwrap();
}

/// The active device, when what it contains is not in the page cache any more.
fn device(tree: &SnapshotTree, id: &str) -> File {
    let path = tree.activate(id).unwrap();
    drop_caches();
    File::open(path).unwrap()
}

fn content(tree: &SnapshotTree, id: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    device(tree, id).read_to_end(&mut bytes).unwrap();
    tree.deactivate(id).unwrap();
    bytes
}

fn assert_same(from: &SnapshotTree, to: &SnapshotTree, id: &str) {
    let infos = [from, to].map(|tree| tree.get(id).unwrap());
    assert_eq!((infos[0].sealed, infos[0].size), (infos[1].sealed, infos[1].size), "{id}");
    assert!(infos[0].sealed.is_some(), "{id}");
    let devices = [from, to].map(|tree| device(tree, id));
    let mut pieces = [vec![0; 1 << 20], vec![0; 1 << 20]];
    for at in (0..infos[0].size.0).step_by(1 << 20) {
        for (device, piece) in devices.iter().zip(&mut pieces) {
            piece.truncate((infos[0].size.0 - at) as usize);
            device.read_exact_at(piece, at).unwrap();
        }
        assert!(pieces[0] == pieces[1], "{id} differs in the MiB at {at}");
    }
    drop(devices);
    [from, to].iter().for_each(|tree| tree.deactivate(id).unwrap());
}

/// Nothing is wrong, by this crate and by thin_check.
fn close_sound(tree: &SnapshotTree) {
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();
    let check = Command::new("thin_check").arg(tree.root().join("pool/metadata")).output().unwrap();
    assert!(check.status.success(), "thin_check: {}", String::from_utf8_lossy(&check.stderr));
}

/// Bytes that differ from block to block.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 512 * 7 + at) as u8 ^ seed as u8).collect()
}

/// A snapshot with files, sealed.
fn image(tree: &SnapshotTree, id: &str, parent: Parent<'_>, target: &Path, seed: u64) {
    tree.add(id, parent).unwrap();
    tree.mount(id, target).unwrap();
    fs::create_dir_all(target.join("directory")).unwrap();
    fs::write(target.join("directory").join(id), pattern(seed, FILE)).unwrap();
    fs::write(target.join("last"), id).unwrap();
    tree.unmount(id).unwrap();
    tree.seal(id).unwrap();
}

fn write_to_device(tree: &SnapshotTree, id: &str) -> std::io::Result<()> {
    let device = tree.activate(id).unwrap();
    let written = File::options().write(true).open(device).and_then(|mut file| {
        file.write_all(&[7; 4096])?;
        file.sync_all()
    });
    tree.deactivate(id).unwrap();
    written
}

/// An image to the pool with the other blocks, and its child back.
fn there_and_back(transfer: impl Fn(&SnapshotTree, &SnapshotTree, &str, Option<&str>)) {
    let bench = Bench::new();
    let (from, to) = pair(&bench, Filesystem::Ext4);
    let target = bench.path().join("target");
    image(&from, "image", Parent::Base, &target, 1);
    transfer(&from, &to, "image", None);
    assert_same(&from, &to, "image");
    image(&to, "child", Parent::Snapshot("image"), &target, 2);
    transfer(&to, &from, "child", Some("image"));
    assert_same(&to, &from, "child");
    from.mount("child", &target).unwrap();
    for (id, seed) in [("image", 1), ("child", 2)] {
        assert!(fs::read(target.join("directory").join(id)).unwrap() == pattern(seed, FILE), "{id}");
    }
    assert_eq!(fs::read_to_string(target.join("last")).unwrap(), "child");
    from.unmount("child").unwrap();
    close_sound(&from);
    close_sound(&to);
}

#[test]
fn ext4_travels_to_other_blocks_and_back() {
    there_and_back(|from, to, id, base| {
        transfer(from, to, id, base);
    });
}

#[test]
fn ext4_travels_as_thin_send_recv_streams_and_back() {
    there_and_back(transfer_as_linbit);
}

#[test]
fn holes_arrive_in_blocks_whose_size_is_no_power_of_two() {
    let bench = Bench::new();
    let from = tree(&bench, "from", Bytes::kib(64), Filesystem::None);
    let to = tree(&bench, "to", Bytes::kib(192), Filesystem::None);
    // The last block is cut in both pools.
    let size = Bytes(Bytes::mib(4).0 + 20_480);
    let writer = from.create("image", None, &AddOptions::new().size(size)).unwrap();
    writer.write_at(Bytes(0), &pattern(1, size.0 as usize)).unwrap();
    writer.commit_sealed().unwrap();
    let writer = from.create("child", Some(Parent::Snapshot("image")), &AddOptions::new()).unwrap();
    writer.zero(Bytes(100_000), Bytes(size.0 - 200_000)).unwrap();
    writer.commit_sealed().unwrap();
    for (id, base) in [("image", None), ("child", Some("image"))] {
        transfer(&from, &to, id, base);
        assert_same(&from, &to, id);
    }
    close_sound(&from);
    close_sound(&to);
}

/// The kernel splits a discard of more than 1024 blocks, and one of more than 4 GiB.
#[test]
fn a_long_hole_leaves_no_block_that_is_not_cut() {
    let bench = Bench::new();
    let block = Bytes::kib(192);
    let tree = tree(&bench, "tree", block, Filesystem::None);
    let size = Bytes(Bytes::gib(6).0 + 20_480);
    let writer = tree.create("image", None, &AddOptions::new().size(size)).unwrap();
    let blocks = (0..size.0).step_by(40 << 20).map(|at| {
        writer.write_at(Bytes(at), &pattern(at, 200_000)).unwrap();
        2
    });
    let mapped = Bytes(block.0 * blocks.sum::<u64>());
    writer.commit_sealed().unwrap();
    assert_eq!(tree.snapshot_status("image").unwrap().mapped, mapped);
    let writer = tree.create("child", Some(Parent::Snapshot("image")), &AddOptions::new()).unwrap();
    writer.zero(Bytes(1000), Bytes(size.0 - 1000)).unwrap();
    writer.commit_sealed().unwrap();
    assert_eq!(tree.snapshot_status("child").unwrap().mapped, block);
    let mut found = [1; 2000];
    tree.open_snapshot("child").unwrap().read_at(Bytes(0), &mut found).unwrap();
    assert!(found[..1000] == pattern(0, 1000) && found[1000..] == [0; 1000]);
    close_sound(&tree);
}

#[test]
fn xfs_arrives_in_other_blocks_and_is_mounted_read_only() {
    let bench = Bench::new();
    let (from, to) = pair(&bench, Filesystem::Xfs);
    let target = bench.path().join("target");
    image(&from, "image", Parent::Base, &target, 1);
    transfer(&from, &to, "image", None);
    assert_same(&from, &to, "image");
    to.mount("image", &target).unwrap();
    assert!(fs::read(target.join("directory/image")).unwrap() == pattern(1, FILE));
    let error = fs::write(target.join("last"), "changed").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    to.unmount("image").unwrap();
    close_sound(&from);
    close_sound(&to);
}

/// One link of a chain: a few writes and discards, also across blocks, and in `expected`, too.
fn change(writer: &SnapshotWriter<'_>, expected: &mut [u8], link: usize) {
    let size = expected.len();
    for n in 0..3 {
        let bytes = pattern((link * 3 + n) as u64, 5_000 + n * 30_001);
        let at = (link * 1_300_037 + n * 5_000_011) % (size - bytes.len());
        writer.write_at(Bytes(at as u64), &bytes).unwrap();
        expected[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    for n in 0..2 {
        let length = 100_000 + n * 100_000;
        let at = (link * 2_100_053 + n * 7_000_003) % (size - length);
        writer.zero(Bytes(at as u64), Bytes(length as u64)).unwrap();
        expected[at..at + length].fill(0);
    }
}

#[test]
fn a_chain_of_twenty_differences_arrives_byte_for_byte() {
    let bench = Bench::new();
    let (from, to) = pair(&bench, Filesystem::None);
    let mut expected = vec![0; 4 << 20];
    let size = AddOptions::new().size(Bytes(expected.len() as u64));
    let mut before: Option<String> = None;
    for link in 0..=20 {
        let id = format!("link-{link}");
        let writer = from.create(&id, before.as_deref().map(Parent::Snapshot), &size).unwrap();
        change(&writer, &mut expected, link);
        writer.commit_sealed().unwrap();
        let sent = transfer(&from, &to, &id, before.as_deref());
        assert!(sent < 1 << 20, "{id}: {sent} bytes");
        if link == 0 {
            // The removal of the last active thin device of a machine takes long.
            from.activate(&id).unwrap();
        } else if link % 5 == 0 {
            assert!(content(&to, &id) == expected, "{id} differs");
            assert_same(&from, &to, &id);
        }
        before = Some(id);
    }
    from.deactivate("link-0").unwrap();
    assert_same(&from, &to, "link-0");
    close_sound(&from);
    close_sound(&to);
}

#[test]
fn a_subtree_arrives_in_one_stream() {
    let bench = Bench::new();
    let (from, to) = pair(&bench, Filesystem::Ext4);
    let target = bench.path().join("target");
    image(&from, "image", Parent::Base, &target, 1);
    image(&from, "left", Parent::Snapshot("image"), &target, 2);
    image(&from, "right", Parent::Snapshot("image"), &target, 3);
    from.add("open", Parent::Snapshot("left")).unwrap();
    image(&from, "leaf", Parent::Snapshot("open"), &target, 4);
    let path = bench.path().join("stream");
    let mut file = File::create(&path).unwrap();
    from.send_tree("image", &mut file, SendOptions::new()).unwrap();
    to.receive(File::open(&path).unwrap(), ReceiveOptions::new()).unwrap();
    let mut received: Vec<_> = to.list().into_iter().map(|info| info.id.to_string()).collect();
    received.sort();
    assert_eq!(received, ["image", "leaf", "left", "right"]);
    for id in &received {
        assert_same(&from, &to, id);
    }
    to.mount("leaf", &target).unwrap();
    for (id, seed) in [("image", 1), ("left", 2), ("leaf", 4)] {
        assert!(fs::read(target.join("directory").join(id)).unwrap() == pattern(seed, FILE), "{id}");
    }
    to.unmount("leaf").unwrap();
    close_sound(&from);
    close_sound(&to);
}

#[test]
fn a_sealed_snapshot_is_read_only_until_it_is_unsealed() {
    let bench = Bench::new();
    let tree = tree(&bench, "tree", Bytes::kib(64), Filesystem::Ext4);
    let target = bench.path().join("target");
    image(&tree, "image", Parent::Base, &target, 1);
    let sealed = content(&tree, "image");

    assert_eq!(write_to_device(&tree, "image").unwrap_err().kind(), ErrorKind::PermissionDenied);
    tree.mount("image", &target).unwrap();
    let error = fs::write(target.join("last"), "changed").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    assert!(matches!(tree.unseal("image"), Err(Error::Mounted { .. })));
    tree.unmount("image").unwrap();
    assert!(content(&tree, "image") == sealed, "a read-only mount writes nothing");

    tree.unseal("image").unwrap();
    tree.mount("image", &target).unwrap();
    fs::write(target.join("last"), "changed").unwrap();
    tree.unmount("image").unwrap();
    write_to_device(&tree, "image").unwrap();
    assert!(content(&tree, "image") != sealed);
    close_sound(&tree);
}
