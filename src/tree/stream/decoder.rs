use std::io::{self, Read};
use std::mem;

use sha2::{Digest, Sha256};

use super::record::{self, Counts, Fields, HEADER_LEN, MAX_BODY, RecordHeader, StreamSummary};
use super::{RangeChecker, StreamError, StreamHeader, VolumeHeader};
use crate::units::Bytes;

/// What a [`Decoder`] returns. Its record is intact; the volume is complete with `EndVolume`, the stream with `End`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A volume begins.
    Begin(Box<VolumeHeader>),
    /// Data, at most [`MAX_DATA`](super::MAX_DATA).
    Data {
        /// Where it begins in the volume.
        offset: Bytes,
        /// The data.
        data: &'a [u8],
    },
    /// The volume maps nothing here.
    Hole {
        /// Where it begins in the volume.
        offset: Bytes,
        /// Its length.
        length: Bytes,
    },
    /// The volume maps blocks of zeroes here.
    Zero {
        /// Where it begins in the volume.
        offset: Bytes,
        /// Its length.
        length: Bytes,
    },
    /// The volume ends; its counts and digest are right.
    EndVolume(Counts),
    /// The stream ends; its counts and digest are right.
    End(StreamSummary),
}

/// Reads and verifies a send stream.
///
/// Memory use is bounded by the largest record, some 1 MiB. A record is two reads of the reader below; a
/// [`BufReader`](io::BufReader) saves system calls if records are short.
#[derive(Debug)]
pub struct Decoder<R> {
    reader: R,
    header: StreamHeader,
    digest: Sha256,
    /// Offset and number of the next record.
    offset: u64,
    record: u64,
    body: Vec<u8>,
    volumes: u64,
    counts: Counts,
    state: State,
}

#[derive(Debug)]
enum State {
    BetweenVolumes,
    InVolume(RangeChecker, Counts),
    Ended,
    Failed,
}

/// A verified record; its body is in the decoder.
struct Record {
    kind: u16,
    number: u64,
    /// Of the stream before the record.
    digest: Sha256,
}

impl<R: Read> Decoder<R> {
    /// Reads the header of the stream.
    ///
    /// # Errors
    /// [`StreamError::BadMagic`], [`StreamError::Version`], [`StreamError::Unsupported`] for a required feature, and
    /// the errors of [`next_event`](Self::next_event).
    pub fn new(reader: R) -> Result<Self, StreamError> {
        let mut decoder = Self {
            reader,
            header: StreamHeader { stream: uuid::Uuid::nil(), tree: uuid::Uuid::nil() },
            digest: Sha256::new(),
            offset: 0,
            record: 0,
            body: Vec::new(),
            volumes: 0,
            counts: Counts::default(),
            state: State::BetweenVolumes,
        };
        let found: [u8; 8] = decoder.prelude()?;
        if found != record::MAGIC {
            return Err(StreamError::BadMagic { found });
        }
        let version = u32::from_le_bytes(decoder.prelude()?);
        if version != record::VERSION {
            return Err(StreamError::Version { version });
        }
        let first = decoder.read_record()?;
        if first.kind != record::STREAM {
            return Err(first.unexpected());
        }
        decoder.header = StreamHeader::decode(&decoder.body).ok_or_else(|| first.malformed())??;
        Ok(decoder)
    }

    /// Returns the header of the stream.
    pub fn header(&self) -> &StreamHeader {
        &self.header
    }

    /// Returns the amount of the stream that was read and verified.
    pub fn consumed(&self) -> Bytes {
        Bytes(self.offset)
    }

