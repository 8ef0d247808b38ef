//! Device mapper by hand: a linear device, a larger table for it while it is in use, encryption on top, and events.
//!
//! As root on a kernel with dm-crypt: `cargo run --example device_mapper /var/lib/device.img`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use dm_thin::abi::dm::DmFlags;
use dm_thin::dm::targets::{Linear, Target};
use dm_thin::dm::{DeviceMapper, DmName, DmUuid, TargetSpec, TargetType};
use dm_thin::loopdev::{AttachOptions, LoopControl};
use dm_thin::units::{Bytes, Sectors};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

#[allow(dead_code)] // the tests include this file for `run`
fn main() -> Result {
    let file = std::env::args().nth(1).ok_or("usage: device_mapper FILE")?;
    run(Path::new(&file))
}

/// The story, in a file that is made for it, and deleted at the end.
pub fn run(path: &Path) -> Result {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    file.set_len(Bytes::mib(16).0)?;
    let below = LoopControl::open()?.attach(&file, path, &AttachOptions::new())?;

    let dm = DeviceMapper::open()?;
    let mut events = dm.events()?;
    let linear = Linear { device: below.number(), start: Sectors(0) };
    let (name, uuid) = (DmName::new("example-linear")?, DmUuid::new("EXAMPLE-linear")?);
    let half = Bytes::mib(8).sectors();
    let plain = dm.create_active(&name, &uuid, &[linear.over(Sectors(0), half)], DmFlags::empty())?;
    println!("{} is {}", dm.node_path(&name).display(), plain.number);

    // A table is loaded beside the live one; a resume makes it live. Who has the device open notices nothing.
    let whole = linear.over(Sectors(0), Bytes::mib(16).sectors());
    dm.load_table(&name, &[whole], DmFlags::empty())?;
    dm.suspend(&name, DmFlags::empty())?;
    dm.resume(&name)?;

    // Any target of the kernel: what this crate has no type for is text.
    let key = "60".repeat(64);
    let parameters = format!("aes-xts-plain64 {key} 0 {} 0", plain.number);
    let crypt = TargetSpec {
        start: Sectors(0),
        length: Bytes::mib(16).sectors(),
        target_type: TargetType::new("crypt")?,
        parameters: &parameters,
    };
    let (secret, uuid) = (DmName::new("example-crypt")?, DmUuid::new("EXAMPLE-crypt")?);
    // The kernel wipes its copy of the key from the buffer.
    dm.create_active(&secret, &uuid, &[crypt], DmFlags::SECURE_DATA)?;
    let device = File::options().write(true).open(dm.node_path(&secret))?;
    device.write_all_at(&[7; 4096], 0)?;
    device.sync_all()?;
    let mut found = vec![0; 4096];
    file.read_exact_at(&mut found, 0)?;
    assert!(found.iter().any(|&byte| byte != 7), "it is not encrypted");
    drop(device);

    dm.remove(&secret)?;
    dm.remove(&name)?;
    while let Some(event) = events.next_within(Duration::from_millis(100))? {
        println!("{event:?}");
    }
    below.detach()?;
    Ok(std::fs::remove_file(path)?)
}
