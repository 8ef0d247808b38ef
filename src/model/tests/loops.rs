//! Loop devices, block ioctls, nodes and mounts.

use std::os::fd::{AsFd, AsRawFd};

use proptest::prelude::*;

use super::*;
use crate::abi::block;
use crate::abi::loopdev::{LoopFlags, loop_config, loop_info, loop_info64};
use crate::abi::mount::{MountFlags, UnmountFlags};
use crate::kernel::{DeviceNumber, ProcessName};

type Answer = std::result::Result<u32, Errno>;

impl Machine {
    fn loop_control(&self, request: Ioctl, value: i32) -> Answer {
        self.kernel.ioctl(&self.open("/dev/loop-control"), request, Arg::Value(value))
    }

    fn loop_status(&self, device: &DeviceFile) -> std::result::Result<loop_info64, Errno> {
        let mut info = loop_info64::zeroed();
        self.kernel.ioctl(device, loopdev::LOOP_GET_STATUS64, Arg::Bytes(info.as_mut_bytes())).map(|_| info)
    }

    fn set_status(&self, device: &DeviceFile, info: &mut loop_info64) -> Answer {
        self.kernel.ioctl(device, loopdev::LOOP_SET_STATUS64, Arg::Bytes(info.as_mut_bytes()))
    }

    fn value(&self, device: &DeviceFile, request: Ioctl) -> Answer {
        self.kernel.ioctl(device, request, Arg::Value(0))
    }

    fn bytes(&self, device: &DeviceFile) -> u64 {
        let mut size = [0; 8];
        self.kernel.ioctl(device, block::BLKGETSIZE64, Arg::Bytes(&mut size)).unwrap();
        u64::from_ne_bytes(size)
    }

    fn is_bound(&self, path: &str) -> bool {
        self.loop_status(&self.open(path)).is_ok()
    }
}

#[test]
fn control() {
    let machine = Machine::bare();
    assert_eq!(machine.loop_control(loopdev::LOOP_CTL_GET_FREE, 0), Ok(0));
    assert_eq!(machine.loop_control(loopdev::LOOP_CTL_GET_FREE, 0), Ok(0), "reserves nothing");
    assert_eq!(machine.loop_control(loopdev::LOOP_CTL_ADD, 3), Err(Errno::EEXIST));
    assert_eq!(machine.loop_control(loopdev::LOOP_CTL_ADD, 70), Ok(70));
    assert_eq!(machine.loop_control(loopdev::LOOP_CTL_REMOVE, 70), Ok(0));
    assert_eq!(machine.loop_control(loopdev::LOOP_CTL_REMOVE, 70), Err(Errno::ENODEV));
    assert_eq!(machine.loop_control(loopdev::LOOP_CTL_REMOVE, -1), Err(Errno::EINVAL));
    let open = machine.open("/dev/loop5");
    assert_eq!(machine.loop_control(loopdev::LOOP_CTL_REMOVE, 5), Err(Errno::EBUSY));
    drop(open);
    assert_eq!(machine.loop_control(loopdev::LOOP_CTL_REMOVE, 5), Ok(0));

    let options = ModelOptions { loop_control: false, loop_devices: 0, ..ModelOptions::default() };
    let kernel = ModelKernel::with_options(options);
    let open = |path: &str| kernel.open(Path::new(path), Access::READ).map(drop);
    assert_eq!(open("/dev/loop-control"), Err(Errno::ENOENT));
    assert_eq!(open("/dev/loop0"), Err(Errno::ENOENT));
}

#[test]
fn get_free_makes_a_device_when_all_are_taken() {
    let options = ModelOptions { loop_devices: 1, ..ModelOptions::default() };
    let mut machine = Machine::boot(ModelKernel::with_options(options), new_directory());
    machine.attach("a", 4096);
    machine.attach("b", 4096);
    assert_eq!(machine.kernel.block_device(Path::new("/dev/loop1")).unwrap().minor, 1);
    assert_eq!(machine.kernel.block_device_names().unwrap(), ["loop0", "loop1"]);
}

