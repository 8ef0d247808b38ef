//! `/dev/mapper/control`: requests read from bytes and answered in bytes, as strictly as dm-ioctl.c.
//!
//! Written from the kernel's side on purpose: nothing of this crate's encoder or decoder is used.

mod device;
mod packet;
mod table;

use nix::errno::Errno;
use zerocopy::FromBytes;

use self::packet::Packet;
use super::world::World;
use crate::abi::Ioctl;
use crate::abi::dm::{DM_IOCTL_MIN_SIZE, DM_VERSION_MAJOR, DmFlags, dm_ioctl};

/// What the kernel's table of commands says about one.
struct Command {
    since: u32,
    /// It reads the header only, whatever `data_size` says.
    no_params: bool,
    /// Its success is an event for everyone who polls the control device.
    global_event: bool,
    /// It takes a name and a uuid as they come.
    any_names: bool,
    run: fn(&mut World, &mut Packet) -> Result<u32, Errno>,
}

const PLAIN: Command =
    Command { since: 0, no_params: false, global_event: false, any_names: false, run: device::status };

const COMMANDS: [Command; 17] = [
    Command { no_params: true, global_event: true, any_names: true, run: device::remove_all, ..PLAIN },
    Command { any_names: true, run: device::list, ..PLAIN },
    Command { no_params: true, global_event: true, any_names: true, run: device::create, ..PLAIN },
    Command { no_params: true, global_event: true, run: device::remove, ..PLAIN },
    Command { global_event: true, run: device::rename, ..PLAIN },
    Command { no_params: true, run: device::suspend, ..PLAIN },
    Command { no_params: true, run: device::status, ..PLAIN },
    Command { run: table::wait, ..PLAIN },
    Command { run: table::load, ..PLAIN },
    Command { no_params: true, run: table::clear, ..PLAIN },
    Command { run: table::dependencies, ..PLAIN },
    Command { run: table::status, ..PLAIN },
    Command { since: 1, any_names: true, run: table::versions, ..PLAIN },
    Command { since: 2, run: table::message, ..PLAIN },
    Command { since: 6, run: device::set_geometry, ..PLAIN },
    Command { since: 37, no_params: true, run: |_, _| Ok(0), ..PLAIN },
    Command { since: 41, run: table::target_version, ..PLAIN },
];

const DEV_CREATE: u32 = 3;

/// No request is larger: DM_MAX_TARGETS * DM_MAX_TARGET_PARAMS.
const LARGEST: usize = 1 << 30;

impl World {
    /// An ioctl of the control device.
    pub(super) fn mapper_ioctl(&mut self, request: Ioctl, user: &mut [u8]) -> Result<u32, Errno> {
        let (header, _) = dm_ioctl::read_from_prefix(user).map_err(|_| Errno::EINVAL)?;
        let size = header.data_size as usize;
        // Here the seam speaks: the kernel would read past the caller's memory.
        if size > user.len() {
            return Err(Errno::EINVAL);
        }

        let version = [DM_VERSION_MAJOR, self.options.interface_minor, 0];
        for (bytes, number) in user.chunks_exact_mut(4).zip(version) {
            bytes.copy_from_slice(&number.to_ne_bytes());
        }
        if header.version[0] != version[0] || header.version[1] > version[1] {
            return Err(Errno::EINVAL);
        }
        let number = request.code() & 0xff;
        if number == 0 {
            return Ok(0);
        }
        let command = COMMANDS.get(number as usize - 1).filter(|command| command.since <= version[1]);
        let command = command.ok_or(Errno::ENOTTY)?;

        if !(DM_IOCTL_MIN_SIZE..=LARGEST).contains(&size) {
            return Err(Errno::EINVAL);
        }
        let size = if command.no_params { DM_IOCTL_MIN_SIZE } else { size };
        let mut packet = Packet::new(user, size)?;
        let secure = packet.has(DmFlags::SECURE_DATA);
        let result = self.run(number, command, &mut packet);
        // Nothing is wiped while the request is still to be repeated.
        if secure && result != Err(Errno::EINTR) {
            user[..size].fill(0);
        }
        if result == Ok(0) {
            packet.copy_out(user);
        }
        result
    }

    fn run(&mut self, number: u32, command: &Command, packet: &mut Packet) -> Result<u32, Errno> {
        packet.clear(
            DmFlags::BUFFER_FULL | DmFlags::UEVENT_GENERATED | DmFlags::SECURE_DATA | DmFlags::DATA_OUT,
        );
        if number == DEV_CREATE {
            if packet.name().is_empty() {
                return Err(Errno::EINVAL);
            }
        } else if !command.any_names && !packet.name().is_empty() && !packet.uuid().is_empty() {
            return Err(Errno::EINVAL);
        }
        if number == DEV_CREATE || !command.any_names {
            packet.terminate();
        }

        let cookie = packet.header.event_nr;
        let result = (command.run)(self, packet)?;
        if packet.has(DmFlags::UEVENT_GENERATED) {
            self.uevent(cookie);
        }
        if result == 0 && command.global_event {
            self.global_event();
        }
        Ok(result)
    }
}
