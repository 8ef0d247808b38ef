//! LINBIT thin-send-recv, format 1.1.
//!
//! A stream is a sequence of chunks: 28 bytes of header, big endian (magic u64, offset u64, length u64, command u32), then
//! `length` bytes, except for UNMAP. Commands: 0 DATA, 1 UNMAP, 2 BEGIN_STREAM, 3 END_STREAM. END_STREAM has three u64:
//! the number of all chunks, of DATA, of UNMAP. Chunks whose command has bit 31 set are optional.

use std::io::{Read, Write};

use dm_thin::units::Bytes;
use sha2::{Digest, Sha256};

use crate::input::{Chunk, ChunkReader, Chunks, Input, SinkState};
use crate::{DiffEvent, DiffHeader, DiffSink, DiffSource, Error, Result};

const FORMAT: &str = "thin-send-recv";
const MAGIC_1_1: u64 = 0x24c4_f02a_ae2e_4fa9;
const MAGIC_1_0: u64 = 0xca7f_00d5_de7e_c7ed;
const MAGIC_OLD: u64 = 0xe85b_c563_6cc7_2a05;

const DATA: u32 = 0;
const UNMAP: u32 = 1;
const BEGIN_STREAM: u32 = 2;
const END_STREAM: u32 = 3;
const OPTIONAL: u32 = 1 << 31;
/// dm-thin's: the [`DiffHeader`] in JSON, after BEGIN_STREAM.
const HEADER: u32 = OPTIONAL | 0x646d_7401;
/// dm-thin's: SHA-256 of the stream before this chunk.
const DIGEST: u32 = OPTIONAL | 0x646d_7402;

/// Writes a stream that `thin_recv` 1.1 reads.
///
/// The header and a digest go into optional chunks, which `thin_recv` skips with a message. `thin_recv` discards holes:
/// they must consist of whole blocks of the receiving pool, or keep old data. Mapped zeroes are sent as data.
#[derive(Debug)]
pub struct LinbitWriter<W> {
    writer: W,
    digest: Sha256,
    state: SinkState,
    chunks: u64,
    data: u64,
    unmap: u64,
}

impl<W: Write> LinbitWriter<W> {
    /// Returns a writer.
    pub fn new(writer: W) -> Self {
        let (digest, state) = (Sha256::new(), SinkState::default());
        Self { writer, digest, state, chunks: 0, data: 0, unmap: 0 }
    }

    /// Returns the writer below.
    pub fn into_inner(self) -> W {
        self.writer
    }

    fn chunk(&mut self, command: u32, offset: u64, length: u64, payload: &[u8]) -> Result<()> {
        let mut header = [0; 28];
        header[..8].copy_from_slice(&MAGIC_1_1.to_be_bytes());
        header[8..16].copy_from_slice(&offset.to_be_bytes());
        header[16..24].copy_from_slice(&length.to_be_bytes());
        header[24..].copy_from_slice(&command.to_be_bytes());
        for bytes in [&header, payload] {
            self.writer.write_all(bytes)?;
            self.digest.update(bytes);
        }
        self.chunks += 1;
        Ok(())
    }

    fn payload(&mut self, command: u32, offset: u64, payload: &[u8]) -> Result<()> {
        self.chunk(command, offset, payload.len() as u64, payload)
    }
}

impl<W: Write> DiffSink for LinbitWriter<W> {
    fn begin(&mut self, header: &DiffHeader) -> Result<()> {
        let facts = serde_json::to_vec(header).expect("texts and numbers are always JSON");
        if facts.len() > crate::input::MAX_TEXT {
            return Err(Error::TooLong { format: FORMAT, field: "name" });
        }
        self.state.begin(header)?;
        self.payload(BEGIN_STREAM, 0, &[])?;
        if *header == DiffHeader::default() { Ok(()) } else { self.payload(HEADER, 0, &facts) }
    }

    fn data(&mut self, offset: Bytes, data: &[u8]) -> Result<()> {
        self.state.accept(offset, Bytes(data.len() as u64))?;
        self.data += 1;
        self.payload(DATA, offset.0, data)
    }

    fn hole(&mut self, offset: Bytes, length: Bytes) -> Result<()> {
        self.state.accept(offset, length)?;
        self.unmap += 1;
        self.chunk(UNMAP, offset.0, length.0, &[])
    }

    fn finish(&mut self) -> Result<()> {
        self.state.finish()?;
        let digest = self.digest.clone().finalize();
        self.payload(DIGEST, 0, &digest)?;
        // All chunks are counted, this one, too.
        let counters = [self.chunks + 1, self.data, self.unmap].map(u64::to_be_bytes);
        self.payload(END_STREAM, 0, counters.as_flattened())?;
        Ok(self.writer.flush()?)
    }
}

