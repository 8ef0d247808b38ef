//! Operations as a reader of a disagreement wants them: one short line each.

use std::fmt::{Debug, Formatter, Result};

use dm_thin::dm::DmFlags;
use dm_thin::dm::wire::Command;

use super::plan::{Ask, Line, Op, Payload, Subject, Word};

impl Debug for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Ask(ask) => ask.fmt(f),
            Self::Open(device, access) => write!(f, "open {device:?} {access:?}"),
            Self::Read(device, at, len) => write!(f, "read {device:?} {at}+{len}"),
            Self::Write(device, access, at, len, byte) => {
                write!(f, "write {device:?} {access:?} {at}+{len} {byte}")
            }
            Self::Close(n) => write!(f, "close {n}"),
            Self::Block(device, write, request, start, length) => {
                let write = if *write { " rw" } else { "" };
                write!(f, "{} {device:?}{write} {start}+{length}", request.name())
            }
            Self::Loop(slot, write, request, argument) => {
                let write = if *write { " rw" } else { "" };
                write!(f, "{} Loop({slot}){write} {argument:?}", request.name())
            }
            Self::LoopControl(request, index) => write!(f, "{} {index}", request.name()),
            Self::Resize(file, size) => write!(f, "resize file {file} to {size}"),
        }
    }
}

impl Debug for Ask {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} {:?}", Command::ALL[self.command].ioctl.name(), self.subject)?;
        if self.flags != DmFlags::empty() {
            write!(f, " {:?}", self.flags)?;
        }
        match &self.payload {
            Payload::None => {}
            payload => write!(f, " {payload:?}")?,
        }
        let plain = Self::new(self.command);
        if self.version != plain.version {
            write!(f, " version {:?}", self.version)?;
        }
        if self.command == super::plan::WAIT {
            write!(f, " {:?}", self.event)?;
        }
        if (self.room, self.data_size) != (plain.room, None) {
            write!(f, " room {} size {:?}", self.room, self.data_size)?;
        }
        if (self.data_start, self.target_count) != (plain.data_start, None) {
            write!(f, " start {} targets {:?}", self.data_start, self.target_count)?;
        }
        Ok(())
    }
}

impl Debug for Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if let Some(name) = self.name {
            write!(f, "d{name}")?;
        }
        if let Some(text) = self.odd {
            write!(f, "{text:?}")?;
        }
        if let Some(uuid) = self.uuid {
            write!(f, " uuid {uuid}")?;
        }
        if let Some(device) = self.device {
            write!(f, " {device:?}")?;
        }
        if self.unended { write!(f, " unended") } else { Ok(()) }
    }
}

impl Debug for Line {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} {} {}", self.start, self.length, self.target)?;
        self.words.iter().try_for_each(|word| match word {
            Word::Text(text) => write!(f, " {text}"),
            Word::Number(device) => write!(f, " {device:?}"),
            Word::Path(device) => write!(f, " /dev/{device:?}"),
        })?;
        if self.off == 0 { Ok(()) } else { write!(f, " (next off by {})", self.off) }
    }
}
