//! Messages to a thin pool.

use std::fmt;
use std::str::FromStr;

use super::{ThinId, TransactionId};
use crate::thin::{Error, Result};

/// A message to a thin pool. The kernel commits the pool's metadata after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Message {
    /// Make an empty thin device. EEXIST if the id is taken.
    CreateThin {
        /// Its id.
        id: ThinId,
    },
    /// Make a snapshot. EEXIST if the id is taken, ENODATA if there is no such origin.
    CreateSnap {
        /// Its id.
        id: ThinId,
        /// What it is a snapshot of. If active, it must be suspended; the kernel does not check.
        origin: ThinId,
    },
    /// Delete a thin device. EBUSY if it is active, ENODATA if there is none.
    Delete {
        /// Its id.
        id: ThinId,
    },
    /// Change the transaction id. EINVAL if it is not `current`.
    SetTransactionId {
        /// What it is.
        current: TransactionId,
        /// What it becomes.
        new: TransactionId,
    },
    /// Reserve a metadata snapshot, which other programs can read. EBUSY if there is one.
    ReserveMetadataSnap,
    /// Release the metadata snapshot. EINVAL if there is none.
    ReleaseMetadataSnap,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateThin { id } => write!(f, "create_thin {id}"),
            Self::CreateSnap { id, origin } => write!(f, "create_snap {id} {origin}"),
            Self::Delete { id } => write!(f, "delete {id}"),
            Self::SetTransactionId { current, new } => write!(f, "set_transaction_id {current} {new}"),
            Self::ReserveMetadataSnap => f.write_str("reserve_metadata_snap"),
            Self::ReleaseMetadataSnap => f.write_str("release_metadata_snap"),
        }
    }
}

impl FromStr for Message {
    type Err = Error;

    /// As the kernel takes it: words parted by white space.
    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| Error::Malformed { what: "thin-pool message", raw: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Message> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    Some(match words[..] {
        ["create_thin", id] => Message::CreateThin { id: id.parse().ok()? },
        ["create_snap", id, origin] => {
            Message::CreateSnap { id: id.parse().ok()?, origin: origin.parse().ok()? }
        }
        ["delete", id] => Message::Delete { id: id.parse().ok()? },
        ["set_transaction_id", current, new] => Message::SetTransactionId {
            current: TransactionId(current.parse().ok()?),
            new: TransactionId(new.parse().ok()?),
        },
        ["reserve_metadata_snap"] => Message::ReserveMetadataSnap,
        ["release_metadata_snap"] => Message::ReleaseMetadataSnap,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_round_trip(id in 0u32..1 << 24, origin in 0u32..1 << 24, current: u64, new: u64) {
            let (id, origin) = (ThinId::new(id).unwrap(), ThinId::new(origin).unwrap());
            for message in [
                Message::CreateThin { id },
                Message::CreateSnap { id, origin },
                Message::Delete { id },
                Message::SetTransactionId { current: TransactionId(current), new: TransactionId(new) },
                Message::ReserveMetadataSnap,
                Message::ReleaseMetadataSnap,
            ] {
                prop_assert_eq!(message.to_string().parse::<Message>().unwrap(), message);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<Message>();
        }
    }

    #[test]
    fn what_is_no_message() {
        for text in ["", "create_thin", "create_thin 1 2", "create_thin 16777216", "delete x", "Delete 1"] {
            assert!(text.parse::<Message>().is_err(), "{text}");
        }
    }

    #[test]
    fn messages_are_the_kernels() {
        let id = |id| ThinId::new(id).unwrap();
        let text = |message: Message| message.to_string();
        assert_eq!(text(Message::CreateThin { id: id(0) }), "create_thin 0");
        assert_eq!(text(Message::CreateSnap { id: id(16_777_215), origin: id(3) }), "create_snap 16777215 3");
        assert_eq!(text(Message::Delete { id: id(7) }), "delete 7");
        assert_eq!(
            text(Message::SetTransactionId { current: TransactionId(1), new: TransactionId(2) }),
            "set_transaction_id 1 2"
        );
        assert_eq!(text(Message::ReserveMetadataSnap), "reserve_metadata_snap");
        assert_eq!(text(Message::ReleaseMetadataSnap), "release_metadata_snap");
    }
}
