//! Any typed request becomes bytes from which an independent reader gets the same back.

use dm_thin::dm::wire::{Command, EncodeError, Payload, Request};
use dm_thin::dm::{DmFlags, DmId, DmName, DmUuid, EventNr, TargetSpec, TargetType};
use dm_thin::kernel::DeviceNumber;
use dm_thin::units::Sectors;

use super::reader::{Asked, Body, Kind, Line, read};

/// A request in plain values: any text, of any length, in the place of names and parameters.
#[derive(Debug, Clone)]
pub struct Plain {
    pub command: usize,
    pub minor: u32,
    pub flags: u32,
    pub event_nr: u32,
    pub id: PlainId,
    pub body: Body,
}

#[derive(Debug, Clone)]
pub enum PlainId {
    None,
    Name(String),
    Uuid(String),
    Number(u32, u32),
    /// DEV_CREATE, whatever the command says.
    Create(String, Option<String>, Option<(u32, u32)>),
    /// GET_TARGET_VERSION, whatever the command says.
    Target(String),
}

/// Encode the request, read it back, compare.
pub fn check(plain: &Plain) {
    let _ = try_check(plain);
}

/// The same; `None` if a name in it is not one.
fn try_check(plain: &Plain) -> Option<()> {
    let number = |(major, minor)| DeviceNumber { major, minor };
    let command = Command::ALL[plain.command % Command::ALL.len()];
    let (name, uuid);
    let (mut asked_name, mut asked_uuid, mut asked_number) = (String::new(), String::new(), None);
    let request = match &plain.id {
        PlainId::None => Request::new(command),
        PlainId::Name(text) => {
            name = DmName::new(text).ok()?;
            asked_name.clone_from(text);
            Request::on(command, DmId::Name(&name))
        }
        PlainId::Uuid(text) => {
            uuid = DmUuid::new(text).ok()?;
            asked_uuid.clone_from(text);
            Request::on(command, DmId::Uuid(&uuid))
        }
        PlainId::Number(major, minor) => {
            asked_number = Some((*major, *minor));
            Request::on(command, DmId::Number(number((*major, *minor))))
        }
        PlainId::Create(text, id, fixed) => {
            name = DmName::new(text).ok()?;
            asked_name.clone_from(text);
            let id = match id {
                Some(text) => {
                    uuid = DmUuid::new(text).ok()?;
                    asked_uuid.clone_from(text);
                    Some(&uuid)
                }
                None => None,
            };
            asked_number = *fixed;
            Request::create(&name, id, fixed.map(number))
        }
        PlainId::Target(text) => {
            asked_name.clone_from(text);
            Request::target_version(TargetType::new(text).ok()?)
        }
    };
    let persistent = matches!(plain.id, PlainId::Create(_, _, Some(_)));
    let flags = plain.flags | if persistent { 1 << 3 } else { 0 };

    let (new_name, new_uuid);
    let mut table = Vec::new();
    let (payload, kind) = match &plain.body {
        Body::None => (Payload::None, Kind::None),
        Body::Text(text) if flags & 1 << 14 != 0 => {
            new_uuid = DmUuid::new(text).ok()?;
            (Payload::NewUuid(&new_uuid), Kind::Text)
        }
        Body::Text(text) => {
            new_name = DmName::new(text).ok()?;
            (Payload::NewName(&new_name), Kind::Text)
        }
        Body::Message(sector, text) => (Payload::Message { sector: Sectors(*sector), text }, Kind::Message),
        Body::Table(lines) => {
            for Line { start, length, target, parameters } in lines {
                table.push(TargetSpec {
                    start: Sectors(*start),
                    length: Sectors(*length),
                    target_type: TargetType::new(target).ok()?,
                    parameters,
                });
            }
            (Payload::Table(&table), Kind::Table)
        }
    };
    let request = request
        .flags(DmFlags::from_bits_retain(plain.flags))
        .event_nr(EventNr(plain.event_nr))
        .since(plain.minor)
        .payload(payload);

    // What an error would say of it.
    assert!(!format!("{request:?}").is_empty());
    let asked = Asked {
        minor: plain.minor.max(request.command().minor),
        flags,
        event_nr: plain.event_nr,
        // huge_encode_dev() of kdev_t.h
        dev: asked_number.map_or(0, |(major, minor)| {
            u64::from(minor & 0xff) | u64::from(major) << 8 | u64::from(minor & !0xff) << 12
        }),
        name: asked_name,
        uuid: asked_uuid,
        body: plain.body.clone(),
    };
    check_encoding(&request, kind, &asked, asked_number);
    Some(())
}

