//! The format of the state: a checkpoint, `state.json`, and the changes since, in two journals by turns. Pure.
//!
//! ```text
//! state.json           {"checksum": "<crc32 of the text of state>", "state": { … }}
//! journal.0 journal.1  {"seq":7,"synced":6,"crc":"<crc32>","record":{"op":"add", … }}
//! ```
//!
//! Lines are written to one journal, over what it contained, until a checkpoint is due. Then it is synced, and the next
//! line begins the other journal. When the checkpoint is durable, the first journal is free. What is left in a journal
//! of an earlier turn, behind the end or in all of it, is passed over: its numbers are too low.
//!
//! A line's CRC covers the CRC of the line before it and all of its own fields. So lines cannot be
//! exchanged, repeated or left out. The checkpoint holds the number and the CRC of the last line that it
//! contains; lines up to it are passed over.
//!
//! When the power goes, lines that were not synced yet may be there, torn or missing, in any combination.
//! Each line says up to which one the journal was synced when it was written, and the file `lock` holds
//! the number of the last one that was acknowledged to a caller. A bad line that neither vouches for, and what
//! follows it, was never acknowledged and is cut off. Any other bad line is corruption.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::thin::{PoolFeatures, check_block_size};
use crate::tree::Filesystem;
use crate::tree::state::device_ids::KnownDevices;
use crate::tree::state::graph::Graph;
use crate::tree::state::pool_source::{Adopted, PoolSource};
use crate::tree::state::record::Record;
use crate::tree::state::size::SIZE_MAX;
use crate::tree::{Error, Result};
use crate::units::{Blocks, Bytes};

/// The format that this crate writes. It reads format 1 as well, which has one journal.
pub(in crate::tree) const FORMAT: u32 = 2;

/// A place in the journal: the last line that was taken in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct Position {
    /// Its number; the first line has 1.
    pub seq: u64,
    /// Its CRC.
    pub crc: u32,
}

/// The pool as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct PoolRecord {
    /// Size of the data file.
    pub data_size: Bytes,
    /// Size of the metadata file.
    pub metadata_size: Bytes,
    /// Size of a data block; can never change.
    pub block_size: Bytes,
    /// Free data blocks below which the kernel raises an event.
    pub low_water_mark: Blocks,
    /// Features of the pool's table.
    pub features: PoolFeatures,
    /// Whether the files were made. Until then there is nothing in them to be lost.
    pub made: bool,
    /// Where it comes from.
    #[serde(default, skip_serializing_if = "PoolSource::is_default")]
    pub source: PoolSource,
    /// What it was, if it was not made for this tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
    /// The label of the device that it is on, if it is on one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Uuid>,
    /// What its two devices are, if it is on two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<KnownDevices>,
}

/// What `state.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::tree) struct State {
    /// Version of this format.
    pub format: u32,
    /// The tree's identity.
    pub tree: Uuid,
    /// Random bits of the tree that its pool carries; 0 in a tree that was last opened by a version without them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nonce: u32,
    /// The pool may not have the nonce yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_nonce: bool,
    /// Rises at each open and close and with each window of thin ids, then in the pool's transaction id, too.
    pub generation: u64,
    /// How much of the journal is in here.
    pub journal: Position,
    /// The pool.
    pub pool: PoolRecord,
    /// The kind of file system of the base.
    pub filesystem: Filesystem,
    /// The tree.
    pub graph: Graph,
}

impl State {
    /// What a checkpoint holds of it.
    pub(in crate::tree) fn stored(&mut self) -> Self {
        Self { graph: self.graph.stored(), pool: self.pool.clone(), ..*self }
    }

