//! Messages, suspends and resumes allocate nothing, from the call to the kernel and back; and their
//! requests are small.
//!
//! A test of its own: it counts what the whole process allocates.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use std::path::Path;
use std::sync::Arc;

use dm_thin::Errno;
use dm_thin::abi::Ioctl;
use dm_thin::dm::wire::{Command, Payload, Request};
use dm_thin::dm::{DeviceMapper, DmFlags, DmName, TargetSpec, TargetType, UdevPolicy};
use dm_thin::kernel::{Access, Arg, DeviceFile, DeviceKind, DeviceNumber, Files, Kernel, RealKernel};
use dm_thin::units::Sectors;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to `System` unchanged, which is a correct allocator; counting touches a
// thread-local that needs neither memory nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

#[test]
fn a_message_is_encoded_without_allocating() {
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1, "the counter counts");
    let name = DmName::new("docker-8:1-7077897-pool").unwrap();
    let mut buffer = [0; 480];
    let count = allocations(|| {
        let (id, origin) = (black_box(16_777_215), black_box(16_777_214));
        let text = format_args!("create_snap {id} {origin}");
        let payload = Payload::Message { sector: Sectors(0), text: &text };
        let request = Request::on(Command::TARGET_MSG, (&name).into()).payload(payload);
        request.encode(&mut buffer).unwrap();
    });
    assert_eq!(count, 0);
    assert_eq!(&buffer[320..350], b"create_snap 16777215 16777214\0");
}

#[test]
fn a_table_and_a_name_are_encoded_without_allocating() {
    let mut buffer = [0; 480];
    let count = allocations(|| {
        let name = DmName::format(format_args!("docker-8:1-{}-{}", 7_077_897, "0123456789abcdef")).unwrap();
        let thin = TargetType::new("thin").unwrap();
        let line = TargetSpec {
            start: Sectors(0),
            length: Sectors(20_971_520),
            target_type: thin,
            parameters: &"253:0 7",
        };
        let payload = [line];
        let request = Request::on(Command::TABLE_LOAD, (&name).into())
            .flags(DmFlags::READONLY)
            .payload(Payload::Table(&payload));
        request.encode(&mut buffer).unwrap();
    });
    assert_eq!(count, 0);
}

/// A kernel that says yes to small requests.
#[derive(Debug)]
struct Nodding;

impl Kernel for Nodding {
    fn open(&self, _: &Path, _: Access) -> Result<DeviceFile, Errno> {
        let fd = std::fs::File::open("/dev/null").map_err(|_| Errno::EIO)?.into();
        let number = DeviceNumber { major: 10, minor: 236 };
        Ok(DeviceFile::simulated(fd, DeviceKind::MapperControl, number))
    }

    fn ioctl(&self, _: &DeviceFile, _: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        let Arg::Bytes(bytes) = argument else { return Err(Errno::ENOTTY) };
        assert!(bytes.len() < 512, "{} bytes", bytes.len());
        bytes[4..8].copy_from_slice(&47u32.to_ne_bytes());
        Ok(0)
    }

    fn files(&self) -> &dyn Files {
        &RealKernel
    }
}

#[test]
fn a_snapshot_of_an_active_origin_allocates_nothing() {
    let dm = DeviceMapper::with_kernel(Arc::new(Nodding), UdevPolicy::None).unwrap();
    let pool = DmName::new("docker-8:1-7077897-pool").unwrap();
    let origin = DmName::new(&"o".repeat(127)).unwrap();
    let count = allocations(|| {
        dm.suspend(&origin, DmFlags::empty()).unwrap();
        dm.message(&pool, Sectors(0), &format_args!("create_snap {} {}", 16_777_215, 7)).unwrap();
        dm.resume(&origin).unwrap();
    });
    assert_eq!(count, 0);
}
