//! What a test does that no call through the seam could do: I/O, failures, looks behind the scenes.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use uuid::Uuid;

use super::io::Io;
use super::number::{dm_number, loop_number};
use super::pool::Mode;
use super::store;
use super::table::new_marker;
use super::volume::Volume;
use super::world::{Disk, World};
use super::{ModelKernel, State};
use crate::kernel::{DeviceNumber, ProcessName};
use crate::units::{Bytes, Sectors};

impl World {
    fn named(&self, name: &str) -> Result<u32, Errno> {
        let found = self.devices.iter().find(|(_, device)| device.name == name.as_bytes());
        found.map(|(&minor, _)| minor).ok_or(Errno::ENXIO)
    }

    /// A thin volume that can do I/O, and its pool's minor number.
    fn volume(&self, name: &str) -> Result<(DeviceNumber, u32), Errno> {
        let number = dm_number(self.named(name)?);
        let (pool, _) = self.thin_volume(number).ok_or(Errno::EINVAL)?;
        self.check_running(number).map_err(|_| Errno::EAGAIN)?;
        Ok((number, pool))
    }
}

impl ModelKernel {
    fn hook<R>(&self, act: impl FnOnce(&mut World) -> R) -> R {
        let State { world, .. } = &mut *self.lock();
        world.settle();
        let result = act(world);
        world.settle();
        self.shared.changed.notify_all();
        result
    }

    /// Writes to blocks of the active thin volume `name`, counted in the pool's data blocks: what is in them stays.
    ///
    /// # Errors
    /// ENOSPC when no data block is free, whether the pool would queue the write or fail it; EIO when
    /// the pool is failed, or read-only and a block is not mapped or shared; EAGAIN when volume or pool is suspended
    /// and the write would wait.
    pub fn write(&self, name: &str, blocks: Range<u64>) -> Result<(), Errno> {
        self.hook(|world| {
            let (number, _) = world.volume(name)?;
            blocks.into_iter().try_for_each(|block| world.map_block(number, block))
        })
    }

    /// Writes to unmapped blocks of the thin volume `name` until the pool has only `left` free ones.
    pub fn fill(&self, name: &str, left: u64) -> Result<(), Errno> {
        self.hook(|world| {
            let (number, pool) = world.volume(name)?;
            for block in 0.. {
                if world.pools.get(&pool).ok_or(Errno::EIO)?.current.free_data() <= left {
                    break;
                }
                world.map_block(number, block)?;
            }
            Ok(())
        })
    }

    /// What the pools' clocks do every second, and a flush on any volume: commit.
    pub fn commit(&self) {
        self.hook(|world| {
            let minors: Vec<u32> = world.pools.keys().copied().collect();
            for minor in minors {
                if let Some((pool, stored)) = world.pool(minor) {
                    pool.commit(stored);
                }
            }
        });
    }

    fn with_pool<R>(
        &self,
        name: &str,
        act: impl FnOnce(&mut super::pool::Pool, &mut super::metadata::Metadata) -> R,
    ) -> Result<R, Errno> {
        self.hook(|world| {
            let minor = world.named(name)?;
            let (pool, stored) = world.pool(minor).ok_or(Errno::EINVAL)?;
            Ok(act(pool, stored))
        })
    }

    /// Something happened that puts the pool `name` into this mode. The kernel's rules hold: from
    /// [`Mode::Fail`] there is no way back, nor to [`Mode::Write`] while a check is needed.
    pub fn set_mode(&self, name: &str, mode: Mode) -> Result<(), Errno> {
        self.with_pool(name, |pool, _| pool.set_mode(mode))
    }

    /// The mode of the pool `name`.
    pub fn mode(&self, name: &str) -> Result<Mode, Errno> {
        self.with_pool(name, |pool, _| pool.mode)
    }

    /// Sets or clears the flag in the pool's superblock, durably, as thin_repair would.
    pub fn set_needs_check(&self, name: &str, needed: bool) -> Result<(), Errno> {
        self.with_pool(name, |pool, stored| pool.set_needs_check(stored, needed))
    }