fn check_encoding(request: &Request<'_>, kind: Kind, asked: &Asked, number: Option<(u32, u32)>) {
    let has_nul = match &asked.body {
        Body::None | Body::Text(_) => false,
        Body::Message(_, text) => text.contains('\0'),
        Body::Table(lines) => lines.iter().any(|line| line.parameters.contains('\0')),
    };
    let too_large = number.is_some_and(|(major, minor)| major >= 1 << 12 || minor >= 1 << 20);
    // What the request takes, counted here by itself.
    let (len, text_end) = match &asked.body {
        Body::None => (312, 312),
        Body::Text(text) => (312 + text.len() + 1, 312 + text.len() + 1),
        Body::Message(_, text) => (312 + 8 + text.len() + 1, 312 + 8 + text.len() + 1),
        Body::Table(lines) => lines.iter().fold((312, 312), |(at, _), line| {
            let end = at + 40 + line.parameters.len() + 1;
            (end.next_multiple_of(8), end)
        }),
    };
    let mut buffer = vec![0xa5; len];
    let result = request.encode(&mut buffer);
    if too_large {
        return assert_eq!(result, Err(EncodeError::NumberTooLarge));
    }
    if has_nul {
        return assert_eq!(result, Err(EncodeError::NulInText));
    }
    assert_eq!(result, Ok(()));
    assert_eq!(&read(&buffer, kind), asked);
    // No shorter buffer is written past its end, or taken for large enough.
    for shorter in [0, 1, 311, 312, text_end - 1] {
        if shorter < text_end {
            let result = request.encode(&mut buffer[..shorter]);
            assert_eq!(result, Err(EncodeError::BufferTooSmall), "{shorter} of {text_end} bytes");
        }
    }
    // A longer one, whatever was in it, is the same request with more room.
    let mut longer = vec![0x5a; len + 77];
    request.encode(&mut longer).unwrap();
    assert_eq!(&read(&longer, kind), asked);
}

/// Check the request that the bytes stand for.
pub fn fuzz(bytes: &[u8]) {
    check(&plain(bytes));
}

/// A request out of a fuzzer's bytes.
pub fn plain(bytes: &[u8]) -> Plain {
    let mut bytes = Bytes(bytes);
    let id = match bytes.byte() % 6 {
        0 => PlainId::None,
        1 => PlainId::Name(bytes.text()),
        2 => PlainId::Uuid(bytes.text()),
        3 => PlainId::Number(bytes.u32(), bytes.u32()),
        4 => {
            let name = bytes.text();
            let uuid = (bytes.byte() % 2 == 1).then(|| bytes.text());
            PlainId::Create(
                name,
                uuid,
                (bytes.byte() % 2 == 1).then(|| (bytes.u32() >> 20, bytes.u32() >> 12)),
            )
        }
        _ => PlainId::Target(bytes.text()),
    };
    let (command, minor) = (usize::from(bytes.byte()), u32::from(bytes.byte()));
    let (flags, event_nr) = (bytes.u32(), bytes.u32());
    let body = match bytes.byte() % 4 {
        0 => Body::None,
        1 => Body::Text(bytes.text()),
        2 => Body::Message(bytes.u64(), bytes.text()),
        _ => {
            let mut lines = Vec::new();
            while !bytes.0.is_empty() {
                lines.push(Line {
                    start: bytes.u64(),
                    length: bytes.u64(),
                    target: bytes.text(),
                    parameters: bytes.text(),
                });
            }
            Body::Table(lines)
        }
    };
    Plain { command, minor, flags, event_nr, id, body }
}

/// Values off the front; zeroes when it is used up.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let (&first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        first
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte()))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes([(); 8].map(|()| self.byte()))
    }

    /// As long as the first byte says.
    fn text(&mut self) -> String {
        let len = usize::from(self.byte()).min(self.0.len());
        let (text, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }
}
