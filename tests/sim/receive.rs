//! A receive, with each of its calls cut or failing.

use std::io::{self, Read};

use dm_thin::Error;
use dm_thin::kernel::Kernel;
use dm_thin::tree::{AddOptions, ReceiveOptions, SendOptions, SnapshotWriter};

use super::*;

const SIZE: Bytes = Bytes::mib(2);

/// Streams of `one`, whole, and of `two`, as its difference; and what is in both.
struct Sent {
    world: World,
    whole: Vec<u8>,
    difference: Vec<u8>,
}

impl Sent {
    fn new() -> Self {
        Self::with(|two| {
            two.write_at(Bytes::kib(100), &[2; 50_000]).unwrap();
            two.zero(Bytes(0), Bytes::kib(64)).unwrap();
        })
    }

    fn with(write: impl FnOnce(&SnapshotWriter<'_>)) -> Self {
        let mut world = World::new(0);
        world.open().unwrap();
        let tree = world.tree.as_ref().unwrap();
        let writer = tree.create("one", None, &AddOptions::new().size(SIZE)).unwrap();
        writer.write_at(Bytes(1000), &[1; 200_000]).unwrap();
        writer.commit_sealed().unwrap();
        let writer = tree.create("two", Some(Parent::Snapshot("one")), &AddOptions::new()).unwrap();
        write(&writer);
        writer.commit_sealed().unwrap();
        let (mut whole, mut difference) = (Vec::new(), Vec::new());
        tree.send("one", None, &mut whole, SendOptions::new()).unwrap();
        tree.send("two", Some("one"), &mut difference, SendOptions::new()).unwrap();
        Self { world, whole, difference }
    }

    fn tree(&self) -> &SnapshotTree {
        self.world.tree.as_ref().unwrap()
    }

    /// A world that has `one`.
    fn receiver(&self, seed: u64) -> World {
        let mut world = World::new(seed);
        world.open().unwrap();
        world.tree.as_ref().unwrap().receive(self.whole.as_slice(), ReceiveOptions::new()).unwrap();
        world.known.insert("one".to_owned(), Origin::Base);
        world
    }

    fn receive(&self, world: &World, resumable: bool) -> dm_thin::Result<()> {
        let options = ReceiveOptions::new().resumable(resumable).checkpoint_every(Bytes(4096));
        world.tree.as_ref().unwrap().receive(self.difference.as_slice(), options).map(drop)
    }

    /// `two` is there or not; then the rest is sent, and the two trees have the same.
    fn look(&self, world: &mut World, resumable: bool) {
        let tree = world.tree.as_ref().unwrap();
        let partial = tree.partial_receives();
        assert!(resumable || partial.is_empty(), "{partial:?}");
        assert_eq!(tree.check().unwrap(), []);
        assert!(content(tree, "one") == content(self.tree(), "one"), "the base is as it was");
        if !tree.contains("two") {
            let resume = partial.first().map_or(Bytes(0), |partial| partial.offset);
            let mut rest = Vec::new();
            let options = SendOptions::new().resume_from(resume);
            self.tree().send("two", Some("one"), &mut rest, options).unwrap();
            tree.receive(rest.as_slice(), ReceiveOptions::new()).unwrap();
        }
        assert!(content(tree, "two") == content(self.tree(), "two"));
        world.known.insert("two".to_owned(), Origin::Snapshot("one".to_owned()));
        world.check();
    }
}

fn is_state_unknown(error: &Error) -> bool {
    match error {
        Error::Receive { source, .. } => is_state_unknown(source),
        error => matches!(error, Error::StateUnknown),
    }
}

fn content(tree: &SnapshotTree, id: &str) -> Vec<u8> {
    let reader = tree.open_snapshot(id).unwrap();
    let mut bytes = vec![0; usize::try_from(reader.size().0).unwrap()];
    reader.read_at(Bytes(0), &mut bytes).unwrap();
    bytes
}

#[test]
fn a_receive_is_whole_or_can_be_done_again_when_the_power_goes() {
    let _no_others = FORKS.write();
    let sent = Sent::new();
    for resumable in [false, true] {
        for files in [false, true] {
            let mut cuts = 0;
            for call in 1.. {
                let mut world = sent.receiver(call);
                if files {
                    world.disk.plan(call, Fault::Cut)
                } else {
                    world.kernel.cut_at(call)
                }
                let received = sent.receive(&world, resumable);
                if !world.kernel.is_cut() {
                    received.unwrap();
                    break;
                }
                cuts += 1;
                world.recover();
                sent.look(&mut world, resumable);
            }
            assert!(cuts > 5, "{cuts} calls");
        }
    }
}

#[test]
fn a_receive_that_fails_leaves_nothing_or_what_can_be_continued() {
    let _no_others = FORKS.write();
    let sent = Sent::new();
    for resumable in [false, true] {
        for files in [false, true] {
            let mut failures = 0;
            for call in 1.. {
                let mut world = sent.receiver(call);
                let calls = |world: &World| if files { world.disk.calls() } else { world.kernel.calls() };
                let before = calls(&world);
                if files {
                    world.disk.plan(call, Fault::NoSpace)
                } else {
                    world.kernel.fail_at(call, Errno::EIO)
                }
                let received = sent.receive(&world, resumable);
                let failed = calls(&world) - before >= call;
                world.kernel.heal();
                world.disk.forget_faults();
                match received {
                    Ok(()) if !failed => break,
                    Ok(()) => {}
                    Err(error) if is_state_unknown(&error) => world.recover(),
                    // What could not be undone at once is undone now.
                    Err(_) => drop(world.tree.as_ref().unwrap().repair().unwrap()),
                }
                failures += 1;
                sent.look(&mut world, resumable);
            }
            assert!(failures > 5, "{failures} calls");
        }
    }
}

/// Lets the power go when so much of a stream was read.
struct CutAfter<'a> {
    stream: &'a [u8],
    left: usize,
    kernel: &'a ModelKernel,
}

impl Read for CutAfter<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.kernel.is_cut() {
            self.kernel.cut_at(1);
            // Any call settles it.
            let _ = self.kernel.mount_table();
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
    let _no_others = FORKS.write();
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
            let mut world = sent.receiver(left as u64);
            let stream = CutAfter { stream: &sent.difference, left, kernel: &world.kernel };
            let options = ReceiveOptions::new().resumable(resumable).checkpoint_every(CHECKPOINT);
            world.tree.as_ref().unwrap().receive(stream, options).unwrap_err();
            assert!(world.kernel.is_cut());
            cuts += 1;
            world.recover();
            if resumable {
                // No more than a checkpoint's amount is sent again.
                let received = left / (DATA + 100) * STEP;
                let partial = world.tree.as_ref().unwrap().partial_receives();
                let offset = partial.first().map_or(0, |partial| partial.offset.0);
                assert!(offset + CHECKPOINT.0 + STEP as u64 >= received as u64, "{offset} of {received}");
            }
            sent.look(&mut world, resumable);
        }
    }
    println!("{cuts} power cuts");
    assert!(cuts > 2 * 45, "{cuts} cuts");
}
