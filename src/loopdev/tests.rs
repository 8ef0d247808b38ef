//! The typed methods on the model's loop devices.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;
use proptest::prelude::*;

use super::*;
use crate::loopdev::{Error, Result};
use crate::model::ModelKernel;
use crate::units::Bytes;

/// What is said of a refusal, to compare.
fn told(result: Result<()>) -> std::result::Result<(), Option<Errno>> {
    result.map_err(|error| error.errno())
}

proptest! {
    #[test]
    fn a_status_is_read_as_it_was_set(
        offset in 0u64..1 << 33,
        limit in proptest::option::of(1u64..1 << 40),
        autoclear: bool,
        name in proptest::collection::vec(1u8.., 0..80),
    ) {
        let control = LoopControl::with_kernel(Arc::new(ModelKernel::new())).unwrap();
        let file = tempfile::tempfile().unwrap();
        let device = control.attach(&file, "a label".as_ref(), &AttachOptions::new()).unwrap();
        let bound = device.status().unwrap();
        prop_assert_eq!(&bound.file_name, AsRef::<std::path::Path>::as_ref("a label"));
        prop_assert_eq!(&device.status_old().unwrap(), &bound);

        let mut status = bound.clone();
        (status.offset, status.size_limit) = (Bytes(offset), limit.map(Bytes));
        status.flags.set(LoopFlags::AUTOCLEAR, autoclear);
        status.file_name = OsStr::from_bytes(&name).into();
        device.set_status(&status).unwrap();
        let mut expected = status.clone();
        expected.file_name = OsStr::from_bytes(&name[..name.len().min(63)]).into();
        prop_assert_eq!(&device.status().unwrap(), &expected);

        // The old form tells all but the limit, or nothing.
        let unlimited = LoopStatus { size_limit: None, ..expected.clone() };
        match device.status_old() {
            Ok(old) => prop_assert_eq!((&old, offset < 1 << 31), (&unlimited, true)),
            Err(error) => prop_assert_eq!((error.errno(), offset < 1 << 31), (Some(Errno::EOVERFLOW), false)),
        }

        // And sets what was asked for, or nothing.
        device.set_status(&bound).unwrap();
        match device.set_status_old(&status) {
            Ok(()) => {
                prop_assert_eq!((limit, offset < 1 << 31), (None, true));
                prop_assert_eq!(device.status().unwrap(), unlimited);
            }
            Err(error) => {
                let unfit = limit.is_some() || offset >= 1 << 31;
                prop_assert_eq!((matches!(error, Error::InvalidOption { .. }), unfit), (true, true));
                prop_assert_eq!(device.status().unwrap(), bound);
            }
        }
    }
}

#[test]
fn a_device_that_is_free_has_no_status() {
    let control = LoopControl::with_kernel(Arc::new(ModelKernel::new())).unwrap();
    let file = tempfile::tempfile().unwrap();
    let device = control.attach(&file, "".as_ref(), &AttachOptions::new()).unwrap();
    let (index, status) = (device.index(), device.status().unwrap());
    device.detach().unwrap();

    let device = control.device(index, crate::kernel::Access::READ_WRITE).unwrap();
    let free = Err(Some(Errno::ENXIO));
    for result in [
        device.status().map(drop),
        device.status_old().map(drop),
        device.set_status(&status),
        device.set_status_old(&status),
        device.change_file(&file),
    ] {
        assert_eq!(told(result), free);
    }
}

#[test]
fn a_device_is_read_only_on_old_kernels_too() {
    let kernel = Arc::new(ModelKernel::new());
    kernel.refuse(crate::abi::loopdev::LOOP_CONFIGURE, Errno::EINVAL);
    let control = LoopControl::with_kernel(kernel).unwrap();
    let file = tempfile::tempfile().unwrap();
    for read_only in [true, false] {
        let options = AttachOptions::new().read_only(read_only);
        let device = control.attach(&file, "".as_ref(), &options).unwrap();
        assert_eq!(device.status().unwrap().flags.contains(LoopFlags::READ_ONLY), read_only);
        device.detach().unwrap();
    }
}

#[test]
fn open_refuses_a_node_of_another_device() {
    use crate::kernel::{Access, DeviceNumber, Kernel};
    let kernel = Arc::new(ModelKernel::new());
    let control = LoopControl::with_kernel(kernel.clone()).unwrap();
    kernel.make_node("/dev/loop99".as_ref(), DeviceNumber { major: 7, minor: 3 }).unwrap();
    let device = control.device(LoopIndex(99), Access::READ);
    assert!(matches!(device, Err(Error::Replaced { .. })), "{device:?}");
    assert_eq!(control.device(LoopIndex(3), Access::READ).unwrap().index(), LoopIndex(3));
}

#[test]
fn attach_skips_free_devices_that_cannot_be_bound() {
    use crate::kernel::{Access, DeviceNumber, Kernel};
    let kernel = Arc::new(ModelKernel::new());
    let control = LoopControl::with_kernel(kernel.clone()).unwrap();
    // The node of the first one is the last one's, and somebody has those between open exclusively.
    control.remove(LoopIndex(0)).unwrap();
    kernel.make_node("/dev/loop0".as_ref(), DeviceNumber { major: 7, minor: 7 }).unwrap();
    control.add(LoopIndex(0)).unwrap();
    let claim = |index| kernel.open(format!("/dev/loop{index}").as_ref(), Access::READ.exclusive()).unwrap();
    let mut claims: Vec<_> = (1..7).map(claim).collect();
    let file = tempfile::tempfile().unwrap();
    let attach = || control.attach(&file, "".as_ref(), &AttachOptions::new()).unwrap();
    let device = attach();
    assert_eq!(device.index(), LoopIndex(7));
    device.detach().unwrap();
    // There is none left: one is added.
    claims.push(claim(7));
    assert_eq!(attach().index(), LoopIndex(8));
}

#[test]
fn find_does_not_pass_over_what_it_cannot_look_at() {
    let kernel = Arc::new(ModelKernel::new());
    let control = LoopControl::with_kernel(kernel.clone()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.as_file();
    control.attach(file, "".as_ref(), &AttachOptions::new()).unwrap();
    // A missing node is made, or somebody else was faster; what this process lacks is no answer; and one on this file that
    // cannot be opened, or has no status, is an error.
    for errno in [Errno::ENOENT, Errno::EMFILE, Errno::EACCES] {
        for call in 1.. {
            kernel.fail_at(call, errno);
            let found = control.find(file).map(|found| found.is_some());
            let struck = kernel.struck();
            kernel.heal();
            let Some(struck) = struck else { break };
            let is_open = struck.name == "open" && struck.subject.ends_with("loop0");
            assert!(
                !matches!(found, Ok(false)) || (errno == Errno::ENOENT && !is_open),
                "{struck:?} {errno}"
            );
        }
    }
}