proptest! {
    /// The old form of the status: what it holds is what the new one does, or it says EOVERFLOW.
    #[test]
    fn old_status(offset in 0u64..1 << 33, limit in 0u64..1 << 20, set in any::<i32>(), name in any::<[u8; 32]>()) {
        let mut machine = Machine::bare();
        machine.attach("file", 4096);
        let device = &machine.loops[0];
        let mut info = loop_info64::zeroed();
        (info.lo_offset, info.lo_sizelimit) = (offset, limit);
        info.lo_flags = LoopFlags::PARTSCAN.bits();
        info.lo_file_name[..32].copy_from_slice(&name);
        machine.set_status(device, &mut info).unwrap();
        let mut old = loop_info::zeroed();
        let answer = machine.kernel.ioctl(device, loopdev::LOOP_GET_STATUS, Arg::Bytes(old.as_mut_bytes()));
        prop_assert_eq!(answer, if offset < 1 << 31 { Ok(0) } else { Err(Errno::EOVERFLOW) });
        if answer.is_ok() {
            let new = machine.loop_status(device).unwrap();
            #[allow(clippy::useless_conversion)] // the types differ between architectures
            let told = (u64::try_from(old.lo_offset).unwrap(), u64::from(old.lo_inode), u64::from(old.lo_device));
            prop_assert_eq!(told, (new.lo_offset, new.lo_inode, new.lo_device));
            prop_assert_eq!((old.lo_flags.cast_unsigned(), old.lo_name), (new.lo_flags, new.lo_file_name));
        }

        old.lo_offset = set;
        let answer = machine.kernel.ioctl(device, loopdev::LOOP_SET_STATUS, Arg::Bytes(old.as_mut_bytes()));
        prop_assert_eq!(answer, if set >= 0 { Ok(0) } else { Err(Errno::EOVERFLOW) });
        if answer.is_ok() {
            let new = machine.loop_status(device).unwrap();
            prop_assert_eq!((i64::from(set), 0), (new.lo_offset.cast_signed(), new.lo_sizelimit));
        }
    }
}

#[test]
fn binding() {
    let mut machine = Machine::bare();
    let unbound = machine.open("/dev/loop0");
    assert_eq!(machine.loop_status(&unbound).unwrap_err(), Errno::ENXIO);
    for request in [loopdev::LOOP_CLR_FD, loopdev::LOOP_SET_CAPACITY, loopdev::LOOP_SET_DIRECT_IO] {
        assert_eq!(machine.value(&unbound, request), Err(Errno::ENXIO));
    }
    assert_eq!(machine.set_status(&unbound, &mut loop_info64::zeroed()), Err(Errno::ENXIO));
    let null = std::fs::File::open("/dev/null").unwrap();
    let set = machine.kernel.ioctl(&unbound, loopdev::LOOP_SET_FD, Arg::Fd(null.as_fd()));
    assert_eq!(set, Err(Errno::EINVAL));
    drop(unbound);

    machine.attach("file", (1 << 20) + 700);
    let device = &machine.loops[0];
    let info = machine.loop_status(device).unwrap();
    use std::os::unix::fs::MetadataExt;
    let stat = std::fs::metadata(machine.directory.path().join("file")).unwrap();
    assert_eq!(info.lo_inode, stat.ino());
    assert_eq!(info.lo_device, DeviceNumber::from_dev_t(stat.dev()).to_huge());
    assert_eq!(machine.bytes(device), (1 << 20) + 512, "whole sectors");
    let again = machine.kernel.ioctl(device, loopdev::LOOP_SET_FD, Arg::Fd(null.as_fd()));
    assert_eq!(again, Err(Errno::EBUSY));

    machine.file("file", 2 << 20);
    assert_eq!(machine.bytes(device), (1 << 20) + 512);
    machine.value(device, loopdev::LOOP_SET_CAPACITY).unwrap();
    assert_eq!(machine.bytes(device), 2 << 20);

    let mut info = loop_info64::zeroed();
    (info.lo_offset, info.lo_sizelimit) = (4096, 8192);
    info.lo_flags = (LoopFlags::AUTOCLEAR | LoopFlags::READ_ONLY).bits();
    machine.set_status(device, &mut info).unwrap();
    assert_eq!(machine.bytes(device), 8192);
    assert_eq!(machine.loop_status(device).unwrap().lo_flags, LoopFlags::AUTOCLEAR.bits());
    info.lo_encrypt_type = 1;
    assert_eq!(machine.set_status(device, &mut info), Err(Errno::EINVAL));
    let size = |value| machine.kernel.ioctl(device, loopdev::LOOP_SET_BLOCK_SIZE, Arg::Value(value));
    assert_eq!((size(4096), size(600), size(8192)), (Ok(0), Err(Errno::EINVAL), Err(Errno::EINVAL)));
}

