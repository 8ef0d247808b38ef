//! Answers: bytes of the kernel, taken apart.
//!
//! Offsets and counts are bounded and must advance; text is bounded by the record that holds it, so
//! that what a decoder allocates is at most a small multiple of the bytes it was given.

use std::fmt;
use std::mem::size_of;

use zerocopy::FromBytes;

use crate::abi::dm::{
    DM_IOCTL_MIN_SIZE, DM_NAME_LIST_FLAG_HAS_UUID, DmFlags, dm_ioctl, dm_name_list, dm_name_list_tail,
    dm_target_deps, dm_target_spec, dm_target_versions,
};
use crate::dm::{DmName, DmUuid, DmVersion, TargetLine, TargetType};
use crate::dm::{Error, Result};
use crate::kernel::DeviceNumber;
use crate::units::Sectors;

/// How many events a device has had (`event_nr`). It wraps around, so only a different number is a new event, not
/// a greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EventNr(pub u32);

impl fmt::Display for EventNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The state of a device, as every answer about one carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DeviceStatus {
    /// Its device number.
    pub number: DeviceNumber,
    /// How often it is open.
    pub open_count: u32,
    /// How many events it has had.
    pub event_nr: EventNr,
    /// Lines in its live table (in the inactive one, if the question was about that).
    pub target_count: u32,
    /// What it is in: suspended, read-only, tables present, to be removed …
    pub flags: DmFlags,
    /// Its name.
    pub name: DmName,
    /// Its uuid.
    pub uuid: Option<DmUuid>,
}

impl DeviceStatus {
    /// Whether it is suspended.
    pub fn is_suspended(&self) -> bool {
        self.flags.contains(DmFlags::SUSPEND)
    }

    /// Whether it has a live table.
    pub fn has_live_table(&self) -> bool {
        self.flags.contains(DmFlags::ACTIVE_PRESENT)
    }

    /// Whether it refuses writes: its table was loaded with [`DmFlags::READONLY`].
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(DmFlags::READONLY)
    }
}

/// A device as LIST_DEVICES gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ListedDevice {
    /// Its device number.
    pub number: DeviceNumber,
    /// Its name.
    pub name: DmName,
    /// How many events it has had; interface 4.37 and later.
    pub event_nr: Option<EventNr>,
    /// Its uuid; interface 4.45 and later.
    pub uuid: Option<DmUuid>,
}

/// A target type that the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TargetVersion {
    /// The type.
    pub target_type: TargetType,
    /// Its version.
    pub version: DmVersion,
}

/// An answer: the header and what follows it, bounds checked.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    header: dm_ioctl,
    payload: &'a [u8],
}

impl<'a> Response<'a> {
    /// Takes apart the buffer of a successful ioctl.
    pub fn decode(buffer: &'a [u8]) -> Result<Self> {
        let header = match dm_ioctl::read_from_prefix(buffer) {
            Ok((header, _)) => header,
            Err(_) => return Err(malformed("response header", buffer)),
        };
        let size = header.data_size as usize;
        let start = header.data_start as usize;
        // Without a payload the kernel answers data_size 305 and data_start 312.
        if size < DM_IOCTL_MIN_SIZE || size > buffer.len() || start < size_of::<dm_ioctl>() {
            return Err(malformed("response size", &buffer[..size_of::<dm_ioctl>()]));
        }
        let payload = buffer[..size].get(start..).unwrap_or_default();
        Ok(Self { header, payload })
    }

    /// The kernel's interface version.
    pub fn version(&self) -> DmVersion {
        self.header.version.into()
    }

    /// `flags` of the answer.
    pub fn flags(&self) -> DmFlags {
        DmFlags::from_bits_retain(self.header.flags)
    }

    /// The device's event number.
    pub fn event_nr(&self) -> EventNr {
        EventNr(self.header.event_nr)
    }

    /// The device number in the header.
    pub fn number(&self) -> DeviceNumber {
        DeviceNumber::from_huge(self.header.dev)
    }

    /// The device's name; none in an answer without one.
    pub(in crate::dm) fn name(&self) -> Option<DmName> {
        let (name, _) = until_nul("device name", &self.header.name).ok()?;
        DmName::of_kernel(name)
    }

    /// The state of the device that the request was about.
    pub fn device(&self) -> Result<DeviceStatus> {
        let (name, _) = until_nul("device name", &self.header.name)?;
        let (uuid, _) = until_nul("device uuid", &self.header.uuid)?;
        Ok(DeviceStatus {
            number: self.number(),
            open_count: self.header.open_count.try_into().unwrap_or(0),
            event_nr: self.event_nr(),
            target_count: self.header.target_count,
            flags: self.flags(),
            name: DmName::of_kernel(name).ok_or_else(|| malformed("device name", name))?,
            uuid: DmUuid::of_kernel(uuid),
        })
    }

