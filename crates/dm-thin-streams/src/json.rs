//! JSON lines: which ranges changed, without their data, as changed block tracking APIs tell it.

use std::io::{BufRead, Read, Write};
use std::mem;

use dm_thin::tree::stream::RangeChecker;
use dm_thin::tree::{ChangeKind, ChangedRange};
use dm_thin::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::input::{MAX_TEXT, SinkState, checker};
use crate::{DiffHeader, DiffSink, Error, Result};

const FORMAT: &str = "JSON lines";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    version: u32,
    header: DiffHeader,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    ranges: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Range(ChangedRange),
    Last(Last),
}

/// Writes ranges as JSON, one on a line; adjacent ranges of one kind are one.
///
/// ```text
/// {"version":1,"header":{"name":"image","size":1048576}}
/// {"offset":0,"length":65536,"kind":"data"}
/// {"offset":131072,"length":65536,"kind":"hole"}
/// {"ranges":2}
/// ```
#[derive(Debug)]
pub struct JsonWriter<W> {
    writer: W,
    state: SinkState,
    ranges: u64,
    pending: Option<ChangedRange>,
}

impl<W: Write> JsonWriter<W> {
    /// Returns a writer.
    pub fn new(writer: W) -> Self {
        Self { writer, state: SinkState::default(), ranges: 0, pending: None }
    }

    /// Returns the writer below.
    pub fn into_inner(self) -> W {
        self.writer
    }

    /// Writes a range of [`SnapshotTree::changed`](dm_thin::tree::SnapshotTree::changed).
    ///
    /// # Errors
    /// As [`DiffSink::data`].
    pub fn range(&mut self, range: ChangedRange) -> Result<()> {
        self.state.accept(range.offset, range.length)?;
        match &mut self.pending {
            Some(last) if last.kind == range.kind && last.offset + last.length == range.offset => {
                last.length = last.length + range.length;
                Ok(())
            }
            _ => self.flush(Some(range)),
        }
    }

    fn flush(&mut self, next: Option<ChangedRange>) -> Result<()> {
        let Some(range) = mem::replace(&mut self.pending, next) else { return Ok(()) };
        self.ranges += 1;
        self.line(&range)
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).expect("texts and numbers are always JSON");
        line.push(b'\n');
        if line.len() > MAX_TEXT {
            return Err(Error::TooLong { format: FORMAT, field: "name" });
        }
        Ok(self.writer.write_all(&line)?)
    }
}

impl<W: Write> DiffSink for JsonWriter<W> {
    fn begin(&mut self, header: &DiffHeader) -> Result<()> {
        self.state.begin(header)?;
        self.line(&First { version: 1, header: header.clone() })
    }

    fn data(&mut self, offset: Bytes, data: &[u8]) -> Result<()> {
        self.range(ChangedRange { offset, length: Bytes(data.len() as u64), kind: ChangeKind::Data })
    }

    fn hole(&mut self, offset: Bytes, length: Bytes) -> Result<()> {
        self.range(ChangedRange { offset, length, kind: ChangeKind::Hole })
    }

    fn zero(&mut self, offset: Bytes, length: Bytes) -> Result<()> {
        self.range(ChangedRange { offset, length, kind: ChangeKind::Data })
    }

    fn finish(&mut self) -> Result<()> {
        self.state.finish()?;
        self.flush(None)?;
        self.line(&Last { ranges: self.ranges })?;
        Ok(self.writer.flush()?)
    }
}

/// Reads the ranges that a [`JsonWriter`] wrote. It ends with an error, or with the last range of a complete stream.
#[derive(Debug)]
pub struct JsonReader<R> {
    reader: R,
    header: DiffHeader,
    checker: RangeChecker,
    ranges: u64,
    line: u64,
    offset: u64,
    ended: bool,
}

impl<R: BufRead> JsonReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::Json`]; [`Error::Truncated`]; [`Error::Malformed`] for another version; [`Error::Io`].
    pub fn new(reader: R) -> Result<Self> {
        let header = DiffHeader::default();
        let checker = checker(&header);
        let mut this = Self { reader, header, checker, ranges: 0, line: 0, offset: 0, ended: false };
        let first: First = this.parse()?;
        if first.version != 1 {
            return Err(this.malformed("unknown version"));
        }
        this.checker = self::checker(&first.header);
        this.header = first.header;
        Ok(this)
    }

    /// Returns the header.
    pub fn header(&self) -> &DiffHeader {
        &self.header
    }

    fn malformed(&self, reason: &'static str) -> Error {
        Error::Malformed { format: FORMAT, offset: self.offset, reason }
    }

    fn parse<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T> {
        let mut line = Vec::new();
        self.reader.by_ref().take(MAX_TEXT as u64).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(match line.len() {
                MAX_TEXT => self.malformed("line longer than 64 KiB"),
                _ => Error::Truncated { format: FORMAT, offset: self.offset },
            });
        }
        self.line += 1;
        let value =
            serde_json::from_slice(&line).map_err(|source| Error::Json { line: self.line, source })?;
        self.offset += line.len() as u64;
        Ok(value)
    }

    fn next_range(&mut self) -> Result<Option<ChangedRange>> {
        match self.parse()? {
            Line::Range(range) => {
                self.checker.accept(range.offset, range.length)?;
                self.ranges += 1;
                Ok(Some(range))
            }
            Line::Last(Last { ranges: expected }) if expected != self.ranges => {
                Err(Error::Counter { format: FORMAT, counter: "ranges", expected, found: self.ranges })
            }
            Line::Last(_) if !self.reader.fill_buf()?.is_empty() => {
                Err(Error::TrailingData { format: FORMAT, offset: self.offset })
            }
            Line::Last(_) => Ok(None),
        }
    }
}

impl<R: BufRead> Iterator for JsonReader<R> {
    type Item = Result<ChangedRange>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_range();
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}
