use proptest::prelude::*;

use super::*;
use crate::thin::ThinId;
use crate::tree::SnapshotId;
use crate::tree::state::record::{FsState, IdWindow, Snapshot};

const PATH: &str = "/root/journal.0";
const OTHER: &str = "/root/journal.1";

/// One journal, and another one that was never written.
fn alone(bytes: &[u8]) -> [Journal<'_>; 2] {
    both(bytes, &[])
}

fn both<'a>(first: &'a [u8], second: &'a [u8]) -> [Journal<'a>; 2] {
    let journal = |path, bytes| Journal { path: Path::new(path), bytes };
    [journal(PATH, first), journal(OTHER, second)]
}

fn state() -> State {
    let pool = PoolRecord {
        data_size: Bytes::gib(100),
        metadata_size: Bytes::gib(2),
        block_size: Bytes::kib(64),
        low_water_mark: Blocks(32_768),
        features: PoolFeatures::default(),
        made: true,
        source: PoolSource::default(),
        adopted: None,
        label: None,
        devices: None,
    };
    let (tree, filesystem, graph) = (Uuid::from_u128(7), Filesystem::Ext4, Graph::default());
    State {
        format: FORMAT,
        tree,
        nonce: 7,
        new_nonce: false,
        generation: 3,
        journal: Position::default(),
        pool,
        filesystem,
        graph,
    }
}

fn add(index: u32) -> Record {
    let snapshot = Snapshot::new(ThinId::new(index).unwrap(), None, Bytes::gib(10), FsState::Ready);
    Record::Add { id: SnapshotId::new(&format!("snapshot-{index}")).unwrap(), snapshot }
}

/// A journal of so many changes, each synced before the next one is written.
fn journal(changes: u32) -> (State, Vec<u8>) {
    let mut state = state();
    let mut bytes = Vec::new();
    for index in 0..changes {
        let record = if index == 0 {
            Record::Reserve(IdWindow { from: 0, to: 64, in_flight: Vec::new() })
        } else {
            add(index)
        };
        let (line, position) = encode_line(state.journal, u64::from(index), &record).unwrap();
        state.graph.apply(&record).unwrap();
        state.journal = position;
        bytes.extend(line);
    }
    (state, bytes)
}

fn read(bytes: &[u8], acknowledged: u64) -> Result<(State, u64)> {
    let mut state = state();
    let replayed = replay(&mut state, alone(bytes), acknowledged)?;
    state.journal = replayed.last;
    Ok((state, replayed.len))
}

#[test]
fn a_line_as_it_is() {
    let (line, _) = encode_line(Position { seq: 6, crc: 1 }, 5, &add(9)).unwrap();
    assert_eq!(
        std::str::from_utf8(&line).unwrap(),
        concat!(
            r#"{"seq":7,"synced":5,"crc":"2bbedcdc","record":{"op":"add","id":"snapshot-9","#,
            r#""snapshot":{"thin_id":9,"size":10737418240,"fs":"ready"}}}"#,
            "\n"
        )
    );
}

#[test]
fn the_journal_is_read_back() {
    let (state, bytes) = journal(10);
    assert_eq!(read(&bytes, 10).unwrap(), (state, bytes.len() as u64));
}

#[test]
fn a_checkpoint_is_read_back() {
    let (state, _) = journal(10);
    let bytes = encode_state(&state).unwrap();
    assert_eq!(decode_state(&bytes, Path::new("state.json")).unwrap(), state);
}

#[test]
fn every_flipped_bit_of_a_checkpoint_is_noticed_or_harmless() {
    let (state, _) = journal(3);
    let bytes = encode_state(&state).unwrap();
    for index in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[index / 8] ^= 1 << (index % 8);
        match decode_state(&flipped, Path::new("state.json")) {
            Ok(read) => assert_eq!(read, state, "byte {}", index / 8),
            Err(error) => assert!(matches!(error, Error::Corrupt { .. }), "{error}"),
        }
    }
}

#[test]
fn every_flipped_bit_of_an_acknowledged_line_is_noticed_or_harmless() {
    let (state, bytes) = journal(5);
    for index in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[index / 8] ^= 1 << (index % 8);
        match read(&flipped, 5) {
            Ok((read, _)) => assert_eq!(read, state, "byte {}", index / 8),
            Err(error) => assert!(matches!(error, Error::Corrupt { line: Some(_), .. }), "{error}"),
        }
    }
}

