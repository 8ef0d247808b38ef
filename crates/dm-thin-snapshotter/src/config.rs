//! The configuration: a TOML file, or the arguments.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser};
use dm_thin::thin::ExtendRule;
use dm_thin::tree::{Filesystem, Options, PoolSource};
use dm_thin::units::Bytes;
use serde::{Deserialize, Deserializer, de};

/// How long a call waits for a device that is open: udev opens each for a moment after it was written to.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves containerd with snapshots of a thin pool.
#[derive(Debug, Parser)]
#[command(name = "dm-thin-snapshotter", version)]
pub struct Arguments {
    /// The configuration file; it replaces all other arguments but --log.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or as tracing-subscriber's EnvFilter has it.
    #[arg(long, default_value = "info")]
    pub log: String,
    /// The tree that is served.
    #[command(flatten)]
    pub tree: TreeConfig,
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tree: Vec<TreeConfig>,
}

/// A tree, and the socket that it is served on.
#[derive(Debug, Clone, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeConfig {
    /// Directory of the tree; made if it is missing.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/dm-thin-snapshotter")]
    pub root: PathBuf,
    /// Socket that containerd connects to.
    #[arg(long, value_name = "SOCKET", default_value = "/run/dm-thin/snapshotter.sock")]
    pub address: PathBuf,
    /// Use the thin pool of this name, which is active, instead of loop files in the directory.
    #[arg(long, value_name = "NAME", group = "source")]
    pub pool: Option<String>,
    /// Make the pool on this block device.
    #[arg(long, value_name = "DEVICE", group = "source")]
    pub device: Option<PathBuf>,
    /// Largest size of a pool in loop files, which are sparse: 100G, if it is not set.
    #[arg(long, value_name = "SIZE")]
    #[serde(default, deserialize_with = "size")]
    pub data_size: Option<Bytes>,
    /// Let the pool grow to this size, by a fifth whenever four fifths of it are in use: with loop files or a device.
    #[arg(long, value_name = "SIZE", conflicts_with = "pool")]
    #[serde(default, deserialize_with = "size")]
    pub max_data_size: Option<Bytes>,
    /// Size of its metadata.
    #[arg(long, value_name = "SIZE")]
    #[serde(default, deserialize_with = "size")]
    pub metadata_size: Option<Bytes>,
    /// Size of an empty file system, and so the least size of each snapshot: 10G, if it is not set.
    #[arg(long, value_name = "SIZE")]
    #[serde(default, deserialize_with = "size")]
    pub base_size: Option<Bytes>,
    /// ext4 or xfs: ext4, if it is not set.
    #[arg(long, value_name = "KIND", value_parser = filesystem)]
    #[serde(default, deserialize_with = "filesystem_of")]
    pub filesystem: Option<Filesystem>,
    /// Keep so many snapshots ready of each layer that several were made of lately, so that a container gets one at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    #[serde(default)]
    pub ready: usize,
    /// Deactivate at the end what nobody has open. Else all devices stay, and a restart takes them over.
    #[arg(long)]
    #[serde(default)]
    pub deactivate_on_exit: bool,
}

impl Arguments {
    /// The trees that are served.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn trees(&self) -> Result<Vec<TreeConfig>, String> {
        let Some(path) = &self.config else { return Ok(vec![self.tree.clone()]) };
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

pub(crate) fn parse(text: &str) -> Result<Vec<TreeConfig>, String> {
    let File { tree: trees } = toml::from_str(text).map_err(|error| error.to_string())?;
    if trees.is_empty() {
        return Err("no [[tree]]".to_owned());
    }
    for (number, tree) in trees.iter().enumerate() {
        let is_same = |other: &TreeConfig| other.root == tree.root || other.address == tree.address;
        if trees[..number].iter().any(is_same) {
            return Err(format!("two trees with root {:?} or address {:?}", tree.root, tree.address));
        }
        if tree.pool.is_some() && tree.device.is_some() {
            return Err(format!("{}: both pool and device", tree.root.display()));
        }
        if tree.pool.is_some() && tree.max_data_size.is_some() {
            return Err(format!("{}: a pool of others has no max_data_size", tree.root.display()));
        }
    }
    Ok(trees)
}

impl TreeConfig {
    /// The options that the tree is opened with.
    pub fn options(&self) -> Options {
        // Removing the last active thin device takes three times as long, and each commit removes a device.
        let mut options = Options::new().busy_timeout(BUSY_TIMEOUT).keep_one_active(true).lost_found(false);
        match (&self.pool, &self.device) {
            (Some(name), _) => options = options.pool_source(PoolSource::Pool { name: name.clone() }),
            (_, Some(path)) => options = options.pool_source(PoolSource::Device { path: path.clone() }),
            _ => {}
        }
        if let Some(size) = self.data_size {
            options = options.data_size(size);
        }
        if let Some(maximum) = self.max_data_size {
            options = options.auto_extend(ExtendRule { threshold: 80, step: 20, maximum });
        }
        if let Some(size) = self.metadata_size {
            options = options.metadata_size(size);
        }
        if let Some(size) = self.base_size {
            options = options.base_size(size);
        }
        if let Some(filesystem) = self.filesystem {
            options = options.filesystem(filesystem);
        }
        options
    }

    /// The directory of the socket.
    pub fn socket_directory(&self) -> Option<&Path> {
        self.address.parent().filter(|directory| !directory.as_os_str().is_empty())
    }
}

fn filesystem(name: &str) -> Result<Filesystem, String> {
    match name {
        "ext4" => Ok(Filesystem::Ext4),
        "xfs" => Ok(Filesystem::Xfs),
        _ => Err(format!("{name:?} is neither ext4 nor xfs")),
    }
}

fn filesystem_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Filesystem>, D::Error> {
    filesystem(&String::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_several_trees() {
        let trees = parse(
            r#"
            [[tree]]
            root = "/var/lib/fast"
            address = "/run/dm-thin/fast.sock"
            device = "/dev/nvme0n1"
            filesystem = "xfs"

            [[tree]]
            root = "/var/lib/large"
            address = "/run/dm-thin/large.sock"
            data_size = "2T"
            base_size = "20G"
            "#,
        )
        .unwrap();
        assert_eq!((trees[0].filesystem, trees[0].device.is_some()), (Some(Filesystem::Xfs), true));
        assert_eq!((trees[1].base_size, trees[1].deactivate_on_exit), (Some(Bytes::gib(20)), false));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let tree = "[[tree]]\nroot = \"/a\"\naddress = \"/a.sock\"\n";
        let error = |text: &str| parse(text).unwrap_err();
        assert!(error("").contains("no [[tree]]"));
        assert!(error(&format!("{tree}{tree}")).contains("two trees"));
        assert!(error(&format!("{tree}pool = \"p\"\ndevice = \"/dev/x\"")).contains("both"));
        assert!(error(&format!("{tree}pool = \"p\"\nmax_data_size = \"1T\"")).contains("of others"));
        assert!(error(&format!("{tree}filesystem = \"btrfs\"")).contains("neither"));
        assert!(error(&format!("{tree}base_size = \"ten\"")).contains("not a number"));
        assert!(error(&format!("{tree}basesize = \"10G\"")).contains("unknown field"));
    }

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["x", "--pool", "p", "--device", "/dev/x"]).is_err());
    }
}
