//! What is done next: mostly what makes sense, and often what does not.

use dm_thin::abi::block::{BLKDISCARD, BLKFLSBUF, BLKGETSIZE64, BLKPBSZGET, BLKROGET, BLKSSZGET, BLKZEROOUT};
use dm_thin::abi::loopdev as abi;
use dm_thin::dm::DmFlags;
use dm_thin::kernel::Access;

use super::plan::*;
use super::source::Source;

/// A live table of one line for the n-th device.
fn activate(n: usize, length: u64, target: &'static str, words: Vec<Word>) -> [Op; 3] {
    let line = Line { start: 0, length, target, words, off: 0 };
    let load = Ask { payload: Payload::Table(vec![line]), ..Ask::on(LOAD, n) };
    [Ask::on(CREATE, n), load, Ask::on(SUSPEND, n)].map(|ask| Op::Ask(Box::new(ask)))
}

/// What a sequence begins with: nothing, a pool, or a pool and a volume of it and some other device. A pool
/// may be one that is soon full.
pub fn prelude(source: &mut Source<'_>) -> Vec<Op> {
    let depth = source.below(8);
    let mut ops = Vec::new();
    if depth > 0 {
        let (blocks, words) =
            if depth.is_multiple_of(2) { (8, "128 3 1 error_if_no_space") } else { (256, "128 16") };
        let words = vec![Word::Number(Device::Loop(0)), Word::Number(Device::Loop(1)), Word::Text(words)];
        ops.extend(activate(0, blocks * 128, "thin-pool", words));
    }
    if depth > 2 {
        let message = Payload::Message(0, "create_thin 1");
        ops.push(Op::Ask(Box::new(Ask { payload: message, ..Ask::on(MESSAGE, 0) })));
        ops.extend(activate(1, 8192, "thin", vec![Word::Number(Device::Mapped(0)), Word::Text("1")]));
    }
    if depth > 4 {
        ops.extend(activate(2, 2048, "zero", vec![]));
    }
    ops
}

/// The next thing to do.
pub fn next(source: &mut Source<'_>) -> Op {
    match source.below(36) {
        0..22 => Op::Ask(Box::new(ask(source))),
        22 | 23 => {
            let access = if source.one_in(2) { Access::READ_WRITE } else { Access::READ };
            Op::Open(device(source), if source.one_in(3) { access.exclusive() } else { access })
        }
        24 | 25 => Op::Close(source.below(8)),
        26 | 27 => block(source),
        28..=30 => loop_device(source),
        32.. => data(source),
        _ if source.one_in(4) => {
            Op::Resize(2 + source.below(3), source.pick(&[0, 700, 4096, 1 << 20, 3 << 19]))
        }
        _ => Op::LoopControl(
            source.pick(&[abi::LOOP_CTL_ADD, abi::LOOP_CTL_REMOVE]),
            200 + i32::from(source.one_in(2)),
        ),
    }
}

fn device(source: &mut Source<'_>) -> Device {
    match source.below(16) {
        0..10 => Device::Mapped(source.below(8)),
        10..15 => Device::Loop(source.below(4)),
        _ => Device::Nobody,
    }
}

fn block(source: &mut Source<'_>) -> Op {
    let request = source.pick(&[
        BLKZEROOUT,
        BLKZEROOUT,
        BLKZEROOUT,
        BLKDISCARD,
        BLKDISCARD,
        BLKGETSIZE64,
        BLKSSZGET,
        BLKPBSZGET,
        BLKROGET,
        BLKFLSBUF,
    ]);
    let block = 1 << 16;
    let start = source.pick(&[0, 0, 512, 1, block, 3 * block, 20 * block, 512 << 10, u64::MAX - 511]);
    let length = source.pick(&[512, 4096, block, 2 * block, 5 * block, block + 512, 0, 100]);
    Op::Block(device(source), !source.one_in(8), request, start, length)
}

fn data(source: &mut Source<'_>) -> Op {
    let device = if source.one_in(2) { Device::Mapped(1) } else { device(source) };
    let block = 1 << 16;
    let at = source.pick(&[0, 0, 512, 4096, block - 512, block, 3 * block, 512 << 10, 1, u64::MAX - 511]);
    let len = source.pick(&[512, 512, 4096, 1 << 16, (1 << 16) + 1024, 100, 0]);
    if source.one_in(2) {
        return Op::Read(device, at, len);
    }
    let access = if source.one_in(8) { Access::READ } else { Access::READ_WRITE }.direct();
    let access = if source.one_in(8) { access.exclusive() } else { access };
    Op::Write(device, access, at, len, source.pick(&[1, 2, 3, 0]))
}