    /// LIST_DEVICES: the records. `next` counts from the current one. No device is left out for its name.
    pub fn devices(&self) -> Result<Vec<ListedDevice>> {
        let what = "device list";
        let minor = self.header.version[1];
        let mut devices = Vec::new();
        let mut rest = self.payload;
        while !rest.is_empty() {
            let (head, _) = dm_name_list::read_from_prefix(rest).map_err(|_| malformed(what, rest))?;
            if head.dev == 0 && head.next == 0 && devices.is_empty() {
                break;
            }
            let (record, following) = record(what, rest, head.next)?;
            let (name, len) = until_nul(what, &record[size_of::<dm_name_list>()..])?;
            let (mut event_nr, mut uuid) = (None, None);
            // 4.36 had the event number in another place on 64-bit kernels.
            if minor >= 37 {
                let tail = (size_of::<dm_name_list>() + len).next_multiple_of(8);
                let tail = record.get(tail..).unwrap_or_default();
                let (tail, after) =
                    dm_name_list_tail::read_from_prefix(tail).map_err(|_| malformed(what, record))?;
                event_nr = Some(EventNr(tail.event_nr));
                // Before 4.45 the flags were padding.
                if minor >= 45 && tail.flags & DM_NAME_LIST_FLAG_HAS_UUID != 0 {
                    let (bytes, _) = until_nul(what, after)?;
                    uuid = Some(DmUuid::of_kernel(bytes).ok_or_else(|| malformed(what, record))?);
                }
            }
            let number = DeviceNumber::from_huge(head.dev);
            let name = DmName::of_kernel(name).ok_or_else(|| malformed(what, record))?;
            devices.push(ListedDevice { number, name, event_nr, uuid });
            rest = following;
        }
        Ok(devices)
    }

    /// TABLE_STATUS and DEV_WAIT: the lines. `next` counts from the first one.
    pub fn targets(&self) -> Result<Vec<TargetLine>> {
        let what = "table status";
        let mut lines = Vec::new();
        let mut at = 0;
        for _ in 0..self.header.target_count {
            let rest = self.payload.get(at..).ok_or_else(|| malformed(what, self.payload))?;
            let (spec, body) = dm_target_spec::read_from_prefix(rest).map_err(|_| malformed(what, rest))?;
            let next = spec.next as usize;
            // The last `next` is rounded up, `data_size` is not.
            let room = next.checked_sub(at + size_of::<dm_target_spec>());
            let room = room.filter(|_| next.is_multiple_of(8)).ok_or_else(|| malformed(what, rest))?;
            let text_of_line = text(what, &body[..room.min(body.len())])?;
            lines.push(TargetLine {
                start: Sectors(spec.sector_start),
                length: Sectors(spec.length),
                target_type: target_type(what, &spec.target_type)?,
                text: text_of_line.to_owned(),
            });
            at = next;
        }
        Ok(lines)
    }

    /// TABLE_DEPS: the devices that a table uses; none if there is no table.
    pub fn dependencies(&self) -> Result<Vec<DeviceNumber>> {
        let what = "table dependencies";
        if self.payload.is_empty() {
            return Ok(Vec::new());
        }
        let (deps, body) =
            dm_target_deps::read_from_prefix(self.payload).map_err(|_| malformed(what, self.payload))?;
        let bytes = (deps.count as usize).checked_mul(8).and_then(|len| body.get(..len));
        let bytes = bytes.ok_or_else(|| malformed(what, self.payload))?;
        let (numbers, _) = bytes.as_chunks::<8>();
        Ok(numbers.iter().map(|&number| DeviceNumber::from_huge(u64::from_ne_bytes(number))).collect())
    }

    /// LIST_VERSIONS and GET_TARGET_VERSION: the target types. `next` counts from the current one.
    pub fn target_versions(&self) -> Result<Vec<TargetVersion>> {
        let what = "target versions";
        let mut versions = Vec::new();
        let mut rest = self.payload;
        while !rest.is_empty() {
            let (head, _) = dm_target_versions::read_from_prefix(rest).map_err(|_| malformed(what, rest))?;
            let (record, following) = record(what, rest, head.next)?;
            let target_type = target_type(what, &record[size_of::<dm_target_versions>()..])?;
            versions.push(TargetVersion { target_type, version: head.version.into() });
            rest = following;
        }
        Ok(versions)
    }

    /// TARGET_MSG: what the target answered, if it did.
    pub fn message(&self) -> Result<Option<&'a str>> {
        if !self.flags().contains(DmFlags::DATA_OUT) {
            return Ok(None);
        }
        text("message answer", self.payload).map(Some)
    }
}

/// The bytes of a record whose head says that the next one is `next` further on, and the bytes from
/// there on; both heads begin with 8 or more bytes and the kernel aligns each record to 8.
fn record<'a>(what: &'static str, rest: &'a [u8], next: u32) -> Result<(&'a [u8], &'a [u8])> {
    match next as usize {
        0 => Ok((rest, &[])),
        next if next < LEAST_RECORD || !next.is_multiple_of(8) || next >= rest.len() => {
            Err(malformed(what, rest))
        }
        next => Ok(rest.split_at(next)),
    }
}

/// The larger of the two heads, `dm_name_list` and `dm_target_versions`.
const LEAST_RECORD: usize = size_of::<dm_target_versions>();

/// One that this crate does not take is malformed.
fn target_type(what: &'static str, bytes: &[u8]) -> Result<TargetType> {
    let text = text(what, bytes)?;
    TargetType::new(text).map_err(|_| malformed(what, text.as_bytes()))
}

/// NUL-terminated UTF-8 at the front of `bytes`.
fn text<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a str> {
    let (text, _) = until_nul(what, bytes)?;
    std::str::from_utf8(text).map_err(|_| malformed(what, text))
}

/// What is before the first NUL, and its length with the NUL.
fn until_nul<'a>(what: &'static str, bytes: &'a [u8]) -> Result<(&'a [u8], usize)> {
    let end = bytes.iter().position(|&byte| byte == 0).ok_or_else(|| malformed(what, bytes))?;
    Ok((&bytes[..end], end + 1))
}

#[cold]
fn malformed(what: &'static str, raw: &[u8]) -> Error {
    const SHOWN: usize = 512;
    Error::Malformed { what, raw: raw[..raw.len().min(SHOWN)].escape_ascii().to_string() }
}
