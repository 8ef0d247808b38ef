//! The commands about devices.

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::packet::{Packet, align, offset};
use crate::abi::dm::{
    DM_NAME_LEN, DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID, DM_NAME_LIST_FLAG_HAS_UUID, DM_UUID_LEN, DmFlags,
    dm_name_list, dm_name_list_tail,
};
use crate::kernel::DeviceNumber;
use crate::model::number::{DM_MAJOR, dm_number};
use crate::model::pool::digits;
use crate::model::table::split_args;
use crate::model::target::Kind;
use crate::model::world::{Device, World};

/// `__find_device_hash_cell`: by uuid, or name, or number, and by one of them only. The device's name
/// and uuid are written into the header.
pub(super) fn find(world: &World, packet: &mut Packet) -> Result<u32, Errno> {
    let (name, uuid, dev) = (packet.name(), packet.uuid(), packet.header.dev);
    let found = if !uuid.is_empty() {
        if !name.is_empty() || dev != 0 {
            return Err(Errno::ENXIO);
        }
        world.devices.iter().find(|(_, device)| device.uuid == uuid)
    } else if !name.is_empty() {
        if dev != 0 {
            return Err(Errno::ENXIO);
        }
        world.devices.iter().find(|(_, device)| device.name == name)
    } else {
        let number = DeviceNumber::from_huge(dev);
        let minor = (dev != 0 && number.major == DM_MAJOR).then_some(number.minor);
        minor.and_then(|minor| world.devices.get_key_value(&minor))
    };
    let (&minor, device) = found.ok_or(Errno::ENXIO)?;
    packet.identify(&device.name, &device.uuid);
    packet.set(DmFlags::INACTIVE_PRESENT, device.inactive.is_some());
    Ok(minor)
}

/// `__dev_status`: a device's state into the header.
pub(super) fn fill_status(world: &mut World, minor: u32, packet: &mut Packet) {
    // What a message did to a pool shows in the answer to that very message.
    world.deliver_events();
    let suspended_by_pool = world.suspended_internally(minor);
    let open_count = world.open_count(dm_number(minor));
    let Some(device) = world.devices.get(&minor) else { return };
    packet.clear(DmFlags::SUSPEND | DmFlags::READONLY | DmFlags::ACTIVE_PRESENT | DmFlags::INTERNAL_SUSPEND);
    let inactive = packet.has(DmFlags::QUERY_INACTIVE_TABLE);
    packet.set(DmFlags::SUSPEND, device.suspended);
    packet.set(DmFlags::INTERNAL_SUSPEND, suspended_by_pool);
    if device.deferred_remove {
        packet.set(DmFlags::DEFERRED_REMOVE, true);
    }
    packet.header.dev = dm_number(minor).to_huge();
    packet.header.open_count = open_count;
    packet.header.event_nr = device.event_nr;
    packet.header.target_count = 0;
    packet.set(DmFlags::ACTIVE_PRESENT, device.live.is_some());
    let (table, read_only) = if inactive {
        (&device.inactive, device.inactive.as_ref().is_some_and(|table| table.read_only))
    } else {
        (&device.live, device.read_only)
    };
    if let Some(table) = table {
        packet.set(DmFlags::READONLY, read_only);
        packet.header.target_count = offset(table.targets.len());
    }
}

/// `check_name`; the reserved names since 6.5.
fn check_name(world: &World, name: &[u8]) -> Result<(), Errno> {
    let reserved = matches!(name, b"control" | b"." | b"..") && world.options.interface_minor >= 48;
    if reserved || name.contains(&b'/') { Err(Errno::EINVAL) } else { Ok(()) }
}

pub(super) fn create(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let (name, uuid) = (packet.name().to_vec(), packet.uuid().to_vec());
    check_name(world, &name)?;
    let minor = if packet.has(DmFlags::PERSISTENT_DEV) {
        let minor = DeviceNumber::from_huge(packet.header.dev).minor;
        if world.devices.contains_key(&minor) {
            return Err(Errno::ENXIO);
        }
        minor
    } else {
        (0..1 << 20).find(|minor| !world.devices.contains_key(minor)).ok_or(Errno::ENXIO)?
    };
    let taken =
        world.devices.values().any(|device| device.name == name || (!uuid.is_empty() && device.uuid == uuid));
    if taken {
        return Err(Errno::EBUSY);
    }
    let sequence = world.next_sequence;
    world.next_sequence += 1;
    world.devices.insert(minor, Device { name, uuid, sequence, ..Device::default() });
    packet.clear(DmFlags::INACTIVE_PRESENT);
    fill_status(world, minor, packet);
    Ok(0)
}

