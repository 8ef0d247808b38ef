//! A kernel, real or not, with the devices and files that sequences are about.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use dm_thin::Errno;
use dm_thin::abi::loopdev::{self as abi, loop_config, loop_info, loop_info64};
use dm_thin::abi::{Ioctl, block as block_abi};
use dm_thin::dm::DmFlags;
use dm_thin::dm::wire::Command;
use dm_thin::kernel::{Access, AlignedBlock, Arg, DeviceFile, DeviceNumber, Kernel};
use zerocopy::IntoBytes;

use super::answer;
use super::encode::encode;
use super::plan::{
    Ask, Backing, CLEAR, CREATE, Device, Event, LIST, LOAD, LoopArg, Op, Payload, REMOVE, STATUS, Subject,
    TABLE_STATUS, Word,
};

/// Metadata, data, and three for the other two loop devices: two of the same size, one of no whole sectors.
const SIZES: [u64; 5] = [4 << 20, 16 << 20, 1 << 20, 1 << 20, (1 << 20) + 700];
/// Handles that are kept open at once.
const HANDLES: usize = 8;

pub fn name(n: usize) -> String {
    format!("dm-thin-diff-{n}")
}

pub fn uuid(n: usize) -> String {
    format!("DMTHIN-DIFF-{n}")
}

pub fn access(write: bool) -> Access {
    if write { Access::READ_WRITE } else { Access::READ }
}

/// What a call gave, in words that do not depend on the machine.
pub type Outcome = String;

/// The lower halves of the numbers.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
fn old_info(info: &loop_info64) -> loop_info {
    let mut old = loop_info::zeroed();
    (old.lo_offset, old.lo_flags) = (info.lo_offset as i32, info.lo_flags as i32);
    old.lo_name = info.lo_file_name;
    old
}

pub fn outcome(result: Result<u32, Errno>) -> Outcome {
    result.map_or_else(|errno| format!("{errno:?}"), |value| format!("Ok({value})"))
}

#[derive(Debug)]
pub struct Machine<'a> {
    kernel: &'a dyn Kernel,
    pub control: DeviceFile,
    pub loops: [u32; 4],
    directory: PathBuf,
    /// Every device that was created, in order.
    pub created: Vec<DeviceNumber>,
    /// Numbers that such devices had and that nobody has now.
    free: BTreeSet<DeviceNumber>,
    /// Those whose inactive table was cleared, and that were given no table since.
    pub cleared: BTreeSet<DeviceNumber>,
    /// A pool was asked not to zero new blocks.
    unzeroed: bool,
    handles: Vec<DeviceFile>,
    /// Loop devices that were added.
    added: Vec<i32>,
}

impl<'a> Machine<'a> {
    /// With files in `directory`, which is new, and nothing but the first two loop devices bound.
    pub fn new(kernel: &'a dyn Kernel, directory: &Path) -> Self {
        for (n, size) in SIZES.into_iter().enumerate() {
            File::create(directory.join(n.to_string())).unwrap().set_len(size).unwrap();
        }
        let control = kernel.open(Path::new("/dev/mapper/control"), Access::READ_WRITE).unwrap();
        let mut machine = Self {
            kernel,
            control,
            loops: [0; 4],
            directory: directory.to_owned(),
            created: Vec::new(),
            free: BTreeSet::new(),
            cleared: BTreeSet::new(),
            unzeroed: false,
            handles: Vec::new(),
            added: Vec::new(),
        };
        for slot in 0..4 {
            // Bound at once, so that nobody else takes it; the last two are given back.
            machine.loops[slot] = machine.loop_control(abi::LOOP_CTL_GET_FREE, 0).unwrap();
            let file = machine.file(Backing::File(slot, true)).unwrap();
            machine.loop_ioctl(slot, true, abi::LOOP_SET_FD, Arg::Fd(file.as_fd())).unwrap();
        }
        for slot in 2..4 {
            machine.loop_ioctl(slot, true, abi::LOOP_CLR_FD, Arg::Value(0)).unwrap();
        }
        machine
    }

    pub fn number(&self, device: Device) -> DeviceNumber {
        match device {
            Device::Mapped(n) if !self.created.is_empty() => self.created[n % self.created.len()],
            Device::Loop(slot) => DeviceNumber { major: 7, minor: self.loops[slot] },
            Device::Mapped(_) | Device::Nobody => DeviceNumber { major: 240, minor: 77 },
        }
    }

