//! Whatever is sent, the model answers, and its books balance.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::dm::wire::Command;
use crate::model::Mode;

#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Remove(u8, bool),
    Rename(u8, u8),
    Load(u8, String),
    Suspend(u8),
    Resume(u8),
    Clear(u8),
    Message(String),
    Write(u8, u64, u64),
    Mode(u8),
    Open(u8),
    Close,
    Garbage(usize, Vec<u8>),
    PowerCut,
}

fn step() -> impl Strategy<Value = Step> {
    let table = prop_oneof![
        Just("thin-pool 7:0 7:1 128 16".to_owned()),
        Just("thin-pool 7:0 7:1 128 16 1 error_if_no_space".to_owned()),
        Just("zero ".to_owned()),
        Just("error ".to_owned()),
        (0..4u8, 0..40u64).prop_map(|(device, offset)| format!("linear 253:{device} {offset}")),
        (0..2u8, 0..5u8).prop_map(|(device, id)| format!("thin 253:{device} {id}")),
        "[a-z-]{1,9} [0-9: ]{0,12}",
    ];
    let message = prop_oneof![
        (0..5u8).prop_map(|id| format!("create_thin {id}")),
        (0..5u8, 0..5u8).prop_map(|(id, origin)| format!("create_snap {id} {origin}")),
        (0..5u8).prop_map(|id| format!("delete {id}")),
        (0..3u8, 0..3u8).prop_map(|(current, new)| format!("set_transaction_id {current} {new}")),
        Just("reserve_metadata_snap".to_owned()),
        Just("release_metadata_snap".to_owned()),
        "\\PC{0,12}",
    ];
    prop_oneof![
        3 => (0..4u8).prop_map(Step::Create),
        2 => (0..4u8, any::<bool>()).prop_map(|(device, deferred)| Step::Remove(device, deferred)),
        1 => (0..4u8, 0..4u8).prop_map(|(from, to)| Step::Rename(from, to)),
        6 => (0..4u8, table).prop_map(|(device, table)| Step::Load(device, table)),
        1 => (0..4u8).prop_map(Step::Suspend),
        6 => (0..4u8).prop_map(Step::Resume),
        1 => (0..4u8).prop_map(Step::Clear),
        8 => message.prop_map(Step::Message),
        3 => (0..4u8, 0..200u64, 0..100u64).prop_map(|(device, from, len)| Step::Write(device, from, len)),
        1 => (0..5u8).prop_map(Step::Mode),
        1 => (0..4u8).prop_map(Step::Open),
        1 => Just(Step::Close),
        2 => (0..18usize, vec(any::<u8>(), 0..400)).prop_map(|(command, bytes)| Step::Garbage(command, bytes)),
        1 => Just(Step::PowerCut),
    ]
}

fn run(machine: &mut Machine, open: &mut Vec<DeviceFile>, step: Step) {
    let device = |number: u8| format!("d{number}");
    let named = |number: u8| name(&device(number));
    match step {
        Step::Create(number) => drop(machine.dm.create(&named(number), None)),
        Step::Remove(number, true) => drop(machine.dm.remove_deferred(&named(number))),
        Step::Remove(number, false) => drop(machine.dm.remove(&named(number))),
        Step::Rename(from, to) => drop(machine.dm.rename(&named(from), &named(to))),
        Step::Load(number, table) => {
            let (kind, parameters) = table.split_once(' ').unwrap();
            let _ = machine.load(&device(number), kind, parameters, 256 * BLOCK);
        }
        Step::Suspend(number) => {
            drop(machine.dm.suspend(DmId::Name(&named(number)), DmFlags::empty()));
        }
        Step::Resume(number) => drop(machine.dm.resume(&named(number))),
        Step::Clear(number) => drop(machine.dm.clear_table(DmId::Name(&named(number)))),
        Step::Message(text) => drop(machine.message("d0", &text)),
        Step::Write(number, from, len) => drop(machine.kernel.write(&device(number), from..from + len)),
        Step::Mode(mode) => {
            let modes =
                [Mode::Write, Mode::OutOfDataSpace, Mode::OutOfMetadataSpace, Mode::ReadOnly, Mode::Fail];
            let _ = machine.kernel.set_mode("d0", modes[usize::from(mode)]);
        }
        Step::Open(number) => open.extend(machine.kernel.open(&machine.node(&device(number)), Access::READ)),
        Step::Close => open.clear(),
        Step::Garbage(command, bytes) => {
            let mut buffer = request("", 312 + bytes.len());
            buffer[312..].copy_from_slice(&bytes);
            change(&mut buffer, |header| {
                header.version = [4, 0, 0];
                header.target_count = u32::from(bytes.first().copied().unwrap_or(0)) % 4;
                header.flags = bytes.get(1..5).map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap()));
                header.data_start = 300 + u32::from(bytes.get(5).copied().unwrap_or(0)) % 40;
                header.name[..2].copy_from_slice(b"d0");
                header.event_nr = u32::MAX;
            });
            let before = buffer.len();
            let _ = machine.raw(Command::ALL[command].ioctl, &mut buffer);
            assert_eq!(buffer.len(), before);
            assert!(header(&buffer).data_size as usize <= before);
        }
        Step::PowerCut => {
            open.clear();
            let mut next = Machine::boot(machine.kernel.power_cut(), Arc::clone(&machine.directory));
            next.attach("metadata", 4 << 20);
            next.attach("data", 16 << 20);
            *machine = next;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_confuses_it(steps in vec(step(), 1..60)) {
        let mut machine = Machine::with_loops();
        let mut open = Vec::new();
        for step in steps {
            run(&mut machine, &mut open, step);
            machine.kernel.check();
            machine.kernel.check_images();
            // Raw: a rename to any bytes is fine with the kernel, not with this crate's names.
            for device in ["d0", "d1", "d2", "d3"] {
                let answer = machine.raw(dm::DM_TABLE_STATUS, &mut request(device, 4096));
                prop_assert!(matches!(answer, Ok(0) | Err(Errno::ENXIO)));
            }
        }
    }

    #[test]
    fn no_header_confuses_it(
        command in 0..18usize,
        bytes in vec(any::<u8>(), 300..700),
        size in any::<u32>(),
        plausible in any::<bool>(),
    ) {
        let options = ModelOptions { wait_limit: std::time::Duration::ZERO, ..ModelOptions::default() };
        let machine = Machine::boot(ModelKernel::with_options(options), new_directory());
        machine.make("d");
        let mut buffer = bytes;
        let len = buffer.len();
        if len >= 312 {
            change(&mut buffer, |header| {
                header.version = [4, header.version[1] % 60, 0];
                header.data_size = if plausible { u32::try_from(len).unwrap() } else { size };
                header.data_start %= 800;
                header.target_count %= 8;
            });
        }
        let _ = machine.raw(Command::ALL[command].ioctl, &mut buffer);
    }
}