fn loop_device(source: &mut Source<'_>) -> Op {
    let request = source.pick(&[
        abi::LOOP_SET_FD,
        abi::LOOP_SET_FD,
        abi::LOOP_CONFIGURE,
        abi::LOOP_CONFIGURE,
        abi::LOOP_CLR_FD,
        abi::LOOP_CLR_FD,
        abi::LOOP_SET_STATUS64,
        abi::LOOP_GET_STATUS64,
        abi::LOOP_GET_STATUS64,
        abi::LOOP_SET_STATUS,
        abi::LOOP_GET_STATUS,
        abi::LOOP_CHANGE_FD,
        abi::LOOP_SET_CAPACITY,
        abi::LOOP_SET_DIRECT_IO,
        abi::LOOP_SET_BLOCK_SIZE,
    ]);
    // The pool's own devices keep what they are.
    let harmless = [abi::LOOP_SET_FD, abi::LOOP_CONFIGURE, abi::LOOP_GET_STATUS64, abi::LOOP_GET_STATUS]
        .contains(&request);
    let slot = if harmless { source.below(4) } else { 2 + source.below(2) };
    let file = match source.below(12) {
        0 => Backing::Null,
        1 => Backing::Directory,
        2 if request == abi::LOOP_CONFIGURE => Backing::Bad,
        _ => Backing::File(2 + source.below(3), !source.one_in(3)),
    };
    let argument = match request {
        abi::LOOP_SET_FD | abi::LOOP_CHANGE_FD => LoopArg::File(file),
        abi::LOOP_SET_STATUS64
        | abi::LOOP_GET_STATUS64
        | abi::LOOP_SET_STATUS
        | abi::LOOP_GET_STATUS
        | abi::LOOP_CONFIGURE => LoopArg::Info(
            source.pick(&[0, 0, 0, 4096, 512, 2 << 20, 100, 1 << 63]),
            source.pick(&[0, 0, 0, 4096, 8192, 512, 700, 1 << 63]),
            // read-only, autoclear, partitions, direct I/O; and one that is none
            source.pick(&[0, 0, 0, 4, 4, 1, 16, 17, 20, 8, 1 << 10]),
            file,
            source.pick(&[0, 0, 0, 512, 4096, 1024, 1000, 8192, 256]),
        ),
        abi::LOOP_SET_BLOCK_SIZE => LoopArg::Value(source.pick(&[512, 4096, 1024, 600, 8192, 0, -1])),
        _ => LoopArg::Value(i32::from(source.one_in(2))),
    };
    Op::Loop(slot, !source.one_in(6), request, argument)
}