    /// Commits of the pool `name` fail from now on, or no longer. At the first one what was not
    /// committed is lost, and the pool is read-only and needs a check: but the message that caused the
    /// commit succeeds. Only the event number tells.
    pub fn fail_commits(&self, name: &str, fail: bool) -> Result<(), Errno> {
        self.with_pool(name, |pool, _| pool.commits_fail = fail)
    }

    /// The ids of the thin devices in the pool `name`, in order, with their mapped blocks.
    pub fn thin_devices(&self, name: &str) -> Result<Vec<(u32, u64)>, Errno> {
        self.with_pool(name, |pool, _| {
            let current = &pool.current;
            current.contents.thins.keys().map(|&id| (id, current.mapped(id))).collect()
        })
    }

    /// Reads from the thin device `id` of the pool `name`, active or not.
    ///
    /// # Errors
    /// ENODATA if there is no such thin device.
    pub fn read_thin(&self, name: &str, id: u32, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.hook(|world| {
            let minor = world.named(name)?;
            let (pool, _) = world.pool(minor).ok_or(Errno::EINVAL)?;
            if !pool.current.exists(id) {
                return Err(Errno::ENODATA);
            }
            let volume = Volume { pool: minor, id, origin: None, depth: 0 };
            world.transfer_thin(&volume, offset, Io::Read(buffer))
        })
    }

    /// Tells that `copy` is a copy of a metadata file: it gets committed metadata of its own, the same that the file
    /// that it was copied from has now.
    ///
    /// # Errors
    /// EILSEQ if it does not begin as such a file does.
    pub fn copy_metadata(&self, copy: &File) -> Result<(), Errno> {
        self.hook(|world| {
            let mut marker = [0; 8];
            store::read(copy, 0, &mut marker)?;
            let metadata = world.storage.get(&u64::from_le_bytes(marker)).cloned().ok_or(Errno::EILSEQ)?;
            let marker = new_marker();
            copy.write_all_at(&marker.to_le_bytes(), 0).map_err(store::errno)?;
            world.storage.insert(marker, metadata);
            Ok(())
        })
    }

    /// The file systems below loop devices are full, or no longer: a write to a hole of a file is ENOSPC.
    pub fn set_full(&self, full: bool) {
        self.hook(|world| world.store.full = full);
    }

    /// An event of the device `name`, as its target could have raised one.
    pub fn event(&self, name: &str) -> Result<(), Errno> {
        self.hook(|world| {
            let minor = world.named(name)?;
            world.event(minor);
            Ok(())
        })
    }

    /// A process works below the mount on `target`, so that unmounting it is EBUSY; or nobody any longer.
    pub fn set_mount_user(&self, target: &Path, user: Option<ProcessName>) -> Result<(), Errno> {
        let target = std::fs::canonicalize(target).map_err(|_| Errno::ENOENT)?;
        self.hook(|world| {
            let mount = world.mounts.iter_mut().rfind(|mount| mount.target == target);
            mount.ok_or(Errno::EINVAL)?.user = user;
            Ok(())
        })
    }

    /// Writes a file of a mounted file system, whole. It is on the device when the file system is synced, frozen or
    /// unmounted.
    ///
    /// # Errors
    /// ENOENT if nothing is mounted there, or the directory above it is not there; EROFS; ENOSPC.
    pub fn write_file(&self, path: &Path, contents: &[u8]) -> Result<(), Errno> {
        self.hook(|world| world.write_file(path, contents))
    }

    /// Reads a file of a mounted file system.
    ///
    /// # Errors
    /// ENOENT, EISDIR; ELOOP for a symbolic link.
    pub fn read_file(&self, path: &Path) -> Result<Vec<u8>, Errno> {
        self.hook(|world| world.read_file(path))
    }

