//! What errors tell on a real kernel: who is in the way, and what became of what was there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dm_thin::kernel::{Kernel, RealKernel};
use dm_thin::thin;
use dm_thin::thin::{NoSpace, PoolFeatures, PoolMode, ThinId};
use dm_thin::tree::Error;
use dm_thin::tree::{Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;

use crate::bench::{Bench, small};
use crate::rig::{name, uuid};

/// A process that is killed when this is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn new(command: &mut Command) -> Self {
        let sleeper = Self(command.arg("1000").spawn().unwrap());
        // Only then it has its name.
        while comm(sleeper.pid()) != "sleep" {
            std::thread::sleep(Duration::from_millis(1));
        }
        sleeper
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn sleep() -> Command {
    Command::new("sleep")
}

fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim_end().to_owned()
}

fn file_name(device: &Path) -> &str {
    device.file_name().unwrap().to_str().unwrap()
}

fn open(bench: &Bench, options: Options) -> SnapshotTree {
    SnapshotTree::open(bench.root(), options.busy_timeout(Duration::from_millis(50))).unwrap()
}

#[test]
fn the_manager_in_another_process_is_named() {
    const ROOT: &str = "DM_THIN_TEST_ROOT";
    if let Some(root) = std::env::var_os(ROOT) {
        let tree = SnapshotTree::open(root, small()).unwrap();
        eprintln!("open");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        return tree.close().unwrap();
    }
    let bench = Bench::new();
    let this = "messages::the_manager_in_another_process_is_named";
    let mut other = Command::new(std::env::current_exe().unwrap());
    let other = other.args(["--exact", this, "--nocapture"]).env(ROOT, bench.root());
    let mut other = other.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(other.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "open"));
    let error = SnapshotTree::open(bench.root(), small()).unwrap_err();
    let (root, command, pid) = (bench.root(), comm(other.id()), other.id());
    assert_eq!(error.to_string(), format!("{} is locked by {command}[{pid}]", root.display()));
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
}

