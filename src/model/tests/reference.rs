//! Random writes, snapshots, discards and power cuts against plain arrays of bytes.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::image::decode;
use super::*;
use crate::abi::block::BLKDISCARD;
use crate::kernel::AlignedBlock;

const BYTES: u64 = BLOCK * 512;
/// Size of a volume in blocks.
const BLOCKS: u64 = 6;

#[derive(Debug, Clone)]
enum Step {
    Create(u32),
    Snapshot(u32, u32),
    Delete(u32),
    Write(u32, u64, usize, u8),
    Discard(u32, u64, u64),
    Sync(u32),
    Reserve,
    Release,
    PowerCut,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 0..4u32;
    prop_oneof![
        2 => id().prop_map(Step::Create),
        3 => (id(), id()).prop_map(|(id, origin)| Step::Snapshot(id, origin)),
        1 => id().prop_map(Step::Delete),
        9 => (id(), 0..BLOCKS * BYTES, 1..100_000usize, 1..=u8::MAX)
            .prop_map(|(id, at, len, byte)| Step::Write(id, at, len, byte)),
        2 => (id(), 0..BLOCKS, 1..BLOCKS).prop_map(|(id, from, count)| Step::Discard(id, from, count)),
        2 => id().prop_map(Step::Sync),
        1 => Just(Step::Reserve),
        1 => Just(Step::Release),
        1 => Just(Step::PowerCut),
    ]
}

/// The volumes' bytes: now, and what a power cut leaves.
#[derive(Debug, Default)]
struct Reference {
    now: BTreeMap<u32, Vec<u8>>,
    durable: BTreeMap<u32, Vec<u8>>,
}

impl Machine {
    /// The thin volume of that id, active from now on.
    fn volume(&self, id: u32) -> Option<DeviceFile> {
        let device = format!("v{id}");
        if self.dm.find(DmId::Name(&name(&device))).unwrap().is_none() {
            self.make(&device);
            if self.load(&device, "thin", &format!("253:0 {id}"), BLOCKS * BLOCK).is_err() {
                self.dm.remove(&name(&device)).unwrap();
                return None;
            }
            self.dm.resume(&name(&device)).unwrap();
        }
        Some(self.open(&format!("/dev/mapper/{device}")))
    }

    fn message_succeeds(&self, text: &str) -> bool {
        self.message("pool", text).is_ok()
    }

    fn run(self, reference: &mut Reference, step: Step) -> Self {
        let volume = |id| self.volume(id);
        let zeroes = || vec![0; usize::try_from(BLOCKS * BYTES).unwrap()];
        match step {
            Step::Create(id) => {
                if self.message_succeeds(&format!("create_thin {id}")) {
                    assert!(reference.now.insert(id, zeroes()).is_none());
                }
            }
            Step::Snapshot(id, origin) => {
                if self.message_succeeds(&format!("create_snap {id} {origin}")) {
                    let bytes = reference.now[&origin].clone();
                    assert!(reference.now.insert(id, bytes).is_none());
                }
            }
            Step::Delete(id) => {
                // Absent, if it is not active.
                let _ = self.dm.remove(&name(&format!("v{id}")));
                if self.message_succeeds(&format!("delete {id}")) {
                    reference.now.remove(&id);
                }
            }
            Step::Write(id, at, len, byte) => {
                let Some(file) = volume(id) else { return self };
                let written = self.kernel.write_at(&file, at, &vec![byte; len]).unwrap();
                let at = usize::try_from(at).unwrap();
                reference.now.get_mut(&id).unwrap()[at..at + written].fill(byte);
                return self;
            }
            Step::Discard(id, from, count) => {
                let Some(file) = volume(id) else { return self };
                let end = (from + count).min(BLOCKS);
                let mut range = [(from * BYTES).to_ne_bytes(), ((end - from) * BYTES).to_ne_bytes()].concat();
                self.kernel.ioctl(&file, BLKDISCARD, Arg::Bytes(&mut range)).unwrap();
                let range = usize::try_from(from * BYTES).unwrap()..usize::try_from(end * BYTES).unwrap();
                reference.now.get_mut(&id).unwrap()[range].fill(0);
                return self;
            }
            Step::Sync(id) => {
                let Some(file) = volume(id) else { return self };
                self.kernel.sync(&file).unwrap();
            }
            Step::Reserve => drop(self.message_succeeds("reserve_metadata_snap")),
            Step::Release => drop(self.message_succeeds("release_metadata_snap")),
            Step::PowerCut => {
                reference.now.clone_from(&reference.durable);
                return self.power_cut();
            }
        }
        // Every other one commits, or has changed nothing.
        self.kernel.commit();
        reference.durable.clone_from(&reference.now);
        self
    }

    /// The metadata device says what the pool has, and the volumes what the reference has.
    fn compare(&self, reference: &Reference) {
        let metadata = self.kernel.open(Path::new("/dev/loop0"), Access::READ.direct()).unwrap();
        let block = |number: u64| {
            let mut block = AlignedBlock::zeroed(1);
            self.kernel.read_at(&metadata, number * 4096, block.as_mut_bytes()).unwrap();
            block[0].0
        };
        let (committed, _) = decode(&block);
        assert!(committed.thins.keys().eq(reference.durable.keys()));
        for (&id, expected) in &reference.now {
            let file = self.volume(id).unwrap();
            let mut bytes = vec![0xee; expected.len()];
            assert_eq!(self.kernel.read_at(&file, 0, &mut bytes), Ok(expected.len()));
            assert!(bytes == *expected, "volume {id}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn volumes_have_what_was_written_to_them(steps in vec(step(), 1..40)) {
        let (mut machine, mut reference) = (Machine::with_pool(), Reference::default());
        for step in steps {
            machine = machine.run(&mut reference, step);
            machine.compare(&reference);
        }
    }
}
