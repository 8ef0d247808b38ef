//! Mounts: reserved and recognised by what they are, not by their paths.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::abi::mount::{MountFlags, UnmountFlags};
use crate::kernel::MountError;
use crate::kernel::{DeviceNumber, Directory, Kernel, Links, MountId};
use crate::thin::{ThinId, ThinVolume};
use crate::tree::live::active::Deadline;
use crate::tree::state::files::{StateDir, read_at_most};
use crate::tree::{Error, Result};
use crate::tree::{Filesystem, Options, SnapshotTree};

/// Mounts `device` on the directory at `at`, which an error calls `target`.
fn mount(
    options: &Options,
    filesystem: Filesystem,
    device: &Path,
    (at, target): (&Path, &Path),
    extra: MountFlags,
) -> Result<()> {
    let Some(name) = filesystem.kernel_name() else {
        return Err(Error::InvalidOption {
            option: "mount",
            value: device.display().to_string(),
            reason: "the tree was made without a file system",
        });
    };
    let flags = options.mount_flags | extra;
    let parts = [filesystem.mount_options(), &options.mount_options];
    let data = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(",");
    options.kernel.mount(Some(device), at, Some(name), flags, &data).map_err(|errno| {
        let (device, target) = (device.display(), target.display());
        let data = if data.is_empty() { data } else { format!(", options {data}") };
        let call = format!("mount {device} on {target} ({name}, flags {:#x}{data})", flags.bits());
        Error::Mount(Box::new(MountError { call, errno }))
    })
}

/// A directory by the one above it and its name: what is mounted on it, and what it covers, are found from there.
#[derive(Debug)]
struct Place {
    above: Directory,
    name: OsString,
}

impl Place {
    fn open(kernel: &dyn Kernel, path: &Path) -> Result<Self> {
        let absolute = std::path::absolute(path).map_err(Error::io("resolve", path))?;
        let (Some(above), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(bad_target(path, "does not end in the name of a directory"));
        };
        let directory = kernel.files().open_directory(above, Links::Trusted);
        let directory = directory.map_err(Error::above("open", &absolute))?;
        Ok(Self { above: directory, name: name.to_owned() })
    }

    fn path(&self) -> PathBuf {
        self.above.path().join(&self.name)
    }

    /// The directory, or what is mounted on it; `None` if it is not there.
    fn top(&self, kernel: &dyn Kernel) -> Result<Option<Directory>> {
        match kernel.files().enter_directory(&self.above, &self.name) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                Err(bad_target(&self.path(), "not a directory; a symbolic link is not followed"))
            }
            Err(errno) => Err(Error::io("open", self.path())(errno)),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.above.mount() == other.above.mount()
            && self.above.inode() == other.above.inode()
            && self.name == other.name
    }

    /// Removes the directory, if it is the one of that identity and empty.
    fn remove(&self, kernel: &dyn Kernel, covered: Covered) {
        if self.top(kernel).is_ok_and(|top| top.is_some_and(|top| Covered::of(&top) == covered)) {
            // Somebody may have put something into it: then it is theirs now.
            let _ = kernel.files().remove_directory(&self.above, &self.name);
        }
    }
}

fn bad_target(path: &Path, reason: &'static str) -> Error {
    Error::InvalidOption { option: "mount target", value: path.display().to_string(), reason }
}

/// Identity of a directory that is mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Covered {
    device: DeviceNumber,
    inode: u64,
}

impl Covered {
    fn of(directory: &Directory) -> Self {
        Self { device: directory.mount().device, inode: directory.inode() }
    }
}

/// A mount of a volume, and how often it was asked for.
#[derive(Debug)]
pub(in crate::tree) struct Mounted {
    pub(in crate::tree) target: PathBuf,
    pub(in crate::tree) count: u32,
    id: MountId,
    place: Place,
}

impl Mounted {
    /// A path that leads there whatever happens to the names above it.
    pub(in crate::tree) fn path(&self) -> PathBuf {
        self.place.above.proc_path().join(&self.place.name)
    }

    pub(in crate::tree) fn id(&self) -> MountId {
        self.id
    }

    /// Its own directory. Nobody can unmount it as long as that is open.
    pub(in crate::tree) fn root(&self, kernel: &dyn Kernel) -> Result<Directory> {
        let covered = || Error::Covered { target: self.target.clone() };
        self.place.top(kernel)?.filter(|top| top.mount() == self.id).ok_or_else(covered)
    }
}

