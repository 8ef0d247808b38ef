//! Errors as an operator reads them: what and why in one line, what to do in another.

use std::fmt::Display;

use dm_thin::tree::Error;

/// Why a command has failed.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The exit status.
    pub code: u8,
    /// Another program has the tree open.
    pub locked: bool,
}

pub type Result<T> = std::result::Result<T, Failure>;

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const BUSY: u8 = 3;
pub const FULL: u8 = 4;

impl Failure {
    pub fn new(message: impl Display) -> Self {
        Self { message: message.to_string(), hint: None, code: FAILED, locked: false }
    }

    pub fn usage(message: impl Display) -> Self {
        Self { code: USAGE, ..Self::new(message) }
    }

    pub fn hint(self, hint: impl Display) -> Self {
        Self { hint: Some(hint.to_string()), ..self }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Locked { .. } | Error::Mounted { .. } | Error::MountInUse { .. } => BUSY,
            error if error.is_busy() => BUSY,
            error if error.is_out_of_space() => FULL,
            Error::InvalidOption { .. } | Error::InvalidName { .. } => USAGE,
            _ => FAILED,
        };
        let locked = matches!(error, Error::Locked { .. });
        Self { hint: hint(&error), message: error.to_string(), code, locked }
    }
}

impl From<dm_thin::dm::Error> for Failure {
    fn from(error: dm_thin::dm::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<dm_thin::thin::Error> for Failure {
    fn from(error: dm_thin::thin::Error) -> Self {
        Error::from(error).into()
    }
}

fn hint(error: &Error) -> Option<String> {
    let hint = match error {
        Error::NoPool { name } if name.starts_with("docker-") => {
            "`dm-thin docker activate /var/lib/docker` activates Docker's pool".to_owned()
        }
        Error::UnknownSnapshot { .. } => "`dm-thin ls` lists the snapshots".to_owned(),
        Error::Locked { holder: Some(process), .. } => {
            format!("that is process {}; `ls`, `tree`, `df` and `info` work beside it", process.pid)
        }
        Error::Locked { .. } => {
            "`ls`, `tree`, `df` and `info` work beside the program that has it".to_owned()
        }
        Error::Mounted { id, .. } => format!("`dm-thin umount {id}` unmounts it"),
        Error::Busy { snapshot: Some(id), .. } => format!("`dm-thin holders {id}` shows who has it open"),
        Error::MountInUse { id, .. } => format!("`dm-thin holders {id}` shows who uses it"),
        Error::DamagedMetadata { .. } => "`dm-thin repair-metadata` saves what can be saved".to_owned(),
        Error::Thin(dm_thin::thin::Error::Dm(
            dm_thin::dm::Error::NotPermitted { .. } | dm_thin::dm::Error::NoDeviceMapper { .. },
        )) => "run it as root; `dm-thin doctor` shows what is missing".to_owned(),
        error if error.is_out_of_space() => {
            "`dm-thin df` shows where; `rm`, `trim` and `grow-pool` make room".to_owned()
        }
        _ => return None,
    };
    Some(hint)
}