fn ask(source: &mut Source<'_>) -> Ask {
    let command = source.pick(&[
        CREATE,
        CREATE,
        CREATE,
        LOAD,
        LOAD,
        LOAD,
        LOAD,
        LOAD,
        LOAD,
        SUSPEND,
        SUSPEND,
        SUSPEND,
        SUSPEND,
        SUSPEND,
        MESSAGE,
        MESSAGE,
        MESSAGE,
        MESSAGE,
        MESSAGE,
        REMOVE,
        REMOVE,
        RENAME,
        STATUS,
        WAIT,
        CLEAR,
        DEPS,
        TABLE_STATUS,
        TABLE_STATUS,
        LIST,
        GEOMETRY,
        ARM_POLL,
        TARGET_VERSION,
    ]);
    let mut ask = Ask::on(command, source.below(5));
    let flag = |source: &mut Source<'_>, n, flag| if source.one_in(n) { flag } else { DmFlags::empty() };
    match command {
        CREATE => {
            ask.subject.uuid = source.one_in(3).then(|| source.below(5));
            if source.one_in(8) {
                ask.flags |= DmFlags::PERSISTENT_DEV;
                ask.subject.device = Some(device(source));
            }
        }
        LOAD => {
            let lines = table(source);
            ask.payload = Payload::Table(lines);
            ask.flags |= flag(source, 10, DmFlags::READONLY);
        }
        SUSPEND => {
            // A resume more often than not.
            ask.flags |= flag(source, 4, DmFlags::SUSPEND);
            ask.flags |= flag(source, 3, DmFlags::NOFLUSH) | flag(source, 3, DmFlags::SKIP_LOCKFS);
        }
        REMOVE => ask.flags |= flag(source, 2, DmFlags::DEFERRED_REMOVE),
        RENAME => {
            let (new, uuid) = (source.below(5), source.one_in(3));
            ask.flags |= if uuid { DmFlags::UUID } else { DmFlags::empty() };
            ask.payload = match source.below(8) {
                0 => Payload::Text(
                    source.pick(&["", "a/b", "control", "..", "dm-thin-diff odd name"]).to_owned(),
                ),
                1 => {
                    let long = "dm-thin-".to_owned() + &"diff-".repeat(50);
                    Payload::Text(long[..source.pick(&[127, 128, 129, 213])].to_owned())
                }
                2 => Payload::Unended("dm-thin-diff-unended"),
                _ if uuid => Payload::Text(super::machine::uuid(new)),
                _ => Payload::Text(super::machine::name(new)),
            };
        }
        WAIT => ask.event = source.pick(&[Event::Number(1 << 20), Event::Number(0), Event::Current]),
        MESSAGE => {
            let (sector, text) = message(source);
            ask.payload = Payload::Message(sector, text);
            if !text.starts_with('@') && source.below(4) > 0 {
                ask.subject.name = Some(0);
            }
        }
        GEOMETRY => {
            let texts = ["1 1 8 8", "1 1 8 9", "0 0 0 0", "70000 1 1 0", "1 2 3", "", "a b c d", "1 1 8 8 1"];
            ask.payload = Payload::Text(source.pick(&texts).to_owned());
        }
        TARGET_VERSION => {
            let target = source.pick(&["linear", "thin-pool", "thin", "zero", "error", "", "none-such"]);
            ask.subject = Subject { odd: Some(target), ..Subject::default() };
        }
        LIST => {
            ask.flags |= flag(source, 2, DmFlags::UUID);
            if source.one_in(2) {
                ask.subject = Subject {
                    odd: Some(source.pick(&["dm-thin-diff-", "dm-thin-diff-2", "x"])),
                    ..Subject::default()
                };
            }
        }
        _ => {}
    }
    if matches!(command, LIST | WAIT | DEPS | TABLE_STATUS) {
        ask.flags |= flag(source, 3, DmFlags::QUERY_INACTIVE_TABLE) | flag(source, 3, DmFlags::NOFLUSH);
        ask.flags |= flag(source, 3, DmFlags::STATUS_TABLE);
        ask.room = source.pick(&[4000, 4000, 4000, 1000, 200, 44, 40, 8, 0]);
    }
    if source.one_in(6) {
        oddity(source, &mut ask);
    }
    ask
}

/// Something that is seldom right.
fn oddity(source: &mut Source<'_>, ask: &mut Ask) {
    match source.below(14) {
        0 => ask.flags |= DmFlags::from_bits_retain(source.word()) - DmFlags::IMA_MEASUREMENT,
        1 => ask.flags |= DmFlags::SECURE_DATA,
        2 => ask.flags |= DmFlags::QUERY_INACTIVE_TABLE,
        3 => ask.version = source.pick(&[[4, 27, 0], [4, 47, 9], [4, 200, 0], [3, 0, 0], [5, 0, 0]]),
        4 => ask.data_size = Some(source.pick(&[305, 312, 304, 0, 320, 100])),
        5 => ask.data_start = source.pick(&[305, 313, 320, 304, 0, 400, 5000, u32::MAX, u32::MAX - 7]),
        6 => ask.target_count = Some(source.pick(&[0, 1, 2, 3, u32::MAX])),
        7 => ask.room = source.pick(&[0, 1, 8, 40]),
        8 => ask.subject = Subject { uuid: Some(source.below(5)), ..Subject::default() },
        9 => ask.subject = Subject { device: Some(device(source)), ..Subject::default() },
        10 => ask.subject.uuid = Some(source.below(5)),
        11 => ask.subject.device = Some(device(source)),
        12 => ask.subject.unended = true,
        _ => {
            ask.subject.odd =
                Some(source.pick(&["", "control", ".", "..", "dm-thin-diff-a/b", "dm-thin-diff odd name"]));
        }
    }
}