#[test]
fn configure() {
    let machine = Machine::bare();
    let file = machine.file("file", 1 << 20);
    let device = machine.open("/dev/loop0");
    let configure = |edit: fn(&mut loop_config)| {
        let mut config = loop_config::new_zeroed();
        config.fd = file.as_raw_fd().unsigned_abs();
        edit(&mut config);
        machine.kernel.ioctl(&device, loopdev::LOOP_CONFIGURE, Arg::Bytes(config.as_mut_bytes()))
    };
    assert_eq!(configure(|config| config.fd = 9999), Err(Errno::EBADF));
    assert_eq!(configure(|config| config.block_size = 1000), Err(Errno::EINVAL));
    assert_eq!(configure(|config| config.info.lo_flags = 1 << 10), Err(Errno::EINVAL));
    let flags = |config: &mut loop_config| {
        config.info.lo_flags = (LoopFlags::AUTOCLEAR | LoopFlags::DIRECT_IO).bits();
        config.info.lo_file_name = [b'x'; 64];
        config.block_size = 4096;
    };
    assert_eq!(configure(flags), Ok(0));
    assert_eq!(configure(flags), Err(Errno::EBUSY));
    let info = machine.loop_status(&device).unwrap();
    assert_eq!(info.lo_flags, (LoopFlags::AUTOCLEAR | LoopFlags::DIRECT_IO).bits());
    assert_eq!((info.lo_file_name[62], info.lo_file_name[63]), (b'x', 0));
    let mut size = [0; 4];
    machine.kernel.ioctl(&device, block::BLKSSZGET, Arg::Bytes(&mut size)).unwrap();
    assert_eq!(u32::from_ne_bytes(size), 4096);
}

#[test]
fn a_read_only_file_makes_a_read_only_device() {
    let machine = Machine::bare();
    machine.file("file", 1 << 20);
    machine.file("other", 1 << 20);
    machine.file("small", 4096);
    let open = |file: &str| std::fs::File::open(machine.directory.path().join(file)).unwrap();
    let device = machine.open("/dev/loop0");
    machine.kernel.ioctl(&device, loopdev::LOOP_SET_FD, Arg::Fd(open("file").as_fd())).unwrap();
    let change_to =
        |file: &str| machine.kernel.ioctl(&device, loopdev::LOOP_CHANGE_FD, Arg::Fd(open(file).as_fd()));
    assert_eq!((change_to("other"), change_to("small")), (Ok(0), Err(Errno::EINVAL)));
    let mut flag = [0; 4];
    machine.kernel.ioctl(&device, block::BLKROGET, Arg::Bytes(&mut flag)).unwrap();
    assert_eq!(u32::from_ne_bytes(flag), 1);
    // A table may use it all the same: writes fail later.
    machine.activate("d", "linear", "7:0 0", 8).unwrap();
    machine.dm.remove(&name("d")).unwrap();
}

#[test]
fn direct_io_needs_whole_sectors() {
    let mut machine = Machine::bare();
    machine.attach("file", 1 << 20);
    let device = &machine.loops[0];
    let direct = || {
        let info = machine.loop_status(device).unwrap();
        LoopFlags::from_bits_retain(info.lo_flags).contains(LoopFlags::DIRECT_IO)
    };
    let set = |value| machine.kernel.ioctl(device, loopdev::LOOP_SET_DIRECT_IO, Arg::Value(value));
    assert_eq!((set(1), direct()), (Ok(0), true));
    let mut info = machine.loop_status(device).unwrap();
    info.lo_offset = 100;
    machine.set_status(device, &mut info).unwrap();
    assert!(!direct(), "given up by itself");
    assert_eq!((set(1), direct()), (Err(Errno::EINVAL), false));
    assert_eq!(set(0), Ok(0));
}

#[test]
fn an_exchanged_file_is_as_large_as_the_other_is_now() {
    let machine = Machine::bare();
    let (file, other) = (machine.file("file", 1 << 20), machine.file("other", 2 << 20));
    let device = machine.kernel.open(Path::new("/dev/loop0"), Access::READ).unwrap();
    let bind = |request, file: &std::fs::File| machine.kernel.ioctl(&device, request, Arg::Fd(file.as_fd()));
    bind(loopdev::LOOP_SET_FD, &file).unwrap();
    assert_eq!(bind(loopdev::LOOP_CHANGE_FD, &other), Err(Errno::EINVAL));
    file.set_len(2 << 20).unwrap();
    assert_eq!(bind(loopdev::LOOP_CHANGE_FD, &other), Ok(0));
    assert_eq!(machine.bytes(&device), 1 << 20, "the device stays as large as it was");
}

