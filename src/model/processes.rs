//! Processes, as `/proc` shows them: the one that runs the model, and those that a test gave a name.

use nix::errno::Errno;

use super::mount::ROOT_DEVICE;
use super::world::World;
use crate::kernel::{DeviceNumber, Kernel, ProcessInfo, ProcessName, RealKernel, UsedFile};

/// Where nodes are.
const DEVTMPFS: DeviceNumber = DeviceNumber { major: 0, minor: 6 };

impl World {
    fn known_processes(&self) -> impl Iterator<Item = &ProcessName> {
        self.processes.iter().flatten().chain(self.mounts.iter().filter_map(|mount| mount.user.as_ref()))
    }

    pub(super) fn process_ids(&self) -> Vec<u32> {
        let mut ids: Vec<_> =
            self.known_processes().map(|process| process.pid).chain([std::process::id()]).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    pub(super) fn process_info(&self, pid: u32) -> Result<ProcessInfo, Errno> {
        let (command, host) = match self.known_processes().find(|process| process.pid == pid) {
            Some(process) => (process.command.clone(), Vec::new()),
            None if pid == std::process::id() => {
                let real = RealKernel.process_info(pid)?;
                (real.command, real.files)
            }
            None => return Err(Errno::ENOENT),
        };
        // Files and directories are the host's, all in the one file system of the model's root.
        let host = host.into_iter().map(|file| UsedFile { filesystem: ROOT_DEVICE, device: None, ..file });
        let pid_of = |process: usize| match self.processes.get(process) {
            Some(Some(name)) => name.pid,
            _ => std::process::id(),
        };
        let handles = self.handles.iter().filter(|handle| handle.is_block() && pid_of(handle.process) == pid);
        let nodes = handles.map(|handle| {
            let (inode, device) = (handle.number.to_huge(), Some(handle.number));
            UsedFile { filesystem: DEVTMPFS, inode, device }
        });
        let mounts =
            self.mounts.iter().filter(|mount| mount.user.as_ref().is_some_and(|user| user.pid == pid));
        let used = mounts.map(|mount| {
            let filesystem = mount.number.unwrap_or(ROOT_DEVICE);
            UsedFile { filesystem, inode: 2, device: None }
        });
        Ok(ProcessInfo { command, mount_namespace: Some(1), files: host.chain(nodes).chain(used).collect() })
    }

    pub(super) fn proc_text(&self, path: &str) -> Result<Vec<u8>, Errno> {
        match path.split_once('/') {
            // Locks are on the host's files.
            None if path == "locks" => RealKernel.proc_text(path),
            Some((pid, "mountinfo")) if pid.parse().is_ok_and(|pid| self.process_ids().contains(&pid)) => {
                Ok(self.mount_table())
            }
            _ => Err(Errno::ENOENT),
        }
    }
}
