//! Where file systems are mounted: `/proc/<pid>/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::kernel::{DeviceNumber, Kernel, MountId};
use crate::tree::{Error, Result};

pub(in crate::tree) fn is_listed(kernel: &dyn Kernel, mount: MountId) -> Result<bool> {
    Ok(mounts(kernel)?.iter().any(|line| line.is(mount)))
}

/// A line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tree) struct MountLine {
    pub(in crate::tree) id: u64,
    pub(in crate::tree) device: DeviceNumber,
    pub(in crate::tree) target: PathBuf,
}

impl MountLine {
    /// Whether it is that mount.
    pub(in crate::tree) fn is(&self, mount: MountId) -> bool {
        (self.id, self.device) == (mount.id, mount.device)
    }

    pub(in crate::tree) fn mount_id(&self) -> MountId {
        MountId { id: self.id, unique: None, device: self.device }
    }
}

/// Where each device is mounted in this mount namespace, in the order of the mounts.
pub(in crate::tree) fn mounts(kernel: &dyn Kernel) -> Result<Vec<MountLine>> {
    // What errors call it; the kernel in use reads it.
    let io = |errno: Errno| Error::io("read", "/proc/self/mountinfo")(errno);
    let table = kernel.mount_table().map_err(io)?;
    Ok(parse_table(&table))
}

/// The same in the text of any process's `mountinfo`.
pub(in crate::tree) fn parse_table(table: &[u8]) -> Vec<MountLine> {
    table.split(|&byte| byte == b'\n').filter_map(parse).collect()
}

/// `36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw`: see proc_pid_mountinfo(5).
fn parse(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
    // A bind mount of a directory inside the file system is not its mount.
    fields.next().filter(|root| root == b"/")?;
    let target = OsString::from_vec(unescape(fields.next()?)).into();
    Some(MountLine { id, device, target })
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
        let device = DeviceNumber { major: 98, minor: 0 };
        assert_eq!(parse(line), Some(MountLine { id: 36, device, target: PathBuf::from("/mnt 2") }));
        assert_eq!(parse(b"36 35 98:0 /inside /mnt rw,noatime - ext3 /dev/root rw"), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\134b\\011\\"), b"a\\b\t\\");
        assert_eq!(unescape(b"\\999"), b"\\999");
    }
}
