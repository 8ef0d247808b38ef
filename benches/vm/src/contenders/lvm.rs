//! LVM's thin snapshots, by its commands; no daemon, no udev.

use std::path::Path;
use std::process::Command;

use crate::arena::{Arena, Backing, STORE};
use crate::base::Base;
use crate::contender::{Contender, Volume};
use crate::{Result, run};

#[derive(Default)]
pub struct Lvm {
    backing: Option<Backing>,
}

const CONFIG: &str = "devices { use_devicesfile=0 scan_lvs=0 } \
    activation { udev_sync=0 udev_rules=0 monitoring=0 thin_pool_autoextend_threshold=100 } \
    global { use_lvmpolld=0 thin_check_executable=\"\" } backup { backup=0 archive=0 }";

const GROUP: &str = "lvm";

fn lvm(arguments: &[&str]) -> Result<()> {
    run(Command::new("lvm").args(arguments).args(["-q", "-q", "--config", CONFIG]))
}

fn volume(id: u32) -> String {
    format!("lvm/copy{id}")
}

impl Contender for Lvm {
    fn name(&self) -> &'static str {
        "LVM thin"
    }

    fn prepare(&mut self, arena: &Arena, base: &Base) -> Result<()> {
        let backing = self.backing.insert(arena.device("lvm", STORE)?);
        lvm(&["vgcreate", GROUP, &backing.path.display().to_string()])?;
        lvm(&[
            "lvcreate",
            "-Zy",
            "--type",
            "thin-pool",
            "-L",
            "14G",
            "--poolmetadatasize",
            "64M",
            "-c",
            "64k",
            "-n",
            "pool",
            GROUP,
        ])?;
        let size = format!("{}b", base.size);
        lvm(&["lvcreate", "-Wn", "-V", &size, "-n", "base", "--thinpool", "lvm/pool"])?;
        base.fill(Path::new("/dev/lvm/base"))?;
        lvm(&["lvchange", "-an", "lvm/base"])
    }

    fn snapshot(&self, id: u32) -> Result<()> {
        lvm(&["lvcreate", "-s", "-n", &format!("copy{id}"), "lvm/base"])
    }

    fn activate(&self, id: u32) -> Result<Volume> {
        lvm(&["lvchange", "-ay", "-K", &volume(id)])?;
        Volume::open(format!("/dev/{}", volume(id)).as_ref())
    }

    fn deactivate(&self, id: u32) -> Result<()> {
        lvm(&["lvchange", "-an", &volume(id)])
    }

    fn delete(&self, id: u32) -> Result<()> {
        lvm(&["lvremove", "-f", &volume(id)])
    }

    fn finish(&mut self) -> Result<()> {
        lvm(&["vgremove", "-f", GROUP])?;
        self.backing.take().map_or(Ok(()), Backing::release)
    }
}
