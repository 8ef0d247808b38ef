//! Requests to bytes and bytes to answers. Pure: no I/O, and nothing from the kernel is trusted.

use std::fmt;
use std::io::Write;
use std::mem::size_of;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{DmId, DmName, DmUuid, TargetLine, TargetSpec, TargetType};
use crate::abi::Ioctl;
use crate::abi::dm::{
    self, DM_IOCTL_MIN_SIZE, DM_NAME_LIST_FLAG_HAS_UUID, DM_VERSION_MAJOR, DmFlags, dm_ioctl, dm_name_list,
    dm_name_list_tail, dm_target_deps, dm_target_msg, dm_target_spec, dm_target_versions,
};
use crate::kernel::DeviceNumber;
use crate::units::Sectors;
use crate::{Error, Result};

const HEADER: usize = size_of::<dm_ioctl>();
#[allow(clippy::cast_possible_truncation)] // 312
const DATA_START: u32 = HEADER as u32;

/// A command of the control device, with the interface minor that first had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// The ioctl.
    pub ioctl: Ioctl,
    /// The lowest minor version of the interface that understands it.
    pub minor: u32,
}

macro_rules! commands {
    ($($name:ident = $ioctl:ident since $minor:literal;)*) => {
        impl Command {
            $(
                #[doc = concat!("[`", stringify!($ioctl), "`](dm::", stringify!($ioctl), ")")]
                pub const $name: Self = Self { ioctl: dm::$ioctl, minor: $minor };
            )*
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

commands! {
    VERSION = DM_VERSION since 0;
    REMOVE_ALL = DM_REMOVE_ALL since 0;
    LIST_DEVICES = DM_LIST_DEVICES since 0;
    DEV_CREATE = DM_DEV_CREATE since 0;
    DEV_REMOVE = DM_DEV_REMOVE since 0;
    DEV_RENAME = DM_DEV_RENAME since 0;
    DEV_SUSPEND = DM_DEV_SUSPEND since 0;
    DEV_STATUS = DM_DEV_STATUS since 0;
    DEV_WAIT = DM_DEV_WAIT since 0;
    TABLE_LOAD = DM_TABLE_LOAD since 0;
    TABLE_CLEAR = DM_TABLE_CLEAR since 0;
    TABLE_DEPS = DM_TABLE_DEPS since 0;
    TABLE_STATUS = DM_TABLE_STATUS since 0;
    LIST_VERSIONS = DM_LIST_VERSIONS since 1;
    TARGET_MSG = DM_TARGET_MSG since 2;
    DEV_SET_GEOMETRY = DM_DEV_SET_GEOMETRY since 6;
    DEV_ARM_POLL = DM_DEV_ARM_POLL since 37;
    GET_TARGET_VERSION = DM_GET_TARGET_VERSION since 41;
}

/// What follows the header.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// Nothing.
    None,
    /// DEV_RENAME: the new name.
    NewName(&'a DmName),
    /// DEV_RENAME with [`DmFlags::UUID`]: the uuid to set.
    NewUuid(&'a DmUuid),
    /// TABLE_LOAD: the lines.
    Table(&'a [TargetSpec<'a>]),
    /// TARGET_MSG: the text, for the target that serves `sector`.
    Message {
        /// A sector of the device.
        sector: Sectors,
        /// The text, rendered straight into the buffer.
        text: &'a dyn fmt::Display,
    },
    /// DEV_SET_GEOMETRY.
    Geometry {
        /// Number of cylinders.
        cylinders: u16,
        /// Number of heads.
        heads: u8,
        /// Sectors in a track.
        sectors: u8,
        /// Where the device begins on the disk below.
        start: Sectors,
    },
}

impl Payload<'_> {
    fn describe(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::NewName(name) => Some(format!("to {name}")),
            Self::NewUuid(uuid) => Some(format!("uuid {uuid}")),
            Self::Table(table) => Some(table.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
            Self::Message { text, .. } => Some(text.to_string()),
            Self::Geometry { cylinders, heads, sectors, start } => {
                Some(format!("{cylinders} {heads} {sectors} {}", start.0))
            }
        }
    }
}

/// A request: a value that never changes and is encoded afresh for every attempt.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    command: Command,
    minor: u32,
    name: Option<&'a DmName>,
    uuid: Option<&'a DmUuid>,
    number: Option<DeviceNumber>,
    target: Option<TargetType>,
    flags: DmFlags,
    event_nr: u32,
    payload: Payload<'a>,
}

/// The buffer is too small for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferTooSmall;

impl<'a> Request<'a> {
    /// A request that means no device.
    pub fn new(command: Command) -> Self {
        Self {
            command,
            minor: command.minor,
            name: None,
            uuid: None,
            number: None,
            target: None,
            flags: DmFlags::empty(),
            event_nr: 0,
            payload: Payload::None,
        }
    }

    /// A request about one device.
    pub fn on(command: Command, id: DmId<'a>) -> Self {
        let request = Self::new(command);
        match id {
            DmId::Name(name) => Self { name: Some(name), ..request },
            DmId::Uuid(uuid) => Self { uuid: Some(uuid), ..request },
            DmId::Number(number) => Self { number: Some(number), ..request },
        }
    }

    /// DEV_CREATE, with a fixed device number if one is given.
    pub fn create(name: &'a DmName, uuid: Option<&'a DmUuid>, number: Option<DeviceNumber>) -> Self {
        let flags = if number.is_some() { DmFlags::PERSISTENT_DEV } else { DmFlags::empty() };
        Self { name: Some(name), uuid, number, flags, ..Self::new(Command::DEV_CREATE) }
    }

    /// GET_TARGET_VERSION, which takes the target's type in the place of a name.
    pub fn target_version(target: TargetType) -> Self {
        Self { target: Some(target), ..Self::new(Command::GET_TARGET_VERSION) }
    }

    /// With these flags too.
    #[must_use]
    pub fn flags(self, flags: DmFlags) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    /// With this event number, or udev cookie.
    #[must_use]
    pub fn event_nr(self, event_nr: u32) -> Self {
        Self { event_nr, ..self }
    }

    /// With this payload.
    #[must_use]
    pub fn payload(self, payload: Payload<'a>) -> Self {
        Self { payload, ..self }
    }

    /// Asking for at least this minor version of the interface, for a flag that came later.
    #[must_use]
    pub fn since(self, minor: u32) -> Self {
        Self { minor: self.minor.max(minor), ..self }
    }

    /// Which command it is.
    pub fn command(&self) -> Command {
        self.command
    }

    /// The lowest minor version of the interface that it needs.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// What the request is about, for errors.
    pub(super) fn subject(&self) -> String {
        match (self.name, self.uuid, self.number, self.target) {
            (Some(name), ..) => name.to_string(),
            (_, Some(uuid), ..) => uuid.to_string(),
            (_, _, Some(number), _) => number.to_string(),
            (.., Some(target)) => target.to_string(),
            _ => "/dev/mapper/control".to_owned(),
        }
    }

    /// What it asks for in particular, for errors.
    pub(super) fn detail(&self) -> Option<String> {
        self.payload.describe()
    }

    /// Write the request to the front of `buffer`, the whole of which becomes `data_size`: what is
    /// behind the request is room for the answer.
    pub fn encode(&self, buffer: &mut [u8]) -> Result<(), BufferTooSmall> {
        let data_size = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let (head, body) = buffer.split_at_mut_checked(HEADER).ok_or(BufferTooSmall)?;
        let mut header = dm_ioctl::new_zeroed();
        header.version = [DM_VERSION_MAJOR, self.minor, 0];
        header.data_size = data_size;
        header.data_start = DATA_START;
        header.flags = self.flags.bits();
        header.event_nr = self.event_nr;
        header.dev = self.number.map_or(0, DeviceNumber::to_huge);
        if let Some(name) = self.name {
            header.name = *name.as_padded();
        }
        if let Some(target) = &self.target {
            header.name[..target.as_padded().len()].copy_from_slice(target.as_padded());
        }
        if let Some(uuid) = self.uuid {
            header.uuid = *uuid.as_padded();
        }
        if let Payload::Table(table) = self.payload {
            header.target_count = u32::try_from(table.len()).map_err(|_| BufferTooSmall)?;
        }
        encode_payload(self.payload, body)?;
        head.copy_from_slice(header.as_bytes());
        Ok(())
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("command", &self.command.ioctl.name())
            .field("subject", &self.subject())
            .field("flags", &self.flags)
            .field("event_nr", &self.event_nr)
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some(text) => f.write_str(&text),
            None => f.write_str("none"),
        }
    }
}

