//! Power cuts for real: a guest is killed in the middle of its work, again and again, and what it had
//! acknowledged until then has to be there when it boots next.
//!
//! `cargo test --test power -- 30` kills thirty times. This program is both sides: here the driver, which
//! starts the guest and listens to it, and, run in the guest as `power worker`, the one that works. Before that, one
//! restart in good order: `reboot.rs`.

#![allow(unreachable_pub)] // in a program of its own, pub means no more than pub(crate)

mod reboot;
mod receiver;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// What was acknowledged: snapshots, and the text in each; `?` where that was not acknowledged.
type Known = BTreeMap<String, String>;

/// The power is cut so many seconds, at most, after the guest's first line that begins so.
const LONGEST: u64 = 20;

struct Cut {
    begin: &'static str,
    delay: Duration,
    /// The guest is killed when it is there.
    file: PathBuf,
}

impl Cut {
    fn new(number: u64, directory: &Path) -> Self {
        // Looking, and removing what is old, take as long as they take; now and then that is cut.
        let begin = if number % 4 == 3 { "boot" } else { "begin add" };
        let delay = Duration::from_secs(RandomState::new().hash_one(number) % LONGEST);
        Self { begin, delay, file: directory.join(format!("cut-{number}")) }
    }
}

fn main() {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("worker") {
        return worker::main();
    }
    if argument.as_deref() == Some("reboot") {
        return reboot::worker(&std::env::args().nth(2).unwrap());
    }
    let cuts: u64 = argument.map_or(3, |cuts| cuts.parse().expect("how many times the power is cut"));
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    let disk = disk.to_str().unwrap();
    reboot::drive(disk);
    let mut known = Known::new();
    let mut doubt = Known::new();
    let mut counts = Counts::default();
    for cut in 0..=cuts {
        // After the last cut the guest only looks.
        let end = (cut < cuts).then(|| Cut::new(cut, directory.path()));
        boot(disk, end, &mut known, &mut doubt, &mut counts);
        println!("boot {cut}: {} snapshots known; so far {counts}", known.len());
    }
    assert!(counts.operations > 0, "no operation was acknowledged");
    println!("test result: ok. 1 passed; 0 failed; {cuts} power cuts, {counts}");
}

#[derive(Default)]
struct Counts {
    /// Acknowledged.
    operations: u64,
    /// Begun, and not acknowledged.
    receives_cut: u64,
    /// After the cut.
    receives_continued: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, receives_cut, receives_continued } = self;
        write!(f, "{operations} operations acknowledged, ")?;
        write!(f, "{receives_cut} receives cut, {receives_continued} of them continued")
    }
}

/// One life of the guest.
fn boot(disk: &str, mut cut: Option<Cut>, known: &mut Known, doubt: &mut Known, counts: &mut Counts) {
    let mut run = Command::new("tests/vm/run");
    run.args(["--disk", disk]);
    let works = cut.is_some();
    if let Some(cut) = &cut {
        run.arg("--power-cut-when").arg(&cut.file);
    }
    let text = |snapshots: &Known| {
        snapshots.iter().map(|(id, text)| format!("{id}={text}")).collect::<Vec<_>>().join(" ")
    };
    run.env("DM_THIN_KNOWN", text(known)).env("DM_THIN_DOUBT", text(doubt));
    run.env("DM_THIN_WORK", if works { "yes" } else { "no" });
    run.arg("--").arg(std::env::current_exe().unwrap()).arg("worker").stdout(Stdio::piped());
    let mut guest = run.spawn().unwrap();
    let mut resolved = false;
    for line in BufReader::new(guest.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        if let Some(Cut { delay, file, .. }) = cut.take_if(|cut| line.starts_with(cut.begin)) {
            thread::spawn(move || {
                thread::sleep(delay);
                File::create(file).unwrap();
            });
        }
        match words[..] {
            ["boot"] => {}
            // The tree was opened and checked: what was in doubt is settled.
            ["have", ref ids @ ..] => {
                known.append(doubt);
                known.retain(|id, _| ids.contains(&id.as_str()));
                resolved = true;
            }
            ["begin", "add", id] => {
                doubt.insert(id.to_owned(), "?".to_owned());
                counts.receives_cut += u64::from(receiver::is_received(id));
            }
            ["begin", "remove", id] => {
                let text = known.remove(id).expect("known before it is removed");
                doubt.insert(id.to_owned(), text);
            }
            ["added", id, text] => {
                doubt.remove(id);
                known.insert(id.to_owned(), text.to_owned());
                counts.operations += 1;
                counts.receives_cut -= u64::from(receiver::is_received(id));
            }
            ["removed", id] => {
                doubt.remove(id);
                counts.operations += 1;
            }
            ["continued", _, "from", _] => {
                counts.receives_continued += 1;
                println!("guest: {line}");
            }
            _ => println!("guest: {line}"),
        }
    }
    let status = guest.wait().unwrap();
    assert!(status.success(), "the guest found a broken promise: {status}");
    assert!(resolved || works, "the guest did not get to look");
}
