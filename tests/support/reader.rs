//! A second reading of a request's bytes, written from the kernel's source rather than from this
//! crate's encoder, and as strict as the kernel: it uses nothing of the crate.

/// What a request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The minor version asked for.
    pub minor: u32,
    pub flags: u32,
    pub event_nr: u32,
    pub dev: u64,
    pub name: String,
    pub uuid: String,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    None,
    /// A new name, a new uuid, a geometry.
    Text(String),
    Message(u64, String),
    Table(Vec<Line>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub start: u64,
    pub length: u64,
    pub target: String,
    pub parameters: String,
}

/// Which body the command has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    None,
    Text,
    Message,
    Table,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// `invalid_str` of dm-ioctl.c, and what follows the NUL.
fn string(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|&byte| byte == 0).expect("no NUL before the end");
    (String::from_utf8(bytes[..end].to_vec()).expect("not UTF-8"), &bytes[end + 1..])
}

fn fixed(bytes: &[u8]) -> String {
    let (text, rest) = string(bytes);
    assert!(rest.iter().all(|&byte| byte == 0), "bytes after the NUL of a fixed field");
    text
}

/// Read the request; panics where the kernel would refuse it, or where bytes are not what they must be.
pub fn read(bytes: &[u8], kind: Kind) -> Asked {
    assert_eq!(u32_at(bytes, 0), 4, "major");
    assert_eq!(u32_at(bytes, 8), 0, "patch level");
    let size = u32_at(bytes, 12) as usize;
    let start = u32_at(bytes, 16) as usize;
    assert_eq!(size, bytes.len(), "data_size is the whole buffer");
    assert_eq!(start, 312, "data_start");
    assert_eq!(u32_at(bytes, 24), 0, "open_count is the kernel's");
    assert_eq!(u32_at(bytes, 36), 0, "padding");
    assert_eq!(bytes[305..312], [0; 7], "data[7]");
    let count = u32_at(bytes, 20) as usize;
    assert!(kind == Kind::Table || count == 0, "target_count without a table");
    let payload = &bytes[start..];
    let mut rest = payload;
    let body = match kind {
        Kind::None => Body::None,
        Kind::Text => {
            let (text, after) = string(payload);
            rest = after;
            Body::Text(text)
        }
        Kind::Message => {
            let (text, after) = string(&payload[8..]);
            rest = after;
            Body::Message(u64_at(payload, 0), text)
        }
        Kind::Table => {
            // next_target() of dm-ioctl.c: `next` from the current spec, the first from the header.
            let mut lines = Vec::new();
            let (mut at, mut end) = (start, start);
            for _ in 0..count {
                assert_eq!(at % 8, 0, "alignment of a spec");
                assert!(at >= end, "a spec overlaps the text before it");
                assert!(at + 40 < bytes.len(), "no room for a spec and its NUL");
                assert!(bytes[end..at].iter().all(|&byte| byte == 0), "padding between specs");
                assert_eq!(u32_at(bytes, at + 16), 0, "status is the kernel's");
                let (parameters, after) = string(&bytes[at + 40..]);
                end = bytes.len() - after.len();
                lines.push(Line {
                    start: u64_at(bytes, at),
                    length: u64_at(bytes, at + 8),
                    target: fixed(&bytes[at + 24..at + 40]),
                    parameters,
                });
                at += u32_at(bytes, at + 20) as usize;
            }
            rest = &bytes[end..];
            Body::Table(lines)
        }
    };
    assert!(rest.iter().all(|&byte| byte == 0), "the room for the answer is not zero");
    Asked {
        minor: u32_at(bytes, 4),
        flags: u32_at(bytes, 28),
        event_nr: u32_at(bytes, 32),
        dev: u64_at(bytes, 40),
        name: fixed(&bytes[48..176]),
        uuid: fixed(&bytes[176..305]),
        body,
    }
}
