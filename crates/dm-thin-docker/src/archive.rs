//! A directory tree as a tar archive.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Writes the directory `rootfs` of a mounted device as a tar archive, as `docker export` does: names are relative to
/// it, and entries are in the order of their names. Owners are numbers. Hard links, device nodes, FIFOs, and the extended
/// attributes `security.capability` and `user.*` are kept; sockets are left out. Returns the number of entries.
///
/// Nothing may change below `mount` meanwhile.
///
/// # Errors
/// [`io::ErrorKind::NotADirectory`] if there is no such directory; those of reading and of `writer`.
pub fn tar_rootfs(mount: impl AsRef<Path>, writer: impl Write) -> io::Result<u64> {
    let root = mount.as_ref().join("rootfs");
    // A symbolic link could lead out of the device.
    if !root.symlink_metadata().is_ok_and(|status| status.is_dir()) {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut archive = Archive { builder: Builder::new(writer), links: HashMap::new() };
    let (mut pending, mut entries) = (names(&root, Path::new(""))?, 0);
    while let Some(name) = pending.pop() {
        let path = root.join(&name);
        let status = path.symlink_metadata()?;
        entries += u64::from(archive.append(&path, &name, &status)?);
        if status.is_dir() {
            pending.extend(names(&root, &name)?);
        }
    }
    archive.builder.into_inner()?.flush()?;
    Ok(entries)
}

/// The entries of a directory, the last one first.
fn names(root: &Path, directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root.join(directory))?;
    let mut names =
        entries.map(|entry| Ok(directory.join(entry?.file_name()))).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable_by(|left, right| right.cmp(left));
    Ok(names)
}

struct Archive<W: Write> {
    builder: Builder<W>,
    /// The first name of each file that has several, by its inode.
    links: HashMap<u64, PathBuf>,
}

impl<W: Write> Archive<W> {
    /// Whether it was something that an archive can have.
    fn append(&mut self, path: &Path, name: &Path, status: &Metadata) -> io::Result<bool> {
        let kind = status.file_type();
        let mut header = Header::new_gnu();
        header.set_mode(status.mode() & 0o7777);
        header.set_uid(status.uid().into());
        header.set_gid(status.gid().into());
        header.set_mtime(u64::try_from(status.mtime()).unwrap_or(0));
        header.set_size(0);
        if kind.is_socket() {
            return Ok(false);
        }
        if status.nlink() > 1 && !kind.is_dir() {
            if let Some(first) = self.links.get(&status.ino()) {
                header.set_entry_type(EntryType::Link);
                self.builder.append_link(&mut header, name, first)?;
                return Ok(true);
            }
            self.links.insert(status.ino(), name.to_owned());
        }
        self.append_attributes(path)?;
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(status.len());
            let content = Exact { file: File::open(path)?, left: status.len() };
            self.builder.append_data(&mut header, name, content)?;
            return Ok(true);
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            self.builder.append_link(&mut header, name, fs::read_link(path)?)?;
            return Ok(true);
        }
        if kind.is_char_device() || kind.is_block_device() {
            header.set_device_major(major(status.rdev()))?;
            header.set_device_minor(minor(status.rdev()))?;
        }
        header.set_entry_type(match () {
            () if kind.is_dir() => EntryType::Directory,
            () if kind.is_fifo() => EntryType::Fifo,
            () if kind.is_char_device() => EntryType::Char,
            () => EntryType::Block,
        });
        self.builder.append_data(&mut header, name, io::empty())?;
        Ok(true)
    }

    fn append_attributes(&mut self, path: &Path) -> io::Result<()> {
        let mut records = Vec::new();
        let attributes = match xattr::list(path) {
            Ok(attributes) => attributes,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
            Err(error) => return Err(error),
        };
        for name in attributes {
            let is_kept = |name: &&str| *name == "security.capability" || name.starts_with("user.");
            let Some(key) = OsStr::to_str(&name).filter(is_kept) else { continue };
            if let Some(value) = xattr::get(path, key)? {
                records.push((format!("SCHILY.xattr.{key}"), value));
            }
        }
        records.sort_unstable();
        if records.is_empty() {
            return Ok(());
        }
        self.builder
            .append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
    }
}

/// The kernel's split of a 64-bit device number.
#[allow(clippy::cast_possible_truncation)] // masked
const fn major(device: u64) -> u32 {
    ((device >> 8 & 0xfff) | (device >> 32 & 0xffff_f000)) as u32
}

#[allow(clippy::cast_possible_truncation)] // masked
const fn minor(device: u64) -> u32 {
    ((device & 0xff) | (device >> 12 & 0xffff_ff00)) as u32
}

/// A file with as many bytes as its header says: an archive with fewer would be damaged.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read(&mut buffer[..limit])?;
        if read == 0 && limit > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}
