//! File systems: made on the base, grown on larger snapshots, by the programs that belong to them.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;
use uuid::Uuid;

use crate::kernel::Kernel;
use crate::tree::Filesystem;
use crate::tree::{Error, Result};

impl Filesystem {
    /// The kernel's name of it.
    pub(crate) fn kernel_name(self) -> Option<&'static str> {
        match self {
            Self::Ext4 => Some("ext4"),
            Self::Xfs => Some("xfs"),
            Self::None => None,
        }
    }

    /// The program that makes it, and the package it is usually in.
    fn maker(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Ext4 => Some(("mkfs.ext4", "e2fsprogs")),
            Self::Xfs => Some(("mkfs.xfs", "xfsprogs")),
            Self::None => None,
        }
    }

    /// The first mount options of every mount of it; those that are asked for follow. All snapshots of an XFS have the UUID of
    /// the base.
    pub(in crate::tree) fn mount_options(self) -> &'static str {
        match self {
            Self::Xfs => "nouuid",
            // A superblock can ask the kernel to panic when it finds damage.
            Self::Ext4 => "errors=remount-ro",
            Self::None => "",
        }
    }

    /// Checks that the file system can be made.
    pub(in crate::tree) fn check_maker(self, kernel: &dyn Kernel) -> Result<()> {
        let Some((program, package)) = self.maker() else { return Ok(()) };
        kernel.find_program(program).map(drop).map_err(|errno| not_run(program, package, errno))
    }

    /// Makes it on `device`.
    pub(in crate::tree) fn make(
        self,
        kernel: &dyn Kernel,
        device: &Path,
        uuid: Uuid,
        extra: &[String],
    ) -> Result<()> {
        let Some(maker) = self.maker() else { return Ok(()) };
        let uuid = uuid.to_string();
        let make = |arguments: &[&str]| {
            let arguments = arguments.iter().map(OsStr::new).chain(extra.iter().map(OsStr::new));
            run(kernel, maker, &arguments.chain([device.as_os_str()]).collect::<Vec<_>>(), device)
        };
        match self {
            // A new volume reads as zeroes, so inode tables need not be written: neither now, nor by a
            // thread of the kernel in each snapshot. mke2fs before 1.47 does not know; it writes them now.
            Self::Ext4 => {
                let prezeroed = ["-q", "-F", "-U", &uuid, "-E", "nodiscard,assume_storage_prezeroed=1"];
                let zeroing =
                    ["-q", "-F", "-U", &uuid, "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"];
                make(&prezeroed).or_else(|_| make(&zeroing))
            }
            Self::Xfs => make(&["-q", "-f", "-K", "-m", &format!("uuid={uuid}")]),
            Self::None => Ok(()),
        }
    }

    /// Grows it to the size of `device`, which is mounted on `target`.
    pub(in crate::tree) fn grow(self, kernel: &dyn Kernel, device: &Path, target: &Path) -> Result<()> {
        match self {
            Self::Ext4 => run(kernel, ("resize2fs", "e2fsprogs"), &[device.as_os_str()], device),
            Self::Xfs => run(kernel, ("xfs_growfs", "xfsprogs"), &[target.as_os_str()], device),
            Self::None => Ok(()),
        }
    }
}

fn not_run(program: &str, package: &'static str, errno: Errno) -> Error {
    match errno {
        Errno::ENOENT => Error::MkfsMissing { program: program.to_owned(), package },
        errno => Error::io("run", program)(errno),
    }
}

fn run(
    kernel: &dyn Kernel,
    (program, package): (&str, &'static str),
    arguments: &[&OsStr],
    device: &Path,
) -> Result<()> {
    let output = kernel.run(program, arguments).map_err(|errno| not_run(program, package, errno))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Mkfs {
        program: program.to_owned(),
        device: device.display().to_string(),
        status: output.status.to_string(),
        output: first_line(&[output.stderr, output.stdout].concat()),
    })
}

/// The first line: what follows it is how the program is used. Some print their version before:
/// `mke2fs 1.47.2 (1-Jan-2025)`.
fn first_line(said: &[u8]) -> String {
    const LONGEST: usize = 500;
    let is_version = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        matches!(words[..], [_, version, date]
            if version.starts_with(|first: char| first.is_ascii_digit()) && date.starts_with('('))
    };
    let said = String::from_utf8_lossy(said);
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.find(|line| !is_version(line)).unwrap_or("it said nothing");
    first.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_says_what_is_wrong_is_kept() {
        let usage = ["\nFilesystem must be larger than 300MB.\n", &"-x ignored\n".repeat(1000)].concat();
        assert_eq!(first_line(usage.as_bytes()), "Filesystem must be larger than 300MB.");
        let said =
            b"resize2fs 1.47.2 (1-Jan-2025)\nresize2fs: No space left on device While trying to resize\n";
        assert_eq!(first_line(said), "resize2fs: No space left on device While trying to resize");
        assert_eq!(first_line(b" \n"), "it said nothing");
    }
}
