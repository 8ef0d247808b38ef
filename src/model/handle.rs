//! Open devices. A caller polls one end of a socket pair; the other end is for events.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Weak;

use nix::errno::Errno;

use crate::kernel::{Access, DeviceFile, DeviceKind, DeviceNumber};

#[derive(Debug)]
pub(super) struct Handle {
    opened: Weak<()>,
    kind: DeviceKind,
    pub(super) number: DeviceNumber,
    pub(super) access: Access,
    /// The process that opened it.
    pub(super) process: usize,
    ours: UnixStream,
    signalled: bool,
}

/// Takes out those whose caller has dropped its file.
pub(super) fn drop_closed(handles: &mut Vec<Handle>) {
    handles.retain(|handle| handle.opened.strong_count() > 0);
}

impl Handle {
    pub(super) fn new(
        kind: DeviceKind,
        number: DeviceNumber,
        access: Access,
        process: usize,
    ) -> Result<(Self, DeviceFile), Errno> {
        let pair = || -> std::io::Result<_> {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            Ok((ours, theirs))
        };
        let (ours, theirs) = pair().map_err(|_| Errno::EMFILE)?;
        let file = DeviceFile::simulated(OwnedFd::from(theirs), kind, number);
        Ok((Self { opened: file.lifetime(), kind, number, access, process, ours, signalled: false }, file))
    }

    /// Whether this is the handle behind `file`.
    pub(super) fn is(&self, file: &DeviceFile) -> bool {
        self.opened.ptr_eq(&file.lifetime())
    }

    pub(super) fn is_control(&self) -> bool {
        self.kind == DeviceKind::MapperControl
    }

    pub(super) fn is_block(&self) -> bool {
        matches!(self.kind, DeviceKind::Loop | DeviceKind::Block)
    }

    /// Makes `poll` answer POLLIN.
    pub(super) fn signal(&mut self) {
        if !self.signalled {
            self.signalled = (&self.ours).write(&[1]).is_ok();
        }
    }

    /// DEV_ARM_POLL: only later events count.
    pub(super) fn arm(&mut self, file: &DeviceFile) {
        if self.signalled {
            // Empty already, it is as quiet as it is to be.
            let _ = nix::unistd::read(file, &mut [0]);
            self.signalled = false;
        }
    }
}