#[test]
fn checks_of_loop_requests_are_made_in_the_kernels_order() {
    for (interface_minor, errno, default) in
        [(47, Errno::EINVAL, Err(Errno::EINVAL)), (48, Errno::EOVERFLOW, Ok(0))]
    {
        let mut machine = Machine::old(interface_minor);
        let file = machine.file("file", 1 << 20);
        let device = machine.open("/dev/loop0");
        let mut info = loop_info64::zeroed();
        info.lo_sizelimit = 1 << 63;
        let fd = file.as_raw_fd().unsigned_abs();
        let mut config = loop_config { fd, block_size: 1000, info, reserved: [0; 8] };
        let configured =
            machine.kernel.ioctl(&device, loopdev::LOOP_CONFIGURE, Arg::Bytes(config.as_mut_bytes()));
        assert_eq!(configured, Err(errno));
        machine.attach("file", 1 << 20);
        let set = machine.kernel.ioctl(&device, loopdev::LOOP_SET_BLOCK_SIZE, Arg::Value(0));
        assert_eq!(set, default);
    }
}

#[test]
fn clearing() {
    let mut machine = Machine::bare();
    machine.attach("file", 1 << 20);
    // The only opener: at once.
    machine.value(&machine.loops[0], loopdev::LOOP_CLR_FD).unwrap();
    assert!(!machine.is_bound("/dev/loop0"));
    machine.loops.clear();

    machine.attach("file", 1 << 20);
    machine.activate("d", "linear", "7:0 0", 8).unwrap();
    machine.value(&machine.loops[0], loopdev::LOOP_CLR_FD).unwrap();
    machine.loops.clear();
    assert!(machine.is_bound("/dev/loop0"), "a table uses it");
    machine.dm.remove(&name("d")).unwrap();
    assert!(!machine.is_bound("/dev/loop0"));
    assert!(machine.kernel.is_clean());
}

#[test]
fn autoclear_waits_for_the_last_close() {
    let mut machine = Machine::bare();
    machine.attach("file", 1 << 20);
    let mut info = loop_info64::zeroed();
    info.lo_flags = LoopFlags::AUTOCLEAR.bits();
    machine.set_status(&machine.loops[0], &mut info).unwrap();
    let second = machine.open("/dev/loop0");
    machine.loops.clear();
    assert!(machine.loop_status(&second).is_ok());
    drop(second);
    assert!(!machine.is_bound("/dev/loop0"));
}

#[test]
fn a_copy_of_its_descriptor_does_not_keep_a_device_open() {
    let mut machine = Machine::bare();
    machine.attach("file", 1 << 20);
    let mut info = loop_info64::zeroed();
    info.lo_flags = LoopFlags::AUTOCLEAR.bits();
    machine.set_status(&machine.loops[0], &mut info).unwrap();
    // As a child of fork has one until its exec.
    let copy = machine.loops[0].as_fd().try_clone_to_owned().unwrap();
    machine.loops.clear();
    assert!(!machine.is_bound("/dev/loop0"));
    drop(copy);
}

#[test]
fn the_wrong_device_for_an_ioctl() {
    let machine = Machine::with_loops();
    let control = machine.open("/dev/mapper/control");
    assert_eq!(machine.value(&control, loopdev::LOOP_CLR_FD), Err(Errno::ENOTTY));
    assert_eq!(machine.value(&machine.loops[0], dm::DM_MPATH_PROBE_PATHS), Err(Errno::ENOTTY));
    assert_eq!(machine.value(&machine.loops[0], block::BLKGETSIZE64), Err(Errno::EINVAL));
    let other = Machine::bare();
    assert_eq!(other.value(&machine.loops[0], loopdev::LOOP_CLR_FD), Err(Errno::EBADF));
}

#[test]
fn nodes() {
    let machine = Machine::bare();
    machine.make("d");
    assert_eq!(machine.kernel.block_device(Path::new("/dev/dm-0")), Err(Errno::ENOENT), "no table yet");
    machine.load("d", "zero", "", 8).unwrap();
    let path = machine.node("d");
    let number = DeviceNumber { major: 253, minor: 0 };
    assert_eq!(machine.kernel.block_device(&path), Ok(number));
    assert_eq!(machine.kernel.block_device(Path::new("/dev/dm-0")), Ok(number));
    assert_eq!(machine.kernel.make_node(&path, number), Err(Errno::EEXIST));
    machine.raw(dm::DM_DEV_REMOVE, &mut request("d", 312)).unwrap();
    assert_eq!(machine.kernel.open(&path, Access::READ).unwrap_err(), Errno::ENXIO, "a node of nothing");
    assert_eq!(machine.kernel.remove_node(&path), Ok(()));
    assert_eq!(machine.kernel.remove_node(&path), Err(Errno::ENOENT));
    assert_eq!(machine.kernel.block_device(Path::new("/dev/mapper/control")), Err(Errno::ENOTBLK));
}