fn encode_payload(payload: Payload<'_>, body: &mut [u8]) -> Result<(), BufferTooSmall> {
    match payload {
        Payload::None => {}
        Payload::NewName(name) => {
            write_text(body, name)?;
        }
        Payload::NewUuid(uuid) => {
            write_text(body, uuid)?;
        }
        Payload::Geometry { cylinders, heads, sectors, start } => {
            write_text(body, &format_args!("{cylinders} {heads} {sectors} {}", start.0))?;
        }
        Payload::Message { sector, text } => {
            let message = dm_target_msg { sector: sector.0 };
            let (head, body) = body.split_at_mut_checked(size_of::<dm_target_msg>()).ok_or(BufferTooSmall)?;
            head.copy_from_slice(message.as_bytes());
            write_text(body, text)?;
        }
        Payload::Table(table) => {
            let mut rest = body;
            for line in table {
                let (head, body) =
                    rest.split_at_mut_checked(size_of::<dm_target_spec>()).ok_or(BufferTooSmall)?;
                // `next` counts from this spec; the following one is 8-aligned.
                let room = write_text(body, line.parameters)?.next_multiple_of(8);
                let next = u32::try_from(size_of::<dm_target_spec>() + room).map_err(|_| BufferTooSmall)?;
                let spec = dm_target_spec {
                    sector_start: line.start.0,
                    length: line.length.0,
                    status: 0,
                    next,
                    target_type: *line.target_type.as_padded(),
                };
                head.copy_from_slice(spec.as_bytes());
                rest = body.get_mut(room..).ok_or(BufferTooSmall)?;
            }
        }
    }
    Ok(())
}

