//! Reading below a directory that is not trusted.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use serde::de::DeserializeOwned;

use crate::Finding;

/// Size limit of a file with one JSON object.
pub(crate) const JSON_LIMIT: u64 = 1 << 20;
/// Size limit of the files that have many: `repositories.json`, image configurations, the `json` of old versions.
pub(crate) const LARGE_JSON_LIMIT: u64 = 16 << 20;
/// Size limit of a file with one name.
const TEXT_LIMIT: u64 = 1 << 10;
/// Number of entries of one directory that are read.
const ENTRIES_LIMIT: usize = 1 << 16;

/// O_NONBLOCK: opening a FIFO does not wait for a writer.
const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NOCTTY).union(OFlag::O_NONBLOCK);

/// A directory. Below it no symbolic link is followed, and only regular files are read.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    /// Relative to the root: what findings name.
    path: PathBuf,
}

impl Directory {
    /// Opens the root, which the caller has named.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = open(path, FLAGS | OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(Self { fd, path: PathBuf::new() })
    }

    /// The numbers of its file system's device and of its inode.
    pub(crate) fn device_and_inode(&self) -> io::Result<(u64, u64)> {
        let status = nix::sys::stat::fstat(&self.fd)?;
        Ok((status.st_dev, status.st_ino))
    }

    /// Opens a directory below this one, or returns `None` if there is none or it cannot be opened.
    pub(crate) fn below(&self, relative: &str, findings: &mut Vec<Finding>) -> Option<Self> {
        let mut directory = Self { fd: self.fd.try_clone().ok()?, path: self.path.clone() };
        for name in relative.split('/') {
            let file = directory.path.join(name);
            let flags = FLAGS | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
            match openat(&directory.fd, name, flags, Mode::empty()) {
                Ok(fd) => directory = Self { fd, path: file },
                Err(error) => {
                    note(findings, file, error);
                    return None;
                }
            }
        }
        Some(directory)
    }

    /// Returns the names of all entries, in order.
    pub(crate) fn names(&self, findings: &mut Vec<Finding>) -> Vec<String> {
        let mut names = Vec::new();
        let directory = self.fd.try_clone().map_err(|_| Errno::EMFILE).and_then(Dir::from_fd);
        let mut directory = match directory {
            Ok(directory) => directory,
            Err(error) => {
                note(findings, self.path.clone(), error);
                return names;
            }
        };
        for entry in directory.iter() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    note(findings, self.path.clone(), error);
                    break;
                }
            };
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(_) if names.len() == ENTRIES_LIMIT => {
                    findings
                        .push(Finding::TooManyEntries { directory: self.path.clone(), limit: ENTRIES_LIMIT });
                    break;
                }
                Ok(name) => names.push(name.to_owned()),
                Err(_) => {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    findings.push(Finding::UnknownFile { file: self.path.join(name) });
                }
            }
        }
        names.sort_unstable();
        names
    }

    /// Opens a regular file, or returns `None` if there is none.
    pub(crate) fn file(&self, name: &str) -> Result<Option<File>, Finding> {
        let file = self.path.join(name);
        match openat(&self.fd, name, FLAGS | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(fd) => {
                let opened = File::from(fd);
                let is_file =
                    opened.metadata().map_err(|error| Finding::unreadable(file.clone(), &error))?.is_file();
                if is_file { Ok(Some(opened)) } else { Err(Finding::NotRegular { file }) }
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ELOOP | Errno::ENXIO) => Err(Finding::NotRegular { file }),
            Err(error) => Err(Finding::unreadable(file, &error.into())),
        }
    }

    /// Reads a file of at most `limit` bytes.
    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Finding> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = file.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| Finding::unreadable(self.path.join(name), &error))?;
        if bytes.len() as u64 > limit {
            return Err(Finding::TooLarge { file: self.path.join(name), limit });
        }
        Ok(Some(bytes))
    }

    /// Reads a file of JSON, or returns `None` if there is none. What is wrong with it becomes a finding.
    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        name: &str,
        limit: u64,
        findings: &mut Vec<Finding>,
    ) -> Option<T> {
        let parse = |bytes: Vec<u8>| {
            let file = self.path.join(name);
            serde_json::from_slice(&bytes).map_err(|error| Finding::bad_json(file, bytes.len(), &error))
        };
        let value = self.read(name, limit).and_then(|bytes| bytes.map(parse).transpose());
        value.unwrap_or_else(|finding| {
            findings.push(finding);
            None
        })
    }

    /// Reads a file with one name, without the white space around it.
    pub(crate) fn text(&self, name: &str, findings: &mut Vec<Finding>) -> Option<String> {
        match self.read(name, TEXT_LIMIT) {
            Ok(Some(bytes)) if bytes.is_empty() => {
                findings.push(Finding::EmptyFile { file: self.path(name) });
                None
            }
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes?).trim().to_owned()),
            Err(finding) => {
                findings.push(finding);
                None
            }
        }
    }

    /// The path of an entry, as findings name it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// That something is missing is no finding.
fn note(findings: &mut Vec<Finding>, file: PathBuf, error: Errno) {
    match error {
        Errno::ENOENT => {}
        Errno::ELOOP | Errno::ENOTDIR => findings.push(Finding::NotRegular { file }),
        error => findings.push(Finding::unreadable(file, &error.into())),
    }
}
