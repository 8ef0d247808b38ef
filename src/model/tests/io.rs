//! Zeroing and discarding: how far down it goes, and what a device says it can do.

use super::*;
use crate::abi::block::{BLKDISCARD, BLKSSZGET, BLKZEROOUT};

type Answer = std::result::Result<u32, Errno>;

const BYTES: u64 = BLOCK * 512;

impl Machine {
    fn send(&self, file: &DeviceFile, request: Ioctl, start: u64, length: u64) -> Answer {
        let mut range = [start.to_ne_bytes(), length.to_ne_bytes()].concat();
        self.kernel.ioctl(file, request, Arg::Bytes(&mut range))
    }

    /// To the mapped device of that name, a range in blocks.
    fn blocks(&self, device: &str, request: Ioctl, start: u64, length: u64) -> Answer {
        self.send(&self.open(&format!("/dev/mapper/{device}")), request, start * BYTES, length * BYTES)
    }

    /// The thin volume "v", of 16 blocks, in a pool with these features.
    fn with_volume(interface_minor: u32, features: &str) -> Self {
        let mut machine = Self::old(interface_minor);
        machine.attach("metadata", 4 << 20);
        machine.attach("data", 16 << 20);
        machine.activate("pool", "thin-pool", &format!("7:0 7:1 128 16 {features}"), 256 * BLOCK).unwrap();
        machine.message("pool", "create_thin 1").unwrap();
        machine.activate("v", "thin", "253:0 1", 16 * BLOCK).unwrap();
        machine
    }

    fn mapped(&self) -> u64 {
        self.kernel.thin_devices("pool").unwrap()[0].1
    }
}

#[test]
fn a_volume_maps_what_is_zeroed_and_unmaps_what_is_discarded() {
    let machine = Machine::with_volume(48, "0");
    machine.kernel.write("v", 0..4).unwrap();
    let volume = machine.open("/dev/mapper/v");
    assert_eq!(machine.send(&volume, BLKDISCARD, 512, 2 * BYTES), Ok(0), "one whole block in it");
    assert_eq!(machine.mapped(), 3);
    assert_eq!(machine.send(&volume, BLKZEROOUT, 10 * BYTES, 512), Ok(0));
    assert_eq!(machine.mapped(), 4);
    assert_eq!(machine.blocks("v", BLKDISCARD, 0, 16), Ok(0));
    assert_eq!(machine.mapped(), 0);
    assert_eq!(machine.send(&volume, BLKDISCARD, 1, 512), Err(Errno::EINVAL));
    assert_eq!(machine.blocks("v", BLKDISCARD, 0, 17), Err(Errno::EINVAL));
    assert_eq!(machine.send(&volume, BLKDISCARD, u64::MAX - 511, 512), Err(Errno::EINVAL));
    let reader = machine.kernel.open(Path::new("/dev/mapper/v"), Access::READ).unwrap();
    assert_eq!(machine.send(&reader, BLKDISCARD, 0, BYTES), Err(Errno::EBADF));
}

#[test]
fn every_part_of_a_table_is_tried() {
    let machine = Machine::with_volume(48, "0");
    machine.make("d");
    let line = |start: u64, length: u64, kind: &str, parameters| TargetSpec {
        start: Sectors(start * BLOCK),
        length: Sectors(length * BLOCK),
        target_type: target(kind),
        parameters,
    };
    // Its blocks 2 to 6 are the volume's 8 to 12.
    let lines = [line(0, 1, "zero", &""), line(1, 1, "error", &""), line(2, 4, "linear", &"253:1 1024")];
    machine.dm.load_table(DmId::Name(&name("d")), &lines, DmFlags::empty()).unwrap();
    machine.dm.resume(&name("d")).unwrap();
    assert_eq!(machine.blocks("d", BLKZEROOUT, 0, 1), Ok(0));
    assert_eq!(machine.mapped(), 0);
    assert_eq!(machine.blocks("d", BLKZEROOUT, 0, 4), Err(Errno::EIO));
    assert_eq!(machine.mapped(), 2, "what is behind the error too");
    assert_eq!(machine.blocks("d", BLKDISCARD, 2, 1), Ok(0));
    assert_eq!(machine.mapped(), 1);
    machine.blocks("v", BLKDISCARD, 9, 1).unwrap();
    assert_eq!(machine.mapped(), 0, "that was block 3 of the one and 9 of the other");
    // What is below became smaller.
    machine.load("v", "thin", "253:0 1", 8 * BLOCK).unwrap();
    machine.dm.resume(&name("v")).unwrap();
    assert_eq!(machine.blocks("d", BLKZEROOUT, 2, 1), Err(Errno::EIO));
}

