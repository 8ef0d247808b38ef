//! `rbd export-diff`, formats v1 and v2.
//!
//! A line `rbd diff v1`, then records, little endian: a tag, in v2 the length u64 of what follows, and then: `f` and `t`: length
//! u32 and name of the snapshot to start from and of the one at the end; `s`: size u64; `w`: offset u64, length u64, data;
//! `z`: offset u64, length u64. `e`, without a length, ends the stream. `f`, `t` and `s` come before `w` and `z`.

use std::io::{Read, Write};

use dm_thin::units::Bytes;

use crate::input::{Chunk, ChunkReader, Chunks, Input, MAX_TEXT, SinkState};
use crate::{DiffEvent, DiffHeader, DiffSink, DiffSource, Error, Result};

const FORMAT: &str = "rbd diff";

/// Writes a v1 stream that `rbd import-diff` reads.
///
/// The base is named by `base_name`, else by its UUID; `rbd import-diff` refuses an image without a snapshot of that name.
/// Mapped zeroes and holes are both `z`.
#[derive(Debug)]
pub struct RbdWriter<W> {
    writer: W,
    state: SinkState,
}

impl<W: Write> RbdWriter<W> {
    /// Returns a writer.
    pub fn new(writer: W) -> Self {
        Self { writer, state: SinkState::default() }
    }

    /// Returns the writer below.
    pub fn into_inner(self) -> W {
        self.writer
    }

    fn name(&mut self, tag: u8, name: &str) -> Result<()> {
        let length = u32::try_from(name.len()).ok().filter(|_| name.len() <= MAX_TEXT);
        let length = length.ok_or(Error::TooLong { format: FORMAT, field: "name" })?;
        self.writer.write_all(&[tag])?;
        self.writer.write_all(&length.to_le_bytes())?;
        Ok(self.writer.write_all(name.as_bytes())?)
    }

    fn range(&mut self, tag: u8, offset: Bytes, length: Bytes) -> Result<()> {
        self.state.accept(offset, length)?;
        let mut record = [tag; 17];
        record[1..9].copy_from_slice(&offset.0.to_le_bytes());
        record[9..].copy_from_slice(&length.0.to_le_bytes());
        Ok(self.writer.write_all(&record)?)
    }
}

impl<W: Write> DiffSink for RbdWriter<W> {
    fn begin(&mut self, header: &DiffHeader) -> Result<()> {
        let size = header.size.ok_or(Error::MissingField { format: FORMAT, field: "size" })?;
        self.state.begin(header)?;
        self.writer.write_all(b"rbd diff v1\n")?;
        if let Some(base) = header.base_name.clone().or(header.base.map(|base| base.to_string())) {
            self.name(b'f', &base)?;
        }
        if let Some(name) = &header.name {
            self.name(b't', name)?;
        }
        self.writer.write_all(b"s")?;
        Ok(self.writer.write_all(&size.0.to_le_bytes())?)
    }

    fn data(&mut self, offset: Bytes, data: &[u8]) -> Result<()> {
        self.range(b'w', offset, Bytes(data.len() as u64))?;
        Ok(self.writer.write_all(data)?)
    }

    fn hole(&mut self, offset: Bytes, length: Bytes) -> Result<()> {
        self.range(b'z', offset, length)
    }

    fn zero(&mut self, offset: Bytes, length: Bytes) -> Result<()> {
        self.range(b'z', offset, length)
    }

    fn finish(&mut self) -> Result<()> {
        self.state.finish()?;
        self.writer.write_all(b"e")?;
        Ok(self.writer.flush()?)
    }
}

/// Reads a stream of `rbd export-diff`, v1 or v2. `z` becomes a hole. Ranges must ascend, as those of images without
/// striping do.
#[derive(Debug)]
pub struct RbdReader<R>(ChunkReader<R, RbdChunks>);

impl<R: Read> RbdReader<R> {
    /// Reads up to the first range.
    ///
    /// # Errors
    /// [`Error::BadMagic`], and the errors of [`next_event`](DiffSource::next_event).
    pub fn new(reader: R) -> Result<Self> {
        let mut input = Input::new(reader, FORMAT);
        let mut chunks = match &input.array::<12>()? {
            b"rbd diff v1\n" => RbdChunks { v2: false, header: Some(DiffHeader::default()) },
            b"rbd diff v2\n" => RbdChunks { v2: true, header: Some(DiffHeader::default()) },
            _ => return Err(Error::BadMagic { format: FORMAT }),
        };
        let first = chunks.next_chunk(&mut input)?;
        let header = chunks.header.take().unwrap_or_default();
        Ok(Self(ChunkReader::new(input, chunks, header, Some(first))))
    }
}

impl<R: Read> DiffSource for RbdReader<R> {
    fn header(&self) -> &DiffHeader {
        self.0.header()
    }

    fn next_event(&mut self) -> Result<Option<DiffEvent<'_>>> {
        self.0.next_event()
    }
}

#[derive(Debug)]
struct RbdChunks {
    v2: bool,
    /// `None` after the first data record.
    header: Option<DiffHeader>,
}

impl RbdChunks {
    fn name<R: Read>(&self, input: &mut Input<R>, record: Option<u64>) -> Result<String> {
        let length = u32::from_le_bytes(input.array()?).into();
        check_length(input, record, 4 + length)?;
        String::from_utf8(input.bytes(length)?).map_err(|_| input.malformed("name is not UTF-8"))
    }

    fn metadata<R: Read>(&mut self, input: &mut Input<R>, tag: u8, record: Option<u64>) -> Result<()> {
        let Some(mut header) = self.header.take() else {
            return Err(input.malformed("metadata record after a data record"));
        };
        let repeated = match tag {
            b'f' => header.base_name.replace(self.name(input, record)?).is_some(),
            b't' => header.name.replace(self.name(input, record)?).is_some(),
            _ => {
                check_length(input, record, 8)?;
                header.size.replace(Bytes(u64::from_le_bytes(input.array()?))).is_some()
            }
        };
        self.header = Some(header);
        if repeated { Err(input.malformed("repeated metadata record")) } else { Ok(()) }
    }

    fn range<R: Read>(input: &mut Input<R>) -> Result<(Bytes, Bytes)> {
        let offset = u64::from_le_bytes(input.array()?);
        Ok((Bytes(offset), Bytes(u64::from_le_bytes(input.array()?))))
    }
}

impl Chunks for RbdChunks {
    fn next_chunk<R: Read>(&mut self, input: &mut Input<R>) -> Result<Chunk> {
        loop {
            let [tag] = input.array()?;
            if tag == b'e' {
                return Ok(Chunk::End);
            }
            let record = if self.v2 { Some(u64::from_le_bytes(input.array()?)) } else { None };
            match (tag, record) {
                (b'f' | b't' | b's', _) => self.metadata(input, tag, record)?,
                (b'w', _) => {
                    let (offset, length) = Self::range(input)?;
                    check_length(input, record, length.0.saturating_add(16))?;
                    return Ok(Chunk::Data(offset, length));
                }
                (b'z', _) => {
                    let (offset, length) = Self::range(input)?;
                    check_length(input, record, 16)?;
                    return Ok(Chunk::Hole(offset, length));
                }
                (_, Some(length)) => input.skip(length)?,
                (_, None) => return Err(input.malformed("unknown tag")),
            }
        }
    }
}

/// Compares the length of a v2 record with that of its fields.
fn check_length<R: Read>(input: &Input<R>, record: Option<u64>, length: u64) -> Result<()> {
    match record {
        Some(record) if record != length => {
            Err(input.malformed("length of a record differs from its fields"))
        }
        _ => Ok(()),
    }
}
