//! Whether a block device is free to be overwritten: the places where labels, partition tables and superblocks are
//! have to be zero. No table of signatures is complete, so what is there is named only for people, by `blkid`.

use std::ffi::OsStr;
use std::path::Path;

use zerocopy::IntoBytes;

use super::label::{COPIES, MAGIC};
use crate::abi::block::BLKGETSIZE64;
use crate::kernel::{Arg, DeviceFile, Kernel};
use crate::thin::metadata::format::{BLOCK_SIZE, THIN_SUPERBLOCK_MAGIC};
use crate::thin::{Error, Result};
use crate::units::Bytes;

/// How much of a device's beginning and of its end has to be zero.
const EDGE: u64 = Bytes::mib(4).0;
const PIECE: usize = 1 << 20;

/// The size of a block device; `path` is what errors call it.
pub(crate) fn size_of(kernel: &dyn Kernel, file: &DeviceFile, path: &Path) -> Result<Bytes> {
    let mut size = 0u64;
    match kernel.ioctl(file, BLKGETSIZE64, Arg::Bytes(size.as_mut_bytes())) {
        Ok(_) => Ok(Bytes(size)),
        Err(errno) => Err(Error::io("get the size of", path)(errno)),
    }
}

/// Checks that the first and the last 4 MiB of a device are zero; of a smaller one, all of it.
///
/// # Errors
/// [`Error::DeviceInUse`] if they are not.
pub(crate) fn check_blank(kernel: &dyn Kernel, file: &DeviceFile, path: &Path) -> Result<()> {
    let zeroes = vec![0; PIECE];
    check_edges(kernel, file, path, |_, found| *found == zeroes[..found.len()])
}

/// The same, but the kernel may have formatted metadata there, or have begun to: each of its blocks contains its own
/// number.
pub(crate) fn check_unused_metadata(kernel: &dyn Kernel, file: &DeviceFile, path: &Path) -> Result<()> {
    check_edges(kernel, file, path, |at, found| {
        let blocks = (at..).step_by(BLOCK_SIZE).zip(found.chunks(BLOCK_SIZE));
        blocks.into_iter().all(|(at, block)| {
            let has_its_number = at.is_multiple_of(BLOCK_SIZE as u64)
                && block.get(8..16) == Some(&(at / BLOCK_SIZE as u64).to_le_bytes());
            let is_superblock = at > 0 || block.get(32..40) == Some(&THIN_SUPERBLOCK_MAGIC.to_le_bytes());
            block.iter().all(|byte| *byte == 0) || has_its_number && is_superblock
        })
    })
}

fn check_edges(
    kernel: &dyn Kernel,
    file: &DeviceFile,
    path: &Path,
    is_free: impl Fn(u64, &[u8]) -> bool,
) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    for (at, len) in pieces(size_of(kernel, file, path)?) {
        let found = &mut buffer[..len];
        read_exact(kernel, file, at, found).map_err(Error::io("read", path))?;
        if !is_free(at, found) {
            return Err(Error::DeviceInUse { device: path.into(), found: describe(kernel, file, path) });
        }
    }
    Ok(())
}

/// Overwrites with zeroes what [`check_blank`] looks at, the beginning last: a label of this crate names the device
/// until the rest is done.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn wipe(kernel: &dyn Kernel, file: &DeviceFile, path: &Path) -> Result<()> {
    let zeroes = vec![0; PIECE];
    let pieces: Vec<_> = pieces(size_of(kernel, file, path)?).collect();
    for (at, len) in pieces.into_iter().rev() {
        write_all(kernel, file, at, &zeroes[..len]).map_err(Error::io("write", path))?;
    }
    kernel.sync(file).map_err(|errno| Error::io("sync", path)(errno))
}

/// Offset and length of the pieces of the two edges, in the device's order.
fn pieces(size: Bytes) -> impl Iterator<Item = (u64, usize)> {
    let size = size.0;
    let head = if size <= 2 * EDGE { 0..size } else { 0..EDGE };
    let tail = head.end.max(size.saturating_sub(EDGE))..size;
    [head, tail].into_iter().flat_map(|edge| {
        let end = edge.end;
        edge.step_by(PIECE).map(move |at| (at, usize::try_from(end - at).map_or(PIECE, |len| len.min(PIECE))))
    })
}

pub(crate) fn read_exact(
    kernel: &dyn Kernel,
    file: &DeviceFile,
    at: u64,
    buffer: &mut [u8],
) -> std::io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match kernel.read_at(file, at + done as u64, &mut buffer[done..])? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(())
}

pub(crate) fn write_all(
    kernel: &dyn Kernel,
    file: &DeviceFile,
    at: u64,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match kernel.write_at(file, at + done as u64, &bytes[done..])? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            written => done += written,
        }
    }
    Ok(())
}

/// What is on a device, for an error message. A name that cannot be found out does not make the device free.
fn describe(kernel: &dyn Kernel, file: &DeviceFile, path: &Path) -> String {
    let has_label = |at| {
        let mut magic = [0; MAGIC.len()];
        read_exact(kernel, file, at, &mut magic).is_ok() && magic == *MAGIC
    };
    if COPIES.into_iter().any(has_label) {
        return "a dm-thin label".to_owned();
    }
    let query = ["-p", "-o", "export", "-s", "USAGE", "-s", "TYPE", "-s", "PTTYPE"];
    let arguments: Vec<_> = query.iter().map(OsStr::new).chain([path.as_os_str()]).collect();
    let output = kernel.run("blkid", &arguments);
    let known = output.ok().and_then(|output| name(&String::from_utf8_lossy(&output.stdout)));
    known.unwrap_or_else(|| "data that is not zero".to_owned())
}

/// The name of what `blkid -p -o export` found.
fn name(export: &str) -> Option<String> {
    let value = |key: &str| export.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let (what, kind) = match (value("TYPE"), value("PTTYPE")) {
        (Some(what), _) if value("USAGE") == Some("filesystem") => (what, "file system"),
        (Some(what), _) => (what, "signature"),
        (None, Some(what)) => (what, "partition table"),
        (None, None) => return None,
    };
    let article = if what.starts_with(['a', 'e', 'i', 'o', 'x']) { "an" } else { "a" };
    Some(format!("{article} {what} {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_are_covered_once() {
        for mib in [1, 7, 8, 9, 100] {
            // Not a whole number of pieces.
            let size = Bytes(Bytes::mib(mib).0 + 512);
            let mut covered = vec![0u8; usize::try_from(size.0).unwrap()];
            for (at, len) in pieces(size) {
                let at = usize::try_from(at).unwrap();
                covered[at..at + len].iter_mut().for_each(|byte| *byte += 1);
            }
            let edge = 4 << 20;
            let inner = if mib < 8 { 0 } else { covered.len() - 2 * edge };
            assert!(covered[..covered.len().min(edge)].iter().all(|&n| n == 1), "{mib} MiB");
            assert!(covered[covered.len().saturating_sub(edge)..].iter().all(|&n| n == 1), "{mib} MiB");
            assert_eq!(covered.iter().filter(|&&n| n == 0).count(), inner, "{mib} MiB");
        }
    }

    #[test]
    fn blkid_names_what_is_there() {
        let ext4 = "DEVNAME=/dev/vdb\nTYPE=ext4\nUSAGE=filesystem\n";
        assert_eq!(name(ext4).unwrap(), "an ext4 file system");
        assert_eq!(name("TYPE=swap\nUSAGE=other\n").unwrap(), "a swap signature");
        assert_eq!(name("PTTYPE=gpt\n").unwrap(), "a gpt partition table");
        assert_eq!(name(""), None);
    }
}
