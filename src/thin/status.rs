//! Status lines of `thin-pool` and `thin`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::table::malformed;
use super::{Discards, NoSpace, PoolMode, TransactionId};
use crate::thin::{Error, Result};
use crate::units::{Blocks, Sectors};

/// The status of a pool.
///
/// Complete: these are all that the kernel prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolStatus {
    /// In every mode but the last.
    Usage(PoolUsage),
    /// The pool is in [`PoolMode::Fail`].
    Fail,
    /// The status could not be read (`Error`).
    Error,
}

/// The numbers of a pool's status line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolUsage {
    /// What [`Message::SetTransactionId`](super::Message::SetTransactionId) last set.
    pub transaction_id: TransactionId,
    /// Metadata blocks (4 KiB) in use.
    pub used_metadata: Blocks,
    /// Metadata blocks there are.
    pub total_metadata: Blocks,
    /// Data blocks in use.
    pub used_data: Blocks,
    /// Data blocks there are.
    pub total_data: Blocks,
    /// Root of the reserved metadata snapshot, if one is held.
    pub held_metadata_root: Option<Blocks>,
    /// The mode.
    pub mode: PoolMode,
    /// What happens to discards.
    pub discards: Discards,
    /// What happens to writes without space; kernels before 3.14 do not report it.
    pub no_space: Option<NoSpace>,
    /// The metadata needs `thin_check` before the pool will be writable again.
    pub needs_check: bool,
    /// Free metadata blocks below which an event is raised; kernels before 4.19 do not report it.
    pub metadata_low_water: Option<Blocks>,
}

impl PoolUsage {
    /// Data blocks that are not in use.
    pub fn free_data(&self) -> Blocks {
        Blocks(self.total_data.0.saturating_sub(self.used_data.0))
    }

    /// Metadata blocks that are not in use. The kernel keeps some back for deletions.
    pub fn free_metadata(&self) -> Blocks {
        Blocks(self.total_metadata.0.saturating_sub(self.used_metadata.0))
    }
}

impl PoolStatus {
    /// The mode; without numbers it is [`PoolMode::Fail`].
    pub fn mode(&self) -> PoolMode {
        match self {
            Self::Usage(usage) => usage.mode,
            Self::Fail | Self::Error => PoolMode::Fail,
        }
    }
}

impl FromStr for PoolStatus {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text.trim_end() {
            "Fail" => Ok(Self::Fail),
            "Error" => Ok(Self::Error),
            text => parse_usage(text).map(Self::Usage).ok_or_else(|| malformed("thin-pool status", text)),
        }
    }
}

fn parse_usage(text: &str) -> Option<PoolUsage> {
    let mut words = text.split_ascii_whitespace();
    let transaction_id = TransactionId(words.next()?.parse().ok()?);
    let (used_metadata, total_metadata) = fraction(words.next()?)?;
    let (used_data, total_data) = fraction(words.next()?)?;
    let held_metadata_root = match words.next()? {
        "-" => None,
        block => Some(Blocks(block.parse().ok()?)),
    };
    let mode = match words.next()? {
        "rw" => PoolMode::ReadWrite,
        "ro" => PoolMode::ReadOnly,
        "out_of_data_space" => PoolMode::OutOfDataSpace,
        _ => return None,
    };
    let discards = match words.next()? {
        "ignore_discard" => Discards::Ignore,
        "discard_passdown" => Discards::Passdown,
        "no_discard_passdown" => Discards::NoPassdown,
        _ => return None,
    };
    let no_space = match words.next() {
        None => None,
        Some("error_if_no_space") => Some(NoSpace::Error),
        Some("queue_if_no_space") => Some(NoSpace::Queue),
        Some(_) => return None,
    };
    let needs_check = match words.next() {
        None | Some("-") => false,
        Some("needs_check") => true,
        Some(_) => return None,
    };
    let metadata_low_water = words.next().map(|word| word.parse().map(Blocks)).transpose().ok()?;
    Some(PoolUsage {
        transaction_id,
        used_metadata,
        total_metadata,
        used_data,
        total_data,
        held_metadata_root,
        mode,
        discards,
        no_space,
        needs_check,
        metadata_low_water,
    })
}

fn fraction(text: &str) -> Option<(Blocks, Blocks)> {
    let (used, total) = text.split_once('/')?;
    Some((Blocks(used.parse().ok()?), Blocks(total.parse().ok()?)))
}

impl fmt::Display for PoolStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(usage) => usage.fmt(f),
            Self::Fail => f.write_str("Fail"),
            Self::Error => f.write_str("Error"),
        }
    }
}