    pub fn path(&self, device: Device) -> PathBuf {
        let number = self.number(device);
        match number.major {
            7 => format!("/dev/loop{}", number.minor),
            240 => "/dev/none-such".to_owned(),
            _ => format!("/dev/dm-{}", number.minor),
        }
        .into()
    }

    /// What a device is called wherever it is.
    pub fn symbol(&self, number: DeviceNumber) -> String {
        if let Some(slot) =
            self.loops.iter().position(|&index| number == DeviceNumber { major: 7, minor: index })
        {
            return format!("loop#{slot}");
        }
        match self.created.iter().rposition(|&created| created == number) {
            Some(n) => format!("dm#{n}"),
            None => number.to_string(),
        }
    }

    fn file(&self, backing: Backing) -> Option<File> {
        match backing {
            Backing::File(n, write) => Some(
                File::options().read(true).write(write).open(self.directory.join(n.to_string())).unwrap(),
            ),
            Backing::Null => Some(File::open("/dev/null").unwrap()),
            Backing::Directory => Some(File::open(&self.directory).unwrap()),
            Backing::Bad => None,
        }
    }

    /// Which of the machine's files has this inode number.
    pub fn file_of(&self, inode: u64) -> Option<usize> {
        use std::os::unix::fs::MetadataExt;
        (0..SIZES.len()).find(|n| {
            std::fs::metadata(self.directory.join(n.to_string())).is_ok_and(|file| file.ino() == inode)
        })
    }

    fn loop_control(&self, request: Ioctl, value: i32) -> Result<u32, Errno> {
        let control = self.kernel.open(Path::new("/dev/loop-control"), Access::READ_WRITE)?;
        self.kernel.ioctl(&control, request, Arg::Value(value))
    }

    fn loop_ioctl(&self, slot: usize, write: bool, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        let device = self.kernel.open(&self.path(Device::Loop(slot)), access(write))?;
        self.kernel.ioctl(&device, request, argument)
    }

