//! Mounting, unmounting, and taking over the mounts of an earlier manager.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use crate::abi::mount::{MountFlags, UnmountFlags};
use crate::kernel::MountError;
use crate::kernel::{DeviceNumber, Kernel, MountId};
use crate::retry::Retry;
use crate::thin::{ThinId, ThinVolume};
use crate::tree::live::mount::{Covered, MountPoint, Mounted, Where};
use crate::tree::live::mount_options::{MountCall, MountOptions};
use crate::tree::live::mounts::{MountDefaults, Mounts, Note};
use crate::tree::mount_table::{MountLine, is_listed, mounts};
use crate::tree::{Error, Result};

impl Mounts {
    /// Mounts an active volume on `target`, which is made if it is not there.
    /// `name_of` a volume is for errors.
    ///
    /// # Errors
    /// [`Error::Mounted`] if another volume is mounted there; [`Error::Mount`].
    pub(in crate::tree) fn mount(
        &self,
        volume: &ThinVolume,
        target: &Path,
        temporary: bool,
        options: &MountOptions,
        name_of: impl FnOnce(ThinId) -> String,
    ) -> Result<Mounted> {
        let kernel = &*self.kernel;
        let (id, device) = (volume.id(), volume.number());
        let place = MountPoint::open(kernel, target)?;
        let made = match place.top(kernel)? {
            Some(_) => false,
            None => make_directory(kernel, &place)?,
        };
        let gone = || Error::io("open", place.path())(Errno::ENOENT);
        let top = place.top(kernel).and_then(|top| top.ok_or_else(gone)).inspect_err(|_| {
            if made {
                // Best effort; it is empty.
                let _ = kernel.files().remove_directory(&place.above, &place.name);
            }
        })?;
        let target = place.path();
        let covered = Covered::of(&top);
        let undo = || {
            if made {
                place.remove(kernel, covered);
            }
        };
        let note = Note { target: target.clone(), device, covered, made, temporary, mount: None };
        if let Err(refused) = self.reserve(id, note, (&place, &top)) {
            return Err(match refused {
                Ok(other) => Error::Mounted { id: name_of(other), target },
                Err(error) => {
                    undo();
                    error
                }
            });
        }
        let node = volume.path();
        let mounted = self
            .describe(&node, options)
            .and_then(|call| self.call_mount(&call, (&top.proc_path(), &target)));
        drop(top);
        let found = mounted.map_err(|error| (error, false));
        let found = found.and_then(|()| find_mount(kernel, &place, device).map_err(|error| (error, true)));
        let mount = found.map_err(|(error, is_mounted)| {
            if !is_mounted || unmount_unconfirmed(kernel, &place, device) {
                self.release(id);
                undo();
            }
            error
        })?;
        self.confirm(id, mount);
        let mounted = Mounted { target, count: 1, id: mount, place };
        self.propagate(&mounted, self.how.options.flags | options.flags).inspect_err(|_| {
            // Best effort: return the original error. A mount that stays is taken over by the next open.
            let _ = self.unmount(id, &mounted);
        })?;
        Ok(mounted)
    }

    /// Sets the propagation of a mount, if the flags have one.
    fn propagate(&self, mounted: &Mounted, flags: MountFlags) -> Result<()> {
        let propagation = flags & MountFlags::PROPAGATION;
        if propagation.is_empty() {
            return Ok(());
        }
        self.kernel.mount(None, &mounted.path(), None, propagation, "").map_err(|errno| {
            let call = format!("mount {} (flags {:#x})", mounted.target.display(), propagation.bits());
            Error::Mount(Box::new(MountError { call, errno }))
        })
    }

    /// Takes down the mount, and removes the directory if this tree made it. One that is not there any more is fine:
    /// another program unmounted it.
    pub(in crate::tree) fn unmount(&self, id: ThinId, mounted: &Mounted) -> Result<()> {
        let kernel = &*self.kernel;
        match self.where_is(mounted)? {
            Where::OnTop => {
                match kernel.unmount(&mounted.path(), UnmountFlags::NOFOLLOW) {
                    // Another program was faster.
                    Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                    Err(errno) => {
                        let call = format!("unmount {}", mounted.target.display());
                        return Err(Error::Mount(Box::new(MountError { call, errno })));
                    }
                }
            }
            Where::Covered => return Err(Error::Covered { target: mounted.target.clone() }),
            Where::Gone => {}
        }
        self.forget(id, &mounted.place);
        Ok(())
    }

    pub(in crate::tree) fn where_is(&self, mounted: &Mounted) -> Result<Where> {
        let kernel = &*self.kernel;
        match mounted.place.top(kernel) {
            Ok(Some(top)) if top.mount() == mounted.id => Ok(Where::OnTop),
            _ if !is_listed(kernel, mounted.id)? => Ok(Where::Gone),
            Err(error @ Error::Io { .. }) => Err(error),
            _ => Ok(Where::Covered),
        }
    }

    /// Whether `target` is where that mount is.
    pub(in crate::tree) fn is_on(&self, mounted: &Mounted, target: &Path) -> Result<bool> {
        Ok(MountPoint::open(&*self.kernel, target)?.is_same(&mounted.place))
    }