/// What is noted of a mount before it is made, for the next manager if this one dies.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    target: PathBuf,
    /// The volume's.
    device: DeviceNumber,
    covered: Covered,
    /// This tree made the directory, and removes it.
    made: bool,
    /// For growing a file system: the next manager unmounts it.
    temporary: bool,
    /// `None` while it is being mounted.
    mount: Option<MountId>,
}

const NOTES: &str = "mounts.json";
/// More than any notes are long.
const NOTES_MAX: u64 = 256 << 20;
const NOTES_TMP: &str = "mounts.json.tmp";

/// The mounts that this tree made, by the volumes. They are noted in a file of the root, which is not synced: mounts
/// do not outlive a power cut either. A mount that is not noted is somebody else's.
#[derive(Debug)]
pub(in crate::tree) struct Mounts {
    dir: Arc<dyn StateDir>,
    notes: Mutex<BTreeMap<ThinId, Note>>,
}

impl Mounts {
    pub(in crate::tree) fn load(dir: Arc<dyn StateDir>) -> Self {
        let bytes =
            dir.open(NOTES, false).and_then(|file| read_at_most(&*file, NOTES_MAX)).unwrap_or_default();
        // Unreadable, it says nothing: then every mount is somebody else's.
        let notes = serde_json::from_slice(&bytes).unwrap_or_default();
        Self { dir, notes: Mutex::new(notes) }
    }

    fn notes(&self) -> MutexGuard<'_, BTreeMap<ThinId, Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, notes: &BTreeMap<ThinId, Note>) -> Result<()> {
        let write = || {
            let bytes = serde_json::to_vec(notes)?;
            let file = self.dir.open(NOTES_TMP, true)?;
            file.set_len(0)?;
            file.write_at(0, &bytes)?;
            self.dir.rename(NOTES_TMP, NOTES)
        };
        write().map_err(Error::io("write", NOTES))
    }

    /// Reserves a directory for a volume; `Err(Ok(other))` if another one has it.
    fn reserve(
        &self,
        kernel: &dyn Kernel,
        id: ThinId,
        note: Note,
        (place, top): (&Place, &Directory),
    ) -> Result<(), Result<ThinId, Error>> {
        let mut notes = self.notes();
        let is_mount = top.mount() != place.above.mount();
        for (&other, it) in notes.iter_mut().filter(|(other, _)| **other != id) {
            let same = it.covered == note.covered || (is_mount && it.device == top.mount().device);
            // One that somebody else unmounted is in nobody's way.
            if same && it.mount.map_or(Ok(true), |mount| is_listed(kernel, mount)).map_err(Err)? {
                // The directory that this call has just made serves the other one.
                it.made |= note.made;
                return Err(Ok(other));
            }
        }
        notes.insert(id, note);
        self.write(&notes).map_err(Err).inspect_err(|_| drop(notes.remove(&id)))
    }

    fn confirm(&self, id: ThinId, mount: MountId) {
        let mut notes = self.notes();
        if let Some(note) = notes.get_mut(&id) {
            note.mount = Some(mount);
            // The note that is there names device and target.
            let _ = self.write(&notes);
        }
    }

    /// There is no mount.
    fn release(&self, id: ThinId) {
        let mut notes = self.notes();
        notes.remove(&id);
        // A note without a mount is passed over by the next manager.
        let _ = self.write(&notes);
    }

    /// The mount is gone: its note goes, and its directory, if it was made for it. The note goes last, so that the
    /// next manager does what a kill cuts short.
    fn forget(&self, kernel: &dyn Kernel, id: ThinId, place: &Place) {
        let mut notes = self.notes();
        let Some(note) = notes.get(&id).filter(|note| note.made).cloned() else {
            drop(notes);
            return self.release(id);
        };
        match notes.iter_mut().find(|(other, it)| **other != id && it.covered == note.covered) {
            // It is needed as long as that mount.
            Some((_, other)) => other.made = true,
            // This also ends copies of the mount in other namespaces.
            None => place.remove(kernel, note.covered),
        }
        drop(notes);
        self.release(id);
    }
}

