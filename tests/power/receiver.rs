//! In the guest, beside the workers: one stream after the other is received until the power goes. After that nothing is
//! left of it, or, if it was resumable, it is continued.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use dm_thin::tree::stream::{Encoder, StreamHeader, VolumeHeader};
use dm_thin::tree::{Finding, ReceiveOptions, SnapshotTree};
use dm_thin::units::Bytes;
use uuid::Uuid;

use crate::worker::say;

const PREFIX: &str = "stream-";
const RESUMABLE: &str = "-resumable";
const SIZE: Bytes = Bytes::mib(32);
/// Of each stride the first piece contains data.
const PIECE: u64 = 32 << 10;
const STRIDE: u64 = 512 << 10;

/// Whether a snapshot came out of a stream.
pub fn is_received(id: &str) -> bool {
    id.starts_with(PREFIX)
}

/// Identity of the content that belongs to an id.
fn identity(id: &str) -> Uuid {
    Uuid::from_u64_pair(BuildHasherDefault::<DefaultHasher>::default().hash_one(id), 7)
}

/// What the piece at an offset contains: the identity and the offset in each 4096 bytes.
fn piece(volume: Uuid, offset: u64) -> Vec<u8> {
    let mut bytes = vec![volume.as_bytes()[0] | 1; usize::try_from(PIECE).unwrap()];
    for (block, at) in bytes.chunks_mut(4096).zip((offset..).step_by(4096)) {
        block[..16].copy_from_slice(volume.as_bytes());
        block[16..24].copy_from_slice(&at.to_le_bytes());
    }
    bytes
}

/// The stream that `SnapshotTree::send` would write from `resume` on.
fn stream(id: &str, resume: Bytes) -> Vec<u8> {
    let volume = identity(id);
    let header = StreamHeader { stream: Uuid::new_v4(), tree: Uuid::nil() };
    let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
    let header = VolumeHeader {
        volume,
        base: None,
        name: id.to_owned(),
        size: SIZE,
        block_size: Bytes::kib(64),
        filesystem: None,
        labels: BTreeMap::new(),
        resume,
    };
    encoder.begin(&header).unwrap();
    for start in (0..SIZE.0).step_by(usize::try_from(STRIDE).unwrap()) {
        let from = start.max(resume.0);
        if from < start + PIECE {
            let skip = usize::try_from(from - start).unwrap();
            encoder.data(Bytes(from), &piece(volume, start)[skip..]).unwrap();
        }
    }
    encoder.end_volume().unwrap();
    encoder.finish().unwrap().0
}

fn options(id: &str) -> ReceiveOptions<'static> {
    ReceiveOptions::new().resumable(id.ends_with(RESUMABLE)).checkpoint_every(Bytes(PIECE))
}

/// Continues what the power cut. Nothing else may be left: not of a receive that was not resumable, nor of one that was
/// acknowledged, or that nobody began.
pub fn resume(tree: &SnapshotTree, doubt: &BTreeMap<String, String>) {
    // What cannot be told from a snapshot that somebody was told of stays until it is repaired.
    let found = tree.check().unwrap();
    assert!(found.iter().all(|finding| matches!(finding, Finding::Orphan { .. })), "{found:?}");
    if !found.is_empty() {
        say(&format!("orphans: {found:?}"));
        assert_eq!(tree.repair().unwrap().left, []);
    }
    for partial in tree.partial_receives() {
        let id = partial.id.as_str();
        assert!(doubt.contains_key(id), "a receive of {id} came from nowhere");
        assert!(id.ends_with(RESUMABLE), "the receive of {id} was not resumable");
        assert_eq!((partial.volume, partial.size), (identity(id), SIZE));
        tree.receive(stream(id, partial.offset).as_slice(), ReceiveOptions::new()).unwrap();
        say(&format!("continued {id} from {}", partial.offset.0));
    }
    assert_eq!(tree.partial_receives(), []);
}

/// The snapshot has all of its content.
pub fn check(tree: &SnapshotTree, id: &str) {
    let volume = identity(id);
    assert_eq!(tree.get(id).unwrap().sealed, Some(volume), "{id}");
    let reader = tree.open_snapshot(id).unwrap();
    let mut found = vec![0; usize::try_from(STRIDE).unwrap()];
    for start in (0..SIZE.0).step_by(found.len()) {
        reader.read_at(Bytes(start), &mut found).unwrap();
        let mut expected = piece(volume, start);
        expected.resize(found.len(), 0);
        assert!(found == expected, "{id} is not what was sent, at {start}");
    }
}

/// Receives, every other time resumably, and keeps the last snapshot.
pub fn work(tree: &SnapshotTree, life: &str) {
    let mut last: Option<String> = None;
    for round in 0.. {
        let id = format!("{PREFIX}{life}-{round}{}", if round % 2 == 0 { RESUMABLE } else { "" });
        let stream = stream(&id, Bytes(0));
        say(&format!("begin add {id}"));
        tree.receive(stream.as_slice(), options(&id)).unwrap();
        say(&format!("added {id} {id}"));
        if let Some(last) = last.replace(id) {
            say(&format!("begin remove {last}"));
            tree.remove(&last).unwrap();
            say(&format!("removed {last}"));
        }
    }
}
