//! Mounts: made with context in their errors, found again in the kernel's table.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{Filesystem, Options};
use crate::abi::mount::UnmountFlags;
use crate::error::MountError;
use crate::kernel::{DeviceNumber, Kernel};
use crate::{Error, Result};

/// Mount `device` on `target`.
pub(super) fn mount(options: &Options, filesystem: Filesystem, device: &Path, target: &Path) -> Result<()> {
    let Some(name) = filesystem.kernel_name() else {
        return Err(Error::InvalidOption {
            option: "mount",
            value: device.display().to_string(),
            reason: "the tree was made without a file system",
        });
    };
    let flags = options.mount_flags;
    let parts = [filesystem.mount_options(), &options.mount_options];
    let data = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(",");
    options.kernel.mount(Some(device), target, Some(name), flags, &data).map_err(|errno| {
        let (device, target) = (device.display(), target.display());
        let data = if data.is_empty() { data } else { format!(", options {data}") };
        let call = format!("mount {device} on {target} ({name}, flags {:#x}{data})", flags.bits());
        Error::Mount(Box::new(MountError { call, errno }))
    })
}

/// Unmount `target`. One that is not mounted any more is fine: somebody else did it.
pub(super) fn unmount(kernel: &dyn Kernel, target: &Path) -> Result<()> {
    match kernel.unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => {
            let call = format!("unmount {}", target.display());
            Err(Error::Mount(Box::new(MountError { call, errno })))
        }
    }
}

/// Where each device is mounted in this mount namespace, in the order of the mounts.
pub(super) fn mounts(kernel: &dyn Kernel) -> Result<Vec<(DeviceNumber, PathBuf)>> {
    let io = |errno: Errno| Error::io("read", "/proc/self/mountinfo")(errno.into());
    let table = kernel.mount_table().map_err(io)?;
    Ok(parse_table(&table))
}

/// The same in the text of any process's `mountinfo`.
pub(super) fn parse_table(table: &[u8]) -> Vec<(DeviceNumber, PathBuf)> {
    table.split(|&byte| byte == b'\n').filter_map(parse).collect()
}

/// `36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw`: see proc_pid_mountinfo(5).
fn parse(line: &[u8]) -> Option<(DeviceNumber, PathBuf)> {
    let mut fields = line.split(|&byte| byte == b' ').skip(2);
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let number = DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? };
    // What else somebody bound from inside the file system is not its mount.
    fields.next().filter(|root| root == b"/")?;
    let target = unescape(fields.next()?);
    Some((number, OsString::from_vec(target).into()))
}

/// Blank, tab, newline and backslash appear as `\ooo`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let code = match (first, after) {
            (b'\\', digits) if digits.len() >= 3 => {
                std::str::from_utf8(&digits[..3]).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_manual() {
        let line = b"36 35 98:0 / /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let number = DeviceNumber { major: 98, minor: 0 };
        assert_eq!(parse(line), Some((number, PathBuf::from("/mnt 2"))));
        assert_eq!(parse(b"36 35 98:0 /inside /mnt rw,noatime - ext3 /dev/root rw"), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\134b\\011\\"), b"a\\b\t\\");
        assert_eq!(unescape(b"\\999"), b"\\999");
    }
}
