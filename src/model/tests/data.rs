//! What is written is read again, and what a power cut leaves of it.

use std::result::Result;

use super::*;
use crate::abi::block::{BLKDISCARD, BLKZEROOUT};
use crate::kernel::AlignedBlock;
use crate::model::Mode;

const BYTES: u64 = BLOCK * 512;

impl Machine {
    fn read(&self, path: &str, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0xee; len];
        let read = self.kernel.read_at(&self.open(path), at, &mut buffer)?;
        buffer.truncate(read);
        Ok(buffer)
    }

    fn write(&self, path: &str, at: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.kernel.write_at(&self.open(path), at, bytes)
    }

    fn sync(&self, path: &str) -> Result<(), Errno> {
        self.kernel.sync(&self.open(path))
    }

    fn range(&self, path: &str, request: Ioctl, start: u64, length: u64) -> Result<u32, Errno> {
        let mut range = [start.to_ne_bytes(), length.to_ne_bytes()].concat();
        self.kernel.ioctl(&self.open(path), request, Arg::Bytes(&mut range))
    }

    /// "v", of 16 blocks, is thin device 1.
    fn with_thin(features: &str) -> Self {
        let machine = Self::with_loops();
        machine.activate("pool", "thin-pool", &format!("7:0 7:1 128 16 {features}"), 256 * BLOCK).unwrap();
        machine.message("pool", "create_thin 1").unwrap();
        machine.activate("v", "thin", "253:0 1", 16 * BLOCK).unwrap();
        machine
    }

    fn used(&self) -> u64 {
        self.status("pool").split(' ').nth(2).unwrap().split('/').next().unwrap().parse().unwrap()
    }
}

const V: &str = "/dev/mapper/v";
const S: &str = "/dev/mapper/s";

#[test]
fn loop_devices_and_disks_keep_data() {
    let machine = Machine::with_loops();
    let disk = crate::kernel::DeviceNumber { major: 252, minor: 0 };
    machine.kernel.set_disk(Path::new("/dev/vda"), disk, Sectors(32_768)).unwrap();
    for path in ["/dev/loop1", "/dev/vda"] {
        assert_eq!(machine.write(path, 4090, b"across chunks"), Ok(13));
        assert_eq!(machine.read(path, 4090, 13).unwrap(), b"across chunks");
        assert_eq!(machine.read(path, 4089, 2).unwrap(), b"\0a");
        machine.range(path, BLKDISCARD, 4096, 512).unwrap();
        assert_eq!(machine.read(path, 4090, 13).unwrap(), b"across\0\0\0\0\0\0\0");

        let end = 16 << 20;
        assert_eq!(machine.write(path, end - 2, b"four"), Ok(2), "as far as there is room");
        assert_eq!(machine.read(path, end - 3, 10).unwrap(), b"\0fo");
        assert_eq!(machine.read(path, end, 10).unwrap(), b"");
        assert_eq!(machine.write(path, end, b"x"), Err(Errno::ENOSPC));
        assert_eq!(machine.write(path, end, b""), Ok(0));
    }
    let file = std::fs::read(machine.directory.path().join("data")).unwrap();
    assert_eq!((&file[4088..4098], file.len()), (&b"\0\0across\0\0"[..], 16 << 20));
}