/// Reads a stream of `thin_send` 1.1, or of [`LinbitWriter`].
///
/// Without dm-thin's optional chunk the header is empty, and ranges are not bounded by a size. Nothing but the counters
/// is verified if the stream has no digest.
#[derive(Debug)]
pub struct LinbitReader<R>(ChunkReader<R, LinbitChunks>);

impl<R: Read> LinbitReader<R> {
    /// Reads up to the first range.
    ///
    /// # Errors
    /// [`Error::BadMagic`]; [`Error::Version`] for 1.0 and older streams, which have neither begin nor end; and the errors
    /// of [`next_event`](DiffSource::next_event).
    pub fn new(reader: R) -> Result<Self> {
        let mut input = Input::new(reader, FORMAT);
        input.digest = Some(Sha256::new());
        let mut chunks = LinbitChunks::default();
        let (command, _, length) = chunks.header(&mut input)?;
        if command != BEGIN_STREAM || length != 0 {
            return Err(input.malformed("does not begin with BEGIN_STREAM"));
        }
        let first = chunks.next_chunk(&mut input)?;
        let header = chunks.facts.take().unwrap_or_default();
        Ok(Self(ChunkReader::new(input, chunks, header, Some(first))))
    }
}

impl<R: Read> DiffSource for LinbitReader<R> {
    fn header(&self) -> &DiffHeader {
        self.0.header()
    }

    fn next_event(&mut self) -> Result<Option<DiffEvent<'_>>> {
        self.0.next_event()
    }
}

#[derive(Debug, Default)]
struct LinbitChunks {
    facts: Option<DiffHeader>,
    chunks: u64,
    data: u64,
    unmap: u64,
}

impl LinbitChunks {
    /// Returns command, offset and length of the next chunk.
    fn header<R: Read>(&mut self, input: &mut Input<R>) -> Result<(u32, u64, u64)> {
        let version = |version| Error::Version { format: FORMAT, version, supported: "1.1" };
        match u64::from_be_bytes(input.array()?) {
            MAGIC_1_1 => {}
            MAGIC_1_0 if self.chunks == 0 => return Err(version("1.0")),
            MAGIC_OLD if self.chunks == 0 => return Err(version("older than 1.0")),
            _ if self.chunks == 0 => return Err(Error::BadMagic { format: FORMAT }),
            _ => return Err(input.malformed("chunk without its magic number")),
        }
        self.chunks += 1;
        let offset = u64::from_be_bytes(input.array()?);
        let length = u64::from_be_bytes(input.array()?);
        Ok((u32::from_be_bytes(input.array()?), offset, length))
    }

    fn optional<R: Read>(
        &mut self,
        input: &mut Input<R>,
        command: u32,
        length: u64,
        before: Option<Sha256>,
    ) -> Result<()> {
        match command {
            // Second in the stream, or it is not a header.
            HEADER if self.chunks == 2 => {
                let facts = input.bytes(length)?;
                let facts = serde_json::from_slice(&facts)
                    .map_err(|_| input.malformed("dm-thin's optional chunk is not its header"))?;
                self.facts = Some(facts);
                Ok(())
            }
            DIGEST => {
                let found: [u8; 32] = input
                    .bytes(length)?
                    .try_into()
                    .map_err(|_| input.malformed("digest of another length"))?;
                let digest = before.map(|digest| <[u8; 32]>::from(digest.finalize()));
                if digest == Some(found) { Ok(()) } else { Err(Error::Digest { format: FORMAT }) }
            }
            _ => input.skip(length),
        }
    }

    fn verify_end<R: Read>(&self, input: &mut Input<R>, offset: u64, length: u64) -> Result<()> {
        if (offset, length) != (0, 24) {
            return Err(input.malformed("END_STREAM of another length or offset"));
        }
        for (counter, found) in [("chunks", self.chunks), ("data", self.data), ("unmap", self.unmap)] {
            let expected = u64::from_be_bytes(input.array()?);
            if expected != found {
                return Err(Error::Counter { format: FORMAT, counter, expected, found });
            }
        }
        Ok(())
    }
}

impl Chunks for LinbitChunks {
    fn next_chunk<R: Read>(&mut self, input: &mut Input<R>) -> Result<Chunk> {
        loop {
            let before = input.digest.clone();
            let (command, offset, length) = self.header(input)?;
            match command {
                DATA => {
                    self.data += 1;
                    return Ok(Chunk::Data(Bytes(offset), Bytes(length)));
                }
                UNMAP => {
                    self.unmap += 1;
                    return Ok(Chunk::Hole(Bytes(offset), Bytes(length)));
                }
                END_STREAM => {
                    self.verify_end(input, offset, length)?;
                    return Ok(Chunk::End);
                }
                _ if command & OPTIONAL != 0 => self.optional(input, command, length, before)?,
                BEGIN_STREAM => return Err(input.malformed("second BEGIN_STREAM")),
                _ => return Err(input.malformed("unknown command")),
            }
        }
    }
}