fn message(source: &mut Source<'_>) -> (u64, &'static str) {
    let text = source.pick(&[
        "create_thin 0",
        "create_thin 1",
        "create_thin 2",
        "create_thin 3",
        "create_snap 2 1",
        "create_snap 3 0",
        "create_snap 4 2",
        "create_snap 5 3",
        "create_snap 1 9",
        "delete 0",
        "delete 1",
        "delete 2",
        "delete 3",
        "delete 4",
        "set_transaction_id 0 1",
        "set_transaction_id 1 2",
        "set_transaction_id 2 0",
        "reserve_metadata_snap",
        "release_metadata_snap",
        "release_metadata_snap",
        "@cancel_deferred_remove",
        "@cancel_deferred_remove",
        "@stats_list",
        "@none_such",
        "@cancel_deferred_remove 1",
        "",
        " ",
        "create_thin",
        "create_thin 16777215",
        "create_thin 16777216",
        "create_thin -1",
        "create_thin +7",
        "create_thin 0x3",
        "CREATE_THIN 6",
        "create_snap 1",
        "create_snap 7 7",
        "delete 16777216",
        "delete",
        "set_transaction_id 1",
        "set_transaction_id 99 100",
        "set_transaction_id 0 18446744073709551615",
        "set_transaction_id 0 18446744073709551616",
        "reserve_metadata_snap 1",
        "create_thin\\ 1",
        "  delete   7  ",
        "nonsense",
    ]);
    (source.pick(&[0, 0, 0, 0, 0, 0, 0, 8, 1 << 15, u64::MAX]), text)
}

fn table(source: &mut Source<'_>) -> Vec<Line> {
    let count = source.pick(&[1, 1, 1, 1, 1, 2, 3, 0]);
    let mut start = 0;
    let mut lines = Vec::new();
    for _ in 0..count {
        let mut line = line(source, start);
        start += line.length;
        if source.one_in(30) {
            line.off = source.pick(&[1, 8, 4, 5000, u32::MAX - 7]);
        }
        if source.one_in(30) {
            line.start += 8;
        }
        lines.push(line);
    }
    lines
}

fn line(source: &mut Source<'_>, start: u64) -> Line {
    let path = |source: &mut Source<'_>, device| {
        if source.one_in(5) { Word::Path(device) } else { Word::Number(device) }
    };
    let length = source.pick(&[8, 16, 128, 1024, 2048, 2056, 1, 0]);
    let (target, length, words) = match source.below(16) {
        0 => ("zero", length, vec![]),
        1 => ("error", length, vec![]),
        2..6 => {
            let on = device(source);
            let offset = Word::Text(source.pick(&[
                "0",
                "0",
                "8",
                "1",
                "2040",
                "1048576",
                "18446744073709551615",
                "x",
                "",
                "-1",
                "+8",
            ]));
            ("linear", length, vec![path(source, on), offset])
        }
        6..9 => {
            let blocks = source.pick(&[256, 256, 8, 12, 12, 255, 200, 257, 512]);
            let low = source.pick(&[
                "128 16",
                "128 0",
                "128 200",
                "256 16",
                "128 16 1 skip_block_zeroing",
                "128 16 1 error_if_no_space",
                "128 3 1 error_if_no_space",
                "128 3 1 error_if_no_space",
                "128 16 1 read_only",
                "128 16 2 no_discard_passdown error_if_no_space",
                "128 16 1 ignore_discard",
                "128 16 5 a b c d e",
                "128 16 1 nonsense",
                "128 16 2 read_only",
                "64 16",
                "100 16",
                "4194304 16",
                "128",
                "128 -1",
                "128 16 0",
                "128 16 0 read_only",
                "128 16 1 READ_ONLY",
            ]);
            let mut devices = [Device::Loop(0), Device::Loop(1)];
            if source.one_in(6) {
                // The model keeps metadata on loop devices only.
                devices[0] =
                    source.pick(&[Device::Loop(0), Device::Loop(1), Device::Loop(2), Device::Nobody]);
                devices[1] = device(source);
            }
            let devices = devices.map(|device| path(source, device));
            ("thin-pool", blocks * 128, devices.into_iter().chain([Word::Text(low)]).collect())
        }
        9..14 => {
            let pool = if source.one_in(8) { device(source) } else { Device::Mapped(0) };
            let id = source.pick(&["0", "1", "2", "3", "4", "9", "16777216", "x", "1 2 3", ""]);
            let mut words = vec![Word::Number(pool), Word::Text(id)];
            if source.one_in(6) {
                words.push(Word::Number(device(source)));
            }
            ("thin", length * 8, words)
        }
        14 => (
            source.pick(&["none-such", "", "zero", "linear", "thin", "thin-pool"]),
            length,
            vec![Word::Text("1 2")],
        ),
        _ => ("zero", length, vec![Word::Text("extra")]),
    };
    Line { start, length, target, words, off: 0 }
}