/// Write text and its NUL; the bytes that takes.
fn write_text(body: &mut [u8], text: &dyn fmt::Display) -> Result<usize, BufferTooSmall> {
    let room = body.len();
    let mut rest = body;
    write!(rest, "{text}\0").map_err(|_| BufferTooSmall)?;
    Ok(room - rest.len())
}

/// The version of device mapper's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DmVersion {
    /// No compatibility across it.
    pub major: u32,
    /// Grows with what was added.
    pub minor: u32,
    /// Nothing that a caller sees.
    pub patch: u32,
}

impl From<[u32; 3]> for DmVersion {
    fn from([major, minor, patch]: [u32; 3]) -> Self {
        Self { major, minor, patch }
    }
}

impl fmt::Display for DmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The state of a device, as every answer about one carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its device number.
    pub number: DeviceNumber,
    /// How often it is open.
    pub open_count: u32,
    /// How many events it has had.
    pub event_nr: u32,
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
}

/// A device as LIST_DEVICES gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedDevice {
    /// Its device number.
    pub number: DeviceNumber,
    /// Its name.
    pub name: DmName,
    /// How many events it has had; interface 4.37 and later.
    pub event_nr: Option<u32>,
    /// Its uuid; interface 4.45 and later.
    pub uuid: Option<DmUuid>,
}

