//! Requests: what is asked, and its bytes.

use std::fmt::{self, Write};
use std::mem::size_of;

use zerocopy::{FromZeros, IntoBytes};

use super::{Command, EventNr};
use crate::abi::dm::{DM_VERSION_MAJOR, DmFlags, dm_ioctl, dm_target_msg, dm_target_spec};
use crate::dm::{DmId, DmName, DmUuid, TargetSpec, TargetType};
use crate::kernel::DeviceNumber;
use crate::units::Sectors;

const HEADER: usize = size_of::<dm_ioctl>();
#[allow(clippy::cast_possible_truncation)] // 312
const DATA_START: u32 = HEADER as u32;

/// What errors show in place of a secret.
pub(in crate::dm) const SECRET: &str = "secure data";

/// What follows the header.
#[derive(Clone, Copy)]
#[non_exhaustive]
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
    Geometry(Geometry),
}

/// The geometry of a disk, as BIOS calls once saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Number of cylinders.
    pub cylinders: u16,
    /// Number of heads.
    pub heads: u8,
    /// Sectors in a track.
    pub sectors: u8,
    /// Where the device begins on the disk below.
    pub start: Sectors,
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.cylinders, self.heads, self.sectors, self.start.0)
    }
}

impl Payload<'_> {
    fn describe(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::NewName(name) => Some(format!("to {name}")),
            Self::NewUuid(uuid) => Some(format!("uuid {uuid}")),
            Self::Table(table) => Some(table.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
            Self::Message { text, .. } => Some(text.to_string()),
            Self::Geometry(geometry) => Some(geometry.to_string()),
        }
    }
}

/// A request: a value that never changes and is encoded afresh for every attempt.
#[derive(Clone, Copy)]
#[must_use]
pub struct Request<'a> {
    command: Command,
    minor: u32,
    name: Option<&'a DmName>,
    uuid: Option<&'a DmUuid>,
    number: Option<DeviceNumber>,
    target: Option<TargetType>,
    flags: DmFlags,
    event_nr: EventNr,
    payload: Payload<'a>,
}