    /// Takes a change in, or says why it cannot be.
    pub(in crate::tree) fn apply(&mut self, record: &Record) -> Result<(), &'static str> {
        match record {
            Record::Generation { generation } if *generation <= self.generation => {
                Err("a generation that does not rise")
            }
            Record::Generation { generation } => {
                // Raised only when the pool has all before it.
                (self.generation, self.new_nonce) = (*generation, false);
                Ok(())
            }
            record => self.graph.apply(record),
        }
    }

    /// Sizes that no pool and no volume has would be divided by, or added up, later.
    fn check_sizes(&self) -> Result<()> {
        let block_size = self.pool.block_size;
        if !block_size.is_whole_sectors() {
            let reason = "not a multiple of 512";
            return Err(Error::InvalidOption { option: "block size", value: block_size.to_string(), reason });
        }
        check_block_size(block_size.sectors())?;
        let pool = [("data size", self.pool.data_size), ("metadata size", self.pool.metadata_size)];
        let base = self.graph.base.iter().map(|base| ("base size", base.size));
        let snapshots = self.graph.snapshots.values().chain(self.graph.adding.values());
        let snapshots = snapshots.map(|snapshot| snapshot.size);
        let removed = self.graph.removed.values().map(|removed| removed.size);
        let snapshots = snapshots.chain(removed).map(|size| ("snapshot size", size));
        let mut sizes = pool.into_iter().chain(base).chain(snapshots);
        match sizes.find(|(_, size)| size.0 == 0 || *size > SIZE_MAX) {
            Some((option, size)) => {
                let reason = "not a possible device size";
                Err(Error::InvalidOption { option, value: size.to_string(), reason })
            }
            None => Ok(()),
        }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    checksum: Cow<'a, str>,
    #[serde(borrow)]
    state: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    seq: u64,
    synced: u64,
    crc: Box<str>,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// What is around the state.
const HEAD: &str = "{\n  \"checksum\": \"00000000\",\n  \"state\": ";
const TAIL: &str = "\n}\n";
/// Where the digits of the checksum are.
const CHECKSUM: std::ops::Range<usize> = 17..25;

/// The bytes of `state.json`.
pub(in crate::tree) fn encode_state(state: &State) -> serde_json::Result<Vec<u8>> {
    // As serde writes an `Envelope`, without a copy of the text.
    let mut bytes = HEAD.as_bytes().to_vec();
    let begin = bytes.len();
    serde_json::to_writer_pretty(&mut bytes, state)?;
    let checksum = hex(crc32fast::hash(&bytes[begin..]));
    bytes[CHECKSUM].copy_from_slice(checksum.as_bytes());
    bytes.extend_from_slice(TAIL.as_bytes());
    Ok(bytes)
}

/// Checksum and state in what [`encode_state`] wrote, without parsing all of it for that.
fn split_state(bytes: &[u8]) -> Option<(Cow<'_, str>, &str)> {
    let rest = bytes.strip_prefix(&HEAD.as_bytes()[..CHECKSUM.start])?;
    let (checksum, rest) = rest.split_at_checked(CHECKSUM.len())?;
    let text = rest.strip_prefix(&HEAD.as_bytes()[CHECKSUM.end..])?.strip_suffix(TAIL.as_bytes())?;
    Some((str::from_utf8(checksum).ok()?.into(), str::from_utf8(text).ok()?))
}

/// Reads `state.json`.
pub(in crate::tree) fn decode_state(bytes: &[u8], path: &Path) -> Result<State> {
    let corrupt = |reason: String| Error::Corrupt { path: path.into(), line: None, reason };
    let in_json = |error: serde_json::Error| Error::Corrupt {
        path: path.into(),
        line: Some(error.line()),
        reason: error.to_string(),
    };
    let (checksum, text) = match split_state(bytes) {
        Some(parts) => parts,
        None => {
            let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(in_json)?;
            (envelope.checksum, envelope.state.get())
        }
    };
    if *checksum != *hex(crc32fast::hash(text.as_bytes())) {
        return Err(corrupt("the checksum does not match".into()));
    }
    // Another format may have other fields: its number comes first.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let format = match text.strip_prefix("{\n  \"format\": ").and_then(|rest| rest.split_once(',')) {
        Some((number, _)) => serde_json::from_str(number).map_err(in_json)?,
        // As another program may have written it.
        None => serde_json::from_str::<Format>(text).map_err(in_json)?.format,
    };
    if ![1, FORMAT].contains(&format) {
        return Err(corrupt(format!("format {format}; this version reads formats 1 and {FORMAT}")));
    }
    let mut state: State = serde_json::from_str(text).map_err(in_json)?;
    state.check_sizes().map_err(|error| corrupt(error.to_string()))?;
    state.graph.index().map_err(|reason| corrupt(reason.into()))?;
    Ok(state)
}

