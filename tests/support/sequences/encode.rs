//! Requests in bytes, right and wrong ones. Nothing of the crate's encoder is used.

use zerocopy::IntoBytes;

use dm_thin::abi::dm::{dm_ioctl, dm_target_msg, dm_target_spec};

use super::answer;
use super::machine::{Machine, name, uuid};
use super::plan::{Ask, CREATE, Device, Line, Payload, Word};

const HEADER: usize = 312;

pub fn encode(machine: &Machine<'_>, ask: &Ask, event_nr: u32) -> Vec<u8> {
    let (payload, count) = payload(machine, &ask.payload);
    let mut buffer = vec![0; HEADER];
    buffer.extend(&payload);
    let asked = ask.data_size.map_or(0, |size| usize::try_from(size).unwrap());
    buffer.resize((HEADER + ask.room).max(buffer.len()).max(asked), 0);
    let mut header = answer::header(&buffer);
    header.version = ask.version;
    header.data_size = ask.data_size.unwrap_or(u32::try_from(buffer.len()).unwrap());
    header.data_start = ask.data_start;
    header.target_count = ask.target_count.unwrap_or(count);
    header.flags = ask.flags.bits();
    header.event_nr = event_nr;
    let subject = &ask.subject;
    if let Some(n) = subject.name {
        put(&mut header.name, name(n).as_bytes());
    }
    if let Some(text) = subject.odd {
        header.name.fill(0);
        put(&mut header.name, text.as_bytes());
    }
    if let Some(whole) = &subject.whole {
        put(&mut header.name, whole);
    }
    if let Some(n) = subject.uuid {
        put(&mut header.uuid, uuid(n).as_bytes());
    }
    if subject.unended {
        let from = header.name.iter().position(|&byte| byte == 0).unwrap_or(0);
        header.name[from..].fill(b'u');
    }
    if let Some(device) = subject.device {
        header.dev = match device {
            // As a number to create a device with, one that is the same everywhere.
            Device::Loop(n) if ask.command == CREATE => 40 + n as u64,
            device => machine.number(device).to_huge(),
        };
    }
    buffer[..HEADER].copy_from_slice(dm_ioctl::as_bytes(&header));
    buffer
}

fn put(field: &mut [u8], text: &[u8]) {
    field[..text.len()].copy_from_slice(text);
}

fn payload(machine: &Machine<'_>, payload: &Payload) -> (Vec<u8>, u32) {
    let ended = |text: &str| [text.as_bytes(), b"\0"].concat();
    match payload {
        Payload::None => (Vec::new(), 0),
        Payload::Text(text) => (ended(text), 0),
        Payload::Unended(text) => (text.as_bytes().to_vec(), 0),
        Payload::Message(sector, text) => {
            ([dm_target_msg { sector: *sector }.as_bytes(), &ended(text)].concat(), 0)
        }
        Payload::Table(lines) => {
            let mut bytes = Vec::new();
            for line in lines {
                let text = parameters(machine, line);
                let next = (size_of::<dm_target_spec>() + text.len() + 1).next_multiple_of(8);
                let mut spec = dm_target_spec {
                    sector_start: line.start,
                    length: line.length,
                    status: 0,
                    next: u32::try_from(next).unwrap().wrapping_add(line.off),
                    target_type: [0; 16],
                };
                put(&mut spec.target_type, line.target.as_bytes());
                let at = bytes.len();
                bytes.extend(spec.as_bytes());
                bytes.extend(ended(&text));
                bytes.resize(at + next, 0);
            }
            (bytes, u32::try_from(lines.len()).unwrap())
        }
    }
}

fn parameters(machine: &Machine<'_>, line: &Line) -> String {
    let words = line.words.iter().map(|word| match word {
        Word::Text(text) => (*text).to_owned(),
        Word::Number(device) => machine.number(*device).to_string(),
        Word::Path(device) => machine.path(*device).display().to_string(),
    });
    words.collect::<Vec<_>>().join(" ")
}