#[test]
fn whether_it_discards_is_what_its_table_found() {
    let discards = |interface_minor, features, kind: &str, parameters: &str| {
        let machine = Machine::with_volume(interface_minor, features);
        machine.activate("below", kind, parameters, 16 * BLOCK).unwrap();
        machine.activate("d", "linear", "253:2 0", 16 * BLOCK).unwrap();
        machine.blocks("d", BLKDISCARD, 0, 1)
    };
    assert_eq!(discards(48, "0", "zero", ""), Ok(0));
    assert_eq!(discards(48, "0", "error", ""), Err(Errno::EIO));
    for kind in ["zero", "error"] {
        assert_eq!(discards(47, "0", kind, ""), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(discards(47, "0", "linear", "7:1 0"), Ok(0));
    assert_eq!(discards(47, "0", "thin", "253:0 1"), Ok(0));
    assert_eq!(discards(47, "1 ignore_discard", "thin", "253:0 1"), Err(Errno::EOPNOTSUPP));
    assert_eq!(discards(47, "1 no_discard_passdown", "linear", "253:0 0"), Err(Errno::EOPNOTSUPP));

    // The first table is looked at when it is loaded, any other when it goes live.
    let machine = Machine::with_volume(47, "0");
    machine.make("d");
    machine.load("d", "error", "", BLOCK).unwrap();
    assert_eq!(machine.blocks("d", BLKDISCARD, 0, 1), Err(Errno::EOPNOTSUPP));
    machine.load("d", "linear", "253:1 0", BLOCK).unwrap();
    assert_eq!(machine.blocks("d", BLKDISCARD, 0, 1), Err(Errno::EOPNOTSUPP));
    machine.dm.resume(&name("d")).unwrap();
    assert_eq!(machine.blocks("d", BLKDISCARD, 0, 1), Ok(0));
}

#[test]
fn a_pool_does_not_pass_discards_to_what_cannot() {
    let mut machine = Machine::old(47);
    machine.attach("metadata", 4 << 20);
    machine.activate("data", "zero", "", 256 * BLOCK).unwrap();
    machine.activate("pool", "thin-pool", "7:0 253:0 128 16", 256 * BLOCK).unwrap();
    assert!(machine.status("pool").contains(" no_discard_passdown "));
}

#[test]
fn checks_are_made_in_the_kernels_order() {
    for (interface_minor, bad_handle, bad_range) in
        [(47, Errno::EBADF, Errno::EINVAL), (48, Errno::EOPNOTSUPP, Errno::EPERM)]
    {
        let machine = Machine::with_volume(interface_minor, "1 ignore_discard");
        let reader = machine.kernel.open(Path::new("/dev/mapper/v"), Access::READ).unwrap();
        assert_eq!(machine.send(&reader, BLKDISCARD, 0, 512), Err(bad_handle));
        machine.make("d");
        let line = TargetSpec {
            start: Sectors(0),
            length: Sectors(BLOCK),
            target_type: target("linear"),
            parameters: &"7:1 0",
        };
        machine.dm.load_table(DmId::Name(&name("d")), &[line], DmFlags::READONLY).unwrap();
        machine.dm.resume(&name("d")).unwrap();
        let device = machine.open("/dev/mapper/d");
        assert_eq!(machine.send(&device, BLKDISCARD, 1, 512), Err(bad_range));
        assert_eq!(machine.send(&device, BLKDISCARD, 0, 512), Err(Errno::EPERM));
        assert_eq!(machine.send(&device, BLKZEROOUT, 1, 512), Err(Errno::EINVAL));
        assert_eq!(machine.send(&device, BLKZEROOUT, 0, 512), Err(Errno::EPERM));
    }
}

#[test]
fn sectors_are_as_large_as_the_largest_below() {
    let mut machine = Machine::bare();
    machine.attach("file", 1 << 20);
    machine.kernel.ioctl(&machine.loops[0], loopdev::LOOP_SET_BLOCK_SIZE, Arg::Value(4096)).unwrap();
    let sector_size = |device: &str| {
        let (file, mut size) = (machine.open(&format!("/dev/mapper/{device}")), [0; 4]);
        machine.kernel.ioctl(&file, BLKSSZGET, Arg::Bytes(&mut size)).unwrap();
        u32::from_ne_bytes(size)
    };
    machine.make("below");
    machine.load("below", "linear", "7:0 0", 16).unwrap();
    assert_eq!(sector_size("below"), 4096, "known from its first table on");
    machine.dm.resume(&name("below")).unwrap();
    machine.activate("d", "linear", "253:0 0", 16).unwrap();
    machine.load("below", "zero", "", 16).unwrap();
    machine.dm.resume(&name("below")).unwrap();
    assert_eq!((sector_size("below"), sector_size("d")), (512, 4096));
}

#[test]
fn devices_that_stand_on_each_other_take_no_writes() {
    let machine = Machine::bare();
    machine.activate("a", "zero", "", 16).unwrap();
    machine.activate("b", "linear", "253:0 0", 16).unwrap();
    machine.load("a", "linear", "253:1 0", 16).unwrap();
    machine.dm.resume(&name("a")).unwrap();
    for device in ["a", "b"] {
        let file = machine.open(&format!("/dev/mapper/{device}"));
        assert_eq!(machine.send(&file, BLKZEROOUT, 0, 512), Err(Errno::EIO));
    }
}