    /// The name, the UUID and the size of the file system on a device, as its superblock tells; none if there is none.
    ///
    /// # Errors
    /// What keeps the device from being read.
    pub fn filesystem(&self, device: &Path) -> Result<Option<(&'static str, Uuid, Bytes)>, Errno> {
        self.hook(|world| {
            let number = world.block_device(device)?;
            let found = world.read_filesystem(number)?;
            Ok(found.map(|found| (found.kind.name(), found.uuid, Bytes(found.size))))
        })
    }

    /// A program is not installed from now on.
    pub fn uninstall(&self, program: &str) {
        self.hook(|world| world.uninstalled.insert(program.to_owned()));
    }

    /// Adds a plain disk, or changes the size of one. Its synced bytes survive a power cut.
    ///
    /// # Errors
    /// EINVAL for a number that device mapper or the loop driver would give out.
    pub fn set_disk(&self, path: &Path, number: DeviceNumber, size: Sectors) -> Result<(), Errno> {
        if number.major == dm_number(0).major || number.major == loop_number(0).major {
            return Err(Errno::EINVAL);
        }
        self.hook(|world| {
            let (file, serial) = match world.disks.get(&number) {
                Some(disk) => (Arc::clone(&disk.file), disk.serial.clone()),
                None => (store::memory()?, None),
            };
            world.disks.insert(number, Disk { path: path.to_owned(), sectors: size.0, file, serial });
            Ok(())
        })
    }

    /// Gives a plain disk a serial number, which it keeps under another path.
    ///
    /// # Errors
    /// ENXIO if there is no such disk.
    pub fn set_disk_serial(&self, number: DeviceNumber, serial: &str) -> Result<(), Errno> {
        self.hook(|world| {
            world.disks.get_mut(&number).ok_or(Errno::ENXIO)?.serial = Some(serial.to_owned());
            Ok(())
        })
    }

    /// How often a device is open: by file descriptors, by tables, by a mount.
    pub fn open_count(&self, number: DeviceNumber) -> u32 {
        self.hook(|world| world.open_count(number).unsigned_abs())
    }

    /// What a test should not leave behind: mapped devices, bound loop devices, nodes, mounts and
    /// semaphores.
    pub fn leftovers(&self) -> Vec<String> {
        self.hook(|world| {
            let names = world.devices.values().map(|device| String::from_utf8_lossy(&device.name));
            let devices = names.map(|name| format!("device {name}"));
            let loops = world.loops.iter().filter_map(|(index, device)| {
                device.backing().map(|backing| format!("loop{index} on {backing}"))
            });
            let nodes = world.nodes.keys().map(|path| format!("node {}", path.display()));
            let mounts = world.mounts.iter().filter(|mount| mount.number.is_some());
            let mounts = mounts.map(|mount| format!("mount {}", mount.target.display()));
            let semaphores = world.semaphores.values().map(|counter| format!("semaphore {counter:?}"));
            devices.chain(loops).chain(nodes).chain(mounts).chain(semaphores).collect()
        })
    }

    /// Whether there are no [`leftovers`](Self::leftovers).
    pub fn is_clean(&self) -> bool {
        self.leftovers().is_empty()
    }

    /// What must always hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.hook(|world| {
            world.pools.values().for_each(|pool| pool.current.check());
            world.storage.values().for_each(super::metadata::Metadata::check);
            for (minor, device) in &world.devices {
                assert!(world.devices.iter().all(|(other, twin)| other == minor || twin.name != device.name));
                let used = device.live.iter().chain(&device.inactive).flat_map(|table| table.dependencies());
                used.for_each(|number| assert!(world.exists(number)));
            }
        });
    }

    /// What every committed pool's metadata device says is what the pool has.
    #[cfg(test)]
    pub(super) fn check_images(&self) {
        self.hook(|world| {
            for metadata in world.storage.values() {
                let image = metadata.image().unwrap();
                let (contents, held) = super::tests::image::decode(&|number| *image.block(number).unwrap());
                assert_eq!(contents, metadata.contents);
                assert_eq!(held.map(|(location, _)| location), metadata.held_root());
            }
        });
    }
}
