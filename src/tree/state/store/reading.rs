//! What is on disk of a tree.

use std::io;
use std::path::{Path, PathBuf};

use crate::tree::state::files::{StateDir, StateFile, read_at_most};
use crate::tree::state::journal::{self, FORMAT, Journal, State};
use crate::tree::{Error, Result};

pub(super) const STATE: &str = "state.json";
/// Each is written to by turns: see `journal`.
pub(in crate::tree) const JOURNALS: [&str; 2] = ["journal.0", "journal.1"];
/// The one journal of format 1.
pub(in crate::tree) const OLD_JOURNAL: &str = "journal.jsonl";

/// The largest checkpoint that is written or read.
pub(super) const STATE_MAX: u64 = 256 << 20;
/// The longest journal that is written by anything but removals; one twice as long is read.
pub(super) const JOURNAL_MAX: u64 = 512 << 20;

/// So often journals that do not fit together are read again before they are called corrupt.
const PEEKS: u32 = 20;

/// The state, read beside a manager that may be changing it.
pub(in crate::tree) fn peek(root: &Path, dir: &dyn StateDir) -> Result<State> {
    let path = root.join(STATE);
    let checkpoint = || {
        let file = dir.open(STATE, false).map_err(Error::io("read", &path))?;
        read(&*file, STATE_MAX, &path)
    };
    let (mut bytes, mut tries) = (checkpoint()?, 0);
    loop {
        let mut state = journal::decode_state(&bytes, &path)?;
        let is_old = state.format != FORMAT && dir.open(OLD_JOURNAL, false).is_ok();
        let (paths, contents) = read_journals(root, dir, is_old)?;
        let journals = [0, 1].map(|which| Journal { path: &paths[which], bytes: &contents[which] });
        // A line that is being written is nobody's yet.
        let replayed = journal::replay(&mut state, journals, 0);
        // Under another checkpoint journals may have begun anew meanwhile; under the same one the second of them may go on
        // behind what was read of the first.
        let now = checkpoint()?;
        match replayed {
            Ok(_) if now == bytes => return Ok(state),
            Err(error) if now == bytes && tries == PEEKS => return Err(error),
            _ => (bytes, tries) = (now, tries + 1),
        }
    }
}

/// What is in the journals, and what they are called.
pub(super) fn read_journals(
    root: &Path,
    dir: &dyn StateDir,
    is_old: bool,
) -> Result<([PathBuf; 2], [Vec<u8>; 2])> {
    let names = if is_old { [OLD_JOURNAL, JOURNALS[1]] } else { JOURNALS };
    let paths = names.map(|name| root.join(name));
    let mut contents = [Vec::new(), Vec::new()];
    for ((contents, name), path) in contents.iter_mut().zip(names).zip(&paths) {
        match dir.open(name, false) {
            Ok(journal) => *contents = read(&*journal, 2 * JOURNAL_MAX, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", path)(error)),
        }
    }
    Ok((paths, contents))
}

pub(super) fn read(file: &dyn StateFile, max: u64, path: &Path) -> Result<Vec<u8>> {
    read_at_most(file, max).map_err(|error| match error.raw_os_error() {
        Some(libc::EFBIG) => {
            let reason = format!("longer than {} MiB, the most that is ever written", max >> 20);
            Error::Corrupt { path: path.into(), line: None, reason }
        }
        _ => Error::io("read", path)(error),
    })
}