/// A target type that the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Take apart the buffer of a successful ioctl.
    pub fn decode(buffer: &'a [u8]) -> Result<Self> {
        let header = match dm_ioctl::read_from_prefix(buffer) {
            Ok((header, _)) => header,
            Err(_) => return Err(malformed("response header", buffer)),
        };
        let size = header.data_size as usize;
        // Without a payload the kernel answers data_size 305 and data_start 312.
        if size < DM_IOCTL_MIN_SIZE || size > buffer.len() {
            return Err(malformed("response size", &buffer[..HEADER]));
        }
        let payload = buffer[..size].get(header.data_start as usize..).unwrap_or_default();
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
    pub fn event_nr(&self) -> u32 {
        self.header.event_nr
    }

    /// The device number in the header.
    pub fn number(&self) -> DeviceNumber {
        DeviceNumber::from_huge(self.header.dev)
    }

    /// The state of the device that the request was about.
    pub fn device(&self) -> Result<DeviceStatus> {
        let uuid = text("device uuid", &self.header.uuid)?;
        Ok(DeviceStatus {
            number: self.number(),
            open_count: self.header.open_count.try_into().unwrap_or(0),
            event_nr: self.header.event_nr,
            target_count: self.header.target_count,
            flags: self.flags(),
            name: DmName::new(text("device name", &self.header.name)?)?,
            uuid: if uuid.is_empty() { None } else { Some(DmUuid::new(uuid)?) },
        })
    }

    /// LIST_DEVICES: the records. `next` counts from the current one.
    pub fn devices(&self) -> Result<Vec<ListedDevice>> {
        let what = "device list";
        let mut devices = Vec::new();
        let mut rest = self.payload;
        while !rest.is_empty() {
            let (head, body) = dm_name_list::read_from_prefix(rest).map_err(|_| malformed(what, rest))?;
            if head.dev == 0 && devices.is_empty() {
                break;
            }
            let (name, name_len) = text_and_len(what, body)?;
            let (mut event_nr, mut uuid) = (None, None);
            // Before 4.37 the next record may follow at once: the tail is only there if it fits before it.
            let tail_at = (size_of::<dm_name_list>() + name_len).next_multiple_of(8);
            let end = if head.next == 0 { rest.len() } else { head.next as usize };
            let record = rest.get(..end).ok_or_else(|| malformed(what, rest))?;
            if self.header.version[1] >= 37
                && let Some(Ok((tail, after))) =
                    record.get(tail_at..).map(dm_name_list_tail::read_from_prefix)
            {
                event_nr = Some(tail.event_nr);
                if tail.flags & DM_NAME_LIST_FLAG_HAS_UUID != 0 {
                    uuid = Some(DmUuid::new(text(what, after)?)?);
                }
            }
            let number = DeviceNumber::from_huge(head.dev);
            devices.push(ListedDevice { number, name: DmName::new(name)?, event_nr, uuid });
            rest = advance(what, rest, head.next, size_of::<dm_name_list>())?;
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
            let (text, _) = text_and_len(what, body)?;
            lines.push(TargetLine {
                start: Sectors(spec.sector_start),
                length: Sectors(spec.length),
                target_type: TargetType::new(self::text(what, &spec.target_type)?)?,
                text: text.to_owned(),
            });
            let next = spec.next as usize;
            if next < at + size_of::<dm_target_spec>() {
                return Err(malformed(what, rest));
            }
            at = next;
        }
        Ok(lines)
    }

    /// TABLE_DEPS: the devices that a table uses.
    pub fn dependencies(&self) -> Result<Vec<DeviceNumber>> {
        let what = "table dependencies";
        let (deps, body) =
            dm_target_deps::read_from_prefix(self.payload).map_err(|_| malformed(what, self.payload))?;
        let bytes = (deps.count as usize).checked_mul(8).and_then(|len| body.get(..len));
        let bytes = bytes.ok_or_else(|| malformed(what, self.payload))?;
        let (numbers, _) = bytes.as_chunks::<8>();
        Ok(numbers.iter().map(|&number| DeviceNumber::from_huge(u64::from_ne_bytes(number))).collect())
    }

    /// LIST_VERSIONS and GET_TARGET_VERSION: the target types.
    pub fn target_versions(&self) -> Result<Vec<TargetVersion>> {
        let what = "target versions";
        let mut versions = Vec::new();
        let mut rest = self.payload;
        while !rest.is_empty() {
            let (head, body) =
                dm_target_versions::read_from_prefix(rest).map_err(|_| malformed(what, rest))?;
            let target_type = TargetType::new(text(what, body)?)?;
            versions.push(TargetVersion { target_type, version: head.version.into() });
            rest = advance(what, rest, head.next, size_of::<dm_target_versions>())?;
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

/// The bytes of the next record, `next` from the current one; nothing after the last.
fn advance<'a>(what: &'static str, rest: &'a [u8], next: u32, least: usize) -> Result<&'a [u8]> {
    match next as usize {
        0 => Ok(&[]),
        next if next <= least => Err(malformed(what, rest)),
        next => rest.get(next..).ok_or_else(|| malformed(what, rest)),
    }
}

fn text<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a str> {
    text_and_len(what, bytes).map(|(text, _)| text)
}

/// NUL-terminated UTF-8 at the front of `bytes`, and its length with the NUL.
fn text_and_len<'a>(what: &'static str, bytes: &'a [u8]) -> Result<(&'a str, usize)> {
    let end = bytes.iter().position(|&byte| byte == 0).ok_or_else(|| malformed(what, bytes))?;
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| malformed(what, &bytes[..end]))?;
    Ok((text, end + 1))
}

#[cold]
fn malformed(what: &'static str, raw: &[u8]) -> Error {
    const SHOWN: usize = 512;
    Error::Malformed { what, raw: raw[..raw.len().min(SHOWN)].escape_ascii().to_string() }
}

#[cfg(test)]
mod tests;
