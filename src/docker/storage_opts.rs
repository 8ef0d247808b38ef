//! Options as text: the `dm.*` storage options of moby's devicemapper driver.

use crate::abi::mount::MountFlags;
use crate::dm::DmName;
use crate::thin::{DeviceShares, ExtendRule, MinFree};
use crate::tree::{Error, Result};
use crate::tree::{Filesystem, Options, PoolSource};
use crate::units::Bytes;

impl Options {
    /// Options from `key=value` texts, with the keys and defaults of Docker's `--storage-opt`.
    ///
    /// ```
    /// # use dm_thin::tree::Options;
    /// let options = Options::from_storage_opts(["dm.basesize=20G", "dm.fs=xfs", "dm.mountopt=noatime,discard"])?;
    /// # Ok::<(), dm_thin::tree::Error>(())
    /// ```
    ///
    /// | key | value |
    /// |---|---|
    /// | `dm.basesize`, `dm.loopdatasize`, `dm.loopmetadatasize`, `dm.blocksize` | a size: `20G`, `512m`, `1.5g`, bytes |
    /// | `dm.fs` | `ext4`, `xfs` |
    /// | `dm.mkfsarg` | one argument; repeatable |
    /// | `dm.mountopt` | as after `mount -o`; repeatable |
    /// | `dm.datadev` and `dm.metadatadev` | two block devices |
    /// | `dm.thinpooldev` | an active pool, with or without `/dev/mapper/` |
    /// | `dm.blkdiscard`, `dm.use_deferred_removal`, `dm.use_deferred_deletion` | a truth value |
    /// | `dm.min_free_space` | `10%` of data and metadata, or a size, for the data only; 0 for neither |
    /// | `dm.xfs_nospace_max_retries` | a number |
    /// | `dm.override_udev_sync_check` | a truth value; there is no such check to override |
    /// | `dm.directlvm_device` | an absolute path: one device for the pool, here behind a label, not in a volume group |
    /// | `dm.directlvm_device_force` | a truth value |
    /// | `dm.thinp_percent`, `dm.thinp_metapercent` | percent of the device at first: 95 and 1, if not given |
    /// | `dm.thinp_autoextend_threshold`, `dm.thinp_autoextend_percent` | percent: 80 and 20, if not given; a threshold of 100 is never |
    ///
    /// `dm.libdm_log_level` has no meaning here: it is refused with what replaces it.
    ///
    /// # Errors
    /// [`Error::StorageOption`] names the option and the reason.
    pub fn from_storage_opts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self> {
        let mut options = Self::new();
        let (mut data, mut metadata, mut pool, mut device) = (None, None, None, None);
        let (mut shares, mut rule) = (None, None);
        for text in texts {
            let text = text.as_ref();
            let (key, value) =
                text.split_once('=').ok_or_else(|| refused(text, "not of the form key=value"))?;
            let key = key.trim();
            let value = value.trim();
            let wrong = |reason| refused(text, reason);
            let size = || value.parse::<Bytes>().map_err(|_| wrong("not a size such as 20G, 512m or 4096"));
            let truth = || truth(value).ok_or_else(|| wrong("neither true nor false"));
            let percent = || match value.parse::<u8>() {
                Ok(percent @ 1..=100) => Ok(percent),
                _ => Err(wrong("not from 1 to 100 percent")),
            };
            let path = || match value {
                path if path.starts_with('/') => Ok(path.to_owned()),
                _ => Err(wrong("not an absolute path")),
            };
            options = match key {
                "dm.basesize" => options.base_size(size()?),
                "dm.loopdatasize" => options.data_size(size()?),
                "dm.loopmetadatasize" => options.metadata_size(size()?),
                "dm.blocksize" => options.block_size(size()?),
                "dm.fs" => options.filesystem(match value {
                    "ext4" => Filesystem::Ext4,
                    "xfs" => Filesystem::Xfs,
                    _ => return Err(wrong("neither ext4 nor xfs")),
                }),
                "dm.mkfsarg" => {
                    options.mkfs_args.push(value.to_owned());
                    options
                }
                "dm.mountopt" => mount_options(options, value),
                "dm.blkdiscard" => options.blkdiscard(truth()?),
                "dm.use_deferred_removal" => options.deferred_removal(truth()?),
                "dm.use_deferred_deletion" => options.deferred_deletion(truth()?),
                "dm.min_free_space" => match value.strip_suffix('%') {
                    Some(percent) => match percent.parse() {
                        Ok(percent @ 0..=100) => {
                            let free = MinFree::Percent(percent);
                            options.min_free_data(free).min_free_metadata(free)
                        }
                        _ => return Err(wrong("not a percentage")),
                    },
                    None if size()? == Bytes(0) => {
                        options.min_free_data(MinFree::Percent(0)).min_free_metadata(MinFree::Percent(0))
                    }
                    None => options.min_free_data(MinFree::Bytes(size()?)),
                },
                "dm.override_udev_sync_check" => truth().map(|_| options)?,
                "dm.xfs_nospace_max_retries" => {
                    options.xfs_nospace_max_retries(value.parse().map_err(|_| wrong("not a number"))?)
                }
                "dm.directlvm_device" => {
                    device = Some(path()?);
                    options
                }
                "dm.directlvm_device_force" => options.force_device(truth()?),
                "dm.thinp_percent" => {
                    shares.get_or_insert(LVM_SHARES).data = percent()?;
                    options
                }
                "dm.thinp_metapercent" => {
                    shares.get_or_insert(LVM_SHARES).metadata = percent()?;
                    options
                }
                "dm.thinp_autoextend_threshold" => {
                    rule.get_or_insert(LVM_RULE).threshold = percent()?;
                    options
                }
                "dm.thinp_autoextend_percent" => {
                    rule.get_or_insert(LVM_RULE).step = percent()?;
                    options
                }
                "dm.datadev" | "dm.metadatadev" | "dm.thinpooldev" => {
                    match key {
                        "dm.datadev" => data = Some(path()?),
                        "dm.metadatadev" => metadata = Some(path()?),
                        _ => {
                            let name = value.strip_prefix("/dev/mapper/").unwrap_or(value);
                            DmName::new(name).map_err(|_| wrong("not the name of a device"))?;
                            pool = Some(name.to_owned());
                        }
                    }
                    options
                }
                _ => return Err(wrong(reason(key))),
            };
        }
        if let Some(path) = device {
            if data.is_some() || metadata.is_some() || pool.is_some() {
                let reason = "excludes dm.datadev, dm.metadatadev and dm.thinpooldev";
                return Err(refused("dm.directlvm_device", reason));
            }
            let shares = shares.unwrap_or(LVM_SHARES);
            shares
                .check()
                .map_err(|_| refused("dm.thinp_percent", "more than 100 with dm.thinp_metapercent"))?;
            let options = options.pool_source(PoolSource::Device { path: path.into() }).device_shares(shares);
            return Ok(match rule.unwrap_or(LVM_RULE) {
                // As in lvm.conf, 100 is never.
                ExtendRule { threshold: 100.., .. } => options,
                rule => options.auto_extend(rule),
            });
        }
        if shares.is_some() || rule.is_some() {
            return Err(refused("dm.thinp_percent and its kin", "need dm.directlvm_device"));
        }
        let source = match (data, metadata, pool) {
            (None, None, None) => return Ok(options),
            (Some(data), Some(metadata), None) => {
                PoolSource::Devices { data: data.into(), metadata: metadata.into() }
            }
            (None, None, Some(name)) => PoolSource::Pool { name },
            (_, _, Some(_)) => {
                return Err(refused("dm.thinpooldev", "excludes dm.datadev and dm.metadatadev"));
            }
            (_, None, _) => return Err(refused("dm.datadev", "needs dm.metadatadev, too")),
            (None, ..) => return Err(refused("dm.metadatadev", "needs dm.datadev, too")),
        };
        Ok(options.pool_source(source))
    }
}

