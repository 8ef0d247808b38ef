//! In the guest: open the tree, check every promise, then work until the power goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use dm_thin::tree::{AddOptions, Labels, Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;

use crate::{Work, receiver};

const ROOT: &str = "/var/lib/power";
/// Trees that were being made.
const FIRST: &str = "/var/lib/first";
const THREADS: usize = 4;
/// The pool is not grown beyond that.
const LARGEST: u64 = 64 << 10;

pub fn main() {
    // Where the driver sees it.
    std::panic::set_hook(Box::new(|info| say(&info.to_string())));
    say("boot");
    let known = variable("DM_THIN_KNOWN");
    let doubt = variable("DM_THIN_DOUBT");
    let found = check(&known, &doubt);
    say(&format!("have {}", found.into_iter().collect::<Vec<_>>().join(" ")));
    let work = std::env::var("DM_THIN_WORK").unwrap();
    match Work::ALL.iter().find(|(name, _)| *name == work).unwrap().1 {
        Work::Nothing => {}
        Work::Threads => work_in_threads(),
        Work::Open => open_and_close(),
    }
}

fn variable(name: &str) -> BTreeMap<String, String> {
    let text = std::env::var(name).unwrap();
    let pairs = text.split_ascii_whitespace().map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(id, text)| (id.to_owned(), text.to_owned())).collect()
}

/// A whole line at once: threads must not mix theirs.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn open(root: impl AsRef<Path>) -> SnapshotTree {
    let options =
        Options::new().data_size(Bytes::gib(2)).metadata_size(Bytes::mib(16)).base_size(Bytes::mib(32));
    SnapshotTree::open(root, options).unwrap()
}

/// This life of the guest, and of the worker.
fn life() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    format!("{}-{}", &boot[..8], std::process::id())
}

/// A tree whose first open was cut is empty, and whole.
fn check_first() {
    for root in fs::read_dir(FIRST).into_iter().flatten() {
        let root = root.unwrap().path();
        let tree = open(&root);
        assert!(tree.list().is_empty());
        assert_eq!(tree.reap().unwrap(), 0);
        assert_eq!(tree.check().unwrap(), []);
        tree.add("a", Parent::Base).unwrap();
        tree.remove("a").unwrap();
        tree.close().unwrap();
        drop(tree);
        fs::remove_dir_all(root).unwrap();
    }
}