/// Why a request cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EncodeError {
    /// The buffer is too small for it.
    BufferTooSmall,
    /// A text has a NUL byte inside, which the kernel would take for its end.
    NulInText,
    /// The device number has more than 12 bits of major or 20 bits of minor number: the kernel would
    /// take it for another one.
    NumberTooLarge,
}

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
            event_nr: EventNr::default(),
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

    /// LIST_DEVICES, which takes prefixes of names and uuids since 4.45.
    pub fn matching(name: Option<&'a DmName>, uuid: Option<&'a DmUuid>) -> Self {
        Self { name, uuid, ..Self::new(Command::LIST_DEVICES) }
    }

    /// GET_TARGET_VERSION, which takes the target's type in the place of a name.
    pub fn target_version(target: TargetType) -> Self {
        Self { target: Some(target), ..Self::new(Command::GET_TARGET_VERSION) }
    }

    /// With these flags too.
    pub fn flags(self, flags: DmFlags) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    /// With this event number. Commands that make a uevent take udev's cookie in its place.
    pub fn event_nr(self, event_nr: EventNr) -> Self {
        Self { event_nr, ..self }
    }

    /// With this payload.
    pub fn payload(self, payload: Payload<'a>) -> Self {
        Self { payload, ..self }
    }

    /// Asking for at least this minor version of the interface, for a flag that came later.
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
    pub(in crate::dm) fn subject(&self) -> String {
        match (self.name, self.uuid, self.number, self.target) {
            (Some(name), ..) => name.to_string(),
            (_, Some(uuid), ..) => uuid.to_string(),
            (_, _, Some(number), _) => number.to_string(),
            (.., Some(target)) => target.to_string(),
            _ => "/dev/mapper/control".to_owned(),
        }
    }

    /// What it asks for in particular, for errors. A secret is not shown.
    pub(in crate::dm) fn detail(&self) -> Option<String> {
        match self.payload {
            Payload::None => None,
            _ if self.is_secure() => Some(SECRET.to_owned()),
            payload => payload.describe(),
        }
    }

    /// Whether its bytes, and those of its answer, are to be wiped after use.
    pub fn is_secure(&self) -> bool {
        self.flags.contains(DmFlags::SECURE_DATA)
    }

    /// Writes the request to the front of `buffer`, the whole of which becomes `data_size`: what is
    /// behind the request is room for the answer, and zero.
    pub fn encode(&self, buffer: &mut [u8]) -> Result<(), EncodeError> {
        let data_size = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let (head, body) = buffer.split_at_mut_checked(HEADER).ok_or(EncodeError::BufferTooSmall)?;
        // The kernel leaves some bytes of an answer as it got them, such as the last of a target type.
        body.fill(0);
        if let Some(number) = self.number
            && DeviceNumber::from_huge(number.to_huge()) != number
        {
            return Err(EncodeError::NumberTooLarge);
        }
        let mut header = dm_ioctl::new_zeroed();
        header.version = [DM_VERSION_MAJOR, self.minor, 0];
        header.data_size = data_size;
        header.data_start = DATA_START;
        header.flags = self.flags.bits();
        header.event_nr = self.event_nr.0;
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
            header.target_count = u32::try_from(table.len()).map_err(|_| EncodeError::BufferTooSmall)?;
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
            .field("payload", &self.detail())
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

fn encode_payload(payload: Payload<'_>, body: &mut [u8]) -> Result<(), EncodeError> {
    match payload {
        Payload::None => {}
        Payload::NewName(name) => {
            write_name(body, name.as_bytes())?;
        }
        Payload::NewUuid(uuid) => {
            write_name(body, uuid.as_bytes())?;
        }
        Payload::Geometry(geometry) => {
            write_text(body, &geometry)?;
        }
        Payload::Message { sector, text } => {
            let message = dm_target_msg { sector: sector.0 };
            let (head, body) =
                body.split_at_mut_checked(size_of::<dm_target_msg>()).ok_or(EncodeError::BufferTooSmall)?;
            head.copy_from_slice(message.as_bytes());
            write_text(body, text)?;
        }
        Payload::Table(table) => {
            let mut rest = body;
            for line in table {
                let (head, body) = rest
                    .split_at_mut_checked(size_of::<dm_target_spec>())
                    .ok_or(EncodeError::BufferTooSmall)?;
                // `next` counts from this spec; the following one is 8-aligned.
                let room = write_text(body, line.parameters)?.next_multiple_of(8);
                let next = u32::try_from(size_of::<dm_target_spec>() + room)
                    .map_err(|_| EncodeError::BufferTooSmall)?;
                let spec = dm_target_spec {
                    sector_start: line.start.0,
                    length: line.length.0,
                    status: 0,
                    next,
                    target_type: *line.target_type.as_padded(),
                };
                head.copy_from_slice(spec.as_bytes());
                rest = body.get_mut(room..).ok_or(EncodeError::BufferTooSmall)?;
            }
        }
    }
    Ok(())
}

/// Writes a name, which has no NUL inside, and its NUL.
fn write_name(body: &mut [u8], name: &[u8]) -> Result<(), EncodeError> {
    let room = body.get_mut(..=name.len()).ok_or(EncodeError::BufferTooSmall)?;
    let (text, nul) = room.split_at_mut(name.len());
    text.copy_from_slice(name);
    nul.fill(0);
    Ok(())
}

/// Writes text and its NUL; the bytes that takes.
fn write_text(body: &mut [u8], text: &dyn fmt::Display) -> Result<usize, EncodeError> {
    struct Text<'a> {
        body: &'a mut [u8],
        len: usize,
        nul: bool,
    }

    impl Write for Text<'_> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            self.nul |= part.as_bytes().contains(&0);
            let end = self.len.checked_add(part.len()).ok_or(fmt::Error)?;
            let room = self.body.get_mut(self.len..end).ok_or(fmt::Error)?;
            room.copy_from_slice(part.as_bytes());
            self.len = end;
            Ok(())
        }
    }

    let mut writer = Text { body, len: 0, nul: false };
    let written = write!(writer, "{text}");
    if writer.nul {
        return Err(EncodeError::NulInText);
    }
    written.map_err(|_| EncodeError::BufferTooSmall)?;
    *writer.body.get_mut(writer.len).ok_or(EncodeError::BufferTooSmall)? = 0;
    Ok(writer.len + 1)
}