    /// Do it.
    pub fn run(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Ask(ask) => self.ask(ask).1,
            Op::Open(device, access) => match self.kernel.open(&self.path(*device), *access) {
                Ok(file) => {
                    if self.handles.len() < HANDLES {
                        self.handles.push(file);
                    }
                    "Ok".to_owned()
                }
                Err(errno) => format!("{errno:?}"),
            },
            Op::Close(n) => {
                if !self.handles.is_empty() {
                    self.handles.remove(n % self.handles.len());
                }
                "Ok".to_owned()
            }
            Op::Block(device, write, request, start, length) => {
                self.block(*device, *write, *request, *start, *length)
            }
            Op::Read(device, at, len) => self.read(*device, *at, *len),
            Op::Write(device, access, at, len, byte) => self.write(*device, *access, *at, *len, *byte),
            Op::Loop(slot, write, request, argument) => self.loop_device(*slot, *write, *request, *argument),
            Op::LoopControl(request, index) => {
                let result = self.loop_control(*request, *index);
                if result.is_ok() {
                    self.added.retain(|added| added != index);
                    if *request == abi::LOOP_CTL_ADD {
                        self.added.push(*index);
                    }
                }
                outcome(result)
            }
            Op::Resize(file, size) => {
                self.file(Backing::File(*file, true)).unwrap().set_len(*size).unwrap();
                "Ok".to_owned()
            }
        }
    }

    /// The answer as it came, and in words.
    pub fn ask(&mut self, ask: &Ask) -> (Vec<u8>, Outcome) {
        let current = match ask.event {
            Event::Number(number) => number,
            Event::Current => {
                let asked = Ask { subject: ask.subject.clone(), ..Ask::new(STATUS) };
                let (answer, _) = self.ask(&asked);
                answer::header(&answer).event_nr
            }
        };
        if let Payload::Table(lines) = &ask.payload {
            let words = lines.iter().flat_map(|line| &line.words);
            let skips = |word: &Word| matches!(word, Word::Text(text) if text.contains("skip_block_zeroing"));
            self.unzeroed |= words.into_iter().any(skips);
        }
        let request = encode(self, ask, current);
        let mut buffer = request.clone();
        let ioctl = Command::ALL[ask.command].ioctl;
        let result = self.kernel.ioctl(&self.control, ioctl, Arg::Bytes(&mut buffer));
        let number = DeviceNumber::from_huge(answer::header(&buffer).dev);
        match ask.command {
            CLEAR if result == Ok(0) => _ = self.cleared.insert(number),
            LOAD | CREATE if result == Ok(0) => _ = self.cleared.remove(&number),
            _ => {}
        }
        if result == Ok(0) && ask.command == CREATE {
            self.free.remove(&number);
            self.created.push(number);
        }
        let words = answer::describe(self, ask, result, &request, &buffer);
        (buffer, words)
    }

    fn block(&self, device: Device, write: bool, request: Ioctl, start: u64, length: u64) -> Outcome {
        let file = match self.kernel.open(&self.path(device), access(write)) {
            Ok(file) => file,
            Err(errno) => return format!("open: {errno:?}"),
        };
        let mut bytes = match request {
            block_abi::BLKZEROOUT | block_abi::BLKDISCARD => {
                [start.to_ne_bytes(), length.to_ne_bytes()].concat()
            }
            block_abi::BLKGETSIZE64 => vec![0; 8],
            _ => vec![0; 4],
        };
        let argument = if request == block_abi::BLKFLSBUF { Arg::Value(0) } else { Arg::Bytes(&mut bytes) };
        let result = self.kernel.ioctl(&file, request, argument);
        format!("{} {bytes:?}", outcome(result))
    }

    /// The bytes in words only where they are the same on every kernel: where a pool puts blocks is its own business.
    fn read(&mut self, device: Device, at: u64, len: usize) -> Outcome {
        let file = match self.kernel.open(&self.path(device), Access::READ.direct()) {
            Ok(file) => file,
            Err(errno) => return format!("open: {errno:?}"),
        };
        let mut blocks = AlignedBlock::zeroed(len.div_ceil(4096));
        let bytes = &mut blocks.as_mut_bytes()[..len];
        let read = match self.kernel.read_at(&file, at, bytes) {
            Ok(read) => read,
            Err(errno) => return format!("{errno:?}"),
        };
        if !self.is_thin(device) {
            return format!("Ok({read})");
        }
        let runs = bytes[..read].chunk_by(|one, other| one == other);
        format!("Ok {:?}", runs.map(|run| (run[0], run.len())).collect::<Vec<_>>())
    }

    /// Whether all of a device's bytes are those of zeroed thin volumes without an external origin.
    fn is_thin(&mut self, device: Device) -> bool {
        let subject = Subject { device: Some(device), ..Subject::default() };
        let table = Ask { subject, flags: DmFlags::STATUS_TABLE, ..Ask::new(TABLE_STATUS) };
        let words = self.ask(&table).1;
        let lines: Vec<_> = words.split('[').skip(1).collect();
        let thin = |line: &str| line.split(']').next().is_some_and(|line| line.split(' ').count() == 2);
        let targets = words.matches(" thin [").count();
        !self.unzeroed
            && targets > 0
            && words.matches(" [").count() == targets
            && lines.iter().all(|line| thin(line))
    }

    fn write(&self, device: Device, access: Access, at: u64, len: usize, byte: u8) -> Outcome {
        let file = match self.kernel.open(&self.path(device), access) {
            Ok(file) => file,
            Err(errno) => return format!("open: {errno:?}"),
        };
        let mut blocks = AlignedBlock::zeroed(len.div_ceil(4096));
        blocks.as_mut_bytes().fill(byte);
        match self.kernel.write_at(&file, at, &blocks.as_bytes()[..len]) {
            Ok(written) => format!("Ok({written})"),
            Err(errno) => format!("{errno:?}"),
        }
    }

    fn loop_device(&self, slot: usize, write: bool, request: Ioctl, argument: LoopArg) -> Outcome {
        match argument {
            LoopArg::Value(value) => outcome(self.loop_ioctl(slot, write, request, Arg::Value(value))),
            LoopArg::File(backing) => {
                let file = self.file(backing).unwrap();
                outcome(self.loop_ioctl(slot, write, request, Arg::Fd(file.as_fd())))
            }
            LoopArg::Info(offset, limit, flags, backing, block_size) => {
                let mut info = loop_info64::zeroed();
                (info.lo_offset, info.lo_sizelimit, info.lo_flags) = (offset, limit, flags);
                info.lo_file_name = [b'x'; 64];
                if request == abi::LOOP_CONFIGURE {
                    let file = self.file(backing);
                    let fd = file.as_ref().map_or(9999, |file| file.as_raw_fd().unsigned_abs());
                    let mut config = loop_config { fd, block_size, info, reserved: [0; 8] };
                    let result =
                        self.loop_ioctl(slot, write, request, Arg::Bytes(answer::bytes_of(&mut config)));
                    return outcome(result);
                }
                if [abi::LOOP_SET_STATUS, abi::LOOP_GET_STATUS].contains(&request) {
                    let mut old = old_info(&info);
                    let result =
                        self.loop_ioctl(slot, write, request, Arg::Bytes(answer::bytes_of(&mut old)));
                    return match (request, result) {
                        (abi::LOOP_GET_STATUS, Ok(0)) => answer::old_loop_status(self, slot, &old),
                        _ => outcome(result),
                    };
                }
                let result = self.loop_ioctl(slot, write, request, Arg::Bytes(answer::bytes_of(&mut info)));
                match (request, result) {
                    (abi::LOOP_GET_STATUS64, Ok(0)) => answer::loop_status(self, slot, &info),
                    _ => outcome(result),
                }
            }
        }
    }

    /// Every device of the machine: what it is called, its state, its table. And whether a poll on the
    /// control device would answer.
    pub fn picture(&mut self) -> Vec<String> {
        let list = Ask { flags: DmFlags::UUID, ..Ask::new(LIST) };
        let (answer, words) = self.ask(&list);
        let mut picture = vec![words, format!("poll: {}", self.is_ready())];
        for (name, _) in answer::listed(self, &answer) {
            // The status of a pool makes it commit, which it else does in its own time.
            for command in [STATUS, TABLE_STATUS] {
                let mut ask = Ask::new(command);
                ask.subject.whole = Some(name.clone());
                picture.push(self.ask(&ask).1);
            }
        }
        picture
    }

    fn is_ready(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
        // A fuzzer's clock interrupts.
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                Err(Errno::EINTR) => {}
                ready => return ready.unwrap() > 0,
            }
        }
    }

    /// Wait until the numbers of devices that are gone can be had again. After a deferred removal that is
    /// later than when the device is no longer listed, and the next one would get another number.
    pub fn settle(&mut self) {
        let (list, _) = self.ask(&Ask::new(LIST));
        let there: Vec<_> = answer::listed(self, &list).into_iter().map(|(_, number)| number).collect();
        for n in 0..self.created.len() {
            let number = self.created[n];
            if there.contains(&number) || self.free.contains(&number) {
                continue;
            }
            let device = Some(Device::Mapped(n));
            let subject = Subject { name: Some(99), device, ..Subject::default() };
            let create = Ask { flags: DmFlags::PERSISTENT_DEV, subject, ..Ask::new(CREATE) };
            while !self.ask(&create).1.starts_with("Ok") {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            self.created.pop();
            self.ask(&Ask::on(REMOVE, 99));
            self.free.insert(number);
        }
    }

    /// Take everything down. What cannot be is left, and told.
    pub fn tear_down(&mut self) -> Result<(), String> {
        self.handles.clear();
        for attempt in 0.. {
            let (answer, words) = self.ask(&Ask::new(LIST));
            let left = answer::listed(self, &answer);
            if left.is_empty() {
                break;
            }
            if attempt == 200 {
                return Err(words);
            }
            if attempt > 20 {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            for (name, _) in left.into_iter().rev() {
                let mut remove = Ask::new(REMOVE);
                remove.subject.whole = Some(name);
                self.ask(&remove);
            }
        }
        for slot in 0..4 {
            let cleared = self.loop_ioctl(slot, true, abi::LOOP_CLR_FD, Arg::Value(0));
            if !matches!(cleared, Ok(_) | Err(Errno::ENXIO)) {
                return Err(format!("loop device {slot}: {cleared:?}"));
            }
        }
        for index in std::mem::take(&mut self.added) {
            self.loop_control(abi::LOOP_CTL_REMOVE, index)
                .map_err(|errno| format!("loop{index}: {errno:?}"))?;
        }
        Ok(())
    }
}