    /// The mounts of an earlier manager, by their volumes. Those that are gone are forgotten, together with the
    /// directories made for them; those for growing a file system are unmounted.
    pub(in crate::tree) fn take_over(&self, busy_timeout: Duration) -> Result<BTreeMap<ThinId, Mounted>> {
        let kernel = &*self.kernel;
        let notes = self.notes();
        let lines = if notes.is_empty() { Vec::new() } else { mounts(kernel)? };
        let mut found = BTreeMap::new();
        for (id, note) in notes {
            // Until it is confirmed, device and target identify it.
            let line = lines.iter().rfind(|line| {
                line.device == note.device
                    && note.mount.map_or(line.target == note.target, |mount| mount.id == line.id)
            });
            // Where it is now: a directory above it may have been renamed.
            let target = line.map_or(note.target, |line| line.target.clone());
            let Ok(place) = MountPoint::open(kernel, &target) else {
                // While it is mounted, a later open may find it.
                if line.is_none() {
                    self.release(id);
                }
                continue;
            };
            let (id_now, top) = (line.map(|line| line.mount_id()), place.top(kernel).ok().flatten());
            // With its unique id, if it is on top.
            let known = note.mount.or(id_now).filter(|_| line.is_some());
            let on_top = top.filter(|top| Some(top.mount().id) == known.map(|known| known.id));
            match (known, on_top.map(|top| top.mount())) {
                (Some(known), Some(top)) if known != top => self.forget(id, &place),
                (Some(known), top) => {
                    let mount = top.unwrap_or(known);
                    self.confirm(id, mount);
                    let mounted = Mounted { target, count: 1, id: mount, place };
                    match note.temporary {
                        true => self.unmount_temporary(id, &mounted, busy_timeout)?,
                        false => drop(found.insert(id, mounted)),
                    }
                }
                (None, _) => self.forget(id, &place),
            }
        }
        Ok(found)
    }

    /// Takes down a temporary mount. Other programs may have it open for a moment: one that looks at new mounts, or the one
    /// that grows the file system and outlives a manager that was killed.
    pub(in crate::tree) fn unmount_temporary(
        &self,
        id: ThinId,
        mounted: &Mounted,
        timeout: Duration,
    ) -> Result<()> {
        let mut retry = Retry::within(timeout);
        loop {
            match self.unmount(id, mounted) {
                Err(error) if error.is_busy() && retry.pause() => {}
                result => return result,
            }
        }
    }

    /// How `device` is mounted.
    pub(in crate::tree) fn describe(&self, device: &Path, options: &MountOptions) -> Result<MountCall> {
        let MountDefaults { filesystem, options: defaults } = &self.how;
        let Some(name) = filesystem.kernel_name() else {
            return Err(Error::InvalidOption {
                option: "mount",
                value: device.display().to_string(),
                reason: "the tree was made without a file system",
            });
        };
        let flags = defaults.flags | options.flags;
        let parts = [filesystem.mount_options(), &defaults.data, &options.data];
        let options = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(",");
        Ok(MountCall { source: device.into(), filesystem: name, flags, options })
    }

    /// Mounts on the directory at `at`, which an error calls `target`.
    fn call_mount(&self, call: &MountCall, (at, target): (&Path, &Path)) -> Result<()> {
        let MountCall { source, filesystem, flags, options } = call;
        let flags = flags.difference(MountFlags::PROPAGATION);
        self.kernel.mount(Some(source), at, Some(filesystem), flags, options).map_err(|errno| {
            let (source, target, flags) = (source.display(), target.display(), flags.bits());
            let options = if options.is_empty() { String::new() } else { format!(", options {options}") };
            let call = format!("mount {source} on {target} ({filesystem}, flags {flags:#x}{options})");
            Error::Mount(Box::new(MountError { call, errno }))
        })
    }
}

/// Takes down a mount that was made and not found again: best effort, since the first error is returned. If it fails
/// the note stays, and the next manager finds the mount by device and target.
fn unmount_unconfirmed(kernel: &dyn Kernel, place: &MountPoint, device: DeviceNumber) -> bool {
    let is_ours = place.top(kernel).is_ok_and(|top| top.is_some_and(|top| top.mount().device == device));
    is_ours && kernel.unmount(&place.path(), UnmountFlags::NOFOLLOW).is_ok()
}

/// Whether this call made it: another one may be faster.
fn make_directory(kernel: &dyn Kernel, place: &MountPoint) -> Result<bool> {
    match kernel.files().make_directory(&place.above, &place.name, 0o755) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(Error::io("create", place.path())(errno)),
    }
}

/// The mount of `device` that was just made.
fn find_mount(kernel: &dyn Kernel, place: &MountPoint, device: DeviceNumber) -> Result<MountId> {
    if let Some(top) = place.top(kernel)?.filter(|top| top.mount().device == device) {
        return Ok(top.mount());
    }
    // Another mount covers it already.
    let (target, lines) = (place.path(), mounts(kernel)?);
    let line = lines.iter().rfind(|line| line.device == device && line.target == target);
    line.map(MountLine::mount_id).ok_or_else(|| Error::io("find the mount on", target)(Errno::ENOENT))
}
