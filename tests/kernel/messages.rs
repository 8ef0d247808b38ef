//! What errors tell on a real kernel: who is in the way, and what became of what was there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dm_thin::Error;
use dm_thin::kernel::{Kernel, RealKernel};
use dm_thin::tree::{Options, Parent, SnapshotTree};

use crate::bench::{Bench, small};

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
fn what_keeps_a_snapshot_mounted_is_named() {
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
