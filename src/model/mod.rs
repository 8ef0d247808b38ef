//! A kernel in memory: device mapper with thin provisioning, loop devices and mounts behind the
//! [`Kernel`] seam, for tests that have no root and no device mapper.
//!
//! It reads requests byte by byte as strictly as the kernel and answers in kernel bytes, errno for errno. Devices keep
//! what is written to them: loop devices in their real files, disks in memory, thin volumes on the data devices of
//! their pools. A metadata device reads as the kernel writes it (see [`image`]), as of the last commit; of the device
//! itself the first eight bytes are used, for a mark by which the pool is known again.
//!
//! ```
//! use std::sync::Arc;
//! use dm_thin::dm::{DeviceMapper, UdevPolicy};
//! use dm_thin::model::ModelKernel;
//!
//! let kernel = Arc::new(ModelKernel::new());
//! let dm = DeviceMapper::with_kernel(kernel.clone(), UdevPolicy::None)?;
//! assert!(dm.list()?.is_empty());
//! assert!(kernel.is_clean());
//! # Ok::<(), dm_thin::tree::Error>(())
//! ```
//!
//! A tree without root, in any directory. The model's file systems are superblocks with a few files, that its own
//! `mkfs.ext4`, `mkfs.xfs`, `resize2fs` and `xfs_growfs` make and grow. What is in one that is mounted is seen through
//! the model alone ([`ModelKernel::read_file`], [`ModelKernel::write_file`]): the directory of the host stays as it is.
//!
//! ```
//! use std::sync::Arc;
//! use dm_thin::model::ModelKernel;
//! use dm_thin::tree::{Options, Parent, SnapshotTree};
//! # let directory = tempfile::tempdir().unwrap();
//! # let directory = directory.path();
//!
//! let kernel = Arc::new(ModelKernel::new());
//! let options = Options::new().kernel(kernel.clone());
//! let tree = SnapshotTree::open(directory.join("tree"), options)?;
//! tree.add("image", Parent::Base)?;
//! tree.add("container", Parent::Snapshot("image"))?;
//! let target = directory.join("target");
//! tree.mount("container", &target)?;
//! kernel.write_file(&target.join("hello"), b"world")?;
//! tree.unmount("container")?;
//! tree.close()?;
//! assert!(kernel.is_clean(), "{:?}", kernel.leftovers());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What differs from a real kernel: there is no page cache, so that a write fails at once, not when it is synced, but a
//! sync that [`fail_at`](ModelKernel::fail_at) makes fail loses what was not synced, on all devices, and the next sync
//! succeeds; nothing commits by the clock; the count of used metadata blocks is an estimate; metadata cannot be
//! restored by writing its blocks; the targets are error, linear, thin, thin-pool and zero; a request that would wait
//! for ever is answered EINTR ([`ModelOptions::wait_limit`]) or EDEADLK, a write to a full pool ENOSPC.

#![allow(clippy::disallowed_methods)] // files below loop devices, and the directories that are mounted on, are the host's

mod binding;
mod block;
mod cookie;
mod failures;
mod faults;
mod file_tree;
mod files;
mod filesystem;
mod handle;
mod hooks;
pub mod image;
mod io;
mod lines;
mod loopdev;
mod mapper;
mod metadata;
mod mount;
mod mounts;
mod number;
mod options;
mod pool;
mod processes;
mod programs;
mod store;
mod table;
mod target;
mod transfer;
mod udev;
mod volume;
mod world;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use std::ffi::{OsStr, OsString};

use std::fmt;

use std::path::{Path, PathBuf};

use std::process::Output;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use std::time::{Duration, Instant};

use nix::errno::Errno;

use self::faults::{Action, Faults, Verdict};

pub use self::faults::{Call, Cut};
pub use self::options::ModelOptions;

pub use self::pool::Mode;

use self::world::World;

use crate::abi::mount::{MountFlags, UnmountFlags};