pub(super) fn remove(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let minor = find(world, packet)?;
    if world.open_count(dm_number(minor)) > 0 {
        if !packet.has(DmFlags::DEFERRED_REMOVE) {
            return Err(Errno::EBUSY);
        }
        // The flag stays set in the answer: that is how the caller knows.
        if let Some(device) = world.devices.get_mut(&minor) {
            device.deferred_remove = true;
        }
        return Ok(0);
    }
    let announced = world.devices.get(&minor).is_some_and(|device| device.has_disk);
    world.remove_device(minor);
    packet.clear(DmFlags::DEFERRED_REMOVE);
    packet.set(DmFlags::UEVENT_GENERATED, announced);
    Ok(0)
}

/// Again and again, since devices use devices, until nothing more can go.
pub(super) fn remove_all(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    loop {
        let closed = world.devices.keys().copied().find(|&minor| world.open_count(dm_number(minor)) == 0);
        let Some(minor) = closed else { break };
        world.remove_device(minor);
        world.settle();
    }
    if packet.has(DmFlags::DEFERRED_REMOVE) {
        world.devices.values_mut().for_each(|device| device.deferred_remove = true);
    }
    packet.answer_nothing();
    Ok(0)
}

pub(super) fn rename(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let sets_uuid = packet.has(DmFlags::UUID);
    let new = packet.text_at(packet.payload_at()?)?.to_vec();
    let longest = if sets_uuid { DM_UUID_LEN - 1 } else { DM_NAME_LEN - 1 };
    if new.is_empty() || new.len() > longest {
        return Err(Errno::EINVAL);
    }
    if !sets_uuid {
        check_name(world, &new)?;
    }
    let same = |device: &Device| if sets_uuid { device.uuid == new } else { device.name == new };
    if world.devices.values().any(same) {
        return Err(Errno::EBUSY);
    }
    // By name only, whatever else the header holds.
    let name = packet.name();
    let device = world.devices.iter_mut().find(|(_, device)| device.name == name);
    let (&minor, device) = device.ok_or(Errno::ENXIO)?;
    if sets_uuid && !device.uuid.is_empty() {
        return Err(Errno::EINVAL);
    }
    *(if sets_uuid { &mut device.uuid } else { &mut device.name }) = new;
    let (announced, live) = (device.has_disk, device.live.is_some());
    if live {
        world.event(minor);
    }
    packet.set(DmFlags::UEVENT_GENERATED, announced);
    fill_status(world, minor, packet);
    Ok(0)
}

pub(super) fn status(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let minor = find(world, packet)?;
    fill_status(world, minor, packet);
    Ok(0)
}

pub(super) fn suspend(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let minor = find(world, packet)?;
    if packet.has(DmFlags::SUSPEND) {
        let running = world.devices.get(&minor).is_some_and(|device| !device.suspended);
        if running && !packet.has(DmFlags::SKIP_LOCKFS) {
            world.write_back(dm_number(minor))?;
        }
        world.suspend(minor)?;
    } else {
        packet.clear(DmFlags::INACTIVE_PRESENT);
        if world.resume(minor)? {
            packet.set(DmFlags::UEVENT_GENERATED, true);
        }
    }
    fill_status(world, minor, packet);
    Ok(0)
}