    /// Returns the next event; `None` after [`Event::End`] and the end of the input. Optional records of unknown types
    /// are skipped.
    ///
    /// # Errors
    /// [`StreamError::Truncated`], [`StreamError::Checksum`], [`StreamError::Sequence`], [`StreamError::Unsupported`],
    /// [`StreamError::Unexpected`], [`StreamError::Malformed`], [`StreamError::InvalidHeader`],
    /// [`StreamError::OutOfRange`], [`StreamError::Counts`] and [`StreamError::Digest`] for what is wrong with a
    /// record; [`StreamError::TrailingData`] after [`Event::End`]; [`StreamError::Io`];
    /// [`StreamError::Failed`] in any call after one of these.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, StreamError> {
        // Every success below sets another state.
        match mem::replace(&mut self.state, State::Failed) {
            State::BetweenVolumes => self.between_volumes().map(Some),
            State::InVolume(ranges, counts) => self.in_volume(ranges, counts).map(Some),
            State::Ended => self.at_end().map(|()| None),
            State::Failed => Err(StreamError::Failed),
        }
    }

    fn between_volumes(&mut self) -> Result<Event<'_>, StreamError> {
        let record = self.read_record()?;
        match record.kind {
            record::BEGIN => {
                let header = VolumeHeader::decode(&self.body).ok_or_else(|| record.malformed())??;
                let ranges = RangeChecker::new(header.resume, header.size);
                self.state = State::InVolume(ranges, Counts::default());
                Ok(Event::Begin(Box::new(header)))
            }
            record::END => {
                let mut fields = Fields(&self.body);
                record.check_counts(&mut fields, &self.counts)?;
                if fields.u64().ok_or_else(|| record.malformed())? != self.volumes {
                    return Err(StreamError::Counts { record: record.number });
                }
                let digest = record.check_digest(fields)?;
                self.state = State::Ended;
                Ok(Event::End(StreamSummary {
                    volumes: self.volumes,
                    counts: self.counts,
                    size: self.consumed(),
                    digest,
                }))
            }
            _ => Err(record.unexpected()),
        }
    }

    fn in_volume(&mut self, mut ranges: RangeChecker, mut counts: Counts) -> Result<Event<'_>, StreamError> {
        let record = self.read_record()?;
        let mut fields = Fields(&self.body);
        let event = match record.kind {
            record::DATA => {
                let offset = fields.bytes().ok_or_else(|| record.malformed())?;
                let length = Bytes(fields.0.len() as u64);
                ranges.accept(offset, length)?;
                counts.count(record.kind, length);
                Event::Data { offset, data: fields.0 }
            }
            record::HOLE | record::ZERO => {
                let (Some(offset), Some(length), []) = (fields.bytes(), fields.bytes(), fields.0) else {
                    return Err(record.malformed());
                };
                ranges.accept(offset, length)?;
                counts.count(record.kind, length);
                match record.kind {
                    record::HOLE => Event::Hole { offset, length },
                    _ => Event::Zero { offset, length },
                }
            }
            record::VOLUME_END => {
                record.check_counts(&mut fields, &counts)?;
                record.check_digest(fields)?;
                self.volumes += 1;
                self.counts.add(&counts);
                self.state = State::BetweenVolumes;
                return Ok(Event::EndVolume(counts));
            }
            _ => return Err(record.unexpected()),
        };
        self.state = State::InVolume(ranges, counts);
        Ok(event)
    }

    fn at_end(&mut self) -> Result<(), StreamError> {
        match self.reader.read_exact(&mut [0]) {
            Ok(()) => Err(StreamError::TrailingData { offset: self.consumed() }),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.state = State::Ended;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a part of what is before the records.
    fn prelude<const N: usize>(&mut self) -> Result<[u8; N], StreamError> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|error| StreamError::read(error, 0, self.offset))?;
        self.digest.update(bytes);
        self.offset += N as u64;
        Ok(bytes)
    }

    /// Reads and verifies the next record that is not skipped.
    fn read_record(&mut self) -> Result<Record, StreamError> {
        loop {
            let digest = self.digest.clone();
            let (number, kind, flags) = self.read_any()?;
            if flags & !record::OPTIONAL != 0 {
                return Err(StreamError::Unsupported { what: "record flags", value: flags.into() });
            }
            if record::name(kind).is_some() {
                // A record of a known type is never optional.
                if flags != 0 {
                    return Err(StreamError::Unsupported { what: "record flags", value: flags.into() });
                }
                return Ok(Record { kind, number, digest });
            }
            if flags == 0 {
                return Err(StreamError::Unsupported { what: "record type", value: kind.into() });
            }
        }
    }

    /// Reads a record of any type into `body`; checks checksum and sequence.
    fn read_any(&mut self) -> Result<(u64, u16, u16), StreamError> {
        let (number, begin) = (self.record, self.offset);
        let offset = Bytes(begin);
        let eof = |error| StreamError::read(error, number, begin);
        let mut bytes = [0; HEADER_LEN];
        self.reader.read_exact(&mut bytes).map_err(eof)?;
        let header = RecordHeader::decode(bytes);
        let length = usize::try_from(header.length).ok().filter(|length| *length <= MAX_BODY);
        let length = length.ok_or(StreamError::Malformed { record: number, reason: "longer than 1 MiB" })?;
        self.body.resize(length, 0);
        self.reader.read_exact(&mut self.body).map_err(eof)?;
        if header.crc != header.checksum(&[&self.body]) {
            return Err(StreamError::Checksum { record: number, offset });
        }
        if header.sequence != number {
            return Err(StreamError::Sequence { record: number, found: header.sequence });
        }
        self.digest.update(bytes);
        self.digest.update(&self.body);
        self.offset += (HEADER_LEN + length) as u64;
        self.record += 1;
        Ok((number, header.kind, header.flags))
    }
}

impl Record {
    fn unexpected(&self) -> StreamError {
        StreamError::Unexpected { record: self.number, kind: record::name(self.kind).unwrap_or("record") }
    }

    fn malformed(&self) -> StreamError {
        StreamError::Malformed { record: self.number, reason: "its body does not match its type" }
    }

    fn check_counts(&self, fields: &mut Fields<'_>, counts: &Counts) -> Result<(), StreamError> {
        let found = fields.array::<{ Counts::LEN }>().ok_or_else(|| self.malformed())?;
        if found != counts.encode() {
            return Err(StreamError::Counts { record: self.number });
        }
        Ok(())
    }

    /// The digest is the last field.
    fn check_digest(self, mut fields: Fields<'_>) -> Result<[u8; 32], StreamError> {
        let (Some(found), []) = (fields.array(), fields.0) else { return Err(self.malformed()) };
        if found != <[u8; 32]>::from(self.digest.finalize()) {
            return Err(StreamError::Digest { record: self.number });
        }
        Ok(found)
    }
}
