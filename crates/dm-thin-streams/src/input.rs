//! What readers, and writers, of foreign formats have in common.

use std::io::{self, Read};
use std::mem;

use dm_thin::tree::stream::{MAX_DATA, RangeChecker};
use dm_thin::units::Bytes;
use sha2::{Digest, Sha256};

use crate::{DiffEvent, DiffHeader, Error, Result};

/// Longest name, and longest header of dm-thin, that is read.
pub(crate) const MAX_TEXT: usize = 64 << 10;

/// Reads fields; the end of input is [`Error::Truncated`].
#[derive(Debug)]
pub(crate) struct Input<R> {
    reader: R,
    format: &'static str,
    offset: u64,
    pub(crate) digest: Option<Sha256>,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(reader: R, format: &'static str) -> Self {
        Self { reader, format, offset: 0, digest: None }
    }

    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated { format: self.format, offset: self.offset },
            _ => error.into(),
        })?;
        self.offset += bytes.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        Ok(())
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads `length` bytes, at most [`MAX_TEXT`].
    pub(crate) fn bytes(&mut self, length: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_TEXT);
        let mut bytes = vec![0; length.ok_or_else(|| self.malformed("text longer than 64 KiB"))?];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn skip(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let piece = length.min(MAX_TEXT as u64);
            self.bytes(piece)?;
            length -= piece;
        }
        Ok(())
    }

    pub(crate) fn malformed(&self, reason: &'static str) -> Error {
        Error::Malformed { format: self.format, offset: self.offset, reason }
    }

    fn expect_end(&mut self) -> Result<()> {
        let offset = self.offset;
        match self.array::<1>() {
            Ok(_) => Err(Error::TrailingData { format: self.format, offset }),
            Err(Error::Truncated { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What follows the header of a foreign format.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Chunk {
    /// So many bytes of data follow.
    Data(Bytes, Bytes),
    Hole(Bytes, Bytes),
    /// The end; the format has verified what it can.
    End,
}

/// A format's way to read the next chunk.
pub(crate) trait Chunks {
    fn next_chunk<R: Read>(&mut self, input: &mut Input<R>) -> Result<Chunk>;
}

/// Turns chunks into events, data in pieces.
#[derive(Debug)]
pub(crate) struct ChunkReader<R, C> {
    header: DiffHeader,
    input: Input<R>,
    chunks: C,
    ranges: RangeChecker,
    buffer: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The first chunk is known if reading the header met it.
    Next(Option<Chunk>),
    /// Where the rest of the data begins, and how much it is.
    InData(u64, u64),
    Ended,
    Failed,
}

impl<R: Read, C: Chunks> ChunkReader<R, C> {
    pub(crate) fn new(input: Input<R>, chunks: C, header: DiffHeader, first: Option<Chunk>) -> Self {
        let ranges = checker(&header);
        Self { header, input, chunks, ranges, buffer: Vec::new(), state: State::Next(first) }
    }

    pub(crate) fn header(&self) -> &DiffHeader {
        &self.header
    }

    pub(crate) fn next_event(&mut self) -> Result<Option<DiffEvent<'_>>> {
        // Every success below sets another state.
        let (at, length) = match mem::replace(&mut self.state, State::Failed) {
            State::Failed => return Err(Error::Failed),
            State::Ended => {
                self.state = State::Ended;
                return Ok(None);
            }
            State::InData(at, length) => (at, length),
            State::Next(known) => {
                let chunk = match known {
                    Some(chunk) => chunk,
                    None => self.chunks.next_chunk(&mut self.input)?,
                };
                match chunk {
                    Chunk::Data(offset, length) => {
                        self.ranges.accept(offset, length)?;
                        (offset.0, length.0)
                    }
                    Chunk::Hole(offset, length) => {
                        self.ranges.accept(offset, length)?;
                        self.state = State::Next(None);
                        return Ok(Some(DiffEvent::Hole { offset, length }));
                    }
                    Chunk::End => {
                        self.input.expect_end()?;
                        self.state = State::Ended;
                        return Ok(None);
                    }
                }
            }
        };
        let piece = length.min(MAX_DATA.0);
        self.buffer.resize(usize::try_from(piece).expect("1 MiB fits into usize"), 0);
        self.input.read(&mut self.buffer)?;
        self.state = match length - piece {
            0 => State::Next(None),
            rest => State::InData(at + piece, rest),
        };
        Ok(Some(DiffEvent::Data { offset: Bytes(at), data: &self.buffer }))
    }
}

/// Returns a checker for the header's volume; of unknown size, if it has none.
pub(crate) fn checker(header: &DiffHeader) -> RangeChecker {
    RangeChecker::new(Bytes(0), header.size.unwrap_or(Bytes(u64::MAX)))
}

/// A writer's state: ranges are accepted between `begin` and `finish`.
#[derive(Debug, Default)]
pub(crate) struct SinkState {
    ranges: Option<RangeChecker>,
    finished: bool,
}

impl SinkState {
    pub(crate) fn begin(&mut self, header: &DiffHeader) -> Result<()> {
        if self.finished || self.ranges.is_some() {
            return Err(Error::Order);
        }
        self.ranges = Some(checker(header));
        Ok(())
    }

    pub(crate) fn accept(&mut self, offset: Bytes, length: Bytes) -> Result<()> {
        Ok(self.ranges.as_mut().ok_or(Error::Order)?.accept(offset, length)?)
    }

    pub(crate) fn finish(&mut self) -> Result<()> {
        self.ranges.take().ok_or(Error::Order)?;
        self.finished = true;
        Ok(())
    }
}
