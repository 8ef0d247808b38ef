//! What copies are made of.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::contender::{PART, part_name};
use crate::{Result, run};

#[derive(Clone, Copy)]
pub struct Base {
    pub name: &'static str,
    pub size: u64,
    pub content: Content,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Content {
    /// A file system.
    Ext4,
    /// That many bytes from the start, written in one go.
    Fresh(u64),
    /// That many pieces of 16 KiB, evenly spread, no two of them adjacent: an extent each.
    Fragmented(u64),
}

const PIECE: usize = 16 << 10;

pub const EXT4: Base = Base { name: "64 MiB ext4", size: 64 << 20, content: Content::Ext4 };
pub const SMALL_FRESH: Base =
    Base { name: "64 MiB fresh", size: 64 << 20, content: Content::Fresh(64 << 20) };
pub const SMALL_FRAGMENTED: Base =
    Base { name: "64 MiB, 1,024 extents", size: 64 << 20, content: Content::Fragmented(1024) };
pub const LARGE_FRESH: Base = Base { name: "4 GiB fresh", size: 4 << 30, content: Content::Fresh(256 << 20) };
pub const LARGE_FRAGMENTED: Base =
    Base { name: "4 GiB, 8,192 extents", size: 4 << 30, content: Content::Fragmented(8192) };

impl Base {
    /// The bytes from the start among which copies are written to.
    pub fn written(&self) -> u64 {
        match self.content {
            Content::Fresh(bytes) => bytes,
            Content::Ext4 | Content::Fragmented(_) => self.size,
        }
    }

    /// Fills a block device, or a file that is as large.
    pub fn fill(&self, path: &Path) -> Result<()> {
        if self.content == Content::Ext4 {
            // As the tree does it, so that the file systems are alike.
            let zeroing = ["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"];
            let prezeroed = ["-q", "-F", "-E", "nodiscard,assume_storage_prezeroed=1"];
            return run(Command::new("mkfs.ext4").args(prezeroed).arg(path))
                .or_else(|_| run(Command::new("mkfs.ext4").args(zeroing).arg(path)));
        }
        let file = File::options().write(true).open(path)?;
        let bytes = pattern();
        self.pieces().try_for_each(|(offset, length)| file.write_all_at(&bytes[..length], offset))?;
        Ok(file.sync_all()?)
    }

    /// A file with the content.
    pub fn make_file(&self, path: &Path) -> Result<()> {
        File::create_new(path)?.set_len(self.size)?;
        self.fill(path)
    }

    /// A directory with the content, in files of [`PART`] bytes.
    pub fn make_directory(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path)?;
        for part in 0..self.written().div_ceil(PART) {
            File::create_new(path.join(part_name(part)))?.set_len(PART)?;
        }
        let bytes = pattern();
        for (offset, length) in self.pieces() {
            let file = File::options().write(true).open(path.join(part_name(offset / PART)))?;
            file.write_all_at(&bytes[..length], offset % PART)?;
        }
        Ok(rustix::fs::syncfs(File::open(path)?)?)
    }

    /// Offsets and lengths of what is written.
    fn pieces(&self) -> impl Iterator<Item = (u64, usize)> {
        let (count, length, every) = match self.content {
            Content::Ext4 => (0, 0, 0),
            Content::Fresh(bytes) => (bytes / PART, PART as usize, PART),
            Content::Fragmented(count) => (count, PIECE, self.size / count),
        };
        (0..count).map(move |index| (index * every, length))
    }
}

/// The longest piece.
fn pattern() -> Vec<u8> {
    (0..PART).map(|at| (at ^ at >> 8) as u8 | 1).collect()
}
