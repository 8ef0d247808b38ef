//! Send streams: whatever the input is, the decoder answers; a complete stream is encoded to one that says the same.

use dm_thin::tree::stream::{Counts, Decoder, Encoder, Event, StreamError, StreamHeader, VolumeHeader};
use dm_thin::units::Bytes;
use sha2::{Digest, Sha256};

#[derive(Debug, Clone, PartialEq)]
enum Item {
    Begin(VolumeHeader),
    Data(Bytes, Vec<u8>),
    Hole(Bytes, Bytes),
    Zero(Bytes, Bytes),
    EndVolume(Counts),
    End(u64, Counts),
}

/// Reads the bytes as they are, and with checksums and digests made right: few changes get past those.
pub fn fuzz(bytes: &[u8]) {
    check(bytes);
    check(&repaired(bytes));
}

fn check(bytes: &[u8]) {
    let Ok((header, items)) = read(bytes) else { return };
    let encoded = write(&header, &items).expect("what was decoded can be encoded");
    assert!(encoded.len() <= bytes.len(), "optional records are left out, nothing is added");
    assert_eq!(read(&encoded).expect("what was encoded can be decoded"), (header, items));
}

fn read(bytes: &[u8]) -> Result<(StreamHeader, Vec<Item>), StreamError> {
    let mut decoder = Decoder::new(bytes)?;
    let (header, mut items) = (*decoder.header(), Vec::new());
    loop {
        let item = match decoder.next_event() {
            Ok(Some(Event::Begin(header))) => Item::Begin(*header),
            Ok(Some(Event::Data { offset, data })) => Item::Data(offset, data.to_vec()),
            Ok(Some(Event::Hole { offset, length })) => Item::Hole(offset, length),
            Ok(Some(Event::Zero { offset, length })) => Item::Zero(offset, length),
            Ok(Some(Event::EndVolume(counts))) => Item::EndVolume(counts),
            Ok(Some(Event::End(summary))) => {
                assert!(summary.size.0 <= bytes.len() as u64);
                Item::End(summary.volumes, summary.counts)
            }
            Ok(Some(event)) => panic!("unknown event: {event:?}"),
            Ok(None) => {
                assert!(matches!(items.last(), Some(Item::End(..))));
                return Ok((header, items));
            }
            Err(error) => {
                assert!(matches!(decoder.next_event(), Err(StreamError::Failed)));
                return Err(error);
            }
        };
        items.push(item);
    }
}

fn write(header: &StreamHeader, items: &[Item]) -> Result<Vec<u8>, StreamError> {
    let mut encoder = Encoder::new(Vec::new(), header)?;
    for item in items {
        match item {
            Item::Begin(header) => encoder.begin(header)?,
            Item::Data(offset, data) => encoder.data(*offset, data)?,
            Item::Hole(offset, length) => encoder.hole(*offset, *length)?,
            Item::Zero(offset, length) => encoder.zero(*offset, *length)?,
            Item::EndVolume(counts) => assert_eq!(encoder.end_volume()?, *counts),
            Item::End(..) => {}
        }
    }
    Ok(encoder.finish()?.0)
}

/// The records of the input with the magic, the version, sequence numbers, checksums and digests that they should have.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut stream = b"DMTHIN\r\n\x01\0\0\0".to_vec();
    let (mut rest, mut sequence) = (bytes.get(stream.len()..).unwrap_or_default(), 0u64);
    while let Some((header, after)) = rest.split_at_checked(20) {
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
        let Some((body, after)) = after.split_at_checked(length) else { break };
        let (mut header, mut body) = (header[..8].to_vec(), body.to_vec());
        header.extend(sequence.to_le_bytes());
        // VOLUME_END and END finish with a digest of what is before them.
        if let (6 | 7, Some(digest)) = (header[0], body.last_chunk_mut::<32>()) {
            *digest = Sha256::digest(&stream).into();
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header), &body);
        stream.extend(header);
        stream.extend(crc.to_le_bytes());
        stream.extend(body);
        (rest, sequence) = (after, sequence + 1);
    }
    stream.extend(rest);
    stream
}
