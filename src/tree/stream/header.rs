//! What a stream and a volume say about themselves.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::StreamError;
use super::record::Fields;
use crate::units::Bytes;

/// Header of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHeader {
    /// Identity of the stream.
    pub stream: Uuid,
    /// The sender's tree.
    pub tree: Uuid,
}

/// The file system on a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFilesystem {
    /// The kernel's name of its type: `ext4`, `xfs`.
    pub kind: String,
    /// Its UUID.
    pub uuid: Option<Uuid>,
}

/// Header of a volume.
///
/// The encoded header has at most 64 KiB; `name` has 1 to 255 bytes, the file system's type and the keys of the labels
/// at most 255.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeHeader {
    /// Identity of the sealed volume.
    pub volume: Uuid,
    /// Identity of the sealed volume that the ranges are the difference to; `None` for a whole volume.
    pub base: Option<Uuid>,
    /// Name of the volume at the sender.
    pub name: String,
    /// Size of the volume.
    pub size: Bytes,
    /// Block size of the sender's pool; 0 if it is not known.
    pub block_size: Bytes,
    /// The file system on the volume.
    pub filesystem: Option<StreamFilesystem>,
    /// Labels of the volume.
    pub labels: BTreeMap<String, String>,
    /// Offset from which on the stream has the volume's ranges. 0 unless an earlier transfer is continued.
    pub resume: Bytes,
}

const MAX_LEN: usize = 64 << 10;
const MAX_NAME: usize = 255;

impl StreamHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        // No features, neither required nor optional.
        [self.stream.as_bytes(), self.tree.as_bytes(), [0; 16].as_slice()].concat()
    }

    /// Returns `None` if the body has another length.
    pub(super) fn decode(body: &[u8]) -> Option<Result<Self, StreamError>> {
        let mut fields = Fields(body);
        let header =
            Self { stream: Uuid::from_bytes(fields.array()?), tree: Uuid::from_bytes(fields.array()?) };
        let (required, _optional) = (fields.u64()?, fields.u64()?);
        if !fields.0.is_empty() {
            return None;
        }
        if required != 0 {
            return Some(Err(StreamError::Unsupported { what: "features", value: required }));
        }
        Some(Ok(header))
    }
}

impl VolumeHeader {
    pub(super) fn encode(&self) -> Result<Vec<u8>, StreamError> {
        self.check()?;
        let mut body = Vec::with_capacity(256);
        let filesystem = self.filesystem.as_ref();
        let base = self.base.unwrap_or_default();
        let filesystem_uuid = filesystem.and_then(|filesystem| filesystem.uuid).unwrap_or_default();
        [self.volume, base, filesystem_uuid].iter().for_each(|uuid| body.extend(uuid.as_bytes()));
        [self.size, self.block_size, self.resume].iter().for_each(|bytes| body.extend(bytes.0.to_le_bytes()));
        put_string(&mut body, "name", &self.name)?;
        put_string(&mut body, "file system", filesystem.map_or("", |filesystem| &filesystem.kind))?;
        let labels = u16::try_from(self.labels.len()).map_err(|_| invalid("labels", "more than 65535"))?;
        body.extend(labels.to_le_bytes());
        for (key, value) in &self.labels {
            put_string(&mut body, "labels", key)?;
            put_string(&mut body, "labels", value)?;
        }
        if body.len() > MAX_LEN {
            return Err(invalid("labels", "header longer than 64 KiB"));
        }
        Ok(body)
    }

    /// Returns `None` if the body is cut short, too long, or not in the canonical form.
    pub(super) fn decode(body: &[u8]) -> Option<Result<Self, StreamError>> {
        if body.len() > MAX_LEN {
            return None;
        }
        let mut fields = Fields(body);
        let mut uuid = || {
            let uuid = Uuid::from_bytes(fields.array()?);
            Some((!uuid.is_nil()).then_some(uuid))
        };
        let (volume, base, filesystem_uuid) = (uuid()?.unwrap_or_default(), uuid()?, uuid()?);
        let (size, block_size, resume) = (fields.bytes()?, fields.bytes()?, fields.bytes()?);
        let name = fields.string()?.to_owned();
        let kind = fields.string()?.to_owned();
        let filesystem = (!kind.is_empty()).then_some(StreamFilesystem { kind, uuid: filesystem_uuid });
        if filesystem.is_none() && filesystem_uuid.is_some() {
            return None;
        }
        let mut labels = BTreeMap::new();
        for _ in 0..fields.u16()? {
            let (key, value) = (fields.string()?.to_owned(), fields.string()?.to_owned());
            if labels.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return None;
            }
            labels.insert(key, value);
        }
        if !fields.0.is_empty() {
            return None;
        }
        let header = Self { volume, base, name, size, block_size, filesystem, labels, resume };
        Some(header.check().map(|()| header))
    }

    fn check(&self) -> Result<(), StreamError> {
        if self.volume.is_nil() {
            return Err(invalid("volume", "the nil UUID"));
        }
        if self.base.is_some_and(|base| base.is_nil() || base == self.volume) {
            return Err(invalid("base", "the nil UUID, or that of the volume itself"));
        }
        if self.size.0 == 0 {
            return Err(invalid("size", "zero"));
        }
        if self.resume > self.size {
            return Err(invalid("resume", "after the end of the volume"));
        }
        check_name("name", &self.name)?;
        if let Some(filesystem) = &self.filesystem {
            check_name("file system", &filesystem.kind)?;
            if filesystem.uuid.is_some_and(|uuid| uuid.is_nil()) {
                return Err(invalid("file system", "the nil UUID"));
            }
        }
        self.labels.keys().try_for_each(|key| check_name("labels", key))
    }
}

fn invalid(field: &'static str, reason: &'static str) -> StreamError {
    StreamError::InvalidHeader { field, reason }
}

fn check_name(field: &'static str, name: &str) -> Result<(), StreamError> {
    match name {
        "" => Err(invalid(field, "empty")),
        _ if name.len() > MAX_NAME => Err(invalid(field, "longer than 255 bytes")),
        _ if name.chars().any(char::is_control) => Err(invalid(field, "contains a control character")),
        _ => Ok(()),
    }
}

fn put_string(body: &mut Vec<u8>, field: &'static str, text: &str) -> Result<(), StreamError> {
    let length = u16::try_from(text.len()).map_err(|_| invalid(field, "longer than 65535 bytes"))?;
    body.extend(length.to_le_bytes());
    body.extend(text.as_bytes());
    Ok(())
}
