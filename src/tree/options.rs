//! How a tree is made and opened.

use std::sync::Arc;
use std::time::Duration;

use crate::abi::mount::MountFlags;
use crate::dm::{DmName, UdevPolicy};
use crate::kernel::{Kernel, RealKernel};
use crate::thin::tools::CheckPolicy;
use crate::thin::{DeviceShares, ExtendRule, METADATA_MAX, MinFree, PoolFeatures, PoolTable, SpaceGuard};
use crate::tree::state::files::StateDir;
use crate::tree::state::filesystem::Filesystem;
use crate::tree::state::journal::{PoolRecord, State};
use crate::tree::state::size::check_size;
use crate::tree::{Error, Result};
use crate::tree::{InitLayer, PoolSource};
use crate::units::{Blocks, Bytes};

/// Options of a [`SnapshotTree`](crate::tree::SnapshotTree).
///
/// An option that is not set has its default when the tree is made, and the recorded value when the tree is opened
/// again. A value that conflicts with the recorded one is refused. Sizes are minima: an existing tree's data and base
/// grow to them, and stay as they are if they are larger.
///
/// ```
/// use dm_thin::thin::ExtendRule;
/// use dm_thin::tree::{Filesystem, Options, PoolSource};
/// use dm_thin::units::Bytes;
///
/// let options = Options::new()
///     .data_size(Bytes::gib(20))
///     .base_size(Bytes::gib(1))
///     .filesystem(Filesystem::Xfs)
///     .auto_extend(ExtendRule { threshold: 80, step: 20, maximum: Bytes::gib(200) });
/// // Or a disk of its own.
/// let device = PoolSource::Device { path: "/dev/disk/by-id/example".into() };
/// let options = Options::new().pool_source(device);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    pub(super) pool_source: Option<PoolSource>,
    pub(super) force_device: bool,
    pub(super) take_over_pool: bool,
    pub(super) accept_older_state: bool,
    pub(super) accept_older_pool: bool,
    data_size: Option<Bytes>,
    metadata_size: Option<Bytes>,
    base_size: Option<Bytes>,
    block_size: Option<Bytes>,
    low_water_mark: Option<Blocks>,
    features: Option<PoolFeatures>,
    filesystem: Option<Filesystem>,
    pub(crate) mkfs_args: Vec<String>,
    pub(super) lost_found: bool,
    pub(crate) mount_flags: MountFlags,
    pub(crate) mount_options: String,
    pub(super) name_prefix: String,
    pub(super) direct_io: bool,
    pub(super) busy_timeout: Duration,
    pub(super) deferred_removal: bool,
    pub(super) deferred_deletion: bool,
    pub(super) blkdiscard: Option<bool>,
    pub(super) check_metadata: CheckPolicy,
    pub(super) device_shares: Option<DeviceShares>,
    pub(super) auto_extend: Option<ExtendRule>,
    pub(super) min_free_data: MinFree,
    pub(super) min_free_metadata: MinFree,
    pub(super) xfs_nospace_max_retries: Option<u32>,
    pub(super) init_layer: InitLayer,
    pub(super) udev: UdevPolicy,
    pub(super) background_threads: bool,
    pub(super) keep_one_active: bool,
    pub(super) kernel: Arc<dyn Kernel>,
    /// Where the state is kept, if not in files of the root.
    pub(super) state_dir: Option<Arc<dyn StateDir>>,
    /// Bytes of journal that are worth a new checkpoint, if they outgrow a quarter of the last one.
    pub(super) checkpoint_at: Bytes,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pool_source: None,
            force_device: false,
            take_over_pool: false,
            accept_older_state: false,
            accept_older_pool: false,
            data_size: None,
            metadata_size: None,
            base_size: None,
            block_size: None,
            low_water_mark: None,
            features: None,
            filesystem: None,
            mkfs_args: Vec::new(),
            lost_found: true,
            mount_flags: MountFlags::empty(),
            mount_options: String::new(),
            name_prefix: "dm-thin".to_owned(),
            direct_io: true,
            busy_timeout: Duration::from_secs(5),
            deferred_removal: false,
            deferred_deletion: false,
            blkdiscard: None,
            check_metadata: CheckPolicy::Never,
            device_shares: None,
            auto_extend: None,
            min_free_data: MinFree::Percent(10),
            min_free_metadata: MinFree::Percent(10),
            xfs_nospace_max_retries: None,
            init_layer: InitLayer::default(),
            udev: UdevPolicy::Auto,
            background_threads: true,
            keep_one_active: false,
            kernel: Arc::new(RealKernel),
            state_dir: None,
            checkpoint_at: Bytes::kib(256),
        }
    }
}

