//! What can be asked of a kernel, in terms that mean the same on any of them: devices, loop devices and
//! files by their place in a machine, never by number.

use dm_thin::abi::Ioctl;
use dm_thin::dm::DmFlags;
use dm_thin::kernel::Access;

/// A block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The n-th one that was created, counted around.
    Mapped(usize),
    /// One of the machine's four loop devices.
    Loop(usize),
    /// A number that nobody has.
    Nobody,
}

#[derive(Clone)]
pub enum Word {
    Text(&'static str),
    /// `major:minor`.
    Number(Device),
    /// `/dev/…`.
    Path(Device),
}

#[derive(Clone)]
pub struct Line {
    pub start: u64,
    pub length: u64,
    pub target: &'static str,
    pub words: Vec<Word>,
    /// Added to `next`, to make it wrong.
    pub off: u32,
}

#[derive(Debug, Clone)]
pub enum Payload {
    None,
    Table(Vec<Line>),
    Text(String),
    /// A text without its NUL.
    Unended(&'static str),
    Message(u64, &'static str),
}

/// Which device a request is about. Names and uuids are numbers that stand for them.
#[derive(Clone, Default, PartialEq)]
pub struct Subject {
    pub name: Option<usize>,
    pub uuid: Option<usize>,
    pub device: Option<Device>,
    /// A name as it is.
    pub odd: Option<&'static str>,
    /// A device's name as it was listed.
    pub whole: Option<Vec<u8>>,
    /// The whole name field filled, without a NUL.
    pub unended: bool,
}

/// Event number of a request.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    Number(u32),
    /// Of the device meant.
    Current,
}

/// A request to `/dev/mapper/control`.
#[derive(Clone)]
pub struct Ask {
    /// Number of the command.
    pub command: usize,
    pub version: [u32; 3],
    pub flags: DmFlags,
    pub subject: Subject,
    pub payload: Payload,
    pub event: Event,
    /// Bytes of room for the answer beyond the header.
    pub room: usize,
    /// `data_size`, if not the whole buffer.
    pub data_size: Option<u32>,
    pub data_start: u32,
    pub target_count: Option<u32>,
}

#[derive(Clone)]
pub enum Op {
    Ask(Box<Ask>),
    Open(Device, Access),
    /// Past the page cache: offset and length.
    Read(Device, u64, usize),
    /// The same, with the byte that is written.
    Write(Device, Access, u64, usize, u8),
    Close(usize),
    /// To a block device that is opened for it (for writing?), with a range of bytes.
    Block(Device, bool, Ioctl, u64, u64),
    Loop(usize, bool, Ioctl, LoopArg),
    /// To `/dev/loop-control`; indices from 200 on are the machine's.
    LoopControl(Ioctl, i32),
    /// Give a backing file this size.
    Resize(usize, u64),
}

#[derive(Debug, Clone, Copy)]
pub enum LoopArg {
    Value(i32),
    File(Backing),
    /// offset, size limit, flags; for LOOP_CONFIGURE also a file and a block size
    Info(u64, u64, u32, Backing, u32),
}

/// What a loop device is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// One of the machine's files, opened for writing?
    File(usize, bool),
    Null,
    Directory,
    /// Not a file descriptor.
    Bad,
}

pub const REMOVE_ALL: usize = 1;
pub const LIST: usize = 2;
pub const CREATE: usize = 3;
pub const REMOVE: usize = 4;
pub const RENAME: usize = 5;
pub const SUSPEND: usize = 6;
pub const STATUS: usize = 7;
pub const WAIT: usize = 8;
pub const LOAD: usize = 9;
pub const CLEAR: usize = 10;
pub const DEPS: usize = 11;
pub const TABLE_STATUS: usize = 12;
pub const VERSIONS: usize = 13;
pub const MESSAGE: usize = 14;
pub const GEOMETRY: usize = 15;
pub const ARM_POLL: usize = 16;
pub const TARGET_VERSION: usize = 17;

impl Ask {
    pub fn new(command: usize) -> Self {
        Self {
            command,
            version: [4, 0, 0],
            flags: DmFlags::empty(),
            subject: Subject::default(),
            payload: Payload::None,
            event: Event::Number(0),
            room: 4000,
            data_size: None,
            data_start: 312,
            target_count: None,
        }
    }

    pub fn on(command: usize, name: usize) -> Self {
        Self { subject: Subject { name: Some(name), ..Subject::default() }, ..Self::new(command) }
    }
}
