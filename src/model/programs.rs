//! The programs of the model: those that make, check and grow what is on its devices.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};

use nix::errno::Errno;
use uuid::Uuid;

use super::file_tree::{FileSystem, Kind, Node};
use super::world::World;
use crate::kernel::DeviceNumber;

const PROGRAMS: [&str; 5] = ["mkfs.ext4", "mkfs.xfs", "resize2fs", "thin_check", "xfs_growfs"];

/// Why a program ends with 1.
type Complaint = String;

impl World {
    pub(super) fn find_program(&self, program: &str) -> Result<PathBuf, Errno> {
        let installed = PROGRAMS.contains(&program) && !self.uninstalled.contains(program);
        installed.then(|| Path::new("/usr/sbin").join(program)).ok_or(Errno::ENOENT)
    }

    pub(super) fn run_program(&mut self, program: &str, arguments: &[&OsStr]) -> Result<Output, Errno> {
        self.find_program(program)?;
        let (options, operand) = match arguments {
            [options @ .., operand] => (options, Path::new(operand)),
            [] => (&[][..], Path::new("")),
        };
        let done = match program {
            "mkfs.ext4" => self.mkfs(Kind::Ext4, options, operand),
            "mkfs.xfs" => self.mkfs(Kind::Xfs, options, operand),
            "resize2fs" => self.resize2fs(operand),
            "xfs_growfs" => self.xfs_growfs(operand),
            _ => self.check_metadata(options, operand),
        };
        let said = done.as_ref().err().map(|complaint| format!("{program}: {complaint}\n"));
        let status = ExitStatus::from_raw(i32::from(done.is_err()) << 8);
        Ok(Output { status, stdout: Vec::new(), stderr: said.unwrap_or_default().into() })
    }

    fn mkfs(&mut self, kind: Kind, options: &[&OsStr], device: &Path) -> Result<(), Complaint> {
        let number = self.block_device(device).map_err(complaint(device))?;
        if self.is_mounted(number) {
            return Err(format!("{} is mounted", device.display()));
        }
        let options = options.iter().filter_map(|option| option.to_str());
        let named = |option: &str| option.strip_prefix("uuid=").unwrap_or(option).parse::<Uuid>().ok();
        let uuid = options.filter_map(named).next_back().unwrap_or_else(Uuid::new_v4);
        let mut made = FileSystem::new(kind, uuid, self.sectors(number).unwrap_or(0) * 512);
        if kind == Kind::Ext4 {
            made.nodes.insert("lost+found".into(), Node::Directory);
        }
        self.write_filesystem(number, &made).map_err(complaint(device))
    }

    fn resize2fs(&mut self, device: &Path) -> Result<(), Complaint> {
        let number = self.block_device(device).map_err(complaint(device))?;
        let found = match self.filesystems.get(&number) {
            Some(mounted) => Some(mounted.clone()),
            None => self.read_filesystem(number).map_err(complaint(device))?,
        };
        let found = found.filter(|found| found.kind == Kind::Ext4);
        let filesystem = found.ok_or_else(|| format!("{}: bad magic number", device.display()))?;
        self.grow(number, filesystem).map_err(complaint(device))
    }

    fn xfs_growfs(&mut self, target: &Path) -> Result<(), Complaint> {
        let path = std::fs::canonicalize(target).unwrap_or_default();
        let number = self.mounted_on(&path).and_then(|mount| mount.number);
        let found = number.and_then(|number| Some((number, self.filesystems.get(&number)?.clone())));
        let found = found.filter(|(_, found)| found.kind == Kind::Xfs);
        let (number, filesystem) =
            found.ok_or_else(|| format!("{} is not a mounted XFS", target.display()))?;
        self.grow(number, filesystem).map_err(complaint(target))
    }

    /// To the size of its device.
    fn grow(&mut self, number: DeviceNumber, mut filesystem: FileSystem) -> Result<(), Errno> {
        filesystem.size = self.sectors(number).unwrap_or(0) * 512;
        self.write_filesystem(number, &filesystem)?;
        if let Some(mounted) = self.filesystems.get_mut(&number) {
            *mounted = filesystem;
        }
        Ok(())
    }

    fn check_metadata(&mut self, options: &[&OsStr], device: &Path) -> Result<(), Complaint> {
        let clear = options.iter().any(|option| *option == "--clear-needs-check-flag");
        match self.thin_check(device, clear) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{}: bad metadata", device.display())),
            Err(errno) => Err(complaint(device)(errno)),
        }
    }
}

fn complaint(path: &Path) -> impl Fn(Errno) -> Complaint {
    move |errno| format!("{}: {}", path.display(), errno.desc())
}