impl SnapshotTree {
    /// Mounts an active volume on `target`, which is made if it is not there, with `flags` beside those of the options.
    pub(in crate::tree) fn mount_volume(
        &self,
        volume: &ThinVolume,
        target: &Path,
        temporary: bool,
        flags: MountFlags,
    ) -> Result<Mounted> {
        let kernel = &*self.options.kernel;
        let (id, device) = (volume.id(), volume.number());
        let place = Place::open(kernel, target)?;
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
        if let Err(refused) = self.mounts.reserve(kernel, id, note, (&place, &top)) {
            return Err(match refused {
                Ok(other) => Error::Mounted { id: self.name_of(other), target },
                Err(error) => {
                    undo();
                    error
                }
            });
        }
        let node = volume.path();
        let mounted = mount(&self.options, self.filesystem, &node, (&top.proc_path(), &target), flags);
        drop(top);
        let found = mounted.map_err(|error| (error, false));
        let found = found.and_then(|()| find_mount(kernel, &place, device).map_err(|error| (error, true)));
        let mount = found.map_err(|(error, is_mounted)| {
            if !is_mounted || unmount_unconfirmed(kernel, &place, device) {
                self.mounts.release(id);
                undo();
            }
            error
        })?;
        self.mounts.confirm(id, mount);
        Ok(Mounted { target, count: 1, id: mount, place })
    }

    /// Takes down the mount, and removes the directory if this tree made it. One that is not there any more is fine:
    /// somebody else unmounted it.
    pub(in crate::tree) fn unmount_volume(&self, id: ThinId, mounted: &Mounted) -> Result<()> {
        let kernel = &*self.options.kernel;
        match self.where_is(mounted)? {
            Where::OnTop => {
                match kernel.unmount(&mounted.path(), UnmountFlags::NOFOLLOW) {
                    // Somebody else was faster.
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
        self.forget_mount(id, &mounted.place);
        Ok(())
    }

    fn forget_mount(&self, id: ThinId, place: &Place) {
        self.mounts.forget(&*self.options.kernel, id, place);
    }

    pub(in crate::tree) fn where_is(&self, mounted: &Mounted) -> Result<Where> {
        let kernel = &*self.options.kernel;
        match mounted.place.top(kernel) {
            Ok(Some(top)) if top.mount() == mounted.id => Ok(Where::OnTop),
            _ if is_listed(kernel, mounted.id)? => Ok(Where::Covered),
            _ => Ok(Where::Gone),
        }
    }

    /// Whether `target` is where that mount is.
    pub(in crate::tree) fn is_mounted_on(&self, mounted: &Mounted, target: &Path) -> Result<bool> {
        Ok(Place::open(&*self.options.kernel, target)?.is_same(&mounted.place))
    }

    /// Somebody else unmounted it.
    pub(in crate::tree) fn forget_mounted(&self, id: ThinId, mounted: &Mounted) {
        self.forget_mount(id, &mounted.place);
    }

    /// The mounts of an earlier manager, by their volumes. Those that are gone are forgotten, together with the
    /// directories made for them; those for growing a file system are unmounted.
    pub(in crate::tree) fn take_over_mounts(&self) -> Result<BTreeMap<ThinId, Mounted>> {
        let kernel = &*self.options.kernel;
        let notes = self.mounts.notes().clone();
        let lines = if notes.is_empty() { Vec::new() } else { mounts(kernel)? };
        let mut found = BTreeMap::new();
        for (id, note) in notes {
            let Ok(place) = Place::open(kernel, &note.target) else {
                self.mounts.release(id);
                continue;
            };
            // Until it is confirmed, device and target tell.
            let line = lines.iter().rfind(|line| {
                line.device == note.device
                    && note.mount.map_or(line.target == note.target, |mount| mount.id == line.id)
            });
            let (id_now, top) = (line.map(|line| line.mount_id()), place.top(kernel).ok().flatten());
            // With its unique id, if it is on top.
            let known = note.mount.or(id_now).filter(|_| line.is_some());
            let on_top = top.filter(|top| Some(top.mount().id) == known.map(|known| known.id));
            match (known, on_top.map(|top| top.mount())) {
                (Some(known), Some(top)) if known != top => self.forget_mount(id, &place),
                (Some(known), top) => {
                    let mount = top.unwrap_or(known);
                    self.mounts.confirm(id, mount);
                    let mounted = Mounted { target: note.target, count: 1, id: mount, place };
                    match note.temporary {
                        true => self.unmount_when_grown(id, &mounted)?,
                        false => drop(found.insert(id, mounted)),
                    }
                }
                (None, _) => self.forget_mount(id, &place),
            }
        }
        Ok(found)
    }

    /// Takes down a mount for growing a file system. The program that does that goes on when the manager that started it
    /// is killed, and keeps the mount busy until it has ended.
    fn unmount_when_grown(&self, id: ThinId, mounted: &Mounted) -> Result<()> {
        let end = Deadline::after(self.options.busy_timeout);
        loop {
            match self.unmount_volume(id, mounted) {
                Err(error) if error.is_busy() && !end.is_over() => thread::sleep(Duration::from_millis(10)),
                result => return result,
            }
        }
    }

    fn name_of(&self, thin_id: ThinId) -> String {
        let name = self.store.read(|graph| {
            let found = graph.snapshots.iter().find(|(_, snapshot)| snapshot.thin_id == thin_id);
            found.map(|(id, _)| id.to_string())
        });
        name.unwrap_or_else(|| format!("(volume {thin_id})"))
    }
}

/// Where a mount is that this tree made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tree) enum Where {
    OnTop,
    /// Another mount lies over it, or it was moved elsewhere.
    Covered,
    Gone,
}

/// Takes down a mount that was made and not found again: best effort, since the first error is returned. If it fails
/// the note stays, and the next manager finds the mount by device and target.
fn unmount_unconfirmed(kernel: &dyn Kernel, place: &Place, device: DeviceNumber) -> bool {
    let is_ours = place.top(kernel).is_ok_and(|top| top.is_some_and(|top| top.mount().device == device));
    is_ours && kernel.unmount(&place.path(), UnmountFlags::NOFOLLOW).is_ok()
}

/// Whether this call made it: another one may be faster.
fn make_directory(kernel: &dyn Kernel, place: &Place) -> Result<bool> {
    match kernel.files().make_directory(&place.above, &place.name, 0o755) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(Error::io("create", place.path())(errno)),
    }
}

/// The mount of `device` that was just made.
fn find_mount(kernel: &dyn Kernel, place: &Place, device: DeviceNumber) -> Result<MountId> {
    if let Some(top) = place.top(kernel)?.filter(|top| top.mount().device == device) {
        return Ok(top.mount());
    }
    // Somebody mounted over it already.
    let (target, lines) = (place.path(), mounts(kernel)?);
    let line = lines.iter().rfind(|line| line.device == device && line.target == target);
    line.map(MountLine::mount_id).ok_or_else(|| Error::io("find the mount on", target)(Errno::ENOENT))
}

fn is_listed(kernel: &dyn Kernel, mount: MountId) -> Result<bool> {
    Ok(mounts(kernel)?.iter().any(|line| line.is(mount)))
}

/// A line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tree) struct MountLine {
    id: u64,
    pub(in crate::tree) device: DeviceNumber,
    pub(in crate::tree) target: PathBuf,
}

