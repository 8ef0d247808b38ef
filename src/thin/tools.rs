//! `thin_check` and `thin_repair` of the package thin-provisioning-tools, for pools that are not active.
//!
//! `thin_ls`, for those that are, is behind [`ThinPool::thin_devices`](super::ThinPool::thin_devices).

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use super::TransactionId;
use super::metadata::{DeviceBlocks, MetadataError, Superblock};
use crate::kernel::{DeviceNumber, Kernel, RealKernel};
use crate::thin::{Error, Result};
use crate::units::{Blocks, Sectors};

const PACKAGE: &str = "thin-provisioning-tools";

/// Checks the metadata on a device that no pool uses.
///
/// # Errors
/// [`Error::ToolMissing`]; [`Error::Tool`] with what it found wrong.
pub fn thin_check(metadata: &Path) -> Result<()> {
    thin_check_with(&RealKernel, metadata)
}

fn thin_check_with(kernel: &dyn Kernel, metadata: &Path) -> Result<()> {
    run(kernel, "thin_check", metadata, &[metadata.as_ref()])
}

/// The same, and if it is sound clear the flag `needs_check`, so that the pool will be writable again.
///
/// # Errors
/// As [`thin_check`].
pub fn clear_needs_check(metadata: &Path) -> Result<()> {
    clear_needs_check_with(&RealKernel, metadata)
}

pub(crate) fn clear_needs_check_with(kernel: &dyn Kernel, metadata: &Path) -> Result<()> {
    let arguments = ["--clear-needs-check-flag".as_ref(), metadata.as_ref()];
    run(kernel, "thin_check", metadata, &arguments)
}

/// Whether a pool's metadata is checked before the pool is activated. That reads all of the metadata in use; the kernel
/// by itself notices damage only where it comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CheckPolicy {
    /// It is not.
    #[default]
    Never,
    /// It is where `thin_check` is installed.
    IfPresent,
    /// It is, and without `thin_check` nothing is activated.
    Required,
}

impl CheckPolicy {
    /// [`thin_check`] as far as this asks for it. Metadata that begins with 4 KiB of zeroes passes: the kernel will
    /// format it. Nothing is written.
    ///
    /// # Errors
    /// As [`thin_check`].
    pub fn check(self, metadata: &Path) -> Result<()> {
        self.check_with(&(Arc::new(RealKernel) as _), metadata)
    }

    pub(crate) fn check_with(self, kernel: &Arc<dyn Kernel>, metadata: &Path) -> Result<()> {
        if self == Self::Never || is_unformatted(kernel, metadata)? {
            return Ok(());
        }
        match thin_check_with(&**kernel, metadata) {
            Err(Error::ToolMissing { .. }) if self == Self::IfPresent => Ok(()),
            result => result,
        }
    }
}

/// Whether the metadata was never formatted: its superblock is zeroes. A damaged one is thin_check's to report.
fn is_unformatted(kernel: &Arc<dyn Kernel>, metadata: &Path) -> Result<bool> {
    let superblock = match DeviceBlocks::open(kernel.clone(), metadata, false) {
        // An image.
        Err(error) if error.raw_os_error() == Some(libc::ENOTBLK) => {
            Superblock::read(&kernel.files().open_path(metadata).map_err(Error::io("open", metadata))?)
        }
        blocks => Superblock::read(&blocks.map_err(Error::io("open", metadata))?),
    };
    match superblock {
        Ok(superblock) => Ok(superblock.is_none()),
        Err(error @ MetadataError::Io { .. }) => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// What only the superblock contains, for a repair where that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SuperblockOverrides {
    /// The transaction id.
    pub transaction_id: TransactionId,
    /// The size of a data block.
    pub block_size: Sectors,
    /// How many there are.
    pub data_blocks: Blocks,
}

/// Writes to `spare` what can be saved of `damaged`: the metadata of a pool that is not active, which is
/// only read. The pool is then activated with `spare` for its metadata; what `spare` held is lost. Where the
/// superblock is damaged, `facts` are needed.
///
/// # Errors
/// [`Error::ToolMissing`]; [`Error::Tool`] if nothing can be saved, or `spare` is too small;
/// [`Error::InvalidOption`] if they are the same.
pub fn thin_repair(damaged: &Path, spare: &Path, facts: Option<&SuperblockOverrides>) -> Result<()> {
    thin_repair_with(&RealKernel, damaged, spare, facts)
}

pub(crate) fn thin_repair_with(
    kernel: &dyn Kernel,
    damaged: &Path,
    spare: &Path,
    facts: Option<&SuperblockOverrides>,
) -> Result<()> {
    if damaged == spare || same_device(kernel, damaged, spare) {
        let (option, value) = ("spare metadata", spare.display().to_string());
        return Err(Error::InvalidOption { option, value, reason: "is the device to be repaired" });
    }
    let facts = facts.map(|facts| {
        [
            format!("--transaction-id={}", facts.transaction_id),
            format!("--data-block-size={}", facts.block_size.0),
            format!("--nr-data-blocks={}", facts.data_blocks.0),
        ]
    });
    let mut arguments: Vec<&OsStr> = facts.iter().flatten().map(OsStr::new).collect();
    arguments.extend(["-i".as_ref(), damaged.as_os_str(), "-o".as_ref(), spare.as_os_str()]);
    run(kernel, "thin_repair", damaged, &arguments)
}

fn same_device(kernel: &dyn Kernel, one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| match kernel.block_device(path) {
        Ok(number) => Some((number, 0)),
        // An image.
        Err(_) => {
            let file = kernel.files().open_path(path).ok()?;
            kernel.files().file_status(file.as_fd()).ok().map(|status| (status.device, status.inode))
        }
    };
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

fn run(kernel: &dyn Kernel, program: &'static str, device: &Path, arguments: &[&OsStr]) -> Result<()> {
    let output = kernel.run(program, arguments).map_err(|errno| match errno {
        Errno::ENOENT => Error::ToolMissing { program, package: PACKAGE },
        errno => Error::io("run", program)(errno),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    // The end says what went wrong.
    let tail = &said[said.len().saturating_sub(1000)..];
    Err(Error::Tool {
        program,
        device: device.display().to_string(),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(tail).trim().to_owned(),
    })
}

/// The node of a block device, by the name that the kernel gave it.
pub(crate) fn node(kernel: &dyn Kernel, number: DeviceNumber) -> PathBuf {
    kernel.device_node(number).unwrap_or_else(|_| format!("/dev/block/{number}").into())
}
