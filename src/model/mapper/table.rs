//! The commands about tables and targets.

use std::mem::size_of;

use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::device::{fill_status, find};
use super::packet::{HEADER, Packet, align, offset, until_nul};
use crate::abi::dm::{
    DM_MAX_TYPE_NAME, DmFlags, dm_target_deps, dm_target_msg, dm_target_spec, dm_target_versions,
};
use crate::model::number::dm_number;
use crate::model::table::split_args;
use crate::model::target::{Kind, TARGETS, Table};
use crate::model::world::World;

const SPEC: usize = size_of::<dm_target_spec>();
/// DM_MAX_TARGETS.
const MAX_TARGETS: u32 = 1 << 20;

pub(super) fn load(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let minor = find(world, packet)?;
    let count = packet.header.target_count;
    if count > MAX_TARGETS {
        return Err(Errno::EOVERFLOW);
    }
    if count == 0 {
        return Err(Errno::EINVAL);
    }
    let mut table = Table { read_only: packet.has(DmFlags::READONLY), targets: Vec::new() };
    let loaded = populate(world, minor, &mut table, packet);
    // Pools that only the failed or the replaced table used are closed.
    world.released = true;
    loaded?;
    // The first table makes the disk and its limits, so what it lies on is looked at before the resume.
    let first = world.devices.get(&minor).is_some_and(|device| !device.has_disk);
    let limits = if first { Some(world.calculate_limits(&table)?) } else { None };

    let device = world.devices.get_mut(&minor).ok_or(Errno::ENXIO)?;
    let is_pool = |table: &Table| table.thin_pool().is_some();
    let immutable = device.live.as_ref().is_some_and(is_pool);
    let wildcard = table.targets.iter().any(|target| matches!(target.kind, Kind::Error));
    if immutable && !is_pool(&table) && !wildcard {
        return Err(Errno::EINVAL);
    }
    device.inactive = Some(table);
    device.has_disk = true;
    device.limits = limits.unwrap_or(device.limits);
    packet.set(DmFlags::INACTIVE_PRESENT, true);
    fill_status(world, minor, packet);
    Ok(0)
}

/// `populate_table`: `next` counts from the current spec, is 8-aligned, and goes over its string.
fn populate(world: &mut World, minor: u32, table: &mut Table, packet: &Packet) -> Result<(), Errno> {
    let (mut at, mut next, mut least) = (0usize, packet.header.data_start as usize, HEADER);
    for _ in 0..packet.header.target_count {
        if next < least || !next.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        at = at.checked_add(next).ok_or(Errno::EINVAL)?;
        let bytes = packet.request_from(at);
        // A spec, and at least the NUL of its string.
        let (spec, rest) = dm_target_spec::read_from_prefix(bytes).map_err(|_| Errno::EINVAL)?;
        let end = rest.iter().position(|&byte| byte == 0).ok_or(Errno::EINVAL)?;
        least = SPEC + end + 1;
        let range = (spec.sector_start, spec.length);
        let target = world.construct(minor, table, until_nul(&spec.target_type), &rest[..end], range)?;
        table.targets.push(target);
        next = spec.next as usize;
    }
    Ok(())
}

pub(super) fn clear(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let minor = find(world, packet)?;
    if let Some(device) = world.devices.get_mut(&minor) {
        device.inactive = None;
        world.released = true;
    }
    packet.clear(DmFlags::INACTIVE_PRESENT);
    fill_status(world, minor, packet);
    Ok(0)
}

fn table_meant<'a>(world: &'a World, minor: u32, packet: &Packet) -> Option<&'a Table> {
    let device = world.devices.get(&minor)?;
    if packet.has(DmFlags::QUERY_INACTIVE_TABLE) { device.inactive.as_ref() } else { device.live.as_ref() }
}

pub(super) fn dependencies(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let minor = find(world, packet)?;
    fill_status(world, minor, packet);
    let Some(table) = table_meant(world, minor, packet) else { return Ok(0) };
    let devices = table.dependencies();
    let mut answer = dm_target_deps { count: offset(devices.len()), padding: 0 }.as_bytes().to_vec();
    answer.extend(devices.iter().flat_map(|device| device.to_huge().to_ne_bytes()));
    packet.answer_if_fits(answer.len(), answer);
    Ok(0)
}

pub(super) fn status(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let minor = find(world, packet)?;
    fill_status(world, minor, packet);
    retrieve_status(world, minor, packet);
    Ok(0)
}

/// EINTR while there is nothing new: whoever called this waits and asks again.
pub(super) fn wait(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let minor = find(world, packet)?;
    world.deliver_events();
    if world.devices.get(&minor).is_some_and(|device| device.event_nr == packet.header.event_nr) {
        return Err(Errno::EINTR);
    }
    fill_status(world, minor, packet);
    retrieve_status(world, minor, packet);
    Ok(0)
}

