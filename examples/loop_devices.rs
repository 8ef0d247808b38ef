//! Loop devices: attach a file, find it again, grow it in use, detach it.
//!
//! As root: `cargo run --example loop_devices /var/lib/loop.img`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dm_thin::loopdev::{AttachOptions, LoopControl};
use dm_thin::units::Bytes;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

#[allow(dead_code)] // the tests include this file for `run`
fn main() -> Result {
    let file = std::env::args().nth(1).ok_or("usage: loop_devices FILE")?;
    run(Path::new(&file))
}

/// The story, in a file that is made for it, and deleted at the end.
pub fn run(path: &Path) -> Result {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    file.set_len(Bytes::mib(4).0)?;
    let control = LoopControl::open()?;
    // Past the page cache where the file system below can; the first 1 MiB is not part of the device.
    let options = AttachOptions::new().direct_io(true).offset(Bytes::mib(1));
    let device = control.attach(&file, path, &options)?;
    println!("{} has {}", device.path().display(), device.size()?);

    let block = File::options().write(true).open(device.path())?;
    block.write_all_at(b"written through the device", 0)?;
    block.sync_all()?;
    let mut found = [0; 26];
    file.read_exact_at(&mut found, Bytes::mib(1).0)?;
    assert_eq!(&found, b"written through the device");

    // Another process finds it by the file.
    let again = control.find(&file)?.ok_or("the file has no device")?;
    assert_eq!(again.number(), device.number());
    let status = again.status()?;
    println!("backed by {path:?} from {}", status.offset);

    // It keeps its size until it is told to look.
    file.set_len(Bytes::mib(8).0)?;
    device.set_capacity()?;
    assert_eq!(device.size()?, Bytes::mib(7));
    drop((block, again));
    device.detach()?;
    Ok(std::fs::remove_file(path)?)
}