#[test]
fn mounts() {
    let machine = Machine::bare();
    let sda = DeviceNumber { major: 8, minor: 0 };
    machine.kernel.set_disk(Path::new("/dev/sda"), sda, Sectors(800)).unwrap();
    machine.activate("d", "linear", "8:0 0", 800).unwrap();
    let target = machine.directory.path().join("a b");
    std::fs::create_dir(&target).unwrap();
    let inner = target.join("inner");
    std::fs::create_dir(&inner).unwrap();
    let node = machine.node("d");
    let mount = |source: &Path, target: &Path| {
        machine.kernel.mount(Some(source), target, Some("ext4"), MountFlags::NOATIME, "discard")
    };
    assert_eq!(mount(Path::new("/dev/nothing"), &target), Err(Errno::ENOENT));
    assert_eq!(mount(&node, &target.join("missing")), Err(Errno::ENOENT));
    assert_eq!(mount(&node, &target), Err(Errno::EINVAL), "it has no file system");
    machine.kernel.run("mkfs.ext4", &[node.as_os_str()]).unwrap();
    let propagate = || machine.kernel.mount(None, &target, None, MountFlags::PRIVATE, "");
    assert_eq!(propagate(), Err(Errno::EINVAL));
    mount(&node, &target).unwrap();
    propagate().unwrap();
    assert_eq!(mount(&node, &target), Err(Errno::EBUSY));
    mount(&node, &inner).unwrap();
    let table = String::from_utf8(machine.kernel.mount_table().unwrap()).unwrap();
    let line = table.lines().nth(1).unwrap();
    assert!(line.starts_with("2 1 253:0 / /"), "{line}");
    assert!(line.ends_with("/a\\040b rw,noatime - ext4 /dev/mapper/d rw,discard"), "{line}");

    assert_eq!(machine.dm.status(DmId::Name(&name("d"))).unwrap().open_count, 1);
    assert_eq!(errno(machine.dm.remove(&name("d"))), Errno::EBUSY);
    machine.make("e");
    assert_eq!(errno(machine.load("e", "linear", "253:0 0", 8)), Errno::EBUSY, "mounted");
    let unmount = |target: &Path, flags| machine.kernel.unmount(target, flags);
    assert_eq!(unmount(&target, UnmountFlags::empty()), Err(Errno::EBUSY));
    unmount(&inner, UnmountFlags::empty()).unwrap();
    assert_eq!(unmount(&inner, UnmountFlags::empty()), Err(Errno::EINVAL));
    let user = ProcessName { pid: 7, command: "shell".to_owned() };
    machine.kernel.set_mount_user(&target, Some(user)).unwrap();
    assert_eq!(unmount(&target, UnmountFlags::empty()), Err(Errno::EBUSY));
    unmount(&target, UnmountFlags::DETACH).unwrap();
    machine.dm.remove(&name("e")).unwrap();
    machine.dm.remove(&name("d")).unwrap();
    assert!(machine.kernel.is_clean());
}

#[test]
fn a_pool_on_disks_survives_a_power_cut() {
    let sda = DeviceNumber { major: 8, minor: 0 };
    let sdb = DeviceNumber { major: 8, minor: 16 };
    let mut machine = Machine::bare();
    machine.kernel.set_disk(Path::new("/dev/sda"), sda, Sectors(8192)).unwrap();
    machine.kernel.set_disk(Path::new("/dev/sdb"), sdb, Sectors(256 * BLOCK)).unwrap();
    for expected in [Ok(()), Err(Errno::EEXIST)] {
        machine.activate("pool", "thin-pool", "/dev/sda 8:16 128 0", 256 * BLOCK).unwrap();
        let made = machine.message("pool", "create_thin 1").map(drop).map_err(|e| e.errno().unwrap());
        assert_eq!(made, expected);
        machine = Machine::boot(machine.kernel.power_cut(), new_directory());
    }
}
