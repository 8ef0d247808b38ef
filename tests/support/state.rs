//! The state's loader: whatever is in the files, opening the tree answers, and an error leaves them alone.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dm_thin::dm::UdevPolicy;
use dm_thin::model::ModelKernel;
use dm_thin::tree::files::{StateDir, StateFile};
use dm_thin::tree::{Error, Result};
use dm_thin::tree::{Filesystem, Options, SnapshotTree};

type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// A directory in memory.
#[derive(Debug, Clone, Default)]
struct Memory(Files);

#[derive(Debug)]
struct MemoryFile(Files, String);

impl StateDir for Memory {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn StateFile>> {
        let mut files = self.0.lock().unwrap();
        if !files.contains_key(name) && !create {
            return Err(ErrorKind::NotFound.into());
        }
        files.entry(name.to_owned()).or_default();
        Ok(Box::new(MemoryFile(self.0.clone(), name.to_owned())))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        let file = files.remove(from).ok_or(ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name).map(drop).ok_or(ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl MemoryFile {
    fn with<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        work(self.0.lock().unwrap().entry(self.1.clone()).or_default())
    }
}

impl StateFile for MemoryFile {
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.with(|bytes| bytes.clone()))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.with(|bytes| {
            bytes.resize(bytes.len().max(offset + data.len()), 0);
            bytes[offset..offset + data.len()].copy_from_slice(data);
        });
        Ok(())
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|bytes| bytes.resize(usize::try_from(len).unwrap(), 0));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn open(memory: &Memory) -> Result<SnapshotTree> {
    let directory = tempfile::tempdir().unwrap();
    let options = Options::new()
        .filesystem(Filesystem::None)
        .udev(UdevPolicy::None)
        .busy_timeout(Duration::ZERO)
        .kernel(Arc::new(ModelKernel::new()))
        .background_threads(false)
        .state_dir(Arc::new(memory.clone()));
    SnapshotTree::open(directory.path().join("root"), options)
}

/// A line of the journal that a loader with an empty state takes as the first one.
fn line(seq: u64, previous: u32, record: &str) -> (String, u32) {
    let mut bytes = previous.to_le_bytes().to_vec();
    bytes.extend(seq.to_le_bytes());
    bytes.extend((seq - 1).to_le_bytes());
    bytes.extend(record.as_bytes());
    let crc = crc32fast::hash(&bytes);
    (format!(r#"{{"seq":{seq},"synced":{},"crc":"{crc:08x}","record":{record}}}"#, seq - 1), crc)
}

const FRESH: &str = include_str!("fresh-state.json");

/// The first byte says what the others are; with its third bit, the second half of the journal's lines is in the other
/// journal.
pub fn fuzz(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let sealed = |state: &str| {
        format!(r#"{{"checksum":"{:08x}","state":{state}}}"#, crc32fast::hash(state.as_bytes()))
    };
    let (state, journal) = match kind % 4 {
        // A checkpoint of any bytes, and one whose checksum is right.
        0 => (rest.to_vec(), Vec::new()),
        1 => (sealed(&text).into_bytes(), Vec::new()),
        // A journal of any bytes, and one whose chain is right.
        2 => (sealed(FRESH.trim_end()).into_bytes(), rest.to_vec()),
        _ => {
            let (mut journal, mut crc) = (String::new(), 0);
            for (seq, record) in (1..).zip(text.lines()) {
                let (line, next) = line(seq, crc, record);
                crc = next;
                journal += &line;
                journal.push('\n');
            }
            (sealed(FRESH.trim_end()).into_bytes(), journal.into_bytes())
        }
    };
    let memory = Memory::default();
    let mut files = memory.0.lock().unwrap();
    files.insert("state.json".to_owned(), state);
    let (first, second) = if kind & 4 == 0 {
        (journal, Vec::new())
    } else {
        let lines: Vec<_> = journal.split_inclusive(|&byte| byte == b'\n').collect();
        let (first, second) = lines.split_at(lines.len() / 2);
        (first.concat(), second.concat())
    };
    files.insert("journal.0".to_owned(), first);
    files.insert("journal.1".to_owned(), second);
    let before = files.clone();
    drop(files);
    match open(&memory) {
        Ok(tree) => drop(tree.list()),
        Err(Error::Corrupt { .. }) => {
            let mut after = memory.0.lock().unwrap().clone();
            after.remove("lock");
            assert_eq!(after, before, "what cannot be read is left alone");
        }
        Err(_) => {}
    }
}