/// Acknowledged is there, with its text or all of its stream; nothing is there that nobody asked for; file
/// systems, metadata and ids are sound.
fn check(known: &BTreeMap<String, String>, doubt: &BTreeMap<String, String>) -> BTreeSet<String> {
    check_first();
    let tree = open(ROOT);
    let size: u64 = std::env::var("DM_THIN_POOL_SIZE").unwrap().parse().unwrap();
    let found = tree.status().unwrap().data.unwrap().total;
    assert!(found >= Bytes::mib(size), "the pool was grown to {size} MiB, and is {found:#}");
    receiver::resume(&tree, doubt);
    let found: BTreeSet<String> = tree.list().iter().map(|info| info.id.to_string()).collect();
    for id in known.keys() {
        assert!(found.contains(id), "{id} was acknowledged and is lost");
    }
    for (to, text) in doubt {
        if let Some((from, _)) = text.strip_prefix("from:").and_then(|rest| rest.split_once(':')) {
            assert!(
                found.contains(from) != found.contains(to),
                "a half of a commit: {from}, {to}: {found:?}"
            );
        }
    }
    for id in &found {
        assert!(known.contains_key(id) || doubt.contains_key(id), "{id} came from nowhere");
        if receiver::is_received(id) {
            receiver::check(&tree, id);
            continue;
        }
        if tree.get(id).unwrap().mounted.is_some() {
            // The worker was killed meanwhile.
            tree.unmount(id).unwrap();
        }
        let device = tree.activate(id).unwrap();
        let target = Path::new("/tmp/check");
        tree.mount(id, target).unwrap();
        let text = fs::read_to_string(target.join("text")).unwrap_or_default();
        tree.unmount(id).unwrap();
        let fsck = Command::new("e2fsck").args(["-f", "-n"]).arg(device).output().unwrap();
        assert!(fsck.status.success(), "{id}: {}", String::from_utf8_lossy(&fsck.stdout));
        tree.deactivate(id).unwrap();
        if let Some(expected) = known.get(id).filter(|text| *text != "?") {
            assert_eq!(&text, expected, "the text of {id}");
        }
    }
    let mut ids: BTreeSet<u32> = tree.list().iter().map(|info| info.thin_id.get()).collect();
    ids.extend(tree.base_id().map(|id| id.get()));
    assert_eq!(tree.reap().unwrap(), 0);
    assert_eq!(tree.check().unwrap(), []);
    tree.close().unwrap();

    let metadata = Path::new(ROOT).join("pool/metadata");
    let check = Command::new("thin_check").arg(&metadata).output().unwrap();
    assert!(check.status.success(), "thin_check: {}", String::from_utf8_lossy(&check.stderr));
    let dump = Command::new("thin_dump").arg(&metadata).output().unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    let in_pool: BTreeSet<u32> = dump
        .split("dev_id=\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(in_pool, ids, "thin ids in the pool, and in the tree");
    found
}

/// Opens and closes the tree, and makes new ones, until the power goes.
fn open_and_close() {
    let life = life();
    for round in 0.. {
        say("begin open");
        let tree = open(ROOT);
        say("end open");
        let id = format!("{life}-opened-{round}");
        say(&format!("begin add {id}"));
        tree.add(&id, Parent::Base).unwrap();
        say(&format!("added {id} ?"));
        tree.activate(&id).unwrap();
        say("begin close");
        tree.close().unwrap();
        drop(tree);
        say("end close");
        let root = Path::new(FIRST).join(format!("{life}-{round}"));
        fs::create_dir_all(FIRST).unwrap();
        say("begin first open");
        drop(open(&root));
        say("end first");
        check_first();
        let tree = open(ROOT);
        say(&format!("begin remove {id}"));
        tree.remove(&id).unwrap();
        say(&format!("removed {id}"));
        tree.close().unwrap();
    }
}

/// Grows the pool in steps, until the power goes.
fn grow(tree: &SnapshotTree) {
    let mut size = tree.status().unwrap().data.unwrap().total.0 >> 20;
    while size < LARGEST {
        size += 16;
        thread::sleep(Duration::from_millis(500));
        say(&format!("begin grow {size}"));
        tree.grow_pool(Bytes::mib(size)).unwrap();
        say(&format!("grown {size}"));
    }
}

/// What the copy of that round is called in the end: every third one is committed.
fn copy_of(one: &str, round: u64) -> String {
    if round % 3 == 1 { format!("{one}-layer") } else { format!("{one}-copy") }
}

/// Add, mount, write, snapshot, commit, resize, remove: until the power goes.
fn work_in_threads() {
    let tree = open(ROOT);
    let life = life();
    // Few enough for the next look to get through them quickly.
    for snapshot in tree.list().into_iter().skip(THREADS) {
        say(&format!("begin remove {}", snapshot.id));
        tree.remove(snapshot.id.as_str()).unwrap();
        say(&format!("removed {}", snapshot.id));
    }
    tree.keep_ready(Parent::Base, 2).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| receiver::work(&tree, &life));
        scope.spawn(|| grow(&tree));
        for thread in 0..THREADS {
            let (tree, life) = (&tree, &life);
            scope.spawn(move || {
                for round in 0.. {
                    let one = format!("{life}-{thread}-{round}");
                    let two = format!("{one}-copy");
                    say(&format!("begin add {one}"));
                    tree.add(&one, Parent::Base).unwrap();
                    let target = Path::new("/tmp").join(&one);
                    tree.mount(&one, &target).unwrap();
                    let mut file = File::create(target.join("text")).unwrap();
                    file.write_all(one.as_bytes()).unwrap();
                    file.sync_all().unwrap();
                    File::open(&target).unwrap().sync_all().unwrap();
                    drop(file);
                    say(&format!("added {one} {one}"));
                    say(&format!("begin add {two}"));
                    // Every third one's file system is grown.
                    let size = Bytes::mib(if round % 3 == 0 { 48 } else { 32 });
                    tree.add_with(&two, Parent::Snapshot(&one), &AddOptions::new().size(size)).unwrap();
                    say(&format!("added {two} {one}"));
                    tree.unmount(&one).unwrap();
                    match round % 3 {
                        1 => {
                            let layer = copy_of(&one, round);
                            say(&format!("begin commit {two} {layer}"));
                            tree.commit(&two, &layer, Labels::new()).unwrap();
                            say(&format!("committed {two} {layer}"));
                        }
                        2 => {
                            say("begin resize");
                            tree.resize(&two, Bytes::mib(64)).unwrap();
                            say("end resize");
                        }
                        _ => {}
                    }
                    if round % 2 == 0 {
                        say(&format!("begin remove {one}"));
                        tree.remove(&one).unwrap();
                        say(&format!("removed {one}"));
                    }
                    if round >= 2 {
                        // Enough is enough: the next look has to get through all of them.
                        let old = copy_of(&format!("{life}-{thread}-{}", round - 2), round - 2);
                        say(&format!("begin remove {old}"));
                        tree.remove(&old).unwrap();
                        say(&format!("removed {old}"));
                    }
                }
            });
        }
    });
}