#[test]
fn a_process_that_has_the_device_open_is_named() {
    let bench = Bench::new();
    let tree = open(&bench, small());
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    let sleeper = Sleeper::new(sleep().stdin(File::open(&device).unwrap()));
    let (pid, device) = (sleeper.pid(), file_name(&device));
    let text = format!("snapshot \"a\" is busy: open in sleep[{pid}] (device {device}, open count 1)");
    for result in [tree.deactivate("a"), tree.remove("a"), tree.close()] {
        assert_eq!(result.unwrap_err().to_string(), text);
    }
    drop(sleeper);
    tree.remove("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn holders_of_a_mount_are_named() {
    let bench = Bench::new();
    let tree = open(&bench, small());
    let target = bench.path().join("target");
    tree.add("a", Parent::Base).unwrap();
    tree.mount("a", &target).unwrap();
    let refused = |by: &str| {
        let error = tree.unmount("a").unwrap_err();
        assert!(matches!(error, Error::MountInUse { .. }) && error.is_busy(), "{error}");
        let text = format!("snapshot \"a\" is busy: {by} (mounted on {})", target.display());
        assert_eq!(error.to_string(), text);
    };
    fs::write(target.join("file"), "here").unwrap();
    let reader = Sleeper::new(sleep().stdin(File::open(target.join("file")).unwrap()));
    let worker = Sleeper::new(sleep().current_dir(&target));
    let mut pids = [reader.pid(), worker.pid()];
    pids.sort_unstable();
    refused(&format!("files open in sleep[{}]; files open in sleep[{}]", pids[0], pids[1]));
    drop(worker);
    refused(&format!("files open in sleep[{}]", reader.pid()));
    drop(reader);
    // A program that runs from there has no file open.
    let path = std::env::var_os("PATH").unwrap();
    let sleep = std::env::split_paths(&path).find_map(|path| path.join("sleep").canonicalize().ok());
    let program = target.join("sleep");
    fs::copy(sleep.unwrap(), &program).unwrap();
    let running = Sleeper::new(&mut Command::new(&program));
    refused(&format!("files open in sleep[{}]", running.pid()));
    drop(running);
    fs::create_dir(target.join("below")).unwrap();
    let below = target.join("below");
    RealKernel.mount(Some(Path::new("none")), &below, Some("tmpfs"), Default::default(), "").unwrap();
    let pid = std::process::id();
    refused(&format!("mounted on {}, seen by {}[{pid}]", below.display(), comm(pid)));
    RealKernel.unmount(&below, Default::default()).unwrap();
    tree.unmount("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn a_mount_in_a_full_pool_is_out_of_space() {
    let bench = Bench::new();
    let features = PoolFeatures { no_space: NoSpace::Error, ..Default::default() };
    let options = small().data_size(Bytes::mib(32)).features(features);
    let tree = open(&bench, options.min_free_data(dm_thin::thin::MinFree::Percent(0)));
    for id in ["a", "full"] {
        tree.add(id, Parent::Base).unwrap();
    }
    // A file system whose journal has to be replayed.
    let target = bench.path().join("target");
    tree.mount("a", &target).unwrap();
    fs::write(target.join("file"), "here").unwrap();
    nix::unistd::sync();
    fs::write(target.join("other"), "here").unwrap();
    File::open(target.join("other")).unwrap().sync_all().unwrap();
    tree.add("b", Parent::Snapshot("a")).unwrap();
    tree.unmount("a").unwrap();
    let full = File::options().write(true).open(tree.activate("full").unwrap()).unwrap();
    let block = vec![7; 1 << 20];
    let written = (0..64).try_for_each(|n| full.write_all_at(&block, n << 20).and_then(|()| full.sync_all()));
    assert!(written.is_err());
    drop(full);
    let error = tree.mount("b", &target).unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
    let pool = tree.pool().name();
    assert_eq!(
        error.to_string(),
        format!(
            "pool {pool} is out_of_data_space: a file system on it cannot be mounted; remove snapshots or grow the pool"
        )
    );
    assert!(matches!(error, Error::Thin(thin::Error::PoolMode { mode: PoolMode::OutOfDataSpace, .. })));
    assert_eq!(tree.get("b").unwrap().device, None);
    tree.deactivate("full").unwrap();
    tree.remove("full").unwrap();
    tree.mount("b", &target).unwrap();
    tree.unmount("b").unwrap();
    tree.close().unwrap();
}

fn overwrite(device: &Path) {
    let file = File::options().write(true).open(device).unwrap();
    file.write_all_at(&[7; 8192], 0).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_file_system_that_was_overwritten_is_named() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    let device = tree.activate("a").unwrap();
    overwrite(&device);
    let target = bench.path().join("target");
    let error = tree.mount("a", &target).unwrap_err();
    assert_eq!(
        error.to_string(),
        "snapshot \"a\" contains no ext4 file system: it was overwritten; e2fsck may restore it"
    );
    assert!(!target.exists());
    // As the message says.
    let checked = Command::new("e2fsck").args(["-y", "-b", "8193", "-B", "1024"]).arg(&device).output();
    let checked = checked.unwrap();
    assert!(checked.status.code().is_some_and(|code| code < 4), "{checked:?}");
    tree.mount("a", &target).unwrap();
    tree.unmount("a").unwrap();
    tree.deactivate("a").unwrap();
    // The base, too.
    let size = Bytes::mib(64).sectors();
    let base = tree.pool().activate(&name("base"), &uuid("base"), ThinId::new(0).unwrap(), size).unwrap();
    overwrite(&base.path());
    base.deactivate().unwrap();
    tree.close().unwrap();
    drop(tree);
    let error = SnapshotTree::open(bench.root(), small()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the base contains no ext4 file system: it was overwritten; e2fsck may restore it"
    );
}

#[test]
fn a_volume_deleted_by_another_program_is_named() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    let (pool, id) = (tree.pool().name(), tree.get("a").unwrap().thin_id);
    tree.pool().delete(id).unwrap();
    let text = format!(
        "snapshot \"a\" is lost: its volume (thin device {id}) is not in pool {pool}, another program deleted it; \
         what is left is to remove the snapshot"
    );
    let target = bench.path().join("target");
    for result in
        [tree.activate("a").map(drop), tree.mount("a", &target), tree.add("b", Parent::Snapshot("a"))]
    {
        assert_eq!(result.unwrap_err().to_string(), text);
    }
    assert!(!target.exists());
    tree.remove("a").unwrap();
    tree.close().unwrap();
}

#[test]
fn a_missing_directory_is_named() {
    let bench = Bench::new();
    let tree = bench.tree();
    tree.add("a", Parent::Base).unwrap();
    let target: PathBuf = bench.path().join("no/target");
    let error = tree.mount("a", &target).unwrap_err();
    let above = bench.path().join("no");
    let text = format!("{} does not exist; create it before {}", above.display(), target.display());
    assert_eq!(error.to_string(), text);
    assert!(error.is_not_found());
    assert_eq!(tree.get("a").unwrap().device, None);
    tree.close().unwrap();
}
