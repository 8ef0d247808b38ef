//! A receive, with each of its calls cut or failing.

use std::io::{self, Read};

use dm_thin::Errno;
use dm_thin::model::ModelKernel;
use dm_thin::tree::Result;
use dm_thin::tree::{AddOptions, Parent, ReceiveOptions, SendOptions, SnapshotTree, SnapshotWriter};
use dm_thin::units::Bytes;
use uuid::Uuid;

use crate::fixture::Fixture;
use crate::owner::is_state_unknown;
use crate::snapshots::{Origin, Sealed, Snapshot, empty};

const SIZE: Bytes = Bytes::mib(2);

/// Streams of `one`, whole, and of `two`, as its difference; and what is in both.
struct Sent {
    sender: Fixture,
    whole: Vec<u8>,
    difference: Vec<u8>,
    uuids: [Uuid; 2],
}

impl Sent {
    fn new() -> Self {
        Self::with(|two| {
            two.write_at(Bytes::kib(100), &[2; 50_000]).unwrap();
            two.zero(Bytes(0), Bytes::kib(64)).unwrap();
        })
    }

    fn with(write: impl FnOnce(&SnapshotWriter<'_>)) -> Self {
        let sender = Fixture::new(0);
        let tree = sender.tree();
        let writer = tree.create("one", None, &AddOptions::new().size(SIZE)).unwrap();
        writer.write_at(Bytes(1000), &[1; 200_000]).unwrap();
        let one = writer.commit_sealed().unwrap();
        let writer = tree.create("two", Some(Parent::Snapshot("one")), &AddOptions::new()).unwrap();
        write(&writer);
        let two = writer.commit_sealed().unwrap();
        let (mut whole, mut difference) = (Vec::new(), Vec::new());
        tree.send("one", None, &mut whole, SendOptions::new()).unwrap();
        tree.send("two", Some("one"), &mut difference, SendOptions::new()).unwrap();
        Self { sender, whole, difference, uuids: [one, two] }
    }

    /// A tree that has `one`.
    fn receiver(&self, seed: u64) -> Fixture {
        let mut fixture = Fixture::new(seed);
        fixture.tree().receive(self.whole.as_slice(), ReceiveOptions::new()).unwrap();
        fixture.owner.known.insert("one".to_owned(), snapshot(Origin::Base, self.uuids[0]));
        fixture
    }

    fn receive(&self, fixture: &Fixture, resumable: bool) -> Result<()> {
        let options = ReceiveOptions::new().resumable(resumable).checkpoint_every(Bytes(4096));
        fixture.tree().receive(self.difference.as_slice(), options).map(drop)
    }

    /// `two` is there or not; then the rest is sent, and the two trees have the same.
    fn look(&self, fixture: &mut Fixture, resumable: bool) {
        let (tree, sender) = (fixture.tree(), self.sender.tree());
        let partial = tree.partial_receives();
        assert!(resumable || partial.is_empty(), "{partial:?}");
        assert_eq!(tree.check().unwrap(), []);
        assert!(content(tree, "one") == content(sender, "one"), "the base is as it was");
        if !tree.contains("two") {
            let resume = partial.first().map_or(Bytes(0), |partial| partial.offset);
            let mut rest = Vec::new();
            let options = SendOptions::new().resume_from(resume);
            sender.send("two", Some("one"), &mut rest, options).unwrap();
            tree.receive(rest.as_slice(), ReceiveOptions::new()).unwrap();
        }
        assert!(content(tree, "two") == content(sender, "two"));
        let two = snapshot(Origin::Snapshot("one".to_owned()), self.uuids[1]);
        fixture.owner.known.insert("two".to_owned(), two);
        fixture.owner.check_volumes(Some(&[]));
    }
}

fn snapshot(origin: Origin, uuid: Uuid) -> Snapshot {
    Snapshot { origin, sealed: Sealed::As(uuid), content: empty() }
}

fn content(tree: &SnapshotTree, id: &str) -> Vec<u8> {
    let reader = tree.open_snapshot(id).unwrap();
    let mut bytes = vec![0; usize::try_from(reader.size().0).unwrap()];
    reader.read_at(Bytes(0), &mut bytes).unwrap();
    bytes
}

#[test]
fn a_receive_is_whole_or_can_be_done_again_when_the_power_goes() {
    let sent = Sent::new();
    for resumable in [false, true] {
        let mut cuts = 0;
        for call in 1.. {
            let mut receiver = sent.receiver(call);
            receiver.owner.process.cut_at(call);
            let received = sent.receive(&receiver, resumable);
            if !receiver.owner.process.is_cut() {
                received.unwrap();
                break;
            }
            cuts += 1;
            receiver.recover(!call.is_multiple_of(3));
            sent.look(&mut receiver, resumable);
        }
        assert!(cuts > 20, "{cuts} calls");
    }
}

#[test]
fn a_receive_that_fails_leaves_nothing_or_what_can_be_continued() {
    let sent = Sent::new();
    for resumable in [false, true] {
        let mut failures = 0;
        for call in 1.. {
            let mut receiver = sent.receiver(call);
            let before = receiver.owner.process.calls();
            receiver.owner.process.fail_at(call, Errno::EIO);
            let received = sent.receive(&receiver, resumable);
            let failed = receiver.owner.process.calls() - before >= call;
            receiver.owner.process.heal();
            match received {
                Ok(()) if !failed => break,
                Ok(()) => {}
                Err(error) if is_state_unknown(&error) => receiver.recover(false),
                // What could not be undone at once is undone now.
                Err(_) => drop(receiver.tree().repair().unwrap()),
            }
            failures += 1;
            sent.look(&mut receiver, resumable);
        }
        assert!(failures > 20, "{failures} calls");
    }
}

/// Lets the power go when so much of a stream was read.
struct CutAfter<'a> {
    stream: &'a [u8],
    left: usize,
    process: &'a ModelKernel,
}