/// The line of a change that follows `last`, written when lines up to `synced` were durable; and its
/// position.
pub(in crate::tree) fn encode_line(
    last: Position,
    synced: u64,
    record: &Record,
) -> serde_json::Result<(Vec<u8>, Position)> {
    let seq = last.seq + 1;
    // As serde writes a `Line`, with one allocation for nearly every record.
    let mut bytes = Vec::with_capacity(512);
    write!(bytes, r#"{{"seq":{seq},"synced":{synced},"crc":"#).map_err(serde_json::Error::io)?;
    let crc_at = bytes.len();
    bytes.extend_from_slice(br#""00000000","record":"#);
    let record_at = bytes.len();
    serde_json::to_writer(&mut bytes, record)?;
    let crc = chain(last.crc, seq, synced, &bytes[record_at..]);
    write!(&mut bytes[crc_at..], r#""{crc:08x}""#).map_err(serde_json::Error::io)?;
    bytes.extend_from_slice(b"}\n");
    Ok((bytes, Position { seq, crc }))
}

/// What was read of the journals.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::tree) struct Replayed {
    /// The last line taken in.
    pub last: Position,
    /// The journal that it is in.
    pub current: usize,
    /// Bytes up to its end; 0 if everything is in the checkpoint.
    pub len: u64,
    /// Bytes of each journal that are whole lines.
    pub ends: [u64; 2],
    /// Whether lines of the other journal were taken in as well.
    pub needs_other: bool,
}

/// A journal as it was read.
#[derive(Debug, Clone, Copy)]
pub(in crate::tree) struct Journal<'a> {
    pub path: &'a Path,
    pub bytes: &'a [u8],
}

impl Journal<'_> {
    /// The number of its first line. Nothing readable is later than all: it was begun last.
    fn first(&self) -> u64 {
        let line = self.bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
        serde_json::from_slice(line).map_or(u64::MAX, |line: Line<'_>| line.seq)
    }

    fn corrupt(&self, line: usize, reason: String) -> Error {
        Error::Corrupt { path: self.path.into(), line: Some(line), reason }
    }
}

/// The first line that does not follow the one before it.
struct BadLine {
    /// Which journal it is in.
    which: usize,
    number: usize,
    reason: String,
    /// A later line says that it was durable.
    is_durable: bool,
}

/// Takes the journals' changes into `state`.
///
/// What the power cut short is left out: lines from the first bad one on, if nobody was told that it is
/// there. [`Error::Corrupt`] for any other bad line, and for journals that end before `acknowledged`.
pub(in crate::tree) fn replay(
    state: &mut State,
    journals: [Journal<'_>; 2],
    acknowledged: u64,
) -> Result<Replayed> {
    let covered = state.journal;
    let mut replayed = Replayed { last: covered, current: 0, len: 0, ends: [0; 2], needs_other: false };
    let order = if journals[1].first() < journals[0].first() { [1, 0] } else { [0, 1] };
    let mut last_number = 1;
    let mut bad: Option<BadLine> = None;
    for which in order {
        let journal = &journals[which];
        let bytes = journal.bytes;
        let (mut at, mut before, mut number) = (0, None, 0);
        while at < bytes.len() {
            number += 1;
            let end = bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |len| at + len);
            let line = parse(&bytes[at..end], before, replayed.last, covered);
            // A change that the state refused was never acknowledged.
            let applied = line.and_then(|(position, record)| match &record {
                Some(record) => state.apply(record).map(|()| (position, true)).map_err(str::to_owned),
                None => Ok((position, false)),
            });
            let (position, is_new) = match applied {
                Ok(line) => line,
                Err(reason) => {
                    // A line that does not follow a damaged journal is evidence itself.
                    let rest = if bad.is_some() { at } else { end };
                    let is_durable = is_known_durable(&bytes[rest..], replayed.last.seq + 1);
                    match &mut bad {
                        // The first bad line is the one to report.
                        Some(first) => first.is_durable |= is_durable,
                        None => bad = Some(BadLine { which, number, reason, is_durable }),
                    }
                    break;
                }
            };
            if position.seq == covered.seq && position != covered {
                return Err(journal.corrupt(number, "not the line that the checkpoint contains".into()));
            }
            if is_new {
                // The other journal ended where this one goes on.
                bad = bad.filter(|bad| bad.which == which);
                replayed.needs_other |= replayed.len > 0 && replayed.current != which;
                (replayed.last, replayed.current) = (position, which);
                replayed.len = bytes.len().min(end + 1) as u64;
            }
            before = Some(position);
            if which == replayed.current {
                last_number = number;
            }
            at = bytes.len().min(end + 1);
        }
        replayed.ends[which] = at as u64;
    }
    let last = replayed.last.seq;
    match bad {
        Some(bad) if bad.is_durable || last < acknowledged => {
            Err(journals[bad.which].corrupt(bad.number, bad.reason))
        }
        _ if last < acknowledged => {
            let reason = format!("ends with change {last}, but change {acknowledged} was made");
            Err(journals[replayed.current].corrupt(last_number, reason))
        }
        // Of journals that are all in the checkpoint, the last lines may be missing: what is written next could not
        // follow them.
        _ => Ok(replayed),
    }
}

/// One line, checked against the one before it. The first one follows the checkpoint, or lies before its end. No record of
/// what the checkpoint covers.
fn parse(
    text: &[u8],
    before: Option<Position>,
    last: Position,
    covered: Position,
) -> Result<(Position, Option<Record>), String> {
    let line: Line<'_> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let crc = u32::from_str_radix(&line.crc, 16).map_err(|error| error.to_string())?;
    if let Some(previous) = before.or((line.seq > last.seq).then_some(last)) {
        if line.seq != previous.seq + 1 {
            return Err(format!("change {} does not follow change {}", line.seq, previous.seq));
        }
        if crc != chain(previous.crc, line.seq, line.synced, line.record.get().as_bytes()) {
            return Err("the checksum does not match".into());
        }
    }
    let record = (line.seq > covered.seq).then(|| serde_json::from_str(line.record.get())).transpose();
    Ok((Position { seq: line.seq, crc }, record.map_err(|error| error.to_string())?))
}

/// Whether one of the lines in `rest` was written when `seq` was durable.
fn is_known_durable(rest: &[u8], seq: u64) -> bool {
    let mut lines = rest.split(|&byte| byte == b'\n');
    lines.any(|text| serde_json::from_slice(text).is_ok_and(|line: Line<'_>| line.synced >= seq))
}

fn chain(previous: u32, seq: u64, synced: u64, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&previous.to_le_bytes());
    hasher.update(&seq.to_le_bytes());
    hasher.update(&synced.to_le_bytes());
    hasher.update(record);
    hasher.finalize()
}

fn hex(crc: u32) -> Box<str> {
    format!("{crc:08x}").into()
}

#[cfg(test)]
mod tests;