fn retrieve_status(world: &mut World, minor: u32, packet: &mut Packet) {
    let as_table = packet.has(DmFlags::STATUS_TABLE);
    let as_status = !as_table && !packet.has(DmFlags::IMA_MEASUREMENT);
    let flush = as_status && !packet.has(DmFlags::NOFLUSH);
    let suspended = world.devices.get(&minor).is_some_and(|device| device.suspended);
    let Some(table) = table_meant(world, minor, packet) else { return };
    if table.thin_pool().is_some()
        && flush
        && !suspended
        && let Some((pool, stored)) = world.pool(minor)
    {
        pool.commit(stored);
    }
    let Some(table) = table_meant(world, minor, packet) else { return };
    let room = packet.room();
    let (mut answer, mut used, mut full) = (Vec::new(), 0, false);
    for target in &table.targets {
        let at = answer.len();
        if room.saturating_sub(at) <= SPEC {
            full = true;
            break;
        }
        let text = match (as_table, as_status) {
            (true, _) => world.table_text(minor, &target.kind),
            (_, true) => world.status_text(minor, &target.kind),
            _ => String::new(),
        };
        // The kernel takes a string that fills the rest for one that was cut.
        if text.len() + 1 >= room - at - SPEC {
            full = true;
            break;
        }
        let mut spec = dm_target_spec {
            sector_start: target.start,
            length: target.length,
            status: 0,
            next: 0,
            target_type: [0; DM_MAX_TYPE_NAME],
        };
        let name = target.kind.name();
        spec.target_type[..name.len()].copy_from_slice(name.as_bytes());
        let next = (at + SPEC + text.len() + 1).next_multiple_of(8);
        // Whole, but the next one would begin outside: full, and `next` stays 0.
        full = next > room;
        spec.next = if full { 0 } else { offset(next) };
        answer.extend(spec.as_bytes());
        answer.extend(text.as_bytes());
        answer.push(0);
        used = answer.len();
        align(&mut answer);
        if full {
            break;
        }
    }
    let count = offset(table.targets.len());
    answer.truncate(used);
    if used > 0 {
        packet.answer(answer);
    }
    packet.set(DmFlags::BUFFER_FULL, full);
    packet.header.target_count = count;
}

pub(super) fn versions(_: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    answer_versions(packet, &TARGETS);
    Ok(0)
}

pub(super) fn target_version(_: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let wanted = packet.name();
    let found = TARGETS.iter().find(|(name, _)| name.as_bytes() == wanted).copied();
    answer_versions(packet, &[found.ok_or(Errno::EINVAL)?]);
    Ok(0)
}

fn answer_versions(packet: &mut Packet, targets: &[(&str, [u32; 3])]) {
    let (mut answer, mut needed) = (Vec::new(), 0);
    for (at, (name, version)) in targets.iter().enumerate() {
        let size = size_of::<dm_target_versions>() + name.len() + 1;
        // The kernel counts the most that alignment can add.
        needed += size + 7;
        let last = at + 1 == targets.len();
        let next = if last { 0 } else { offset(size.next_multiple_of(8)) };
        answer.extend(dm_target_versions { next, version: *version }.as_bytes());
        answer.extend(name.as_bytes());
        answer.push(0);
        align(&mut answer);
    }
    answer.resize(needed, 0);
    packet.answer_if_fits(needed, answer);
}

pub(super) fn message(world: &mut World, packet: &mut Packet) -> Result<u32, Errno> {
    let payload = packet.payload_at();
    let room = packet.room();
    let minor = find(world, packet)?;
    let at = payload?;
    let args = split_args(packet.text_at(at + size_of::<dm_target_msg>())?);
    let (message, _) = dm_target_msg::read_from_prefix(packet.request_from(at)).map_err(|_| Errno::EINVAL)?;
    let answer = match args.first() {
        None => return Err(Errno::EINVAL),
        Some(verb) if verb.starts_with(b"@") => message_for_device(world, minor, &args, packet)?,
        Some(_) => {
            let device = world.devices.get(&minor);
            let table = device.and_then(|device| device.live.as_ref()).ok_or(Errno::EINVAL)?;
            let target = table
                .targets
                .iter()
                .find(|target| (target.start..target.start + target.length).contains(&message.sector));
            match target.ok_or(Errno::EINVAL)?.kind {
                Kind::ThinPool(_) => world.message_pool(minor, &args)?,
                _ => return Err(Errno::EINVAL),
            }
            None
        }
    };
    fill_status(world, minor, packet);
    if let Some(text) = answer {
        packet.set(DmFlags::DATA_OUT, true);
        if text.len() + 1 >= room {
            packet.set(DmFlags::BUFFER_FULL, true);
        } else {
            packet.answer([&text, &b"\0"[..]].concat());
        }
    }
    Ok(0)
}

/// Messages to device mapper itself. Statistics are never collected here.
fn message_for_device(
    world: &mut World,
    minor: u32,
    args: &[Vec<u8>],
    packet: &Packet,
) -> Result<Option<Vec<u8>>, Errno> {
    match (args[0].to_ascii_lowercase().as_slice(), args.len()) {
        (b"@cancel_deferred_remove", 1) => {
            // Also a success where none is pending.
            if let Some(device) = world.devices.get_mut(&minor) {
                device.deferred_remove = false;
            }
            Ok(None)
        }
        // A list of nothing writes nothing, and what the request had in the place of the answer is the answer.
        (b"@stats_list", 1 | 2) => Ok(Some(until_nul(packet.request_from(HEADER)).to_vec())),
        _ => Err(Errno::EINVAL),
    }
}

impl World {
    fn message_pool(&mut self, minor: u32, args: &[Vec<u8>]) -> Result<(), Errno> {
        let number = dm_number(minor);
        let active: Vec<u32> = if args[0].eq_ignore_ascii_case(b"delete") {
            let targets = self.tables().flat_map(|(_, table)| &table.targets);
            targets
                .filter_map(|target| match target.kind {
                    Kind::Thin { pool, id, .. } if pool == number => Some(id),
                    _ => None,
                })
                .collect()
        } else {
            Vec::new()
        };
        let (pool, stored) = self.pool(minor).ok_or(Errno::EINVAL)?;
        pool.message(stored, args, |id| active.contains(&id))
    }
}