use crate::abi::{Argument, Ioctl, dm};

use crate::kernel::{
    Access, Arg, DeviceFile, DeviceKind, DeviceNumber, FileLock, Files, Kernel, ProcessInfo, ProcessName,
    RealKernel, Semaphore,
};

/// The kernel, as one process sees it. Share it in an [`Arc`].
pub struct ModelKernel {
    shared: Arc<Shared>,
    /// Index of this process.
    process: usize,
}

/// What all processes share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Not what is in it: that would be pages in the message of a failed assertion.
impl fmt::Debug for ModelKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelKernel").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    /// By process.
    faults: Vec<Faults>,
    /// The power went: no process lives.
    off: bool,
    world: World,
}

impl Default for ModelKernel {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelKernel {
    /// A kernel with the usual options, and nothing in it.
    pub fn new() -> Self {
        Self::with_options(ModelOptions::default())
    }

    /// The same with other options.
    pub fn with_options(options: ModelOptions) -> Self {
        Self::with_world(World::new(options, BTreeMap::new(), BTreeMap::new()))
    }

    fn with_world(world: World) -> Self {
        let state = Mutex::new(State { faults: vec![Faults::default()], off: false, world });
        Self { shared: Arc::new(Shared { state, changed: Condvar::new() }), process: 0 }
    }

    /// Another process on the same kernel. Its calls are counted and logged by themselves, and faults and cuts that are
    /// planned for one process are not the other's.
    #[must_use]
    pub fn process(&self) -> Self {
        self.another(None)
    }

    /// The same, shown by `/proc` under a name of its own.
    #[must_use]
    pub fn process_called(&self, name: ProcessName) -> Self {
        self.another(Some(name))
    }

    fn another(&self, name: Option<ProcessName>) -> Self {
        let state = &mut *self.lock();
        let mut faults = Faults::default();
        if state.off {
            faults.kill();
        }
        state.faults.push(faults);
        state.world.processes.push(name);
        Self { shared: self.shared.clone(), process: state.faults.len() - 1 }
    }