#[test]
fn handles_are_what_they_were_opened_as() {
    let machine = Machine::with_loops();
    let reader = machine.kernel.open(Path::new("/dev/loop1"), Access::READ).unwrap();
    assert_eq!(machine.kernel.write_at(&reader, 0, b"x"), Err(Errno::EBADF));
    assert_eq!(machine.read("/dev/mapper/control", 0, 1), Err(Errno::EINVAL));
    assert_eq!(machine.write("/dev/loop-control", 0, b"x"), Err(Errno::EINVAL));
    assert_eq!(machine.read("/dev/loop1", u64::MAX, 1), Err(Errno::EINVAL));
    assert_eq!(machine.read("/dev/loop5", 0, 1).unwrap(), b"", "not bound");
    assert_eq!(machine.write("/dev/loop5", 0, b"x"), Err(Errno::ENOSPC));

    let direct = machine.kernel.open(Path::new("/dev/loop1"), Access::READ_WRITE.direct()).unwrap();
    let mut block = AlignedBlock::zeroed(1);
    let bytes = block.as_mut_bytes();
    assert_eq!(machine.kernel.read_at(&direct, 0, bytes), Ok(4096));
    assert_eq!(machine.kernel.read_at(&direct, 512, &mut bytes[..1024]), Ok(1024));
    assert_eq!(machine.kernel.read_at(&direct, 1, &mut bytes[..512]), Err(Errno::EINVAL));
    assert_eq!(machine.kernel.read_at(&direct, 0, &mut bytes[..100]), Err(Errno::EINVAL));
    assert_eq!(machine.kernel.read_at(&direct, 0, &mut bytes[8..520]), Err(Errno::EINVAL), "its address");
    assert_eq!(machine.kernel.read_at(&direct, (16 << 20) - 512, bytes), Ok(512), "cut at the end");
    assert_eq!(machine.kernel.write_at(&direct, 512, &bytes[..512]), Ok(512));
    assert_eq!(machine.kernel.write_at(&direct, 512, &bytes[..100]), Err(Errno::EINVAL));

    machine.kernel.ioctl(&machine.loops[1], loopdev::LOOP_SET_BLOCK_SIZE, Arg::Value(4096)).unwrap();
    assert_eq!(machine.kernel.read_at(&direct, 0, &mut bytes[..512]), Err(Errno::EINVAL), "half a sector");
}

#[test]
fn a_table_passes_data_to_what_is_below() {
    let machine = Machine::with_loops();
    machine.make("d");
    let line = |start, kind: &str, parameters| TargetSpec {
        start: Sectors(start),
        length: Sectors(8),
        target_type: target(kind),
        parameters,
    };
    let lines = [
        line(0, "zero", &""),
        line(8, "linear", &"7:1 100"),
        line(16, "linear", &"7:1 8"),
        line(24, "error", &""),
    ];
    machine.dm.load_table(DmId::Name(&name("d")), &lines, DmFlags::empty()).unwrap();
    machine.dm.resume(&name("d")).unwrap();
    let device = "/dev/mapper/d";
    assert_eq!(machine.write(device, 4000, &[7; 5000]), Ok(5000));
    let data = machine.read(device, 3990, 5020).unwrap();
    assert!(data[..106].iter().all(|&byte| byte == 0) && data[106..5010].iter().all(|&byte| byte == 7));
    assert_eq!(data[5010..], [0; 10]);
    assert_eq!(machine.read("/dev/loop1", 51_199, 4098).unwrap()[..], [&[0][..], &[7; 4096], &[0]].concat());
    assert_eq!(machine.read("/dev/loop1", 4096, 809).unwrap()[807..], [7, 0]);
    assert_eq!(machine.read(device, 12_280, 20), Err(Errno::EIO));
    assert_eq!(machine.write(device, 12_280, &[7; 20]), Err(Errno::EIO));
    assert_eq!(machine.sync(device), Ok(()));

    machine.dm.load_table(DmId::Name(&name("d")), &lines[..3], DmFlags::READONLY).unwrap();
    machine.dm.resume(&name("d")).unwrap();
    assert_eq!(machine.write(device, 0, b"x"), Err(Errno::EPERM), "opened for writing it could be");
    machine.dm.suspend(DmId::Name(&name("d")), DmFlags::empty()).unwrap();
    assert_eq!(machine.read(device, 0, 1), Err(Errno::EDEADLK), "it would wait");
}

#[test]
fn a_snapshot_keeps_what_its_origin_had() {
    let machine = Machine::with_thin("0");
    assert_eq!(machine.read(V, 100, 3).unwrap(), [0; 3]);
    assert_eq!(machine.used(), 0);
    assert_eq!(machine.write(V, BYTES - 3, b"abcdef"), Ok(6));
    assert_eq!(machine.used(), 2);
    machine.message("pool", "create_snap 2 1").unwrap();
    machine.activate("s", "thin", "253:0 2", 16 * BLOCK).unwrap();
    machine.write(V, BYTES - 1, b"XY").unwrap();
    assert_eq!(machine.used(), 4);
    assert_eq!(machine.read(V, BYTES - 4, 8).unwrap(), b"\0abXYef\0");
    assert_eq!(machine.read(S, BYTES - 4, 8).unwrap(), b"\0abcdef\0");
    machine.write(S, BYTES, b"!").unwrap();
    assert_eq!(machine.read(V, BYTES - 4, 8).unwrap(), b"\0abXYef\0");
    assert_eq!(machine.read(S, BYTES - 4, 8).unwrap(), b"\0abc!ef\0");
    // Both blocks of the origin are its own since: they are written in place.
    let used = machine.used();
    machine.write(V, 0, &[9; 2 << 16]).unwrap();
    assert_eq!(machine.used(), used);
    assert_eq!(machine.write(V, 16 * BYTES - 1, b"end"), Ok(1));
}

