//! Images: files with the content of a snapshot's device, in and out.

use std::fs::File; // an open one, of the caller
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::tree::ops::changed::Compared;
use crate::tree::ops::writer::{PIECE, ZEROES};
use crate::tree::{AddOptions, Error, Result, SnapshotTree};
use crate::units::Bytes;

impl SnapshotTree {
    /// Makes a snapshot of an image: a raw disk, or a file system. It has `size`, rounded up to 4096 bytes, and no parent;
    /// what the image ends before is zeroes. Zeroes take no space, unless the pool does not zero its blocks: then all of
    /// the snapshot is written. The snapshot is there when all of it is, and durable then.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let tree = dm_thin::tree::SnapshotTree::open("/var/lib/example", Default::default())?;
    /// use dm_thin::units::Bytes;
    ///
    /// let image = std::fs::File::open("golden.raw")?;
    /// let size = Bytes(image.metadata()?.len());
    /// tree.import("golden", image, size, &Default::default())?;
    /// tree.seal("golden")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`create`](Self::create); [`Error::Io`] if the image cannot be read, [`Error::InvalidOption`] if it is longer
    /// than `size`. Nothing is left then.
    pub fn import(
        &self,
        id: impl AsRef<str>,
        mut image: impl Read,
        size: Bytes,
        options: &AddOptions,
    ) -> Result<()> {
        let rounded = Bytes(size.0.checked_next_multiple_of(4096).unwrap_or(u64::MAX));
        let writer = self.create(id, None, &options.clone().size(rounded))?;
        let zeroed = match self.check_zeroed(false) {
            Err(Error::NotZeroed { .. }) => false,
            result => result.map(|()| true)?,
        };
        let (mut piece, mut at) = (Vec::with_capacity(PIECE), 0);
        loop {
            piece.clear();
            let read = image.by_ref().take(PIECE as u64).read_to_end(&mut piece);
            let length = read.map_err(image_error("read"))? as u64;
            if length == 0 {
                // A block that is written in part shows what another snapshot had there.
                while !zeroed && at < rounded.0 {
                    let length = (rounded.0 - at).min(PIECE as u64);
                    writer.write_at(Bytes(at), &ZEROES[..usize::try_from(length).unwrap_or(PIECE)])?;
                    at += length;
                }
                return writer.commit();
            }
            if at + length > size.0 {
                let (option, value) = ("image size", size.to_string());
                return Err(Error::InvalidOption { option, value, reason: "the image is longer" });
            }
            if !zeroed || piece != ZEROES[..piece.len()] {
                writer.write_at(Bytes(at), &piece)?;
            }
            at += length;
        }
    }

    /// Writes the content of a sealed snapshot to a file, which is as large then: what was there before is gone, zeroes
    /// are holes. Only what is mapped in the pool is read. The file is synced.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`], [`Error::NotSealed`]; [`Error::NotZeroed`], as a stream; [`Error::Io`].
    pub fn export(&self, id: impl AsRef<str>, image: &File) -> Result<()> {
        self.check_zeroed(false)?;
        let reader = self.open_snapshot(id)?;
        let resized = image.set_len(0).and_then(|()| image.set_len(reader.size().0));
        resized.map_err(image_error("resize"))?;
        let mut piece = vec![0; PIECE];
        for range in self.differences(Compared::Nothing, reader.volume(), reader.size()) {
            let range = range?;
            for at in (range.offset.0..range.offset.0 + range.length.0).step_by(PIECE) {
                let length = range.offset.0 + range.length.0 - at;
                let piece = &mut piece[..usize::try_from(length).unwrap_or(PIECE).min(PIECE)];
                reader.read_at(Bytes(at), piece)?;
                if *piece != ZEROES[..piece.len()] {
                    image.write_all_at(piece, at).map_err(image_error("write"))?;
                }
            }
        }
        image.sync_all().map_err(image_error("sync"))
    }
}

/// Of a file whose name only the caller knows.
fn image_error(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, path: Path::new("the image").into(), source }
}
