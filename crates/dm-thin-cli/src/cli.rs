//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dm_thin::units::Bytes;
use uuid::Uuid;

use crate::docker::DockerCommand;

const GLOBAL: &str = "Options of every verb";

/// Trees of thin snapshots.
///
/// Commands that only look (trees, ls, tree, df, info, which, holders, events, dump, doctor) take no lock and work beside the program that
/// has the tree open; beside it, `check` compares what it can without the lock. All others need the lock for a moment.
///
/// Exit status: 0 done; 1 failed; 2 not understood; 3 busy, or another program has the tree open; 4 no space. `check`: 0
/// nothing found, 1 what `repair` corrects, 2 what it does not.
#[derive(Debug, Parser)]
#[command(name = "dm-thin", version, max_term_width = 100)]
pub struct Cli {
    /// The directory of the tree
    #[arg(long, global = true, help_heading = GLOBAL, env = "DM_THIN_ROOT", hide_env_values = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The tree, by its UUID: it has to be active
    #[arg(long, global = true, help_heading = GLOBAL, conflicts_with = "root")]
    pub tree: Option<Uuid>,
    #[command(flatten)]
    pub format: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Format {
    /// JSON, for programs: a versioned object; amounts are bytes
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// Amounts in bytes
    #[arg(long, short = 'b', global = true, help_heading = GLOBAL)]
    pub bytes: bool,
    /// Without header, separated by tabs
    #[arg(long, short = 'H', global = true, help_heading = GLOBAL)]
    pub no_header: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Every tree on this machine that is active
    Trees,
    /// The snapshots of the tree
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// The snapshots, drawn below their parents
    Tree,
    /// Space: data, metadata, the file system below
    Df,
    /// All that is known of a snapshot
    Info { id: String },
    /// The tree and the snapshot that a device belongs to
    Which {
        /// /dev/dm-3, /dev/mapper/…, or 254:3
        device: String,
    },
    /// Who has a snapshot open, in every mount namespace
    Holders { id: String },
    /// Compares the tree with the kernel and the pool
    Check,
    /// Corrects what `check` finds
    Repair(Destroys),
    /// Makes a tree
    Init(Init),
    /// Adds a snapshot, of the base unless --of names a parent
    Add(Add),
    /// Removes snapshots
    Rm {
        #[arg(required = true)]
        ids: Vec<String>,
        /// Refuse what has children
        #[arg(long)]
        no_children: bool,
        #[command(flatten)]
        destroys: Destroys,
    },
    /// Renames a snapshot
    Mv { id: String, to: String },
    /// Shows or changes labels: KEY=VALUE sets one, KEY= removes it
    Label { id: String, changes: Vec<String> },
    /// Seals a snapshot under another id
    Commit {
        id: String,
        to: String,
        /// Labels, KEY=VALUE
        #[arg(long = "label", short)]
        labels: Vec<String>,
    },
    /// Seals a snapshot: its content is final
    Seal { id: String },
    /// Makes a sealed snapshot writable again
    Unseal { id: String },
    /// Mounts a snapshot
    Mount {
        id: String,
        target: PathBuf,
        /// Read-only
        #[arg(long, short)]
        read_only: bool,
        /// Options of the file system, as of mount -o
        #[arg(long, short)]
        options: Option<String>,
    },
    /// Unmounts a snapshot
    #[command(visible_alias = "unmount")]
    Umount { id: String },
    /// Activates a snapshot, and prints the path of its device
    Activate {
        id: String,
        /// Read-only
        #[arg(long, short)]
        read_only: bool,
    },
    /// Deactivates a snapshot
    Deactivate { id: String },
    /// Makes a snapshot, its device and its file system larger
    Resize { id: String, size: Bytes },
    /// Makes the pool larger: in all so much data
    GrowPool { size: Bytes },
    /// Keeps so many snapshots of a sealed parent, or of the base, ready
    Ready {
        /// 0: none any more
        count: usize,
        /// The parent; without it the base
        #[arg(long)]
        of: Option<String>,
    },
    /// Gives the pool what the file system of a snapshot does not use
    Trim { id: String },
    /// What differs between two sealed snapshots
    Diff { from: String, to: String },
    /// Writes a sealed snapshot to standard output
    Send {
        id: String,
        /// Only what has changed since that snapshot
        #[arg(long)]
        since: Option<String>,
        /// With all that descends from it
        #[arg(long, conflicts_with = "since")]
        recursive: bool,
        /// Say how much it would be
        #[arg(long, short = 'n', conflicts_with = "recursive")]
        dry_run: bool,
    },
    /// Reads what `send` wrote from standard input
    Receive {
        /// The id of a single snapshot; without it that which it had
        id: Option<String>,
    },
    /// Makes a snapshot of a raw image
    Import {
        id: String,
        image: PathBuf,
        /// The size; without it the image's
        #[arg(long)]
        size: Option<Bytes>,
    },
    /// Writes a sealed snapshot to a raw image
    Export { id: String, image: PathBuf },
    /// Events of the pool as they come, one line of JSON each, until the pool is gone
    Events,
    /// The state: checkpoint and journal, merged, as JSON
    Dump,
    /// Repairs damaged metadata of the pool: see `--restore`
    RepairMetadata {
        /// Take the last replacement back
        #[arg(long, conflicts_with = "dry_run")]
        restore: bool,
        #[command(flatten)]
        destroys: Destroys,
    },
    /// What this machine lacks, and what died on it, with the commands that mend it
    Doctor,
    /// Reads the directory of Docker's devicemapper storage driver
    #[command(subcommand)]
    Docker(DockerCommand),
    /// Deactivates everything, and the pool
    Close,
}

#[derive(Debug, Args)]
pub struct Destroys {
    /// Only say what would be done
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct Ls {
    /// Times, thin device ids and labels, too
    #[arg(long, short)]
    pub long: bool,
    /// What removing each would free, too: needs the lock, and reads the pool's metadata
    #[arg(long, short = 'x')]
    pub exclusive: bool,
    /// Only those with that label
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Option<String>,
    #[arg(long, value_enum, default_value_t = Sort::Id)]
    pub sort: Sort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    Id,
    Age,
    Size,
}

#[derive(Debug, Args)]
pub struct Add {
    /// The new snapshot's id
    pub id: String,
    /// The parent
    #[arg(long, value_name = "ID")]
    pub of: Option<String>,
    /// At least the parent's size
    #[arg(long)]
    pub size: Option<Bytes>,
    /// Labels, KEY=VALUE
    #[arg(long = "label", short)]
    pub labels: Vec<String>,
    /// Of a mounted parent: do not freeze it; as after a power cut
    #[arg(long)]
    pub crash_consistent: bool,
    /// Activate it, too, and print the path of its device
    #[arg(long, short)]
    pub activate: bool,
}

#[derive(Debug, Args)]
pub struct Init {
    /// Of the pool
    #[arg(long)]
    pub data_size: Option<Bytes>,
    #[arg(long)]
    pub metadata_size: Option<Bytes>,
    /// Of each snapshot
    #[arg(long)]
    pub base_size: Option<Bytes>,
    /// ext4, xfs or none
    #[arg(long)]
    pub filesystem: Option<String>,
    /// A whole device, that gets a label; without it loop files in the directory of the tree
    #[arg(long, conflicts_with_all = ["data", "metadata", "data_size", "metadata_size"])]
    pub device: Option<PathBuf>,
    /// A device for the data
    #[arg(long, requires = "metadata")]
    pub data: Option<PathBuf>,
    /// A device for the metadata
    #[arg(long, requires = "data")]
    pub metadata: Option<PathBuf>,
}