    /// Cuts the power, and boots again. Mapped devices, loop bindings, nodes and mounts are gone; of a
    /// pool is left what was committed, of data what was synced: each 4 KiB that was written since is as it was
    /// before. This kernel is dead from now on: every call of every process fails with EIO.
    pub fn power_cut(&self) -> Self {
        let state = &mut *self.lock();
        state.off = true;
        state.faults.iter_mut().for_each(Faults::kill);
        let world = &mut state.world;
        world.store.power_cut();
        Self::with_world(World::new(world.options.clone(), world.storage.clone(), world.disks.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was planned to be done before this call. It makes calls of its own, so nothing is locked.
    fn interrupt(&self) {
        let action = self.lock().faults[self.process].take_action();
        action.into_iter().for_each(Action::run);
    }

    /// One call through the seam.
    fn call<R>(
        &self,
        name: &'static str,
        subject: impl std::fmt::Display,
        act: impl FnOnce(&mut World) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        self.interrupt();
        let state = &mut *self.lock();
        let faults = &mut state.faults[self.process];
        let verdict = faults.admit(name, None, subject.to_string())?;
        state.world.settle();
        let result = act(&mut state.world);
        state.world.settle();
        match verdict {
            Verdict::Proceed => result,
            Verdict::LoseAnswer(errno) => Err(errno),
            Verdict::LastOne => {
                faults.unwind_if_asked();
                Err(Errno::EIO)
            }
        }
    }

    /// The same for an ioctl. A lost answer leaves the caller's buffer as it was.
    fn call_ioctl(
        &self,
        file: &DeviceFile,
        request: Ioctl,
        argument: Arg<'_>,
        subject: String,
    ) -> Result<u32, Errno> {
        self.interrupt();
        let mut state = self.lock();
        let verdict = state.faults[self.process].admit(request.name(), Some(request.code()), subject)?;
        let result = match (verdict, argument) {
            (Verdict::Proceed, mut argument) => self.carry_out(state, file, request, &mut argument),
            (lost, argument) => {
                let mut scratch;
                let mut argument = match argument {
                    Arg::Bytes(bytes) => {
                        scratch = bytes.to_vec();
                        Arg::Bytes(&mut scratch)
                    }
                    argument => argument,
                };
                // The caller hears of the fault alone.
                let _ = self.carry_out(state, file, request, &mut argument);
                match lost {
                    Verdict::LoseAnswer(errno) => Err(errno),
                    Verdict::Proceed | Verdict::LastOne => {
                        self.lock().faults[self.process].unwind_if_asked();
                        Err(Errno::EIO)
                    }
                }
            }
        };
        self.shared.changed.notify_all();
        result
    }

    /// DEV_WAIT may have to wait for another call.
    fn carry_out(
        &self,
        mut state: MutexGuard<'_, State>,
        file: &DeviceFile,
        request: Ioctl,
        argument: &mut Arg<'_>,
    ) -> Result<u32, Errno> {
        let limit = Instant::now() + state.world.options.wait_limit;
        loop {
            state.world.settle();
            let result = state.world.ioctl(file, request, argument);
            state.world.settle();
            let left = limit.saturating_duration_since(Instant::now());
            if request != dm::DM_DEV_WAIT || result != Err(Errno::EINTR) || left.is_zero() {
                return result;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            if state.faults[self.process].dead() {
                return Err(Errno::EIO);
            }
        }
    }
}

impl World {
    fn ioctl(&mut self, file: &DeviceFile, request: Ioctl, argument: &mut Arg<'_>) -> Result<u32, Errno> {
        let handle = self.handles.iter().find(|handle| handle.is(file)).ok_or(Errno::EBADF)?;
        let (kind, number, access) = (file.kind(), file.number(), handle.access);
        let loop_as_block = kind == DeviceKind::Loop && request.device() == DeviceKind::Block;
        if kind != request.device() && !loop_as_block {
            return Err(Errno::ENOTTY);
        }
        let argument = match (request.argument(), argument) {
            (Argument::Value, Arg::Value(value)) => Arg::Value(*value),
            (Argument::Fd, Arg::Fd(fd)) => Arg::Fd(*fd),
            (Argument::Bytes(size), Arg::Bytes(bytes)) if bytes.len() == size => Arg::Bytes(bytes),
            (Argument::DmIoctl, Arg::Bytes(bytes)) => {
                let result = self.mapper_ioctl(request, bytes);
                if request == dm::DM_DEV_ARM_POLL && result.is_ok() {
                    self.handles
                        .iter_mut()
                        .filter(|handle| handle.is(file))
                        .for_each(|handle| handle.arm(file));
                }
                return result;
            }
            _ => return Err(Errno::EINVAL),
        };
        match (request.device(), argument) {
            (DeviceKind::LoopControl, Arg::Value(value)) => self.loop_control(request, value),
            (DeviceKind::Loop, argument) => self.loop_ioctl(number.minor, access, request, argument),
            (DeviceKind::Block, argument) => self.block_ioctl(number, access.is_write(), request, argument),
            _ => Err(Errno::ENOTTY),
        }
    }
}

/// The name or the uuid in a request's header, without judging it.
fn subject(file: &DeviceFile, argument: &Arg<'_>) -> String {
    match (file.kind(), argument) {
        (DeviceKind::MapperControl, Arg::Bytes(bytes)) => {
            let text = |from, len| {
                let bytes: &[u8] = bytes.get(from..from + len).unwrap_or_default();
                let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
                String::from_utf8_lossy(&bytes[..end]).into_owned()
            };
            let (name, uuid) = (text(48, dm::DM_NAME_LEN), text(176, dm::DM_UUID_LEN));
            let dev = bytes.get(40..48).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes);
            match (name.is_empty(), uuid.is_empty(), dev) {
                (false, ..) => name,
                (_, false, _) => uuid,
                (.., 0) => "control".to_owned(),
                (.., dev) => DeviceNumber::from_huge(dev).to_string(),
            }
        }
        _ => subject_of_device(file),
    }
}

fn subject_of_device(file: &DeviceFile) -> String {
    match file.kind() {
        DeviceKind::MapperControl => "control".to_owned(),
        DeviceKind::LoopControl => "loop-control".to_owned(),
        DeviceKind::Loop => format!("loop{}", file.number().minor),
        DeviceKind::Block => file.number().to_string(),
    }
}

impl Kernel for ModelKernel {
    fn open(&self, path: &Path, access: Access) -> Result<DeviceFile, Errno> {
        self.call("open", path.display(), |world| world.open(path, access, self.process))
    }

    fn ioctl(&self, file: &DeviceFile, request: Ioctl, argument: Arg<'_>) -> Result<u32, Errno> {
        let subject = subject(file, &argument);
        self.call_ioctl(file, request, argument, subject)
    }

    fn poll(&self, file: &DeviceFile, timeout: Option<Duration>) -> Result<bool, Errno> {
        self.call("poll", subject_of_device(file), |_| Ok(()))?;
        // Without a lock: another call is what makes it ready.
        RealKernel.poll(file, timeout)
    }

    fn read_at(&self, file: &DeviceFile, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.call("pread", subject_of_device(file), |world| world.read_at(file, offset, buffer))
    }

    fn write_at(&self, file: &DeviceFile, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.call("pwrite", subject_of_device(file), |world| world.write_at(file, offset, bytes))
    }

    fn sync(&self, file: &DeviceFile) -> Result<(), Errno> {
        let mut carried_out = false;
        let result = self.call("fdatasync", subject_of_device(file), |world| {
            carried_out = true;
            world.sync(file)
        });
        if !carried_out && !self.is_cut() {
            self.lock().world.store.take_back();
        }
        result
    }

    fn block_device(&self, path: &Path) -> Result<DeviceNumber, Errno> {
        self.call("stat", path.display(), |world| world.block_device(path))
    }

    fn device_node(&self, number: DeviceNumber) -> Result<PathBuf, Errno> {
        self.call("readlink", number, |world| world.device_node(number))
    }

    fn make_node(&self, path: &Path, number: DeviceNumber) -> Result<(), Errno> {
        self.call("mknod", path.display(), |world| {
            if world.block_device(path) != Err(Errno::ENOENT) {
                return Err(Errno::EEXIST);
            }
            world.nodes.insert(path.to_owned(), number);
            Ok(())
        })
    }

    fn remove_node(&self, path: &Path) -> Result<(), Errno> {
        self.call("unlink", path.display(), |world| world.nodes.remove(path).map(drop).ok_or(Errno::ENOENT))
    }

    fn set_node_owner(&self, file: &DeviceFile, user: u32, group: u32) -> Result<(), Errno> {
        let file = subject_of_device(file);
        self.call("fchown", format!("{file} {user}:{group}"), |_| Ok(()))
    }

    fn set_node_mode(&self, file: &DeviceFile, mode: u32) -> Result<(), Errno> {
        self.call("fchmod", format!("{} {mode:o}", subject_of_device(file)), |_| Ok(()))
    }

    fn lock_device(&self, file: &DeviceFile) -> Result<FileLock, Errno> {
        let lock = self.call("flock", subject_of_device(file), |world| world.device_lock(file.number()))?;
        FileLock::wait(lock)
    }

    fn block_device_names(&self) -> Result<Vec<OsString>, Errno> {
        self.call("readdir", "/sys/class/block", |world| Ok(world.block_device_names()))
    }

    fn block_attribute(&self, device: &str, attribute: &str) -> Result<Vec<u8>, Errno> {
        let subject = format!("/sys/class/block/{device}/{attribute}");
        self.call("read", subject, |world| world.block_attribute(device, attribute))
    }

    fn mapper_node_names(&self) -> Result<Vec<OsString>, Errno> {
        self.call("readdir", "/dev/mapper", |world| {
            let in_mapper = world.nodes.keys().filter_map(|path| path.strip_prefix("/dev/mapper").ok());
            Ok(in_mapper.map(OsString::from).collect())
        })
    }

    fn udev_runs(&self) -> bool {
        self.lock().world.options.udev
    }

    fn create_semaphore(&self, key: u32) -> Result<Semaphore, Errno> {
        self.call("semget", format!("{key:#x}"), |world| world.create_semaphore(key))
    }

    fn is_semaphore_zero(&self, semaphore: Semaphore) -> Result<bool, Errno> {
        self.call("semop", "semaphore", |world| world.is_semaphore_zero(semaphore))
    }

    fn remove_semaphore(&self, semaphore: Semaphore) -> Result<(), Errno> {
        self.call("semctl", "semaphore", |world| world.remove_semaphore(semaphore))
    }

    fn abandoned_semaphores(&self, key: u16) -> Result<Vec<Semaphore>, Errno> {
        self.call("read", "/proc/sysvipc/sem", |world| Ok(world.abandoned_semaphores(key)))
    }

    fn mount(
        &self,
        source: Option<&Path>,
        target: &Path,
        filesystem: Option<&str>,
        flags: MountFlags,
        options: &str,
    ) -> Result<(), Errno> {
        self.call("mount", target.display(), |world| world.mount(source, target, filesystem, flags, options))
    }

    fn unmount(&self, target: &Path, flags: UnmountFlags) -> Result<(), Errno> {
        self.call("umount", target.display(), |world| world.unmount(target, flags))
    }

    fn mount_table(&self) -> Result<Vec<u8>, Errno> {
        self.call("mountinfo", "/proc/self/mountinfo", |world| Ok(world.mount_table()))
    }

    /// Every file system has every attribute while it is mounted.
    fn set_filesystem_attribute(
        &self,
        filesystem: &str,
        device: DeviceNumber,
        attribute: &str,
        _: &str,
    ) -> Result<(), Errno> {
        let subject = format!("/sys/fs/{filesystem}/{device}/{attribute}");
        self.call("attribute", subject, |world| match world.is_mounted_as(device, filesystem) {
            true => Ok(()),
            false => Err(Errno::ENOENT),
        })
    }

    fn kernel_attribute(&self, attribute: &str) -> Result<Vec<u8>, Errno> {
        self.call("read", format!("/sys/kernel/{attribute}"), |_| match attribute {
            "rcu_expedited" => Ok(b"0".to_vec()),
            _ => Err(Errno::ENOENT),
        })
    }

    fn process_ids(&self) -> Result<Vec<u32>, Errno> {
        self.call("readdir", "/proc", |world| Ok(world.process_ids()))
    }

    fn process_info(&self, pid: u32) -> Result<ProcessInfo, Errno> {
        self.call("process", pid, |world| world.process_info(pid))
    }

    fn proc_text(&self, path: &str) -> Result<Vec<u8>, Errno> {
        self.call("read", format!("/proc/{path}"), |world| world.proc_text(path))
    }

    fn device_holders(&self, number: DeviceNumber) -> Result<Vec<OsString>, Errno> {
        self.call("readdir", format!("/sys/dev/block/{number}/holders"), |world| {
            let above = world.tables().filter(|(_, table)| table.uses(number));
            Ok(above.map(|(minor, _)| format!("dm-{minor}").into()).collect())
        })
    }

    fn find_program(&self, program: &str) -> Result<PathBuf, Errno> {
        self.call("which", program, |world| world.find_program(program))
    }

    fn run(&self, program: &str, arguments: &[&OsStr]) -> Result<Output, Errno> {
        self.call("run", program, |world| world.run_program(program, arguments))
    }

    fn files(&self) -> &dyn Files {
        self
    }
}
