use std::io::Write;

use sha2::{Digest, Sha256};

use super::record::{self, Counts, RecordHeader, StreamSummary};
use super::{RangeChecker, StreamError, StreamHeader, VolumeHeader};
use crate::units::Bytes;

/// Writes a send stream.
///
/// Each record is one to three calls of `write_all`; a [`BufWriter`](std::io::BufWriter) below saves system calls if
/// records are short. A stream that was not ended by [`finish`](Self::finish) is incomplete, and decoders say so.
///
/// ```
/// use dm_thin::tree::stream::{Decoder, Encoder, Event, StreamHeader, VolumeHeader};
/// use dm_thin::units::Bytes;
/// use uuid::Uuid;
///
/// # fn main() -> Result<(), dm_thin::tree::stream::StreamError> {
/// let header = StreamHeader { stream: Uuid::new_v4(), tree: Uuid::new_v4() };
/// let volume = VolumeHeader {
///     volume: Uuid::new_v4(),
///     base: None,
///     name: "image".to_owned(),
///     size: Bytes::gib(1),
///     block_size: Bytes::kib(64),
///     filesystem: None,
///     labels: Default::default(),
///     resume: Bytes(0),
/// };
/// let mut encoder = Encoder::new(Vec::new(), &header)?;
/// encoder.begin(&volume)?;
/// encoder.data(Bytes(0), &[7; 4096])?;
/// encoder.hole(Bytes::mib(1), Bytes::mib(8))?;
/// encoder.end_volume()?;
/// let (stream, summary) = encoder.finish()?;
///
/// let mut decoder = Decoder::new(stream.as_slice())?;
/// while let Some(event) = decoder.next_event()? {
///     if let Event::End(end) = event {
///         assert_eq!(end, summary);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Encoder<W> {
    writer: W,
    digest: Sha256,
    offset: u64,
    record: u64,
    volumes: u64,
    counts: Counts,
    volume: Option<(RangeChecker, Counts)>,
}

impl<W: Write> Encoder<W> {
    /// Begins a stream.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub fn new(writer: W, header: &StreamHeader) -> Result<Self, StreamError> {
        let (digest, counts) = (Sha256::new(), Counts::default());
        let mut encoder = Self { writer, digest, offset: 0, record: 0, volumes: 0, counts, volume: None };
        encoder.write(&record::MAGIC)?;
        encoder.write(&record::VERSION.to_le_bytes())?;
        encoder.record(record::STREAM, &[&header.encode()])?;
        Ok(encoder)
    }

    /// Begins a volume.
    ///
    /// # Errors
    /// [`StreamError::InvalidHeader`]; [`StreamError::Unexpected`] if a volume was begun and not ended;
    /// [`StreamError::Io`].
    pub fn begin(&mut self, header: &VolumeHeader) -> Result<(), StreamError> {
        if self.volume.is_some() {
            return Err(self.unexpected(record::BEGIN));
        }
        self.record(record::BEGIN, &[&header.encode()?])?;
        self.volume = Some((RangeChecker::new(header.resume, header.size), Counts::default()));
        Ok(())
    }

    /// Writes data, in records of at most [`MAX_DATA`](super::MAX_DATA).
    ///
    /// # Errors
    /// [`StreamError::OutOfRange`]; [`StreamError::Unexpected`] outside of a volume; [`StreamError::Io`].
    pub fn data(&mut self, offset: Bytes, data: &[u8]) -> Result<(), StreamError> {
        self.accept(record::DATA, offset, Bytes(data.len() as u64))?;
        let mut at = offset;
        for piece in data.chunks(record::MAX_BODY - 8) {
            let length = Bytes(piece.len() as u64);
            self.range(record::DATA, length, &[&at.0.to_le_bytes(), piece])?;
            at = at + length;
        }
        Ok(())
    }

    /// Writes a range that the volume does not map.
    ///
    /// # Errors
    /// As [`data`](Self::data).
    pub fn hole(&mut self, offset: Bytes, length: Bytes) -> Result<(), StreamError> {
        self.empty_range(record::HOLE, offset, length)
    }

    /// Writes a mapped range that contains only zeroes.
    ///
    /// # Errors
    /// As [`data`](Self::data).
    pub fn zero(&mut self, offset: Bytes, length: Bytes) -> Result<(), StreamError> {
        self.empty_range(record::ZERO, offset, length)
    }

    /// Ends a volume and returns its counts.
    ///
    /// # Errors
    /// [`StreamError::Unexpected`] outside of a volume; [`StreamError::Io`].
    pub fn end_volume(&mut self) -> Result<Counts, StreamError> {
        let (_, counts) = self.volume.take().ok_or_else(|| self.unexpected(record::VOLUME_END))?;
        let digest = self.digest.clone().finalize();
        self.record(record::VOLUME_END, &[&counts.encode(), &digest])?;
        self.counts.add(&counts);
        self.volumes += 1;
        Ok(counts)
    }

    /// Ends the stream and flushes the writer.
    ///
    /// # Errors
    /// [`StreamError::Unexpected`] within a volume; [`StreamError::Io`].
    pub fn finish(mut self) -> Result<(W, StreamSummary), StreamError> {
        if self.volume.is_some() {
            return Err(self.unexpected(record::END));
        }
        let (volumes, counts, digest) = (self.volumes, self.counts, self.digest.clone().finalize());
        self.record(record::END, &[&counts.encode(), &volumes.to_le_bytes(), &digest])?;
        self.writer.flush()?;
        let summary = StreamSummary { volumes, counts, size: self.written(), digest: digest.into() };
        Ok((self.writer, summary))
    }

    /// Returns the size of the stream so far.
    pub fn written(&self) -> Bytes {
        Bytes(self.offset)
    }

    fn unexpected(&self, kind: u16) -> StreamError {
        StreamError::Unexpected { record: self.record, kind: record::name(kind).unwrap_or("record") }
    }

    fn accept(&mut self, kind: u16, offset: Bytes, length: Bytes) -> Result<(), StreamError> {
        let unexpected = self.unexpected(kind);
        let (ranges, _) = self.volume.as_mut().ok_or(unexpected)?;
        ranges.accept(offset, length)
    }

    /// Writes a range that is described by its length.
    fn empty_range(&mut self, kind: u16, offset: Bytes, length: Bytes) -> Result<(), StreamError> {
        self.accept(kind, offset, length)?;
        let body = [offset.0.to_le_bytes(), length.0.to_le_bytes()];
        self.range(kind, length, &[body.as_flattened()])
    }

    /// Writes and counts the record of an accepted range.
    fn range(&mut self, kind: u16, length: Bytes, parts: &[&[u8]]) -> Result<(), StreamError> {
        self.record(kind, parts)?;
        if let Some((_, counts)) = &mut self.volume {
            counts.count(kind, length);
        }
        Ok(())
    }

    fn record(&mut self, kind: u16, parts: &[&[u8]]) -> Result<(), StreamError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        // At most MAX_BODY: headers have a limit, and data is split.
        let length = u32::try_from(length).expect("a record's body fits into 32 bits");
        let mut header = RecordHeader { kind, flags: 0, length, sequence: self.record, crc: 0 };
        header.crc = header.checksum(parts);
        self.write(&header.encode())?;
        parts.iter().try_for_each(|part| self.write(part))?;
        self.record += 1;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.writer.write_all(bytes)?;
        self.digest.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
