//! In the guest: open the tree, check every promise, then work until the power goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;

use dm_thin::tree::{Options, Parent, SnapshotTree};
use dm_thin::units::Bytes;

use crate::receiver;

const ROOT: &str = "/var/lib/power";
const THREADS: usize = 4;

pub fn main() {
    say("boot");
    let known = variable("DM_THIN_KNOWN");
    let doubt = variable("DM_THIN_DOUBT");
    let found = check(&known, &doubt);
    say(&format!("have {}", found.into_iter().collect::<Vec<_>>().join(" ")));
    if std::env::var("DM_THIN_WORK").is_ok_and(|work| work == "yes") {
        work();
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

fn open() -> SnapshotTree {
    let options =
        Options::new().data_size(Bytes::gib(2)).metadata_size(Bytes::mib(16)).base_size(Bytes::mib(32));
    SnapshotTree::open(ROOT, options).unwrap()
}

/// Acknowledged is there, with its text or all of its stream; nothing is there that nobody asked for; file
/// systems, metadata and ids are sound.
fn check(known: &BTreeMap<String, String>, doubt: &BTreeMap<String, String>) -> BTreeSet<String> {
    let tree = open();
    receiver::resume(&tree, doubt);
    let found: BTreeSet<String> = tree.list().iter().map(|info| info.id.to_string()).collect();
    for id in known.keys() {
        assert!(found.contains(id), "{id} was acknowledged and is lost");
    }
    for id in &found {
        assert!(known.contains_key(id) || doubt.contains_key(id), "{id} came from nowhere");
        if receiver::is_received(id) {
            receiver::check(&tree, id);
            continue;
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

/// Add, mount, write, snapshot, remove: until the power goes.
fn work() {
    let tree = open();
    // Names of this life of the guest.
    let life = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()[..8].to_owned();
    // Few enough for the next look to get through them quickly.
    for snapshot in tree.list().into_iter().skip(THREADS) {
        say(&format!("begin remove {}", snapshot.id));
        tree.remove(snapshot.id.as_str()).unwrap();
        say(&format!("removed {}", snapshot.id));
    }
    thread::scope(|scope| {
        scope.spawn(|| receiver::work(&tree, &life));
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
                    tree.add(&two, Parent::Snapshot(&one)).unwrap();
                    say(&format!("added {two} {one}"));
                    tree.unmount(&one).unwrap();
                    if round % 2 == 0 {
                        say(&format!("begin remove {one}"));
                        tree.remove(&one).unwrap();
                        say(&format!("removed {one}"));
                    }
                    if round >= 2 {
                        // Enough is enough: the next look has to get through all of them.
                        let old = format!("{life}-{thread}-{}-copy", round - 2);
                        say(&format!("begin remove {old}"));
                        tree.remove(&old).unwrap();
                        say(&format!("removed {old}"));
                    }
                }
            });
        }
    });
}
