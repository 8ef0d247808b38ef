//! Which tree a command is about, and where the trees of this machine are.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dm_thin::dm::{DeviceMapper, DmName};
use dm_thin::kernel::{DeviceNumber, Kernel, Links, RealKernel};
use dm_thin::thin::ThinPool;
use dm_thin::tree::{Options, ReadOnlyTree, SnapshotInfo, SnapshotTree};
use uuid::Uuid;

use crate::cli::Cli;
use crate::failure::{Failure, Result};

/// A tree whose pool is active.
#[derive(Debug)]
pub struct ActiveTree {
    pub uuid: Uuid,
    pub pool: DmName,
    /// Unless nothing leads there.
    pub root: Option<PathBuf>,
}

/// The directory of the tree that a command is about.
pub fn root(cli: &Cli) -> Result<PathBuf> {
    let hint = "name it by --root DIR or DM_THIN_ROOT; `dm-thin trees` shows those that are active";
    match (&cli.root, cli.tree) {
        (Some(root), _) => Ok(root.clone()),
        (None, Some(uuid)) => {
            let dm = Arc::new(DeviceMapper::open()?);
            let found = trees(&dm)?.into_iter().find(|tree| tree.uuid == uuid);
            let found = found.ok_or_else(|| Failure::new(format!("no active tree {uuid}")).hint(hint))?;
            found
                .root
                .ok_or_else(|| Failure::new(format!("tree {uuid}: its directory is not known")).hint(hint))
        }
        (None, None) => Err(Failure::usage("which tree?").hint(hint)),
    }
}

/// Looks at a tree without its lock.
pub fn look(root: &Path) -> Result<ReadOnlyTree> {
    check_tree(root)?;
    Ok(SnapshotTree::open_read_only(root, &Options::new())?)
}

/// A snapshot of a tree that was looked at.
pub fn find(tree: &ReadOnlyTree, id: &str) -> Result<SnapshotInfo> {
    let unknown = || dm_thin::tree::Error::UnknownSnapshot { id: id.to_owned() };
    Ok(tree.get(id).ok_or_else(unknown)?)
}

/// The pool of a tree that was looked at.
pub fn pool(tree: &ReadOnlyTree) -> Result<ThinPool> {
    let inactive =
        || Failure::new("the pool is not active").hint("any command that changes something activates it");
    let (name, _) = tree.pool().ok_or_else(inactive)?;
    Ok(ThinPool::open(Arc::new(DeviceMapper::open()?), name)?)
}

/// Opens a tree that is there. What is active stays active when it is dropped.
pub fn open(root: &Path) -> Result<SnapshotTree> {
    check_tree(root)?;
    Ok(SnapshotTree::open(root, Options::new().background_threads(false))?)
}

pub fn check_tree(root: &Path) -> Result<()> {
    match fs::metadata(root.join("state.json")) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = format!("there is no tree in {}", root.display());
            Err(Failure::new(text).hint("`dm-thin init` makes one"))
        }
        Err(error) => {
            let failure = Failure::new(format!("{}: {error}", root.display()));
            Err(match error.kind() {
                std::io::ErrorKind::PermissionDenied => failure.hint("run it as root"),
                _ => failure,
            })
        }
    }
}

/// The trees of this machine that are active.
pub fn trees(dm: &Arc<DeviceMapper>) -> Result<Vec<ActiveTree>> {
    let mut found = Vec::new();
    for device in dm.list()? {
        let uuid = device.uuid.map(|uuid| uuid.to_string()).unwrap_or_default();
        if let Some((uuid, "pool")) = parse_uuid(&uuid) {
            found.push(ActiveTree { uuid, pool: device.name, root: find_root(dm, &device.name) });
        }
    }
    Ok(found)
}

/// A tree's uuid, and what a device is in it, from the uuid of the device.
pub fn parse_uuid(uuid: &str) -> Option<(Uuid, &str)> {
    let (tree, what) = uuid.strip_prefix("DMTHIN-")?.split_once('-')?;
    Some((Uuid::parse_str(tree).ok()?, what))
}

fn find_root(dm: &Arc<DeviceMapper>, pool: &DmName) -> Option<PathBuf> {
    let (device, inode) = parse_name(&pool.to_string())?;
    let files = RealKernel.files();
    let is_it = |path: &Path| {
        let status = files.open_directory(path, Links::All).and_then(|root| files.file_status(root.as_fd()));
        status.is_ok_and(|it| (it.device, it.inode) == (device, inode))
    };
    // Below the files of the pool, or by what its manager has open.
    let metadata = ThinPool::open(dm.clone(), pool).and_then(|pool| pool.table()).ok()?.0.metadata;
    let below = fs::read_to_string(format!("/sys/dev/block/{metadata}/loop/backing_file")).ok();
    let below = below.and_then(|file| Some(Path::new(file.trim_end()).ancestors().nth(2)?.to_owned()));
    below.filter(|path| is_it(path)).or_else(|| {
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let pid = locks.lines().find_map(|line| holder(line, device, inode))?;
        let links = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        links.filter_map(|link| fs::read_link(link.ok()?.path()).ok()).find(|path| is_it(path))
    })
}

/// Device and inode of the root, from the name of its pool: `<prefix>-<major>:<minor>-<inode>-pool`.
fn parse_name(pool: &str) -> Option<(DeviceNumber, u64)> {
    let mut parts = pool.strip_suffix("-pool")?.rsplit('-');
    let inode = parts.next()?.parse().ok()?;
    Some((parts.next()?.parse().ok()?, inode))
}

/// The process that has the lock, from a line of /proc/locks: `1: FLOCK ADVISORY WRITE 233 fe:01:786433 0 EOF`.
fn holder(line: &str, device: DeviceNumber, inode: u64) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let pid = words.nth(2)?.parse().ok()?;
    let mut file = words.next()?.split(':');
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let found = DeviceNumber { major: number(file.next()?)?, minor: number(file.next()?)? };
    (found == device && file.next()?.parse() == Ok(inode)).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_tells_its_root() {
        let number = DeviceNumber { major: 254, minor: 1 };
        assert_eq!(parse_name("dm-thin-254:1-786433-pool"), Some((number, 786_433)));
        assert_eq!(parse_name("my-own-prefix-254:1-786433-pool"), Some((number, 786_433)));
        assert_eq!(parse_name("dm-thin-254:1-786433-vm"), None);
        assert_eq!(holder("1: FLOCK  ADVISORY  WRITE 233 fe:01:786433 0 EOF", number, 786_433), Some(233));
        assert_eq!(holder("1: POSIX  ADVISORY  WRITE 233 fe:01:786433 0 EOF", number, 786_433), None);
        assert_eq!(holder("1: FLOCK  ADVISORY  WRITE 233 fe:02:786433 0 EOF", number, 786_433), None);
        let uuid = Uuid::from_u128(7);
        assert_eq!(parse_uuid(&format!("DMTHIN-{}-12", uuid.simple())), Some((uuid, "12")));
        assert_eq!(parse_uuid("LVM-abc"), None);
    }
}