pub(super) fn list(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let minor = world.options.interface_minor;
    let with_uuid = minor >= 45 && packet.has(DmFlags::UUID);
    let wanted = |device: &Device| {
        minor < 45 || device.name.starts_with(packet.name()) && device.uuid.starts_with(packet.uuid())
    };
    let mut devices: Vec<_> = world.devices.iter().filter(|(_, device)| wanted(device)).collect();
    devices.sort_by(|(_, one), (_, other)| one.name.cmp(&other.name));
    let mut answer = Vec::new();
    let last = devices.len().saturating_sub(1);
    for (at, (&number, device)) in devices.into_iter().enumerate() {
        let mut record = vec![0; size_of::<dm_name_list>()];
        record.extend(&device.name);
        record.push(0);
        align(&mut record);
        if minor >= 37 {
            let flags = match (with_uuid, device.uuid.is_empty()) {
                (false, _) => 0,
                (true, false) => DM_NAME_LIST_FLAG_HAS_UUID,
                (true, true) => DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID,
            };
            record.extend(dm_name_list_tail { event_nr: device.event_nr, flags }.as_bytes());
            if flags == DM_NAME_LIST_FLAG_HAS_UUID {
                record.extend(&device.uuid);
                record.push(0);
                align(&mut record);
            }
        }
        let next = if at == last { 0 } else { offset(record.len()) };
        let head = dm_name_list { dev: dm_number(number).to_huge(), next };
        record[..size_of::<dm_name_list>()].copy_from_slice(head.as_bytes());
        answer.extend(record);
    }
    // Room for the device number that says "none" is asked for, but it is not copied out.
    packet.answer_if_fits(answer.len().max(size_of::<u64>()), answer);
    Ok(0)
}

pub(super) fn set_geometry(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    find(world, packet)?;
    let text = packet.text_at(packet.payload_at()?)?;
    let numbers: Vec<u64> = split_args(text).iter().map(|word| digits(word)).collect::<Result<_, _>>()?;
    match numbers[..] {
        [cylinders @ ..=65535, heads @ ..=255, sectors @ ..=255, start]
            if start <= cylinders * heads * sectors => {}
        _ => return Err(Errno::EINVAL),
    }
    packet.answer_nothing();
    Ok(0)
}

impl World {
    /// A thin volume whose pool is suspended.
    fn suspended_internally(&self, minor: u32) -> bool {
        let tables = self.devices.get(&minor).map(|device| device.live.iter().chain(&device.inactive));
        tables.into_iter().flatten().flat_map(|table| &table.targets).any(|target| match target.kind {
            Kind::Thin { pool, .. } => self.pools.get(&pool.minor).is_some_and(|pool| pool.suspended),
            _ => false,
        })
    }

    /// Suspending a pool suspends its thin volumes and commits.
    fn suspend(&mut self, minor: u32) -> Result<(), Errno> {
        if self.devices.get(&minor).is_some_and(|device| device.suspended) {
            return Ok(());
        }
        // A real kernel waits until the pool is resumed.
        if self.suspended_internally(minor) {
            return Err(Errno::EDEADLK);
        }
        let Some(device) = self.devices.get_mut(&minor) else { return Err(Errno::ENXIO) };
        device.suspended = true;
        if device.live.as_ref().is_some_and(|table| table.thin_pool().is_some())
            && let Some((pool, stored)) = self.pool(minor)
        {
            pool.suspended = true;
            pool.commit(stored);
        }
        Ok(())
    }

    /// `do_resume`: swap the tables, then go on. Whether it was suspended, which makes a uevent.
    fn resume(&mut self, minor: u32) -> Result<bool, Errno> {
        let Some(device) = self.devices.get(&minor) else { return Err(Errno::ENXIO) };
        if (device.suspended || device.inactive.is_some()) && self.suspended_internally(minor) {
            return Err(Errno::EDEADLK);
        }
        if let Some(new) = self.devices.get_mut(&minor).and_then(|device| device.inactive.take()) {
            self.released = true;
            // Suspended first, and left so if the new table is no good: that one is dropped.
            self.suspend(minor)?;
            let limits = self.calculate_limits(&new)?;
            if let Some(device) = self.devices.get_mut(&minor) {
                device.limits = limits;
                device.read_only = new.read_only;
                device.live = Some(new);
            }
            self.global_event();
        }
        let suspended = self.devices.get(&minor).is_some_and(|device| device.suspended);
        if !suspended {
            return Ok(false);
        }
        let live = self.devices.get(&minor).and_then(|device| device.live.as_ref());
        let is_pool = live.ok_or(Errno::EINVAL)?.thin_pool().is_some();
        if is_pool {
            self.bind_pool(minor)?;
            if let Some(pool) = self.pools.get_mut(&minor) {
                pool.resume();
            }
        }
        if let Some(device) = self.devices.get_mut(&minor) {
            device.suspended = false;
        }
        Ok(true)
    }
}
