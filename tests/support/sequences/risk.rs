//! What is not asked of a real kernel because it would wait for ever, could not be taken down again, or is
//! known to crash it.

use std::collections::{BTreeMap, BTreeSet};

use dm_thin::abi::block::{BLKDISCARD, BLKFLSBUF, BLKZEROOUT};
use dm_thin::abi::loopdev::{LOOP_CONFIGURE, LOOP_GET_STATUS, LOOP_GET_STATUS64, LOOP_SET_FD};
use dm_thin::dm::DmFlags;
use dm_thin::kernel::DeviceNumber;

use super::answer;
use super::machine::Machine;
use super::plan::{
    Ask, DEPS, Device, LIST, LOAD, Op, Payload, RENAME, STATUS, SUSPEND, Subject, TABLE_STATUS, Word,
};

/// More blocks than one operation writes to.
const WRITTEN: i64 = 8;

#[derive(Debug, Default)]
struct State {
    suspended: bool,
    pool: bool,
    thin: bool,
    /// A pool that would queue writes, and has few blocks left.
    nearly_full: bool,
    uses: BTreeSet<DeviceNumber>,
}

type States = BTreeMap<DeviceNumber, State>;

fn states(machine: &mut Machine<'_>) -> States {
    let (list, _) = machine.ask(&Ask::new(LIST));
    let mut states = States::new();
    for (name, number) in answer::listed(machine, &list) {
        let subject = Subject { whole: Some(name), ..Subject::default() };
        let status = Ask { subject: subject.clone(), flags: DmFlags::NOFLUSH, ..Ask::new(TABLE_STATUS) };
        let mut state = State { nearly_full: nearly_full(&machine.ask(&status).1), ..State::default() };
        for flags in [DmFlags::STATUS_TABLE, DmFlags::STATUS_TABLE | DmFlags::QUERY_INACTIVE_TABLE] {
            let ask = |command| Ask { flags, subject: subject.clone(), ..Ask::new(command) };
            let (table, _) = machine.ask(&ask(TABLE_STATUS));
            let flags = DmFlags::from_bits_retain(answer::header(&table).flags);
            state.suspended |= flags.intersects(DmFlags::SUSPEND | DmFlags::INTERNAL_SUSPEND);
            state.pool |= table.windows(10).any(|bytes| bytes == b"thin-pool\0");
            let has = |target: &[u8]| table.windows(target.len()).any(|bytes| bytes == target);
            state.thin |= has(b"thin\0") && !has(b"linear\0");
            state.uses.extend(answer::dependencies(&machine.ask(&ask(DEPS)).0));
        }
        states.insert(number, state);
    }
    states
}

/// From a pool's status, as `[transaction some/metadata used/data … queue_if_no_space …]`.
fn nearly_full(status: &str) -> bool {
    let Some((_, line)) = status.split_once(" thin-pool [") else { return false };
    let data = line.split(' ').nth(2).and_then(|data| data.split_once('/'));
    let free = data.map(|(used, total)| total.parse().unwrap_or(0) - used.parse::<i64>().unwrap_or(0));
    line.contains("queue_if_no_space") && free.is_none_or(|free| free < WRITTEN)
}

/// Everything that a device stands on, itself included.
fn below(states: &States, number: DeviceNumber) -> BTreeSet<DeviceNumber> {
    let (mut found, mut next) = (BTreeSet::new(), vec![number]);
    while let Some(number) = next.pop() {
        if found.insert(number) {
            next.extend(states.get(&number).into_iter().flat_map(|state| &state.uses));
        }
    }
    found
}

/// Whether I/O might wait for ever.
fn waits(states: &States) -> bool {
    states.values().any(|state| state.suspended || state.nearly_full)
}

/// Whether what is written goes, past its volumes, to what is or may become a pool's device: the blocks there are not the
/// same on two kernels.
fn changes_a_pool(machine: &Machine<'_>, states: &States, device: Device) -> bool {
    let (mut found, mut next) = (BTreeSet::new(), vec![machine.number(device)]);
    while let Some(number) = next.pop() {
        let state = states.get(&number);
        if found.insert(number) && !state.is_some_and(|state| state.thin) {
            next.extend(state.into_iter().flat_map(|state| &state.uses));
        }
    }
    let loops = (0..3).map(|slot| machine.number(Device::Loop(slot)));
    loops.into_iter().any(|number| found.contains(&number))
        || found.contains(&machine.number(Device::Loop(3)))
            && under_a_pool(states, machine.number(Device::Loop(3)))
}

/// Whether a pool stands on it: then it stays as it is, since a pool that cannot reach its metadata waits.
fn under_a_pool(states: &States, number: DeviceNumber) -> bool {
    states
        .iter()
        .filter(|(_, state)| state.pool)
        .flat_map(|(_, state)| &state.uses)
        .any(|&used| below(states, used).contains(&number))
}

/// Whether the real kernel is not asked this, as the model `machine` is now.
pub fn is_risky(machine: &mut Machine<'_>, op: &Op) -> bool {
    match op {
        Op::Block(device, _, request, ..) if [BLKZEROOUT, BLKDISCARD, BLKFLSBUF].contains(request) => {
            let states = states(machine);
            waits(&states) || *request != BLKFLSBUF && changes_a_pool(machine, &states, *device)
        }
        Op::Read(..) => waits(&states(machine)),
        Op::Write(device, ..) => {
            let states = states(machine);
            waits(&states) || changes_a_pool(machine, &states, *device)
        }
        Op::Loop(slot, _, request, _)
            if ![LOOP_SET_FD, LOOP_CONFIGURE, LOOP_GET_STATUS64, LOOP_GET_STATUS].contains(request) =>
        {
            under_a_pool(&states(machine), machine.number(Device::Loop(*slot)))
        }
        Op::Resize(..) => {
            let states = states(machine);
            (2..4).any(|slot| under_a_pool(&states, machine.number(Device::Loop(slot))))
        }
        Op::Ask(ask) if ask.command == SUSPEND => {
            subject(machine, ask).is_some_and(|number| under_a_pool(&states(machine), number))
        }
        // dm-ima.c (5.15 to 6.12 at least) frees the name of such a device twice.
        Op::Ask(ask) if ask.command == RENAME => !machine.cleared.is_empty(),
        Op::Ask(ask) if ask.command == LOAD => {
            let Some(number) = subject(machine, ask) else { return false };
            let states = states(machine);
            under_a_pool(&states, number) || stands_badly(machine, &states, number, ask)
        }
        _ => false,
    }
}

/// A cycle of tables, or a pool over what is suspended.
fn stands_badly(machine: &Machine<'_>, states: &States, number: DeviceNumber, ask: &Ask) -> bool {
    let Payload::Table(lines) = &ask.payload else { return false };
    lines.iter().any(|line| {
        let used = line.words.iter().filter_map(|word| match word {
            Word::Number(device) | Word::Path(device) => Some(machine.number(*device)),
            Word::Text(_) => None,
        });
        let mut below = used.flat_map(|used| below(states, used));
        let suspended = |number: DeviceNumber| states.get(&number).is_some_and(|state| state.suspended);
        below.any(|below| below == number || line.target == "thin-pool" && suspended(below))
    })
}

/// The device that a request is about, as far as it can be told.
fn subject(machine: &mut Machine<'_>, ask: &Ask) -> Option<DeviceNumber> {
    let asked = Ask { subject: ask.subject.clone(), ..Ask::new(STATUS) };
    let (answer, words) = machine.ask(&asked);
    words.starts_with("Ok").then(|| DeviceNumber::from_huge(answer::header(&answer).dev))
}