/// A manager that is killed between a write and taking it back leaves a line that the state refuses.
#[test]
fn a_line_that_the_state_refused_is_left_out_unless_it_was_acknowledged() {
    let (state, mut bytes) = journal(5);
    let whole = bytes.len() as u64;
    let (refused, _) =
        encode_line(state.journal, 5, &Record::Unmade { thin_id: ThinId::new(77).unwrap() }).unwrap();
    bytes.extend(refused);
    assert_eq!(read(&bytes, 5).unwrap(), (state, whole));
    assert!(matches!(read(&bytes, 6), Err(Error::Corrupt { line: Some(6), .. })));
}

/// The same where the mark says nothing, as after a power cut: only the last line stands unvouched.
#[test]
fn every_flipped_bit_before_the_last_line_is_noticed_without_the_mark() {
    let (state, bytes) = journal(5);
    let last_line = bytes[..bytes.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap();
    for index in 0..last_line * 8 {
        let mut flipped = bytes.clone();
        flipped[index / 8] ^= 1 << (index % 8);
        match read(&flipped, 0) {
            Ok((read, _)) => assert_eq!(read, state, "byte {}", index / 8),
            Err(error) => assert!(matches!(error, Error::Corrupt { line: Some(_), .. }), "{error}"),
        }
    }
}

#[test]
fn every_truncation_loses_only_what_was_not_acknowledged() {
    let (_, bytes) = journal(5);
    for len in 0..bytes.len() {
        // A last line that lacks only its newline is whole.
        let whole = bytes[..=len].iter().filter(|&&byte| byte == b'\n').count() as u64;
        let (read_state, _) = read(&bytes[..len], whole).unwrap();
        assert_eq!(read_state.journal.seq, whole);
        assert!(matches!(read(&bytes[..len], whole + 1), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn lines_swapped_repeated_or_left_out_are_noticed() {
    let (_, bytes) = journal(4);
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    for order in [&[0, 2, 1, 3][..], &[0, 1, 1, 2, 3], &[0, 2, 3], &[1, 2, 3], &[3, 2, 1, 0]] {
        let bytes: Vec<u8> = order.iter().flat_map(|&index| lines[index]).copied().collect();
        assert!(matches!(read(&bytes, 4), Err(Error::Corrupt { .. })), "{order:?}");
    }
}

#[test]
fn an_older_copy_is_noticed() {
    let (_, older) = journal(3);
    let error = read(&older, 5).unwrap_err().to_string();
    assert_eq!(error, format!("{PATH}:3: ends with change 3, but change 5 was made"));
}

#[test]
fn lines_before_the_checkpoint_are_skipped() {
    let (state, bytes) = journal(6);
    let (older, _) = journal(4);
    let mut read = older;
    let replayed = replay(&mut read, alone(&bytes), 6).unwrap();
    read.journal = replayed.last;
    assert_eq!(read, state);
}

#[test]
fn lines_after_a_checkpoint_need_no_predecessor() {
    let (state, bytes) = journal(6);
    let mut read = state.clone();
    // Lines 5 and 6 are in the checkpoint, but got lost in the journal.
    let left = &bytes[..journal(4).1.len()];
    let replayed = replay(&mut read, alone(left), 6).unwrap();
    assert_eq!((replayed.last, replayed.len), (state.journal, 0));
}

proptest! {
    /// Lines that were not synced may reach the disk in any combination. What was synced stays.
    #[test]
    fn a_power_cut_loses_only_what_was_not_synced(
        synced in 0u32..8,
        unsynced in 1u32..8,
        holes in proptest::collection::vec((0usize..2000, 1usize..600), 0..6),
        keep in 0usize..2000,
    ) {
        let (state, mut bytes) = journal(synced);
        let from = bytes.len();
        let mut last = state.journal;
        for index in synced..synced + unsynced {
            let (line, position) = encode_line(last, u64::from(synced), &add(index + 1)).unwrap();
            bytes.extend(line);
            last = position;
        }
        bytes.truncate(bytes.len().min(from + keep));
        for (start, len) in holes {
            let start = (from + start).min(bytes.len());
            let end = (start + len).min(bytes.len());
            bytes[start..end].fill(0);
        }
        let (read, len) = read(&bytes, u64::from(synced)).unwrap();
        prop_assert!(read.journal.seq >= u64::from(synced));
        prop_assert!(len >= from as u64 || read.journal == Position::default());
        prop_assert!(state.graph.snapshots.iter().all(|(id, snapshot)| read.graph.snapshots[id] == *snapshot));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes, 0);
        let _ = decode_state(&bytes, Path::new("state.json"));
    }
}

#[test]
fn impossible_sizes_are_refused() {
    let wrong = |change: &dyn Fn(&mut State)| {
        let mut state = state();
        change(&mut state);
        let error = decode_state(&encode_state(&state).unwrap(), Path::new("/root/state.json")).unwrap_err();
        assert!(matches!(error, Error::Corrupt { line: None, .. }), "{error}");
    };
    for size in [Bytes(0), Bytes(1000), Bytes::kib(4), Bytes::gib(2), Bytes(u64::MAX)] {
        wrong(&|state| state.pool.block_size = size);
    }
    for size in [Bytes(0), Bytes(u64::MAX)] {
        wrong(&|state| state.pool.data_size = size);
        wrong(&|state| state.pool.metadata_size = size);
    }
    wrong(&|state| state.graph.ids.to = u32::MAX);
    wrong(&|state| state.graph.ids.from = 1);
}

/// The journals as a manager leaves them that goes to the other one after each `turn` lines, with checkpoints of the
/// state after `covered` lines; and the whole state.
fn turns(changes: u32, turn: u32, covered: u32) -> (State, State, [Vec<u8>; 2]) {
    let mut state = state();
    let (mut checkpoint, mut journals) = (state.clone(), [Vec::new(), Vec::new()]);
    let mut end = 0;
    for index in 0..changes {
        if index % turn == 0 {
            end = 0;
        }
        let record = if index == 0 {
            Record::Reserve(IdWindow { from: 0, to: 64, in_flight: Vec::new() })
        } else {
            add(index)
        };
        let (line, position) = encode_line(state.journal, u64::from(index), &record).unwrap();
        state.graph.apply(&record).unwrap();
        state.journal = position;
        // Over what was there.
        let journal: &mut Vec<u8> = &mut journals[(index / turn % 2) as usize];
        journal.resize(journal.len().max(end + line.len()), 0);
        journal[end..end + line.len()].copy_from_slice(&line);
        end += line.len();
        if index + 1 == covered {
            checkpoint = state.clone();
        }
    }
    (checkpoint, state, journals)
}

proptest! {
    /// Whatever the checkpoint contains of the last two turns, the journals give the rest.
    #[test]
    fn two_journals_are_read_in_their_order(changes in 1u32..40, turn in 1u32..9, behind in 0u32..16) {
        // A journal is written over when a checkpoint contains all of it.
        let oldest = (changes - 1) / turn * turn - ((changes - 1) / turn * turn).min(turn);
        let covered = oldest.max(changes.saturating_sub(behind));
        let (mut read, state, journals) = turns(changes, turn, covered);
        let replayed = replay(&mut read, both(&journals[0], &journals[1]), changes.into()).unwrap();
        read.journal = replayed.last;
        prop_assert_eq!(&read, &state);
        let current = ((changes - 1) / turn % 2) as usize;
        let in_current = changes - (changes - 1) / turn * turn;
        if covered < changes {
            prop_assert_eq!(replayed.current, current);
            prop_assert_eq!(replayed.needs_other, changes - covered > in_current);
            let lines = journals[current][..usize::try_from(replayed.len).unwrap()].split(|byte| *byte == b'\n');
            prop_assert_eq!(lines.count() - 1, in_current as usize);
        }
    }

    /// A line that the second journal shows to be durable is missed in the first one, wherever it is damaged.
    #[test]
    fn damage_before_the_other_journal_is_noticed(turn in 2u32..9, more in 1u32..8, at in 0usize..4000) {
        let changes = turn + more.min(turn);
        let (mut read, _, mut journals) = turns(changes, turn, 0);
        let at = at % (journals[0].len() - 1);
        journals[0][at] ^= 1;
        let found = replay(&mut read, both(&journals[0], &journals[1]), 0);
        prop_assert!(matches!(found, Err(Error::Corrupt { .. })), "{:?}", found);
    }
}
