//! Power cuts for real: a guest is killed in the middle of its work, again and again, and what it had
//! acknowledged until then has to be there when it boots next.
//!
//! `cargo test --test power -- 30` kills thirty times. This program is both sides: here the driver, which
//! starts the guest and listens to it, and, run in the guest as `power worker`, the one that works. Before that, one
//! restart in good order: `reboot.rs`.
//!
//! `cargo test --test power -- kills 50`: the same with SIGKILL to the worker, in one guest.

#![allow(unreachable_pub)] // in a program of its own, pub means no more than pub(crate)

mod reboot;
mod receiver;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

/// What was acknowledged: snapshots, and the text in each; `?` where that was not acknowledged.
type Known = BTreeMap<String, String>;

/// What the guest does until the power is cut, the line after which that happens, and within how many milliseconds.
const KINDS: [(Work, &str, u64); 9] = [
    (Work::Threads, "begin add", 20_000),
    (Work::Threads, "begin grow", 4_000),
    (Work::Open, "begin first open", 2_500),
    // Checking what is there, and removing old snapshots.
    (Work::Threads, "boot", 20_000),
    (Work::Open, "begin open", 1_500),
    (Work::Threads, "begin add", 20_000),
    (Work::Open, "begin close", 1_500),
    (Work::Threads, "begin grow", 20_000),
    (Work::Threads, "begin commit", 300),
];

/// What the guest does after its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Nothing,
    /// Threads add, mount, write, remove, receive and grow.
    Threads,
    /// A tree is opened, changed and closed, again and again, and new trees are made.
    Open,
}

impl Work {
    const ALL: [(&'static str, Self); 3] =
        [("nothing", Self::Nothing), ("threads", Self::Threads), ("open", Self::Open)];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, work)| *work == self).unwrap().0
    }
}

struct Cut {
    work: Work,
    begin: &'static str,
    delay: Duration,
}

impl Cut {
    fn new(number: u64) -> Self {
        let (work, begin, longest) = KINDS[usize::try_from(number).unwrap() % KINDS.len()];
        let delay = Duration::from_millis(RandomState::new().hash_one(number) % longest);
        Self { work, begin, delay }
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
    if argument.as_deref() == Some("kills") {
        return kills(&std::env::args().nth(2).expect("how many times the worker is killed"));
    }
    if argument.as_deref() == Some("killer") {
        return killer(std::env::args().nth(2).unwrap().parse().unwrap());
    }
    let cuts: u64 = argument.map_or(3, |cuts| cuts.parse().expect("how many times the power is cut"));
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    let disk = disk.to_str().unwrap();
    reboot::drive(disk);
    let mut story = Story::default();
    for number in 0..=cuts {
        // After the last cut the guest only looks.
        let cut = (number < cuts).then(|| Cut::new(number));
        let mut run = Command::new("tests/vm/run");
        run.args(["--disk", disk]);
        // The guest is killed when it is there.
        let file = directory.path().join(format!("cut-{number}"));
        if cut.is_some() {
            run.arg("--power-cut-when").arg(&file);
        }
        run.arg("--").arg(std::env::current_exe().unwrap());
        let status = story.live(run, cut, move |_| drop(File::create(file).unwrap()));
        assert!(status.success(), "the guest found a broken promise: {status}");
        println!("boot {number}: {} snapshots known; so far {}", story.known.len(), story.counts);
    }
    assert!(story.counts.operations > 0, "no operation was acknowledged");
    println!("test result: ok. 1 passed; 0 failed; {cuts} power cuts, {}", story.counts);
}

/// In one guest, the worker is killed so many times.
fn kills(times: &str) {
    let mut run = Command::new("tests/vm/run");
    run.arg("--").arg(std::env::current_exe().unwrap()).args(["killer", times]);
    assert!(run.status().unwrap().success(), "a promise was broken");
}

/// In the guest.
fn killer(times: u64) {
    let mut story = Story::default();
    for number in 0..=times {
        let cut = (number < times).then(|| Cut::new(number));
        let is_last = cut.is_none();
        let kill = |pid: u32| {
            let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            assert!(status.unwrap().success());
        };
        let status = story.live(Command::new(std::env::current_exe().unwrap()), cut, kill);
        assert_eq!(status.success(), is_last, "the worker found a broken promise: {status}");
        println!("life {number}: {} snapshots known; so far {}", story.known.len(), story.counts);
    }
    println!("test result: ok. 1 passed; 0 failed; {times} kills, {}", story.counts);
}

#[derive(Default)]
struct Counts {
    /// Acknowledged.
    operations: u64,
    /// How many cuts came in which call, and how often it was acknowledged before.
    calls: BTreeMap<String, (u64, u64)>,
    /// The pool's acknowledged size, in MiB.
    pool_size: u64,
    /// Begun, and not acknowledged.
    receives_cut: u64,
    /// After the cut.
    receives_continued: u64,
}

impl Counts {
    fn begin(&mut self, call: &str) {
        self.calls.entry(call.to_owned()).or_default().0 += 1;
    }