/// What the driver gave to LVM.
const LVM_SHARES: DeviceShares = DeviceShares { data: 95, metadata: 1 };
const LVM_RULE: ExtendRule = ExtendRule { threshold: 80, step: 20, maximum: Bytes(u64::MAX) };

/// Why a key is refused.
fn reason(key: &str) -> &'static str {
    match key {
        "dm.libdm_log_level" => "libdevmapper is not used; errors say what its log would",
        _ => "unknown option",
    }
}

fn refused(option: &str, reason: &'static str) -> Error {
    Error::StorageOption { option: option.to_owned(), reason }
}

/// As Go's `strconv.ParseBool`.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Tells the words that are flags of mount(2) from those for the file system.
fn mount_options(mut options: Options, words: &str) -> Options {
    for word in words.split(',').filter(|word| !word.is_empty()) {
        let (flag, on) = match word {
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "async" => (MountFlags::SYNCHRONOUS, false),
            "dirsync" => (MountFlags::DIRSYNC, true),
            "noatime" => (MountFlags::NOATIME, true),
            "atime" => (MountFlags::NOATIME, false),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "diratime" => (MountFlags::NODIRATIME, false),
            "relatime" => (MountFlags::RELATIME, true),
            "norelatime" => (MountFlags::RELATIME, false),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "nostrictatime" => (MountFlags::STRICTATIME, false),
            "lazytime" => (MountFlags::LAZYTIME, true),
            "nolazytime" => (MountFlags::LAZYTIME, false),
            "defaults" => continue,
            word => {
                if !options.mount_options.is_empty() {
                    options.mount_options.push(',');
                }
                options.mount_options.push_str(word);
                continue;
            }
        };
        options.mount_flags.set(flag, on);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Options {
        Options::from_storage_opts(texts).unwrap_or_else(|error| panic!("{texts:?}: {error}"))
    }

    /// All of an option's effect.
    fn shown(options: &Options) -> String {
        format!("{options:?}")
    }

    #[test]
    fn each_option_is_the_setter_of_its_name() {
        let new = Options::new;
        let devices = PoolSource::Devices { data: "/dev/a".into(), metadata: "/dev/b".into() };
        let direct =
            || new().pool_source(PoolSource::Device { path: "/dev/a".into() }).device_shares(LVM_SHARES);
        for (texts, same) in [
            (&["dm.basesize=20G"][..], new().base_size(Bytes::gib(20))),
            (&["dm.basesize=1.5g"], new().base_size(Bytes::mib(1536))),
            (&["dm.loopdatasize=200GB"], new().data_size(Bytes::gib(200))),
            (&["dm.loopmetadatasize=4096m"], new().metadata_size(Bytes::gib(4))),
            (&["dm.blocksize=65536"], new().block_size(Bytes::kib(64))),
            (&["dm.fs=xfs"], new().filesystem(Filesystem::Xfs)),
            (&["dm.fs=ext4"], new().filesystem(Filesystem::Ext4)),
            (&["dm.mkfsarg=-O", "dm.mkfsarg=^has_journal"], {
                new().mkfs_args(vec!["-O".to_owned(), "^has_journal".to_owned()])
            }),
            (&["dm.mountopt=noatime,discard,ro", "dm.mountopt=rw,data=ordered"], {
                new().mount_flags(MountFlags::NOATIME).mount_options("discard,data=ordered".to_owned())
            }),
            (&["dm.datadev=/dev/a", "dm.metadatadev=/dev/b"], new().pool_source(devices)),
            (&["dm.thinpooldev=/dev/mapper/p"], new().pool_source(PoolSource::Pool { name: "p".to_owned() })),
            (&["dm.thinpooldev=p"], new().pool_source(PoolSource::Pool { name: "p".to_owned() })),
            (&["dm.directlvm_device=/dev/a"], direct().auto_extend(LVM_RULE)),
            (&["dm.directlvm_device=/dev/a", "dm.thinp_autoextend_threshold=100"], direct()),
            (&["dm.blkdiscard=false"], new().blkdiscard(false)),
            (&["dm.use_deferred_removal=true"], new().deferred_removal(true)),
            (&["dm.use_deferred_deletion=T"], new().deferred_deletion(true)),
            (&["dm.xfs_nospace_max_retries=0"], new().xfs_nospace_max_retries(0)),
            (&["dm.min_free_space=5%"], {
                new().min_free_data(MinFree::Percent(5)).min_free_metadata(MinFree::Percent(5))
            }),
            (&["dm.min_free_space=0"], {
                new().min_free_data(MinFree::Percent(0)).min_free_metadata(MinFree::Percent(0))
            }),
            (&["dm.min_free_space=2g"], new().min_free_data(MinFree::Bytes(Bytes::gib(2)))),
            (&["dm.override_udev_sync_check=true"], new()),
            (&[], new()),
        ] {
            assert_eq!(shown(&of(texts)), shown(&same), "{texts:?}");
        }
    }

    #[test]
    fn what_is_refused_says_why() {
        let reason = |text: &str| Options::from_storage_opts([text]).unwrap_err().to_string();
        assert_eq!(reason("dm.nonsense=1"), "storage option dm.nonsense=1: unknown option");
        assert_eq!(reason("basesize"), "storage option basesize: not of the form key=value");
        for (text, why) in [
            ("dm.directlvm_device=sdb", "absolute"),
            ("dm.thinp_percent=95", "need dm.directlvm_device"),
            ("dm.thinp_metapercent=101", "not from 1 to 100"),
            ("dm.thinp_autoextend_threshold=0", "not from 1 to 100"),
            ("dm.libdm_log_level=3", "libdevmapper"),
            ("dm.thinpooldev=", "not the name of a device"),
            ("dm.thinpooldev=/dev/mapper/", "not the name of a device"),
            ("dm.thinpooldev=/dev/vg/pool", "not the name of a device"),
            ("dm.fs=btrfs", "neither ext4 nor xfs"),
            ("dm.basesize=much", "not a size"),
            ("dm.basesize=-1", "not a size"),
            ("dm.min_free_space=101%", "percentage"),
            ("dm.blkdiscard=maybe", "neither true nor false"),
            ("dm.xfs_nospace_max_retries=-1", "not a number"),
            ("dm.datadev=/dev/a", "needs dm.metadatadev"),
            ("dm.metadatadev=/dev/a", "needs dm.datadev"),
            ("dm.datadev=a", "absolute"),
        ] {
            assert!(reason(text).contains(why), "{}", reason(text));
        }
        let much = ["dm.directlvm_device=/dev/a", "dm.thinp_percent=99", "dm.thinp_metapercent=2"];
        assert!(Options::from_storage_opts(much).unwrap_err().to_string().contains("more than 100"));
        let both = ["dm.directlvm_device=/dev/a", "dm.datadev=/dev/a", "dm.metadatadev=/dev/b"];
        assert!(Options::from_storage_opts(both).unwrap_err().to_string().contains("excludes"));
        let both = ["dm.thinpooldev=p", "dm.datadev=/dev/a", "dm.metadatadev=/dev/b"];
        assert!(Options::from_storage_opts(both).is_err());
    }
}