impl MountLine {
    /// Whether it is that mount.
    pub(in crate::tree) fn is(&self, mount: MountId) -> bool {
        (self.id, self.device) == (mount.id, mount.device)
    }

    fn mount_id(&self) -> MountId {
        MountId { id: self.id, unique: None, device: self.device }
    }
}

/// Where each device is mounted in this mount namespace, in the order of the mounts.
pub(in crate::tree) fn mounts(kernel: &dyn Kernel) -> Result<Vec<MountLine>> {
    // What errors call it; the kernel in use reads it.
    let io = |errno: Errno| Error::io("read", "/proc/self/mountinfo")(errno);
    let table = kernel.mount_table().map_err(io)?;
    Ok(parse_table(&table))
}

/// The same in the text of any process's `mountinfo`.
pub(in crate::tree) fn parse_table(table: &[u8]) -> Vec<MountLine> {
    table.split(|&byte| byte == b'\n').filter_map(parse).collect()
}

/// `36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw`: see proc_pid_mountinfo(5).
fn parse(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
    // What else somebody bound from inside the file system is not its mount.
    fields.next().filter(|root| root == b"/")?;
    let target = OsString::from_vec(unescape(fields.next()?)).into();
    Some(MountLine { id, device, target })
}

/// Blank, tab, newline and backslash appear as `\ooo`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let code = match (first, after) {
            (b'\\', digits) if digits.len() >= 3 => {
                std::str::from_utf8(&digits[..3]).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_manual() {
        let line = b"36 35 98:0 / /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let device = DeviceNumber { major: 98, minor: 0 };
        assert_eq!(parse(line), Some(MountLine { id: 36, device, target: PathBuf::from("/mnt 2") }));
        assert_eq!(parse(b"36 35 98:0 /inside /mnt rw,noatime - ext3 /dev/root rw"), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\134b\\011\\"), b"a\\b\t\\");
        assert_eq!(unescape(b"\\999"), b"\\999");
    }
}