const DATA_SIZE: Bytes = Bytes::gib(100);

const METADATA_MIN: Bytes = Bytes::mib(2);

pub(super) const BASE_SIZE: Bytes = Bytes::gib(10);

const BLOCK_SIZE: Bytes = Bytes::kib(64);

const LOW_WATER_MARK: Blocks = Blocks(32_768);

/// LVM's rule: 64 bytes for each data block.
fn default_metadata_size(data: Bytes, block_size: Bytes) -> Bytes {
    let size = data.0.div_ceil(block_size.0).saturating_mul(64);
    let size = size.clamp(Bytes::mib(16).0, METADATA_MAX.bytes().0);
    Bytes(size.next_multiple_of(4096))
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty => $value:expr;)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $type) -> Self { self.$name = $value; self })*
    };
}

impl Options {
    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Where the pool comes from. Default: loop files. It cannot be changed later.
        pool_source: PoolSource => Some(pool_source);
        /// Overwrites what the devices of [`PoolSource::Device`] or [`PoolSource::Devices`] contain when the tree is
        /// made. Default false: [`thin::Error::DeviceInUse`](crate::thin::Error::DeviceInUse) unless their first and
        /// last 4 MiB are zero.
        force_device: bool => force_device;
        /// Take over the tree's pool though another root activated it, whose device and inode numbers its name carries:
        /// for a root that was copied to another place while its pool stayed active. The old root must not be used any
        /// more. Default false: [`Error::OtherRoot`].
        take_over_pool: bool => take_over_pool;
        /// Open a tree whose state is older than its pool, as one restored from a backup is. Default false: refused.
        /// Nothing is deleted then: volumes that the state does not know are kept as orphans, which
        /// [`check`](crate::tree::SnapshotTree::check) lists. What the state lists and the pool has no more is lost.
        accept_older_state: bool => accept_older_state;
        /// Open a tree whose pool is older than its state, as one restored from a backup is. Default false: refused.
        /// Nothing is deleted then, as with [`accept_older_state`](Self::accept_older_state). Snapshots that the pool
        /// does not have are lost, and [`check`](crate::tree::SnapshotTree::check) lists them.
        accept_older_pool: bool => accept_older_pool;
        /// Least size of the sparse data file. Default 100 GiB. An existing tree's pool becomes that large.
        data_size: Bytes => Some(data_size);
        /// Least size of the metadata file, which is allocated when it is made: 2 MiB to 15.875 GiB. Default: 64 bytes
        /// for each data block, at least 16 MiB. More than an existing tree was made with is refused.
        metadata_size: Bytes => Some(metadata_size);
        /// Size of the base volume and, if nothing else is said, of every snapshot: with XFS at least 300 MiB. Default
        /// 10 GiB.
        base_size: Bytes => Some(base_size);
        /// Size of the pool's data blocks: a multiple of 64 KiB up to 1 GiB. Default 64 KiB.
        block_size: Bytes => Some(block_size);
        /// Free data blocks below which the kernel raises an event. Default 32768, at most a fifth of all.
        low_water_mark: Blocks => Some(low_water_mark);
        /// Features of the pool. By default new blocks are zeroed, discards are passed down and writes
        /// without space wait.
        features: PoolFeatures => Some(features);
        /// File system of the base. Default ext4.
        filesystem: Filesystem => Some(filesystem);
        /// Further arguments for mkfs.
        mkfs_args: Vec<String> => mkfs_args;
        /// Whether a new ext4 base has the directory `lost+found`, as mkfs makes it. Default true. With false it
        /// is removed, through a mount, when the base is made: container images have none.
        lost_found: bool => lost_found;
        /// Flags for every mount.
        mount_flags: MountFlags => mount_flags;
        /// Options for every mount, as in `mount -o`, but without those that are flags. XFS always gets
        /// `nouuid`, ext4 `errors=remount-ro`, whatever its superblock says, unless another `errors=` follows.
        mount_options: String => mount_options;
        /// Begin of all device names: 1 to 16 bytes. Default `dm-thin`.
        name_prefix: String => name_prefix;
        /// Bypass the page cache between the loop devices and their files, where the file system can.
        /// Default true.
        direct_io: bool => direct_io;
        /// How long to wait for a busy device before giving up. Default 5 seconds.
        busy_timeout: Duration => busy_timeout;
        /// Whether [`unmount`](crate::tree::SnapshotTree::unmount) leaves a device that is still open elsewhere to the
        /// kernel, which removes it when it is closed. Default false: unmount waits, then fails.
        deferred_removal: bool => deferred_removal;
        /// Whether [`remove`](crate::tree::SnapshotTree::remove) takes a snapshot that is still open elsewhere out of
        /// the tree, to be deleted when it is closed. Default false: remove waits, then fails.
        deferred_deletion: bool => deferred_deletion;
        /// Whether the blocks of a removed snapshot are discarded, so that a loop file shrinks; it costs an
        /// activation. Default: on loop files, unless the pool keeps discards to itself.
        blkdiscard: bool => Some(blkdiscard);
        /// Whether the pool's metadata is checked by `thin_check` before [`open`](crate::tree::SnapshotTree::open)
        /// activates the pool. Default never. A pool that is active already is taken as it is.
        check_metadata: CheckPolicy => check_metadata;
        /// How much of a labelled device ([`PoolSource::Device`]) the pool gets when it is made. Default: all of it, the
        /// metadata by rule. What is left is for [`auto_extend`](Self::auto_extend) and
        /// [`grow_pool`](crate::tree::SnapshotTree::grow_pool).
        device_shares: DeviceShares => Some(device_shares);
        /// When, by how much and how far the data of a pool on loop files or on a labelled device is made larger, and
        /// with the same percentages the metadata: never, if not set. It is done by
        /// [`open`](crate::tree::SnapshotTree::open), and by whoever iterates over
        /// [`watch`](crate::tree::SnapshotTree::watch). No more is promised than the file system below, or the device,
        /// has left.
        ///
        /// The threshold is the pool's low water mark then.
        auto_extend: ExtendRule => Some(auto_extend);
        /// Data space that must be free in the pool before a snapshot is made. Default 10 percent; 0 is none.
        ///
        /// See [`SpaceGuard`] for how little that costs, and what it may miss: a second of writes, or those before the
        /// first snapshot after them.
        min_free_data: MinFree => min_free_data;
        /// The same for metadata.
        min_free_metadata: MinFree => min_free_metadata;
        /// How often XFS retries a metadata write that found no space, before it shuts the file system down.
        /// Default: for ever, as the kernel does. 0 lets a full pool be an error instead of a hang.
        xfs_nospace_max_retries: u32 => Some(xfs_nospace_max_retries);
        /// What must exist in the file system of each snapshot when it is mounted for the first time.
        init_layer: InitLayer => init_layer;
        /// Whether to wait for udev. Default: where it runs.
        udev: UdevPolicy => udev;
        /// Whether the tree has two threads of its own. One makes the record of a new snapshot durable while the pool makes
        /// its volume. The other writes checkpoints, makes ready snapshots and deletes the volumes of removed
        /// ones, for half of its time as long as few are
        /// left. Default: true. Without them the calls do all of that themselves, and
        /// [`refill_ready`](crate::tree::SnapshotTree::refill_ready) makes ready snapshots.
        background_threads: bool => background_threads;
        /// Keep one thin volume active, an empty one of one block that the tree makes for that and deletes when it is closed:
        /// removing the last active thin device of a machine takes some three times as long as removing one beside
        /// others. A [ready snapshot](crate::tree::SnapshotTree::keep_ready) does the same. Default false.
        keep_one_active: bool => keep_one_active;
        /// The kernel to use instead of the real one.
        kernel: Arc<dyn Kernel> => kernel;
    }

    #[cfg(feature = "model")]
    setters! {
        /// Keep the state somewhere else than in files of the root: for tests of crashes and full disks.
        state_dir: Arc<dyn StateDir> => Some(state_dir);
        /// Write a checkpoint when the journal has outgrown this and a quarter of the last checkpoint.
        checkpoint_at: Bytes => checkpoint_at;
    }

    /// State and pool may be from different points in time: a volume without a record may be the only copy of its data.
    pub(super) fn keeps_all(&self) -> bool {
        self.accept_older_state || self.accept_older_pool
    }

    /// Checks that do not depend on an existing tree.
    pub(super) fn check(&self) -> Result<()> {
        if self.name_prefix.len() > 16 {
            return Err(invalid("name prefix", &self.name_prefix, "longer than 16 bytes"));
        }
        DmName::new(&self.name_prefix)?;
        self.init_layer.check()?;
        let sizes = [
            ("data size", self.data_size),
            ("metadata size", self.metadata_size),
            ("base size", self.base_size),
        ];
        for (option, size) in sizes {
            check_size(option, size.unwrap_or(Bytes::kib(4)))?;
        }
        if let Some(size) = self.metadata_size.filter(|size| !METADATA_RANGE.contains(size)) {
            return Err(invalid("metadata size", size, "not between 2 MiB and 15.875 GiB"));
        }
        if let Some(size) = self.block_size {
            if !size.is_whole_sectors() {
                return Err(invalid("block size", size, "not a multiple of 512"));
            }
            crate::thin::check_block_size(size.sectors())?;
        }
        if let Some(shares) = self.device_shares {
            shares.check()?;
            if !matches!(self.pool_source, None | Some(PoolSource::Device { .. })) {
                let reason = "the pool is not on a labelled device";
                return Err(invalid("device shares", format!("{shares:?}"), reason));
            }
        }
        if self.pool_source.as_ref().is_some_and(|source| *source != PoolSource::LoopFiles) {
            let given = [("data size", self.data_size), ("metadata size", self.metadata_size)];
            if let Some((option, size)) = given.into_iter().find_map(|(option, size)| Some((option, size?))) {
                let reason = "the pool is not on loop files, its devices have their sizes";
                return Err(invalid(option, size, reason));
            }
        }
        self.check_extension()?;
        let block_size = self.block_size.unwrap_or(BLOCK_SIZE);
        if let Some(size) = self.data_size.filter(|size| *size < block_size) {
            return Err(invalid("data size", size, "less than one block"));
        }
        Ok(())
    }

    /// Checks for a tree that is to be made.
    pub(super) fn check_new(&self) -> Result<()> {
        let size = self.new_base_size();
        let is_allowed = self.mkfs_args.iter().any(|argument| argument == "--unsupported");
        if self.new_filesystem() == Filesystem::Xfs && size < XFS_MIN && !is_allowed {
            return Err(invalid("base size", size, "mkfs.xfs makes no file system below 300 MiB"));
        }
        Ok(())
    }

    fn check_extension(&self) -> Result<()> {
        let Some(rule) = self.auto_extend else { return Ok(()) };
        rule.check()?;
        if self.pool_source.as_ref().is_some_and(|source| !source.can_grow()) {
            let reason = "the pool is neither on loop files nor on a labelled device";
            return Err(invalid("extension maximum", rule.maximum, reason));
        }
        self.data_size.map_or(Ok(()), |size| self.check_maximum(size))?;
        match self.min_free_data {
            MinFree::Percent(free) if rule.threshold.saturating_add(free) > 100 => {
                let reason =
                    "leaves less than must be free: snapshots are refused before the pool is extended";
                Err(invalid("extension threshold", rule.threshold, reason))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a pool can have the sizes asked for.
    pub(super) fn check_maximum(&self, data_size: Bytes) -> Result<()> {
        match self.auto_extend {
            Some(rule) if rule.maximum < data_size => {
                Err(invalid("extension maximum", rule.maximum, "less than the data size"))
            }
            _ => Ok(()),
        }
    }

    /// The pool of a new tree.
    pub(super) fn new_pool(&self) -> PoolRecord {
        let data_size = self.data_size.unwrap_or(DATA_SIZE);
        let block_size = self.block_size.unwrap_or(BLOCK_SIZE);
        PoolRecord {
            data_size,
            metadata_size: self.metadata_size.unwrap_or_else(|| default_metadata_size(data_size, block_size)),
            block_size,
            low_water_mark: self.new_low_water_mark(data_size, block_size),
            features: self.features.unwrap_or_default(),
            made: false,
            source: self.pool_source.clone().unwrap_or_default(),
            adopted: None,
            label: None,
            devices: None,
        }
    }

    /// The space guard that the options ask for.
    pub(super) fn guard(&self) -> SpaceGuard {
        let asked = |free: MinFree| !matches!(free, MinFree::Percent(0) | MinFree::Bytes(Bytes(0)));
        let mut guard = SpaceGuard::new();
        if asked(self.min_free_data) {
            guard = guard.data(self.min_free_data);
        }
        if asked(self.min_free_metadata) {
            guard = guard.metadata(self.min_free_metadata);
        }
        guard
    }

    /// The low water mark of a new pool of that size.
    pub(super) fn new_low_water_mark(&self, data_size: Bytes, block_size: Bytes) -> Blocks {
        let fifth = Blocks(data_size.0 / block_size.0 / 5);
        self.low_water_mark.unwrap_or(LOW_WATER_MARK.min(fifth))
    }

    /// Refuses options that conflict with a pool to be adopted.
    pub(super) fn check_adopted(&self, pool: &PoolTable) -> Result<()> {
        conflict("block size", self.block_size, pool.block_size.bytes())?;
        conflict("low water mark", self.low_water_mark, pool.low_water_mark)?;
        self.check_features(pool.features)
    }

    fn check_features(&self, recorded: PoolFeatures) -> Result<()> {
        match self.features.filter(|asked| *asked != recorded) {
            Some(asked) => Err(conflicting("features", format!("{recorded:?}"), format!("{asked:?}"))),
            None => Ok(()),
        }
    }

    /// The file system of a new tree.
    pub(super) fn new_filesystem(&self) -> Filesystem {
        self.filesystem.unwrap_or_default()
    }

    /// The size of a new base.
    pub(super) fn new_base_size(&self) -> Bytes {
        self.base_size.unwrap_or(BASE_SIZE)
    }

    /// Refuses options that conflict with an existing tree.
    pub(super) fn check_against(&self, state: &State) -> Result<()> {
        let pool = &state.pool;
        if let Some(asked) = self.pool_source.as_ref().filter(|asked| **asked != pool.source) {
            return Err(conflicting("pool", format!("{:?}", pool.source), format!("{asked:?}")));
        }
        if self.auto_extend.is_some() && !pool.source.can_grow() {
            let asked = format!("{:?}", PoolSource::LoopFiles);
            return Err(conflicting("pool", format!("{:?}", pool.source), asked));
        }
        // Sizes are minima; the data and the base grow to them.
        conflict(
            "metadata size",
            self.metadata_size.filter(|asked| *asked > pool.metadata_size),
            pool.metadata_size,
        )?;
        conflict("block size", self.block_size, pool.block_size)?;
        conflict("low water mark", self.low_water_mark, pool.low_water_mark)?;
        self.check_features(pool.features)?;
        if let Some(asked) = self.filesystem.filter(|asked| *asked != state.filesystem) {
            return Err(conflicting("file system", format!("{:?}", state.filesystem), format!("{asked:?}")));
        }
        Ok(())
    }

    /// The data size that the pool of an existing tree should grow to.
    pub(super) fn wanted_data_size(&self, state: &State) -> Option<Bytes> {
        self.data_size.filter(|asked| *asked > state.pool.data_size)
    }

    /// The base size that an existing tree should grow to.
    pub(super) fn wanted_base_size(&self) -> Option<Bytes> {
        self.base_size
    }
}

/// The smallest file system that mkfs.xfs makes (since xfsprogs 5.19), unless its argument is `--unsupported`.
const XFS_MIN: Bytes = Bytes::mib(300);

const METADATA_RANGE: std::ops::RangeInclusive<Bytes> = METADATA_MIN..=METADATA_MAX.bytes();

fn invalid(option: &'static str, value: impl ToString, reason: &'static str) -> Error {
    Error::InvalidOption { option, value: value.to_string(), reason }
}

fn conflict<T: PartialEq + ToString>(option: &'static str, asked: Option<T>, recorded: T) -> Result<()> {
    match asked {
        Some(asked) if asked != recorded => Err(conflicting(option, recorded.to_string(), asked.to_string())),
        _ => Ok(()),
    }
}

fn conflicting(option: &'static str, recorded: String, asked: String) -> Error {
    Error::OptionConflict { option, recorded, asked }
}
