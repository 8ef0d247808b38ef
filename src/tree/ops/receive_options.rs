//! How a stream is received.

use crate::tree::Result;
use crate::tree::SnapshotId;
use crate::tree::ops::send::{Observer, Progress};
use crate::units::Bytes;

/// The id here of an id at the sender.
type Rename<'a> = dyn Fn(&str) -> String + 'a;

/// How a stream is received.
#[non_exhaustive]
pub struct ReceiveOptions<'a> {
    pub(in crate::tree) progress: Observer<'a>,
    rename: Option<Box<Rename<'a>>>,
    pub(in crate::tree) resumable: bool,
    pub(in crate::tree) checkpoint_every: Bytes,
    pub(in crate::tree) allow_unzeroed: bool,
}

impl<'a> ReceiveOptions<'a> {
    /// Snapshots get the ids that they have at the sender.
    pub fn new() -> Self {
        let (progress, rename) = (Observer::default(), None);
        let checkpoint_every = Bytes::mib(64);
        Self { progress, rename, resumable: false, checkpoint_every, allow_unzeroed: false }
    }

    /// The id of the received snapshot, for a stream of one.
    #[must_use]
    pub fn name(self, id: impl Into<String>) -> Self {
        let id = id.into();
        self.rename(move |_| id.clone())
    }

    /// The id that a snapshot gets, from the one that it has at the sender.
    #[must_use]
    pub fn rename(mut self, rename: impl Fn(&str) -> String + 'a) -> Self {
        self.rename = Some(Box::new(rename));
        self
    }

    /// Keeps what was received if the receive fails, also after a crash:
    /// [`partial_receives`](crate::tree::SnapshotTree::partial_receives) lists it, and a stream
    /// [from there on](crate::tree::SendOptions::resume_from) continues it.
    #[must_use]
    pub fn resumable(mut self, resumable: bool) -> Self {
        self.resumable = resumable;
        self
    }

    /// How much a resumable receive writes until it makes that durable and notes how far it is. After a crash no more
    /// than that is sent again. Default: 64 MiB.
    #[must_use]
    pub fn checkpoint_every(mut self, amount: Bytes) -> Self {
        self.checkpoint_every = amount;
        self
    }

    /// Calls `observer` after each record.
    #[must_use]
    pub fn progress(mut self, observer: impl FnMut(Progress) + 'a) -> Self {
        self.progress = Observer(Some(Box::new(observer)));
        self
    }

    /// Receives into a pool that does not zero new blocks, too. Where the stream has data in a part of a block only,
    /// the other part contains what the block's last owner left there, instead of zeroes.
    #[must_use]
    pub fn allow_unzeroed(mut self, allow: bool) -> Self {
        self.allow_unzeroed = allow;
        self
    }

    pub(in crate::tree) fn id(&self, name: &str) -> Result<SnapshotId> {
        self.rename.as_ref().map_or_else(|| SnapshotId::new(name), |rename| SnapshotId::new(&rename(name)))
    }
}

impl Default for ReceiveOptions<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for ReceiveOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { progress, rename, resumable, checkpoint_every, allow_unzeroed } = self;
        f.debug_struct("ReceiveOptions")
            .field("progress", progress)
            .field("rename", &rename.is_some())
            .field("resumable", resumable)
            .field("checkpoint_every", checkpoint_every)
            .field("allow_unzeroed", allow_unzeroed)
            .finish()
    }
}
