//! Open devices. A caller holds one end of a socket pair; when it closes that, the other end says so.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::kernel::{Access, DeviceFile, DeviceKind, DeviceNumber};

#[derive(Debug)]
pub(super) struct Handle {
    fd: RawFd,
    kind: DeviceKind,
    pub(super) number: DeviceNumber,
    pub(super) access: Access,
    ours: UnixStream,
    signalled: bool,
}

/// Take out those whose caller has closed its end.
pub(super) fn drop_closed(handles: &mut Vec<Handle>) {
    let mut ends: Vec<_> =
        handles.iter().map(|handle| PollFd::new(handle.ours.as_fd(), PollFlags::empty())).collect();
    if poll(&mut ends, PollTimeout::ZERO).unwrap_or(0) == 0 {
        return;
    }
    let closed: Vec<_> = ends.iter().map(|end| end.any().unwrap_or(true)).collect();
    let mut closed = closed.into_iter();
    handles.retain(|_| closed.next() != Some(true));
}

impl Handle {
    pub(super) fn new(
        kind: DeviceKind,
        number: DeviceNumber,
        access: Access,
    ) -> Result<(Self, DeviceFile), Errno> {
        let pair = || -> std::io::Result<_> {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            Ok((ours, theirs))
        };
        let (ours, theirs) = pair().map_err(|_| Errno::EMFILE)?;
        let file = DeviceFile::simulated(OwnedFd::from(theirs), kind, number);
        Ok((Self { fd: file.as_raw_fd(), kind, number, access, ours, signalled: false }, file))
    }

    /// Whether this is the handle behind `file`.
    pub(super) fn is(&self, file: &DeviceFile) -> bool {
        self.fd == file.as_raw_fd() && self.kind == file.kind() && self.number == file.number()
    }

    pub(super) fn is_control(&self) -> bool {
        self.kind == DeviceKind::MapperControl
    }

    pub(super) fn is_block(&self) -> bool {
        matches!(self.kind, DeviceKind::Loop | DeviceKind::Block)
    }

    /// Make `poll` answer POLLIN.
    pub(super) fn signal(&mut self) {
        if !self.signalled {
            self.signalled = (&self.ours).write(&[1]).is_ok();
        }
    }

    /// DEV_ARM_POLL: only later events count.
    pub(super) fn arm(&mut self, file: &DeviceFile) {
        if self.signalled {
            let _ = nix::unistd::read(file, &mut [0]);
            self.signalled = false;
        }
    }
}