#[test]
fn a_block_counts_as_shared_even_if_the_snapshot_is_gone() {
    let machine = Machine::with_thin("0");
    machine.write(V, 0, b"old").unwrap();
    machine.message("pool", "create_snap 2 1").unwrap();
    machine.message("pool", "delete 2").unwrap();
    // The lowest data block is free again only after the commit.
    machine.write(V, 1, b"N").unwrap();
    assert_eq!(machine.read("/dev/loop1", 0, 3).unwrap(), b"old");
    assert_eq!(machine.read("/dev/loop1", BYTES, 3).unwrap(), b"oNd");
    assert_eq!(machine.used(), 1);
}

#[test]
fn new_blocks_are_zeroed_unless_the_pool_skips_it() {
    for (features, expected) in [("0", *b"\0x\0"), ("1 skip_block_zeroing", *b"oxd")] {
        let machine = Machine::with_loops();
        machine.write("/dev/loop1", 0, b"old").unwrap();
        machine.activate("pool", "thin-pool", &format!("7:0 7:1 128 16 {features}"), 256 * BLOCK).unwrap();
        machine.message("pool", "create_thin 1").unwrap();
        machine.activate("v", "thin", "253:0 1", 16 * BLOCK).unwrap();
        machine.write(V, 1, b"x").unwrap();
        assert_eq!(machine.read(V, 0, 3).unwrap(), expected);
    }
}

#[test]
fn discarded_blocks_read_as_zeroes() {
    for (features, below) in [("0", *b"\0\0\0"), ("1 no_discard_passdown", *b"abc")] {
        let machine = Machine::with_thin(features);
        machine.write(V, 0, b"abc").unwrap();
        machine.range(V, BLKDISCARD, 0, BYTES).unwrap();
        assert_eq!(machine.read(V, 0, 3).unwrap(), [0; 3]);
        assert_eq!(machine.read("/dev/loop1", 0, 3).unwrap(), below);
    }
    let machine = Machine::with_thin("0");
    machine.write(V, 0, b"abc").unwrap();
    machine.range(V, BLKZEROOUT, 0, 512).unwrap();
    assert_eq!((machine.read(V, 0, 3).unwrap(), machine.used()), (vec![0; 3], 1));
    // Shared data is not passed down.
    machine.write(V, 0, b"abc").unwrap();
    machine.message("pool", "create_snap 2 1").unwrap();
    machine.activate("s", "thin", "253:0 2", 16 * BLOCK).unwrap();
    machine.range(V, BLKDISCARD, 0, BYTES).unwrap();
    assert_eq!(machine.read(S, 0, 3).unwrap(), b"abc");
}

#[test]
fn an_external_origin_shows_where_nothing_is_mapped() {
    let mut machine = Machine::with_thin("0");
    machine.attach("origin", BYTES + 512);
    machine.write("/dev/loop2", BYTES - 2, b"base").unwrap();
    machine.dm.remove(&name("v")).unwrap();
    machine.activate("v", "thin", "253:0 1 7:2", 16 * BLOCK).unwrap();
    assert_eq!(machine.read(V, BYTES - 3, 6).unwrap(), b"\0base\0");
    assert_eq!(machine.read(V, BYTES + 510, 6).unwrap(), [0; 6], "behind its end");
    machine.write(V, BYTES + 1, b"X").unwrap();
    assert_eq!((machine.read(V, BYTES - 3, 6).unwrap(), machine.used()), (b"\0basX\0".to_vec(), 1));
    assert_eq!(machine.read("/dev/loop2", BYTES - 2, 4).unwrap(), b"base");
}

