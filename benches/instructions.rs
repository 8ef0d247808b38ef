//! Instructions of a tree's operations, counted by callgrind: `cargo bench --features model --bench instructions`.
//!
//! Fails where they are more than `benches/ratchet.txt` says, and 10 %. What the model of the kernel needs is left out.

use std::cell::Cell;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode};

#[path = "support/operations.rs"]
mod operations;

use operations::{OPERATIONS, Subject, TIMES, allowed};

/// For other compilers, and the seeds of hash tables.
const TOLERANCE_PERCENT: u64 = 10;

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
}

fn counted(work: impl FnOnce()) {
    COUNTING.set(true);
    toggled_on(work);
    COUNTING.set(false);
}

fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    if !COUNTING.get() {
        return work();
    }
    COUNTING.set(false);
    let result = toggled_off(work);
    COUNTING.set(true);
    result
}

// Callgrind turns its counting on or off where one of these is entered, and back where it is left.
#[inline(never)]
fn toggled_on(work: impl FnOnce()) {
    work();
    black_box(());
}

#[inline(never)]
fn toggled_off<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [operation] = &arguments[..] {
        Subject::new().run(operation);
        return ExitCode::SUCCESS;
    }
    let mut grown = false;
    println!("{:<20} {:>12} {:>12}", "operation", "instructions", "allowed");
    for operation in OPERATIONS {
        let (count, allowed) = (count(operation), allowed(operation, 2));
        let tolerance = allowed * TOLERANCE_PERCENT / 100;
        let verdict = match count {
            count if count > allowed + tolerance => "  too many",
            count if count + tolerance < allowed => "  fewer: benches/ratchet.txt can say so",
            _ => "",
        };
        println!("{operation:<20} {count:>12} {allowed:>12}{verdict}");
        grown |= count > allowed + tolerance;
    }
    if grown {
        eprintln!("more than benches/ratchet.txt says");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Instructions of one operation, as the average of [`TIMES`].
fn count(operation: &str) -> u64 {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("callgrind.{operation}"));
    let ran = Command::new("valgrind")
        .args(["-q", "--tool=callgrind", "--toggle-collect=*toggled_o*"])
        .arg(format!("--callgrind-out-file={}", output.display()))
        .arg(std::env::current_exe().unwrap())
        .arg(operation)
        .output()
        .expect("valgrind has to be installed");
    assert!(ran.status.success(), "{operation}: {}", String::from_utf8_lossy(&ran.stderr));
    let profile = fs::read_to_string(&output).unwrap();
    fs::remove_file(output).unwrap();
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
    total.expect("callgrind counted nothing") / TIMES as u64
}