/// As the kernel writes it, without the blank at the end.
impl fmt::Display for PoolUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.transaction_id)?;
        write!(f, "{}/{} ", self.used_metadata.0, self.total_metadata.0)?;
        write!(f, "{}/{} ", self.used_data.0, self.total_data.0)?;
        match self.held_metadata_root {
            Some(block) => write!(f, "{} ", block.0)?,
            None => f.write_str("- ")?,
        }
        let discards = match self.discards {
            Discards::Ignore => "ignore_discard",
            Discards::Passdown => "discard_passdown",
            Discards::NoPassdown => "no_discard_passdown",
        };
        write!(f, "{} {discards}", self.mode)?;
        // Each word came later than the one before it.
        let Some(no_space) = self.no_space else { return Ok(()) };
        f.write_str(match no_space {
            NoSpace::Error => " error_if_no_space",
            NoSpace::Queue => " queue_if_no_space",
        })?;
        f.write_str(if self.needs_check { " needs_check" } else { " -" })?;
        self.metadata_low_water.map_or(Ok(()), |blocks| write!(f, " {}", blocks.0))
    }
}

/// The status of a thin volume.
///
/// Complete: these are all that the kernel prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinStatus {
    /// The volume works.
    Mapped {
        /// How much of it has blocks.
        mapped: Sectors,
        /// The last sector that has one.
        highest: Option<Sectors>,
    },
    /// Its table is not in use yet (`-`).
    Inactive,
    /// The pool is in [`PoolMode::Fail`].
    Fail,
    /// The status could not be read.
    Error,
}

impl FromStr for ThinStatus {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text.trim_end() {
            "-" => Ok(Self::Inactive),
            "Fail" => Ok(Self::Fail),
            "Error" => Ok(Self::Error),
            text => parse_mapped(text).ok_or_else(|| malformed("thin status", text)),
        }
    }
}

fn parse_mapped(text: &str) -> Option<ThinStatus> {
    let (mapped, highest) = text.split_once(' ')?;
    let highest = match highest {
        "-" => None,
        sector => Some(Sectors(sector.parse().ok()?)),
    };
    Some(ThinStatus::Mapped { mapped: Sectors(mapped.parse().ok()?), highest })
}

impl fmt::Display for ThinStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped { mapped, highest: Some(highest) } => write!(f, "{} {}", mapped.0, highest.0),
            Self::Mapped { mapped, highest: None } => write!(f, "{} -", mapped.0),
            Self::Inactive => f.write_str("-"),
            Self::Fail => f.write_str("Fail"),
            Self::Error => f.write_str("Error"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn usage()(
            transaction_id in any::<u64>().prop_map(TransactionId),
            numbers in any::<[u64; 4]>(),
            held in proptest::option::of(any::<u64>()),
            mode in prop_oneof![
                Just(PoolMode::ReadWrite), Just(PoolMode::ReadOnly), Just(PoolMode::OutOfDataSpace)
            ],
            discards in prop_oneof![Just(Discards::Ignore), Just(Discards::Passdown), Just(Discards::NoPassdown)],
            tail in proptest::option::of((any::<bool>(), any::<bool>(), proptest::option::of(any::<u64>()))),
        ) -> PoolUsage {
            let [used_metadata, total_metadata, used_data, total_data] = numbers.map(Blocks);
            PoolUsage {
                transaction_id, used_metadata, total_metadata, used_data, total_data,
                held_metadata_root: held.map(Blocks),
                mode, discards,
                no_space: tail.map(|(error, ..)| if error { NoSpace::Error } else { NoSpace::Queue }),
                needs_check: tail.is_some_and(|(_, check, _)| check),
                metadata_low_water: tail.and_then(|(.., low)| low.map(Blocks)),
            }
        }
    }

    proptest! {
        #[test]
        fn pool_status_round_trips(usage in usage()) {
            let status = PoolStatus::Usage(usage);
            prop_assert_eq!(status.to_string().parse::<PoolStatus>().unwrap(), status);
        }

        #[test]
        fn thin_status_round_trips(mapped in any::<u64>(), highest in proptest::option::of(any::<u64>())) {
            let status = ThinStatus::Mapped { mapped: Sectors(mapped), highest: highest.map(Sectors) };
            prop_assert_eq!(status.to_string().parse::<ThinStatus>().unwrap(), status);
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<PoolStatus>();
            let _ = text.parse::<ThinStatus>();
        }
    }

    #[test]
    fn the_line_of_a_6_1_kernel() {
        let line = "0 15/1024 0/16384 - rw discard_passdown queue_if_no_space - 1024 ";
        let PoolStatus::Usage(usage) = line.parse().unwrap() else { panic!("{line}") };
        assert_eq!((usage.used_metadata, usage.total_metadata), (Blocks(15), Blocks(1024)));
        assert_eq!((usage.used_data, usage.total_data), (Blocks(0), Blocks(16384)));
        assert_eq!(usage.mode, PoolMode::ReadWrite);
        assert_eq!(usage.metadata_low_water, Some(Blocks(1024)));
        assert!(!usage.needs_check);
    }

    #[test]
    fn the_line_of_an_old_kernel() {
        let line = "3 100/256 1/2 77 ro no_discard_passdown";
        assert_eq!(line.parse::<PoolStatus>().unwrap().to_string(), line);
    }

    #[test]
    fn bad_states() {
        assert_eq!("Fail".parse::<PoolStatus>().unwrap().mode(), PoolMode::Fail);
        assert_eq!("Error".parse::<ThinStatus>().unwrap(), ThinStatus::Error);
        assert!("0 15/1024 0/16384 - rx discard_passdown".parse::<PoolStatus>().is_err());
    }
}