impl Read for CutAfter<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.process.is_cut() {
            self.process.cut_at(1);
            self.process.call_elsewhere("read stream", "").unwrap_err();
        }
        let length = if self.left == 0 { buffer.len() } else { buffer.len().min(self.left) };
        self.left = self.left.saturating_sub(length);
        self.stream.read(&mut buffer[..length])
    }
}

#[test]
fn the_power_goes_at_every_16_kib_of_a_receive() {
    const STEP: usize = 16 << 10;
    const DATA: usize = 12 << 10;
    const CHECKPOINT: Bytes = Bytes::kib(64);
    // A record of data and one of zeroes for each step of the volume.
    let sent = Sent::with(|two| {
        for at in (0..SIZE.0 / 2).step_by(STEP) {
            two.write_at(Bytes(at), &[2; DATA]).unwrap();
            two.write_at(Bytes(at + DATA as u64), &[0; STEP - DATA]).unwrap();
        }
    });
    let mut cuts = 0;
    for resumable in [false, true] {
        for left in (0..sent.difference.len()).step_by(STEP) {
            let mut receiver = sent.receiver(left as u64);
            let stream = CutAfter { stream: &sent.difference, left, process: &receiver.owner.process };
            let options = ReceiveOptions::new().resumable(resumable).checkpoint_every(CHECKPOINT);
            receiver.tree().receive(stream, options).unwrap_err();
            assert!(receiver.owner.process.is_cut());
            cuts += 1;
            receiver.recover(!(left / STEP).is_multiple_of(3));
            if resumable {
                // No more than a checkpoint's amount is sent again.
                let received = left / (DATA + 100) * STEP;
                let partial = receiver.tree().partial_receives();
                let offset = partial.first().map_or(0, |partial| partial.offset.0);
                assert!(offset + CHECKPOINT.0 + STEP as u64 >= received as u64, "{offset} of {received}");
            }
            sent.look(&mut receiver, resumable);
        }
    }
    println!("{cuts} power cuts");
    assert!(cuts > 2 * 45, "{cuts} cuts");
}
