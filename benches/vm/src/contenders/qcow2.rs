//! qcow2 overlays on a raw image, as block devices through `qemu-nbd`.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::bare::{remove_file, sync_file};
use super::files::Files;
use crate::arena::Arena;
use crate::base::Base;
use crate::contender::{Contender, Volume};
use crate::{Result, run};

#[derive(Default)]
pub struct Qcow2 {
    files: Files,
}

impl Qcow2 {
    fn path(&self, id: u32) -> Result<PathBuf> {
        self.files.path(&format!("overlay-{id}"))
    }
}

/// A device that was disconnected a moment ago may still be going: the next copy takes the next one.
fn device(id: u32) -> PathBuf {
    format!("/dev/nbd{}", id % 16).into()
}

impl Contender for Qcow2 {
    fn name(&self) -> &'static str {
        "qcow2 + qemu-nbd"
    }

    fn prepare(&mut self, arena: &Arena, base: &Base) -> Result<()> {
        run(Command::new("modprobe").arg("nbd"))?;
        // qemu-nbd's socket.
        std::fs::create_dir_all("/var/lock")?;
        self.files.prepare(arena, "qcow2")?;
        base.make_file(&self.files.path("base")?)
    }

    fn snapshot(&self, id: u32) -> Result<()> {
        let (base, path) = (self.files.path("base")?, self.path(id)?);
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(base)
            .arg(&path))?;
        sync_file(&path)
    }

    fn activate(&self, id: u32) -> Result<Volume> {
        run(Command::new("qemu-nbd").arg("-f").arg("qcow2").arg("-c").arg(device(id)).arg(self.path(id)?))?;
        // qemu-nbd goes to the background before the kernel knows how large the device is.
        let end = Instant::now() + Duration::from_secs(5);
        while File::open(device(id))?.seek(SeekFrom::End(0))? == 0 {
            if Instant::now() > end {
                return Err("qemu-nbd connected nothing".into());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Volume::open(&device(id))
    }

    fn deactivate(&self, id: u32) -> Result<()> {
        run(Command::new("qemu-nbd").arg("-d").arg(device(id)))
    }

    fn delete(&self, id: u32) -> Result<()> {
        remove_file(&self.path(id)?)
    }

    fn finish(&mut self) -> Result<()> {
        self.files.finish()
    }
}