#[test]
fn pools_that_cannot_write() {
    let machine = Machine::with_thin("0");
    machine.write(V, 0, b"abc").unwrap();
    machine.activate("large", "thin", "253:0 1", 1024 * BLOCK).unwrap();
    machine.kernel.fill("large", 0).unwrap();
    assert_eq!(machine.write("/dev/mapper/large", 1000 * BYTES, b"x"), Err(Errno::ENOSPC));
    assert_eq!(machine.write(V, 0, b"A"), Ok(1), "in place");
    machine.sync(V).unwrap();
    machine.kernel.set_mode("pool", Mode::ReadOnly).unwrap();
    assert_eq!(machine.write(V, 1, b"B"), Ok(1), "in place");
    assert_eq!(machine.write("/dev/mapper/large", 1000 * BYTES, b"x"), Err(Errno::EIO));
    assert_eq!(machine.range(V, BLKDISCARD, 0, BYTES), Ok(0), "without effect");
    assert_eq!(machine.read(V, 0, 3).unwrap(), b"ABc");
    assert_eq!(machine.sync(V), Err(Errno::EIO));
    machine.kernel.set_mode("pool", Mode::Fail).unwrap();
    assert_eq!(machine.read(V, 0, 3), Err(Errno::EIO));
    assert_eq!(machine.write(V, 0, b"x"), Err(Errno::EIO));
}

#[test]
fn a_power_cut_takes_back_what_was_not_synced() {
    let machine = Machine::with_thin("0");
    let disk = crate::kernel::DeviceNumber { major: 252, minor: 0 };
    machine.kernel.set_disk(Path::new("/dev/vda"), disk, Sectors(64)).unwrap();
    machine.write("/dev/vda", 0, b"synced").unwrap();
    machine.sync("/dev/vda").unwrap();
    machine.write("/dev/vda", 2, b"lost").unwrap();
    machine.write("/dev/vda", 8000, b"lost").unwrap();
    machine.write(V, 0, b"synced").unwrap();
    machine.sync(V).unwrap();
    machine.write(V, 3, b"lost").unwrap();
    machine.write(V, BYTES, b"lost").unwrap();
    let machine = machine.power_cut();
    machine.activate("v", "thin", "253:0 1", 16 * BLOCK).unwrap();
    assert_eq!(machine.read("/dev/vda", 0, 7).unwrap(), b"synced\0");
    assert_eq!(machine.read("/dev/vda", 8000, 4).unwrap(), [0; 4]);
    assert_eq!(machine.read(V, 0, 7).unwrap(), b"synced\0");
    assert_eq!((machine.read(V, BYTES, 4).unwrap(), machine.used()), (vec![0; 4], 1));
    // A discard is not durable either, and a message's commit makes data durable.
    machine.range(V, BLKDISCARD, 0, BYTES).unwrap();
    let machine = machine.power_cut();
    machine.activate("v", "thin", "253:0 1", 16 * BLOCK).unwrap();
    assert_eq!(machine.read(V, 0, 7).unwrap(), b"synced\0");
    machine.write(V, 0, b"SYN").unwrap();
    machine.message("pool", "create_thin 2").unwrap();
    let machine = machine.power_cut();
    machine.activate("v", "thin", "253:0 1", 16 * BLOCK).unwrap();
    assert_eq!(machine.read(V, 0, 7).unwrap(), b"SYNced\0");
}

#[test]
fn reads_writes_and_syncs_are_calls() {
    let machine = Machine::with_loops();
    let file = machine.open("/dev/loop1");
    machine.kernel.clear_log();
    machine.kernel.write_at(&file, 0, b"x").unwrap();
    machine.kernel.read_at(&file, 0, &mut [0]).unwrap();
    machine.kernel.sync(&file).unwrap();
    let log: Vec<_> = machine.kernel.log().into_iter().map(|call| (call.name, call.subject)).collect();
    assert_eq!(log, ["pwrite", "pread", "fdatasync"].map(|name| (name, "loop1".to_owned())));

    machine.kernel.fail_at(1, Errno::EIO);
    assert_eq!(machine.kernel.write_at(&file, 0, b"y"), Err(Errno::EIO));
    assert_eq!(machine.read("/dev/loop1", 0, 1).unwrap(), b"x");
    machine.kernel.lose_answer_at(1, Errno::EIO);
    assert_eq!(machine.kernel.write_at(&file, 0, b"y"), Err(Errno::EIO));
    assert_eq!(machine.read("/dev/loop1", 0, 1).unwrap(), b"y");
    machine.kernel.cut_after(1);
    assert_eq!(machine.kernel.sync(&file), Err(Errno::EIO));
    assert_eq!(machine.kernel.read_at(&file, 0, &mut [0]), Err(Errno::EIO));
}