    fn end(&mut self, call: &str) {
        let (cut, done) = self.calls.get_mut(call).unwrap();
        (*cut, *done) = (*cut - 1, *done + 1);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, receives_cut, receives_continued, .. } = self;
        write!(f, "{operations} operations acknowledged, ")?;
        write!(f, "{receives_cut} receives cut, {receives_continued} of them continued")?;
        self.calls.iter().try_for_each(|(call, (cut, done))| write!(f, ", {call}: {done} done, {cut} cut"))
    }
}

/// What is known of the tree, from one life of the worker to the next.
#[derive(Default)]
struct Story {
    known: Known,
    /// Begun, and not acknowledged.
    doubt: Known,
    counts: Counts,
}

impl Story {
    /// One life of the worker, which is ended at the cut by `end`, from its process id.
    fn live(
        &mut self,
        mut run: Command,
        mut cut: Option<Cut>,
        end: impl FnOnce(u32) + Send + 'static,
    ) -> ExitStatus {
        let Self { known, doubt, counts } = self;
        let work = cut.as_ref().map_or(Work::Nothing, |cut| cut.work);
        let works = cut.is_some();
        let text = |snapshots: &Known| {
            snapshots.iter().map(|(id, text)| format!("{id}={text}")).collect::<Vec<_>>().join(" ")
        };
        run.env("DM_THIN_KNOWN", text(known)).env("DM_THIN_DOUBT", text(doubt));
        run.env("DM_THIN_WORK", work.name()).env("DM_THIN_POOL_SIZE", counts.pool_size.to_string());
        let mut guest = run.arg("worker").stdout(Stdio::piped()).spawn().unwrap();
        let (pid, mut end) = (guest.id(), Some(end));
        let (mut resolved, mut panicked) = (false, false);
        for line in BufReader::new(guest.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            panicked |= line.contains("panicked at");
            let words: Vec<&str> = line.split(' ').collect();
            if let Some(Cut { delay, .. }) = cut.take_if(|cut| line.starts_with(cut.begin)) {
                let end = end.take().unwrap();
                thread::spawn(move || {
                    thread::sleep(delay);
                    end(pid);
                });
            }
            match words[..] {
                ["boot"] => {}
                // The tree was opened and checked: what was in doubt is settled.
                ["have", ref ids @ ..] => {
                    known.append(doubt);
                    for text in known.values_mut().filter(|text| text.starts_with("from:")) {
                        *text = text.split(':').next_back().unwrap_or_default().to_owned();
                    }
                    known.retain(|id, _| ids.contains(&id.as_str()));
                    resolved = true;
                }
                ["begin", "grow", _] => counts.begin("grow_pool"),
                ["grown", size] => {
                    counts.pool_size = size.parse().unwrap();
                    counts.end("grow_pool");
                }
                ["begin", "commit", from, to] => {
                    let text = known.remove(from).expect("known before it is committed");
                    doubt.insert(to.to_owned(), format!("from:{from}:{text}"));
                    doubt.insert(from.to_owned(), text);
                    counts.begin("commit");
                }
                ["committed", from, to] => {
                    doubt.remove(to);
                    let text = doubt.remove(from).expect("in doubt until it is committed");
                    known.insert(to.to_owned(), text);
                    counts.operations += 1;
                    counts.end("commit");
                }
                ["begin", call @ ("open" | "close" | "first" | "resize"), ..] => counts.begin(call),
                ["end", call] => counts.end(call),
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
        assert!(!panicked, "a call failed in the guest");
        assert!(resolved || works, "the guest did not get to look");
        status
    }
}