#[test]
fn an_exclusive_open_claims_the_device() {
    let machine = Machine::with_loops();
    let exclusive = |path: &str| machine.kernel.open(Path::new(path), Access::READ.exclusive());
    let claim = exclusive("/dev/loop1").unwrap();
    assert_eq!(exclusive("/dev/loop1").unwrap_err(), Errno::EBUSY);
    machine.open("/dev/loop1");
    machine.make("d");
    assert_eq!(errno(machine.load("d", "linear", "7:1 0", 8)), Errno::EBUSY);
    let target = machine.directory.path().to_owned();
    let mount = || {
        let flags = crate::abi::mount::MountFlags::empty();
        machine.kernel.mount(Some(Path::new("/dev/loop1")), &target, Some("ext4"), flags, "")
    };
    assert_eq!(mount(), Err(Errno::EBUSY));
    let other = machine.open("/dev/loop1");
    let set_block_size = |file| machine.kernel.ioctl(file, loopdev::LOOP_SET_BLOCK_SIZE, Arg::Value(512));
    assert_eq!((set_block_size(&other), set_block_size(&claim)), (Err(Errno::EBUSY), Ok(0)));
    drop((claim, other));

    machine.load("d", "linear", "7:1 0", 8).unwrap();
    machine.make("e");
    machine.load("e", "linear", "7:1 8", 8).unwrap();
    assert_eq!(exclusive("/dev/loop1").unwrap_err(), Errno::EBUSY, "device mapper has it, twice");
    machine.dm.resume(&name("d")).unwrap();
    let claim = exclusive("/dev/mapper/d").unwrap();
    assert_eq!(errno(machine.dm.remove(&name("d"))), Errno::EBUSY);
    drop(claim);
    machine.dm.remove(&name("d")).unwrap();
    machine.dm.remove(&name("e")).unwrap();
    machine.kernel.run("mkfs.ext4", &["/dev/loop1".as_ref()]).unwrap();
    mount().unwrap();
    assert_eq!(exclusive("/dev/loop1").unwrap_err(), Errno::EBUSY);
    exclusive("/dev/mapper/control").unwrap();
}

#[test]
fn a_full_file_system_takes_what_has_its_blocks_already() {
    let machine = Machine::with_thin("0");
    assert_eq!(machine.write(V, 0, &[1; 4096]), Ok(4096));
    machine.kernel.set_full(true);
    assert_eq!(machine.write(V, 0, &[2; 4096]), Ok(4096));
    assert_eq!(machine.write(V, BYTES, &[3; 4096]), Err(Errno::ENOSPC));
    assert_eq!(machine.read(V, BYTES, 4096).unwrap(), [0; 4096]);
    machine.kernel.set_full(false);
    assert_eq!(machine.write(V, BYTES, &[3; 4096]), Ok(4096));
    let mut buffer = [0; 4096];
    machine.kernel.read_thin("pool", 1, BYTES, &mut buffer).unwrap();
    assert_eq!(buffer, [3; 4096]);
    assert_eq!(machine.kernel.read_thin("pool", 2, 0, &mut buffer), Err(Errno::ENODATA));
}

#[test]
fn a_copied_metadata_file_is_independent() {
    let machine = Machine::with_pool();
    machine.message("pool", "create_thin 1").unwrap();
    let path = machine.directory.path().join("copy");
    std::fs::copy(machine.directory.path().join("metadata"), &path).unwrap();
    let copy = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    machine.kernel.copy_metadata(&copy).unwrap();
    machine.message("pool", "create_thin 2").unwrap();
    machine.dm.remove(&name("pool")).unwrap();
    std::fs::rename(&path, machine.directory.path().join("metadata")).unwrap();
    let machine = machine.power_cut();
    assert_eq!(machine.kernel.thin_devices("pool").unwrap(), [(1, 0)]);
}
